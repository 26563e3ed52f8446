//! Links, DHCP, SLAAC and DNS against dnsmasq, in network namespaces of two threads that end with
//! the test. Needs root.
#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test that fails panics")]

use std::fs;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use base::beat;
use base::config::{Config, Link};
use network::dial::Peer;
use network::netlink::Netlink;
use network::{NetError, Network, dns};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, gettid};

/// The client's card.
const CARD: &str = "02:00:00:00:00:0c";

/// A cable between the namespace of the test's thread, where it is called `cli`, and that of
/// another one, where it is `srv`.
struct Lan {
    jobs: Sender<Box<dyn FnOnce() + Send>>,
    dnsmasq: Option<Child>,
    dir: tempfile::TempDir,
}

impl Drop for Lan {
    fn drop(&mut self) {
        if let Some(mut child) = self.dnsmasq.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn program(name: &str, package: &str) -> PathBuf {
    let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = dirs.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is needed: apt-get install {package}"))
}

fn ip(args: &str) -> String {
    let output = Command::new(program("ip", "iproute2")).args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Lan {
    /// Runs a test with a cable; the server's end has 192.0.2.1/24 and 2001:db8::1/64.
    fn with(test: impl FnOnce(&mut Self) + Send + 'static) {
        assert!(Uid::effective().is_root(), "network namespaces need root");
        let body = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut lan = Self::lay();
            test(&mut lan);
        };
        thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    fn lay() -> Self {
        let (jobs, todo) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, heard) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(gettid()).unwrap();
            for job in todo {
                job();
            }
        });
        let server = heard.recv().unwrap();
        ip(&format!("link add cli address {CARD} type veth peer name srv netns {server}"));
        let lan = Self { jobs, dnsmasq: None, dir: tempfile::tempdir().unwrap() };
        lan.there(|| {
            ip("link set lo up");
            ip("address add 192.0.2.1/24 dev srv");
            ip("address add 2001:db8::1/64 dev srv nodad");
            ip("link set srv up");
        });
        lan
    }

    /// Does something at the other end.
    fn there<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        self.jobs.send(Box::new(move || done.send(job()).unwrap())).unwrap();
        result.recv().expect("the job at the other end failed")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Starts dnsmasq at the other end and waits until it serves names.
    fn serve(&mut self, args: &[&str]) {
        let mut command = Command::new(program("dnsmasq", "dnsmasq-base"));
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--user=root",
            ])
            .args(["--interface=srv", "--bind-interfaces", "--pid-file=", "--log-dhcp"])
            .args(["--host-record=dumps.test,192.0.2.1,2001:db8::1", "--cname=alias.test,dumps.test"])
            .args(["--local=/test/"])
            .arg(format!("--log-facility={}", self.dir.path().join("log").display()))
            .arg(format!("--dhcp-leasefile={}", self.dir.path().join("leases").display()))
            .args(args)
            .stdin(Stdio::null());
        let child = self.there(move || command.spawn().unwrap());
        self.dnsmasq = Some(child);
        wait_for("dnsmasq", || self.log().contains("started, version"));
    }
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not come");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A link on the client's card with these further lines.
fn link(lines: &str) -> Vec<Link> {
    let text = format!("[[network]]\nname = \"lan\"\ncard = \"{CARD}\"\nwait = 20\n{lines}\n");
    Config::parse(&text).unwrap().network.links().unwrap().to_vec()
}

fn peer(host: &str, port: u16, dns: &[IpAddr]) -> Peer {
    Peer { host: host.to_owned(), port, pinned: Vec::new(), dns: dns.to_vec() }
}

fn connect(peer: &Peer) -> IpAddr {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = runtime.block_on(peer.connect()).unwrap();
    stream.local_addr().unwrap().ip()
}

#[test]
fn fixed_addresses_routes_and_names() {
    Lan::with(|lan| {
        let many: Vec<String> = (1..=60).map(|n| format!("--host-record=many.test,10.0.0.{n}")).collect();
        lan.serve(&many.iter().map(String::as_str).collect::<Vec<_>>());
        let port = lan.there(|| {
            ip("address add 198.51.100.1/32 dev srv");
            let listener = TcpListener::bind("[::]:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            thread::spawn(move || listener.incoming().for_each(drop));
            port
        });
        let links = link(
            "mtu = 1400\naddress = [\"192.0.2.7/24\", \"2001:db8::7/64\"]\ndns = [\"192.0.2.1\"]\n\
             route = [\"default via 192.0.2.1\", \"203.0.113.0/24 via 198.51.100.1\", \"198.51.100.1/32\"]",
        );
        for attempt in 0..2 {
            let network = Network::of(links.clone());
            let up = network.up().unwrap();
            assert_eq!(up.dns, ["192.0.2.1".parse::<IpAddr>().unwrap()], "attempt {attempt}");
            let found = peer("alias.test", port, &up.dns).resolve_blocking().unwrap();
            assert_eq!(found, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
            assert_eq!(connect(&peer("dumps.test", port, &up.dns)), IpAddr::from([192, 0, 2, 7]));
            let by_v6 = Peer { pinned: vec!["2001:db8::1".parse().unwrap()], ..peer("x.test", port, &[]) };
            assert_eq!(connect(&by_v6), "2001:db8::7".parse::<IpAddr>().unwrap(), "at once: no DAD");
            assert_eq!(connect(&peer("198.51.100.1", port, &[])), IpAddr::from([192, 0, 2, 7]));
            let routes = ip("route show");
            assert!(routes.contains("default via 192.0.2.1 dev cli"), "{routes}");
            assert!(routes.contains("203.0.113.0/24 via 198.51.100.1 dev cli"), "{routes}");
            assert!(routes.contains("onlink"), "{routes}");
            assert_eq!(routes.matches("default").count(), 1, "{routes}");
            let link = ip("link show cli");
            assert!(link.contains("mtu 1400"), "{link}");
            assert!(ip("link show lo").contains("LOWER_UP"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let many = runtime.block_on(dns::lookup("many.test", &["192.0.2.1".parse().unwrap()])).unwrap();
        assert_eq!(many.len(), 16, "by TCP, as they do not fit into a datagram, and no more than that");
        let nobody = runtime.block_on(dns::lookup("nobody.test", &["192.0.2.1".parse().unwrap()]));
        assert!(matches!(nobody, Err(dns::DnsError::NoSuchHost(..))), "{nobody:?}");
    });
}

#[test]
fn an_address_by_dhcp_is_renewed() {
    Lan::with(|lan| {
        lan.serve(&[
            "--dhcp-range=192.0.2.100,192.0.2.150,255.255.255.0,2m",
            "--dhcp-option=option:dns-server,192.0.2.1",
            "--dhcp-option=option:mtu,1300",
            "--dhcp-option=option:T1,4",
        ]);
        let before = beat::alive_count();
        let network = Network::of(link("address = [\"dhcp\"]"));
        let up = network.up().unwrap();
        assert_eq!(up.dns, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert!(beat::alive_count() - before > 1);
        let address = ip("-4 -o address show dev cli");
        let is_in_range = address.split_whitespace().any(|word| {
            let last = word.strip_prefix("192.0.2.").and_then(|rest| rest.strip_suffix("/24"));
            last.is_some_and(|last| (100..=150).contains(&last.parse().unwrap_or(0)))
        });
        assert!(is_in_range, "{address}");
        assert!(address.contains("valid_lft forever"), "{address}");
        assert!(ip("route show").contains("default via 192.0.2.1 dev cli"));
        assert!(ip("link show cli").contains("mtu 1300"));
        assert!(lan.log().contains(&format!("client MAC address: {CARD}")) || lan.log().contains(CARD));

        let again = Network::of(link("address = [\"dhcp\"]"));
        again.up().unwrap();
        assert_eq!(ip("-4 -o address show dev cli").lines().count(), 1, "the same address as before");
        let acks = || lan.log().matches("DHCPACK(srv)").count();
        let before = acks();
        wait_for("a renewal", || acks() > before);
        assert!(!lan.log().contains("DHCPNAK"), "{}", lan.log());
    });
}

#[test]
fn classless_routes_by_dhcp() {
    Lan::with(|lan| {
        lan.serve(&[
            "--dhcp-range=192.0.2.100,192.0.2.150,255.255.255.0,2m",
            "--dhcp-option=121,198.51.100.0/24,192.0.2.9",
        ]);
        Network::of(link("address = [\"dhcp\"]")).up().unwrap();
        let routes = ip("route show");
        assert!(routes.contains("198.51.100.0/24 via 192.0.2.9 dev cli"), "{routes}");
        assert!(!routes.contains("default"), "option 3 does not count beside 121: {routes}");
    });
}

#[test]
fn an_address_from_router_advertisements() {
    Lan::with(|lan| {
        lan.serve(&["--enable-ra", "--dhcp-range=2001:db8::,ra-only", "--ra-param=srv,10"]);
        Network::of(link("address = [\"slaac\"]")).up().unwrap();
        let addresses = ip("-6 -o address show dev cli scope global");
        assert!(addresses.contains("2001:db8::ff:fe00:c/64"), "by the MAC address: {addresses}");
        assert!(!addresses.contains("tentative"), "{addresses}");
        assert!(ip("-6 route show default").contains("via fe80::"));
    });
}

#[test]
fn silence_ends_at_the_deadline_and_is_told_once() {
    Lan::with(|_lan| {
        let links = link("address = [\"dhcp\"]").into_iter().map(|link| Link { wait: 4, ..link }).collect();
        let network = Network::of(links);
        assert_eq!(network.patience(), 4);
        let (start, before) = (Instant::now(), beat::alive_count());
        let error = network.up().unwrap_err().to_string();
        assert_eq!(error, "no link works: lan: an answer by DHCP did not come within 4 s");
        assert!((3..8).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        assert!(beat::alive_count() - before > 4);
        let start = Instant::now();
        assert!(matches!(network.up(), Err(NetError::NoneWorks { .. })));
        assert!(start.elapsed() < Duration::from_millis(500), "the next target does not wait again");
    });
}

#[test]
fn one_link_that_fails_does_not_stop_another() {
    Lan::with(|_lan| {
        let text = format!(
            "[[network]]\nname = \"gone\"\ncard = \"02:00:00:00:00:99\"\naddress = [\"192.0.2.8/24\"]\nwait \
             = 1\n\
             [[network]]\nname = \"lan\"\ncard = \"{CARD}\"\naddress = [\"192.0.2.7/24\"]\n"
        );
        let links = Config::parse(&text).unwrap().network.links().unwrap().to_vec();
        let network = Network::of(links.clone());
        network.up().unwrap();
        assert!(ip("-4 -o address show dev cli").contains("192.0.2.7/24"));
        let error = Network::of(links[..1].to_vec()).up().unwrap_err().to_string();
        assert!(error.contains("card 02:00:00:00:00:99 did not appear within 1 s"), "{error}");
        assert!(error.contains("cli (02:00:00:00:00:0c"), "it says what is there: {error}");
    });
}

#[test]
fn a_cable_that_is_pulled_is_waited_for() {
    Lan::with(|lan| {
        lan.there(|| ip("link set srv down"));
        let later = lan.jobs.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(2));
            later.send(Box::new(|| drop(ip("link set srv up")))).unwrap();
        });
        let start = Instant::now();
        Network::of(link("address = [\"192.0.2.7/24\"]")).up().unwrap();
        assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
    });
}

#[test]
fn ways_to_addresses_are_those_of_the_routing_table() {
    Lan::with(|_lan| {
        let links = link(
            "address = [\"192.0.2.7/24\", \"2001:db8::7/64\"]\n\
             route = [\"default via 192.0.2.1\", \"198.51.0.0/16 via 192.0.2.9\", \"default via fe80::1\"]",
        );
        Network::of(links).up().unwrap();
        let netlink = Netlink::open().unwrap();
        let way = |addr: &str| netlink.way_to(addr.parse().unwrap()).unwrap();
        let cli = netlink.interfaces().unwrap().into_iter().find(|link| link.name == "cli").unwrap();
        let far = way("198.51.100.9");
        assert_eq!((far.index, far.route.to_string()), (cli.index, "198.51.0.0/16 via 192.0.2.9".into()));
        assert_eq!(far.source, Some([192, 0, 2, 7].into()));
        assert_eq!(way("203.0.113.5").route.to_string(), "default via 192.0.2.1");
        assert_eq!(way("192.0.2.1").route.to_string(), "192.0.2.0/24");
        assert_eq!(way("2001:db8:1::1").route.to_string(), "default via fe80::1");
        assert!(way("192.0.2.7").is_local && way("127.0.0.1").is_local && !far.is_local);
    });
}

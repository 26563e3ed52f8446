//! OpenSSH's sshd on the loopback, with a configuration and keys of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use russh::keys::key::safe_rng;
use russh::keys::{Algorithm, PrivateKey, ssh_key::LineEnding};

const SSHD: &str = "/usr/sbin/sshd";

/// What `afterimage propagate` installs.
pub(crate) const RESTRICTION: &str = "restrict,command=\"internal-sftp -d DIR -P \
                                      remove,rmdir,setstat,fsetstat,symlink,hardlink,posix-rename\" ";

pub(crate) struct Sshd {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) host_key: String,
    /// A private key that it lets in.
    pub(crate) identity: String,
    child: Child,
}

pub(crate) fn new_key(algorithm: Algorithm) -> PrivateKey {
    PrivateKey::random(&mut safe_rng(), algorithm).unwrap()
}

pub(crate) fn pem(key: &PrivateKey) -> String {
    key.to_openssh(LineEnding::LF).unwrap().to_string()
}

impl Sshd {
    /// Starts one with ed25519 keys; `options` stand before the user's key, where `DIR` is its
    /// directory for data.
    pub(crate) fn start(options: &str) -> Self {
        Self::with_keys(options, &new_key(Algorithm::Ed25519), &new_key(Algorithm::Ed25519))
    }

    pub(crate) fn with_keys(options: &str, host: &PrivateKey, user: &PrivateKey) -> Self {
        Self::with_config(options, host, user, "")
    }

    /// The same with more lines of sshd_config.
    pub(crate) fn with_config(options: &str, host: &PrivateKey, user: &PrivateKey, more: &str) -> Self {
        assert!(Path::new(SSHD).exists(), "{SSHD} is missing: install the package openssh-server");
        assert!(nix::unistd::geteuid().is_root(), "this test logs in as root: run it as root");
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir_all("/run/sshd").unwrap(); // sshd insists on it
        fs::create_dir(at("data")).unwrap();
        fs::write(at("host_key"), pem(host)).unwrap();
        fs::set_permissions(at("host_key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let options = options.replace("DIR", &at("data"));
        fs::write(at("authorized"), format!("{options}{}\n", user.public_key().to_openssh().unwrap()))
            .unwrap();
        let config = format!(
            "ListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile \
             none\n\
             PasswordAuthentication no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\nMaxStartups \
             100\n{more}",
            at("host_key"),
            at("authorized"),
        );
        fs::write(at("config"), config).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = spawn(dir.path(), port);
        let host_key = host.public_key().to_openssh().unwrap();
        Self { dir, port, host_key, identity: pem(user), child }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Kills it and the processes of its sessions.
    pub(crate) fn kill(&mut self) {
        let mut doomed = vec![i32::try_from(self.child.id()).unwrap()];
        let mut next = 0;
        while let Some(&pid) = doomed.get(next) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            doomed.extend(children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
            next += 1;
        }
        for pid in doomed {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.dir.path(), self.port);
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(dir: &Path, port: u16) -> Child {
    let log = fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let child = Command::new(SSHD)
        .args(["-D", "-e", "-p", &port.to_string(), "-f"])
        .arg(dir.join("config"))
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(start.elapsed() < Duration::from_secs(20), "sshd does not listen: {}", log());
        thread::sleep(Duration::from_millis(20));
    }
    child
}

/// A way to a server that can be cut, and that can swallow what is sent.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    swallow: AtomicBool,
    stop: AtomicBool,
    passed: AtomicU64,
    cuts: AtomicU64,
    shape: Option<Shape>,
}

/// How fast and how far away a server is.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) bytes_per_second: u64,
    pub(crate) delay: Duration,
}

impl Proxy {
    pub(crate) fn to(port: u16) -> Self {
        Self::shaped(port, None)
    }

    pub(crate) fn shaped(port: u16, shape: Option<Shape>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = Arc::new(State { shape, ..State::default() });
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let client = client.unwrap();
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to, state) =
                        (from.try_clone().unwrap(), to.try_clone().unwrap(), shared.clone());
                    thread::spawn(move || match state.shape {
                        Some(shape) => copy_shaped(from, to, shape),
                        None => copy(from, to, &state),
                    });
                }
            }
        });
        Self { port: own, state }
    }

    /// Bytes that went through.
    pub(crate) fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::SeqCst)
    }

    /// Ends all connections; new ones are taken.
    pub(crate) fn cut(&self) {
        self.state.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// From now on nothing is read.
    pub(crate) fn swallow(&self) {
        self.state.swallow.store(true, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        self.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let cuts = state.cuts.load(Ordering::SeqCst);
    let mut buffer = vec![0; 64 << 10];
    from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    while state.cuts.load(Ordering::SeqCst) == cuts {
        if state.swallow.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => {
                state.passed.fetch_add(len as u64, Ordering::SeqCst);
                if to.write_all(&buffer[..len]).is_err() {
                    break;
                }
            }
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Each byte leaves when those before it have left at the given speed, and arrives after the delay.
fn copy_shaped(mut from: TcpStream, mut to: TcpStream, shape: Shape) {
    let (on_the_way, arriving) = std::sync::mpsc::channel::<(Instant, Vec<u8>)>();
    let arrive = thread::spawn(move || {
        for (at, bytes) in arriving {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let mut buffer = vec![0; 16 << 10];
    let mut free = Instant::now();
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let takes = Duration::from_micros(len as u64 * 1_000_000 / shape.bytes_per_second);
        // A thread sleeps longer than it is told; what it is late may be made up for, as tbf's
        // burst does.
        let burst = Duration::from_millis(30);
        free = free.max(Instant::now().checked_sub(burst).unwrap()) + takes;
        thread::sleep(free.saturating_duration_since(Instant::now()));
        if on_the_way.send((free + shape.delay, buffer[..len].to_vec())).is_err() {
            break;
        }
    }
    drop(on_the_way);
    let _ = arrive.join();
    let _ = from.shutdown(Shutdown::Both);
}

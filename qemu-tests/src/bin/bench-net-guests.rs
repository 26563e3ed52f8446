//! Sends a level-31 dump of a core from one guest to another, by afterimage and by `makedumpfile -F
//! | ssh host cat`, in turn.
//!
//! `bench-net-guests CORE BENCH-NET MAKEDUMPFILE-DIR [RUNS]`: prints a line for each comparison,
//! and the CPU seconds per GiB beside those of `openssl speed`. Both guests are emulated
//! (qemu-tests' peers), one CPU each: the client has the core in its page cache, the server
//! OpenSSH.

use anyhow::{Context, Result, ensure};
use qemu_tests::peer::{ADDRESS, Peer, PeerShape, Server, USER};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// For one dump, emulated.
const PATIENCE: Duration = Duration::from_mins(5);
/// The ciphers that both sides could agree on, and the digest of what was sent.
const SPEEDS: [&str; 4] = ["aes-128-gcm", "aes-256-gcm", "chacha20-poly1305", "sha256"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [core, bench_net, makedumpfile, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: bench-net-guests CORE BENCH-NET MAKEDUMPFILE-DIR [RUNS]");
    };
    let runs: usize = rest.first().map_or(Ok(3), |runs| runs.parse())?;
    let server = Peer::start("bench-server", &PeerShape { memory_mib: 1024, ..PeerShape::default() })?;
    server.serve(&[Server::Ssh])?;
    let shape = PeerShape {
        cards: 0,
        memory_mib: 4096,
        plugged_in: vec![server.card(0)],
        files: [core, bench_net, makedumpfile].map(PathBuf::from).into(),
        ..PeerShape::default()
    };
    let client = Peer::start("bench-client", &shape)?;
    let bench = Bench { client, server };
    bench.prepare()?;
    for (name, ours) in [("zstd:1", "--compress zstd:1"), ("auto", "--compress auto")] {
        for (what, flags) in [("-c", "-c"), ("-l", "-l"), ("-z", "-z"), ("no compression", "")] {
            let mut pairs = Vec::new();
            for _ in 0..runs {
                pairs.push((bench.ours(ours)?.seconds, bench.theirs(flags)?));
            }
            let median = |of: &dyn Fn(&(f64, f64)) -> f64| {
                let mut all: Vec<f64> = pairs.iter().map(of).collect();
                all.sort_by(f64::total_cmp);
                all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
            };
            println!(
                "afterimage {name}: {:.1} s, makedumpfile -F, {what} | ssh cat: {:.1} s, ratio {:.2} (median \
                 of {runs} pairs)",
                median(&|pair| pair.0),
                median(&|pair| pair.1),
                median(&|pair| pair.0 / pair.1),
            );
        }
    }
    let sent = bench.ours("--compress none")?;
    println!(
        "uncompressed: {} MiB, {:.2} CPU seconds per GiB, filter and copying included",
        sent.bytes >> 20,
        sent.cpu * f64::from(1 << 30) / as_float(sent.bytes)
    );
    for cipher in SPEEDS {
        let message =
            bench.client.run(&format!("openssl speed -seconds 2 -bytes 16384 -evp {cipher} 2>/dev/null"))?;
        let rate = message.split_whitespace().last().and_then(|word| word.strip_suffix('k'));
        let rate: f64 = rate.with_context(|| message.clone())?.parse()?;
        println!("openssl speed {cipher}: {:.2} CPU seconds per GiB", f64::from(1 << 30) / (rate * 1000.0));
    }
    bench.client.discard()?;
    bench.server.discard()
}

struct Bench {
    client: Peer,
    server: Peer,
}

struct Sent {
    seconds: f64,
    cpu: f64,
    bytes: u64,
}

/// What bench-net prints.
#[derive(Deserialize)]
struct Line {
    bytes: u64,
    phases: Vec<Phase>,
}

#[derive(Deserialize)]
struct Phase {
    name: String,
    cpu_seconds: f64,
}

impl Bench {
    /// Keys, a target, and the core in the page cache.
    fn prepare(&self) -> Result<()> {
        let read = |name: &str| std::fs::read_to_string(self.client.key(name)).context(name.to_owned());
        let known = read("known_hosts")?;
        let of_it = |line: &&str| line.starts_with(&format!("{ADDRESS} "));
        let ours: Vec<&str> = known.lines().filter(of_it).collect();
        let key = ours.iter().find_map(|line| line.split_once(' ')).context("no host key")?.1;
        self.client.put("/run/key", &read("ssh")?)?;
        self.client.put("/run/known", &ours.join("\n"))?;
        let config = format!(
            "[[target]]\ntype = \"ssh\"\nurl = \"ssh://{USER}@{ADDRESS}/srv/dump\"\nidentity \
             = \"/run/key\"\nhost_key = [\"{key}\"]\n"
        );
        self.client.put("/run/config.toml", &config)?;
        self.client
            .run("ip address flush dev eth0; ip address add 10.9.0.2/24 dev eth0; chmod 600 /run/key")?;
        self.client.control().run_within("cat /srv/peer/vmcore* >/dev/null", PATIENCE)?;
        self.ours("")?;
        self.theirs("-z").map(drop)
    }

    fn ours(&self, more: &str) -> Result<Sent> {
        let (seconds, message) =
            self.timed(&format!("/srv/peer/bench-net /srv/peer/vmcore* /run/config.toml {more}"))?;
        let line: Line = serde_json::from_str(message.trim()).with_context(|| message.clone())?;
        let send = line.phases.iter().find(|phase| phase.name == "send").context("no phase")?;
        Ok(Sent { seconds, cpu: send.cpu_seconds, bytes: line.bytes })
    }

    fn theirs(&self, flags: &str) -> Result<f64> {
        let host = format!("{USER}@{ADDRESS} 'cat >/srv/dump/theirs && sync /srv/dump/theirs'");
        let (seconds, _) = self.timed(&format!(
            "/srv/peer/makedumpfile/makedumpfile -F {flags} -d 31 /srv/peer/vmcore* 2>/run/said |
             ssh -i /run/key -o UserKnownHostsFile=/run/known {host}"
        ))?;
        Ok(seconds)
    }

    /// How long a command takes in the client that sends a dump, and what it says.
    fn timed(&self, send: &str) -> Result<(f64, String)> {
        let script = format!("start=$(date +%s.%N)\n{send}\necho $start $(date +%s.%N)");
        let message = self.client.control().run_within(&script, PATIENCE)?;
        let (message, times) = message.trim_end().rsplit_once('\n').unwrap_or(("", message.trim_end()));
        let (start, end) = times.split_once(' ').with_context(|| times.to_owned())?;
        let size = "find /srv/dump -type f -size +10M | wc -l";
        ensure!(
            self.server.run(size)?.trim() == "1",
            "no dump has arrived: {}",
            self.client.run("cat /run/said")?
        );
        self.server.run("rm -rf /srv/dump/*; sync")?;
        Ok((end.parse::<f64>()? - start.parse::<f64>()?, message.to_owned()))
    }
}

fn as_float(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) * 1024.0
}

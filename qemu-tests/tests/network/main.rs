//! Dumps go to real servers: OpenSSH, knfsd, nginx, s3s-fs, in a second guest at the other end of a cable.
//!
//! One case of each kind by default; `AFTERIMAGE_FULL=1` (scripts/test --full) runs all.

mod faults;
mod links;
mod peer;
mod protocols;

use anyhow::{Context, Result, ensure};
use qemu_tests::kernel::Kernel;
use qemu_tests::network::HostNetwork;
use qemu_tests::outcome::{Dump, Outcome};
use qemu_tests::peer::{ACCESS_KEY, ADDRESS, NAME, Peer, SECRET_KEY, TOKEN, USER};
use qemu_tests::scenario::Config;
pub(crate) use qemu_tests::scenario::Target;
use qemu_tests::scenario::{HOST, Scenario};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The kernel of most tests; `AFTERIMAGE_SERIES` names another.
const SERIES: &str = "6.1";
const PATIENCE: Duration = Duration::from_mins(8);
/// Where production finds what the loader is to read.
const KEYS: &str = "/keys";

fn series() -> String {
    std::env::var("AFTERIMAGE_SERIES").unwrap_or_else(|_| SERIES.to_owned())
}

/// A machine with a cable to the peer, an address, and all keys.
fn scenario(name: &str, peer: &Peer) -> Result<Scenario> {
    let mut scenario = Scenario::new(name, &Kernel::of_series(&series())?);
    scenario.config = config();
    scenario.patience = PATIENCE;
    scenario.crashkernel = "192M".into();
    scenario.shape.cards = vec![peer.card(0)];
    scenario.network = HostNetwork::address("10.9.0.2/24", None);
    let mut file = |name: &str, bytes: Vec<u8>| scenario.files.push((format!("{KEYS}/{name}"), bytes));
    for name in ["ssh", "ca.pem", "client.pem", "client.key"] {
        file(name, fs::read(peer.key(name)).with_context(|| format!("the peer's {name}"))?);
    }
    file("token", TOKEN.into());
    file("s3.toml", format!("access_key = \"{ACCESS_KEY}\"\nsecret_key = \"{SECRET_KEY}\"\n").into());
    scenario.files.push(("/etc/hosts".into(), format!("127.0.0.1 localhost\n{ADDRESS} {NAME}\n").into()));
    Ok(scenario)
}

fn config() -> Config {
    let modules = ["virtio_pci", "virtio_blk", "virtio_net"].map(str::to_owned).into();
    Config { level: 31, modules, ..Config::default() }
}

fn remote(kind: &str, url: &str) -> Target {
    Target::any(kind).key("url", url).key("wait", 20)
}

/// SFTP as the key of [`USER`].
fn ssh(peer: &Peer) -> Result<Target> {
    let known = fs::read_to_string(peer.key("known_hosts"))?;
    let hosts = known.lines().filter_map(|line| line.strip_prefix(&format!("{ADDRESS} ")));
    let keys: Vec<String> = hosts.map(str::to_owned).collect();
    ensure!(!keys.is_empty(), "no host key of {ADDRESS} in {known}");
    let url = format!("ssh://{USER}@{ADDRESS}/srv/dump");
    Ok(remote("ssh", &url).key("host_key", keys).key("identity", format!("{KEYS}/ssh")))
}

fn nfs(version: &str) -> Target {
    remote("nfs", &format!("nfs://{ADDRESS}/srv/dump")).key("version", version)
}

fn https(directory: &str) -> Target {
    remote("https", &format!("https://{NAME}/{directory}")).key("roots", format!("{KEYS}/ca.pem"))
}

fn s3() -> Target {
    remote("s3", &format!("http://{ADDRESS}:9000/dumps")).key("credentials", format!("{KEYS}/s3.toml"))
}

/// The disk of production, which takes what the network does not.
fn disk() -> Target {
    Target::filesystem("LABEL=dump").key("fstype", "ext4")
}

/// The only capture in a directory of the peer.
fn collected(peer: &mut Peer, path: &str) -> Result<Dump> {
    let mut dumps = peer.dumps(&format!("{path}/{HOST}"))?;
    ensure!(dumps.len() == 1, "{dumps:?}");
    dumps.pop().context("no capture")
}

/// Empties the peer between two runs.
fn clear(peer: &Peer) -> Result<()> {
    peer.run("rm -rf /srv/dump/* /srv/www/*/* /srv/s3/dumps/*").map(drop)
}

/// A dump that was collected.
struct Received {
    file: PathBuf,
    /// What `afterimage dump` calls its format.
    format: &'static str,
}

impl Received {
    /// The same as readers like it best.
    fn rearranged(&self, outcome: &Outcome, name: &str) -> Result<PathBuf> {
        if self.format == "kdump" {
            return Ok(self.file.clone());
        }
        let rearranged = outcome.scratch(name);
        qemu_tests::readers::reassemble(&self.file, &rearranged)?;
        Ok(rearranged)
    }
}

/// The dump that was collected; of parts, all in one file.
fn received(dump: &Dump, outcome: &Outcome) -> Result<Received> {
    let file = dump.file("vmcore");
    if file.exists() {
        return Ok(Received { file, format: "kdump" });
    }
    // Objects and parts sort as they follow each other: vmcore.flat, vmcore.flat.2, …; vmcore.flat.part00001, ….
    let names = dump.files().into_iter().map(|(name, _)| name);
    let mut names: Vec<String> =
        names.filter(|name| name.starts_with("vmcore.flat") && !name.contains(".json")).collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    ensure!(!names.is_empty(), "there is no dump: {:?}", dump.files());
    let file = outcome.scratch("received");
    let mut all = fs::File::create(&file)?;
    for name in names {
        std::io::copy(&mut fs::File::open(dump.file(&name))?, &mut all)?;
    }
    Ok(Received { file, format: "flattened" })
}

fn ensure_complete(dump: &Dump) -> Result<()> {
    let result = dump.result()?;
    ensure!(result.pointer("/outcome").is_some_and(|outcome| outcome == "complete"), "{result:#}");
    let log = dump.dmesg()?;
    ensure!(log.contains("Kernel panic"), "{log}");
    Ok(())
}

//! Machines whose dumps go to a [`Peer`], and its servers as targets.

use crate::kernel::Kernel;
use crate::network::HostNetwork;
use crate::peer::{ACCESS_KEY, ADDRESS, NAME, Peer, SECRET_KEY, TOKEN, USER};
use crate::scenario::{Config, Scenario, Target};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_mins(8);
/// Where production finds what the loader is to read.
const KEYS: &str = "/keys";

/// A machine with a cable to the peer, an address, and all keys.
pub fn scenario(name: &str, kernel: &Kernel, peer: &Peer) -> Result<Scenario> {
    let mut scenario = Scenario::new(name, kernel);
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

/// A target of this kind at this URL.
#[must_use]
pub fn remote(kind: &str, url: &str) -> Target {
    Target::any(kind).key("url", url).key("wait", 20)
}

/// SFTP as the key of [`USER`].
pub fn ssh(peer: &Peer) -> Result<Target> {
    let known = fs::read_to_string(peer.key("known_hosts"))?;
    let hosts = known.lines().filter_map(|line| line.strip_prefix(&format!("{ADDRESS} ")));
    let keys: Vec<String> = hosts.map(str::to_owned).collect();
    ensure!(!keys.is_empty(), "no host key of {ADDRESS} in {known}");
    let url = format!("ssh://{USER}@{ADDRESS}/srv/dump");
    Ok(remote("ssh", &url).key("host_key", keys).key("identity", format!("{KEYS}/ssh")))
}

/// NFS of this version.
#[must_use]
pub fn nfs(version: &str) -> Target {
    remote("nfs", &format!("nfs://{ADDRESS}/srv/dump")).key("version", version)
}

/// PUT in a directory of the web server.
#[must_use]
pub fn https(directory: &str) -> Target {
    remote("https", &format!("https://{NAME}/{directory}")).key("roots", format!("{KEYS}/ca.pem"))
}

/// The object store.
#[must_use]
pub fn s3() -> Target {
    remote("s3", &format!("http://{ADDRESS}:9000/dumps")).key("credentials", format!("{KEYS}/s3.toml"))
}

/// A target of each kind: what it is called, and where on the peer its dumps arrive.
pub fn each(peer: &Peer) -> Result<[(&'static str, Target, &'static str); 4]> {
    Ok([
        ("ssh", ssh(peer)?, "/srv/dump"),
        ("nfs", nfs("4.2"), "/srv/dump"),
        ("https", https("dumps"), "/srv/www/dumps"),
        ("s3", s3(), "/srv/s3/dumps"),
    ])
}

/// Empties the peer between two runs.
pub fn clear(peer: &Peer) -> Result<()> {
    peer.run("rm -rf /srv/dump/* /srv/www/*/* /srv/s3/dumps/*").map(drop)
}

/// The disk of production, which takes what the network does not.
#[must_use]
pub fn disk() -> Target {
    Target::filesystem("LABEL=dump").key("fstype", "ext4")
}

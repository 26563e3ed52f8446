//! Targets on web servers and object stores, against nginx and s3s-fs as they come.
#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test that fails panics")]
#![expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "likewise")]

mod object_store;
mod servers;
mod web_server;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use base::config::{Config, CrashLoop};
use base::facts::Remote;
use network::Network;
use sha2::{Digest, Sha256};
use vmcore::sink::Sink;
use vmcore::target::{Artifact, Capture, Target, TargetError};

const NAME: &str = "2026-11-23T16-05-22Z-web1-d4b859d1";
const MIB: usize = 1 << 20;

fn open(config: &str, remote: Remote) -> Result<Box<dyn Target>, TargetError> {
    let target = Config::parse(config).unwrap().target.remove(0);
    let url = target.url().unwrap().to_string();
    let remotes = [Remote { url, addresses: vec![Ipv4Addr::LOCALHOST.into()], ..remote }];
    let network = Network::host();
    let capture = Capture {
        host: "web1",
        remotes: &remotes,
        ..Capture::new(NAME, 0, CrashLoop { crashes: 0, within: 0 })
    };
    network::open(&target, capture, &network)
}

/// Bytes of which no two parts are alike.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Writes in pieces of odd sizes.
fn write(sink: &mut dyn Sink, bytes: &[u8]) -> Result<(), vmcore::sink::SinkError> {
    let mut at = 0;
    for piece in bytes.chunks(300_001) {
        sink.write_at(u64::try_from(at).unwrap(), piece)?;
        at += piece.len();
        sink.sync()?;
    }
    Ok(())
}

fn save(
    target: &mut dyn Target,
    artifact: Artifact,
    bytes: &[u8],
) -> Result<(), Box<dyn core::error::Error>> {
    let mut sink = target.create(artifact)?;
    assert_eq!(sink.is_rewritable(), artifact == Artifact::Result);
    write(sink.as_mut(), bytes)?;
    drop(sink);
    Ok(target.publish(artifact)?)
}

fn chain(error: &dyn core::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    // What s3s-fs notes beside the objects.
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

fn joined(directory: &Path, names: &[String]) -> Vec<u8> {
    names.iter().flat_map(|name| fs::read(directory.join(name)).unwrap()).collect()
}

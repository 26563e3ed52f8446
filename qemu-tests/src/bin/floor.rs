//! The smallest crash kernel reservation with which a capture still succeeds, in a guest of 2 GiB
//! at level 31.
//!
//! - `cargo run -p qemu-tests --features bench --bin floor [SERIES]` finds it by bisection for each
//!   compression of the image, with one run per point; the result is right to 2 MiB.
//! - `... --bin floor SERIES MIB RUNS` tries one reservation this many times.
//! - `... --bin floor to ssh 6.1 [MIB RUNS]` measures a target on the network: ssh, nfs, https or
//!   s3, with an image compressed by gzip.

use anyhow::{Context, Result, ensure};
use qemu_tests::collector;
use qemu_tests::kernel::Kernel;
use qemu_tests::peer::{Peer, PeerShape, Server};
use qemu_tests::scenario::{HOST, Scenario, Target};

const RANGE: core::ops::Range<u32> = 48..96;
/// With a target on the network.
const REMOTE: core::ops::Range<u32> = 64..144;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["to", kind, series, rest @ ..] => remote(kind, &Kernel::of_series(series)?, rest),
        [series, mib, runs] => {
            let kernel = Kernel::of_series(series)?;
            repeat(kernel.version(), mib.parse()?, runs.parse()?, |mib| captures(&kernel, "gzip", mib))
        }
        _ => local(&Kernel::of_series(words.first().unwrap_or(&"6.1"))?),
    }
}

fn local(kernel: &Kernel) -> Result<()> {
    println!(
        "| image | kernel | smallest crashkernel= that captured | largest that did not |\n|---|---|---|---|"
    );
    for compress in ["gzip", "xz", "zstd"] {
        let works = bisect(RANGE, |mib| captures(kernel, compress, mib))?;
        println!("| {compress} | {} | {works}M | {}M |", kernel.version(), works.saturating_sub(1));
    }
    Ok(())
}

fn bisect(range: core::ops::Range<u32>, mut captures: impl FnMut(u32) -> bool) -> Result<u32> {
    let (mut fails, mut works) = (range.start, range.end);
    ensure!(captures(works), "no capture even with {works} MiB");
    while works.saturating_sub(fails) > 1 {
        let middle = fails.midpoint(works);
        if captures(middle) { works = middle } else { fails = middle }
    }
    Ok(works)
}

fn remote(kind: &str, kernel: &Kernel, rest: &[&str]) -> Result<()> {
    let mut peer = Peer::start("floor", &PeerShape::default())?;
    peer.serve(&[Server::Ssh, Server::Nfs, Server::Nginx, Server::S3])?;
    let mut each = collector::each(&peer)?.into_iter();
    let wanted = each.find(|(name, ..)| *name == kind);
    let (name, target, at) = wanted.with_context(|| format!("{kind} is no kind of target on the network"))?;
    let mut captures = |mib| printed(mib, sends(name, &target, at, kernel, &mut peer, mib));
    if let [mib, runs] = *rest {
        repeat(&format!("{name}, {}", kernel.version()), mib.parse()?, runs.parse()?, captures)?;
    } else {
        let works = bisect(REMOTE, &mut captures)?;
        println!("| {name} | {} | {works}M | {}M |", kernel.version(), works.saturating_sub(1));
    }
    peer.discard()
}

/// Whether a capture with this reservation sends a complete dump.
fn sends(name: &str, target: &Target, at: &str, kernel: &Kernel, peer: &mut Peer, mib: u32) -> Result<bool> {
    let mut scenario = collector::scenario(&format!("floor-{name}-{mib}"), kernel, peer)?;
    scenario.crashkernel = format!("{mib}M");
    scenario.memory_mib = 2048;
    scenario.config.targets = vec![target.clone()];
    let outcome = scenario.run();
    let complete = peer.dumps(&format!("{at}/{HOST}")).and_then(|mut dumps| {
        Ok(dumps
            .pop()
            .context("no dump")?
            .result()?
            .get("outcome")
            .is_some_and(|outcome| outcome == "complete"))
    });
    collector::clear(peer)?;
    outcome?.discard()?;
    complete
}

/// Captures with one reservation, `runs` times.
fn repeat(what: &str, mib: u32, runs: u32, mut captures: impl FnMut(u32) -> bool) -> Result<()> {
    let passed = (0..runs).filter(|_| captures(mib)).count();
    println!("{what}: {passed} of {runs} captures with crashkernel={mib}M");
    ensure!(u32::try_from(passed) == Ok(runs), "not all captures succeeded");
    Ok(())
}

/// Whether a capture with this reservation leaves a complete dump.
fn captures(kernel: &Kernel, compress: &str, mib: u32) -> bool {
    let mut scenario = Scenario::new(&format!("floor-{compress}-{mib}"), kernel);
    scenario.crashkernel = format!("{mib}M");
    scenario.memory_mib = 2048;
    scenario.config.level = 31;
    scenario.config.image_compress = compress.into();
    let outcome = scenario.run().and_then(|outcome| {
        let complete = outcome.dump()?.result()?.get("outcome").is_some_and(|outcome| outcome == "complete");
        outcome.discard()?;
        Ok(complete)
    });
    printed(mib, outcome)
}

/// `false` for an error, which is told.
fn printed(mib: u32, captured: Result<bool>) -> bool {
    captured.unwrap_or_else(|error| {
        eprintln!("{mib} MiB: {}", error.to_string().lines().next().unwrap_or_default());
        false
    })
}

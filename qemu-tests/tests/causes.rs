//! Why a kernel came to its end, as `afterimage summary` tells it: of ends of all kinds, each with its
//! function, its module, its task and a signature that is the same after each boot.

use anyhow::{Context, Result, ensure};
use qemu_tests::end::{Said, WAYS, Way, scenario, way_called};
use qemu_tests::kernel::Kernel;
use std::collections::BTreeMap;
use std::time::Instant;

/// Crashes a guest so, and judges what its summary says.
fn crash(way: &'static Way, series: &str) -> Result<Said> {
    let started = Instant::now();
    let kernel = Kernel::of_series(series)?;
    let outcome = scenario(way, &kernel, series)?.run()?;
    let said = Said::of_dump(outcome.dump()?)?;
    if let Ok(keep) = std::env::var("KEEP_ENDS") {
        let n = outcome.scratch("x").parent().unwrap().file_name().unwrap().to_owned();
        std::fs::create_dir_all(&keep)?;
        std::fs::copy(outcome.dump()?.file("vmcore"), std::path::Path::new(&keep).join(&n))?;
        std::fs::write(std::path::Path::new(&keep).join(&n).with_extension("console"), outcome.text())?;
    }
    eprintln!("{} on {series}: {} of {:?}, {} s", way.name, said.hash, said.functions, started.elapsed().as_secs());
    let judged = said.judge(way);
    if judged.is_ok() {
        outcome.discard()?;
    }
    judged.map(|()| said)
}

/// Comes to these ends, each so many times: all are told, and of one way signatures are one.
fn judge(series: &str, names: &[&str], times: usize) -> Result<()> {
    let (mut wrong, mut hashes) = (Vec::new(), BTreeMap::<String, &str>::new());
    for way in WAYS.iter().filter(|way| names.contains(&way.name)) {
        let mut first: Option<Said> = None;
        for _ in 0..times {
            match crash(way, series) {
                Err(error) => wrong.push(format!("{}: {error:?}", way.name)),
                Ok(said) => {
                    let same = first.as_ref().is_none_or(|first| first.hash == said.hash);
                    if !same {
                        wrong.push(format!("{}: {first:?} and {said:?}", way.name));
                    }
                    first = Some(said);
                }
            }
        }
        let Some(said) = first else { continue };
        if let Some(other) = hashes.insert(said.hash, way.name)
            && !way.told.signature.is_empty()
        {
            wrong.push(format!("{} and {other} have one signature", way.name));
        }
    }
    ensure!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn an_oops_in_a_module_is_told() -> Result<()> {
    crash(way_called("null")?, "6.1").context("one oops").map(drop)
}

#[test]
#[ignore = "full: dev"]
fn dev() -> Result<()> {
    let series = std::env::var("SERIES")?;
    let names = std::env::var("WAYS").unwrap_or_default();
    let all: Vec<&str> = WAYS.iter().map(|way| way.name).collect();
    let names: Vec<&str> = if names.is_empty() { all } else { names.split(',').collect() };
    judge(&series, &names, std::env::var("TIMES").ok().and_then(|n| n.parse().ok()).unwrap_or(1))
}

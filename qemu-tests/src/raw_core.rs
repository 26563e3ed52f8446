//! Raw copies of `/proc/vmcore`, made by a crash once and kept in the cache, for tests that need a
//! core and no crash.

use crate::cache::cache;
use crate::command::{Run, command};
use crate::initramfs;
use crate::kernel::Kernel;
use crate::last_words::network::LINKS;
use crate::network::Card;
use crate::planted::Plant;
use crate::scenario::Scenario;
use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::path::PathBuf;

/// Names what the guest does: to be counted up when that changes.
const RECIPE: &str = "plants-3";
/// The same of [`with_four_levels`].
const FOUR_LEVELS: &str = "four-levels-2";

/// The same of [`with_network`].
const NETWORK: &str = "network-2";

/// A core of a kernel of the series, with memory of every kind in it.
pub fn of(series: &str) -> Result<PathBuf> {
    kept(series, RECIPE, |scenario| plant(series, scenario))
}

/// The same with a network, sockets of many kinds, logins, and disks of device-mapper and md.
pub fn with_network(series: &str) -> Result<PathBuf> {
    let modules = initramfs::modules(&Kernel::of_series(series)?, "stacked", &["dm_mod", "md_mod"])?;
    kept(series, NETWORK, |scenario| {
        plant(series, scenario);
        scenario.shape.cards = vec![Card::user()];
        scenario.network.ip = LINKS.map(str::to_owned).into();
        "prod.last=/disk".clone_into(&mut scenario.append);
        scenario.files = modules;
    })
}

fn plant(series: &str, scenario: &mut Scenario) {
    scenario.plants = vec![
        Plant::Anonymous,
        Plant::Tmpfs,
        Plant::Cache,
        Plant::Thp,
        Plant::Hugetlb,
        Plant::Ksm,
        Plant::Freed,
    ];
    // A kernel with PREEMPT_RT has no transparent huge pages.
    if series.ends_with("-rt") {
        scenario.plants.retain(|plant| *plant != Plant::Thp);
    }
}

/// A core of a machine whose page tables have four levels, for readers that know no others. A witness
/// with sockets, files and an environment is in it.
pub fn with_four_levels(series: &str) -> Result<PathBuf> {
    kept(series, FOUR_LEVELS, |scenario| scenario.shape.cpu = "la57=off".into())
}

/// The core that is kept under the name of a recipe; it is made if there is none.
fn kept(series: &str, recipe: &str, shape: impl FnOnce(&mut Scenario)) -> Result<PathBuf> {
    let kernel = Kernel::of_series(series)?;
    let directory = cache()?.join("cores");
    let kept = directory.join(format!("{}-{recipe}.vmcore", kernel.version()));
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    // Of tests that want the same core at once, one makes it.
    let lock = directory.join(format!("{series}-{recipe}.lock"));
    let lock = File::create(&lock).with_context(|| format!("making {}", lock.display()))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("locking")?;
    if kept.exists() {
        return Ok(kept);
    }
    let mut scenario = Scenario::new(&format!("core-{series}-{recipe}"), &kernel);
    scenario.raw_copy = true;
    scenario.config.level = 31;
    shape(&mut scenario);
    let outcome = scenario.run()?;
    // Beside its final place: whole under this name or not there at all.
    let partial = kept.with_extension("partial");
    command("cp").arg("--sparse=always").args([outcome.raw()?, &partial]).run()?;
    fs::rename(&partial, &kept).with_context(|| format!("publishing {}", kept.display()))?;
    outcome.discard()?;
    Ok(kept)
}

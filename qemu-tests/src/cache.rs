//! Places outside the source tree: the cache of downloads, the workspace, the target directory.

use anyhow::{Context, Result};
use std::env;
use std::path::{Path, PathBuf};

/// Where kernels and the drgn environment are kept between runs; the same rule as
/// scripts/fetch-kernels.
pub fn cache() -> Result<PathBuf> {
    if let Some(cache) = env::var_os("AFTERIMAGE_CACHE") {
        return Ok(cache.into());
    }
    let home = env::home_dir().context("no home directory: set AFTERIMAGE_CACHE")?;
    Ok(home.join(".cache/afterimage"))
}

/// The root of the source tree.
#[must_use]
pub fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |target| workspace().join(target))
}

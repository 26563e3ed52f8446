//! The binaries under test and the production PID 1, built once per test process.

use crate::cache::workspace;
use crate::command::{Run, command};
use crate::kernel::Kernel;
use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Paths of the static release binaries.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `/init` of the capture image.
    pub init: PathBuf,
    /// The host side.
    pub afterimage: PathBuf,
    /// PID 1 of the production system.
    pub production_init: PathBuf,
}

impl Binaries {
    /// Takes those in the folder that `AFTERIMAGE_BINARIES` names, as scripts/test has it, or builds
    /// what is out of date; later calls answer from memory.
    pub fn get() -> Result<&'static Self> {
        static BUILT: OnceLock<std::result::Result<Binaries, String>> = OnceLock::new();
        BUILT
            .get_or_init(|| build().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
    }
}

impl Binaries {
    /// Builds a capture image for `kernel` by the configuration at `config`.
    pub fn build_image(&self, kernel: &Kernel, config: &Path, image: &Path) -> Result<()> {
        command(&self.afterimage.to_string_lossy())
            .args(["build", "--kernel", kernel.version(), "--modules-dir"])
            .arg(kernel.modules())
            .arg("--config")
            .arg(config)
            .arg("--init")
            .arg(&self.init)
            .arg("-o")
            .arg(image)
            .run()
            .map(drop)
    }
}

fn build() -> Result<Binaries> {
    if let Some(built) = std::env::var_os("AFTERIMAGE_BINARIES") {
        let of = |name: &str| {
            let path = Path::new(&built).join(name);
            ensure!(path.is_file(), "AFTERIMAGE_BINARIES has no {name}: {} is missing", path.display());
            Ok(path)
        };
        return Ok(Binaries {
            init: of("init")?,
            afterimage: of("afterimage")?,
            production_init: of("production-init")?,
        });
    }
    let product = executables(&["-p", "afterimage-init", "-p", "afterimage", "--bins"])?;
    let ours = executables(&["-p", "qemu-tests", "--bin", "production-init"])?;
    let of = |built: &BTreeMap<String, PathBuf>, name: &str| {
        built.get(name).cloned().with_context(|| format!("cargo built no {name}, only {built:?}"))
    };
    Ok(Binaries {
        init: of(&product, "init")?,
        afterimage: of(&product, "afterimage")?,
        production_init: of(&ours, "production-init")?,
    })
}

/// The profile that guests run: `guest`, which is linked in seconds, or what `AFTERIMAGE_PROFILE`
/// names.
fn profile() -> String {
    std::env::var("AFTERIMAGE_PROFILE").unwrap_or_else(|_| "guest".to_owned())
}

/// Builds and asks cargo where the results are: that depends on configuration and environment.
fn executables(arguments: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = command(&cargo);
    // What cargo has set for the test that runs is not of this build; build scripts that look at it
    // (ring's does) would run again, and all that stands on them.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|own| name.to_string_lossy().starts_with(own)) {
            command.env_remove(name);
        }
    }
    let output = command
        .current_dir(workspace())
        .args(["build", "--profile", &profile(), "--message-format=json-render-diagnostics"])
        .args(arguments)
        .run()?;
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Message>();
    let mut built = BTreeMap::new();
    for message in messages {
        if let Message { target: Some(target), executable: Some(executable) } =
            message.context("reading cargo's messages")?
        {
            built.insert(target.name, executable);
        }
    }
    Ok(built)
}

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

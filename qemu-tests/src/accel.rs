//! Whether guests run under KVM. A `/dev/kvm` that opens proves nothing (under nested
//! virtualisation it may hang at the first instruction), so only a guest that speaks within seconds
//! counts.

use crate::cache::target;
use crate::kernel::Kernel;
use crate::vm::{Machine, Shape, Vm};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// How QEMU runs guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// Software emulation: works everywhere.
    Tcg,
    /// The processor runs the guest.
    Kvm,
}

impl Accel {
    /// KVM where it works, found out once per boot of this machine, since the trial takes ten seconds
    /// where KVM hangs and each test is a process of its own; `AFTERIMAGE_ACCEL=tcg` spares it.
    pub fn detect(kernel: &Kernel) -> Self {
        static DETECTED: OnceLock<Accel> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let forced = std::env::var("AFTERIMAGE_ACCEL").is_ok_and(|accel| accel == "tcg");
            if forced || !Path::new("/dev/kvm").exists() {
                return Self::Tcg;
            }
            let works = remembered(|| kvm_works(kernel)).unwrap_or_else(|error| {
                eprintln!("whether KVM works cannot be remembered: {error:#}");
                kvm_works(kernel)
            });
            if works { Self::Kvm } else { Self::Tcg }
        })
    }

    /// `-accel` and `-cpu`, with features of the processor beside what its model has.
    #[must_use]
    pub fn arguments(self, features: &str) -> [String; 4] {
        let (accel, model) = match self {
            Self::Tcg => ("tcg,thread=multi", "max"),
            Self::Kvm => ("kvm", "host"),
        };
        let comma = if features.is_empty() { "" } else { "," };
        ["-accel".into(), accel.into(), "-cpu".into(), format!("{model}{comma}{features}")]
    }
}

/// The answer in the target directory, or the one that is found out and put there. Other processes wait
/// for it meanwhile.
fn remembered(find_out: impl FnOnce() -> bool) -> Result<bool> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("the boot ID")?;
    let parent = target().join("qemu-tests");
    fs::create_dir_all(&parent).context("making the directory of the tests")?;
    let path = parent.join(format!("kvm-works-{}", boot.trim()));
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
    file.lock()?;
    let mut answer = String::new();
    file.read_to_string(&mut answer)?;
    if let Ok(works) = answer.parse() {
        return Ok(works);
    }
    let works = find_out();
    file.write_all(works.to_string().as_bytes())?;
    Ok(works)
}

fn kvm_works(kernel: &Kernel) -> bool {
    eprintln!("trying for 10 s whether KVM works here");
    let Ok(work) = tempfile::tempdir() else { return false };
    let machine = Machine {
        accel: Accel::Kvm,
        kernel: kernel.vmlinuz(),
        initrd: None,
        append: "console=ttyS0 earlyprintk=ttyS0".into(),
        memory_mib: 256,
        cpus: 1,
        shape: Shape::default(),
        disks: Vec::new(),
        log: work.path().join("console.log"),
    };
    Vm::start(&machine)
        .is_ok_and(|mut vm| vm.console.expect("Linux version", Duration::from_secs(10)).is_ok())
}

//! Whether guests run under KVM. A `/dev/kvm` that opens proves nothing (under nested
//! virtualisation it may hang at the first instruction), so only a guest that speaks within seconds
//! counts.

use crate::kernel::Kernel;
use crate::vm::{Machine, Shape, Vm};
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
    /// KVM where it works, found out once per process; `AFTERIMAGE_ACCEL=tcg` spares the trial.
    pub fn detect(kernel: &Kernel) -> Self {
        static DETECTED: OnceLock<Accel> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let forced = std::env::var("AFTERIMAGE_ACCEL").is_ok_and(|accel| accel == "tcg");
            if !forced && Path::new("/dev/kvm").exists() && kvm_works(kernel) { Self::Kvm } else { Self::Tcg }
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

fn kvm_works(kernel: &Kernel) -> bool {
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

//! Why a kernel is not loaded. Each way has its own message and remedy.

use std::io;
use std::path::{Path, PathBuf};

use base::facts::handover::TooLarge;
use kexec::bzimage::BzImageError;
use nix::errno::Errno;
use placement::place::PlaceError;
use placement::production::MachineError;

use crate::cmdline::TooLong;
use crate::crashkernel::{Need, mib, reserve};
use crate::host;
use crate::image::ImageError;
use crate::loader::Road;
use crate::network::CloneError;
use crate::remote::RemoteError;
use crate::stack::StackError;
use crate::volume_key::KeyError;

/// Why the panic kernel is not loaded, or a planned switch not staged.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing or cannot be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// There is no image.
    #[error(
        "there is no image {0}: `afterimage build --kernel $(uname -r) -o {0}` makes one of \
         /etc/afterimage/config.toml; --image names another"
    )]
    NoImage(PathBuf),
    /// The kernel file is gone.
    #[error(
        "there is no kernel {0}: a package update removes the files of old kernels; name one with \
         --kernel-image, or start the newest one and build the image for it (`afterimage build --kernel $(uname \
         -r)`)"
    )]
    NoKernel(PathBuf),
    /// The kernel file is something else, or damaged.
    #[error("{path} cannot be started")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: BzImageError,
    },
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Modules of another kernel.
    #[error(
        "the image holds modules of kernel {image}, but {path} is kernel {kernel}: \
         build the image again with --kernel {kernel}"
    )]
    OtherKernel {
        /// Release that the image was built for.
        image: String,
        /// Release of the kernel file.
        kernel: String,
        /// The kernel file.
        path: PathBuf,
    },
    /// Modules that the capture kernel will refuse, or panic at.
    #[error(
        "the capture kernel wants signed modules ({why}), and these in the image have no signature: \
         {modules}; build the image again on this host, or with image.strip = \"never\", and sign modules \
         that have no signature in their package either"
    )]
    Unsigned {
        /// Names of the modules.
        modules: String,
        /// Why it wants them signed.
        why: String,
    },
    /// A module of another kernel.
    #[error(
        "module {module} in the image was built for \"{vermagic}\", and kernel {kernel} would refuse it: \
         run depmod, and build the image again with --kernel {kernel}"
    )]
    OtherModule {
        /// Its name.
        module: String,
        /// What it was built for.
        vermagic: String,
        /// Release of the kernel file.
        kernel: String,
    },
    /// No memory reserved.
    #[error("no memory is reserved for a crash kernel: {}", reserve(*.recommended))]
    NoReservation {
        /// What this image wants, MiB.
        recommended: u64,
    },
    /// Too little memory reserved.
    #[error(
        "the crash kernel reservation is {have} MiB, this image needs at least {minimum} MiB: \
         {}", reserve(*.recommended)
    )]
    TooSmall {
        /// Reserved, MiB.
        have: u64,
        /// Needed to start, MiB.
        minimum: u64,
        /// Recommended, MiB.
        recommended: u64,
    },
    /// The sysctl.
    #[error(
        "kexec is switched off until the next boot (sysctl kernel.kexec_load_disabled is 1): \
         load before whatever sets it, usually a hardening profile"
    )]
    Disabled,
    /// The other sysctls.
    #[error("no more kernels may be loaded until the next boot (sysctl {0} is 0)")]
    Limit(&'static str),
    /// Not root.
    #[error("loading a kernel needs CAP_SYS_BOOT: run as root")]
    NotRoot,
    /// Root without the capability.
    #[error(
        "loading a kernel needs CAP_SYS_BOOT, which this process does not have although it is root{}",
        taken_by(*.0)
    )]
    NoCapability(Option<&'static str>),
    /// Lockdown, and a kernel that nobody signed.
    #[error(
        "the kernel is in lockdown mode {mode} (Secure Boot) and takes only kernels signed with a key that \
         it trusts: load the distribution's signed kernel, not a self-built or -unsigned one"
    )]
    Lockdown {
        /// Which mode.
        mode: String,
    },
    /// Root may not, and nothing says why.
    #[error(
        "the kernel refuses {} to root: it is locked down (Secure Boot; mount securityfs to see it), or a \
         security module forbids it", .0.name()
    )]
    Refused(Road),
    /// The signature.
    #[error("the kernel's signature was rejected: load the distribution's signed kernel")]
    Signature(#[source] io::Error),
    /// Another load at the same time.
    #[error("another program is loading a kernel at this moment: try again")]
    Busy,
    /// No support.
    #[error("this kernel has no {}", .0.name())]
    NoSupport(Road),
    /// The way to targets on the network.
    #[error(transparent)]
    Network(#[from] CloneError),
    /// A target on the network.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Command line.
    #[error(transparent)]
    Cmdline(#[from] TooLong),
    /// A NUL in the command line.
    #[error("the capture kernel's command line contains a NUL byte")]
    Nul,
    /// The running kernel does not tell what the core header needs.
    #[error("describing the running kernel")]
    Machine(#[from] MachineError),
    /// The image cannot be placed.
    #[error("placing the image in the reservation")]
    Place(#[from] PlaceError),
    /// Anything else that the kernel says.
    #[error("{}", .0.name())]
    Kexec(Road, #[source] io::Error),
    /// The image could not be put together in memory.
    #[error("putting the image together in memory")]
    Memory(#[source] io::Error),
    /// What a target stands on.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The key to it.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Nothing of ours is loaded.
    #[error("{0}: afterimage load first")]
    NotArmed(&'static str),
    /// Somebody else's is.
    #[error("what is loaded is not what afterimage loaded: {0}; run afterimage load again")]
    NotOurs(String),
    /// The road that a planned switch needs was not taken.
    #[error(
        "the image was loaded with kexec_file_load, which has no entry for a planned switch; \
         a deliberate panic captures too, with registers: --via panic"
    )]
    NoEntry,
    /// The key file was standard input.
    #[error("the volume keys came from standard input and are not kept: run afterimage load again yourself")]
    KeysGone,
    /// Texts that are too long.
    #[error(transparent)]
    Record(#[from] TooLarge),
}

impl LoadError {
    /// What a system call of `road` meant by its error (kernel/kexec.c, kernel/kexec_file.c).
    pub(super) fn explain(road: Road, error: io::Error, kernel: &Path, need: Need) -> Self {
        let sysctl = |name: &str| host::read(&format!("/proc/sys/kernel/{name}"));
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRNOTAVAIL) => Self::too_small(host::reservation(), need),
            Some(Errno::EBUSY) => Self::Busy,
            Some(Errno::ENOSYS) => Self::NoSupport(road),
            Some(Errno::EPERM) => match host::lockdown() {
                mode if mode != "none" => Self::Lockdown { mode },
                _ if sysctl("kexec_load_disabled") == "1" => Self::Disabled,
                _ if sysctl("kexec_load_limit_panic") == "0" => Self::Limit("kernel.kexec_load_limit_panic"),
                _ if sysctl("kexec_load_limit_reboot") == "0" => {
                    Self::Limit("kernel.kexec_load_limit_reboot")
                }
                _ if !nix::unistd::geteuid().is_root() => Self::NotRoot,
                _ if !host::may_boot() => Self::NoCapability(host::container()),
                _ => Self::Refused(road),
            },
            Some(
                Errno::EKEYREJECTED
                | Errno::ENOKEY
                | Errno::EKEYREVOKED
                | Errno::EBADMSG
                | Errno::ENODATA
                | Errno::ELIBBAD
                | Errno::ENOPKG,
            ) => Self::Signature(error),
            Some(Errno::ENOEXEC) => {
                Self::Kernel { path: kernel.to_owned(), source: BzImageError::NotABzImage }
            }
            _ => Self::Kexec(road, error),
        }
    }

    pub(super) fn too_small(have: u64, need: Need) -> Self {
        Self::TooSmall { have: mib(have), minimum: mib(need.minimum), recommended: mib(need.recommended) }
    }
}

/// By what root has lost a capability, and what to do.
fn taken_by(container: Option<&str>) -> String {
    match container {
        Some(what) => {
            format!(": it runs in a container ({what}); load on the host itself, whose kernel it is")
        }
        None => {
            ": something has taken it away, such as CapabilityBoundingSet= of a unit of systemd".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(errno: Errno) -> String {
        let need = Need { minimum: 70 << 20, recommended: 100 << 20 };
        let error = LoadError::explain(Road::FileLoad, errno.into(), Path::new("/boot/vmlinuz"), need);
        base::log::chain(&error)
    }

    #[test]
    fn each_errno_has_its_remedy() {
        assert!(explained(Errno::EADDRNOTAVAIL).contains("set crashkernel=128M (100 MiB"));
        assert!(explained(Errno::EBUSY).contains("try again"));
        assert!(explained(Errno::ENOSYS).contains("has no kexec_file_load"));
        assert!(explained(Errno::EKEYREJECTED).contains("signed kernel"));
        assert!(
            explained(Errno::ENOEXEC).contains("/boot/vmlinuz")
                && explained(Errno::ENOEXEC).contains("bzImage")
        );
        assert!(explained(Errno::EIO).contains("kexec_file_load"));
    }
}

//! Arming and disarming the panic kernel. Each way it can fail has its own message and remedy.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use capture::addr::{to_u64, to_usize};
use capture::config::{self, Config, DeviceId};
use capture::facts::stack::{Encrypted, Layer};
use capture::facts::{Facts, Stack, parse_iomem};
use capture::setup::block;
use capture::sys::kexec;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::bzimage;
use crate::cmdline::{self, Changes, TooLong};
use crate::cpio::{self, Entry};
use crate::crashkernel::{Need, mib, need};
use crate::host;
use crate::image::{self, ImageError};
use crate::stack::{self, Found, StackError};
use crate::volume_key::{self, KeyError};

/// What was loaded, for `status`; gone with the next boot, like the panic kernel itself.
const RECORD: &str = "/run/afterimage/loaded.toml";

/// Why the panic kernel is not loaded.
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
    /// The kernel file is something else.
    #[error("{0} is not an x86 bzImage")]
    NotAKernel(PathBuf),
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
    /// Modules that the capture kernel will refuse.
    #[error(
        "this host enforces module signatures, and the modules in the image have none: \
         build the image again on this host, or with image.strip = \"never\""
    )]
    Stripped,
    /// No memory reserved.
    #[error(
        "no memory is reserved for a crash kernel: add crashkernel={recommended}M to the kernel command line and reboot"
    )]
    NoReservation {
        /// What this image wants, MiB.
        recommended: u64,
    },
    /// Too little memory reserved.
    #[error(
        "the crash kernel reservation is {have} MiB, this image needs at least {minimum} MiB: \
         boot with crashkernel={recommended}M"
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
    /// The other sysctl.
    #[error(
        "no more panic kernels may be loaded until the next boot (sysctl kernel.kexec_load_limit_panic is 0)"
    )]
    Limit,
    /// Not root.
    #[error("loading a kernel needs CAP_SYS_BOOT: run as root")]
    NotRoot,
    /// Lockdown.
    #[error(
        "the kernel is in lockdown mode {mode} (Secure Boot) and takes only signed kernels: \
         load the distribution's signed kernel, not a self-built or -unsigned one"
    )]
    Lockdown {
        /// Which mode.
        mode: String,
    },
    /// The signature.
    #[error("the kernel's signature was rejected: load the distribution's signed kernel")]
    Signature(#[source] io::Error),
    /// Another load at the same time.
    #[error("another program is loading a kernel at this moment: try again")]
    Busy,
    /// No support.
    #[error("this kernel has no kexec_file_load (CONFIG_KEXEC_FILE is off)")]
    NoSupport,
    /// Command line.
    #[error(transparent)]
    Cmdline(#[from] TooLong),
    /// A NUL in the command line.
    #[error("the capture kernel's command line contains a NUL byte")]
    Nul,
    /// Anything else that the kernel says.
    #[error("kexec_file_load")]
    Kexec(#[source] io::Error),
    /// The image could not be put together in memory.
    #[error("putting the image together in memory")]
    Memory(#[source] io::Error),
    /// What a target stands on.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The key to it.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// What was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Boot during which it was loaded.
    pub boot_id: String,
    /// When, seconds since 1970.
    pub at: u64,
    /// The kernel file.
    pub kernel_file: PathBuf,
    /// Its release.
    pub kernel: String,
    /// The image file.
    pub image_file: PathBuf,
    /// CRC32 of the image file, hex.
    pub image_crc32: String,
    /// Recommended reservation, bytes.
    pub recommended: u64,
    /// The capture kernel's command line.
    pub cmdline: String,
    /// Whether volume keys went with the image.
    #[serde(default)]
    pub keys_in_image: bool,
}

/// Loads `kernel_file` with the image in `image_file` as the panic kernel. `key_file` opens the LUKS devices under targets;
/// none for what the configuration names.
pub fn load(image_file: &Path, kernel_file: &Path, key_file: Option<&Path>) -> Result<Loaded, LoadError> {
    let image = read(image_file)?;
    let kernel = read(kernel_file)?;
    let bz = bzimage::parse(&kernel).ok_or_else(|| LoadError::NotAKernel(kernel_file.to_owned()))?;
    let contents = image::read_contents(&image, image_file)?;
    if contents.manifest.kernel != bz.release {
        let path = kernel_file.to_owned();
        return Err(LoadError::OtherKernel { image: contents.manifest.kernel, kernel: bz.release, path });
    }
    if contents.manifest.stripped
        && !contents.manifest.modules.is_empty()
        && host::enforces_module_signatures()
    {
        return Err(LoadError::Stripped);
    }
    let need = need(bz.init_size, to_u64(image.len()), contents.unpacked);
    check_host(need)?;

    let capture = &contents.config.capture;
    let changes = Changes {
        cpus: capture.cpus,
        boot_apic_id: cmdline::boot_apic_id(&host::read("/proc/cpuinfo")),
        remove: &capture.cmdline_remove,
        append: &capture.cmdline_append,
    };
    let cmdline = cmdline::build(&host::read("/proc/cmdline"), changes)?;
    let stacks = stacks(&contents.config, key_file)?;
    let loaded = Loaded {
        boot_id: host::read("/proc/sys/kernel/random/boot_id"),
        at: now(),
        kernel_file: kernel_file.to_owned(),
        kernel: bz.release.clone(),
        image_file: image_file.to_owned(),
        image_crc32: format!("{:08x}", crc32fast::hash(&image)),
        recommended: need.recommended,
        cmdline,
        keys_in_image: stacks.iter().any(Stack::has_key),
    };
    let facts = Facts { stacks, ..facts(&loaded, &kernel) };
    let mut initrd = with_facts(image, &facts).map_err(LoadError::Memory)?;
    let kernel = File::open(kernel_file).map_err(failed_to_read(kernel_file))?;
    let cmdline = CString::new(loaded.cmdline.as_str()).map_err(|_| LoadError::Nul)?;
    let was_armed = host::is_loaded();
    let result = kexec::load_panic_kernel(kernel.as_fd(), initrd.as_fd(), &cmdline);
    if loaded.keys_in_image {
        wipe(&mut initrd).map_err(LoadError::Memory)?;
    }
    result.map_err(|error| {
        // The kernel lets go of the old panic kernel before it looks at the new one.
        if was_armed && !host::is_loaded() {
            log::warn!("the panic kernel that was loaded before is gone: a panic will not be captured");
        }
        explain(error, kernel_file, need)
    })?;
    if let Err(error) = record(&loaded) {
        log::warn!("{RECORD}: {error}; `afterimage status` will not know what is loaded");
    }
    Ok(loaded)
}

/// Unloads the panic kernel.
pub fn unload() -> Result<(), LoadError> {
    kexec::unload_panic_kernel()
        .map_err(|error| explain(error, Path::new(""), Need { minimum: 0, recommended: 0 }))?;
    let _ = fs::remove_file(RECORD); // a stale record is recognised by its boot id, or by nothing being loaded
    Ok(())
}

/// What `load` recorded in this boot.
#[must_use]
pub fn recorded() -> Option<Loaded> {
    let loaded: Loaded = toml::from_str(&fs::read_to_string(RECORD).ok()?).ok()?;
    (loaded.boot_id == host::read("/proc/sys/kernel/random/boot_id")).then_some(loaded)
}

/// What can be known before the system call, which tells less.
fn check_host(need: Need) -> Result<(), LoadError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(LoadError::NotRoot);
    }
    if host::read("/proc/sys/kernel/kexec_load_disabled") == "1" {
        return Err(LoadError::Disabled);
    }
    let have = host::reservation();
    if have == 0 {
        return Err(LoadError::NoReservation { recommended: mib(need.recommended) });
    }
    if have < need.minimum {
        return Err(too_small(have, need));
    }
    if have < need.recommended {
        log::warn!(
            "the crash kernel reservation is {} MiB; for this image crashkernel={}M is recommended",
            mib(have),
            mib(need.recommended)
        );
    }
    Ok(())
}

fn too_small(have: u64, need: Need) -> LoadError {
    LoadError::TooSmall { have: mib(have), minimum: mib(need.minimum), recommended: mib(need.recommended) }
}

/// The meaning of kexec_file_load's errors (kernel/kexec_file.c).
fn explain(error: io::Error, kernel: &Path, need: Need) -> LoadError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRNOTAVAIL) => too_small(host::reservation(), need),
        Some(Errno::EBUSY) => LoadError::Busy,
        Some(Errno::ENOSYS) => LoadError::NoSupport,
        Some(Errno::EPERM) => match host::lockdown() {
            mode if mode != "none" => LoadError::Lockdown { mode },
            _ if host::read("/proc/sys/kernel/kexec_load_disabled") == "1" => LoadError::Disabled,
            _ if host::read("/proc/sys/kernel/kexec_load_limit_panic") == "0" => LoadError::Limit,
            _ => LoadError::NotRoot,
        },
        Some(
            Errno::EKEYREJECTED
            | Errno::ENOKEY
            | Errno::EKEYREVOKED
            | Errno::EBADMSG
            | Errno::ENODATA
            | Errno::ELIBBAD
            | Errno::ENOPKG,
        ) => LoadError::Signature(error),
        Some(Errno::ENOEXEC) => LoadError::NotAKernel(kernel.to_owned()),
        _ => LoadError::Kexec(error),
    }
}

fn facts(loaded: &Loaded, kernel: &[u8]) -> Facts {
    Facts {
        host: host::read("/proc/sys/kernel/hostname"),
        boot_id: loaded.boot_id.clone(),
        release: host::read("/proc/sys/kernel/osrelease"),
        loaded_at: loaded.at,
        kernel_crc32: format!("{:08x}", crc32fast::hash(kernel)),
        image_crc32: loaded.image_crc32.clone(),
        reservation: host::reservation(),
        vmcoreinfo: host::vmcoreinfo(),
        memory_map: parse_iomem(&host::read("/proc/iomem")),
        stacks: Vec::new(),
        ..Facts::default()
    }
}

/// What the targets stand on, with the keys.
fn stacks(config: &Config, key_file: Option<&Path>) -> Result<Vec<Stack>, LoadError> {
    let mut stacks = Vec::new();
    let mut secret = None;
    for target in &config.target {
        let Ok(device) = block::find(&target.device, Duration::ZERO, &|| ()) else {
            log::warn!(
                "target {} is not on this host now; if it stands on LVM or LUKS, a capture cannot use it",
                target.device
            );
            continue;
        };
        let name = device.node.file_name().unwrap_or_default().to_string_lossy();
        if !stack::is_stacked(&name) {
            stack::discover(&name)?; // software RAID is refused, with the reason
            continue;
        }
        if matches!(target.device, DeviceId::Path(_)) {
            return Err(StackError::Number(target.device.to_string()).into());
        }
        volume_key::protect_process(); // a LUKS1 table has its key in it
        let found = stack::discover(&name)?;
        let mut layers = Vec::new();
        if key_file.is_none_or(|file| file != Path::new("-")) {
            secret = None; // what comes from standard input comes once, for all targets
        }
        for device in found {
            layers.push(match device {
                Found::Lvm(volume) => Layer::Lvm(volume),
                Found::Luks { header, node } => {
                    if secret.is_none() {
                        let file = key_file.or(target.key_file.as_deref().map(Path::new));
                        secret = Some(volume_key::secret(file, &target.device.to_string())?);
                    }
                    let secret = secret.as_ref().map(|secret| secret.as_slice()).unwrap_or_default();
                    let key = volume_key::volume_key(&node, &header, secret)?;
                    Layer::Luks(Encrypted { header, key })
                }
            });
        }
        stacks.push(Stack { target: target.device.to_string(), layers });
    }
    Ok(stacks)
}

/// The image with the facts behind it, in memory only. What copies there are of it in this process are wiped.
fn with_facts(mut image: Vec<u8>, facts: &Facts) -> io::Result<File> {
    cpio::pad(&mut image);
    let mut entry = Entry::file(config::FACTS_PATH, 0o600, facts.to_toml().into_bytes());
    let archive = Zeroizing::new(cpio::write(std::slice::from_ref(&entry)));
    if let cpio::Kind::File(bytes) = &mut entry.kind {
        bytes.zeroize();
    }
    let mut file = File::from(memfd_create(c"afterimage", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&image)?;
    file.write_all(&archive)?;
    Ok(file)
}

/// Writes zeros over a file in memory: its pages go back to the kernel, which clears them only when it hands them out again.
fn wipe(file: &mut File) -> io::Result<()> {
    let zeros = vec![0; 1 << 16];
    let mut left = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    while left > 0 {
        let piece = zeros.get(..to_usize(left)).unwrap_or(&zeros);
        file.write_all(piece)?;
        left = left.saturating_sub(to_u64(piece.len()));
    }
    Ok(())
}

fn record(loaded: &Loaded) -> io::Result<()> {
    let dir = Path::new(RECORD).parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    fs::write(RECORD, toml::to_string(loaded).unwrap_or_default())
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(failed_to_read(path))
}

fn failed_to_read(path: &Path) -> impl FnOnce(io::Error) -> LoadError + '_ {
    move |source| LoadError::Read { path: path.to_owned(), source }
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(errno: Errno) -> String {
        explain(errno.into(), Path::new("/boot/vmlinuz"), Need { minimum: 70 << 20, recommended: 100 << 20 })
            .to_string()
    }

    #[test]
    fn each_errno_has_its_remedy() {
        assert!(explained(Errno::EADDRNOTAVAIL).contains("boot with crashkernel=100M"));
        assert!(explained(Errno::EBUSY).contains("try again"));
        assert!(explained(Errno::ENOSYS).contains("CONFIG_KEXEC_FILE"));
        assert!(explained(Errno::EKEYREJECTED).contains("signed kernel"));
        assert!(explained(Errno::ENOEXEC).contains("not an x86 bzImage"));
        assert!(explained(Errno::EIO).contains("kexec_file_load"));
    }

    #[test]
    fn files_that_are_missing_or_wrong_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (image, kernel) = (dir.path().join("image"), dir.path().join("vmlinuz"));
        assert!(load(&image, &kernel, None).unwrap_err().to_string().contains("image"));
        fs::write(&image, b"x").unwrap();
        assert!(load(&image, &kernel, None).unwrap_err().to_string().contains("vmlinuz"));
        fs::write(&kernel, b"x").unwrap();
        assert!(load(&image, &kernel, None).unwrap_err().to_string().contains("not an x86 bzImage"));
    }

    #[test]
    fn a_wiped_file_is_all_zeros() {
        use std::io::Read;
        let mut file = with_facts(vec![7; 100_000], &Facts::default()).unwrap();
        let len = file.metadata().unwrap().len();
        wipe(&mut file).unwrap();
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(to_u64(bytes.len()), len);
        assert!(bytes.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn facts_follow_the_image_at_a_multiple_of_4() {
        use std::io::{Read, Seek};
        let facts = Facts { host: "h".into(), ..Facts::default() };
        let mut file = with_facts(vec![9; 5], &facts).unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let files = cpio::read_files(&bytes[8..]).unwrap();
        assert_eq!(files[0].0, "etc/afterimage/facts.toml");
        assert_eq!(Facts::parse(core::str::from_utf8(files[0].1).unwrap()).unwrap(), facts);
    }
}

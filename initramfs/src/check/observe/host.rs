//! What `afterimage check` looks at, read in one place. Nothing here judges; what cannot be read is
//! kept as a text that says so.

use std::path::{Path, PathBuf};

use base::addr::to_u64;
use base::config::Config;
use kexec::BzImage;

use super::memory::Memory;
use super::panics::Panics;
use super::storage::{self, Storage};
use crate::boot_entry::Next;
use crate::fingerprint::{Condition, crc32};
use crate::host;
use crate::image::{self, Contents, Manifest};
use crate::loader::{self, Loaded, Proof};
use crate::modules::ModuleTree;
use crate::rivals::{self, Rival};
use crate::signatures::Policy;
use crate::trusted;
use crate::watchdog::{self, Watchdog};

/// Where the image lies if nobody says otherwise.
pub const IMAGE: &str = "/boot/afterimage.img";
/// Where the configuration lies if nobody says otherwise, and no image says what it was built from.
const CONFIG: &str = "/etc/afterimage/config.toml";

/// Why the check cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Not root: devices and images cannot be read, and all would seem to be missing.
    #[error("looking at devices and images needs root (this is user {0})")]
    NotRoot(u32),
    /// No /proc.
    #[error("there is no /proc/meminfo: is /proc mounted?")]
    NoProc,
}

/// What to look at, where it is not what is loaded.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The image; not given: the one that is loaded, or /boot/afterimage.img.
    pub image: Option<PathBuf>,
    /// The capture kernel; not given: the one that is loaded, or that of the running kernel in
    /// /boot.
    pub kernel_image: Option<PathBuf>,
    /// The configuration file; not given: the one that the image was built from.
    pub config: Option<PathBuf>,
}

impl Options {
    /// Whether the check is about what is loaded, not about files that somebody names.
    #[must_use]
    pub fn is_of_what_is_loaded(&self) -> bool {
        self.image.is_none() && self.kernel_image.is_none() && self.config.is_none()
    }
}

/// A host, as far as saving a crash depends on it.
#[derive(Clone, Debug)]
pub struct Host {
    /// Release of the running kernel.
    pub release: String,
    /// Its command line.
    pub cmdline: String,
    /// Crash kernel reservation, bytes.
    pub reservation: u64,
    /// Whether a panic kernel is loaded.
    pub is_loaded: bool,
    /// What we loaded in this boot.
    pub recorded: Option<Loaded>,
    /// Whether what is loaded is that.
    pub proof: Option<Proof>,
    /// Services of other crash tools that are enabled.
    pub rivals: Vec<Rival>,
    /// Which faults become panics, and what happens then.
    pub panics: Panics,
    /// The reservation of `cma` kind, a range per line; empty without, or if the kernel does not tell.
    pub cma: String,
    /// sysctl kernel.kexec_load_disabled.
    pub kexec_load_disabled: String,
    /// sysctl kernel.panic.
    pub panic: String,
    /// sysctl kernel.panic_on_oops.
    pub panic_on_oops: String,
    /// Lockdown mode, `none` without.
    pub lockdown: String,
    /// Why the capture kernel wants modules with signatures; empty if it does not.
    pub signature_reasons: Vec<String>,
    /// Watchdogs.
    pub watchdogs: Vec<Watchdog>,
    /// How much memory there is, and what of it is in use.
    pub memory: Memory,
    /// The image file.
    pub image_file: PathBuf,
    /// The image, or why it cannot be read.
    pub image: Result<Image, String>,
    /// The capture kernel's file.
    pub kernel_file: PathBuf,
    /// The capture kernel, or why it cannot be read.
    pub kernel: Result<BzImage, String>,
    /// The targets of the image, or of the configuration file if there is no image; or why neither
    /// tells.
    pub config: Result<Config, String>,
    /// What the targets are on this host, in the order of the configuration.
    pub storage: Vec<Storage>,
    /// What its final actions need.
    pub next: Next,
    /// The modules for each device of that, by the device's name, as those of a target.
    pub next_modules: Vec<(String, Result<Vec<String>, String>)>,
    /// CPUs that are online.
    pub cpus: u32,
}

/// An image file.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its size.
    pub bytes: u64,
    /// CRC32, hex.
    pub crc32: String,
    /// What is in it.
    pub contents: Contents,
    /// What it was built from, as that is now.
    pub sources: Vec<Source>,
}

/// A file that an image was built from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Which part of the image it is.
    pub part: Part,
    /// Where it lies.
    pub path: PathBuf,
    /// What has become of it.
    pub condition: Condition,
}

/// Part of an image that has a file of its own on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The configuration.
    Config,
    /// The init.
    Init,
    /// A module.
    Module,
    /// A hook.
    Hook,
}

impl Host {
    /// Looks at this host.
    pub fn observe(options: &Options) -> Result<Self, CheckError> {
        let user = nix::unistd::geteuid();
        if !user.is_root() {
            return Err(CheckError::NotRoot(user.as_raw()));
        }
        let memory = Memory::parse(&host::read("/proc/meminfo"), &host::read("/proc/iomem"));
        let memory = memory.ok_or(CheckError::NoProc)?;
        let release = host::read("/proc/sys/kernel/osrelease");
        let is_loaded = host::is_loaded();
        let recorded = loader::recorded().filter(|_| is_loaded);
        let of_record = |file: fn(&Loaded) -> &PathBuf| recorded.as_ref().map(|record| file(record).clone());
        let image_file = options.image.clone().or_else(|| of_record(|record| &record.image_file));
        let image_file = image_file.unwrap_or_else(|| IMAGE.into());
        let kernel_file = options.kernel_image.clone().or_else(|| of_record(|record| &record.kernel_file));
        let kernel_file = kernel_file.unwrap_or_else(|| default_kernel(&release));

        let image = read_image(&image_file, options.config.as_deref());
        let config = match &image {
            Ok(image) => Ok(image.contents.config.clone()),
            Err(_) => read_config(options.config.as_deref().unwrap_or(Path::new(CONFIG))),
        };
        let dir = match &image {
            Ok(image) => image.contents.manifest.modules_dir.clone(),
            Err(_) => Path::new("/lib/modules").join(&release),
        };
        let tree = ModuleTree::read(&dir).map_err(|error| base::log::chain(&error));
        let network = config.as_ref().map(|config| config.network.clone()).unwrap_or_default();
        let targets = config.iter().flat_map(|config| &config.target);
        let expiries = recorded.as_ref().map(|loaded| loaded.expiries.as_slice()).unwrap_or_default();
        let storage =
            targets.map(|target| storage::look(target, &network, tree.as_ref(), expiries)).collect();
        let next = config.as_ref().map(Next::find).unwrap_or_default();
        let next_modules = next.devices().into_iter().map(|(device, fstype)| {
            let tree = tree.as_ref().map_err(String::clone);
            (device.to_string(), tree.and_then(|tree| storage::modules_of(device, fstype, tree)))
        });
        Ok(Self {
            next_modules: next_modules.collect(),
            next,
            cpus: host::cpus(),
            cmdline: host::read("/proc/cmdline"),
            reservation: host::reservation(),
            kexec_load_disabled: host::read("/proc/sys/kernel/kexec_load_disabled"),
            panic: host::read("/proc/sys/kernel/panic"),
            panic_on_oops: host::read("/proc/sys/kernel/panic_on_oops"),
            lockdown: host::lockdown(),
            signature_reasons: Policy::read(&release, &dir).reasons(),
            watchdogs: watchdog::list(),
            kernel: read_kernel(&kernel_file),
            proof: recorded.as_ref().map(Proof::of),
            rivals: rivals::list(),
            panics: Panics::read(),
            cma: host::kexec("crash_cma_ranges"),
            release,
            is_loaded,
            recorded,
            memory,
            image_file,
            image,
            kernel_file,
            config,
            storage,
        })
    }

    /// The command that loads the image on disk.
    #[must_use]
    pub fn load_command(&self) -> String {
        let command = format!("afterimage load --image {}", self.image_file.display());
        if self.kernel_file == default_kernel(&self.release) {
            return command;
        }
        format!("{command} --kernel-image {}", self.kernel_file.display())
    }

    /// Whether the image that lies on disk is the one that a panic would start.
    #[must_use]
    pub fn has_loaded_the_image(&self) -> bool {
        let loaded = self.recorded.as_ref().map(|record| &record.image_crc32);
        self.image.as_ref().is_ok_and(|image| Some(&image.crc32) == loaded)
    }
}

/// As `afterimage load` has it.
fn default_kernel(release: &str) -> PathBuf {
    host::kernel_file(release)
}

fn read_image(path: &Path, config: Option<&Path>) -> Result<Image, String> {
    let bytes = trusted::read_regular(path).map_err(|error| error.to_string())?;
    let contents = image::read_contents(&bytes, path).map_err(|error| base::log::chain(&error))?;
    let sources = sources(&contents.manifest, config);
    Ok(Image { bytes: to_u64(bytes.len()), crc32: crc32(&bytes), contents, sources })
}

fn sources(manifest: &Manifest, config: Option<&Path>) -> Vec<Source> {
    let config = config.unwrap_or(&manifest.config.path).to_owned();
    let files =
        [(Part::Config, &manifest.config, config), (Part::Init, &manifest.init, manifest.init.path.clone())];
    let modules =
        manifest.module_files.iter().map(|file| (Part::Module, file, manifest.modules_dir.join(&file.path)));
    let hooks = manifest.hook_files.iter().map(|file| (Part::Hook, file, file.path.clone()));
    files
        .into_iter()
        .chain(modules)
        .chain(hooks)
        .map(|(part, file, path)| Source { part, condition: file.compare(&path), path })
        .collect()
}

fn read_config(path: &Path) -> Result<Config, String> {
    let bytes = trusted::read_regular(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("there is no {}", path.display()),
        _ => format!("{}: {error}", path.display()),
    })?;
    let text = String::from_utf8_lossy(&bytes);
    Config::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn read_kernel(path: &Path) -> Result<BzImage, String> {
    let bytes = trusted::read_regular(path).map_err(|error| error.to_string())?;
    BzImage::parse_whole(&bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
pub(in crate::check) mod testing {
    //! A made-up host on which all is well, for tests to spoil.

    use super::*;
    use crate::check::observe::storage::{Device, Room};
    use crate::fingerprint::Fingerprint;
    use crate::signatures::ModuleFacts;

    pub(in crate::check) const CONFIG: &str =
        "[[target]]\ntype = \"filesystem\"\ndevice = \"LABEL=dump\"\nreserve = \"1G\"\n";

    fn image(config: &Config) -> Image {
        let file = |path: &str| Fingerprint::of(Path::new(path), b"");
        let manifest = Manifest {
            afterimage: env!("CARGO_PKG_VERSION").into(),
            kernel: "6.1.0".into(),
            modules: vec!["virtio_blk".into(), "iTCO_wdt".into()],
            stripped: true,
            modules_dir: "/lib/modules/6.1.0".into(),
            config: file("/etc/afterimage/config.toml"),
            init: file("/usr/lib/afterimage/init"),
            module_files: vec![file("kernel/virtio_blk.ko"), file("kernel/iTCO_wdt.ko")],
            hook_files: Vec::new(),
        };
        let module = |name: &String| ModuleFacts { name: name.clone(), ..ModuleFacts::default() };
        let modules = manifest.modules.iter().map(module).collect();
        let source = |part, path: &str| Source { part, path: path.into(), condition: Condition::Same };
        Image {
            bytes: 2 << 20,
            crc32: "00c0ffee".into(),
            contents: Contents {
                config: config.clone(),
                manifest,
                unpacked: 4 << 20,
                modules,
                init_sha256: String::new(),
                config_sha256: String::new(),
            },
            sources: vec![
                source(Part::Config, "/etc/afterimage/config.toml"),
                source(Part::Init, "/usr/lib/afterimage/init"),
                source(Part::Module, "/lib/modules/6.1.0/kernel/virtio_blk.ko"),
            ],
        }
    }

    pub(in crate::check) fn healthy() -> Host {
        let config = Config::parse(CONFIG).unwrap();
        Host {
            release: "6.1.0".into(),
            cmdline: "root=/dev/vda1 crashkernel=128M quiet".into(),
            reservation: 128 << 20,
            is_loaded: true,
            recorded: Some(Loaded {
                kernel_file: "/boot/vmlinuz-6.1.0".into(),
                kernel: "6.1.0".into(),
                image_file: IMAGE.into(),
                image_crc32: "00c0ffee".into(),
                ..Loaded::default()
            }),
            proof: Some(Proof::Same),
            rivals: Vec::new(),
            panics: Panics {
                unknown_nmi: "1".into(),
                unrecovered_nmi: "0".into(),
                softlockup: "1".into(),
                hardlockup: "1".into(),
                hung_task: "1".into(),
                nmi_sender: Some("the BMC"),
                ..Panics::default()
            },
            cma: String::new(),
            kexec_load_disabled: "0".into(),
            panic: "10".into(),
            panic_on_oops: "1".into(),
            lockdown: "none".into(),
            signature_reasons: Vec::new(),
            watchdogs: vec![Watchdog {
                name: "watchdog0".into(),
                identity: "iTCO_wdt".into(),
                modules: vec!["iTCO_wdt".into()],
                is_hardware: true,
                is_active: true,
                timeout: Some(60),
            }],
            memory: Memory { ram: 8 << 30, free: 4 << 30, cache: 2 << 30, anonymous: 1 << 30 },
            image_file: IMAGE.into(),
            image: Ok(image(&config)),
            kernel_file: "/boot/vmlinuz-6.1.0".into(),
            kernel: Ok(BzImage { release: "6.1.0".into(), init_size: 60 << 20, ..BzImage::default() }),
            next: Next::default(),
            next_modules: Vec::new(),
            cpus: 4,
            storage: vec![Storage {
                target: config.target[0].clone(),
                reach: None,
                device: Ok(Device {
                    refused: None,
                    node: "/dev/vdb".into(),
                    filesystem: Some("ext4".into()),
                    read_only: false,
                    bytes: 20 << 30,
                    room: Room::Free(12 << 30),
                    place: None,
                    remark: None,
                    stack: None,
                    modules: Ok(vec!["virtio_blk".into()]),
                }),
            }],
            config: Ok(config),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::Fingerprint;
    use std::fs;

    #[test]
    fn sources_are_compared_where_they_lie_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["config", "init", "a.ko"] {
            fs::write(path(name), name).unwrap();
        }
        let manifest = Manifest {
            config: Fingerprint::of(&path("config"), b"config"),
            init: Fingerprint::of(&path("init"), b"an older one"),
            modules_dir: dir.path().to_owned(),
            module_files: vec![
                Fingerprint::of(Path::new("a.ko"), b"a.ko"),
                Fingerprint::of(Path::new("b.ko"), b"b.ko"),
            ],
            ..testing::healthy().image.unwrap().contents.manifest
        };
        let conditions = |config: Option<&Path>| -> Vec<_> {
            sources(&manifest, config).iter().map(|source| (source.part, source.condition)).collect()
        };
        let rest = [
            (Part::Init, Condition::Changed),
            (Part::Module, Condition::Same),
            (Part::Module, Condition::Missing),
        ];
        assert_eq!(conditions(None), [&[(Part::Config, Condition::Same)], &rest[..]].concat());
        assert_eq!(conditions(Some(&path("init")))[0], (Part::Config, Condition::Changed));
    }
}

//! Building a capture image: a reproducible, compressed cpio with init, configuration and modules;
//! and reading back what an image was built with.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base::config::{self, Config, ConfigError, Filesystem, Place, Strip, Target, TargetKind};
use serde::{Deserialize, Serialize};

use crate::boot_entry::Next;
use crate::compress;
use crate::cpio::{self, Entry, Kind, NotAnArchive};
use crate::drivers::{self, DriversError};
use crate::fingerprint::Fingerprint;
use crate::modules::{ModuleTree, ModulesError};
use crate::network::{self, CardError, CloneError, Firmware, FirmwareError};
use crate::output;
use crate::place::{self, Told};
use crate::remote;
use crate::signatures::{ModuleFacts, Policy};
use crate::strip::strip;
use crate::trusted;
use crate::watchdog::{self, Watchdog};

/// There if this host was started by EFI firmware. Then the end of the log can go to its variables,
/// if nothing else takes it.
const EFI: &str = "/sys/firmware/efi";
const EFIVARFS: &str = "efivarfs";

/// Why an image could not be built or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file cannot be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The image cannot be written.
    #[error("writing {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The configuration is refused.
    #[error("configuration {path}")]
    Config {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// No target in it.
    #[error("configuration {0}: there is no [[target]], so a capture would have nowhere to save to")]
    NoTarget(PathBuf),
    /// Modules.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// Drivers.
    #[error(transparent)]
    Drivers(#[from] DriversError),
    /// The way to targets on the network.
    #[error(transparent)]
    Network(#[from] CloneError),
    /// What is wrong with a target on the network.
    #[error(transparent)]
    Remote(#[from] remote::RemoteError),
    /// Network cards.
    #[error(transparent)]
    Cards(#[from] CardError),
    /// Their firmware.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// A hook is no program for a bare image.
    #[error("hook {0} is no static x86_64 executable: the image has no libraries")]
    Hook(String),
    /// The host will not see the dumps where the configuration has them.
    #[error("target {target}: {why}; {remedy}")]
    Place {
        /// The target.
        target: String,
        /// Why.
        why: String,
        /// What to write.
        remedy: String,
    },
    /// A storage-only init.
    #[error("the init was built without {0} targets: build it with the default features")]
    InitWithout(TargetKind),
    /// The compressor failed.
    #[error("compressing the image")]
    Compress(#[source] io::Error),
    /// Damaged, or not compressed in a way that the kernel reads.
    #[error("unpacking {path}")]
    Unpack {
        /// Which image.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// No archive in it.
    #[error("{path} is no image of ours")]
    Archive {
        /// Which image.
        path: PathBuf,
        /// Cause.
        source: NotAnArchive,
    },
    /// A file of ours is missing in it.
    #[error("{path} is no image of ours: it has no {file}")]
    Missing {
        /// Which image.
        path: PathBuf,
        /// Which file.
        file: &'static str,
    },
    /// No init to build it with.
    #[error("no init to put into the image")]
    NoInit,
    /// The manifest makes no sense.
    #[error("the manifest in {0} cannot be read")]
    Manifest(PathBuf),
}

/// What an image is built from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Kernel release that it is for.
    pub kernel: String,
    /// Modules of that kernel.
    pub modules_dir: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
    /// Static inits, the preferred one first: the first that was built with all kinds of targets in
    /// use is taken.
    pub inits: Vec<PathBuf>,
}

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of afterimage that built it.
    pub afterimage: String,
    /// Kernel release whose modules it holds.
    pub kernel: String,
    /// Modules, in load order.
    pub modules: Vec<String>,
    /// Whether the modules have lost their signatures.
    pub stripped: bool,
    /// Where the modules came from.
    pub modules_dir: PathBuf,
    /// The configuration file that it was built from.
    pub config: Fingerprint,
    /// The init that it was built from.
    pub init: Fingerprint,
    /// The module files, in load order; paths are relative to `modules_dir`.
    pub module_files: Vec<Fingerprint>,
    /// The hooks, in the order of the configuration.
    #[serde(default)]
    pub hook_files: Vec<Fingerprint>,
}

/// A built image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its size when the kernel has unpacked it.
    pub unpacked: u64,
    /// What it says of itself.
    pub manifest: Manifest,
    /// Where the dumps will be, a line for each target on a disk of this host.
    pub places: Vec<String>,
}

/// Builds an image. The same sources at the same paths give the same bytes.
pub fn build(sources: &Sources) -> Result<Image, ImageError> {
    let text = trusted::read_to_string(&sources.config).map_err(read(&sources.config))?;
    let config =
        Config::parse(&text).map_err(|source| ImageError::Config { path: sources.config.clone(), source })?;
    remote::check_config(&config)?;
    let (init_path, init) = choose_init(&sources.inits, &config)?;
    let places = places(&config)?;
    let tree = ModuleTree::read(&sources.modules_dir)?;
    let mut firmware = Vec::new();
    let modules = tree.closure(&wanted_modules(&config, &tree, &sources.config, &mut firmware)?)?;

    let stripping = is_stripping(config.image.strip, &Policy::read(&sources.kernel, &sources.modules_dir));
    let config_file = Fingerprint::of(&absolute(&sources.config)?, text.as_bytes());
    let init_file = Fingerprint::of(&absolute(init_path)?, &init);
    let (mut module_files, mut hook_files) = (Vec::new(), Vec::new());
    let mut entries = skeleton();
    entries.push(Entry::file("init", 0o755, init));
    entries.push(Entry::file(config::PATH, 0o600, text.into_bytes()));
    for (index, hook) in config.hook.iter().enumerate() {
        let program = trusted::read(Path::new(&hook.path)).map_err(read(Path::new(&hook.path)))?;
        if !is_static_executable(&program) {
            return Err(ImageError::Hook(hook.path.clone()));
        }
        hook_files.push(Fingerprint::of(Path::new(&hook.path), &program));
        entries.push(Entry::file(&format!("{}/{index}", config::HOOKS_PATH), 0o755, program));
    }
    for Firmware { path, file, .. } in &firmware {
        let bytes = trusted::read(file).map_err(read(file))?;
        entries.push(Entry::file(&path.to_string_lossy(), 0o644, bytes));
    }
    let mut list = String::new();
    for module in &modules {
        let (bytes, file) = tree.load(module)?;
        module_files.push(file);
        let bytes = if stripping { strip(&bytes) } else { bytes };
        let path = format!("/lib/modules/{}.ko", module.name);
        list.extend([if module.optional { "-" } else { "" }, &path, "\n"]);
        entries.push(Entry::file(&path, 0o644, bytes));
    }
    let manifest = Manifest {
        afterimage: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: sources.kernel.clone(),
        modules: modules.into_iter().map(|module| module.name).collect(),
        stripped: stripping,
        modules_dir: absolute(&sources.modules_dir)?,
        config: config_file,
        init: init_file,
        module_files,
        hook_files,
    };
    entries.push(Entry::file(config::MODULES_PATH, 0o644, list.into_bytes()));
    entries.push(Entry::file(
        config::MANIFEST_PATH,
        0o644,
        toml::to_string(&manifest).unwrap_or_default().into_bytes(),
    ));

    let archive = cpio::write(&entries);
    let bytes = compress::compress(&archive, config.image.compress).map_err(ImageError::Compress)?;
    Ok(Image { bytes, unpacked: base::addr::to_u64(archive.len()), manifest, places })
}

/// Where the dumps will be. A place where nobody would see them is refused, but for the image of another
/// machine, which lists its modules: this host says nothing about that one.
fn places(config: &Config) -> Result<Vec<String>, ImageError> {
    let mut lines = Vec::new();
    for Told { target, text, trouble, remark } in place::tell(config) {
        if let Some(remark) = remark {
            log::warn!("{remark}");
        }
        match trouble {
            Some((why, remedy)) if config.image.modules.is_none() => {
                return Err(ImageError::Place { target, why, remedy });
            }
            Some((why, remedy)) => log::warn!("target {target}: {why}; {remedy}"),
            None => lines.push(text),
        }
    }
    Ok(lines)
}

/// Whether modules lose their signatures, and says why not where that is not plain.
fn is_stripping(strip: Strip, policy: &Policy) -> bool {
    let reasons = policy.reasons();
    let stripping = match strip {
        Strip::Always => true,
        Strip::Never => false,
        Strip::Auto => reasons.is_empty(),
    };
    match (stripping, reasons.as_slice()) {
        (_, []) => (),
        (false, reasons) => log::info!("modules keep their signatures: {}", reasons.join("; ")),
        (true, reasons) => log::warn!(
            "image.strip is \"always\", and the capture kernel may refuse modules without signatures: {}",
            reasons.join("; ")
        ),
    }
    stripping
}

/// Writes an image under a temporary name and renames it, so that there is never half of one.
pub fn publish(image: &[u8], path: &Path) -> Result<(), ImageError> {
    let write = || {
        output::check_replaceable(path)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir)?; // mode 0600: the image may come to hold secrets
        file.write_all(image)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| ImageError::Write { path: path.to_owned(), source })
}

/// What `afterimage load` wants to know of an image.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The configuration it was built with.
    pub config: Config,
    /// What it says of itself.
    pub manifest: Manifest,
    /// Bytes when unpacked.
    pub unpacked: u64,
    /// What the modules in it say of themselves.
    pub modules: Vec<ModuleFacts>,
    /// SHA-256 of the program and of the configuration in it, hex.
    pub init_sha256: String,
    /// See above.
    pub config_sha256: String,
}

/// Reads an image's configuration and manifest.
pub fn read_contents(image: &[u8], path: &Path) -> Result<Contents, ImageError> {
    let unpack = |source| ImageError::Unpack { path: path.to_owned(), source };
    let archive = compress::decompress(image).map_err(unpack)?;
    let files =
        cpio::read_files(&archive).map_err(|source| ImageError::Archive { path: path.to_owned(), source })?;
    let text = |file: &'static str| {
        let found = files.iter().find(|(name, _)| name == file.trim_start_matches('/'));
        let (_, bytes) = found.ok_or_else(|| ImageError::Missing { path: path.to_owned(), file })?;
        Ok::<_, ImageError>(String::from_utf8_lossy(bytes).into_owned())
    };
    let config = Config::parse(&text(config::PATH)?)
        .map_err(|source| ImageError::Config { path: path.to_owned(), source })?;
    let manifest =
        toml::from_str(&text(config::MANIFEST_PATH)?).map_err(|_| ImageError::Manifest(path.to_owned()))?;
    let modules = files.iter().filter_map(|(name, bytes)| {
        let name = name.strip_prefix("lib/modules/")?.strip_suffix(".ko")?;
        Some(ModuleFacts::of(name, bytes))
    });
    let modules = modules.collect();
    let sum = |file: &str| {
        let found = files.iter().find(|(name, _)| name == file.trim_start_matches('/'));
        found.map(|(_, bytes)| evidence::hex(&evidence::sha256(bytes))).unwrap_or_default()
    };
    Ok(Contents {
        config,
        manifest,
        unpacked: base::addr::to_u64(archive.len()),
        modules,
        init_sha256: sum("/init"),
        config_sha256: sum(config::PATH),
    })
}

/// Roots of the module closure: the watchdogs, the way to each target's device and to those that
/// final actions need, and their file systems.
fn wanted_modules(
    config: &Config,
    tree: &ModuleTree,
    path: &Path,
    firmware: &mut Vec<Firmware>,
) -> Result<Vec<String>, ImageError> {
    if config.target.is_empty() {
        return Err(ImageError::NoTarget(path.to_owned()));
    }
    let mut wanted = match &config.image.modules {
        Some(named) => named.clone(),
        None => watchdog_modules(&watchdog::list(), tree),
    };
    if config.image.modules.is_none() && Path::new(EFI).exists() && tree.has(EFIVARFS) {
        wanted.push(EFIVARFS.to_owned());
    }
    if config.needs_network() && config.image.modules.is_none() {
        let remotes = remote::located(config);
        let links = network::links(config, &remotes)?;
        let drivers = network::modules(&links, tree)?;
        firmware.extend(network::firmware(&drivers.cards, tree)?);
        wanted.extend(drivers.all());
    }
    for target in &config.target {
        let fstype = match (&config.image.modules, &target.place) {
            (_, Place::Nfs(nfs)) => {
                wanted.extend(drivers::nfs_modules(nfs.version));
                None
            }
            (_, Place::Ssh(_) | Place::Https(_) | Place::S3(_)) | (Some(_), Place::Raw(_)) => None,
            (Some(_), Place::Filesystem(Filesystem { fstype: Some(fstype), .. })) => Some(*fstype),
            (named, Place::Filesystem(_) | Place::Raw(_)) => {
                let found = drivers::discover(target, tree)?;
                if named.is_none() {
                    wanted.extend(found.modules);
                }
                found.fstype
            }
        };
        wanted.extend(fstype.into_iter().flat_map(|fstype| drivers::filesystem_modules(fstype, tree)));
    }
    let given = [config.boot.fstype, config.boot.root_fstype].into_iter().flatten();
    wanted.extend(given.flat_map(|fstype| drivers::filesystem_modules(fstype, tree)));
    for (device, fstype) in Next::find(config).devices() {
        if config.image.modules.is_none() {
            match drivers::reach(device, tree) {
                Ok((_, modules)) => wanted.extend(modules),
                // The dump comes first; what comes after it has a reboot to fall back to.
                Err(error) => log::warn!("{device} of [boot]: {}", base::log::chain(&error)),
            }
        }
        wanted.extend(drivers::filesystem_modules(fstype, tree));
    }
    Ok(wanted)
}

/// Modules of the watchdogs that go on through a panic, first in load order: a device that hangs
/// while its driver loads is what they are for. Another kernel may have renamed a driver; then
/// there is none.
fn watchdog_modules(watchdogs: &[Watchdog], tree: &ModuleTree) -> Vec<String> {
    let hardware = watchdogs.iter().filter(|watchdog| watchdog.is_hardware);
    hardware.flat_map(|watchdog| &watchdog.modules).filter(|name| tree.has(name)).cloned().collect()
}

/// Mount points, and the devices without which a process has no stdio before /dev is mounted.
fn skeleton() -> Vec<Entry> {
    let device = |path: &str, major, minor| Entry {
        path: path.to_owned(),
        mode: 0o600,
        kind: Kind::CharDevice(major, minor),
    };
    let directory = |path: &str| Entry { path: path.to_owned(), mode: 0o755, kind: Kind::Directory };
    let mut entries = vec![device("dev/console", 5, 1), device("dev/null", 1, 3)];
    entries.extend([device("dev/random", 1, 8), device("dev/urandom", 1, 9)]);
    entries.extend(["proc", "sys", "target", "hooks"].map(directory));
    entries
}

/// The first init that can reach all targets, or why the last one cannot.
fn choose_init<'a>(inits: &'a [PathBuf], config: &Config) -> Result<(&'a Path, Vec<u8>), ImageError> {
    let mut problem = ImageError::NoInit;
    for path in inits {
        let init = trusted::read(path).map_err(read(path))?;
        match can_reach(&init, config) {
            Ok(()) => return Ok((path, init)),
            Err(error) => problem = error,
        }
    }
    Err(problem)
}

/// Refuses targets that the init was built without. One that does not say what it was built with is
/// believed.
fn can_reach(init: &[u8], config: &Config) -> Result<(), ImageError> {
    let says = |kind: TargetKind| memmem(init, kind.mark().as_bytes());
    if !says(TargetKind::Filesystem) {
        return Ok(());
    }
    let missing = config.target.iter().map(Target::kind).find(|&kind| !says(kind));
    missing.map_or(Ok(()), |kind| Err(ImageError::InitWithout(kind)))
}

fn memmem(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Whether a program runs without an interpreter and libraries.
fn is_static_executable(program: &[u8]) -> bool {
    use object::read::elf::{FileHeader as _, ProgramHeader as _};
    let Ok(header) = object::elf::FileHeader64::<object::Endianness>::parse(program) else { return false };
    let Ok(endian) = header.endian() else { return false };
    let segments = header.program_headers(endian, program);
    header.e_machine(endian) == object::elf::EM_X86_64
        && segments.is_ok_and(|all| all.iter().all(|one| one.p_type(endian) != object::elf::PT_INTERP))
}

/// The path as it is from every working directory.
fn absolute(path: &Path) -> Result<PathBuf, ImageError> {
    std::path::absolute(path).map_err(read(path))
}

fn read(path: &Path) -> impl FnOnce(io::Error) -> ImageError + '_ {
    move |source| ImageError::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;

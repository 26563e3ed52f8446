//! The command line of `afterimage`.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use afterimage::check;
use afterimage::image::{self, Sources};
use afterimage::input::Input;
use afterimage::loader::Loaded;
use afterimage::map::text;
use afterimage::offline::OfflineError;
use afterimage::sys::wiping::Wiping;
use afterimage::{estimate, host, inspect, keys, loader, offline, planned, raw, status, survey};
use base::config::{Compress, Config, Dump, DumpLevel, Exclude, Format, LevelError};
use clap::{Parser, Subcommand};
use storage::targets::{captures, tried};
use vmcore::kernel::dmesg;

/// Keys pass through `load`.
#[global_allocator]
static ALLOCATOR: Wiping = Wiping;

/// What `switch` was called before; good for one release.
const OLD_SWITCH: &str = "capture";

/// Saves the memory of the Linux kernel that ran before.
#[derive(Debug, Parser)]
#[command(name = "afterimage", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the capture image for a kernel
    Build {
        /// Kernel release that the image is for, as `uname -r` prints it
        #[arg(long, value_name = "VERSION")]
        kernel: String,
        /// Modules of that kernel [default: /lib/modules/VERSION]
        #[arg(long, value_name = "DIR")]
        modules_dir: Option<PathBuf>,
        /// Configuration file
        #[arg(long, value_name = "FILE", default_value = "/etc/afterimage/config.toml")]
        config: PathBuf,
        /// The static init [default: beside this program, or in ../lib/afterimage: `init-storage`
        /// if that is there and all targets are disks, else `init`]
        #[arg(long, value_name = "FILE")]
        init: Option<PathBuf>,
        /// The image to write
        #[arg(short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Load the capture image as the panic kernel
    Load {
        /// The capture image
        #[arg(long, value_name = "FILE", required_unless_present_any = ["again", "refresh"])]
        image: Option<PathBuf>,
        /// Load what is loaded once more, if the machine's CPUs or memory have changed and the
        /// kernel has not seen to that itself
        #[arg(long, conflicts_with_all = ["image", "kernel_image", "key_file"])]
        again: bool,
        /// Load what is loaded once more, if a file of keys has changed since, or the way to a
        /// target on the network was not known
        #[arg(long, conflicts_with_all = ["image", "kernel_image", "key_file", "again"])]
        refresh: bool,
        /// The kernel to run it with [default: that of the running release, where
        /// distributions put it]
        #[arg(long, value_name = "FILE")]
        kernel_image: Option<PathBuf>,
        /// Key file or pass phrase (- is standard input) of the LUKS devices under targets
        /// [default: target.key_file]
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Unload the panic kernel
    Unload,
    /// Switch to the capture kernel on purpose: it saves all memory of this one. Like a reboot,
    /// this ends every program
    ///
    /// Needs a loaded panic kernel (`afterimage load`). Records who wants it and why, runs the live
    /// collectors, stops and freezes what [planned] names, loads the record and jumps. What fails
    /// before the jump is undone, and the host runs on.
    #[command(alias = OLD_SWITCH)]
    Switch(planned::Options),
    /// Write a tar of files to standard output
    #[command(hide = true)]
    CollectFiles {
        /// Bytes of files at most
        #[arg(long)]
        limit: u64,
        /// Patterns
        patterns: Vec<String>,
    },
    /// Make the key with which this host logs in at collectors by SSH, and print its public half. A
    /// key that is there stays
    Keys {
        /// The private key
        #[arg(long, value_name = "PATH", default_value = keys::PATH)]
        file: PathBuf,
    },
    /// Print the line that lets the key in at a collector, for SFTP only; or install it there
    ///
    /// With USER@HOST it is appended to that account's authorized_keys by ssh, unless it is there,
    /// and the host's public keys are printed for the configuration.
    Propagate {
        /// Directory of the collector in which SFTP begins: it must be there, and be the account's
        #[arg(long, value_name = "DIR", default_value = "/var/crash")]
        dir: String,
        /// The private key
        #[arg(long, value_name = "PATH", default_value = keys::PATH)]
        file: PathBuf,
        /// Port of the collector
        #[arg(long, default_value_t = 22)]
        port: u16,
        /// The account at the collector
        #[arg(value_name = "USER@HOST")]
        at: Option<String>,
    },
    /// Say whether a panic would be captured; exit code 0 if so
    Status,
    /// Look at this host and say whether a crash now would be saved, what is wrong, and what to do
    ///
    /// Exit code 0: it would be saved, perhaps with warnings; 1: it would not; 2: the check could
    /// not be made.
    Check {
        /// The capture image [default: the one that is loaded, or /boot/afterimage.img]
        #[arg(long, value_name = "FILE")]
        image: Option<PathBuf>,
        /// The capture kernel [default: the one that is loaded, or /boot/vmlinuz-VERSION of the
        /// running kernel]
        #[arg(long, value_name = "FILE")]
        kernel_image: Option<PathBuf>,
        /// Configuration file [default: the one that the image was built from]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON: a verdict (ok, warning or failure) and findings, each with id, level, found
        /// and remedy
        #[arg(long)]
        json: bool,
    },
    /// Dump a vmcore that is a file, or a dump again: filter, compress, convert it
    #[command(override_usage = "afterimage dump [OPTIONS] VMCORE... OUT\n       afterimage dump --dry-run \
                          [OPTIONS] VMCORE...")]
    Dump {
        #[command(flatten)]
        pages: Pages,
        /// Read broken memory (PG_hwpoison) and offline pages after all: of a copy, where reading
        /// them does no harm
        #[arg(long)]
        read_poisoned_and_offline_pages: bool,
        /// zstd:LEVEL, zlib, none, or auto: the zstd level that ends soonest, measured while it
        /// runs
        #[arg(long, default_value_t)]
        compress: Compress,
        /// kdump, flattened, elf, lime or raw
        #[arg(long, default_value_t)]
        format: Format,
        /// Overwrite OUT
        #[arg(long)]
        force: bool,
        /// Write nothing; say how many pages there are of each class, and how large dumps would be
        #[arg(long, conflicts_with = "force")]
        dry_run: bool,
        /// The vmcore or dump (of a split dump all files), then the dump to write; - is standard
        /// output
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Make a device a raw target, empty, and print its UUID. What it held is lost
    Prepare {
        /// Give up a file system, other data, or a capture that was not collected; a device in use
        /// is refused all the same
        #[arg(long)]
        force: bool,
        /// The partition, disk or volume
        device: PathBuf,
    },
    /// Copy a capture off a raw device, verifying it, and mark it collected; exit code 3 if a part
    /// of it is lost
    Recover {
        /// Leave the capture marked as it is: the device takes no other one
        #[arg(long)]
        keep_uncollected: bool,
        /// The device, or an image of it
        device: PathBuf,
        /// Where the capture's directory is made
        dir: PathBuf,
    },
    /// Forget the crashes that a target remembers, and that a kexec failed, once their cause is
    /// seen to: the next crash is dumped again, and a kexec tried again
    Reset {
        /// The directory of the captures (`path` of the target), or the raw device
        target: PathBuf,
    },
    /// Print the kernel log in a vmcore or dump
    Dmesg {
        /// The vmcore or dump; of a split dump all files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Say what a vmcore or dump holds
    Inspect {
        /// Say of all pages what they are and which of them a dump holds, as a table and a map; in
        /// colours if standard output is a terminal and `NO_COLOR` is not set
        #[arg(long)]
        pages: bool,
        /// Draw the map into a file, too: .svg, or .png, which has no text but at the bottom a bar
        /// of all pages by class. Plain colours are pages that are there, pale hatched ones were
        /// left out of the dump
        #[arg(long, requires = "pages", value_name = "FILE")]
        map: Option<PathBuf>,
        /// The vmcore or dump; of a split dump all files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// Which pages are left out.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Pages {
    /// Dump level, 0 to 31: the sum of 1 (zero pages), 2 (page cache), 4 (all page cache), 8
    /// (memory of processes), 16 (free pages) [default: 1]
    #[arg(long)]
    level: Option<DumpLevel>,
    /// Page classes by name: zero, cache, private-cache, user, free, unused-vmemmap
    #[arg(long, value_name = "CLASS", value_delimiter = ',')]
    exclude: Option<Vec<String>>,
    /// kernel (level 31), forensic (level 1) or full (level 0)
    #[arg(long, value_parser = Exclude::preset, value_name = "NAME")]
    preset: Option<Exclude>,
}

impl Pages {
    fn exclude(&self) -> Result<Exclude, LevelError> {
        match (&self.level, &self.exclude) {
            (Some(level), _) => Ok((*level).into()),
            (_, Some(names)) => Exclude::classes(names),
            _ => Ok(self.preset.unwrap_or_default()),
        }
    }
}

/// Exit code of a recovery that has lost something.
const EXIT_DAMAGED: u8 = 3;

type Failure = Box<dyn core::error::Error>;

fn main() -> ExitCode {
    base::log::init_stderr(log::LevelFilter::Info);
    match run(Cli::parse().command) {
        Ok(code) => code,
        // Who reads a log or a report may stop early; half a dump is a failure.
        Err(error) if !error.is::<OfflineError>() && is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("afterimage: {}", base::log::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Build { kernel, modules_dir, config, init, output } => {
            let modules_dir = modules_dir.unwrap_or_else(|| Path::new("/lib/modules").join(&kernel));
            let inits = init.map_or_else(default_inits, |init| Ok(vec![init]))?;
            build(&Sources { kernel, modules_dir, config, inits }, &output)
        }
        Command::Load { again: true, .. } => Ok(print_loaded(&loader::again()?)),
        Command::Load { refresh: true, .. } => {
            Ok(loader::refresh()?.map_or_else(nothing_new, |loaded| print_loaded(&loaded)))
        }
        Command::Load { image, kernel_image, key_file, .. } => load(image, kernel_image, key_file.as_deref()),
        Command::Unload => {
            loader::unload()?;
            println!("unloaded: a panic will not be captured");
            Ok(ExitCode::SUCCESS)
        }
        Command::Switch(options) => {
            if std::env::args().nth(1).as_deref() == Some(OLD_SWITCH) {
                log::warn!(
                    "`afterimage capture` is now `afterimage switch`; the next release knows the new name \
                     only"
                );
            }
            planned::run(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::CollectFiles { limit, patterns } => {
            planned::files::write(&patterns, limit, io::stdout().lock())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Keys { file } => print(&format!("{}\n", keys::make(&file)?)),
        Command::Propagate { dir, file, port, at } => {
            let line = keys::line(&file, &dir)?;
            print(&at.map_or_else(|| Ok(format!("{line}\n")), |at| keys::install(&line, &at, port))?)
        }
        Command::Status => Ok(status()),
        Command::Check { image, kernel_image, config, json } => {
            Ok(check(&check::Options { image, kernel_image, config }, json))
        }
        Command::Dump { pages, read_poisoned_and_offline_pages, compress, format, force, dry_run, files } => {
            let exclude = pages.exclude()?.reading_poisoned(read_poisoned_and_offline_pages);
            let dump = Dump { exclude, compress, format };
            let config = Config { dump, ..Config::default() };
            if dry_run { estimated(&files, &config) } else { dumped(&files, &config, force) }
        }
        Command::Prepare { force, device } => {
            println!("UUID={}", raw::prepare(&device, force)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Recover { keep_uncollected, device, dir } => recovered(&device, &dir, keep_uncollected),
        Command::Reset { target } => reset(&target),
        Command::Dmesg { files } => kernel_log(&files),
        Command::Inspect { pages: true, map, files } => page_map(map.as_deref(), &files),
        Command::Inspect { files, .. } => print(&inspect::report(&Input::open(&files)?)?),
    }
}

/// Says how large dumps would be.
fn estimated(files: &[PathBuf], config: &Config) -> Result<ExitCode, Failure> {
    let (estimate, page_bytes) = offline::dry_run(files, config)?;
    print(&estimate::text(&estimate, config, page_bytes))
}

/// Dumps the files before the last one into the last one.
fn dumped(files: &[PathBuf], config: &Config, force: bool) -> Result<ExitCode, Failure> {
    let Some((out, input @ [_, ..])) = files.split_last() else {
        return Err("name the vmcore and the dump to write".into());
    };
    let summary = offline::dump(input, out, config, force)?.to_json();
    if out == Path::new("-") {
        eprint!("{summary}"); // standard output is the dump
        return Ok(ExitCode::SUCCESS);
    }
    print(&summary)
}

fn recovered(device: &Path, dir: &Path, keep_uncollected: bool) -> Result<ExitCode, Failure> {
    let captures = raw::recover(device, dir, keep_uncollected)?;
    for capture in &captures {
        println!("{}", capture.text());
    }
    let whole = captures.iter().all(|capture| capture.whole);
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DAMAGED) })
}

fn kernel_log(files: &[PathBuf]) -> Result<ExitCode, Failure> {
    let input = Input::open(files)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let stats = dmesg::write(&input.kernel(), &mut out)?;
    out.flush()?;
    if stats.damaged > 0 {
        eprintln!("afterimage: {} records of the log are damaged", stats.damaged);
    }
    Ok(ExitCode::SUCCESS)
}

/// A table and a map of all pages; the map goes into a file, too, if one is named.
fn page_map(map: Option<&Path>, files: &[PathBuf]) -> Result<ExitCode, Failure> {
    map.map_or(Ok(()), |path| survey::check_map(path, files))?;
    let (pages, caption) = survey::survey(&Input::open(files)?)?;
    map.map_or(Ok(()), |path| survey::write_map(&pages, &caption, path, files))?;
    let mut out = io::stdout().lock();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let drawn = text::draw(&pages, out.is_terminal() && !no_color);
    write!(out, "{}\n{drawn}", text::table(&pages))?;
    Ok(ExitCode::SUCCESS)
}

fn build(sources: &Sources, output: &Path) -> Result<ExitCode, Failure> {
    let image = image::build(sources)?;
    image::publish(&image.bytes, output)?;
    println!(
        "{}: {} KiB ({} KiB unpacked) for kernel {}, modules: {}",
        output.display(),
        image.bytes.len() >> 10,
        image.unpacked >> 10,
        image.manifest.kernel,
        if image.manifest.modules.is_empty() { "none".to_owned() } else { image.manifest.modules.join(" ") }
    );
    Ok(ExitCode::SUCCESS)
}

fn load(
    image: Option<PathBuf>,
    kernel_image: Option<PathBuf>,
    key_file: Option<&Path>,
) -> Result<ExitCode, Failure> {
    let kernel = kernel_image.map_or_else(running_kernel, Ok)?;
    Ok(print_loaded(&loader::load(&image.unwrap_or_default(), &kernel, key_file)?))
}

/// The file of the running kernel.
fn running_kernel() -> Result<PathBuf, Failure> {
    let release = host::read("/proc/sys/kernel/osrelease");
    let found = host::kernel_file(&release);
    if found.is_file() {
        return Ok(found);
    }
    let places = host::kernel_places(&release);
    Err(format!("no kernel {release} at {places}: name it with --kernel-image").into())
}

fn nothing_new() -> ExitCode {
    println!("no file of keys has changed, and the way to each target is known: what is loaded stays");
    ExitCode::SUCCESS
}

fn reset(target: &Path) -> Result<ExitCode, Failure> {
    if target.is_dir() {
        captures::reset(target)
            .and_then(|_| tried::remove(target))
            .map_err(|error| format!("{}: {error}", target.display()))?;
    } else {
        raw::reset(target)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what a load has armed.
fn print(text: &str) -> Result<ExitCode, Failure> {
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn print_loaded(loaded: &Loaded) -> ExitCode {
    let planned = if loader::why_not_planned().is_none() { ", and so will a planned switch" } else { "" };
    let image = loaded.image_file.display();
    println!("loaded {image} with kernel {}: a panic will be captured{planned}", loaded.kernel);
    ExitCode::SUCCESS
}

fn status() -> ExitCode {
    let status = status::Status::look();
    print!("{}", status.text);
    if status.saved { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn check(options: &check::Options, json: bool) -> ExitCode {
    let report = check::Host::observe(options).map(|host| {
        let report = check::Report::of(&host);
        // A check of another image says nothing of what is loaded.
        if options.is_of_what_is_loaded() {
            check::keep(&report, host.recorded.as_ref());
        }
        report
    });
    let printed = report.map_err(Failure::from).and_then(|report| {
        let text = if json { report.to_json() } else { report.to_text() };
        match io::stdout().lock().write_all(text.as_bytes()) {
            // Who read enough and left still gets the verdict.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(report.exit_code()),
        }
    });
    printed.unwrap_or_else(|error| {
        eprintln!("afterimage: {}", base::log::chain(error.as_ref()));
        ExitCode::from(2)
    })
}

/// The inits that were built or installed together with this program, the smaller one first.
fn default_inits() -> Result<Vec<PathBuf>, Failure> {
    let program = std::env::current_exe()?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    let places = [beside.to_owned(), beside.join("../lib/afterimage")];
    let inits = |place: &PathBuf| -> Vec<PathBuf> {
        ["init-storage", "init"]
            .map(|name| place.join(name))
            .into_iter()
            .filter(|path| path.is_file())
            .collect()
    };
    places.iter().map(inits).find(|inits| !inits.is_empty()).ok_or_else(|| {
        let [a, b] = places.map(|path| path.join("init").display().to_string());
        format!("no init at {a} or {b}: name it with --init").into()
    })
}

fn is_broken_pipe(error: &(dyn core::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = error.source();
    }
    false
}

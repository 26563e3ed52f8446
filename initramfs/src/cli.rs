//! The commands of `afterimage` and their options.

use std::ffi::OsString;
use std::path::PathBuf;

use afterimage::{keys, planned};
use base::config::{Compress, DumpLevel, Exclude, Format, LevelError};
use clap::{Parser, Subcommand};

use crate::OLD_SWITCH;

/// Saves the memory of the Linux kernel that ran before.
#[derive(Debug, Parser)]
#[command(name = "afterimage", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
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
        /// The capture image [default: /boot/afterimage.img]
        #[arg(long, value_name = "FILE")]
        image: Option<PathBuf>,
        /// Load what is loaded once more, if the machine's CPUs or memory have changed and the
        /// kernel has not seen to that itself
        #[arg(long, conflicts_with_all = ["image", "kernel_image", "key_file"])]
        again: bool,
        /// Load what is loaded once more, if a file of keys has changed since, or the way to a
        /// target on the network was not known
        #[arg(long, conflicts_with_all = ["image", "kernel_image", "key_file", "again"])]
        refresh: bool,
        /// The kernel to run it with [default: that of the running release, where distributions
        /// put it]
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
        /// Show the public key of this host for evidence instead, which signs what `load` writes down; make
        /// it if there is none
        #[arg(long)]
        evidence: bool,
    },
    /// Check that a capture is what was captured: signature, sums, events, account of pages
    ///
    /// Exit code 0: all of it holds; 1: something does not, and what is still good is listed; 2: not all
    /// can be said.
    Verify {
        /// A public key that is trusted, or a file with one: of the host, or of the load. The key of this
        /// host is trusted
        #[arg(long, value_name = "KEY")]
        key: Vec<String>,
        /// Add to SHA256SUMS the sums of whole dumps, which the capture could only take in pieces
        #[arg(long)]
        write_sums: bool,
        /// Do not add a line to the chain of custody where the directory can be written
        #[arg(long)]
        no_custody: bool,
        /// Print JSON: for each capture what was checked, and whether it holds (yes, no, unknown)
        #[arg(long)]
        json: bool,
        /// Directories of captures, or files in them
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Who had a capture in hand: add a hand-over to its chain, or show the chain
    #[command(subcommand)]
    Custody(Custody),
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
    /// Copy a capture off a raw device, or what there is of a dump that was cut; exit code 3 if a
    /// part of it is lost
    ///
    /// A capture is verified, copied into a directory of its own and marked collected. Of a dump
    /// that was cut, such as a stream that a server has not got to its end, a plain dump is made
    /// that says INCOMPLETE.
    #[command(override_usage = "afterimage recover [--keep-uncollected] [--again] DEVICE DIR\n       \
                          afterimage recover PART... OUT")]
    Recover {
        /// Leave the capture on the device marked as it is: the device takes no other one
        #[arg(long)]
        keep_uncollected: bool,
        /// Copy it once more, although it was collected before
        #[arg(long)]
        again: bool,
        /// The device, or an image of it, and where the capture's directory is made; or the parts
        /// of a dump in their order, and the file to write
        #[arg(required = true, num_args = 2.., value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Forget the crashes that a target remembers, and that a kexec failed, once their cause is
    /// seen to: the next crash is dumped again, and a kexec tried again
    Reset {
        /// The directory of the captures (`path` of the target), or the raw device
        target: PathBuf,
    },
    #[command(flatten)]
    Debug(Debug),
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
pub(crate) struct Pages {
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
    pub(crate) fn exclude(&self) -> Result<Exclude, LevelError> {
        match (&self.level, &self.exclude) {
            (Some(level), _) => Ok((*level).into()),
            (_, Some(names)) => Exclude::classes(names),
            _ => Ok(self.preset.unwrap_or_default()),
        }
    }
}

/// What hands a dump to a debugger.
#[derive(Debug, Subcommand)]
pub(crate) enum Debug {
    /// Make the debug file of the kernel in a vmcore or dump, out of the dump alone: crash, drgn and
    /// gdb take it for the distribution's vmlinux
    ///
    /// It has symbols, types, global variables and what unwinds stacks; no line numbers and no local
    /// variables, which the kernel does not carry.
    Debuginfo {
        /// The vmcore or dump; of a split dump all files
        #[arg(required_unless_present = "captures", value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The file to write; NAME.xz is compressed, and crash opens it as it is
        #[arg(short, long, value_name = "FILE", required_unless_present_any = ["captures", "split_modules"])]
        output: Option<PathBuf>,
        /// Make NAME.ko.debug of each loaded module in this directory: `mod -S DIR` in crash,
        /// `-s DIR/NAME.ko.debug` for drgn
        #[arg(long, value_name = "DIR")]
        split_modules: Option<PathBuf>,
        /// Make `vmlinux.xz` beside the dump of each capture in this directory that has none yet
        #[arg(long, value_name = "DIR", conflicts_with_all = ["files", "output", "split_modules"])]
        captures: Option<PathBuf>,
    },
    /// Start crash on a vmcore or dump, with the debug file that is made of it
    Crash {
        /// The vmcore or dump; of a split dump all files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Options of crash
        #[arg(last = true, value_name = "ARGUMENT")]
        arguments: Vec<OsString>,
    },
    /// Start drgn on a vmcore or dump, with the debug file that is made of it
    Drgn {
        /// The vmcore or dump
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Options and script of drgn
        #[arg(last = true, value_name = "ARGUMENT")]
        arguments: Vec<OsString>,
    },
    /// Make volatility3's symbols (ISF) of the kernel in a vmcore or dump, out of the dump alone
    ///
    /// volatility3 finds the file in the folder that `vol -s DIR` names. Says what volatility3 itself
    /// cannot do with this dump.
    Symbols {
        /// The vmcore or dump; of a split dump all files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The file to write: NAME.json.xz, or NAME.json
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Say what was running when the kernel in a vmcore or dump came to its end: the cause, the task,
    /// stacks of all CPUs and of tasks that wait, memory, modules, mounts, the end of the log
    ///
    /// Exit code 3: something could not be read.
    Summary {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// The vmcore or dump; of a split dump all files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Bring out what was running, as JSON Lines (processes, open files, sockets, mounts, modules, a
    /// timeline), and the files that were in memory only, into a new folder or into one file
    ///
    /// Files of tmpfs are recovered whole, of others the pages that never reached the disk: at their paths
    /// below `[root]`. Exit code 3: something could not be read.
    Triage {
        /// The folder to make, or a file whose name ends with .tar.zst, which captures make, too
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
        /// Leave out what people keep secret: contents of files, and variables of the environment
        #[arg(long)]
        rows: bool,
        /// Recover only files whose path fits: `*` is any text, `?` a letter; may be given again
        #[arg(long, value_name = "PATTERN")]
        only: Vec<String>,
        /// Recover no files whose path fits; may be given again
        #[arg(long, value_name = "PATTERN")]
        except: Vec<String>,
        /// MiB of one recovered file at most
        #[arg(long, value_name = "MIB", default_value_t = 64)]
        file_limit: u64,
        /// MiB of all recovered files at most
        #[arg(long, value_name = "MIB", default_value_t = 2048)]
        limit: u64,
        /// The vmcore or dump; of a split dump all files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Make the core file of a process, out of a vmcore or a dump that holds the memory of processes
    /// (level 0 or 1); gdb opens it
    ///
    /// It has the registers of all threads, the mappings, and all pages that the dump holds; what
    /// is absent is in no segment, so that debuggers say that they cannot access it, and is listed
    /// in a section: `readelf -p .afterimage CORE`. Exit code 3: something is absent that the process
    /// had.
    #[command(
        override_usage = "afterimage gcore FILE... PID -o CORE\n       afterimage gcore --list FILE..."
    )]
    Gcore {
        /// List the processes, and how much of each is there
        #[arg(long, conflicts_with = "output")]
        list: bool,
        /// The core file to write
        #[arg(short, long, value_name = "CORE", required_unless_present = "list")]
        output: Option<PathBuf>,
        /// The vmcore or dump (of a split dump all files), then the number of the process, or of the
        /// thread that debuggers are to look at first
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// What is done with a chain of custody.
#[derive(Debug, Subcommand)]
pub(crate) enum Custody {
    /// Append a hand-over: who hands the capture to whom, and why; signed
    Add {
        /// Who hands over [default: who runs this]
        #[arg(long, value_name = "WHO", default_value = "")]
        from: String,
        /// To whom
        #[arg(long, value_name = "WHO")]
        to: String,
        /// Why
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// The private key that signs, of minisign or of SSH, without a pass phrase [default: the key of
        /// this host for evidence, where it can be read]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Directory of the capture
        directory: PathBuf,
    },
    /// Print the chain, and whether it holds; exit code 1 if it does not
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Directory of the capture
        directory: PathBuf,
    },
}

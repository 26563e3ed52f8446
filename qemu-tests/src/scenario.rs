//! One crash from preparation to the end of the guest: what a test describes and runs.

use crate::accel::Accel;
use crate::binaries::Binaries;
use crate::boot::Boot;
use crate::capture_config::DUMPS;
use crate::console::Line;
use crate::disk::Disk;
use crate::extra_disk::{DiskLeft, ExtraDisk};
use crate::fault::Action;
use crate::initramfs;
use crate::kernel::Kernel;
use crate::network::HostNetwork;
use crate::outcome::{Dump, Outcome, Report};
use crate::planted::Plant;
use crate::qmp::Ending;
use crate::target_disk::Format;
use crate::trigger::Trigger;
use crate::vm::{Ended, Machine, Shape, Vm};
use crate::workdir::WorkDir;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use crate::capture_config::{Config, Target};

/// UUID of the production disk.
pub const DISK_UUID: &str = "5a17c0de-0000-4000-8000-00000000d15c";
/// UUID of the write-protected second disk.
pub const READ_ONLY_UUID: &str = "5a17c0de-0000-4000-8000-0000005ea1ed";
/// Host name of the production system.
pub const HOST: &str = "prodhost";
/// Directory on the production disk in which production-init leaves what the crashed kernel said
/// about its memory.
pub const REPORT: &str = "report";
/// In it: what was planted where, see [`crate::planted`].
pub const PLANTED: &str = "planted.txt";
/// In it: `/proc/kpageflags`, see [`crate::page_flags`].
pub const PAGE_FLAGS: &str = "kpageflags";
/// In it: `/proc/meminfo`, `/proc/vmstat` and others, each behind a line with its name.
pub const COUNTERS: &str = "counters.txt";
/// Room for an uncompressed dump of everything.
const DISK_SIZE: u64 = 2 << 30;
/// A disk that is to be full.
const SMALL_DISK: u64 = 128 << 20;
/// Emulated, on a loaded machine.
const BOOT: Duration = Duration::from_mins(4);
const CAPTURE: Duration = Duration::from_mins(15);

/// A crash to be made.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Names the work directory and the printed line.
    pub name: String,
    /// Kernel of production and capture.
    pub kernel: Kernel,
    /// Size of memory.
    pub memory_mib: u32,
    /// Reserved for the capture kernel.
    pub crashkernel: String,
    /// CPUs of the production system.
    pub cpus: u32,
    /// How the production system ends.
    pub trigger: Trigger,
    /// The CPU that panics.
    pub panic_cpu: u32,
    /// The capture's configuration.
    pub config: Config,
    /// Steps of production-init to run before the panic, comma separated.
    pub run: String,
    /// Whether `/proc/vmcore` is first copied as it is, to compare the dump with.
    pub raw_copy: bool,
    /// A second disk that takes the dump.
    pub target: Option<Format>,
    /// What is planted for a page filter to judge, in this order; a report comes back when there is
    /// any.
    pub plants: Vec<Plant>,
    /// Self-checking pages of each usual kind, see [`crate::pages`].
    pub pages: u32,
    /// MiB of memory that are added when the capture is armed; half of them are filled with
    /// self-checking pages.
    pub late_mib: u32,
    /// Whether production says what it has, and lies on its disk for the capture to hand over to:
    /// `/boot/vmlinuz` and `/boot/initrd`, with `prod.third` on the command line.
    pub third: bool,
    /// What the machine has beside memory and processors.
    pub shape: Shape,
    /// How production comes onto the network, by the cards in `shape`.
    pub network: HostNetwork,
    /// More files in production's root, by their paths: keys for the loader to read, `/etc/hosts`.
    pub files: Vec<(String, Vec<u8>)>,
    /// What production makes and mounts before it loads anything: `mkdir AT`, `link TO AT`, `mount DEVICE AT
    /// TYPE OPTIONS`, `run PROGRAM ARGUMENT…`.
    pub layout: Vec<String>,
    /// Words for the kernel command line of production.
    pub append: String,
    /// The machine loses power when the capture kernel says this.
    pub power_cut: Option<String>,
    /// Bytes that the disk has left for dumps.
    pub room: Option<u64>,
    /// Whether there is a second, write-protected disk with an ext4 file system of
    /// [`READ_ONLY_UUID`].
    pub read_only_disk: bool,
    /// More disks, behind all others.
    pub extra: Vec<ExtraDisk>,
    /// What is done to the machine and to its peer when the capture kernel says this, one after the
    /// other.
    pub actions: Vec<(String, Action)>,
    /// Jobs of the wrapper in the capture kernel, see `production-init/jobs.rs`:
    /// `wrap.kill=KILL@dump:_50%`.
    pub wrap: Vec<String>,
    /// How long the capture may take before the run is a failure.
    pub patience: Duration,
}

impl Scenario {
    /// The usual crash: one CPU, 768 MiB, one disk, no raw copy.
    #[must_use]
    pub fn new(name: &str, kernel: &Kernel) -> Self {
        Self {
            name: name.into(),
            kernel: kernel.clone(),
            memory_mib: 768,
            crashkernel: "160M".into(),
            cpus: 1,
            trigger: Trigger::Panic,
            panic_cpu: 0,
            config: Config::default(),
            run: String::new(),
            raw_copy: false,
            target: None,
            plants: Vec::new(),
            pages: 0,
            late_mib: 0,
            third: false,
            shape: Shape::default(),
            network: HostNetwork::default(),
            files: Vec::new(),
            layout: Vec::new(),
            append: String::new(),
            power_cut: None,
            room: None,
            read_only_disk: false,
            extra: Vec::new(),
            actions: Vec::new(),
            wrap: Vec::new(),
            patience: CAPTURE,
        }
    }

    /// Lets a second disk take the dump.
    #[must_use]
    pub fn to(mut self, format: Format) -> Self {
        self.config.device = format.device();
        self.config.fstype = format.fstype().into();
        self.target = Some(format);
        self
    }

    /// Runs the crash to the end of the guest.
    pub fn run(&self) -> Result<Outcome> {
        self.run_in(WorkDir::new(&self.name)?, 1)
    }

    /// Boots the machine of an earlier run of this scenario once more, and crashes it again: with
    /// the disks as it left them. The capture image is on the production disk, so it and its
    /// configuration stay as they were.
    pub fn run_again(&self, before: Outcome) -> Result<Outcome> {
        let run = before.run.saturating_add(1);
        self.run_in(before.work, run)
    }

    /// Boots the machine of an earlier run once more, with this layout instead of the scenario's own, and
    /// copies `directory` of the host that it then is. Nothing is loaded.
    pub fn read_in_guest(&self, before: &Outcome, layout: &[&str], directory: &str) -> Result<Vec<Dump>> {
        let dir = before.work.path();
        let (name, into) = ("copied", dir.join(format!("copied-{}", before.run)));
        let copy = format!("copy {directory} /disk/{name}");
        let steps = layout.iter().map(|&step| step.to_owned()).chain([copy, "off".to_owned()]).collect();
        let reader = Self { layout: steps, ..self.clone() };
        let initrd = dir.join("reader.cpio");
        reader.production_image(dir, &initrd, Binaries::get()?)?;
        let disks = self.disks(dir)?;
        let machine = Machine {
            accel: Accel::detect(&self.kernel),
            kernel: self.kernel.vmlinuz(),
            initrd: Some(initrd),
            append: self.command_line("reader"),
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            shape: self.shape(),
            disks: disks.clone(),
            log: dir.join("console-reader.log"),
        };
        let mut vm = Vm::start(&machine)?;
        vm.console.expect("production: layout copied", BOOT)?;
        vm.wait_exit(BOOT)?;
        let disk = disks.first().context("there is no disk")?;
        disk.replay()?;
        disk.read_back(&format!("/{name}"), &into)?;
        Dump::all_in(&into.join(name))
    }

    fn run_in(&self, work: WorkDir, run: u32) -> Result<Outcome> {
        let binaries = Binaries::get()?;
        let dir = work.path();
        let initrd = dir.join("production.cpio");
        if run == 1 {
            self.capture_image(dir, binaries)?;
        }
        self.production_image(dir, &initrd, binaries)?;
        let image_size = fs::metadata(dir.join("afterimage.img")).context("the image that was built")?.len();
        let disks = self.disks(dir)?;
        // Unknown to everything but this run; see `marker`.
        let seed = format!("{}-{run}", work.path().file_name().unwrap_or_default().to_string_lossy());
        let machine = Machine {
            accel: Accel::detect(&self.kernel),
            kernel: self.kernel.vmlinuz(),
            initrd: Some(initrd),
            append: self.command_line(&seed),
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            shape: self.shape(),
            disks: disks.clone(),
            log: dir.join(format!("console-{run}.log")),
        };
        let started = Instant::now();
        let Crash { boot_id, panic, ended } = self.crash(&machine)?;
        let first = Boot::find(&ended.console, "first").ok();
        let console: Vec<_> = ended.console.into_iter().skip_while(|line| line.at < panic).collect();
        let found = self.look(dir, run, &disks, &console)?;
        let outcome = Outcome {
            boot_id: boot_id.rsplit(' ').next().unwrap_or_default().into(),
            seed,
            panic,
            panic_to_exit: ended.at.saturating_duration_since(panic),
            started,
            memory_end: self.memory_end(),
            first,
            ending: Ending::of(&ended.events),
            events: ended.events,
            extra: found.extra,
            run,
            console,
            dumps: found.dumps,
            raw: found.raw,
            report: found.report,
            work,
        };
        eprintln!(
            "{}: {} kernel {}, {:?}: panic to exit {:.1} s, image {} KiB, dumps {:?}",
            self.name,
            if machine.accel == Accel::Kvm { "kvm" } else { "tcg" },
            self.kernel.version(),
            self.config.compress,
            outcome.panic_to_exit.as_secs_f64(),
            image_size >> 10,
            outcome.dumps.iter().map(Dump::files).collect::<Vec<_>>(),
        );
        Ok(outcome)
    }

    /// Boots the machine, waits for the crash and for the end of the guest.
    fn crash(&self, machine: &Machine) -> Result<Crash> {
        let mut vm = Vm::start(machine)?;
        hot_add(&mut vm, self.shape.hot_add_mib)?;
        vm.console.expect("production: markers planted", BOOT)?;
        let boot_id = vm.console.expect("production: boot id ", BOOT)?.text;
        hot_add(&mut vm, self.late_mib)?;
        if !matches!(self.trigger, Trigger::Refusals(_)) {
            vm.console.expect("production: loaded", BOOT)?;
        }
        let panic = self.trigger.expect(&mut vm, BOOT)?.at;
        for (message, action) in &self.actions {
            vm.console.expect(message, self.patience)?;
            vm.act(action)?;
        }
        let ended = match &self.power_cut {
            None => vm.wait_exit(self.patience)?,
            Some(message) => {
                let at = vm.console.expect(message, self.patience)?.at;
                Ended { at, console: vm.cut_power(), events: Vec::new() }
            }
        };
        Ok(Crash { boot_id, panic, ended })
    }

    /// Looks at what the guest has left on its disks.
    fn look(&self, dir: &Path, run: u32, disks: &[Disk], console: &[Line]) -> Result<Found> {
        let [disk, others @ ..] = disks else { bail!("there is no disk") };
        disk.check().context("the file system that took the dump")?;
        // A capture that was killed or lost power leaves a journal for the next mount.
        disk.replay()?;
        let crash = dir.join(format!("read-back-{run}"));
        disk.read_back(DUMPS, &crash)?;
        let plain = others.len().saturating_sub(self.extra.len());
        let others = others.get(..plain).unwrap_or_default();
        let dumps = match (self.target, others) {
            (Some(format), [.., target]) => format.read_back(target, &crash.join("target"))?,
            _ => Some(Dump::all_in(&crash.join("crash"))?),
        };
        let report = if self.plants.is_empty() {
            None
        } else {
            disk.read_back(&format!("/{REPORT}"), dir)?;
            Some(Report::read(&dir.join(REPORT))?)
        };
        let raw = match others {
            [raw, ..] if self.raw_copy => Some(trim_raw(raw, console)?),
            _ => None,
        };
        let look = |extra: &ExtraDisk| extra.look(dir, &crash.join(&extra.name));
        let extra = self.extra.iter().map(look).collect::<Result<Vec<_>>>()?;
        Ok(Found { dumps: dumps.unwrap_or_default(), report, raw, extra })
    }

    /// Builds `boot/afterimage.img`, what the production system will load; and keeps one without
    /// the wrapper.
    fn capture_image(&self, dir: &Path, binaries: &Binaries) -> Result<()> {
        let config = dir.join("config.toml");
        write(&config, self.config.toml(&self.wrapper_words()).as_bytes())?;
        let boot = dir.join("content/boot");
        fs::create_dir_all(&boot).context("making the boot directory")?;
        fs::create_dir_all(dir.join(format!("content{DUMPS}"))).context("making the dump directory")?;
        let (built, image) = (dir.join("afterimage.img"), boot.join("afterimage.img"));
        binaries.build_image(&self.kernel, &config, &built)?;
        if self.wrapper_words().is_empty() {
            fs::copy(&built, &image).context("copying the image")?;
        } else {
            write(&image, &initramfs::with_wrapper(&built, binaries)?)?;
        }
        fs::copy(self.kernel.vmlinuz(), boot.join("vmlinuz")).context("copying the kernel")?;
        Ok(())
    }

    /// Writes the initramfs of production, and keeps one on its disk to be started from there.
    fn production_image(&self, dir: &Path, initrd: &Path, binaries: &Binaries) -> Result<()> {
        let mut image = initramfs::production(&self.kernel, binaries)?;
        if self.plants.contains(&Plant::Swapped) {
            image = initramfs::with_swapon(image)?;
        }
        if !self.network.ip.is_empty() {
            image = initramfs::with_links(image, &self.kernel, &self.network.ip)?;
        }
        image = initramfs::with_files(image, &self.files);
        if !self.layout.is_empty() {
            image = initramfs::with_layout(image, &self.kernel, &self.layout)?;
        }
        if self.third {
            image = initramfs::with_network(image, &self.kernel)?;
            write(&dir.join("content/boot/initrd"), &image)?;
        }
        write(initrd, &image)
    }

    /// What the machine has to have for all that is asked for.
    fn shape(&self) -> Shape {
        Shape {
            network: self.shape.network || self.third,
            hot_add_mib: self.shape.hot_add_mib.saturating_add(self.late_mib),
            ..self.shape.clone()
        }
    }

    /// Physical addresses from here on are no memory: QEMU's q35 moves what lies above 2 GiB of
    /// 2.75 or more behind 4 GiB, and adds memory at the next GiB.
    fn memory_end(&self) -> u64 {
        let added = self.shape().hot_add_mib;
        let plain = self.memory_mib < 2816 && added == 0;
        let more = if plain { 0 } else { added.saturating_add(5 << 10) };
        u64::from(self.memory_mib.saturating_add(more)) << 20
    }

    /// What the capture's command line says to have the wrapper run, and to tell it what to do.
    fn wrapper_words(&self) -> String {
        let copy = self.raw_copy.then(|| "wrap.copy=vmcore".to_owned());
        let mut words: Vec<_> = copy.into_iter().chain(self.wrap.iter().cloned()).collect();
        if !words.is_empty() {
            words.insert(0, "rdinit=/wrapper".into());
        }
        words.join(" ")
    }

    /// The production disk first, then what the scenario asks for.
    fn disks(&self, dir: &Path) -> Result<Vec<Disk>> {
        let content = dir.join("content");
        let size = if self.room.is_some() { SMALL_DISK } else { DISK_SIZE };
        let path = dir.join("disk.img");
        let again = path.exists();
        let disk =
            if again { Disk::existing(&path) } else { Disk::ext4(&path, size, "dump", DISK_UUID, &content)? };
        let mut disks = vec![disk];
        if again {
            ensure!(
                self.target.is_none() && !self.read_only_disk,
                "only extra disks are kept for a second run"
            );
        } else if let (Some(room), Some(disk)) = (self.room, disks.first()) {
            disk.leave(room)?;
        }
        if self.raw_copy {
            let memory = self.memory_mib.saturating_add(self.shape().hot_add_mib);
            let size = u64::from(memory).saturating_add(64) << 20;
            disks.push(Disk::raw(&dir.join("raw.vmcore"), size)?);
        }
        if let Some(format) = self.target {
            disks.push(format.make(&dir.join("target.img"))?);
        }
        if self.read_only_disk {
            let empty = tempfile::tempdir()?;
            let path = dir.join("read-only.img");
            disks.push(Disk::ext4(&path, DISK_SIZE, "sealed", READ_ONLY_UUID, empty.path())?.read_only());
        }
        for extra in &self.extra {
            disks.push(extra.disk(dir)?);
        }
        Ok(disks)
    }

    fn command_line(&self, seed: &str) -> String {
        // panic=10: a kernel with nothing to jump to reboots, which ends the guest, instead of
        // hanging.
        let mut line = format!(
            "console=ttyS0 crashkernel={} panic=10 prod.seed={seed} prod.host={HOST} {}",
            self.crashkernel,
            self.trigger.word(self.panic_cpu)
        );
        if self.pages > 0 {
            line.extend([" prod.pages=", &self.pages.to_string()]);
        }
        if self.third {
            line.push_str(" prod.first");
        }
        if let Some(reach) = &self.network.reach {
            line.extend([" prod.reach=", reach]);
        }
        if !self.run.is_empty() {
            line.push_str(" prod.run=");
            line.push_str(&self.run);
        }
        if self.shape.hot_add_mib > 0 {
            line.extend([" prod.hotadd=", &self.shape.hot_add_mib.to_string()]);
        }
        if self.late_mib > 0 {
            line.extend([" prod.late=", &self.late_mib.to_string()]);
        }
        if !self.plants.is_empty() {
            let names: Vec<_> = self.plants.iter().map(Plant::to_string).collect();
            line.push_str(" prod.plant=");
            line.push_str(&names.join(","));
        }
        if !self.append.is_empty() {
            line.push(' ');
            line.push_str(&self.append);
        }
        line
    }
}

/// How a guest went down.
struct Crash {
    /// The line that names its boot ID.
    boot_id: String,
    panic: Instant,
    ended: Ended,
}

/// What is on the disks of a guest that is gone.
struct Found {
    dumps: Vec<Dump>,
    report: Option<Report>,
    raw: Option<PathBuf>,
    extra: Vec<DiskLeft>,
}

/// Adds the memory that production waits for.
fn hot_add(vm: &mut Vm, mib: u32) -> Result<()> {
    if mib > 0 {
        vm.console.expect("production: ready for memory", BOOT)?;
        vm.hot_add(mib)?;
    }
    Ok(())
}

/// Cuts the disk that took the raw copy to the size the wrapper announced.
fn trim_raw(disk: &Disk, console: &[Line]) -> Result<PathBuf> {
    let announced = console.iter().find_map(|line| {
        let (_, rest) = line.text.split_once("wrapper: copied ")?;
        rest.split_whitespace().next()?.parse().ok()
    });
    let size: u64 = announced.context("the wrapper did not copy /proc/vmcore")?;
    let file = File::options().write(true).open(&disk.path).context("opening the raw copy")?;
    file.set_len(size).context("cutting the raw copy to size")?;
    Ok(disk.path.clone())
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

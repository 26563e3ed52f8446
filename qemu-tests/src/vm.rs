//! A QEMU process. Dropping it ends the guest.

use crate::accel::Accel;
use crate::command::command;
use crate::console::{Console, Line};
use crate::disk::Disk;
use crate::fault::{self, Action};
use crate::gdb;
use crate::network::Card;
use crate::qmp::Qmp;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How a machine differs from a plain one.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// MiB of memory of each NUMA node, together the machine's; none for a machine without nodes.
    pub nodes: Vec<u32>,
    /// MiB of memory that [`Vm::hot_add`] may add while it runs.
    pub hot_add_mib: u32,
    /// Features of the processor to add to the model or to take from it: `la57=off`.
    pub cpu: String,
    /// Whether there is a hardware watchdog, an Intel 6300ESB, which resets the machine.
    pub watchdog: bool,
    /// Whether it is started by EFI firmware (OVMF) instead of a BIOS; its variables are kept
    /// beside the console's log.
    pub efi: bool,
    /// Whether there is a virtio network card: at [`NETWORK_ANSWER_AT`] someone says
    /// [`NETWORK_ANSWER`], and nobody else can be reached.
    pub network: bool,
    /// Network cards to other machines: eth0, eth1, …
    pub cards: Vec<Card>,
    /// More arguments for QEMU.
    pub more: Vec<String>,
}

/// Whom the network card can reach.
pub const NETWORK_ANSWER_AT: &str = "10.0.2.100:7";
/// What a connection brings.
pub const NETWORK_ANSWER: &str = "the-network-works";

/// The firmware, and what its variables are at first: of the package ovmf.
const EFI_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const EFI_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// What to boot and on what.
#[derive(Clone, Debug)]
pub struct Machine {
    /// How guest code runs.
    pub accel: Accel,
    /// bzImage that QEMU boots.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub append: String,
    /// Size of its memory.
    pub memory_mib: u32,
    /// Number of its CPUs.
    pub cpus: u32,
    /// What else there is to it.
    pub shape: Shape,
    /// virtio-blk disks: /dev/vda, /dev/vdb, …
    pub disks: Vec<Disk>,
    /// Where the console is kept; QEMU's own messages go beside it.
    pub log: PathBuf,
}

impl Machine {
    /// Processors, memory, firmware, kernel.
    fn core(&self, qemu: &mut Command) -> Result<()> {
        qemu.args(["-machine", "q35", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
            .args(self.accel.arguments(&self.shape.cpu))
            .args(["-smp", &self.cpus.to_string()])
            .args(self.memory())
            .arg("-kernel")
            .arg(&self.kernel)
            .args(["-append", &self.append]);
        if let Some(initrd) = &self.initrd {
            qemu.arg("-initrd").arg(initrd);
        }
        if self.shape.efi {
            let variables = self.log.with_extension("efivars");
            fs::copy(EFI_VARIABLES, &variables).with_context(|| format!("copying {EFI_VARIABLES}"))?;
            qemu.args(["-drive", &format!("if=pflash,format=raw,readonly=on,file={EFI_CODE}")]);
            qemu.args(["-drive", &format!("if=pflash,format=raw,file={}", variables.display())]);
        }
        Ok(())
    }

    /// All devices but the disks.
    fn devices(&self, qemu: &mut Command) {
        if self.shape.network {
            let answer = format!("guestfwd=tcp:{NETWORK_ANSWER_AT}-cmd:echo {NETWORK_ANSWER}");
            qemu.args(["-netdev", &format!("user,id=net,restrict=on,{answer}")]);
            qemu.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        }
        for (number, card) in self.shape.cards.iter().enumerate() {
            qemu.args(card.arguments(number));
        }
        qemu.args(&self.shape.more);
        if self.shape.watchdog {
            qemu.args(["-device", "i6300esb,addr=0x1e", "-action", "watchdog=reset"]);
        }
        if self.shape.hot_add_mib > 0 {
            qemu.args(["-monitor", &format!("unix:{},server=on,wait=off", self.monitor().display())]);
        }
    }

    fn monitor(&self) -> PathBuf {
        self.log.with_extension("monitor")
    }

    /// The arguments that give it memory.
    fn memory(&self) -> Vec<String> {
        let mut size = format!("{}M", self.memory_mib);
        if self.shape.hot_add_mib > 0 {
            let limit = self.memory_mib.saturating_add(self.shape.hot_add_mib);
            size.extend([",slots=2,maxmem=", &limit.to_string(), "M"]);
        }
        let mut arguments = vec!["-m".to_owned(), size];
        for (node, mib) in self.shape.nodes.iter().enumerate() {
            arguments.extend(["-object".to_owned(), format!("memory-backend-ram,id=node{node},size={mib}M")]);
            // A processor in each, as far as there are any.
            let cpu = if u32::try_from(node).is_ok_and(|node| node < self.cpus) {
                format!(",cpus={node}")
            } else {
                String::new()
            };
            arguments.extend(["-numa".to_owned(), format!("node,nodeid={node},memdev=node{node}{cpu}")]);
        }
        arguments
    }
}

/// A running guest.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    /// What it says.
    pub console: Console,
    messages: PathBuf,
    log: PathBuf,
    monitor: PathBuf,
    qmp: Option<Qmp>,
}

/// What is left of a guest.
#[derive(Debug)]
pub struct Ended {
    /// When it ended.
    pub at: Instant,
    /// All lines of the console.
    pub console: Vec<Line>,
    /// QEMU's events.
    pub events: Vec<Value>,
}

/// Hands a disk to QEMU.
fn attach(qemu: &mut Command, index: usize, disk: &Disk) -> Result<()> {
    let Some(name) = &disk.name else {
        let read_only = if disk.read_only { ",readonly=on" } else { "" };
        // Flushes to the host's disk would only cost time: QEMU itself is not crashed.
        // A copy of mostly empty memory stays sparse.
        let drive = format!(
            "file={},format=raw,if=virtio,cache=unsafe,discard=unmap,detect-zeroes=unmap{read_only}",
            disk.path.display()
        );
        qemu.args(["-drive", &drive]);
        return Ok(());
    };
    // Behind the slots that QEMU gives to healthy disks, which so keep their names.
    let slot = index.saturating_add(0x10);
    let port = json!({
        "driver": "pcie-root-port", "id": format!("port-{name}"), "chassis": slot, "slot": slot,
        "addr": format!("{slot:#x}"),
    });
    // Errors go to the guest: QEMU would stop the machine when there is no space.
    let device = json!({
        "driver": "virtio-blk-pci", "id": format!("disk-{name}"), "bus": format!("port-{name}"),
        "drive": format!("node-{name}"), "werror": "report", "rerror": "report",
    });
    let rules = disk.path.with_extension("blkdebug");
    fs::write(&rules, fault::rules(&disk.faults)).with_context(|| format!("writing {}", rules.display()))?;
    let node = fault::blockdev(name, &disk.path, disk.read_only, &rules);
    qemu.args(["-object", &fault::throttle_group(name).to_string()])
        .args(["-blockdev", &node.to_string()])
        .args(["-device", &port.to_string(), "-device", &device.to_string()]);
    Ok(())
}

impl Vm {
    /// Starts the guest. It ends when it reboots or powers off; a kexec is neither.
    pub fn start(machine: &Machine) -> Result<Self> {
        let messages = machine.log.with_extension("qemu");
        let stderr = File::create(&messages).with_context(|| format!("making {}", messages.display()))?;
        // Not beside the log: the path of a socket has at most 107 bytes (unix(7)).
        let sockets = tempfile::tempdir().context("making a directory for sockets")?;
        let qmp = sockets.path().join("qmp");
        let mut qemu = command("qemu-system-x86_64");
        qemu.args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .stdout(Stdio::piped())
            .stderr(stderr);
        machine.core(&mut qemu)?;
        machine.devices(&mut qemu);
        for (index, disk) in machine.disks.iter().enumerate() {
            attach(&mut qemu, index, disk)?;
        }
        let monitor = machine.monitor();
        let mut child = qemu.spawn().context("starting qemu-system-x86_64")?;
        let serial = child.stdout.take().context("QEMU has no standard output")?;
        let console = Console::follow(serial, &machine.log)?;
        let mut vm = Self { child, console, messages, log: machine.log.clone(), monitor, qmp: None };
        // Dropped with `vm` when the connection fails.
        let connected = Qmp::connect(&qmp, || vm.child.try_wait().is_ok_and(|status| status.is_none()));
        vm.qmp = Some(connected.with_context(|| vm.complaints())?);
        Ok(vm)
    }

    /// Plugs a module of `mib` MiB of memory into the running machine.
    pub fn hot_add(&self, mib: u32) -> Result<()> {
        let mut monitor = UnixStream::connect(&self.monitor).context("connecting to the monitor")?;
        monitor.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut message = String::new();
        for request in [
            String::new(),
            format!("object_add memory-backend-ram,id=more,size={mib}M\n"),
            "device_add pc-dimm,id=dimm,memdev=more\n".into(),
        ] {
            monitor.write_all(request.as_bytes()).context("writing to the monitor")?;
            let answered = message.matches("(qemu)").count();
            while message.matches("(qemu)").count() == answered {
                let mut piece = [0; 512];
                let size =
                    monitor.read(&mut piece).with_context(|| format!("the monitor said {message:?}"))?;
                ensure!(size > 0, "the monitor hung up: {message:?}");
                message.push_str(&String::from_utf8_lossy(piece.get(..size).unwrap_or_default()));
            }
        }
        ensure!(!message.contains("Error"), "the monitor said {message:?}");
        Ok(())
    }

    /// Unplugs the cable of a card, and plugs it in again: the guest sees its carrier go and come.
    pub fn set_link(&mut self, card: usize, up: bool) -> Result<()> {
        let qmp = self.qmp.as_mut().context("there is no connection to QEMU")?;
        qmp.execute("set_link", &json!({ "name": Card::cable_id(card), "up": up })).map(drop)
    }

    /// Does something to a disk with faults, a cable, or the peer.
    pub fn act(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::LinkDown { card, lasting } => {
                self.set_link(*card, false)?;
                let Some(lasting) = lasting else { return Ok(()) };
                sleep(*lasting);
                return self.set_link(*card, true);
            }
            Action::Peer(control, script) => return control.run(script).map(drop),
            Action::Pause(duration) => {
                sleep(*duration);
                return Ok(());
            }
            Action::Stall(_) | Action::Unplug(_) | Action::Damage(_) | Action::Nmi | Action::MachineCheck => {
            }
        }
        let qmp = self.qmp.as_mut().context("there is no connection to QEMU")?;
        let limits = |name: &str| {
            let (path, value) = (format!("/objects/group-{name}"), fault::limits());
            json!({ "path": path, "property": "limits", "value": value })
        };
        match action {
            Action::Stall(name) => qmp.execute("qom-set", &limits(name)),
            Action::Nmi => qmp.execute("inject-nmi", &json!({})),
            Action::Unplug(name) => qmp.execute("device_del", &json!({ "id": format!("disk-{name}") })),
            Action::Damage(offset) => {
                let sockets = tempfile::tempdir().context("making a directory for a socket")?;
                let socket = sockets.path().join("gdb");
                let server = format!("gdbserver unix:{},server=on,wait=off", socket.display());
                qmp.execute("human-monitor-command", &json!({ "command-line": server }))?;
                let address = reservation(&self.log)?.saturating_add(*offset);
                return gdb::write_physical(&socket, address, &[0x5a]);
            }
            Action::MachineCheck => {
                // Of CPU 0, bank 1: VAL, UC, EN, PCC, an error of the memory hierarchy; RIPV and MCIP.
                let check = "mce 0 1 0xb200000000000134 5 0 0";
                let answer = qmp.execute("human-monitor-command", &json!({ "command-line": check }))?;
                ensure!(answer.as_str().is_some_and(str::is_empty), "{check}: {answer}");
                return Ok(());
            }
            Action::LinkDown { .. } | Action::Peer(..) | Action::Pause(_) => return Ok(()),
        }?;
        Ok(())
    }

    /// Waits until the guest has rebooted or powered off.
    pub fn wait_exit(mut self, timeout: Duration) -> Result<Ended> {
        let at = self.console.wait_end(timeout)?;
        let status =
            self.reap(Duration::from_secs(10))?.context("QEMU closed its console but does not exit")?;
        ensure!(status.success(), "QEMU: {status}\n{}", self.complaints());
        let events = self.qmp.take().map(Qmp::all_events).unwrap_or_default();
        Ok(Ended { at, console: self.console.take_lines(), events })
    }

    /// Ends the guest at once, whatever it has not written yet; gives all lines of the console.
    #[must_use]
    pub fn cut_power(mut self) -> Vec<Line> {
        let lines = self.console.take_lines();
        drop(self);
        lines
    }

    /// What QEMU said to its user.
    fn complaints(&self) -> String {
        fs::read_to_string(&self.messages).unwrap_or_default()
    }

    /// Not a plain wait: a process stuck in the KVM driver survives even SIGKILL.
    fn reap(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let started = Instant::now();
        loop {
            let status = self.child.try_wait().context("waiting for QEMU")?;
            if status.is_some() || started.elapsed() > timeout {
                return Ok(status);
            }
            sleep(Duration::from_millis(20));
        }
    }
}

/// Where the memory reserved for a capture kernel begins, by what the kernel says of it when it
/// boots.
fn reservation(log: &Path) -> Result<u64> {
    let message = fs::read_to_string(log).context("reading the console")?;
    // "Reserving 160MB of memory at 1376MB for crashkernel" (arch/x86/kernel/setup.c, to 6.8)
    let line = message.lines().find_map(|line| line.split_once("MB of memory at "));
    let (_, rest) = line.context("the kernel reserved no memory, or says so in other words")?;
    let (mib, _) = rest.split_once("MB for crashkernel").context("a reservation without an address")?;
    Ok(mib.parse::<u64>().context("the address of the reservation")? << 20)
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail only when QEMU is gone already, which is what they are for.
        let _ = self.child.kill();
        let _ = self.reap(Duration::from_secs(5));
    }
}

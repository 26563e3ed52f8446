//! A QEMU process. Dropping it ends the guest.

use crate::accel::Accel;
use crate::command::command;
use crate::console::{Console, Line};
use crate::disk::Disk;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

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
    /// virtio-blk disks: /dev/vda, /dev/vdb, …
    pub disks: Vec<Disk>,
    /// Where the console is kept; QEMU's own messages go beside it.
    pub log: PathBuf,
}

/// A running guest.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    /// What it says.
    pub console: Console,
    messages: PathBuf,
}

impl Vm {
    /// Starts the guest. It ends when it reboots or powers off; a kexec is neither.
    pub fn start(machine: &Machine) -> Result<Self> {
        let messages = machine.log.with_extension("qemu");
        let stderr = File::create(&messages).with_context(|| format!("making {}", messages.display()))?;
        let mut qemu = command("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
            .args(machine.accel.arguments())
            .args(["-smp", &machine.cpus.to_string(), "-m", &machine.memory_mib.to_string()])
            .arg("-kernel")
            .arg(&machine.kernel)
            .args(["-append", &machine.append])
            .stdout(Stdio::piped())
            .stderr(stderr);
        if let Some(initrd) = &machine.initrd {
            qemu.arg("-initrd").arg(initrd);
        }
        for disk in &machine.disks {
            let read_only = if disk.read_only { ",readonly=on" } else { "" };
            // Flushes to the host's disk would only cost time: QEMU itself is not crashed.
            let drive = format!("file={},format=raw,if=virtio,cache=unsafe{read_only}", disk.path.display());
            qemu.args(["-drive", &drive]);
        }
        let mut child = qemu.spawn().context("starting qemu-system-x86_64")?;
        let serial = child.stdout.take().context("QEMU has no standard output")?;
        let console = Console::follow(serial, &machine.log)?;
        Ok(Self { child, console, messages })
    }

    /// Waits until the guest has rebooted or powered off; gives the time of it and all lines of the console.
    pub fn wait_exit(mut self, timeout: Duration) -> Result<(Instant, Vec<Line>)> {
        let end = self.console.wait_end(timeout)?;
        let status =
            self.reap(Duration::from_secs(10))?.context("QEMU closed its console but does not exit")?;
        let messages = fs::read_to_string(&self.messages).unwrap_or_default();
        ensure!(status.success(), "QEMU: {status}\n{messages}");
        Ok((end, self.console.take_lines()))
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

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail only when QEMU is gone already, which is what they are for.
        let _ = self.child.kill();
        let _ = self.reap(Duration::from_secs(5));
    }
}

//! LUKS on LVM on two disks: made, changed behind the loader's back, and read again after a crash.

use crate::early::{self, DISK, mount_at, wait_for};
use crate::say::say;
use anyhow::{Context, Result, bail, ensure};
use nix::mount::umount;
use nix::unistd::sync;
use qemu_tests::stack::{COPY, FS_UUID, KEY_FILE, pass_phrase, volume_key};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

const DISKS: [&str; 2] = ["/dev/vdb", "/dev/vdc"];
const VOLUME: &str = "/dev/mapper/vg-crash";
const OPEN: &str = "/dev/mapper/opened";
const MOUNTED: &str = "/opened";
/// No udev, no list of devices.
const LVM: &str = "activation{udev_sync=0 udev_rules=0 verify_udev_operations=1} devices{use_devicesfile=0} \
                   backup{backup=0 archive=0}";

/// Makes the volume and mounts what is in it.
pub(crate) fn make(seed: &str) -> Result<()> {
    prepare(seed)?;
    fs::write("/tmp/volume-key", volume_key(seed)).context("writing the volume key")?;
    let [first, second] = DISKS;
    lvm(&["vgcreate", "vg", first, second])?;
    // More than one of the disks has.
    lvm(&["lvcreate", "-y", "-Wn", "-n", "crash", "-L", "900M", "vg"])?;
    let format = [
        "luksFormat",
        "--batch-mode",
        "--type",
        "luks2",
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "1000",
    ];
    let keys = ["--volume-key-file", "/tmp/volume-key", "--key-file", KEY_FILE, VOLUME];
    run("/usr/sbin/cryptsetup", &[&format[..], &keys[..]].concat())?;
    open()?;
    run("/usr/sbin/mke2fs", &["-q", "-F", "-t", "ext4", "-U", FS_UUID, OPEN])?;
    mount_at(OPEN, MOUNTED, "ext4")?;
    fs::remove_file("/tmp/volume-key").context("removing the volume key")?;
    say("production: volume made");
    Ok(())
}

/// Changes the volume, which leaves the loaded image out of date; then nothing is written any more
/// for a while.
pub(crate) fn change() -> Result<()> {
    lvm(&["lvextend", "-L", "+100M", "vg/crash"])?;
    umount(MOUNTED).context("unmounting the volume")?;
    sync();
    say("production: volume changed");
    sleep(Duration::from_secs(12));
    Ok(())
}

/// Copies what is in the volume to the production disk.
pub(crate) fn read(seed: &str) -> Result<()> {
    prepare(seed)?;
    lvm(&["vgchange", "-ay", "vg"])?;
    lvm(&["vgmknodes"])?;
    open()?;
    mount_at(OPEN, MOUNTED, "ext4")?;
    early::copy(Path::new(MOUNTED), &Path::new(DISK).join(COPY))?;
    umount(MOUNTED).context("unmounting the volume")?;
    say("production: volume read");
    Ok(())
}

fn prepare(seed: &str) -> Result<()> {
    early::modules("/modules/stack")?;
    for directory in ["/run/lvm", "/run/lock/lvm", "/run/cryptsetup", "/etc", MOUNTED] {
        fs::create_dir_all(directory).with_context(|| format!("making {directory}"))?;
    }
    for disk in DISKS {
        wait_for(Path::new(disk))?;
    }
    fs::write(KEY_FILE, pass_phrase(seed)).context("writing the pass phrase")
}

fn open() -> Result<()> {
    wait_for(Path::new(VOLUME))?;
    run("/usr/sbin/cryptsetup", &["open", "--key-file", KEY_FILE, VOLUME, "opened"])?;
    wait_for(Path::new(OPEN))
}

fn lvm(arguments: &[&str]) -> Result<()> {
    let Some((command, rest)) = arguments.split_first() else { bail!("no command") };
    run("/usr/sbin/lvm", &[&[*command, "--config", LVM], rest].concat())
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("starting {program}"))?;
    let message = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{program} {arguments:?}: {}: {message}", output.status);
    Ok(())
}

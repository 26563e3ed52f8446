//! The place that the host calls by that name: subvolumes, links, copies of a disk, names of udev; and what
//! a file system needs beside one device and one module.

use crate::{ensure_back, ensure_complete, only, scenario};
use anyhow::{Context, Result, ensure};
use qemu_tests::command::{Run, command};
use qemu_tests::extra_disk::{Content, ExtraDisk};
use qemu_tests::outcome::{Dump, Outcome};
use qemu_tests::scenario::{Scenario, Target};
use std::fs;
use std::path::PathBuf;

/// Everything that mke2fs of Debian 13 can switch on and that goes together.
pub(crate) const ALL_FEATURES: [&str; 6] = [
    "-O",
    "quota,project,casefold,encrypt,verity,metadata_csum_seed,orphan_file,bigalloc,inline_data,large_dir,\
     ea_inode,stable_inodes,fast_commit,flex_bg,64bit",
    "-E",
    "quotatype=usrquota:grpquota:prjquota,encoding=utf8",
    "-I",
    "512",
];
const UUID: &str = "5a17c0de-0000-4000-8000-0000000000c0";
/// A btrfs that is mounted by its subvolume `root`, as Fedora has it: below it is the host's /var.
const FEDORA: [&str; 3] = [
    "wait /dev/vdc",
    "mount /dev/vdb /fed btrfs subvol=root,device=/dev/vdb,device=/dev/vdc",
    "link /fed/var /var",
];

/// A crash that is saved to a target on these disks, which production has mounted like this.
fn on(name: &str, disks: Vec<ExtraDisk>, layout: &[&str], targets: Vec<Target>) -> Result<Scenario> {
    let mut scenario = scenario(name)?;
    scenario.extra = disks;
    scenario.layout = layout.iter().map(|&step| step.to_owned()).collect();
    scenario.config.targets = targets;
    Ok(scenario)
}

/// Runs it; the machine comes back, and nothing is on the production disk.
fn run(scenario: &Scenario) -> Result<Outcome> {
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    ensure!(outcome.dumps.is_empty(), "a dump on a disk that is no target: {:?}", outcome.dumps);
    Ok(outcome)
}

/// The dump in a directory of the host.
fn seen(scenario: &Scenario, outcome: &Outcome, layout: &[&str], directory: &str) -> Result<Dump> {
    let dumps = scenario.read_in_guest(outcome, layout, directory)?;
    let dump = only(&dumps).with_context(|| format!("in {directory}\n{}", outcome.text()))?;
    ensure_complete(dump)?;
    Ok(dump.clone())
}

/// What went wrong and did not stop the capture, as text.
fn degradations(dump: &Dump) -> Result<String> {
    Ok(dump.result()?.get("degradations").context("no degradations")?.to_string())
}

/// On two devices, in Fedora's layout, and the directory is a link of the host into another subvolume.
#[test]
fn a_btrfs_on_two_devices_in_fedoras_layout_shows_the_dump_where_the_host_looks() -> Result<()> {
    btrfs_on_two_devices("btrfs-two", &["-d", "raid0", "-m", "raid1", "--csum", "xxhash"])
}

#[test]
#[ignore = "full: the other kinds of checksums and profiles"]
fn a_btrfs_with_any_checksum_and_profile_takes_the_dump() -> Result<()> {
    for (csum, data) in [("crc32c", "single"), ("sha256", "raid1"), ("blake2", "raid0")] {
        btrfs_on_two_devices(&format!("btrfs-{csum}"), &["-d", data, "-m", "raid1", "--csum", csum])?;
    }
    Ok(())
}

fn btrfs_on_two_devices(name: &str, mkfs: &[&str]) -> Result<()> {
    let disks = ["b", "c"].map(|name| ExtraDisk::of(name, 512, Content::Empty));
    let target = Target::filesystem(&format!("UUID={UUID}")).key("fstype", "btrfs");
    let make = format!("run /usr/sbin/mkfs.btrfs -q -f -U {UUID} {} /dev/vdb /dev/vdc", mkfs.join(" "));
    let mut layout = vec!["wait /dev/vdb", "wait /dev/vdc", &make];
    layout.extend([
        "mount /dev/vdb /all btrfs subvolid=5,device=/dev/vdb,device=/dev/vdc",
        "run /usr/bin/btrfs subvolume create /all/root",
        "run /usr/bin/btrfs subvolume create /all/home",
        "mkdir /all/root/var",
        "mkdir /all/home/dumps",
        "link /home/dumps /all/root/var/crash",
        "umount /all",
    ]);
    layout.extend(FEDORA);
    let home = "mount /dev/vdb /home btrfs subvol=home,device=/dev/vdb,device=/dev/vdc";
    layout.push(home);
    let scenario = on(name, disks.into(), &layout, vec![target])?;
    let outcome = run(&scenario)?;
    let again = [&FEDORA[..], &[home]].concat();
    let dump = seen(&scenario, &outcome, &again, "/var/crash/")?;
    ensure!(degradations(&dump)? == "[]", "{}", degradations(&dump)?);
    outcome.discard()
}

#[test]
#[ignore = "full: one device, the subvolume by its key"]
fn the_key_subvolume_names_one_that_is_not_mounted() -> Result<()> {
    let disks = vec![ExtraDisk::of("b", 512, Content::Filesystem("btrfs"))];
    let target = disks[0].target().key("subvolume", "/crash").key("path", "/dumps");
    let layout = [
        "mount /dev/vdb /all btrfs subvolid=5",
        "run /usr/bin/btrfs subvolume create /all/crash",
        "umount /all",
    ];
    let scenario = on("btrfs-key", disks, &layout, vec![target])?;
    let outcome = run(&scenario)?;
    seen(&scenario, &outcome, &["mount /dev/vdb /x btrfs subvol=crash"], "/x/dumps")?;
    outcome.discard()
}

#[test]
#[ignore = "full: a link that leads out of the file system"]
fn a_link_out_of_the_file_system_loses_no_dump() -> Result<()> {
    let disks = vec![ExtraDisk::ext4("b", 512), ExtraDisk::ext4("c", 512)];
    let target = disks[0].target();
    let mounts = ["mount /dev/vdb /b ext4 rw", "mount /dev/vdc /c ext4 rw"];
    let layout = [&mounts[..], &["mkdir /c/dumps", "link /c/dumps /b/var/crash"]].concat();
    let scenario = on("link-out", disks, &layout, vec![target])?;
    let outcome = run(&scenario)?;
    // At the top of the file system, where the host has it mounted and nothing hides it.
    let dumps = scenario.read_in_guest(&outcome, &mounts, "/b")?;
    let dumps: Vec<Dump> = dumps.into_iter().filter(|dump| dump.file("vmcore").exists()).collect();
    let dump = only(&dumps)?;
    ensure_complete(dump)?;
    ensure!(
        degradations(dump)?.contains("leads to /c/dumps, out of the file system"),
        "{}",
        degradations(dump)?
    );
    outcome.discard()
}

#[test]
#[ignore = "full: a copy of the disk"]
fn of_a_disk_and_its_clone_the_mounted_one_takes_the_dump() -> Result<()> {
    let disks = ["b", "c"].map(|name| ExtraDisk::ext4(name, 512).made_with(&["-U", UUID]));
    let target = Target::filesystem(&format!("UUID={UUID}")).key("fstype", "ext4");
    let scenario = on("clone", disks.into(), &["mount /dev/vdc /c ext4 rw"], vec![target])?;
    let outcome = run(&scenario)?;
    ensure!(outcome.disk("b")?.dumps.is_empty(), "the clone took the dump");
    let dump = only(&outcome.disk("c")?.dumps)?;
    ensure_complete(dump)?;
    ensure!(degradations(dump)?.contains("the one that was recorded is taken"), "{}", degradations(dump)?);
    outcome.discard()
}

#[test]
#[ignore = "full: names of udev"]
fn a_link_of_udev_leads_to_the_disk_also_in_the_capture() -> Result<()> {
    let disks = vec![ExtraDisk::ext4("b", 512)];
    let target = Target::filesystem("/dev/disk/by-id/virtio-b").key("fstype", "ext4");
    let layout = ["wait /dev/vdb", "link /dev/vdb /dev/disk/by-id/virtio-b"];
    let outcome = run(&on("by-id", disks, &layout, vec![target])?)?;
    ensure_complete(only(&outcome.disk("b")?.dumps)?)?;
    outcome.discard()
}

#[test]
#[ignore = "full: a logical partition of an MBR"]
fn a_logical_partition_is_found_by_its_partuuid() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("disk");
    fs::File::create(&image)?.set_len(640 << 20)?;
    let start: u64 = 40960; // of the second logical one
    let table = format!(
        "label: dos\nlabel-id: 0x5a17c0de\n1 : start=2048, size=16384, type=83\n2 : start=20480, size=1228800, \
         type=5\n5 : start=22528, size=16384, type=83\n6 : start={start}, size=1024000, type=83\n"
    );
    let script = dir.path().join("table");
    fs::write(&script, table)?;
    command("sfdisk").arg("-q").arg(&image).stdin(fs::File::open(&script)?).run()?;
    let offset = format!("offset={}", start.saturating_mul(512));
    command("mke2fs").args(["-q", "-F", "-t", "ext4", "-E", &offset]).arg(&image).arg("500M").run()?;
    let disks = vec![ExtraDisk::of("b", 640, Content::Image(PathBuf::from(&image)))];
    let target = Target::filesystem("PARTUUID=5a17c0de-06").key("fstype", "ext4");
    let scenario = on("logical", disks, &["wait /dev/vdb"], vec![target])?;
    let outcome = run(&scenario)?;
    seen(&scenario, &outcome, &["mount /dev/vdb6 /b ext4 rw"], "/b/var/crash")?;
    outcome.discard()
}

#[test]
#[ignore = "full: a journal on another disk"]
fn an_ext4_with_its_journal_on_another_disk_takes_the_dump() -> Result<()> {
    // Numbers of devices change, and mke2fs can only write down those of this machine.
    let disks = vec![ExtraDisk::of("b", 64, Content::Empty), ExtraDisk::of("c", 512, Content::Empty)];
    let target = Target::filesystem(&format!("UUID={UUID}")).key("fstype", "ext4");
    let mke2fs = "run /usr/sbin/mke2fs -q -F -b 4096";
    let (journal, data) = (
        format!("{mke2fs} -O journal_dev /dev/vdb"),
        format!("{mke2fs} -t ext4 -U {UUID} -J device=/dev/vdb /dev/vdc"),
    );
    let layout = ["wait /dev/vdb", "wait /dev/vdc", &journal, &data, "mkdir /etc"];
    let scenario = on("journal", disks, &layout, vec![target])?;
    let outcome = run(&scenario)?;
    seen(&scenario, &outcome, &["wait /dev/vdb", "mount /dev/vdc /c ext4 rw"], "/c/var/crash")?;
    outcome.discard()
}

#[test]
#[ignore = "full: each feature of ext4 alone"]
fn an_ext4_with_each_feature_takes_the_dump() -> Result<()> {
    let matrix: [(&str, &[&str]); 8] = [
        ("quota", &["-O", "quota"]),
        ("project", &["-O", "quota,project", "-E", "quotatype=usrquota:grpquota:prjquota"]),
        ("casefold", &["-O", "casefold", "-E", "encoding=utf8"]),
        ("bigalloc", &["-O", "bigalloc", "-C", "65536"]),
        ("inline", &["-O", "inline_data,ea_inode,large_dir"]),
        ("crypt", &["-O", "encrypt,verity,stable_inodes"]),
        ("old", &["-O", "^has_journal,^extent,^64bit,^metadata_csum"]),
        ("mmp", &["-O", "mmp", "-E", "mmp_update_interval=1"]),
    ];
    for (name, arguments) in matrix {
        let disks = vec![ExtraDisk::ext4("b", 512).made_with(arguments)];
        let targets = vec![disks[0].target()];
        let outcome = run(&on(&format!("ext4-{name}"), disks, &[], targets)?)?;
        let disk = outcome.disk("b")?;
        ensure!(disk.complaint.is_none(), "{name}: {:?}", disk.complaint);
        ensure_complete(only(&disk.dumps)?).with_context(|| name.to_owned())?;
        outcome.discard()?;
    }
    Ok(())
}

use super::*;
use std::os::unix::fs::symlink;
use storage::format::superblock::FileSystem;

const RELEASE: &str = "6.1.0-18-amd64";
const ONE_DISK: &str = "27 1 254:1 / / rw - ext4 /dev/vda1 rw\n";
const BOOT_APART: &str =
    "27 1 0:25 /@ / rw - btrfs /dev/vda3 rw\n48 27 254:2 / /boot rw - ext4 /dev/vda2 rw\n";

/// A host with these files; a kernel is one of `release`.
struct Made {
    dir: tempfile::TempDir,
    host: Host,
}

fn made(mounts: &str, cmdline: &str, files: &[(&str, &str)]) -> Made {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let at = dir.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        let kernel = text.strip_prefix("kernel ").map(kernel);
        fs::write(at, kernel.unwrap_or_else(|| text.as_bytes().to_vec())).unwrap();
    }
    let host = Host {
        root: dir.path().to_owned(),
        release: RELEASE.into(),
        cmdline: cmdline.into(),
        mounts: Mounts::parse(mounts),
        has_initrd: true,
    };
    Made { dir, host }
}

/// A kernel of nothing but a header.
fn kernel(release: &str) -> Vec<u8> {
    let mut image = vec![0; 0x810];
    image[0x1f1] = 3;
    image[0x1f4] = 1;
    image[0x201] = 0x6a;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x20e..0x210].copy_from_slice(&[0x00, 0x01]);
    image[0x232] = 0x20;
    image[0x236] = 3;
    image[0x262] = 0x40;
    image[0x300..0x300 + release.len()].copy_from_slice(release.as_bytes());
    image
}

#[expect(clippy::unnecessary_wraps, reason = "as the real one, which can fail")]
fn identify(mount: &Mount, _: &Path) -> Result<Device, BootError> {
    let kind = if mount.fstype == "btrfs" { FsType::Btrfs } else { FsType::Ext4 };
    let uuid = mount.source.trim_start_matches("/dev/").to_owned();
    Ok(Device {
        node: mount.source.clone().into(),
        filesystem: Some(FileSystem { kind, label: String::new(), uuid }),
        answers: true,
        ..Device::default()
    })
}

fn found(made: &Made, config: &str) -> Result<Boot, BootError> {
    boot_of(&Config::parse(config).unwrap(), &made.host, &identify)
}

fn boot(device: &str, kernel: &str, initrd: &str, cmdline: &str) -> Boot {
    Boot {
        device: DeviceId::Uuid(device.into()),
        fstype: FsType::Ext4,
        kernel: kernel.into(),
        initrd: vec![initrd.into()],
        cmdline: cmdline.into(),
    }
}

#[test]
fn the_running_kernel_is_found_where_it_was_booted_from() {
    let debian = [
        ("/boot/vmlinuz-6.1.0-18-amd64", "kernel 6.1.0-18-amd64"),
        ("/boot/initrd.img-6.1.0-18-amd64", "initrd"),
    ];
    let cmdline = "BOOT_IMAGE=/boot/vmlinuz-6.1.0-18-amd64 root=UUID=1 ro quiet";
    let at = |dir: &str| {
        let name = |file: &str| format!("{dir}{file}");
        boot(
            if dir.is_empty() { "vda2" } else { "vda1" },
            &name("/vmlinuz-6.1.0-18-amd64"),
            &name("/initrd.img-6.1.0-18-amd64"),
            "root=UUID=1 ro quiet",
        )
    };
    assert_eq!(found(&made(ONE_DISK, cmdline, &debian), "").unwrap(), at("/boot"));
    let apart = "BOOT_IMAGE=(hd0,gpt2)/vmlinuz-6.1.0-18-amd64 root=UUID=1 ro quiet";
    assert_eq!(found(&made(BOOT_APART, apart, &debian), "").unwrap(), at(""));
    assert_eq!(found(&made(BOOT_APART, "root=UUID=1 ro quiet", &debian), "").unwrap(), at(""));
}

#[test]
fn a_name_that_says_no_release_is_looked_into() {
    let arch = [("/boot/vmlinuz-linux", "kernel 6.1.0-18-amd64"), ("/boot/initramfs-linux.img", "initrd")];
    let host = made(ONE_DISK, "initrd=\\initramfs-linux.img BOOT_IMAGE=/boot/vmlinuz-linux rw", &arch);
    let expected = boot("vda1", "/boot/vmlinuz-linux", "/boot/initramfs-linux.img", "rw");
    assert_eq!(found(&host, "").unwrap(), expected);
    fs::write(host.dir.path().join("boot/vmlinuz-linux"), kernel("6.9.0-arch1")).unwrap();
    assert!(matches!(found(&host, ""), Err(BootError::NoRunning(_))), "an update has replaced it");
}

#[test]
fn the_configuration_comes_first() {
    let files = [("/srv/k", "kernel 7.0.0"), ("/srv/i", "initrd"), ("/boot/other", "initrd")];
    let host = made(BOOT_APART, "root=/dev/vda3 quiet", &files);
    symlink("srv/k", host.dir.path().join("vmlinuz")).unwrap();
    let config =
        |initrd: &str| format!("[boot]\nkernel = \"/vmlinuz\"\ninitrd = \"{initrd}\"\ncmdline = \"x y\"\n");
    let expected = Boot { fstype: FsType::Btrfs, ..boot("vda3", "/@/srv/k", "/@/srv/i", "x y") };
    assert_eq!(found(&host, &config("/srv/i")).unwrap(), expected, "links are followed");
    assert!(matches!(found(&host, &config("/boot/other")), Err(BootError::TwoPlaces { .. })));
    assert!(matches!(found(&host, &config("/none")), Err(BootError::Read { .. })));
    let not = found(&host, "[boot]\nkernel = \"/srv/i\"");
    assert!(matches!(not, Err(BootError::Kernel { .. })), "{not:?}");
    assert!(matches!(found(&host, "[boot]\ndevice = \"LABEL=x\""), Err(BootError::NoPathOnDevice)));
}

#[test]
fn the_default_entry_of_each_boot_loader_is_found() {
    let kernels = [
        ("/boot/vmlinuz-6.8.5", "kernel 6.8.5"),
        ("/boot/initramfs-6.8.5.img", "initrd"),
        ("/boot/vmlinuz-6.9.1", "kernel 6.9.1"),
        ("/boot/initramfs-6.9.1.img", "initrd"),
    ];
    let default = "[boot]\nkernel = \"default\"\n";
    let entry = |version: &str| {
        format!(
            "version {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img\noptions root=x \
             ro\n"
        )
    };
    let (old, new) = (entry("6.8.5"), entry("6.9.1"));
    let mut files = kernels.to_vec();
    files.extend([
        ("/boot/loader/entries/m-6.8.5.conf", old.as_str()),
        ("/boot/loader/entries/m-6.9.1.conf", &new),
    ]);
    let newest = boot("vda2", "/vmlinuz-6.9.1", "/initramfs-6.9.1.img", "root=x ro");
    assert_eq!(found(&made(BOOT_APART, "", &files), default).unwrap(), newest);
    let saved = boot("vda2", "/vmlinuz-6.8.5", "/initramfs-6.8.5.img", "root=x ro");
    let block = "# GRUB Environment Block\nsaved_entry=m-6.8.5\n####";
    files.push(("/boot/efi/EFI/fedora/grubenv", block));
    assert_eq!(found(&made(BOOT_APART, "", &files), default).unwrap(), saved);

    let config = "menuentry 'a' {\n linux /vmlinuz-6.9.1 root=x ro\n initrd /initramfs-6.9.1.img\n}\n";
    let mut files = kernels.to_vec();
    files.push(("/boot/grub/grub.cfg", config));
    let grub = made(BOOT_APART, "", &files);
    assert_eq!(found(&grub, default).unwrap(), newest);
    fs::remove_file(grub.dir.path().join("boot/initramfs-6.9.1.img")).unwrap();
    assert!(
        matches!(found(&grub, default), Err(BootError::Missing(path)) if path.contains("initramfs-6.9.1"))
    );
    assert!(matches!(found(&made(BOOT_APART, "", &kernels), default), Err(BootError::NoEntry)));
}

#[test]
fn what_was_booted_with_an_initrd_is_not_booted_without() {
    let mut host = made(ONE_DISK, "quiet", &[("/boot/vmlinuz-6.1.0-18-amd64", "kernel 6.1.0-18-amd64")]);
    assert!(matches!(found(&host, ""), Err(BootError::NoInitrd(_))));
    host.host.has_initrd = false;
    assert_eq!(found(&host, "").unwrap().initrd, [""; 0]);
}

#[test]
fn the_root_is_what_is_mounted_there() {
    let root = |mounts: &str| root_of(&Config::default(), &made(mounts, "", &[]).host, &identify);
    let expected = Root { device: DeviceId::Uuid("vda1".into()), fstype: FsType::Ext4, subvolume: None };
    assert_eq!(root(ONE_DISK).unwrap(), expected);
    assert_eq!(root(BOOT_APART).unwrap().subvolume.as_deref(), Some("/@"));
    assert!(matches!(root("1 0 8:1 /deep / rw - ext4 /dev/a rw\n"), Err(BootError::BoundRoot(_))));
    assert!(root("").is_err());
}

#[test]
fn what_is_on_no_disk_cannot_be_found_again() {
    let mounts = Mounts::parse("1 0 0:1 / / rw - overlay overlay rw\n");
    let error = on_disk(&mounts.0[0], Path::new("/boot/vmlinuz")).unwrap_err();
    assert!(matches!(error, BootError::NoDisk { fstype, .. } if fstype == "overlay"));
}

#[test]
fn only_what_an_action_needs_is_looked_for() {
    let found = |text: &str| {
        let next = Next::find(&Config::parse(&format!("[finish]\n{text}")).unwrap());
        (next.boot.is_some(), next.root.is_some())
    };
    assert_eq!(found(""), (false, false));
    assert_eq!(found("planned.success = \"kexec\""), (true, false));
    assert_eq!(found("failure = \"shell\""), (false, true));
}

#[test]
fn a_device_that_serves_both_is_one() {
    let boot = boot("a", "/k", "/i", "");
    let root =
        |device: &str| Root { device: DeviceId::Uuid(device.into()), fstype: FsType::Ext4, subvolume: None };
    let next = |device| Next { boot: Some(Ok(boot.clone())), root: Some(Ok(root(device))) }.devices().len();
    assert_eq!((next("a"), next("b")), (1, 2));
    assert_eq!(Next { boot: Some(Err("x".into())), root: None }.devices().len(), 0);
}

#[test]
fn a_guard_goes_on_through_the_jump() {
    let parameters = |text: &str| capture_parameters(&Config::parse(&format!("[finish]\n{text}")).unwrap());
    assert_eq!(parameters("planned.success = \"kexec\""), "watchdog.stop_on_reboot=0");
    assert_eq!(parameters("planned.success = \"kexec\"\nguard = 0"), "");
    assert_eq!(parameters(""), "", "a reboot through the firmware needs none");
}

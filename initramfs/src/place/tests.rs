//! Layouts of hosts, and where a directory is in them.

use super::*;
use std::os::unix::fs::symlink;

const PLAIN: &str = "\
27 1 254:1 / / rw - ext4 /dev/a rw\n\
28 27 254:2 / /data rw - ext4 /dev/b rw\n\
29 27 254:3 / /srv/dumps rw - xfs /dev/c rw\n";
/// Fedora, and Debian's or openSUSE's with a subvolume of its own for /var.
const FEDORA: &str = "\
27 1 0:25 /root / rw - btrfs /dev/a rw,subvol=/root\n\
28 27 0:25 /home /home rw - btrfs /dev/a rw,subvol=/home\n\
29 27 254:2 / /boot rw - ext4 /dev/b rw\n";
const SUSE: &str = "\
27 1 0:25 /@/.snapshots/1/snapshot / rw - btrfs /dev/a rw\n\
28 27 0:25 /@/var /var rw - btrfs /dev/a rw\n";

/// Where `keys` lead if the device is `device` and these links are on the host.
fn find(mountinfo: &str, device: &str, keys: &str, links: &[(&str, &str)]) -> Option<Seen> {
    let dir = tempfile::tempdir().unwrap();
    for (link, to) in links {
        let at = dir.path().join(link.trim_start_matches('/'));
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(to, at).unwrap();
    }
    let config = format!("[[target]]\ntype = \"filesystem\"\ndevice = \"{device}\"\n{keys}");
    let config = Config::parse(&config).unwrap();
    let Place::Filesystem(wanted) = &config.target[0].place else { panic!() };
    let mounts = Mounts::parse(mountinfo);
    let is_own = |mount: &Mount| mount.source == device;
    let is_btrfs = mountinfo.contains("btrfs");
    let search = Search { wanted, target: "t", mounts: &mounts, is_btrfs, root: dir.path(), is_own: &is_own };
    search.seen()
}

/// Directory in the file system, and on the host.
fn place(mountinfo: &str, device: &str, keys: &str, links: &[(&str, &str)]) -> (String, String) {
    let seen = find(mountinfo, device, keys, links).unwrap();
    assert_eq!((seen.view.why.as_str(), &seen.remedy), ("", &None));
    (seen.view.directory, seen.view.host)
}

fn trouble(mountinfo: &str, device: &str, keys: &str, links: &[(&str, &str)]) -> Seen {
    let seen = find(mountinfo, device, keys, links).unwrap();
    assert!(!seen.view.why.is_empty() && seen.remedy.is_some(), "{seen:?}");
    seen
}

fn both(directory: &str, host: &str) -> (String, String) {
    (directory.into(), host.into())
}

#[test]
fn a_plain_path_is_where_the_file_system_is_mounted() {
    assert_eq!(place(PLAIN, "/dev/a", "", &[]), both("/var/crash", "/var/crash"));
    assert_eq!(place(PLAIN, "/dev/c", "path = \"/x\"", &[]), both("/x", "/srv/dumps/x"));
    assert_eq!(place(PLAIN, "/dev/c", "path = \"/\"", &[]), both("/", "/srv/dumps"));
    assert_eq!(find(PLAIN, "/dev/d", "", &[]), None);
}

#[test]
fn links_within_the_file_system_are_followed_as_the_host_does() {
    let cases = [("/var/crash", "/srv/other"), ("/var/crash", "../srv/other"), ("/var", "/srv/./x/..")];
    for (link, to) in cases {
        let (directory, host) = place(PLAIN, "/dev/a", "", &[(link, to)]);
        assert!(directory == host && host.starts_with("/srv/"), "{host}");
    }
    let chain = [("/var/crash", "/a"), ("/a", "/b"), ("/b", "/c/d")];
    assert_eq!(place(PLAIN, "/dev/a", "", &chain), both("/c/d", "/c/d"));
}

#[test]
fn a_link_out_of_the_file_system_is_told_and_the_dump_is_seen_at_its_top() {
    for to in ["/data/crash", "../data/crash"] {
        let seen = trouble(PLAIN, "/dev/a", "", &[("/var/crash", to)]);
        assert!(
            seen.view.why.contains("leads to /data/crash") && seen.view.why.contains("/dev/b"),
            "{seen:?}"
        );
        assert_eq!((&*seen.view.directory, &*seen.view.host), ("/", "/"));
    }
    // For the capture an absolute link begins at the top of the device, for the host at its root.
    let seen = trouble(PLAIN, "/dev/c", "path = \"/x\"", &[("/srv/dumps/x", "/y")]);
    assert!(seen.view.why.contains("leads to /y") && seen.view.host == "/srv/dumps", "{seen:?}");
}

#[test]
fn a_directory_below_another_mount_is_told() {
    let mounts = format!("{PLAIN}30 27 254:4 / /var rw - ext4 /dev/d rw\n");
    let seen = trouble(&mounts, "/dev/a", "", &[]);
    assert!(seen.view.why.contains("/var/crash is hidden by /dev/d"), "{seen:?}");
    let tmpfs = format!("{PLAIN}30 27 0:50 / /var/crash rw - tmpfs tmpfs rw\n");
    assert!(trouble(&tmpfs, "/dev/a", "", &[]).view.why.contains("tmpfs"));
    // Unless it is to be seen through another mount of the same.
    let bound = format!("{mounts}31 27 254:1 / /mnt/all rw - ext4 /dev/a rw\n");
    assert_eq!(place(&bound, "/dev/a", "", &[]), both("/var/crash", "/mnt/all/var/crash"));
}

#[test]
fn a_bind_mount_shows_a_part() {
    let bound = "30 27 254:3 /sub /srv rw - ext4 /dev/c rw\n";
    assert_eq!(place(bound, "/dev/c", "path = \"/sub/x\"", &[]), both("/sub/x", "/srv/x"));
    let seen = trouble(bound, "/dev/c", "path = \"/x\"", &[]);
    assert!(seen.view.why.contains("only /sub"), "{seen:?}");
    assert_eq!((&*seen.view.directory, &*seen.view.host), ("/sub", "/srv"));
    let moved = format!("{PLAIN}30 27 254:1 /data/real /var/crash rw - ext4 /dev/a rw\n");
    let seen = trouble(&moved, "/dev/a", "path = \"/home/x\"", &[("/home/x", "/loop"), ("/loop", "/loop")]);
    assert!(seen.view.why.contains("circle"), "{seen:?}");
}

#[test]
fn the_subvolume_is_that_of_the_hosts_path() {
    assert_eq!(place(FEDORA, "/dev/a", "", &[]), both("/root/var/crash", "/var/crash"));
    assert_eq!(place(FEDORA, "/dev/a", "path = \"/home/c\"", &[]), both("/home/c", "/home/c"));
    let link = [("/var/crash", "/home/crash")];
    assert_eq!(place(FEDORA, "/dev/a", "", &link), both("/home/crash", "/home/crash"));
    assert_eq!(place(SUSE, "/dev/a", "", &[]), both("/@/var/crash", "/var/crash"));
    let other = "27 1 254:1 / / rw - ext4 /dev/x rw\n28 27 0:25 /data /srv rw - btrfs /dev/a rw\n";
    assert_eq!(place(other, "/dev/a", "path = \"/c\"", &[]), both("/data/c", "/srv/c"));
    assert!(trouble(FEDORA, "/dev/a", "", &[("/var/crash", "/boot/c")]).view.why.contains("/dev/b"));
}

#[test]
fn a_named_subvolume_is_looked_for_where_it_is_mounted() {
    let keys = "subvolume = \"/home\"\npath = \"/c\"";
    assert_eq!(place(FEDORA, "/dev/a", keys, &[]), both("/home/c", "/home/c"));
    assert_eq!(find(FEDORA, "/dev/a", "subvolume = \"/@crash\"\npath = \"/c\"", &[]), None);
}

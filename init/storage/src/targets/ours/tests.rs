//! What others can plant in a directory of captures, under each name that we read or write.

use std::fs::{self, create_dir, hard_link};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::sys::stat::{SFlag, mknod};
use nix::unistd::mkfifo;

use super::*;
use crate::targets::captures;
use crate::targets::directory::Directory;
use crate::targets::tried::{self, Mark, MarkError};
use base::config::CrashLoop;
use vmcore::target::Ledger;

const LEDGER: &str = ".afterimage-ledger";
const LIMIT: CrashLoop = CrashLoop { crashes: 2, within: 100 };
/// What others can leave under a name.
const PLANTS: [&str; 8] =
    ["fifo", "socket", "directory", "full directory", "link", "dangling link", "huge file", "device"];

/// A directory of captures where everybody may write, as `/var/crash` is on some distributions.
fn world_writable() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    create_dir(root.path().join("c")).unwrap();
    fs::set_permissions(root.path().join("c"), fs::Permissions::from_mode(0o1777)).unwrap();
    root
}

/// Plants something of another user, as far as this one may.
fn plant(what: &str, at: &Path) -> bool {
    match what {
        "fifo" => mkfifo(at, Mode::S_IRWXU).unwrap(),
        "socket" => drop(UnixListener::bind(at).unwrap()),
        "directory" => create_dir(at).unwrap(),
        "full directory" => fs::create_dir_all(at.join("a/b")).unwrap(),
        "link" => symlink("/etc/passwd", at).unwrap(),
        "dangling link" => symlink("/no/such/file", at).unwrap(),
        "huge file" => File::create(at).unwrap().set_len(1 << 40).unwrap(),
        // Major and minor of /dev/random's blocking cousin: a tty that waits for its carrier.
        _ => {
            if mknod(at, SFlag::S_IFCHR, Mode::S_IRWXU, nix::sys::stat::makedev(4, 64)).is_err() {
                return false;
            }
        }
    }
    let _ = std::os::unix::fs::lchown(at, Some(1000), Some(1000));
    true
}

/// Runs something that must not wait for anybody.
fn at_once<T: Send + 'static>(what: &str, doing: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(doing()));
    receive.recv_timeout(Duration::from_mins(1)).unwrap_or_else(|_| panic!("{what} waits"))
}

#[test]
fn whatever_is_planted_as_a_ledger_makes_way_and_captures_are_counted() {
    for what in PLANTS {
        let root = world_writable();
        if !plant(what, &root.path().join("c").join(LEDGER)) {
            continue;
        }
        let at = root.path().to_owned();
        let looping = at_once(what, move || {
            let captured = (1..=3_u64).map(|turn| {
                let name = format!("capture-{turn}");
                let count = |ledger: &mut Ledger| ledger.count(&name, turn, LIMIT);
                Directory::create_counted(&at, "/c", &name, count).unwrap().1.looping
            });
            captured.collect::<Vec<_>>()
        });
        assert_eq!(looping, [false, false, true], "{what}");
        assert_eq!(captures::reset(&root.path().join("c")).unwrap(), 3, "{what}");
    }
}

#[test]
fn whatever_is_planted_as_the_mark_of_a_kexec_is_not_waited_for_and_makes_way() {
    for what in PLANTS {
        let root = world_writable();
        let (directory, mark) = (root.path().join("c"), root.path().join("c").join(tried::NAME));
        if !plant(what, &mark) {
            continue;
        }
        let (at, top) = (directory.clone(), root.path().to_owned());
        at_once(what, move || {
            if what != "huge file" || geteuid().is_root() {
                assert!(tried::clear(&at, "").is_err(), "{what} is believed");
            }
            match tried::set(&top, "/c", "b-1") {
                Ok(()) => (),
                Err(MarkError::There { .. }) if !geteuid().is_root() => return, // it is this user's own
                Err(error) => panic!("{what}: {error}"),
            }
            assert_eq!(tried::clear(&at, "").unwrap(), Mark::Stays("b-1".into()), "{what}");
            tried::remove(&at).unwrap();
        });
        assert!(mark.symlink_metadata().is_err(), "{what}");
        assert!(plant(what, &mark));
        tried::remove(&directory).unwrap();
        assert!(mark.symlink_metadata().is_err(), "reset leaves the {what}");
    }
}

#[test]
fn a_path_of_captures_that_is_no_directory_is_not_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let at = root.path().join("crash");
    mkfifo(&at, Mode::S_IRWXU).unwrap();
    at_once("a FIFO as the directory of captures", move || {
        assert!(tried::clear(&at, "").is_err() && captures::reset(&at).is_err());
        assert!(OpenDirectory::open_at(&at).is_err());
        assert!(Directory::create(at.parent().unwrap(), "/crash", "x").is_err());
    });
}

#[test]
fn guessed_names_do_not_keep_a_capture_from_its_directory() {
    let root = world_writable();
    let at = root.path().join("c");
    create_dir(at.join("x")).unwrap();
    (2..=2000).for_each(|number| create_dir(at.join(format!("x-{number}"))).unwrap());
    let made = Directory::create_counted(root.path(), "/c", "x", |ledger| ledger.count("x", 1, LIMIT));
    let made = made.unwrap().0;
    let name = made.path().file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("x-") && name.len() == "x-".len() + 16, "{name}");
}

#[test]
fn many_planted_directories_cost_no_opening_of_each() {
    let root = world_writable();
    let at = root.path().join("c");
    for number in 0..2_000 {
        let planted = at.join(format!("2026-01-01T00-00-00Z-web-{number:08x}"));
        create_dir(&planted).unwrap();
        let _ = chown(&planted, Some(1000), None);
    }
    let start = Instant::now();
    let made = Directory::create_counted(root.path(), "/c", "x", |ledger| ledger.count("x", 1, LIMIT));
    let (made, ledger) = made.unwrap();
    made.retire(1, ledger.sequence).unwrap();
    assert_eq!(ledger.sequence, 1);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn a_directory_of_others_is_none_of_ours_whatever_is_in_it() {
    if !geteuid().is_root() {
        return; // nobody else can give files away
    }
    let root = world_writable();
    let at = root.path().join("c");
    let count = |ledger: &mut Ledger| ledger.count("mine", 1, LIMIT);
    Directory::create_counted(root.path(), "/c", "mine", count).unwrap();
    // A hard link to a marker of ours, where the sysctl fs.protected_hardlinks allows it.
    create_dir(at.join("theirs")).unwrap();
    hard_link(at.join("mine/.afterimage"), at.join("theirs/.afterimage")).unwrap();
    fs::write(at.join("theirs/vmcore"), "core").unwrap();
    chown(at.join("theirs"), Some(1000), None).unwrap();
    let next = Directory::create_counted(root.path(), "/c", "next", |ledger| ledger.count("next", 2, LIMIT));
    let (next, ledger) = next.unwrap();
    next.retire(1, ledger.sequence).unwrap();
    assert!(at.join("theirs/vmcore").exists(), "a directory of others is emptied");
    assert!(!at.join("mine").exists());
}

#[test]
fn on_an_export_with_root_squash_we_are_whom_the_server_makes_of_root() {
    if !geteuid().is_root() {
        return; // nobody else can give files away
    }
    let root = tempfile::tempdir().unwrap();
    let at = root.path().join("c");
    create_dir(&at).unwrap();
    // What the client sees on the server: all that it makes is of nobody.
    let squashed = |at: &Path| {
        let made = File::open(at).unwrap();
        chown(at, Some(65534), Some(65534)).unwrap();
        OwnedFd::from(made)
    };
    create_dir(at.join("x")).unwrap();
    let made = squashed(&at.join("x"));
    let place = OpenDirectory::of_maker(File::open(&at).unwrap().into(), &made).unwrap();
    let ledger = Ledger { sequence: 7, looping: true, ..Ledger::default() };
    captures::write_ledger(&place, &ledger).unwrap();
    assert_eq!(fs::metadata(at.join(LEDGER)).unwrap().uid(), 65534, "the next capture can read it");
    assert_eq!(captures::read_ledger(&place), ledger);
    // Root on the server, in the directory of the host, which is nobody's: reset sees the ledger.
    chown(&at, Some(65534), Some(65534)).unwrap();
    captures::reset(&at).unwrap();
    assert!(!captures::read_ledger(&place).looping);
    assert_eq!(fs::metadata(at.join(LEDGER)).unwrap().uid(), 65534);
}

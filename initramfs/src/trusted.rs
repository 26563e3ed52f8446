//! Reading files that become a part of what runs as root after a panic: configuration, hooks, keys,
//! the image. Nobody but root and the user who runs this may be able to write them, and no FIFO is
//! waited for.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::O_NONBLOCK;

/// Mode bits: others may write; the directory is "sticky", where only its owner removes an entry.
const GROUP_WRITES: u32 = 0o020;
const ALL_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Opens a regular file. Anything else is an error that names what it is: a FIFO without a writer
/// would be waited for, and a terminal or a device never ends.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if meta.is_file() { Ok(file) } else { Err(not_regular(&meta)) }
}

/// Reads a regular file, whoever may write it: to look at it, not to run it.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// That something is no regular file, and what it is.
#[must_use]
pub fn not_regular(meta: &Metadata) -> io::Error {
    let text = format!("it is {}, where a regular file is needed", kind(meta));
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// What something is, for people.
#[must_use]
pub fn kind(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_fifo() => "a pipe (FIFO)",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () if kind.is_block_device() => "a block device",
        () if kind.is_dir() => "a directory",
        () => "a regular file",
    }
}

/// Reads a regular file that nobody else may write. The error says who may, and what to do.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads such a file as text.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Opens such a file.
pub fn open(path: &Path) -> io::Result<File> {
    let file = open_regular(path)?;
    check_entry(path, &file.metadata()?)?;
    let absolute = std::path::absolute(path)?;
    // As it is written, and where links lead.
    for way in [absolute.clone(), fs::canonicalize(&absolute)?] {
        for directory in way.ancestors().skip(1) {
            check_entry(directory, &fs::metadata(directory)?)?;
        }
    }
    Ok(file)
}

fn check_entry(path: &Path, meta: &Metadata) -> io::Result<()> {
    let trusted = [Some(0), Some(nix::unistd::geteuid().as_raw()), sudo_user()];
    check(path, meta, &trusted)
}

/// The user who called sudo: what lies in a working copy is of that one.
fn sudo_user() -> Option<u32> {
    nix::unistd::geteuid().is_root().then(|| std::env::var("SUDO_UID").ok()?.parse().ok())?
}

fn check(path: &Path, meta: &Metadata, trusted: &[Option<u32>]) -> io::Result<()> {
    let (mode, at) = (meta.mode(), path.display());
    let refused = |text: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    let what = if meta.is_dir() { format!("its directory {at}") } else { "it".to_owned() };
    if !trusted.contains(&Some(meta.uid())) {
        return refused(format!(
            "{what} belongs to user {}, who is neither root nor runs this, and could change what root runs \
             after a crash: `chown root {at}`",
            meta.uid()
        ));
    }
    // In a sticky directory nobody replaces what is of another user, and the owner of that is looked at.
    if meta.is_dir() && mode & STICKY != 0 {
        return Ok(());
    }
    let group = mode & GROUP_WRITES != 0 && meta.gid() != 0;
    if mode & ALL_WRITE != 0 || group {
        let who =
            if mode & ALL_WRITE != 0 { "everybody".to_owned() } else { format!("group {}", meta.gid()) };
        return refused(format!(
            "{what} can be written by {who} (mode {:04o}), who could change what root runs after a crash: \
             `chmod go-w {at}`",
            mode & 0o7777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::os::unix::net::UnixListener;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(path: &Path) -> String {
        read(path).map_or_else(|error| error.to_string(), |_| "none".to_owned())
    }

    #[test]
    fn what_others_may_write_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("etc/afterimage");
        fs::create_dir_all(&sub).unwrap();
        let file = sub.join("config.toml");
        fs::write(&file, "x").unwrap();
        mode(&file, 0o644);
        assert_eq!(refusal(&file), "none");
        mode(&file, 0o646);
        assert!(refusal(&file).contains("everybody (mode 0646)"), "{}", refusal(&file));
        assert!(refusal(&file).contains("chmod go-w"), "{}", refusal(&file));
        mode(&file, 0o644);
        for directory in [sub.clone(), dir.path().join("etc")] {
            mode(&directory, 0o757);
            let said = refusal(&file);
            assert!(said.contains(&format!("its directory {} can", directory.display())), "{said}");
            mode(&directory, 0o1777);
            assert_eq!(refusal(&file), "none", "nobody replaces what is root's in a sticky directory");
            mode(&directory, 0o755);
        }
        let link = dir.path().join("link");
        symlink(&file, &link).unwrap();
        assert_eq!(refusal(&link), "none");
        mode(&sub, 0o777);
        assert!(refusal(&link).contains("etc/afterimage can be written"), "where the link leads");
        mode(&sub, 0o755);
    }

    #[test]
    fn what_belongs_to_others_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            return; // nobody else can give files away
        }
        let dir = tempfile::tempdir().unwrap();
        let (sub, file) = (dir.path().join("sub"), dir.path().join("sub/hook"));
        fs::create_dir(&sub).unwrap();
        fs::write(&file, "x").unwrap();
        chown(&file, Some(1000), None).unwrap();
        assert!(refusal(&file).contains("belongs to user 1000"), "{}", refusal(&file));
        chown(&file, Some(0), Some(100)).unwrap();
        mode(&file, 0o664);
        assert!(refusal(&file).contains("group 100"), "{}", refusal(&file));
        mode(&file, 0o644);
        chown(&sub, Some(1000), None).unwrap();
        assert!(refusal(&file).contains("its directory"), "{}", refusal(&file));
        let meta = fs::metadata(&sub).unwrap();
        assert!(check(&sub, &meta, &[Some(0), Some(1000)]).is_ok(), "the user who called sudo");
    }

    #[test]
    fn nothing_that_never_ends_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, socket) = (dir.path().join("fifo"), dir.path().join("socket"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(refusal(&fifo).contains("a pipe (FIFO)"), "{}", refusal(&fifo));
        assert_ne!(refusal(&socket), "none");
        assert!(refusal(Path::new("/dev/zero")).contains("a character device"));
        assert!(refusal(dir.path()).contains("a directory"));
    }
}

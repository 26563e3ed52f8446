//! The cpio archive "newc", which the kernel unpacks into its first file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst), written reproducibly: the same
//! entries give the same bytes.

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file with these bytes.
    File(Vec<u8>),
    /// A character device with these numbers.
    CharDevice(u32, u32),
}

/// A file, directory or device in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path, without a leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub kind: Kind,
}

/// Why bytes are not an archive.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no cpio archive at byte {0}")]
pub struct NotAnArchive(pub usize);

const MAGIC: &[u8] = b"070701";
const HEADER_LEN: usize = 110;
const TRAILER: &str = "TRAILER!!!";
/// The kernel looks for the next archive at multiples of 4.
pub const ALIGN: usize = 4;

impl Entry {
    /// A file.
    #[must_use]
    pub fn file(path: &str, mode: u32, bytes: Vec<u8>) -> Self {
        Self { path: path.trim_start_matches('/').to_owned(), mode, kind: Kind::File(bytes) }
    }
}

/// An archive with `entries`, and before each the directories that it needs.
#[must_use]
pub fn write(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directories: Vec<String> = Vec::new();
    let mut inode = 0_u32;
    let mut emit = |entry: &Entry| {
        inode = inode.saturating_add(1);
        emit_entry(&mut out, entry, inode);
    };
    for entry in entries {
        for (at, _) in entry.path.match_indices('/') {
            let path = entry.path.get(..at).unwrap_or_default().to_owned();
            if !directories.contains(&path) {
                emit(&Entry { path: path.clone(), mode: 0o755, kind: Kind::Directory });
                directories.push(path);
            }
        }
        if entry.kind == Kind::Directory {
            directories.push(entry.path.clone());
        }
        emit(entry);
    }
    emit_entry(&mut out, &Entry { path: TRAILER.to_owned(), mode: 0, kind: Kind::File(Vec::new()) }, 0);
    out
}

fn emit_entry(out: &mut Vec<u8>, entry: &Entry, inode: u32) {
    let (kind, links, data, rdev): (u32, u32, &[u8], _) = match &entry.kind {
        Kind::Directory => (0o040_000, 2, &[], (0, 0)),
        Kind::File(bytes) => (if inode == 0 { 0 } else { 0o100_000 }, 1, bytes, (0, 0)),
        Kind::CharDevice(major, minor) => (0o020_000, 1, &[], (*major, *minor)),
    };
    let len32 = |len: usize| u32::try_from(len).unwrap_or(u32::MAX); // an image is megabytes
    let name_len = len32(entry.path.len().saturating_add(1));
    let fields =
        [inode, kind | entry.mode, 0, 0, links, 0, len32(data.len()), 0, 0, rdev.0, rdev.1, name_len, 0];
    out.extend_from_slice(MAGIC);
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(entry.path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
}

/// Fills up to the next multiple of 4, where the kernel expects what follows.
pub fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX), 0);
}

/// The regular files of the first archive in `bytes`: path and content.
pub fn read_files(bytes: &[u8]) -> Result<Vec<(String, &[u8])>, NotAnArchive> {
    let mut files = Vec::new();
    let mut at = 0_usize;
    loop {
        let (path, mode, data, next) = read_entry(bytes, at).ok_or(NotAnArchive(at))?;
        if path == TRAILER {
            return Ok(files);
        }
        if mode & 0o170_000 == 0o100_000 {
            files.push((path, data));
        }
        at = next;
    }
}

fn read_entry(bytes: &[u8], at: usize) -> Option<(String, u32, &[u8], usize)> {
    let header = bytes.get(at..at.checked_add(HEADER_LEN)?)?;
    header.starts_with(MAGIC).then_some(())?;
    let field = |index: usize| {
        let start = MAGIC.len().checked_add(index.checked_mul(8)?)?;
        u32::from_str_radix(core::str::from_utf8(header.get(start..start.checked_add(8)?)?).ok()?, 16).ok()
    };
    let (mode, size, name_len) =
        (field(1)?, usize::try_from(field(6)?).ok()?, usize::try_from(field(11)?).ok()?);
    let name_at = at.checked_add(HEADER_LEN)?;
    let name_end = name_at.checked_add(name_len)?;
    let name = bytes.get(name_at..name_end)?.split(|&b| b == 0).next()?;
    let data_at = name_end.checked_next_multiple_of(ALIGN)?;
    let data_end = data_at.checked_add(size)?;
    let data = bytes.get(data_at..data_end)?;
    let next = data_end.checked_next_multiple_of(ALIGN)?;
    Some((String::from_utf8_lossy(name).into_owned(), mode, data, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Entry> {
        vec![
            Entry { path: "dev/console".into(), mode: 0o600, kind: Kind::CharDevice(5, 1) },
            Entry::file("/etc/afterimage/config.toml", 0o600, b"abc".to_vec()),
            Entry::file("etc/x", 0o644, vec![7; 5]),
        ]
    }

    #[test]
    fn files_come_back_and_bytes_are_the_same_every_time() {
        let bytes = write(&sample());
        assert_eq!(bytes, write(&sample()));
        let files = read_files(&bytes).unwrap();
        assert_eq!(
            files,
            vec![("etc/afterimage/config.toml".into(), &b"abc"[..]), ("etc/x".into(), &[7; 5][..])]
        );
    }

    #[test]
    fn the_header_is_newc() {
        let bytes = write(&sample());
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000041ed"); // directory "dev", 0755
        assert_eq!(&bytes[110..114], b"dev\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn anything_else_is_refused() {
        let bytes = write(&sample());
        for cut in 0..bytes.len() - 4 {
            assert!(read_files(&bytes[..cut]).is_err(), "{cut}");
        }
        assert_eq!(read_files(b"07070"), Err(NotAnArchive(0)));
    }
}

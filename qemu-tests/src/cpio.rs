//! A writer of newc cpio archives, the format the kernel unpacks an initramfs from.
//!
//! Its own few lines rather than the product's writer: a fault shared by both would go unseen.

use anyhow::{Context, Result};
use std::io::Write;

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;
const REGULAR: u32 = 0o100_000;

/// An archive that grows in memory.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a directory; parents come before what they hold.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    /// Adds a file with the permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, REGULAR | mode, (0, 0), content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, SYMLINK, (0, 0), target.as_bytes())
    }

    /// Adds a character device node.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let name = path.trim_start_matches('/');
        let name_size = name.len().saturating_add(1);
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too big for cpio"))?;
        self.inode = self.inode.saturating_add(1);
        // magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        write!(
            self.bytes,
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            self.inode, 0, 0, 1, 0, 0, 0, device.0, device.1, 0
        )?;
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        pad(&mut self.bytes);
    }
}

/// Fills up with zeros to the alignment of a cpio header.
pub fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_of_hexadecimal_fields_then_name_and_content_padded() {
        let mut archive = Archive::default();
        archive.character_device("/dev/null", 1, 3).unwrap();
        archive.file("/init", 0o755, b"hello").unwrap();
        let bytes = String::from_utf8(archive.finish().unwrap()).unwrap();
        let null = "07070100000001000021800000000000000000000000010000000000000000\
                    000000000000000000000001000000030000000900000000dev/null\0\0";
        let init = "070701000000020000\
                    81ed0000000000000000000000010000000000000005\
                    0000000000000000000000000000000000000005"
            .to_owned()
            + "00000000init\0\0hello\0\0\0";
        assert!(bytes.starts_with(&(null.to_owned() + &init)), "{bytes:?}");
        assert!(bytes.ends_with("TRAILER!!!\0\0\0\0") && bytes.len().is_multiple_of(4));
    }
}

//! `body.txt`: what is known of files, for tools that make timelines of them: a line for each inode in
//! memory that has a name, as mactime of The Sleuth Kit 3 reads it:
//! `MD5|name|inode|mode|UID|GID|size|atime|mtime|ctime|crtime`, times in seconds since 1970, 0 for what is
//! not known.

/// The name of the file.
pub(super) const FILE: &str = "body.txt";

/// What a line says of an inode.
pub(super) struct Line<'a> {
    pub(super) path: &'a str,
    pub(super) inode: u64,
    /// Type and rights.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Bytes.
    pub(super) size: u64,
    /// Of the last access, of the last change of the content, and of the last change of the inode.
    pub(super) times: [u64; 3],
}

impl Line<'_> {
    /// As text, with its end. Nothing in a name ends the line or a word of it.
    pub(super) fn text(&self) -> String {
        let path = base::text::line(self.path).replace('|', "%7C");
        let [accessed, modified, changed] = self.times;
        format!(
            "0|{path}|{}|{}|{}|{}|{}|{accessed}|{modified}|{changed}|0\n",
            self.inode,
            mode(self.mode),
            self.uid,
            self.gid,
            self.size
        )
    }
}

/// As fls has it: the type of the name, which is not known apart from that of the inode, a slash, and what
/// ls shows.
fn mode(mode: u16) -> String {
    let kind = match mode >> 12 {
        0o14 => 'h',
        0o12 => 'l',
        0o10 => 'r',
        0o06 => 'b',
        0o04 => 'd',
        0o02 => 'c',
        0o01 => 'p',
        _ => '-',
    };
    let mut text = format!("{kind}/{kind}");
    // Three rights of each: the third is another letter where the special bit is set.
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let rights = mode >> shift & 7;
        text.push(if rights & 4 != 0 { 'r' } else { '-' });
        text.push(if rights & 2 != 0 { 'w' } else { '-' });
        text.push(match (rights & 1 != 0, mode & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_mactime() {
        let line = |path| {
            let times = [30, 20, 10];
            Line { path, inode: 12, mode: 0o100_640, uid: 1000, gid: 4, size: 99, times }.text()
        };
        assert_eq!(line("/var/log/syslog"), "0|/var/log/syslog|12|r/rrw-r-----|1000|4|99|30|20|10|0\n");
        let odd = line("/tmp/a|b\nc");
        assert_eq!((odd.matches('|').count(), odd.matches('\n').count()), (10, 1), "{odd}");
    }

    #[test]
    fn modes_are_those_of_ls() {
        assert_eq!(mode(0o041_777), "d/drwxrwxrwt");
        assert_eq!(mode(0o104_755), "r/rrwsr-xr-x");
        assert_eq!(mode(0o102_644), "r/rrw-r-Sr--");
        assert_eq!(mode(0o120_777), "l/lrwxrwxrwx");
    }
}

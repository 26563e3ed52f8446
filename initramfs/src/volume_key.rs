//! Volume keys of LUKS devices, by way of the host's cryptsetup: it alone knows how to open a key
//! slot. Pass phrase and key go through pipes, never through arguments or files, and are wiped.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::sys::wiping;
use crate::trusted;
use base::addr::to_usize;
use base::facts::stack::{LuksHeader, VolumeKey};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// Longest key file: cryptsetup's own limit.
const MAX_SECRET: u64 = 8 << 20;
/// More than cryptsetup prints.
const MAX_OUTPUT: u64 = 64 << 10;

/// Why there is no volume key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Nobody has named a key.
    #[error("target {0} stands on a LUKS device: name its key file by target.key_file or --key-file")]
    NoSource(String),
    /// The key file.
    #[error("reading the key file {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Standard input.
    #[error("reading the pass phrase")]
    Input(#[source] io::Error),
    /// More than 8 MiB.
    #[error("the key file is longer than 8 MiB")]
    TooLong,
    /// cryptsetup is missing.
    #[error("starting cryptsetup, which opens LUKS devices: is it installed?")]
    Start(#[source] io::Error),
    /// It does not open the device.
    #[error("cryptsetup luksDump {device}: {message}")]
    Cryptsetup {
        /// The device.
        device: PathBuf,
        /// What it said.
        message: String,
    },
    /// It printed something else.
    #[error("cryptsetup luksDump {device} printed no volume key of {expected} bytes")]
    NoKey {
        /// The device.
        device: PathBuf,
        /// As the header says.
        expected: u64,
    },
}

/// Keeps secrets of this process out of swap, core files and, once they are freed, out of memory.
/// What fails is told, and no reason to stop.
pub fn protect_process() {
    wiping::begin();
    if let Err(errno) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        log::warn!("the volume key may be swapped out: mlockall: {}", errno.desc());
    }
    if let Err(errno) = prctl::set_dumpable(false) {
        log::warn!("the volume key may show in a core file: prctl: {}", errno.desc());
    }
}

/// The key file or pass phrase for a target: from `file`, `-` being standard input, or asked for at
/// a terminal.
pub fn secret(file: Option<&Path>, target: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    match file {
        Some(path) if path == Path::new("-") && !io::stdin().is_terminal() => {
            // Not through `Stdin`, whose buffer is never freed.
            let input = io::stdin().as_fd().try_clone_to_owned().map(File::from);
            input.and_then(read_all).map_err(KeyError::Input)
        }
        Some(path) if path != Path::new("-") => {
            // The shell's <(…) is a pipe of the caller's, which ends.
            let is_passed = path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd");
            let open = if is_passed { |path: &Path| File::open(path) } else { trusted::open };
            let read = open(path).and_then(read_all);
            read.map_err(|source| KeyError::Read { path: path.to_owned(), source })
        }
        _ if io::stdin().is_terminal() => ask(target).map_err(KeyError::Input),
        _ => Err(KeyError::NoSource(target.to_owned())),
    }
    .and_then(|secret| {
        let fits = secret.len() <= to_usize(MAX_SECRET);
        fits.then_some(secret).ok_or(KeyError::TooLong)
    })
}

/// Has cryptsetup open the LUKS device `node` with `secret`; gives the key that the data are
/// encrypted with.
pub fn volume_key(node: &Path, header: &LuksHeader, secret: &[u8]) -> Result<VolumeKey, KeyError> {
    let run = |option| luks_dump(node, option, secret);
    let printed = match run("--dump-volume-key") {
        // Before 2.4 it had another name.
        Err(KeyError::Cryptsetup { message, .. }) if message.contains("unknown option") => {
            run("--dump-master-key")?
        }
        printed => printed?,
    };
    let key = parse(&printed).filter(|key| u64::try_from(key.len()) == Ok(header.key_len));
    key.ok_or_else(|| KeyError::NoKey { device: node.to_owned(), expected: header.key_len })
}

fn luks_dump(node: &Path, option: &str, secret: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    // It is an administrator's tool, and `load` may be started with the path of anybody.
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
    let mut command = Command::new("cryptsetup");
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command.args(["luksDump", option, "--batch-mode", "--key-file", "-"]).arg(node).env("LC_ALL", "C");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(KeyError::Start)?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(secret); // who does not read it says why
    }
    let mut printed = Zeroizing::new(Vec::with_capacity(to_usize(MAX_OUTPUT)));
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_OUTPUT).read_to_end(&mut printed).map_err(KeyError::Start)?;
    }
    let output = child.wait_with_output().map_err(KeyError::Start)?;
    if output.status.success() {
        return Ok(printed);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(KeyError::Cryptsetup { device: node.to_owned(), message })
}

/// The bytes behind "MK dump:", which goes on over indented lines.
fn parse(printed: &[u8]) -> Option<VolumeKey> {
    let text = str::from_utf8(printed).ok()?;
    let mut digits = Zeroizing::new(String::with_capacity(text.len()));
    let mut inside = false;
    for line in text.lines() {
        let rest = match line.split_once(" dump:") {
            Some((_, rest)) => {
                inside = true;
                rest
            }
            None if inside && line.starts_with(char::is_whitespace) => line,
            None => {
                inside = false;
                continue;
            }
        };
        for word in rest.split_whitespace() {
            digits.push_str(word);
        }
    }
    VolumeKey::from_hex(&digits).ok()
}

/// All of it, in a buffer that never moves: a buffer that grows leaves copies behind.
fn read_all(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let limit = MAX_SECRET.saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(to_usize(limit).saturating_add(1)));
    from.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Asks at the terminal, without echo.
fn ask(target: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let stdin = io::stdin();
    eprint!("Pass phrase of the LUKS device under {target}: ");
    let before = tcgetattr(&stdin)?;
    let mut quiet = before.clone();
    quiet.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &quiet)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096)); // a terminal's line
    let read = BufReader::with_capacity(1, stdin.lock()).read_until(b'\n', &mut bytes);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &before)?;
    eprintln!();
    read?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_what_follows_dump() {
        let printed = "LUKS header information for l2\nCipher name:   \taes\nUUID:          \tabcd\nMK \
                       bits:       \t192\n\
                       MK dump:\t21 89 65 a3 d3 8c df 16 0d 43 fd bd ea b3 dc c1 \n\t\t63 92 cb e7 86 18 30 \
                       67 \nend 00\n";
        let key = parse(printed.as_bytes()).unwrap();
        assert_eq!(key.hex().as_str(), "218965a3d38cdf160d43fdbdeab3dcc16392cbe786183067");
        for bad in ["", "MK bits: 8\n", "MK dump:\n", "MK dump:\tzz\n"] {
            assert!(parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn key_files_are_read_whole_and_missing_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, b"pass\n\0x").unwrap();
        assert_eq!(*secret(Some(&path), "t").unwrap(), b"pass\n\0x");
        File::options().write(true).open(&path).unwrap().set_len(MAX_SECRET + 1).unwrap();
        assert!(matches!(secret(Some(&path), "t"), Err(KeyError::TooLong)));
        let absent = secret(Some(&dir.path().join("absent")), "t").unwrap_err().to_string();
        assert!(absent.contains("absent"), "{absent}");
    }
}

//! Plants a marker of every kind (see `qemu_tests::marker`).

use crate::early::DISK;
use crate::say::log;
use anyhow::{Context, Result, ensure};
use memmap2::MmapMut;
use qemu_tests::initramfs::SLEEPER;
use qemu_tests::marker::{Kind, PAGE, page, text};
use std::fs::{self, File};
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

/// Plants all kinds and starts the witness process. The markers in anonymous memory live as long as
/// the result.
pub(crate) fn everywhere(seed: &str) -> Result<MmapMut> {
    let memory = anonymous(seed)?;
    file(seed, Kind::Tmpfs, Path::new("/tmp/markers"))?;
    let path = Path::new(DISK).join("markers");
    file(seed, Kind::PageCache, &path)?;
    File::open(&path)?.sync_all().context("syncing the marker file")?;
    let read = fs::read(&path).context("reading the marker file")?;
    ensure!(read.len() == Kind::PageCache.count().saturating_mul(PAGE), "the marker file is short");
    log(text(seed, Kind::Log, 0)).context("writing to /dev/kmsg")?;
    // The name of a process is that of the file it was started from, so the link is what counts.
    Command::new(format!("/{SLEEPER}")).env("WITNESS", seed).spawn().context("starting the witness")?;
    Ok(memory)
}

/// The witness's sockets, for readers of a dump to list: what a kernel without a network has. One that
/// has not all of them is no failure of anything here.
pub(crate) fn sockets() -> impl Sized {
    (
        TcpListener::bind("0.0.0.0:4711").ok(),
        TcpListener::bind("[::]:4712").ok(),
        UdpSocket::bind("0.0.0.0:4713").ok(),
        UnixListener::bind("/tmp/witness").ok(),
        UnixStream::pair().ok(),
    )
}

fn anonymous(seed: &str) -> Result<MmapMut> {
    let size = Kind::Anonymous.count().saturating_mul(PAGE);
    let mut memory = MmapMut::map_anon(size).context("mapping anonymous memory")?;
    for (index, target) in memory.chunks_exact_mut(PAGE).enumerate() {
        target.copy_from_slice(&page(seed, Kind::Anonymous, index));
    }
    Ok(memory)
}

fn file(seed: &str, kind: Kind, path: &Path) -> Result<()> {
    let context = || format!("writing {}", path.display());
    let mut file = File::create(path).with_context(context)?;
    for index in 0..kind.count() {
        file.write_all(&page(seed, kind, index)).with_context(context)?;
    }
    Ok(())
}

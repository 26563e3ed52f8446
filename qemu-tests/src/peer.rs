//! The peer: a second guest with real servers, at the other end of the cables of the machine under
//! test.
//!
//! Its system is an image that scripts/make-peer-root makes once and no run changes. Below `/srv`
//! there is a disk of each run's own; what it does is in `src/peer`, which is brought along on that
//! disk. It boots first and outlives the machine under test; dropping it ends it.

use crate::accel::Accel;
use crate::cache::{cache, workspace};
use crate::command::{Run, command};
use crate::control::Control;
use crate::disk::Disk;
use crate::kernel::Kernel;
use crate::network::{Cable, Card};
use crate::outcome::Dump;
use crate::vm::{Machine, Shape, Vm};
use crate::workdir::WorkDir;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Addresses of the peer, the second by IPv6; its name in DNS and in its certificate is [`NAME`].
pub const ADDRESS: &str = "10.9.0.1";
/// See [`ADDRESS`].
pub const ADDRESS6: &str = "fd09::1";
/// See [`ADDRESS`].
pub const NAME: &str = "collector.test";
/// Whom its sshd lets in, by the key `ssh` of [`Peer::key`].
pub const USER: &str = "dump";
/// What its web server takes as a bearer token below `/token/`.
pub const TOKEN: &str = "the-token-of-the-tests";
/// Who may use its object store, whose bucket is `dumps`.
pub const ACCESS_KEY: &str = "afterimage";
/// See [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "the-secret-key-of-the-tests";

/// Its kernel: has NVMe and ext4 built in and the rest as modules.
const SERIES: &str = "6.1";
/// Emulated, on a loaded machine.
const BOOT: Duration = Duration::from_mins(3);
/// What is brought along.
const FILES: &str = "qemu-tests/src/peer";
const MIB: u64 = 1 << 20;

/// How a peer differs from a plain one.
#[derive(Clone, Debug)]
pub struct PeerShape {
    /// Cards, each with a cable to the machine under test: eth0, eth1, …
    pub cards: usize,
    /// Size of its memory.
    pub memory_mib: u32,
    /// Size of the disk below /srv.
    pub disk_mib: u64,
    /// Cards after those: [`Peer::card`] of another peer.
    pub plugged_in: Vec<Card>,
    /// Files and directories that are brought along, to /srv/peer.
    pub files: Vec<PathBuf>,
}

/// What can be started in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// OpenSSH's sshd on port 22; the home directory of [`USER`] is /home/dump, and /srv/dump is
    /// theirs.
    Ssh,
    /// The kernel's NFS server, which exports /srv/dump to everybody.
    Nfs,
    /// nginx on port 443, which takes files by PUT and keeps them in /srv/www; on 8443 with a
    /// certificate that nobody vouches for.
    Nginx,
    /// An object store on port 9000, without TLS, in /srv/s3.
    S3,
    /// dnsmasq: DHCP from 10.9.0.100 on, router advertisements, DNS.
    Dnsmasq,
}

/// A running peer.
#[derive(Debug)]
pub struct Peer {
    vm: Vm,
    control: Control,
    data: Disk,
    keys: PathBuf,
    cards: usize,
    copies: u32,
    sockets: TempDir,
    work: WorkDir,
}

impl Default for PeerShape {
    fn default() -> Self {
        Self { cards: 1, memory_mib: 512, disk_mib: 4096, plugged_in: Vec::new(), files: Vec::new() }
    }
}

impl Server {
    /// What it is called in `src/peer/functions`.
    fn name(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Nfs => "nfs",
            Self::Nginx => "nginx",
            Self::S3 => "s3",
            Self::Dnsmasq => "dnsmasq",
        }
    }

    /// The script that starts it; returns when it answers.
    #[must_use]
    pub fn start(self) -> String {
        match self {
            Self::S3 => format!("start_s3 --access-key {ACCESS_KEY} --secret-key {SECRET_KEY}"),
            _ => format!("start_{}", self.name()),
        }
    }

    /// The script that ends it at once, as a crash would.
    #[must_use]
    pub fn stop(self) -> String {
        format!("stop_{}", self.name())
    }
}

impl Peer {
    /// Boots one; `name` names its directory, which stays unless [`Peer::discard`] is called.
    pub fn start(name: &str, shape: &PeerShape) -> Result<Self> {
        let kernel = Kernel::of_series(SERIES)?;
        let root = root()?;
        let work = WorkDir::new(&format!("{name}-peer"))?;
        let data = data(&work, shape)?;
        // Not in the work directory: the path of a socket has at most 107 bytes (unix(7)).
        let sockets = tempfile::tempdir().context("making a directory for sockets")?;
        let control = sockets.path().join("control");
        let cards = (0..shape.cards).map(|number| Card {
            mac: format!("52:54:00:af:01:{number:02x}"),
            cable: Cable::At(cable(sockets.path(), number)),
        });
        let disk = |id: &str, path: &Path, options: &str| {
            let path = path.display();
            [
                "-drive".to_owned(),
                format!("if=none,id={id},file={path},format=raw,cache=unsafe,{options}"),
                "-device".to_owned(),
                format!("nvme,serial={id},drive={id}"),
            ]
        };
        let mut more = Vec::new();
        more.extend(disk("root", &root, "snapshot=on"));
        more.extend(disk("srv", &data.path, "discard=unmap,detect-zeroes=unmap"));
        more.extend([
            "-chardev".into(),
            format!("socket,id=control,path={},server=on,wait=off", control.display()),
        ]);
        more.extend(["-serial".into(), "chardev:control".into()]);
        let machine = Machine {
            accel: Accel::detect(&kernel),
            kernel: kernel.vmlinuz(),
            initrd: None,
            // panic=-1: an init that ends is the end of QEMU, and so noticed.
            append: "console=ttyS0 root=/dev/nvme0n1 rw init=/usr/local/sbin/peer panic=-1 mitigations=off"
                .into(),
            memory_mib: shape.memory_mib,
            cpus: 1,
            shape: Shape { cards: cards.chain(shape.plugged_in.clone()).collect(), more, ..Shape::default() },
            disks: Vec::new(),
            log: work.path().join("console.log"),
        };
        let started = Instant::now();
        let mut vm = Vm::start(&machine)?;
        vm.console.expect("peer: ready", BOOT)?;
        eprintln!("{name}: the peer is there after {:.1} s", started.elapsed().as_secs_f64());
        let keys = root.with_extension("img.keys");
        Ok(Self {
            vm,
            control: Control::at(&control),
            data,
            keys,
            cards: shape.cards,
            copies: 0,
            sockets,
            work,
        })
    }

    /// The other end of a cable, for the machine under test.
    #[must_use]
    pub fn card(&self, number: usize) -> Card {
        Card {
            mac: format!("52:54:00:af:02:{number:02x}"),
            cable: Cable::To(cable(self.sockets.path(), number)),
        }
    }

    /// What its clients need: `ca.pem`, `client.pem`, `client.key`, `ssh`, `ssh.pub`,
    /// `known_hosts`; each of the servers' names and addresses is in the last.
    #[must_use]
    pub fn key(&self, name: &str) -> PathBuf {
        self.keys.join(name)
    }

    /// Runs commands in it, for others to hold on to: [`crate::fault::Action::Peer`].
    #[must_use]
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Runs a shell script in it within a minute, with the functions of `src/peer/functions`; gives
    /// what it says on standard output and error.
    pub fn run(&self, script: &str) -> Result<String> {
        self.control.run(script)
    }

    /// Starts servers; they answer when this returns.
    pub fn serve(&self, servers: &[Server]) -> Result<()> {
        servers.iter().try_for_each(|server| self.run(&server.start()).map(drop))
    }

    /// Ends servers at once.
    pub fn stop(&self, servers: &[Server]) -> Result<()> {
        servers.iter().try_for_each(|server| self.run(&server.stop()).map(drop))
    }

    /// Makes a file in it.
    pub fn put(&self, path: &str, text: &str) -> Result<()> {
        let end = "end-of-what-the-test-puts-here";
        ensure!(!text.contains(end), "{path} cannot hold {end:?}");
        let line_end = if text.ends_with('\n') { "" } else { "\n" };
        self.run(&format!("cat >{path} <<'{end}'\n{text}{line_end}{end}\n")).map(drop)
    }

    /// Unplugs all cables on the peer's side, as a switch that fails further on: the machine under
    /// test keeps its carrier, and what it sends is lost. For its own carrier to go, see
    /// [`crate::fault::Action::LinkDown`].
    pub fn sever(&mut self) -> Result<()> {
        (0..self.cards).try_for_each(|card| self.vm.set_link(card, false))
    }

    /// Mends the cables.
    pub fn mend(&mut self) -> Result<()> {
        (0..self.cards).try_for_each(|card| self.vm.set_link(card, true))
    }

    /// Copies a directory below /srv out of the running peer, as it is at this moment; gives the
    /// copy.
    pub fn read_back(&mut self, path: &str) -> Result<PathBuf> {
        let inside = path.strip_prefix("/srv").filter(|inside| inside.len() > 1);
        let inside = inside.with_context(|| format!("{path} is not below /srv"))?;
        self.copies = self.copies.saturating_add(1);
        let into = self.work.path().join(format!("copy-{}", self.copies));
        // A frozen file system has an empty journal, and all of it is in the image.
        self.run("fsfreeze -f /srv")?;
        let copied = self.data.read_back(inside, &into);
        self.run("fsfreeze -u /srv")?;
        copied?;
        Ok(into.join(Path::new(path).file_name().context("a path without a name")?))
    }

    /// The dumps in a directory below /srv.
    pub fn dumps(&mut self, path: &str) -> Result<Vec<Dump>> {
        Dump::all_in(&self.read_back(path)?)
    }

    /// Ends it at once, and keeps what it left.
    pub fn kill(self) {
        drop(self);
    }

    /// Ends it and removes its directory: the run went well.
    pub fn discard(self) -> Result<()> {
        drop(self.vm.cut_power());
        self.work.discard()
    }
}

fn cable(sockets: &Path, number: usize) -> PathBuf {
    sockets.join(format!("cable{number}"))
}

/// The disk below /srv, with what is brought along.
fn data(work: &WorkDir, shape: &PeerShape) -> Result<Disk> {
    let content = work.path().join("srv");
    let to = content.join("peer");
    fs::create_dir_all(&to).with_context(|| format!("making {}", to.display()))?;
    let copy = |from: &Path| command("cp").args(["-r", "--sparse=always"]).arg(from).arg(&to).run().map(drop);
    let files = workspace().join(FILES);
    for entry in fs::read_dir(&files).with_context(|| format!("reading {}", files.display()))? {
        copy(&entry?.path())?;
    }
    // Without it, the object store alone cannot be started.
    let s3 = cache()?.join("tools/bin/s3s-fs");
    if s3.exists() {
        copy(&s3)?;
    }
    shape.files.iter().try_for_each(|file| copy(file))?;
    let uuid = "5a17c0de-0000-4000-8000-0000000000ee";
    Disk::ext4(&work.path().join("srv.img"), shape.disk_mib.saturating_mul(MIB), "srv", uuid, &content)
}

/// The image of its system, made when there is none of today's script and kernel.
fn root() -> Result<PathBuf> {
    let script = workspace().join("scripts/make-peer-root");
    let mut hasher = DefaultHasher::new();
    for path in [
        script.clone(),
        workspace().join("scripts/root.sh"),
        cache()?.join("kernels").join(SERIES).join("package"),
    ] {
        hasher.write(&fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    let image = cache()?.join(format!("peer-root-{:016x}.img", hasher.finish()));
    if !image.exists() {
        command(&script.to_string_lossy()).arg(&image).run()?;
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_know_what_the_tests_know() {
        let file = |name: &str| fs::read_to_string(workspace().join(FILES).join(name)).unwrap();
        assert!(file("nginx.conf").contains(&format!("\"Bearer {TOKEN}\"")));
        assert!(file("dnsmasq.conf").contains(&format!("address=/{NAME}/{ADDRESS}\n")));
        let functions = file("functions");
        for server in [Server::Ssh, Server::Nfs, Server::Nginx, Server::S3, Server::Dnsmasq] {
            let start = server.start();
            for function in [start.split(' ').next().unwrap(), &server.stop()] {
                assert!(functions.contains(&format!("\n{function}() {{\n")), "{function}");
            }
        }
    }
}

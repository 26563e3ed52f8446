//! Sockets of many kinds, a record of a login and a session of logind, for triage to find again; and what
//! /proc/net and ip(8) say of the network.

use crate::early;
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket, socketpair,
};
use nix::unistd::setsid;
use qemu_tests::initramfs::IP;
use qemu_tests::last_words::network::{ABSTRACT, FILES, Login, SESSION, UTMP};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::mem::forget;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

/// What ip(8) shows.
const SHOWN: [(&str, &[&str]); 3] = [
    ("ip-link", &["-o", "link", "show"]),
    ("ip-address", &["-o", "-4", "address", "show"]),
    ("ip-neighbour", &["neighbour", "show", "nud", "permanent"]),
];

/// Makes all of it, to last until the end.
pub(super) fn plant() -> Result<()> {
    tcp("127.0.0.1:0").context("sockets of TCP over IPv4")?;
    tcp("[::1]:0").context("sockets of TCP over IPv6")?;
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    udp.connect("127.0.0.1:9")?;
    forget((udp, UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("[::]:0")?));
    unix().context("UNIX sockets")?;
    others().context("sockets of the kernel's own families")?;
    logins().context("records of logins")
}

/// A pair of TCP sockets; the first one has connected.
fn pair(listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let one = TcpStream::connect(listener.local_addr()?)?;
    Ok((one, listener.accept()?.0))
}

fn tcp(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    // Connected, with bytes that nobody reads.
    let (one, mut other) = pair(&listener)?;
    other.write_all(b"unread")?;
    forget((one, other));
    // One that closes first waits; the other is gone.
    let (one, mut other) = pair(&listener)?;
    drop(one);
    ensure!(other.read(&mut [0; 1])? == 0, "the other end has not closed");
    drop(other);
    // One that has closed while the other has not: a process has no end of it any more.
    let (one, other) = pair(&listener)?;
    drop(one);
    forget(other);
    // An orphan that cannot even say that it is closed: its peer takes no more.
    let (mut one, other) = pair(&listener)?;
    one.set_nonblocking(true)?;
    loop {
        match one.write(&[7; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    drop(one);
    forget(other);
    // Connected, and accepted by nobody.
    forget(TcpStream::connect(listener.local_addr()?)?);
    forget(listener);
    Ok(())
}

fn unix() -> Result<()> {
    let path = "/tmp/last-words";
    let listener = UnixListener::bind(path)?;
    forget((UnixStream::connect(path)?, listener.accept()?));
    forget(UnixStream::connect(path)?);
    forget(listener);
    forget(UnixListener::bind_addr(&SocketAddr::from_abstract_name(ABSTRACT)?)?);
    forget(UnixDatagram::bind("/tmp/last-words-datagrams")?);
    Ok(())
}

fn others() -> Result<()> {
    let none = SockFlag::empty();
    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, none, SockProtocol::NetlinkRoute).context("netlink")?;
    // Groups: links, IPv4 addresses (RTMGRP_LINK, RTMGRP_IPV4_IFADDR).
    bind(std::os::fd::AsRawFd::as_raw_fd(&netlink), &NetlinkAddr::new(0, 0x11)).context("binding")?;
    let packet =
        socket(AddressFamily::Packet, SockType::Raw, none, SockProtocol::EthAll).context("packet")?;
    let raw = socket(AddressFamily::Inet, SockType::Raw, none, SockProtocol::Icmp).context("raw")?;
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, none).context("a pair")?;
    forget((netlink, packet, raw, pair));
    Ok(())
}

fn logins() -> Result<()> {
    if !Path::new("/run").exists() {
        fs::create_dir("/run")?;
    }
    early::mount_at("tmpfs", "/run", "tmpfs")?;
    let logins: Vec<u8> = Login::all().iter().flat_map(Login::record).collect();
    fs::write(UTMP, logins)?;
    let (path, text) = SESSION;
    fs::create_dir_all(Path::new(path).parent().context("no directory")?)?;
    fs::write(path, text)?;
    // Of a process that leads a session and has no terminal, the first one that it opens becomes its own.
    setsid().context("leading a session")?;
    forget(File::options().read(true).write(true).open("/dev/ttyS0").context("opening a terminal")?);
    Ok(())
}

/// What /proc/net and ip(8) say: lines behind the name of the file, and a tab.
pub(super) fn snapshot(out: &mut String) -> Result<()> {
    let ip = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(IP).args(arguments).output().with_context(|| format!("starting {IP}"))?;
        ensure!(output.status.success(), "{IP} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for (name, arguments) in SHOWN {
        for line in ip(arguments)?.lines() {
            let _ = writeln!(out, "net/{name}\t{line}");
        }
    }
    for name in FILES {
        let text = fs::read(format!("/proc/net/{name}")).with_context(|| format!("reading {name}"))?;
        for line in String::from_utf8_lossy(&text).lines() {
            let _ = writeln!(out, "net/{name}\t{line}");
        }
    }
    let stat = fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    let _ = writeln!(out, "net/stat\t{stat}");
    Ok(())
}

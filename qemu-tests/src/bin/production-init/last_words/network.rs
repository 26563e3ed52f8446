//! Sockets of many kinds, a record of a login and a session of logind, for triage to find again; and what
//! /proc/net and ip(8) say of the network.

use crate::early;
use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrIn, bind, sendto, socket,
    socketpair,
};
use nix::unistd::setsid;
use qemu_tests::initramfs::IP;
use qemu_tests::last_words::network::{ABSTRACT, FILES, Login, SESSION, UTMP};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::mem::forget;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

/// The network namespace of this process.
const NAMESPACE: &str = "/proc/self/ns/net";
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
    half_open().context("a connection that is half open")?;
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

/// A request for a connection by somebody who does not answer: it stays in the kernel's table until the
/// kernel has repeated its answer often enough, which takes a minute.
fn half_open() -> Result<()> {
    let listener = TcpListener::bind("10.0.2.15:0")?;
    let port = listener.local_addr()?.port();
    forget(listener);
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)?;
    let target = SockaddrIn::new(10, 0, 2, 15, port);
    sendto(raw.as_raw_fd(), &syn(port), &target, MsgFlags::empty()).context("sending")?;
    Ok(())
}

/// A packet with nothing but SYN (RFC 791, RFC 9293), from 10.0.2.99, who is not there, to 10.0.2.15.
fn syn(port: u16) -> Vec<u8> {
    let (from, to) = ([10, 0, 2, 99], [10, 0, 2, 15]);
    let segment = |sum: [u8; 2]| {
        let numbers = [&[0x30, 0x39][..], &port.to_be_bytes(), &[0, 0, 0, 7], &[0; 4]].concat();
        // Five words of header, SYN, the window; no pointer to urgent data.
        [&numbers[..], &[0x50, 0x02, 0x20, 0x00], &sum, &[0, 0]].concat()
    };
    // The sum is over a header of its own kind, too.
    let summed = [&from[..], &to, &[0, 6, 0, 20], &segment([0, 0])].concat();
    let sum = summed
        .chunks(2)
        .filter_map(|pair| Some(u32::from(u16::from_be_bytes(pair.try_into().ok()?))))
        .sum::<u32>();
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let sum = !u16::try_from((sum & 0xffff).wrapping_add(sum >> 16)).unwrap_or(0);
    // The kernel fills in the length, the number and the sum of the other header.
    let header = [&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0][..], &from, &to].concat();
    [header, segment(sum.to_be_bytes())].concat()
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
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0x11)).context("binding")?;
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

/// What is said of the network that the machine has, and of another one that has nothing but sockets:
/// lines behind the name of the file, a tab, the number of the namespace, and a tab.
pub(super) fn snapshot(out: &mut String) -> Result<()> {
    say(out)?;
    let own = File::open(NAMESPACE).context("opening the own namespace")?;
    unshare(CloneFlags::CLONE_NEWNET).context("making another network namespace")?;
    // They are what holds it.
    forget((TcpListener::bind("0.0.0.0:0")?, TcpListener::bind("[::]:0")?, UdpSocket::bind("0.0.0.0:0")?));
    forget(UnixListener::bind_addr(&SocketAddr::from_abstract_name("elsewhere")?)?);
    others()?;
    say(out)?;
    setns(own, CloneFlags::CLONE_NEWNET).context("going back")?;
    let stat = fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    let _ = writeln!(out, "net/stat\t0\t{stat}");
    Ok(())
}

/// What /proc/net and ip(8) say.
fn say(out: &mut String) -> Result<()> {
    let namespace = fs::read_link(NAMESPACE)?.to_string_lossy().into_owned();
    let namespace = namespace.trim_start_matches("net:[").trim_end_matches(']');
    let ip = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(IP).args(arguments).output().with_context(|| format!("starting {IP}"))?;
        ensure!(output.status.success(), "{IP} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for (name, arguments) in SHOWN {
        for line in ip(arguments)?.lines() {
            let _ = writeln!(out, "net/{name}\t{namespace}\t{line}");
        }
    }
    for name in FILES {
        let text = fs::read(format!("/proc/net/{name}")).with_context(|| format!("reading {name}"))?;
        for line in String::from_utf8_lossy(&text).lines() {
            let _ = writeln!(out, "net/{name}\t{namespace}\t{line}");
        }
    }
    Ok(())
}

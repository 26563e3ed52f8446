//! System calls that have no safe wrapper. What they make stays until the end of the system.

#![expect(unsafe_code, reason = "system calls")]

use nix::libc::{self, c_int, c_long, c_ulong};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// `KEY_SPEC_PROCESS_KEYRING`, include/uapi/linux/keyctl.h
const PROCESS_KEYRING: c_int = -2;
/// `BPF_MAP_CREATE`, `BPF_PROG_LOAD`, `BPF_RAW_TRACEPOINT_OPEN`; `BPF_MAP_TYPE_ARRAY`,
/// `BPF_PROG_TYPE_SOCKET_FILTER`, `BPF_PROG_TYPE_RAW_TRACEPOINT` (include/uapi/linux/bpf.h).
const MAP_CREATE: c_int = 0;
const PROGRAM_LOAD: c_int = 5;
const TRACEPOINT_OPEN: c_int = 17;
const ARRAY: u32 = 2;
pub(super) const SOCKET_FILTER: u32 = 1;
pub(super) const RAW_TRACEPOINT: u32 = 17;
/// Bytes of `union bpf_attr` that are used.
const ATTRIBUTES: usize = 72;

fn checked(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes shared memory of System V; its id.
pub(super) fn shared_memory(key: c_int, bytes: usize, mode: c_int) -> io::Result<c_int> {
    // SAFETY: it takes and gives numbers only.
    let id = unsafe { libc::shmget(key, bytes, libc::IPC_CREAT | mode) };
    checked(id.into()).map(|_| id)
}

/// Makes a set of semaphores.
pub(super) fn semaphores(key: c_int, count: c_int, mode: c_int) -> io::Result<()> {
    // SAFETY: it takes and gives numbers only.
    checked(unsafe { libc::semget(key, count, libc::IPC_CREAT | mode) }.into()).map(drop)
}

/// Makes a queue, and sends a message of this text.
pub(super) fn message(key: c_int, text: &[u8], mode: c_int) -> io::Result<()> {
    // SAFETY: it takes and gives numbers only.
    let id = unsafe { libc::msgget(key, libc::IPC_CREAT | mode) };
    checked(id.into())?;
    // struct msgbuf: a type above zero, then the text.
    let mut buffer = 1_i64.to_ne_bytes().to_vec();
    buffer.extend_from_slice(text);
    // SAFETY: the buffer has the type and as many bytes of text as are told.
    checked(unsafe { libc::msgsnd(id, buffer.as_ptr().cast(), text.len(), 0) }.into()).map(drop)
}

/// Makes a queue of POSIX.
pub(super) fn posix_queue(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: a string with its NUL, and the default attributes: a null pointer.
    checked(unsafe {
        libc::syscall(libc::SYS_mq_open, name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o640, 0_usize)
    })
    .map(drop)
}

/// Makes a key of the type user.
pub(super) fn key(description: &str, payload: &[u8]) -> io::Result<()> {
    let (kind, description) = (CString::new("user")?, CString::new(description)?);
    // SAFETY: strings with their NUL, and a payload of the length that is told.
    checked(unsafe {
        libc::syscall(
            libc::SYS_add_key,
            kind.as_ptr(),
            description.as_ptr(),
            payload.as_ptr(),
            payload.len(),
            PROCESS_KEYRING,
        )
    })
    .map(drop)
}

/// Swaps to a file.
pub(super) fn swap_on(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: a string with its NUL.
    checked(unsafe { libc::swapon(path.as_ptr(), 0) }.into()).map(drop)
}

fn bpf(command: c_int, attributes: &[u8; ATTRIBUTES]) -> io::Result<RawFd> {
    // SAFETY: attributes of the length that is told; addresses in them are of memory that outlives this.
    let fd = checked(unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), ATTRIBUTES) })?;
    RawFd::try_from(fd).map_err(io::Error::other)
}

fn put(attributes: &mut [u8; ATTRIBUTES], at: usize, bytes: &[u8]) {
    copy(attributes, at, bytes);
}

/// Loads a BPF program of this kind that does nothing.
pub(super) fn program(name: &str, kind: u32) -> io::Result<RawFd> {
    // r0 = 0; exit
    let code: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let license = CString::new("GPL")?;
    let mut attributes = [0; ATTRIBUTES];
    put(&mut attributes, 0, &kind.to_ne_bytes());
    put(&mut attributes, 4, &2_u32.to_ne_bytes());
    put(&mut attributes, 8, &code.as_ptr().expose_provenance().to_ne_bytes());
    put(&mut attributes, 16, &license.as_ptr().expose_provenance().to_ne_bytes());
    // prog_name, which ends with a NUL
    put(&mut attributes, 48, name.get(..15.min(name.len())).unwrap_or_default().as_bytes());
    bpf(PROGRAM_LOAD, &attributes)
}

/// `DM_DEV_CREATE`, `DM_TABLE_LOAD`, `DM_DEV_SUSPEND`: _IOWR(0xfd, 3, 9 and 6, struct dm_ioctl)
/// (include/uapi/linux/dm-ioctl.h).
const DM_CREATE: c_ulong = 0xc138_fd03;
const DM_LOAD: c_ulong = 0xc138_fd09;
const DM_RESUME: c_ulong = 0xc138_fd06;
/// Bytes of `struct dm_ioctl`, of `struct dm_target_spec`, and of both with parameters.
const DM_HEADER: usize = 312;
const DM_TARGET: usize = 40;
const DM_ALL: usize = 1024;

/// Makes a disk of device-mapper of these targets: length in sectors, type, parameters.
pub(super) fn mapped_disk(name: &str, uuid: &str, targets: &[(u64, &str, &str)]) -> io::Result<()> {
    let control = File::options().read(true).write(true).open("/dev/mapper/control")?;
    let mut header = [0; DM_ALL];
    // Version 4, bytes of all of it, bytes before the targets.
    for (at, value) in [(0, 4), (12, u32::try_from(DM_ALL).unwrap_or(0)), (16, 312)] {
        copy(&mut header, at, &u32::to_ne_bytes(value));
    }
    copy(&mut header, 48, name.as_bytes());
    let mut create = header;
    copy(&mut create, 176, uuid.as_bytes());
    let mut load = header;
    copy(&mut load, 20, &u32::try_from(targets.len()).unwrap_or(0).to_ne_bytes());
    let (mut at, mut start) = (DM_HEADER, 0_u64);
    for (sectors, kind, parameters) in targets {
        // Targets lie at multiples of eight bytes.
        let next = DM_TARGET.saturating_add(parameters.len()).saturating_add(1).next_multiple_of(8);
        copy(&mut load, at, &start.to_ne_bytes());
        copy(&mut load, at.saturating_add(8), &sectors.to_ne_bytes());
        copy(&mut load, at.saturating_add(20), &u32::try_from(next).unwrap_or(0).to_ne_bytes());
        copy(&mut load, at.saturating_add(24), kind.as_bytes());
        copy(&mut load, at.saturating_add(DM_TARGET), parameters.as_bytes());
        at = at.saturating_add(next);
        start = start.saturating_add(*sectors);
    }
    for (request, mut bytes) in [(DM_CREATE, create), (DM_LOAD, load), (DM_RESUME, header)] {
        // SAFETY: a buffer of the length that it tells, which the kernel reads and writes.
        let result = unsafe { libc::ioctl(control.as_raw_fd(), request, bytes.as_mut_ptr()) };
        checked(result.into())?;
    }
    Ok(())
}

fn copy(bytes: &mut [u8], at: usize, from: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(from) {
        *to = *from;
    }
}

/// Links a BPF program to a tracepoint.
pub(super) fn link(program: RawFd, point: &str) -> io::Result<RawFd> {
    let point = CString::new(point)?;
    let mut attributes = [0; ATTRIBUTES];
    put(&mut attributes, 0, &point.as_ptr().expose_provenance().to_ne_bytes());
    put(&mut attributes, 8, &program.to_ne_bytes());
    bpf(TRACEPOINT_OPEN, &attributes)
}

/// Waits for a child that never ends, in a way that nothing interrupts: the kernel waits in clone().
pub(super) fn wait_for_ever() -> io::Result<()> {
    let flags = libc::CLONE_VFORK | libc::SIGCHLD;
    let none = 0_usize;
    // SAFETY: without CLONE_VM the child has a copy of the memory and of this stack, as after fork().
    let child = checked(unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) })?;
    if child != 0 {
        return Ok(());
    }
    loop {
        // SAFETY: it takes nothing and changes no memory.
        unsafe { libc::pause() };
    }
}

/// Makes a BPF map: an array of 16 words.
pub(super) fn map(name: &str) -> io::Result<RawFd> {
    let mut attributes = [0; ATTRIBUTES];
    for (at, value) in [(0, ARRAY), (4, 4), (8, 8), (12, 16)] {
        put(&mut attributes, at, &value.to_ne_bytes());
    }
    // map_name
    put(&mut attributes, 28, name.get(..15.min(name.len())).unwrap_or_default().as_bytes());
    bpf(MAP_CREATE, &attributes)
}

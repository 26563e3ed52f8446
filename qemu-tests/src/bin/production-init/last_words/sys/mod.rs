//! System calls that have no safe wrapper. What they make stays until the end of the system.

#![expect(unsafe_code, reason = "system calls")]

use nix::libc::{self, c_int, c_long};
use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;

/// `KEY_SPEC_PROCESS_KEYRING`, include/uapi/linux/keyctl.h
const PROCESS_KEYRING: c_int = -2;
/// `BPF_MAP_CREATE`, `BPF_PROG_LOAD`; `BPF_MAP_TYPE_ARRAY`, `BPF_PROG_TYPE_SOCKET_FILTER`
/// (include/uapi/linux/bpf.h).
const MAP_CREATE: c_int = 0;
const PROGRAM_LOAD: c_int = 5;
const ARRAY: u32 = 2;
const SOCKET_FILTER: u32 = 1;
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
    for (to, from) in attributes.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Loads a BPF program that does nothing: a filter of sockets.
pub(super) fn program(name: &str) -> io::Result<RawFd> {
    // r0 = 0; exit
    let code: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let license = CString::new("GPL")?;
    let mut attributes = [0; ATTRIBUTES];
    put(&mut attributes, 0, &SOCKET_FILTER.to_ne_bytes());
    put(&mut attributes, 4, &2_u32.to_ne_bytes());
    put(&mut attributes, 8, &code.as_ptr().expose_provenance().to_ne_bytes());
    put(&mut attributes, 16, &license.as_ptr().expose_provenance().to_ne_bytes());
    // prog_name, which ends with a NUL
    put(&mut attributes, 48, name.get(..15.min(name.len())).unwrap_or_default().as_bytes());
    bpf(PROGRAM_LOAD, &attributes)
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

//! SFTP, version 3, as OpenSSH speaks it: a packet to the server, and the packet that answers it.
//!
//! Packets are russh-sftp's; the stream is read and written here, because its client keeps what
//! waits to be sent without bound.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use russh::{ChannelStream, client};
use russh_sftp::protocol::{
    Attrs, Extended, FileAttributes, Init, MkDir, Name, Open, OpenDir, OpenFlags, Packet, ReadDir, Stat,
    Status, StatusCode,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::timeout;

use super::error::SshError;
use super::login::Link;

/// A server that answers nothing for so long is taken for gone.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// Longest packet that is taken: answers to us are names at most.
const MAX_PACKET: u32 = 256 << 10;
/// Bytes of one write: what each server takes, and what we send if it takes more.
const WRITE: core::ops::RangeInclusive<u64> = 32 << 10..=256 << 10;
/// What a packet has beside the data of a write.
const PACKET_EXTRA: u64 = 1 << 10;

const FSYNC: &str = "fsync@openssh.com";
const STATVFS: &str = "statvfs@openssh.com";
const LIMITS: &str = "limits@openssh.com";

pub(super) type Reader = ReadHalf<ChannelStream<client::Msg>>;
pub(super) type Writer = WriteHalf<ChannelStream<client::Msg>>;

/// What a server can do beyond version 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offers {
    /// It makes files durable when asked.
    pub(super) fsync: bool,
    /// It says how much room it has.
    pub(super) statvfs: bool,
    /// Bytes of one write.
    pub(super) write_len: usize,
}

impl fmt::Display for Offers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let can = |can: bool| if can { "can" } else { "cannot" };
        let (durable, room, len) = (can(self.fsync), can(self.statvfs), self.write_len);
        write!(
            f,
            "it {durable} make files durable, {room} tell its free space, and takes {len} bytes in a write"
        )
    }
}

/// A server that answers one request at a time.
pub(super) struct Session {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) link: Link,
    pub(super) offers: Offers,
    next_id: u32,
}

impl Session {
    pub(super) async fn begin(stream: ChannelStream<client::Msg>, link: Link) -> Result<Self, SshError> {
        let (mut reader, mut writer) = split(stream);
        send(&mut writer, Packet::Init(Init::new())).await?;
        let Packet::Version(version) = receive(&mut reader).await? else {
            return Err(SshError::Protocol("its first packet is no version".to_owned()));
        };
        let offers = |name: &str| version.extensions.contains_key(name);
        let has_limits = offers(LIMITS);
        let write_len = usize::try_from(*WRITE.start()).unwrap_or(usize::MAX);
        let offers = Offers { fsync: offers(FSYNC), statvfs: offers(STATVFS), write_len };
        let mut session = Self { reader, writer, link, offers, next_id: 0 };
        if has_limits && let Packet::ExtendedReply(reply) = session.request("limits", limits).await? {
            session.offers.write_len = write_limit(&reply.data);
        }
        Ok(session)
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn request(
        &mut self,
        what: &'static str,
        make: impl FnOnce(u32) -> Packet,
    ) -> Result<Packet, SshError> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let talk = async {
            send(&mut self.writer, make(id)).await?;
            receive(&mut self.reader).await
        };
        let answer = within(what, SILENCE, talk).await?;
        if reply_id(&answer) == Some(id) {
            return Ok(answer);
        }
        Err(SshError::Protocol(format!("its answer to {what} is none")))
    }

    /// Whether there is something of that name.
    pub(super) async fn exists(&mut self, path: &str) -> Result<bool, SshError> {
        match self.request("stat", |id| Packet::Stat(Stat { id, path: path.to_owned() })).await? {
            Packet::Attrs(Attrs { .. }) => Ok(true),
            Packet::Status(status) if status.status_code == StatusCode::NoSuchFile => Ok(false),
            other => Err(refused("looking at", path, other)),
        }
    }

    /// Makes a directory; `false` if there is something of that name.
    pub(super) async fn make_directory(&mut self, path: &str) -> Result<bool, SshError> {
        let attrs = FileAttributes { permissions: Some(0o700), ..FileAttributes::empty() };
        let make = |id| Packet::MkDir(MkDir { id, path: path.to_owned(), attrs });
        let answer = self.request("mkdir", make).await?;
        if is_ok(&answer) {
            return Ok(true);
        }
        // Version 3 has no code for what exists.
        if self.exists(path).await? { Ok(false) } else { Err(refused("making directory", path, answer)) }
    }

    /// Names in a directory, but no more than `most`, handed to `each`.
    pub(super) async fn list(
        &mut self,
        path: &str,
        limit: usize,
        mut each: impl FnMut(&str),
    ) -> Result<(), SshError> {
        let open = |id| Packet::OpenDir(OpenDir { id, path: path.to_owned() });
        let handle = match self.request("opendir", open).await? {
            Packet::Handle(handle) => handle.handle,
            other => return Err(refused("listing", path, other)),
        };
        let mut names = 0_usize;
        while names < limit {
            let read = |id| Packet::ReadDir(ReadDir { id, handle: handle.clone() });
            let Packet::Name(Name { files, .. }) = self.request("readdir", read).await? else { break };
            if files.is_empty() {
                break;
            }
            names = names.saturating_add(files.len());
            for file in &files {
                each(&file.filename);
            }
        }
        self.request("close", |id| close(id, handle.clone())).await.map(drop)
    }

    /// Opens a file that is there, as it is.
    pub(super) async fn reopen(&mut self, path: &str) -> Result<Option<String>, SshError> {
        match self.request("open", |id| open(id, path, OpenFlags::WRITE)).await? {
            Packet::Handle(handle) => Ok(Some(handle.handle)),
            Packet::Status(status) if status.status_code == StatusCode::NoSuchFile => Ok(None),
            other => Err(refused("opening", path, other)),
        }
    }
}

pub(super) fn open(id: u32, path: &str, pflags: OpenFlags) -> Packet {
    let attrs = FileAttributes { permissions: Some(0o600), ..FileAttributes::empty() };
    Packet::Open(Open { id, filename: path.to_owned(), pflags, attrs })
}

pub(super) fn close(id: u32, handle: String) -> Packet {
    Packet::Close(russh_sftp::protocol::Close { id, handle })
}

pub(super) fn fsync(id: u32, handle: &str) -> Packet {
    Packet::Extended(Extended { id, request: FSYNC.to_owned(), data: string(handle) })
}

pub(super) fn statvfs(id: u32, path: &str) -> Packet {
    Packet::Extended(Extended { id, request: STATVFS.to_owned(), data: string(path) })
}

fn limits(id: u32) -> Packet {
    Packet::Extended(Extended { id, request: LIMITS.to_owned(), data: Vec::new() })
}

fn string(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&len.to_be_bytes(), text.as_bytes()].concat()
}

/// What stands before the data of a write (SSH_FXP_WRITE, draft-ietf-secsh-filexfer-02): the data
/// themselves go from the pool to the channel without another copy.
pub(super) fn write_header(id: u32, handle: &str, offset: u64, len: usize) -> Vec<u8> {
    const SSH_FXP_WRITE: u8 = 6;
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let mut body = vec![SSH_FXP_WRITE];
    body.extend(id.to_be_bytes());
    body.extend(string(handle));
    body.extend(offset.to_be_bytes());
    body.extend(len.to_be_bytes());
    let whole = u32::try_from(body.len()).unwrap_or(u32::MAX).saturating_add(len);
    [&whole.to_be_bytes(), body.as_slice()].concat()
}

/// Free bytes by an answer to [`statvfs`], without those that are kept for the server's root.
pub(super) fn free_bytes(reply: &[u8]) -> Option<u64> {
    // f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, …
    Some(number(reply, 1)?.saturating_mul(number(reply, 4)?))
}

fn write_limit(reply: &[u8]) -> usize {
    // max-packet-length, max-read-length, max-write-length, max-open-handles; 0 is none that it
    // would tell.
    let given = |index| number(reply, index).filter(|&it| it > 0);
    let by_packet = given(0).map(|len| len.saturating_sub(PACKET_EXTRA));
    let len = given(2).or(by_packet).unwrap_or(*WRITE.start()).min(by_packet.unwrap_or(u64::MAX));
    usize::try_from(len.clamp(PACKET_EXTRA, *WRITE.end())).unwrap_or(usize::MAX)
}

fn number(reply: &[u8], index: usize) -> Option<u64> {
    let at = index.checked_mul(8)?;
    Some(u64::from_be_bytes(*reply.get(at..)?.first_chunk()?))
}

/// Which request is answered.
pub(super) fn reply_id(packet: &Packet) -> Option<u32> {
    match packet {
        Packet::Status(it) => Some(it.id),
        Packet::Handle(it) => Some(it.id),
        Packet::Data(it) => Some(it.id),
        Packet::Name(it) => Some(it.id),
        Packet::Attrs(it) => Some(it.id),
        Packet::ExtendedReply(it) => Some(it.id),
        _ => None,
    }
}

pub(super) fn is_ok(packet: &Packet) -> bool {
    matches!(packet, Packet::Status(status) if status.status_code == StatusCode::Ok)
}

fn refused(what: &'static str, path: &str, answer: Packet) -> SshError {
    match answer {
        Packet::Status(status) => SshError::Refused { what, path: path.to_owned(), status },
        _ => SshError::Protocol(format!("its answer to {what} {path} is none")),
    }
}

/// What stands for an answer that makes no sense.
pub(super) fn status_of(packet: Packet) -> Status {
    match packet {
        Packet::Status(status) => status,
        other => Status {
            id: reply_id(&other).unwrap_or(0),
            status_code: StatusCode::BadMessage,
            error_message: "an answer to something else".to_owned(),
            language_tag: String::new(),
        },
    }
}

pub(super) fn encode(packet: Packet) -> Result<Bytes, SshError> {
    Bytes::try_from(packet).map_err(|error| SshError::Protocol(error.to_string()))
}

async fn send(writer: &mut Writer, packet: Packet) -> Result<(), SshError> {
    writer.write_all(&encode(packet)?).await.map_err(SshError::Lost)
}

/// The next packet. Not to be dropped halfway: what was read of a packet would be lost.
pub(super) async fn receive(reader: &mut (impl AsyncRead + Unpin)) -> Result<Packet, SshError> {
    let len = reader.read_u32().await.map_err(SshError::Lost)?;
    if len > MAX_PACKET {
        return Err(SshError::Protocol(format!("a packet of {len} bytes")));
    }
    let mut packet = vec![0; usize::try_from(len).unwrap_or(0)];
    reader.read_exact(&mut packet).await.map_err(SshError::Lost)?;
    let mut packet = Bytes::from(packet);
    Packet::try_from(&mut packet).map_err(|error| SshError::Protocol(error.to_string()))
}

pub(super) async fn within<T>(
    what: &'static str,
    patience: Duration,
    doing: impl Future<Output = Result<T, SshError>>,
) -> Result<T, SshError> {
    timeout(patience, doing).await.map_err(|_| SshError::Silent { what, seconds: patience.as_secs() })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh_sftp::protocol::Write;

    #[test]
    fn the_header_of_a_write_is_that_of_the_library() {
        let data = vec![7; 1000];
        let write =
            Write { id: 0x0102_0304, handle: "h\0\u{1}".to_owned(), offset: 1 << 40, data: data.clone() };
        let ours = [write_header(write.id, &write.handle, write.offset, data.len()), data].concat();
        assert_eq!(ours, encode(Packet::Write(write)).unwrap());
    }

    #[test]
    fn limits_and_room_are_bounded_by_what_makes_sense() {
        let reply = |numbers: &[u64]| numbers.iter().flat_map(|it| it.to_be_bytes()).collect::<Vec<_>>();
        assert_eq!(write_limit(&reply(&[262_144, 261_120, 261_120, 1019])), 261_120, "OpenSSH");
        assert_eq!(write_limit(&reply(&[0, 0, 0, 0])), 32 << 10);
        assert_eq!(write_limit(&reply(&[34_000, 0, u64::MAX, 0])), 34_000 - 1024);
        assert_eq!(write_limit(&reply(&[u64::MAX; 4])), 256 << 10);
        assert_eq!(write_limit(&reply(&[1, 1, 1, 1])), 1024);
        assert_eq!(write_limit(&[]), 32 << 10);
        assert_eq!(free_bytes(&reply(&[0, 4096, 9, 9, 10, 0])), Some(40960));
        assert_eq!(free_bytes(&reply(&[0, u64::MAX, 9, 9, 10])), Some(u64::MAX));
        assert_eq!(free_bytes(&[0; 39]), None);
    }

    #[tokio::test]
    async fn hostile_packets_are_refused_before_room_is_made_for_them() {
        for bytes in
            [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x01\xee", b"\0\0\0\x00", b"\0\0\0\x05\x65\0\0", b"\0\0"]
        {
            assert!(receive(&mut &bytes[..]).await.is_err(), "{bytes:?}");
        }
        // SSH_FXP_NAME with four billion names.
        assert!(receive(&mut &b"\0\0\0\x09\x68\0\0\0\x01\xff\xff\xff\xff"[..]).await.is_err());
    }
}

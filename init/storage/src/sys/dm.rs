//! The ioctls of /dev/mapper/control (include/uapi/linux/dm-ioctl.h): makes, loads, starts and
//! removes device-mapper devices.
//!
//! Requests may hold keys, so every buffer is wiped, and the kernel is asked to wipe its own copies
//! (DM_SECURE_DATA_FLAG).

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::stat::{major, minor};
use zeroize::Zeroizing;

use base::addr::to_u64;

const CONTROL: &str = "/dev/mapper/control";
/// `sizeof(struct dm_ioctl)`.
const HEADER_LEN: usize = 312;
/// `sizeof(struct dm_target_spec)`; its text follows.
const SPEC_LEN: usize = 40;
/// Room for a table that the kernel gives back: a segment takes some hundred bytes.
const TABLE_LEN: usize = 1 << 20;
/// Version of the interface that we speak; the kernel takes an older minor one. 4.20 (2.6.39) has
/// DM_SECURE_DATA_FLAG.
const VERSION: [u32; 3] = [4, 20, 0];
const NAME_LEN: usize = 128;
const UUID_LEN: usize = 129;

const DM_STATUS_TABLE_FLAG: u32 = 1 << 4;
const DM_BUFFER_FULL_FLAG: u32 = 1 << 8;
const DM_SECURE_DATA_FLAG: u32 = 1 << 15;

// Fields of struct dm_ioctl.
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const DEV: usize = 40;
const NAME: usize = 48;
const UUID: usize = 176;

// Numbers of the commands.
const DM_DEV_CREATE: u8 = 3;
const DM_DEV_REMOVE: u8 = 4;
const DM_DEV_SUSPEND: u8 = 6;
const DM_DEV_STATUS: u8 = 7;
const DM_TABLE_LOAD: u8 = 9;
const DM_TABLE_STATUS: u8 = 12;

/// A line of a table: sectors of the new device and what they are mapped to.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// First sector of 512 bytes.
    pub start: u64,
    /// Number of sectors.
    pub len: u64,
    /// `linear`, `striped`, `crypt`.
    pub kind: String,
    /// What the target wants to know; may hold a key.
    pub parameters: Zeroizing<String>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ..", self.start, self.len, self.kind)
    }
}

/// The control device.
#[derive(Debug)]
pub struct Control(File);

impl Control {
    /// Opens it; devtmpfs makes the node when dm_mod is loaded.
    pub fn open() -> io::Result<Self> {
        File::options().read(true).write(true).open(CONTROL).map(Self)
    }

    /// Makes a device without a table; gives the minor number, which is the N of /dev/dm-N.
    /// `EBUSY`: the name or UUID is taken.
    pub fn create(&self, name: &str, uuid: &str) -> io::Result<u64> {
        let mut request = request(name, 0)?;
        put_text(&mut request, UUID, UUID_LEN, uuid)?;
        self.call(DM_DEV_CREATE, &mut request)?;
        Ok(minor(read_u64(&request, DEV)))
    }

    /// The minor number of a device that there is.
    pub fn minor(&self, name: &str) -> io::Result<u64> {
        let mut request = request(name, 0)?;
        self.call(DM_DEV_STATUS, &mut request)?;
        Ok(minor(read_u64(&request, DEV)))
    }

    /// Loads a table, to be used after the next [`Control::resume`].
    pub fn load(&self, name: &str, table: &[Target]) -> io::Result<()> {
        let data: usize = table.iter().map(spec_len).fold(0, usize::saturating_add);
        let mut request = request(name, data)?;
        put(&mut request, FLAGS, &DM_SECURE_DATA_FLAG.to_ne_bytes());
        put(&mut request, TARGET_COUNT, &count(table.len())?.to_ne_bytes());
        let mut at = HEADER_LEN;
        for target in table {
            let len = spec_len(target);
            put(&mut request, at, &target.start.to_ne_bytes()); // struct dm_target_spec
            put(&mut request, at.saturating_add(8), &target.len.to_ne_bytes());
            put(&mut request, at.saturating_add(20), &count(len)?.to_ne_bytes()); // next
            put_text(&mut request, at.saturating_add(24), 16, &target.kind)?;
            put(&mut request, at.saturating_add(SPEC_LEN), target.parameters.as_bytes());
            at = at.saturating_add(len);
        }
        self.call(DM_TABLE_LOAD, &mut request)
    }

    /// Starts a device with the table that was loaded.
    pub fn resume(&self, name: &str) -> io::Result<()> {
        self.call(DM_DEV_SUSPEND, &mut request(name, 0)?) // without DM_SUSPEND_FLAG it is the opposite
    }

    /// Removes a device. `EBUSY`: it is in use. `ENXIO`: there is none.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.call(DM_DEV_REMOVE, &mut request(name, 0)?)
    }

    /// The table in use. For a device without kernel key ring it holds the key.
    pub fn table(&self, name: &str) -> io::Result<Vec<Target>> {
        let mut request = request(name, TABLE_LEN)?;
        put(&mut request, FLAGS, &(DM_STATUS_TABLE_FLAG | DM_SECURE_DATA_FLAG).to_ne_bytes());
        self.call(DM_TABLE_STATUS, &mut request)?;
        if read_u32(&request, FLAGS) & DM_BUFFER_FULL_FLAG != 0 {
            return Err(io::Error::other("the table is larger than 1 MiB"));
        }
        let data =
            usize::try_from(read_u32(&request, DATA_START)).ok().and_then(|start| request.get(start..));
        Ok(parse_table(data.unwrap_or_default(), read_u32(&request, TARGET_COUNT)))
    }

    fn call(&self, command: u8, request: &mut Zeroizing<Vec<u8>>) -> io::Result<()> {
        let code = nix::request_code_readwrite!(0xfd, command, HEADER_LEN);
        // SAFETY:
        // - The descriptor is open as long as `self` is.
        // - `request` is exclusive, and the kernel reads and writes only the `data_size` bytes that
        //   it says it has, which is its length (`request` below sets it).
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), code, request.as_mut_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Major and minor number of a block device as tables name it: `253:1`.
#[must_use]
pub fn device_numbers(rdev: u64) -> String {
    format!("{}:{}", major(rdev), minor(rdev))
}

/// struct dm_ioctl for the device `name`, with `data` bytes behind it.
fn request(name: &str, data: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let len = HEADER_LEN.saturating_add(data);
    let mut bytes = Zeroizing::new(vec![0; len]);
    for (index, part) in VERSION.iter().enumerate() {
        put(&mut bytes, index.saturating_mul(4), &part.to_ne_bytes());
    }
    put(&mut bytes, DATA_SIZE, &count(len)?.to_ne_bytes());
    put(&mut bytes, DATA_START, &count(HEADER_LEN)?.to_ne_bytes());
    put_text(&mut bytes, NAME, NAME_LEN, name)?;
    Ok(bytes)
}

/// Bytes of a target in a request: its fields, its text, a NUL, up to a multiple of 8.
fn spec_len(target: &Target) -> usize {
    let text = target.parameters.len().saturating_add(1);
    SPEC_LEN.saturating_add(text).checked_next_multiple_of(8).unwrap_or(usize::MAX)
}

/// The targets in what TABLE_STATUS gives back. `next` counts from the start of the data there
/// (dm-ioctl.c: retrieve_status).
fn parse_table(data: &[u8], count: u32) -> Vec<Target> {
    let mut table = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let Some(spec) = data.get(at..).filter(|spec| spec.len() > SPEC_LEN) else { break };
        let text = |from: usize, len: usize| {
            let bytes = spec.get(from..).unwrap_or_default();
            let bytes = bytes.get(..len.min(bytes.len())).unwrap_or_default();
            String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
        };
        table.push(Target {
            start: read_u64(spec, 0),
            len: read_u64(spec, 8),
            kind: text(24, 16),
            parameters: Zeroizing::new(text(SPEC_LEN, usize::MAX).trim_end().to_owned()),
        });
        let next = usize::try_from(read_u32(spec, 20)).unwrap_or(0);
        if next <= at {
            break;
        }
        at = next;
    }
    table
}

fn count(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(|_| io::Error::other(format!("a request of {} bytes", to_u64(len))))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = at.checked_add(value.len()).and_then(|end| bytes.get_mut(at..end)) {
        place.copy_from_slice(value);
    }
}

/// Puts a text where the kernel has `room` bytes for it and its NUL.
fn put_text(bytes: &mut [u8], at: usize, room: usize, text: &str) -> io::Result<()> {
    if text.len() >= room || text.contains('\0') {
        return Err(io::Error::other(format!("{text:?} does not fit into {room} bytes")));
    }
    put(bytes, at, text.as_bytes());
    Ok(())
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(start: u64, parameters: &str) -> Target {
        Target { start, len: 8, kind: "linear".into(), parameters: Zeroizing::new(parameters.into()) }
    }

    #[test]
    fn requests_are_laid_out_as_the_header_says() {
        let bytes = request("name", 8).unwrap();
        assert_eq!(bytes.len(), 320);
        assert_eq!(
            (read_u32(&bytes, 0), read_u32(&bytes, DATA_SIZE), read_u32(&bytes, DATA_START)),
            (4, 320, 312)
        );
        assert_eq!(&bytes[48..53], b"name\0");
        assert!(request(&"x".repeat(128), 0).is_err());
        assert_eq!((spec_len(&target(0, "1234567")), spec_len(&target(0, "12345678"))), (48, 56));
    }

    #[test]
    fn tables_come_back_and_hostile_ones_end() {
        let mut data = vec![0; 112];
        put(&mut data, 8, &8_u64.to_ne_bytes());
        put(&mut data, 20, &56_u32.to_ne_bytes());
        put(&mut data, 24, b"linear\0");
        put(&mut data, 40, b"253:0 2048\0");
        put(&mut data, 56, &8_u64.to_ne_bytes());
        put(&mut data, 64, &8_u64.to_ne_bytes());
        put(&mut data, 76, &112_u32.to_ne_bytes());
        put(&mut data, 80, b"linear\0");
        put(&mut data, 96, b"253:1 0 \0");
        assert_eq!(parse_table(&data, 2), [target(0, "253:0 2048"), target(8, "253:1 0")]);
        put(&mut data, 76, &56_u32.to_ne_bytes());
        assert_eq!(parse_table(&data, u32::MAX).len(), 2, "a next that does not move on is the end");
        assert_eq!(parse_table(&data[..30], 1), []);
        assert!(!format!("{:?}", target(0, "secret")).contains("secret"));
    }
}

//! Sets up the LVM volumes and LUKS devices that a target stands on, as the loader found them.
//!
//! Facts are not believed: devices are found by the IDs on them, the metadata are read again, and
//! what is no longer as it was when the image was loaded is refused. A table that is out of date
//! would write into other people's data.

mod difference;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use zeroize::Zeroizing;

use crate::format::lvm::LvmError;
use crate::metadata::{self, MetadataError};
use crate::sys::dm::{self, Control, Target};
use crate::{block, patience};
use base::beat;
use base::facts::stack::{Encrypted, Layer, LogicalVolume, LuksHeader, Stack};
use difference::header_difference;
pub use difference::volume_difference;

const POLL: Duration = Duration::from_millis(100);
/// Sectors of 512 bytes in the sector size that dm-crypt takes for granted.
const PLAIN_SECTOR: u64 = 512;

/// Why a stack is not set up.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// No device mapper.
    #[error("opening the device mapper: is the module dm_mod in the image?")]
    Control(#[source] io::Error),
    /// A device is not there.
    #[error("{layer}: {id} did not appear within {seconds} s")]
    Missing {
        /// What is to be set up.
        layer: String,
        /// What it stands on.
        id: String,
        /// Seconds that were waited.
        seconds: u64,
    },
    /// Two devices say that they are the same: copies, or paths to one disk.
    #[error("{layer}: {id} is on both {first} and {second}")]
    Twice {
        /// What is to be set up.
        layer: String,
        /// What it stands on.
        id: String,
        /// A device with it.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
    /// The metadata cannot be read or used.
    #[error("{layer}, metadata on {device}")]
    Metadata {
        /// What is to be set up.
        layer: String,
        /// Where they are.
        device: PathBuf,
        /// Cause.
        source: MetadataError,
    },
    /// No physical volume has metadata.
    #[error("{0}: there are no metadata on its physical volumes")]
    NoMetadata(String),
    /// Things have changed since the image was loaded.
    #[error(
        "{layer} has changed since the image was loaded: {what} was {was} and is {is}; load the image again \
         after a change"
    )]
    Changed {
        /// What is to be set up.
        layer: String,
        /// What is different.
        what: &'static str,
        /// Then.
        was: String,
        /// Now.
        is: String,
    },
    /// The key does not fit the header, or a number is out of range.
    #[error("{layer}: {what} makes no sense")]
    Nonsense {
        /// What is to be set up.
        layer: String,
        /// What it is about.
        what: &'static str,
    },
    /// The device mapper refuses.
    #[error("{layer}: {what}")]
    Setup {
        /// What is to be set up.
        layer: String,
        /// What was being done.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
}

impl From<StackError> for vmcore::target::TargetError {
    fn from(error: StackError) -> Self {
        Self::because(error)
    }
}

/// A stack that is set up; taken down when dropped, as far as that goes.
#[derive(Debug)]
pub struct Active {
    control: Control,
    names: Vec<String>,
    top: Option<PathBuf>,
}

/// A block device under a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// ID of the physical volume, or UUID of the LUKS device.
    pub id: String,
    /// Its numbers as a table names it: `253:1`.
    pub numbers: String,
    /// Its length, sectors of 512 bytes.
    pub sectors: u64,
}

/// Sets up a stack. Waits up to `wait` for each device of it, and tells PID 1 meanwhile.
pub fn activate(stack: &Stack, wait: Duration) -> Result<Active, StackError> {
    let control = Control::open().map_err(StackError::Control)?;
    let mut active = Active { control, names: Vec::new(), top: None };
    for layer in &stack.layers {
        let found = find(layer, wait)?;
        let places = check(layer, &found)?;
        let table = table(layer, &places)?;
        active.start(layer, &table)?;
    }
    Ok(active)
}

/// The table of a layer on the devices that hold it.
pub fn table(layer: &Layer, places: &[Place]) -> Result<Vec<Target>, StackError> {
    let nonsense = |what| StackError::Nonsense { layer: layer.to_string(), what };
    match layer {
        Layer::Lvm(volume) => volume_table(volume, places).ok_or_else(|| nonsense("the segment map")),
        Layer::Luks(device) => {
            if to_len(&device.header) != Some(device.key.len()) {
                return Err(nonsense("the length of the key"));
            }
            crypt_table(device, places).ok_or_else(|| nonsense("the place of the data"))
        }
    }
}

/// A device that holds an ID that was looked for.
#[derive(Debug)]
struct Found {
    id: String,
    node: PathBuf,
    file: File,
}

/// Waits for what a layer stands on.
fn find(layer: &Layer, wait: Duration) -> Result<Vec<Found>, StackError> {
    let wanted: Vec<&str> = match layer {
        Layer::Lvm(volume) => volume.physical.iter().map(|physical| physical.id.as_str()).collect(),
        Layer::Luks(device) => vec![&device.header.uuid],
    };
    let start = Instant::now();
    loop {
        let found = look(layer, &wanted);
        for (index, one) in found.iter().enumerate() {
            if let Some(other) = found.iter().skip(index.saturating_add(1)).find(|other| other.id == one.id) {
                let (layer, id) = (layer.to_string(), describe(layer, &one.id));
                return Err(StackError::Twice {
                    layer,
                    id,
                    first: one.node.clone(),
                    second: other.node.clone(),
                });
            }
        }
        let Some(missing) = wanted.iter().find(|id| !found.iter().any(|one| one.id == **id)) else {
            return Ok(found);
        };
        if start.elapsed() >= wait {
            let id = describe(layer, missing);
            return Err(StackError::Missing { layer: layer.to_string(), id, seconds: wait.as_secs() });
        }
        beat::alive();
        sleep(POLL);
    }
}

/// The devices that hold one of the IDs.
fn look(layer: &Layer, wanted: &[&str]) -> Vec<Found> {
    let is_volume = matches!(layer, Layer::Lvm(_));
    let read = move |node: &Path| {
        let file = File::open(node).ok()?;
        // A header that cannot be used is an error of this layer only if it is the one: see
        // `check`.
        let id = if is_volume { metadata::label(&file)?.id } else { metadata::luks_uuid(&file)? };
        Some(Found { id, node: node.to_owned(), file })
    };
    let found = patience::ask(&block::nodes(), read).into_iter().flatten().flatten();
    found.filter(|found| wanted.contains(&found.id.as_str())).collect()
}

fn describe(layer: &Layer, id: &str) -> String {
    match layer {
        Layer::Lvm(_) => format!("physical volume {id}"),
        Layer::Luks(_) => "its header".to_owned(),
    }
}

/// Compares what the devices say today with what was recorded.
fn check(layer: &Layer, found: &[Found]) -> Result<Vec<Place>, StackError> {
    let changed = |(what, was, is)| StackError::Changed { layer: layer.to_string(), what, was, is };
    let mut places = Vec::new();
    let mut seen = false;
    for Found { id, node, file } in found {
        let failed = |source| StackError::Metadata { layer: layer.to_string(), device: node.clone(), source };
        match layer {
            Layer::Lvm(was) => {
                let label = metadata::label(file);
                let group =
                    label.map(|label| metadata::volume_group(file, &label)).transpose().map_err(failed)?;
                if let Some(group) = group.flatten() {
                    seen = true;
                    let early = [
                        ("the ID of the volume group", was.group_id.clone(), group.id.clone()),
                        ("the metadata's seqno", was.seqno.to_string(), group.seqno.to_string()),
                    ];
                    early.into_iter().find(|(_, was, is)| was != is).map_or(Ok(()), |it| Err(changed(it)))?;
                    let is = group.volume(&was.id).map_err(|error: LvmError| failed(error.into()))?;
                    volume_difference(was, &is).map_or(Ok(()), |it| Err(changed(it)))?;
                }
            }
            Layer::Luks(was) => {
                seen = true;
                let is = metadata::luks(file).map_err(failed)?.unwrap_or_default();
                header_difference(&was.header, &is).map_or(Ok(()), |it| Err(changed(it)))?;
            }
        }
        let sectors = metadata::sectors(file).map_err(failed)?;
        let numbers = file.metadata().map(|metadata| dm::device_numbers(metadata.rdev()));
        let numbers = numbers.map_err(|source| failed(MetadataError::Read { len: 0, offset: 0, source }))?;
        places.push(Place { id: id.clone(), numbers, sectors });
    }
    if seen { Ok(places) } else { Err(StackError::NoMetadata(layer.to_string())) }
}

fn volume_table(volume: &LogicalVolume, places: &[Place]) -> Option<Vec<Target>> {
    let lines = volume.segments.iter().map(|segment| {
        let parts = segment.stripes.iter().map(|stripe| {
            let physical = volume.physical.iter().find(|physical| physical.id == stripe.physical)?;
            let place = places.iter().find(|place| place.id == stripe.physical)?;
            let start = stripe.extent.checked_mul(volume.extent_size)?.checked_add(physical.pe_start)?;
            Some(format!("{} {start}", place.numbers))
        });
        let parts = parts.collect::<Option<Vec<_>>>()?.join(" ");
        let (kind, parameters) = match segment.stripes.len() {
            0 => return None,
            1 => ("linear", parts),
            stripes => ("striped", format!("{stripes} {} {parts}", segment.stripe_size)),
        };
        Some(Target {
            start: segment.start.checked_mul(volume.extent_size)?,
            len: segment.count.checked_mul(volume.extent_size)?,
            kind: kind.to_owned(),
            parameters: Zeroizing::new(parameters),
        })
    });
    lines.collect()
}

/// Documentation/admin-guide/device-mapper/dm-crypt.rst.
fn crypt_table(device: &Encrypted, places: &[Place]) -> Option<Vec<Target>> {
    let header = &device.header;
    let place = places.first()?;
    let room = place.sectors.checked_sub(header.offset)?;
    let len = header.sectors.map_or(Some(room), |sectors| (sectors <= room).then_some(sectors))?;
    let unit = header.sector_size.checked_div(512).filter(|unit| *unit > 0)?;
    let len = len.checked_sub(len.checked_rem(unit)?).filter(|len| *len > 0)?;
    let options = if header.sector_size == PLAIN_SECTOR {
        String::new()
    } else {
        format!(" 1 sector_size:{}", header.sector_size)
    };
    let key = device.key.hex();
    let LuksHeader { cipher, iv_offset, offset, .. } = header;
    let parts = [
        cipher,
        " ",
        &key,
        " ",
        &iv_offset.to_string(),
        " ",
        &place.numbers,
        " ",
        &offset.to_string(),
        &options,
    ];
    // Grown, a text leaves copies of the key behind.
    let mut parameters = Zeroizing::new(String::with_capacity(parts.iter().map(|part| part.len()).sum()));
    for part in parts {
        parameters.push_str(part);
    }
    Some(vec![Target { start: 0, len, kind: "crypt".to_owned(), parameters }])
}

fn to_len(header: &LuksHeader) -> Option<usize> {
    usize::try_from(header.key_len).ok()
}

impl Active {
    /// The uppermost device: what the target is on. Its file system may be on other devices, too,
    /// such as a copy.
    #[must_use]
    pub fn top(&self) -> Option<&Path> {
        self.top.as_deref()
    }

    fn start(&mut self, layer: &Layer, table: &[Target]) -> Result<(), StackError> {
        let id = match layer {
            Layer::Lvm(volume) => &volume.id,
            Layer::Luks(device) => &device.header.uuid,
        };
        let name = format!("afterimage-{id}");
        let failed = |what| move |source| StackError::Setup { layer: layer.to_string(), what, source };
        let minor = match self.control.create(&name, &name) {
            // An attempt that died has left it. What is in use was set up from the same facts, and
            // on the same devices.
            Err(error) if is(&error, Errno::EBUSY) => match self.control.remove(&name) {
                Err(error) if is(&error, Errno::EBUSY) => {
                    let minor =
                        self.control.minor(&name).map_err(failed("using what an earlier attempt left"))?;
                    self.top = Some(node_of(minor));
                    self.names.push(name);
                    log::info!("{layer} is /dev/dm-{minor}, in use from an earlier attempt");
                    return Ok(());
                }
                removed => removed.and_then(|()| self.control.create(&name, &name)),
            },
            created => created,
        };
        let minor = minor.map_err(failed("making the device"))?;
        self.names.push(name.clone()); // from here on there is something to remove
        self.control.load(&name, table).map_err(failed("loading its table"))?;
        self.control.resume(&name).map_err(failed("starting it"))?;
        self.top = Some(node_of(minor));
        log::info!("{layer} is /dev/dm-{minor}");
        Ok(())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        for name in self.names.iter().rev() {
            if let Err(error) = self.control.remove(name) {
                log::warn!("{name} stays set up: {error}");
            }
        }
    }
}

/// Where devtmpfs puts a device of the device mapper.
fn node_of(minor: u64) -> PathBuf {
    format!("/dev/dm-{minor}").into()
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::facts::stack::{PhysicalVolume, Segment, Stripe, VolumeKey};

    fn place(id: &str, numbers: &str) -> Place {
        Place { id: id.into(), numbers: numbers.into(), sectors: 10_007 }
    }

    fn volume() -> LogicalVolume {
        let stripe = |physical: &str, extent| Stripe { physical: physical.into(), extent };
        let physical = |id: &str, pe_start| PhysicalVolume { id: id.into(), pe_start };
        LogicalVolume {
            extent_size: 8,
            seqno: 4,
            segments: vec![
                Segment { start: 0, count: 3, stripe_size: 0, stripes: vec![stripe("a", 5)] },
                Segment {
                    start: 3,
                    count: 4,
                    stripe_size: 16,
                    stripes: vec![stripe("b", 0), stripe("a", 1)],
                },
            ],
            physical: vec![physical("a", 100), physical("b", 200)],
            ..LogicalVolume::default()
        }
    }

    fn encrypted(sector_size: u64) -> Encrypted {
        let header = LuksHeader {
            uuid: "u".into(),
            version: 2,
            cipher: "aes-xts-plain64".into(),
            sector_size,
            offset: 2000,
            key_len: 2,
            ..LuksHeader::default()
        };
        Encrypted { header, key: VolumeKey::from_hex("a1b2").unwrap() }
    }

    fn lines(layer: &Layer, places: &[Place]) -> Result<Vec<String>, String> {
        let table = table(layer, places).map_err(|error| error.to_string())?;
        let line = |t: &Target| format!("{} {} {} {}", t.start, t.len, t.kind, *t.parameters);
        Ok(table.iter().map(line).collect())
    }

    #[test]
    fn a_volume_is_mapped_segment_by_segment() {
        let places = [place("b", "8:1"), place("a", "254:16")];
        let layer = Layer::Lvm(volume());
        let expected = ["0 24 linear 254:16 140", "24 32 striped 2 16 8:1 200 254:16 108"];
        assert_eq!(lines(&layer, &places).unwrap(), expected);
        assert!(lines(&layer, &places[..1]).unwrap_err().contains("segment map"));
        let huge = Layer::Lvm(LogicalVolume { extent_size: u64::MAX, ..volume() });
        assert!(lines(&huge, &places).is_err());
    }

    #[test]
    fn a_crypt_table_holds_key_and_whole_sectors() {
        let places = [place("u", "253:7")];
        let of = |device: Encrypted| lines(&Layer::Luks(device), &places);
        assert_eq!(of(encrypted(512)).unwrap(), ["0 8007 crypt aes-xts-plain64 a1b2 0 253:7 2000"]);
        let large = "0 8000 crypt aes-xts-plain64 a1b2 0 253:7 2000 1 sector_size:4096";
        assert_eq!(of(encrypted(4096)).unwrap(), [large]);
        let mut short = encrypted(512);
        short.header.sectors = Some(9000);
        assert!(of(short).unwrap_err().contains("place of the data"));
        let mut other = encrypted(512);
        other.header.key_len = 32;
        assert!(of(other).unwrap_err().contains("length of the key"));
    }

    #[test]
    fn what_has_changed_is_named() {
        let was = volume();
        let is = LogicalVolume { seqno: 5, ..volume() };
        let difference = volume_difference(&was, &is);
        assert_eq!(difference, Some(("the metadata's seqno", "4".into(), "5".into())));
        assert_eq!(volume_difference(&was, &volume()), None);
        let mut moved = volume();
        moved.segments[0].stripes[0].extent = 6;
        assert_eq!(volume_difference(&was, &moved).unwrap().0, "the segment map");
        let (was, mut is) = (encrypted(512).header, encrypted(512).header);
        assert_eq!(header_difference(&was, &is), None);
        is.cipher = "aes-cbc-essiv:sha256".into();
        assert_eq!(header_difference(&was, &is).unwrap().0, "the cipher");
    }
}

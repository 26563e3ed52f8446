//! What the loader recorded about the production kernel while it was healthy.
//!
//! Everything works without facts. With them the dump's directory has a host name and boot id even
//! if the old memory is too damaged to tell, and later steps know the machine's whole memory map.
//! They travel in a small cpio that `afterimage load` appends to the image in memory.

pub mod boot;
pub mod evidence;
pub mod handover;
pub mod remote;
pub mod site;
pub mod stack;
pub mod switch;

use serde::{Deserialize, Serialize};

use crate::config::Link;

pub use boot::{Boot, Root};
pub use evidence::Evidence;
pub use remote::{AccessKeys, Remote, Secret};
pub use site::{Disk, Identity, Recorded, View};
pub use stack::Stack;
pub use switch::{Intent, Live, Planned, Trigger};

/// Facts about the production kernel. Unknown keys are ignored: an image may be loaded by a newer
/// `afterimage`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Host name (`uname -n`).
    pub host: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Kernel release (`uname -r`).
    pub release: String,
    /// When the image was loaded, seconds since 1970.
    pub loaded_at: u64,
    /// CRC32 of the kernel image that was loaded, as hex.
    pub kernel_crc32: String,
    /// CRC32 of the capture image as it lay on disk, as hex.
    pub image_crc32: String,
    /// Size of the crash kernel reservation, bytes.
    pub reservation: u64,
    /// VMCOREINFO of the running kernel, as text: where the note of the vmcore is damaged, this one
    /// is not.
    pub vmcoreinfo: String,
    /// What walkers through the kernel's memory have to know of it (`symbols::knowledge::Answers`), as
    /// text: a capture then needs not read the kernel's own tables, which may be damaged.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub knowledge: String,
    /// CPUs that were online.
    pub cpus: u32,
    /// APIC id of the CPU that the firmware started; the capture kernel may run on another one.
    pub boot_apic_id: Option<u32>,
    /// Physical address of the handover page, where our own loader left one; see [`switch`].
    pub handover: Option<u64>,
    /// The planned switch that this image was loaded for; none for an image that waits for a panic.
    pub planned: Option<Planned>,
    /// `/proc/iomem`'s top level: the machine's physical memory map.
    pub memory_map: Vec<MemoryRange>,
    /// Memory of users that the capture kernel takes for itself (`crashkernel=N,cma`, 6.17); it is in
    /// no dump.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cma: Vec<MemoryRange>,
    /// `/sys/firmware/memmap`: the memory map as the firmware gave it, for the kernel that comes
    /// after the capture.
    pub firmware_map: Vec<MemoryRange>,
    /// The next kernel, where a final action may need it.
    pub boot: Option<Boot>,
    /// The root file system, where a final action may need it.
    pub root: Option<Root>,
    /// What stands between targets and disks. Holds the keys of LUKS devices: wipe the text that it
    /// is written to.
    pub stacks: Vec<Stack>,
    /// Which devices the configured names meant.
    pub disks: Vec<Disk>,
    /// Where the host sees the targets' directories.
    pub views: Vec<View>,
    /// Targets on the network. Holds keys, too.
    pub remotes: Vec<Remote>,
    /// What signs the capture. Holds a key, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// The host's links, where the configuration wants the capture to have the same.
    pub network: Vec<Link>,
}

/// A line of `/proc/iomem`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Last address (inclusive, as the kernel prints it).
    pub last: u64,
    /// What it is, such as "System RAM".
    pub kind: String,
}

impl Facts {
    /// Parses facts; what cannot be parsed is an error text, and the caller goes on without. The
    /// text does not show the line that is wrong, as TOML errors do: it may hold a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            format!("line {}: {}", before.matches('\n').count().saturating_add(1), error.message())
        })
    }

    /// What is known of devices.
    #[must_use]
    pub fn recorded(&self) -> Recorded<'_> {
        Recorded { stacks: &self.stacks, disks: &self.disks }
    }

    /// The facts as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }
}

/// Reads the top level of `/proc/iomem`, where every reader but root sees zeros only.
#[must_use]
pub fn parse_iomem(text: &str) -> Vec<MemoryRange> {
    let top = text.lines().filter(|line| !line.starts_with(' '));
    top.filter_map(|line| {
        let (range, kind) = line.split_once(" : ")?;
        let (start, last) = range.split_once('-')?;
        let parse = |text| u64::from_str_radix(text, 16).ok();
        Some(MemoryRange { start: parse(start)?, last: parse(last)?, kind: kind.to_owned() })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_round_trip() {
        let iomem =
            "00001000-0009fbff : System RAM\n  00002000-00003000 : inner\n100000000-1bfffffff : System RAM\n";
        let facts = Facts { host: "a\"b".into(), memory_map: parse_iomem(iomem), ..Facts::default() };
        assert_eq!(facts.memory_map.len(), 2);
        assert_eq!(facts.memory_map[1].last, 0x1_bfff_ffff);
        assert_eq!(Facts::parse(&facts.to_toml()), Ok(facts));
    }

    #[test]
    fn unknown_keys_are_ignored_and_rubbish_is_told() {
        assert_eq!(Facts::parse("host = \"x\"\nnew = 1").unwrap().host, "x");
        assert!(Facts::parse("host = 1").unwrap_err().starts_with("line 1: "));
        let cut = "host = \"h\"\n[[stacks]]\nkey = \"5ec4e7";
        let error = Facts::parse(cut).unwrap_err();
        assert!(error.starts_with("line 3: ") && !error.contains("5ec4e7"), "{error}");
    }
}

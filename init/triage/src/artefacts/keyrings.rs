//! `keyrings.jsonl`: keys that the kernel keeps: what they are called and whose they are, never what is
//! in them.

use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::{layouts, tree};

use super::timeline::Moment;
use super::{Artefact, Ground, Row, Rows, Stop};
use crate::mounts;

/// Keys that are believed.
const MAX: usize = 200_000;
/// `TIME64_MAX`: such a key does not expire.
const NEVER: u64 = i64::MAX.cast_unsigned();
/// Bits of `key.flags` (include/linux/key.h, since 4.15).
const FLAGS: [(u32, &str); 4] = [(0, "dead"), (1, "revoked"), (2, "in quota"), (5, "invalidated")];

layouts! {
    KeyLayout of "key" {
        node: "serial_node",
        serial: "serial",
        uid: "uid",
        gid: "gid",
        permissions: "perm",
        expiry: "expiry",
        used: "last_used_at",
        flags: "flags",
        kind: "index_key.type",
        description: "index_key.description",
    }
    KindLayout of "key_type" {
        name: "name",
    }
}

pub(super) struct Layout {
    key: KeyLayout,
    kind: KindLayout,
    tree: Option<VirtAddr>,
}

impl Artefact for Layout {
    const NAME: &'static str = "keyrings";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let tree = known.symbol("key_serial_tree");
        Ok(Self { key: KeyLayout::ask(known)?, kind: KindLayout::ask(known)?, tree })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let root = self.tree.ok_or_else(|| Stop::no_symbol("key_serial_tree"))?;
        let (nodes, whole) = tree::all(ground.system.kernel, root, MAX);
        for node in nodes {
            rows.add(&self.row(ground, VirtAddr(node.0.wrapping_sub(self.key.node))))?;
        }
        if whole { Ok(()) } else { rows.miss("the tree of keys", &"parts of it cannot be read") }
    }
}

impl Layout {
    fn row(&self, ground: &Ground<'_>, at: VirtAddr) -> Row {
        let (system, key) = (ground.system, &self.key);
        let mut row = Row::at(at);
        let serial = system.half(at, key.serial, "key.serial");
        // As /proc/keys and keyctl show it.
        row.read("linux.key.serial", serial.map(|serial| format!("{serial:08x}")));
        let kind = system.follow(at, key.kind, "key.type");
        row.read("linux.key.type", kind.and_then(|kind| mounts::text(system, kind, self.kind.name)));
        let description = mounts::text(system, at, key.description);
        let name = description.as_ref().ok().cloned().unwrap_or_default();
        row.read("linux.key.description", description);
        for (name, offset) in [("user.id", key.uid), ("group.id", key.gid)] {
            row.read(name, system.half(at, offset, "key").map(|id| id.to_string()));
        }
        let permissions = system.half(at, key.permissions, "key.perm");
        row.read("linux.key.permissions", permissions.map(|mask| format!("{mask:08x}")));
        let flags = system.word(at, key.flags, "key.flags");
        row.read("linux.key.flags", flags.map(words));
        for (name_of_time, offset, kind) in [
            ("linux.key.expires", key.expiry, "Expiration Time"),
            ("linux.key.last_used", key.used, "Last Used Time"),
        ] {
            match system.word(at, offset, "a time of a key") {
                Ok(0 | NEVER) => {}
                Ok(seconds) => {
                    row.put(name_of_time, base::time::utc(seconds).ok_or("no clock shows such a time"));
                    let message = format!("key {name:?}");
                    row.happened(Moment { at: seconds, message, kind });
                }
                Err(error) => row.error(name_of_time, &base::log::chain(&error)),
            }
        }
        row
    }
}

fn words(flags: u64) -> Vec<&'static str> {
    FLAGS.into_iter().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, word)| word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_words() {
        assert_eq!(words(0b10_0110), ["revoked", "in quota", "invalidated"]);
        assert!(words(1 << 9).is_empty());
    }
}

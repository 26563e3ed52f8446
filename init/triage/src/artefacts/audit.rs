//! `audit.jsonl`: records of the audit system that no daemon has got yet: its backlog.

use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::{layouts, list};

use super::timeline::Moment;
use super::{Artefact, Ground, Row, Rows, Stop};

/// Records of a queue that are believed; the backlog is limited to 8192 by most distributions.
const MAX: usize = 100_000;
/// Bytes of a record (`MAX_AUDIT_MESSAGE_LENGTH`).
const TEXT: u32 = 8970;
/// `struct nlmsghdr` is before the text; its type is behind its length.
const HEADER: u32 = 16;
const TYPE: u64 = 4;
/// What waits for a daemon, what a daemon could not take, and what there was no daemon for.
const QUEUES: [(&str, &str); 3] =
    [("backlog", "audit_queue"), ("retry", "audit_retry_queue"), ("hold", "audit_hold_queue")];
/// Types that are met most (include/uapi/linux/audit.h).
const TYPES: [(u16, &str); 22] = [
    (1006, "LOGIN"),
    (1130, "SERVICE_START"),
    (1131, "SERVICE_STOP"),
    (1300, "SYSCALL"),
    (1302, "PATH"),
    (1305, "CONFIG_CHANGE"),
    (1306, "SOCKADDR"),
    (1307, "CWD"),
    (1309, "EXECVE"),
    (1320, "EOE"),
    (1325, "NETFILTER_CFG"),
    (1326, "SECCOMP"),
    (1327, "PROCTITLE"),
    (1330, "KERN_MODULE"),
    (1333, "TIME_INJOFFSET"),
    (1334, "BPF"),
    (1335, "EVENT_LISTENER"),
    (1400, "AVC"),
    (1403, "MAC_POLICY_LOAD"),
    (1700, "ANOM_PROMISCUOUS"),
    (1701, "ANOM_ABEND"),
    (2000, "KERNEL"),
];

layouts! {
    PacketLayout of "sk_buff" {
        len: "len",
        data: "data",
    }
}

pub(super) struct Layout {
    packet: PacketLayout,
    queues: [(&'static str, &'static str, Option<VirtAddr>); 3],
}

impl Artefact for Layout {
    const NAME: &'static str = "audit";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let queues = QUEUES.map(|(name, symbol)| (name, symbol, known.symbol(symbol)));
        Ok(Self { packet: PacketLayout::ask(known)?, queues })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        for (queue, symbol, head) in self.queues {
            let Some(head) = head else {
                rows.miss(symbol, &"the kernel has no symbol of it: it may be without CONFIG_AUDIT")?;
                continue;
            };
            // The head of packets begins as any list does, and so does each packet.
            let (packets, whole) = list::all(ground.system.kernel, head, MAX);
            for packet in packets {
                let mut row = Row::at(packet);
                row.set("linux.audit.queue", queue);
                self.record(ground, packet, &mut row);
                rows.add(&row)?;
            }
            if !whole {
                rows.miss(symbol, &"it cannot be read to its end")?;
            }
        }
        Ok(())
    }
}

impl Layout {
    fn record(&self, ground: &Ground<'_>, packet: VirtAddr, row: &mut Row) {
        let system = ground.system;
        let len = system.half(packet, self.packet.len, "sk_buff.len");
        let data = system.follow(packet, self.packet.data, "sk_buff.data");
        let (len, data) = match (len, data) {
            (Ok(len), Ok(data)) => (len, data),
            (Err(error), _) | (_, Err(error)) => return row.error("message", &base::log::chain(&error)),
        };
        let kind = system.short(data, TYPE, "nlmsghdr.nlmsg_type");
        row.read("event.action", kind.map(kind_name));
        let len = to_usize(len.saturating_sub(HEADER).min(TEXT).into());
        let text = system.bytes(data, HEADER.into(), len, "an audit record");
        let text = text.map(|bytes| Fields(&bytes).text(0, bytes.len()).unwrap_or_default());
        if let Some(at) = text.as_ref().ok().and_then(|text| time(text)) {
            row.put("@timestamp", base::time::utc(at).ok_or("no clock shows such a time"));
            let message = format!("audit: {}", text.as_deref().unwrap_or_default());
            row.happened(Moment { at, message, kind: "Event Logged Time" });
        }
        row.read("message", text);
    }
}

fn kind_name(kind: u16) -> String {
    let found = TYPES.into_iter().find(|(number, _)| *number == kind);
    found.map_or_else(|| kind.to_string(), |(_, name)| name.to_owned())
}

/// Seconds since 1970: records begin with `audit(SECONDS.MILLISECONDS:SERIAL): `.
fn time(text: &str) -> Option<u64> {
    text.strip_prefix("audit(")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_tell_their_time() {
        assert_eq!(time("audit(1764541234.567:89): pid=1"), Some(1_764_541_234));
        assert_eq!(time("pid=1"), None);
        assert_eq!((kind_name(1300), kind_name(9)), ("SYSCALL".to_owned(), "9".to_owned()));
    }
}

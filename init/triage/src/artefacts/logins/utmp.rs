//! Records of logins: `struct utmp` of the GNU C library on x86_64, 384 bytes (utmp(5)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base::fields::Fields;

use super::super::timeline::Moment;
use super::super::{Row, Rows, Stop};
use super::lookup::File;
use super::row;

pub(super) const RECORD: usize = 384;

/// A row for each record; one of zeros is none.
pub(super) fn rows(path: &str, file: &File, bytes: &[u8], rows: &mut Rows<'_>) -> Result<(), Stop> {
    let mut rest = 0;
    for (number, record) in (0_u64..).zip(bytes.chunks(RECORD)) {
        if record.len() < RECORD {
            rest = record.len();
        } else if record.iter().any(|byte| *byte != 0) {
            let mut row = row("utmp", file.inode);
            row.set("file.path", path);
            row.set("linux.login.record", number);
            fill(Fields(record), &mut row);
            rows.add(&row)?;
        }
    }
    if rest > 0 {
        let mut row = row("utmp", file.inode);
        row.error(path, &format!("{rest} bytes at the end are no record"));
        rows.add(&row)?;
    }
    Ok(())
}

fn fill(record: Fields<'_>, row: &mut Row) {
    let kind = record.u16(0).unwrap_or(0);
    row.set("linux.login.type", kind_name(kind));
    row.set("process.pid", record.u32(4).unwrap_or(0));
    let text = |offset, len| record.text(offset, len).filter(|text| !text.is_empty());
    let (line, user, host) = (text(8, 32), text(44, 32), text(76, 256));
    for (key, value) in [
        ("linux.login.line", &line),
        ("linux.login.id", &text(40, 4)),
        ("user.name", &user),
        ("source.domain", &host),
    ] {
        if let Some(value) = value {
            row.set(key, value.clone());
        }
    }
    if let Some(ip) = record.bytes(348, 16).and_then(address) {
        row.set("source.ip", ip.to_string());
    }
    row.set("linux.login.session", record.u32(336).unwrap_or(0));
    let seconds = record.u32(340).unwrap_or(0);
    if seconds == 0 {
        return;
    }
    let at = u64::from(seconds);
    row.put("linux.login.time", base::time::utc(at).ok_or("the time is damaged"));
    let who = user.unwrap_or_default();
    let from = host.map(|host| format!(" from {host}")).unwrap_or_default();
    let message = format!("{}: {who} on {}{from}", kind_name(kind), line.unwrap_or_default());
    let kind = match kind {
        7 => "Logon Time",
        8 => "Logoff Time",
        _ => "Event Time",
    };
    row.happened(Moment { at, message, kind });
}

/// Four bytes in the order of the network, or 16 where it is IPv6; none if there is none.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let all: [u8; 16] = bytes.try_into().ok()?;
    let (first, rest) = all.split_first_chunk::<4>()?;
    match (first.iter().all(|byte| *byte == 0), rest.iter().all(|byte| *byte == 0)) {
        (true, true) => None,
        (false, true) => Some(Ipv4Addr::from(*first).into()),
        _ => Some(Ipv6Addr::from(all).into()),
    }
}

fn kind_name(kind: u16) -> String {
    let names = [
        "empty",
        "run level",
        "boot",
        "new time",
        "old time",
        "init process",
        "login process",
        "user process",
        "dead process",
        "accounting",
    ];
    names.get(usize::from(kind)).map_or_else(|| kind.to_string(), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read() {
        let mut record = [0; RECORD];
        let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &7_u32.to_le_bytes());
        put(4, &4711_u32.to_le_bytes());
        put(8, b"pts/0");
        put(40, b"ts/0");
        put(44, b"alice");
        put(76, b"192.0.2.7");
        put(340, &1_700_000_000_u32.to_le_bytes());
        put(348, &[192, 0, 2, 7]);
        let mut row = Row::default();
        fill(Fields(&record), &mut row);
        let get = |key: &str| row.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        assert_eq!(get("linux.login.type"), "user process");
        assert_eq!((get("user.name"), get("source.ip")), ("alice".to_owned(), "192.0.2.7".to_owned()));
        assert_eq!(get("linux.login.id"), "ts/0", "four bytes without a NUL");
        assert!(row.events().any(|event| event.to_line().contains("alice on pts/0 from 192.0.2.7")));
        assert_eq!(address(&[0; 16]), None);
    }
}

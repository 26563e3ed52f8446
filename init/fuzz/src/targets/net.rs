//! What servers on the network answer: DHCP replies and DNS answers to the right question,
//! everything behind it anything.
//!
//! Input: a byte that says which, then the options of a DHCP reply, or the counts and records of a
//! DNS answer.

use network::{dhcp, dns};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const XID: u32 = 0x1234_5678;
/// The question about `a.b` as it stands in an answer: its name, type A, class IN.
const QUESTION: &[u8] = b"\x01a\x01b\0\0\x01\0\x01";

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else { return };
    if which & 1 == 0 {
        dhcp_reply(rest);
    } else {
        dns_answer(rest);
    }
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![
        b"\0\x35\x01\x05\x36\x04\xc0\0\x02\x01\x01\x04\xff\xff\xff\0\x03\x04\xc0\0\x02\xfe\x79\x08\x18\xc6\x33\x64\xc0\0\x02\x01\xff".to_vec(),
        b"\x01\0\x02\0\0\0\0\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x05\x01c\xc0\x0e\0\xc0\x1f\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x03".to_vec(),
    ]
}

fn dhcp_reply(options: &[u8]) {
    let mut bytes = vec![2, 1, 6, 0];
    bytes.extend(XID.to_be_bytes());
    bytes.resize(16, 0);
    bytes.extend([192, 0, 2, 77]); // yiaddr
    bytes.resize(28, 0);
    bytes.extend(MAC);
    bytes.resize(236, 0);
    bytes.extend([99, 130, 83, 99]);
    bytes.extend(options);
    let Some(lease) = dhcp::lease_in(&bytes, MAC, XID) else { return };
    assert!((1..=32).contains(&lease.address.len));
    assert!(lease.routes.len() <= 32 && lease.dns.len() <= 32);
    assert!(lease.renewal.0 <= lease.renewal.1 && lease.renewal.1 <= lease.seconds);
    assert!(lease.mtu.is_none_or(|mtu| mtu > 576));
    assert!(dhcp::lease_in(&bytes, MAC, XID ^ 1).is_none());
}

fn dns_answer(rest: &[u8]) {
    let (counts, records) = rest.split_at(rest.len().min(6));
    let mut bytes = vec![0, 7, 0x81, 0x80, 0, 1];
    bytes.extend(counts);
    bytes.resize(12, 0);
    bytes.extend(QUESTION);
    bytes.extend(records);
    let Some(found) = dns::addresses_in(&bytes, 7, "a.b", false) else { return };
    assert!((1..=16).contains(&found.len()));
    assert!(dns::addresses_in(&bytes, 8, "a.b", false).is_none());
}

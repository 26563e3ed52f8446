//! What numbers of sockets are called.

use super::{INET, INET6, NETLINK, PACKET, UNIX, VSOCK};

pub(super) fn family_name(family: u16) -> String {
    match family {
        UNIX => "unix".to_owned(),
        INET => "inet".to_owned(),
        INET6 => "inet6".to_owned(),
        NETLINK => "netlink".to_owned(),
        PACKET => "packet".to_owned(),
        VSOCK => "vsock".to_owned(),
        other => other.to_string(),
    }
}

/// `enum sock_type`, include/linux/net.h
pub(super) fn kind_name(kind: u16) -> &'static str {
    match kind {
        1 => "stream",
        2 => "datagram",
        3 => "raw",
        5 => "sequential packets",
        10 => "packet",
        _ => "other",
    }
}

pub(super) fn transport(protocol: u16) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "ipv6-icmp".to_owned(),
        132 => "sctp".to_owned(),
        // IPPROTO_MPTCP
        262 => "mptcp".to_owned(),
        other => other.to_string(),
    }
}

/// include/net/tcp_states.h; others use the same numbers for connected and not.
pub(super) fn state_name(state: u8, is_stream: bool) -> &'static str {
    match (state, is_stream) {
        (1, _) => "established",
        (2, _) => "syn-sent",
        (3, _) => "syn-received",
        (4, _) => "fin-wait-1",
        (5, _) => "fin-wait-2",
        (6, _) => "time-wait",
        (7, true) => "closed",
        (7, false) => "unconnected",
        (8, _) => "close-wait",
        (9, _) => "last-ack",
        (10, _) => "listening",
        (11, _) => "closing",
        (12, _) => "new-syn-received",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_names() {
        assert_eq!((family_name(2), family_name(99)), ("inet".to_owned(), "99".to_owned()));
        assert_eq!((transport(6), transport(250)), ("tcp".to_owned(), "250".to_owned()));
        assert_eq!((state_name(10, true), state_name(7, false)), ("listening", "unconnected"));
        assert_eq!(kind_name(1), "stream");
    }
}

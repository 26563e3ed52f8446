//! Tests of [`super`].

use super::*;

const CLIENT: Client<'static> =
    Client { mac: [2, 0, 0, 0, 0, 7], host: Some("web1"), xid: 0x1234_5678, secs: 3 };

fn decode(bytes: &[u8]) -> Message {
    Message::decode(&mut Decoder::new(bytes)).unwrap()
}

/// A server's reply with these options beside those that each has.
fn reply(kind: MessageType, options: &[DhcpOption]) -> Message {
    let mut message = Message::default();
    message.set_opcode(Opcode::BootReply).set_xid(CLIENT.xid).set_chaddr(&CLIENT.mac);
    message.set_yiaddr([192, 0, 2, 77]);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message.opts_mut().insert(DhcpOption::ServerIdentifier([192, 0, 2, 1].into()));
    message.opts_mut().insert(DhcpOption::SubnetMask([255, 255, 255, 0].into()));
    message.opts_mut().insert(DhcpOption::AddressLeaseTime(3600));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    message
}

fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

fn ack(options: &[DhcpOption]) -> Result<Lease, Refused> {
    match CLIENT.reply(&bytes(&reply(MessageType::Ack, options)))? {
        Reply::Ack(lease) => Ok(lease),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_asked_says_who_asks() {
    let bytes = CLIENT.message(Ask::Discover).unwrap();
    assert!(bytes.len() >= 300, "{}", bytes.len());
    assert_eq!(bytes[..8], [1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78]);
    let message = decode(&bytes);
    assert!(message.flags().broadcast() && message.secs() == 3 && message.chaddr() == CLIENT.mac);
    let options = message.opts();
    assert!(options.has_msg_type(MessageType::Discover));
    let identifier = DhcpOption::ClientIdentifier(vec![1, 2, 0, 0, 0, 0, 7]);
    assert_eq!(options.get(OptionCode::ClientIdentifier), Some(&identifier));
    assert_eq!(options.get(OptionCode::Hostname), Some(&DhcpOption::Hostname("web1".into())));
    let (address, server) = ([192, 0, 2, 77].into(), [192, 0, 2, 1].into());
    let request = decode(&CLIENT.message(Ask::Request { address, server }).unwrap());
    assert_eq!(request.ciaddr(), Ipv4Addr::UNSPECIFIED);
    let wanted = request.opts().get(OptionCode::RequestedIpAddress);
    assert_eq!(wanted, Some(&DhcpOption::RequestedIpAddress(address)));
    let renew = decode(&CLIENT.message(Ask::Renew { address }).unwrap());
    assert!(renew.ciaddr() == address && !renew.flags().broadcast());
    assert!(renew.opts().get(OptionCode::ServerIdentifier).is_none(), "RFC 2131, 4.3.2");
}

#[test]
fn a_lease_has_what_the_server_says() {
    let lease = ack(&[
        DhcpOption::Router(vec![[192, 0, 2, 254].into(), [192, 0, 2, 253].into()]),
        DhcpOption::DomainNameServer(vec![[192, 0, 2, 53].into(), [0, 0, 0, 0].into()]),
        DhcpOption::InterfaceMtu(1400),
    ])
    .unwrap();
    assert_eq!(lease.address.to_string(), "192.0.2.77/24");
    assert_eq!(lease.routes, ["default via 192.0.2.254".parse().unwrap()]);
    assert_eq!(lease.dns, [IpAddr::from([192, 0, 2, 53])]);
    assert_eq!((lease.mtu, lease.seconds, lease.renewal), (Some(1400), 3600, (1800, 3150)));
    assert_eq!(lease.server, Ipv4Addr::new(192, 0, 2, 1));
    assert_eq!(ack(&[DhcpOption::InterfaceMtu(576)]).unwrap().mtu, None);
    let odd = ack(&[DhcpOption::Renewal(9000), DhcpOption::Rebinding(9)]).unwrap();
    assert_eq!(odd.renewal, (9, 9));
}

#[test]
fn classless_routes_stand_for_the_router() {
    let net = |text: &str| text.parse().unwrap();
    let lease = ack(&[
        DhcpOption::Router(vec![[192, 0, 2, 254].into()]),
        DhcpOption::ClasslessStaticRoute(vec![
            (net("0.0.0.0/0"), [192, 0, 2, 1].into()),
            (net("192.0.2.1/32"), [0, 0, 0, 0].into()),
            (net("10.0.0.0/8"), [255, 255, 255, 255].into()),
        ]),
    ])
    .unwrap();
    let routes: Vec<String> = lease.routes.iter().map(ToString::to_string).collect();
    assert_eq!(routes, ["192.0.2.1/32", "default via 192.0.2.1"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mask = |mask: [u8; 4]| ack(&[DhcpOption::SubnetMask(mask.into())]);
    assert_eq!(mask([255, 0, 255, 0]), Err(Refused::Mask([255, 0, 255, 0].into())));
    assert_eq!(mask([0; 4]), Err(Refused::Mask([0; 4].into())));
    assert_eq!(mask([255; 4]).unwrap().address.len, 32);
    let yiaddr = |addr: [u8; 4]| {
        let mut message = reply(MessageType::Offer, &[]);
        message.set_yiaddr(addr);
        CLIENT.reply(&bytes(&message))
    };
    for bad in [[0; 4], [127, 0, 0, 1], [224, 0, 0, 1], [192, 0, 2, 0], [192, 0, 2, 255], [255; 4]] {
        assert_eq!(yiaddr(bad), Err(Refused::Address(bad.into())));
    }
    assert!(matches!(yiaddr([192, 0, 2, 9]), Ok(Reply::Offer(_))));
    let mut lacks = reply(MessageType::Offer, &[]);
    lacks.opts_mut().remove(OptionCode::ServerIdentifier);
    assert_eq!(CLIENT.reply(&bytes(&lacks)), Err(Refused::Lacks("which server it comes from")));
}

#[test]
fn what_is_for_others_is_left_alone() {
    let to = |change: &dyn Fn(&mut Message)| {
        let mut message = reply(MessageType::Ack, &[]);
        change(&mut message);
        CLIENT.reply(&bytes(&message))
    };
    let other = |message: &mut Message| {
        message.set_xid(1);
    };
    assert_eq!(to(&other), Err(Refused::NotOurs));
    let other = |message: &mut Message| {
        message.set_chaddr(&[2, 0, 0, 0, 0, 8]);
    };
    assert_eq!(to(&other), Err(Refused::NotOurs));
    let other = |message: &mut Message| {
        message.set_opcode(Opcode::BootRequest);
    };
    assert_eq!(to(&other), Err(Refused::NotOurs));
    assert_eq!(CLIENT.reply(b"short"), Err(Refused::NotOurs));
    assert_eq!(CLIENT.reply(&bytes(&reply(MessageType::Nak, &[]))), Ok(Reply::Nak));
}

#[test]
fn cut_and_flipped_replies_never_panic() {
    let good = bytes(&reply(
        MessageType::Ack,
        &[
            DhcpOption::Router(vec![[192, 0, 2, 254].into()]),
            DhcpOption::ClasslessStaticRoute(vec![("10.0.0.0/8".parse().unwrap(), [192, 0, 2, 1].into())]),
            DhcpOption::InterfaceMtu(1400),
        ],
    ));
    let mut read = 0;
    for at in 0..good.len() {
        let _ = CLIENT.reply(&good[..at]);
        for bit in [0x01, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= bit;
            read += usize::from(CLIENT.reply(&bad).is_ok());
        }
    }
    assert!(read > 0);
    for code in 0..=255 {
        for len in 0..=40_u8 {
            let mut strange = good[..HEADER].to_vec();
            strange.extend([53, 1, 2, 54, 4, 192, 0, 2, 1, 1, 4, 255, 255, 255, 0, code, len]);
            strange.extend(vec![7; len.into()]);
            let _ = CLIENT.reply(&strange);
        }
    }
}

proptest::proptest! {
    #[test]
    fn any_options_are_read_or_refused(options in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let mut reply = bytes(&reply(MessageType::Offer, &[]));
        reply.truncate(HEADER);
        reply.extend(&options);
        if let Ok(Reply::Offer(lease) | Reply::Ack(lease)) = CLIENT.reply(&reply) {
            proptest::prop_assert!((1..=32).contains(&lease.address.len) && lease.routes.len() <= MOST);
        }
    }
}

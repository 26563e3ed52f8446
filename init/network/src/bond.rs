//! The messages that make bonds and VLANs. Pure: nothing is sent here.

use rtnetlink::packet_route::link::{BondLacpRate, BondMode as Mode, LinkMessage};
use rtnetlink::{LinkBond, LinkUnspec, LinkVlan};

use base::config::{Bond, BondMode, parse_mac};

/// Makes a bond, switched off. `primary` is the index of the member that is preferred.
pub(super) fn bond(name: &str, bond: &Bond, primary: Option<u32>) -> LinkMessage {
    // A bond without looks at its members' carriers would send into a pulled cable: 0 is none.
    let builder = LinkBond::new(name).miimon(if bond.miimon == 0 { 100 } else { bond.miimon });
    let builder = match bond.mode {
        BondMode::ActiveBackup => builder.mode(Mode::ActiveBackup),
        // The fast rate: within 3 s instead of 90 a member is known to be dead.
        BondMode::Lacp => builder.mode(Mode::Ieee8023Ad).ad_lacp_rate(BondLacpRate::Fast),
    };
    let builder = match primary.filter(|_| bond.mode == BondMode::ActiveBackup) {
        Some(index) => builder.primary(index),
        None => builder,
    };
    match bond.mac.as_deref().and_then(parse_mac) {
        Some(mac) => builder.address(mac.to_vec()).build(),
        None => builder.build(),
    }
}

/// Makes a link, which must be switched off, a member of a bond.
pub(super) fn enslave(member: u32, bond: u32) -> LinkMessage {
    LinkUnspec::new_with_index(member).controller(bond).build()
}

/// Makes a VLAN, switched off.
pub(super) fn vlan(name: &str, on: u32, id: u16) -> LinkMessage {
    LinkVlan::new(name, on, id).build()
}

/// Switches a link on, or off.
pub(super) fn switch(index: u32, on: bool) -> LinkMessage {
    let link = LinkUnspec::new_with_index(index);
    if on { link.up().build() } else { link.down().build() }
}

/// Sets a link's longest packet.
pub(super) fn mtu(index: u32, bytes: u32) -> LinkMessage {
    LinkUnspec::new_with_index(index).mtu(bytes).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_core::Emitable;
    use rtnetlink::packet_route::link::{InfoBond, InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo};

    fn data(message: &LinkMessage) -> InfoData {
        let infos = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos.clone()),
            _ => None,
        });
        let data = infos.unwrap().into_iter().find_map(|info| match info {
            LinkInfo::Data(data) => Some(data),
            _ => None,
        });
        assert!(message.buffer_len() > 16);
        data.unwrap()
    }

    fn members(mode: BondMode) -> Bond {
        Bond { members: vec!["a".into(), "b".into()], mode, miimon: 0, primary: Some("b".into()), mac: None }
    }

    #[test]
    fn lacp_is_asked_for_at_the_fast_rate() {
        let InfoData::Bond(about) = data(&bond("bond0", &members(BondMode::Lacp), Some(3))) else {
            panic!("no bond")
        };
        let mode = InfoBond::Mode(Mode::Ieee8023Ad);
        assert_eq!(about, [InfoBond::MiiMon(100), mode, InfoBond::AdLacpRate(BondLacpRate::Fast)]);
    }

    #[test]
    fn the_preferred_member_and_the_address_are_told() {
        let wanted = Bond { mac: Some("02:00:00:00:00:09".into()), ..members(BondMode::ActiveBackup) };
        let message = bond("bond0", &Bond { miimon: 50, ..wanted }, Some(3));
        let InfoData::Bond(about) = data(&message) else { panic!("no bond") };
        assert_eq!(about, [InfoBond::MiiMon(50), InfoBond::Mode(Mode::ActiveBackup), InfoBond::Primary(3)]);
        assert!(message.attributes.contains(&LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9])));
        assert!(message.attributes.contains(&LinkAttribute::IfName("bond0".into())));
        assert!(!message.header.flags.contains(LinkFlags::Up), "its members are not in it yet");
        assert!(enslave(3, 9).attributes.contains(&LinkAttribute::Controller(9)));
    }

    #[test]
    fn a_vlan_has_its_tag_and_what_it_is_on() {
        let message = vlan("storage", 7, 4094);
        let InfoData::Vlan(about) = data(&message) else { panic!("no VLAN") };
        assert_eq!(about, [InfoVlan::Id(4094)]);
        assert!(message.attributes.contains(&LinkAttribute::Link(7)));
    }
}

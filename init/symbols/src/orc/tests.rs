//! Entries of each layout.

use super::*;
use crate::kallsyms;
use crate::testing::{Encoding, MadeUp, types, with_kernel};

fn decode(layout: Layout, sp: i16, bp: i16, flags: u16) -> Entry {
    let bytes = [sp.to_le_bytes(), bp.to_le_bytes(), flags.to_le_bytes()].concat();
    layout.decode(&bytes).unwrap()
}

#[test]
fn each_layout_has_its_registers_and_frames() {
    let entry = decode(Layout::TwoBits, 16, -16, 0x015);
    assert_eq!(entry, Entry { sp: (Base::Sp, 16), bp: (Base::PreviousSp, -16), frame: Frame::Call });
    assert_eq!(decode(Layout::TwoBits, 0, 0, 0).frame, Frame::Undefined);
    assert_eq!(decode(Layout::TwoBits, 8, 0, 0x105).frame, Frame::Registers);
    assert_eq!(decode(Layout::TwoBits, 8, 0, 0x205).frame, Frame::Interrupt);
    let entry = decode(Layout::ThreeBits, 16, -16, 0x214);
    assert_eq!(entry, Entry { sp: (Base::Bp, 16), bp: (Base::PreviousSp, -16), frame: Frame::Call });
    let frames =
        [Frame::Undefined, Frame::End, Frame::Call, Frame::Registers, Frame::Interrupt, Frame::Undefined];
    for (number, frame) in (0_u16..).zip(frames) {
        assert_eq!(decode(Layout::ThreeBits, 8, 0, number << 8 | 5).frame, frame);
        assert_eq!(decode(Layout::Renumbered, 8, 0, number << 8 | 3).frame, frame);
    }
    assert_eq!(decode(Layout::Renumbered, 8, -8, 0x283).bp, (Base::PreviousSp, -8));
    assert_eq!(decode(Layout::Renumbered, 8, 0, 0x203).sp, (Base::Sp, 8));
    assert_eq!(decode(Layout::Renumbered, 8, 0, 0x204).sp, (Base::Bp, 8));
}

#[test]
fn any_entry_is_something() {
    for layout in [Layout::TwoBits, Layout::ThreeBits, Layout::Renumbered] {
        for flags in 0..=u16::MAX {
            let _ = decode(layout, i16::MIN, i16::MAX, flags);
        }
        assert!(layout.decode(&[0; 5]).is_none());
    }
    assert_eq!(Layout::of_hash(&[0; 20]), None);
    assert_eq!(Layout::of_hash(&[]), None);
    for (hash, layout) in HASHES {
        assert_eq!(Layout::of_hash(hash), Some(*layout));
    }
}

/// The tables of a made-up kernel whose symbols are called otherwise.
fn found(change: impl Fn(&mut MadeUp)) -> Option<Tables> {
    let mut made = MadeUp::new(Encoding::Relative, true, &types().blob(), 4);
    change(&mut made);
    with_kernel(&made.info, &made.bytes, |kernel| Tables::find(kernel, &kallsyms::read(kernel).unwrap()))
}

/// Calls a symbol otherwise, by a name as long.
fn rename(made: &mut MadeUp, from: &[u8], to: &[u8]) {
    let at = made.bytes.windows(from.len()).position(|bytes| bytes == from).unwrap();
    base::fields::put(&mut made.bytes, at, to);
}

#[test]
fn tables_are_found_whole_or_not_at_all() {
    let tables = found(|_| {}).unwrap();
    assert_eq!((tables.len(), tables.layout, tables.header), (4, Some(Layout::TwoBits), None));
    assert!(!tables.is_empty());
    assert_eq!(found(|made| rename(made, b"r__stop_orc_unwind_ip", b"r__stop_orc_unwind_up")), None);
    assert_eq!(found(|made| rename(made, b"r__start_orc_unwind_ip", b"r__start_orc_unwind_up")), None);
}

//! Metadata written by LVM 2.03.16 (`vgcreate`, `vgcfgrestore`), the IDs of the logical volumes
//! made up.

use super::*;
use base::fields::put;
use proptest::prelude::*;

/// The text at byte 2048 of the metadata area at byte 4096, without its final NUL.
pub(super) const TEXT: &str = include_str!("../testdata/volume_group.txt");
const FIRST: &str = "fUTesPJGMHWAATFrFCVEjGxA5UBctLQr";
const SECOND: &str = "v0Epdng1ZBxL0HrN2Vf5H47eyQ4vPtAd";
const LINEAR: &str = "Lin111aaaabbbbccccddddeeeeffffff";
const STRIPED: &str = "Str111aaaabbbbccccddddeeeeffffff";

/// The first four sectors of the first physical volume.
fn label() -> Vec<u8> {
    let mut bytes = vec![0; LABEL_LEN];
    put(&mut bytes, 512, b"LABELONE\x01\0\0\0\0\0\0\0\x96\x89\x25\xb8\x20\0\0\0LVM2 001");
    put(&mut bytes, 544, FIRST.as_bytes());
    put(&mut bytes, 579, &[1]); // 16 MiB
    put(&mut bytes, 586, &[0x10]); // data from 1 MiB
    put(&mut bytes, 617, &[0x10, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0x0f]); // metadata from 4 KiB to 1 MiB
    put(&mut bytes, 648, &[2, 0, 0, 0, 1]); // extension: in use
    bytes
}

/// The header of its metadata area.
fn area() -> Vec<u8> {
    let mut bytes = vec![0; AREA_HEADER_LEN];
    put(&mut bytes, 0, &[0xd7, 0x79, 0x2f, 0x88]);
    put(&mut bytes, 4, AREA_MAGIC);
    put(&mut bytes, 20, &[1, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0x0f, 0, 0, 0, 0, 0, 0, 8]);
    put(&mut bytes, 48, &[0xb3, 6, 0, 0, 0, 0, 0, 0, 0x2f, 0x19, 0x41, 0xfe]);
    bytes
}

fn text() -> Vec<u8> {
    [TEXT.as_bytes(), &[0]].concat()
}

fn sealed(mut area: Vec<u8>) -> Vec<u8> {
    let sum = crc(&area[4..]);
    put(&mut area, 0, &sum.to_le_bytes());
    area
}

#[test]
fn label_area_and_text_lead_to_the_group() {
    let label = parse_label(&label()).unwrap();
    assert_eq!(label, Label { id: FIRST.into(), areas: vec![(4096, 1_044_480)] });
    let location = parse_area(&area(), 4096).unwrap().unwrap();
    assert_eq!((location.start, location.len, location.rest_len), (6144, 1715, 0));
    let group = parse_text(&location, &text()).unwrap();
    assert_eq!((group.name.as_str(), group.seqno, group.extent_size), ("vgfix", 2, 2048));
    assert_eq!(group.physical[1], ("pv1".into(), PhysicalVolume { id: SECOND.into(), pe_start: 2048 }));

    let linear = group.volume(LINEAR).unwrap();
    let stripe = |physical: &str, extent| Stripe { physical: physical.into(), extent };
    let expected = [
        Segment { start: 0, count: 12, stripe_size: 0, stripes: vec![stripe(FIRST, 0)] },
        Segment { start: 12, count: 5, stripe_size: 0, stripes: vec![stripe(SECOND, 3)] },
    ];
    assert_eq!((linear.name.as_str(), &linear.segments[..]), ("linear", &expected[..]));
    assert_eq!(linear.physical.len(), 2);
    let stripes = vec![stripe(FIRST, 12), stripe(SECOND, 8)];
    let two = Segment { start: 0, count: 4, stripe_size: 128, stripes };
    assert_eq!(group.volume(STRIPED).unwrap().segments, [two]);
    assert!(matches!(group.volume("x"), Err(LvmError::NoVolume(..))));
}

#[test]
fn one_changed_bit_is_noticed() {
    for at in [512, 520, 545, 590, 618, 649] {
        let mut bytes = label();
        bytes[at] ^= 1;
        assert_eq!(parse_label(&bytes), None, "byte {at} of the label");
    }
    for at in [0, 5, 20, 41, 48, 57, 511] {
        let mut bytes = area();
        bytes[at] ^= 1;
        assert!(parse_area(&bytes, 4096).is_err(), "byte {at} of the area");
    }
    assert!(parse_area(&area(), 8192).is_err());
    let location = parse_area(&area(), 4096).unwrap().unwrap();
    let mut bytes = text();
    bytes[100] ^= 1;
    assert_eq!(parse_text(&location, &bytes), Err(LvmError::Checksum));
}

#[test]
fn metadata_may_go_round_in_their_area() {
    let mut bytes = area();
    put(&mut bytes, 40, &(1_044_480_u64 - 1000).to_le_bytes());
    let location = parse_area(&sealed(bytes.clone()), 4096).unwrap().unwrap();
    assert_eq!((location.start, location.len), (4096 + 1_044_480 - 1000, 1000));
    assert_eq!((location.rest_start, location.rest_len), (4096 + 512, 715));
    for (offset, len) in [(511, 9), (1_044_481, 9), (512, u64::MAX), (600, 1_044_000), (u64::MAX, 1)] {
        put(&mut bytes, 40, &u64::to_le_bytes(offset));
        put(&mut bytes, 48, &u64::to_le_bytes(len));
        assert!(parse_area(&sealed(bytes.clone()), 4096).is_err(), "{offset} {len}");
    }
    put(&mut bytes, 40, &[0; 16]);
    assert_eq!(parse_area(&sealed(bytes), 4096), Ok(None));
}

#[test]
fn what_is_not_linear_or_striped_is_named() {
    let refused = |from: &str, to: &str| {
        assert!(TEXT.contains(from), "{from}");
        parse_metadata(&TEXT.replace(from, to))
            .and_then(|group| group.volume(LINEAR))
            .unwrap_err()
            .to_string()
    };
    assert!(
        refused("type = \"striped\"", "type = \"thin\"")
            .contains("volume linear has a segment of type \"thin\"")
    );
    assert!(refused("\"pv1\", 3", "\"pvmove0\", 3").contains("on \"pvmove0\", no physical volume"));
    assert!(refused("start_extent = 12", "start_extent = 13").contains("gap"));
    assert!(refused("segment_count = 2", "segment_count = 3").contains("segment_count"));
    assert!(refused("stripe_count = 1", "stripe_count = 2").contains("stripe_count"));
    assert!(refused("extent_size = 2048", "extent_size = -1").contains("extent_size"));
    // Another volume's trouble is not this one's.
    let group = parse_metadata(&TEXT.replace("stripe_count = 2", "stripe_count = 3")).unwrap();
    assert!(group.volume(LINEAR).is_ok() && group.volume(STRIPED).is_err());
}

#[test]
fn the_text_is_bounded_and_its_errors_have_a_place() {
    let deep = "a {".repeat(100_000);
    assert!(matches!(parse_metadata(&deep), Err(LvmError::Syntax(24..=30, _))));
    for bad in ["a", "a =", "a = [1", "a = [1 2]", "a = \"x", "}", "a { b = 1", "= 1", "a = x"] {
        assert!(matches!(parse_metadata(bad), Err(LvmError::Syntax(..))), "{bad}");
    }
    let quoted = text::parse("v = \"a\\\"b\\\\\" # \"\nw = -0.5").unwrap();
    assert_eq!(quoted.text("v").unwrap(), "a\"b\\");
}

proptest! {
    #[test]
    fn no_text_panics(cut in 0..TEXT.len(), junk in "[ a-z0-9={}\\[\\]\",#\\\\\n-]{0,40}", skip in 0..40_usize) {
        if let (Some(head), Some(tail)) = (TEXT.get(..cut), TEXT.get((cut + skip).min(TEXT.len())..)) {
            let _ = parse_metadata(&format!("{head}{junk}{tail}"));
        }
    }
}

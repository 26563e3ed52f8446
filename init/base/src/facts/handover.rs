//! The handover page: one page of the reservation that tells a planned switch from a panic.
//!
//! A plain load leaves zeros in it. A planned switch puts a frame there: magic, version, length and
//! CRC32 of the text that follows, which is [`Planned`] in TOML. Bytes only: nothing here reads
//! memory.

use super::Planned;

/// Bytes of the page.
pub const PAGE_LEN: usize = 4096;

const MAGIC: &[u8; 8] = b"aftimsw\0";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 20;
const ROOM: usize = PAGE_LEN - HEADER_LEN;

/// A record that does not fit in the page: what people wrote into it is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the record of the switch takes {len} bytes and the handover page has room for {ROOM}: shorten its texts"
)]
pub struct TooLarge {
    /// Length of its text, bytes.
    pub len: usize,
}

/// The page with this record.
pub fn encode(planned: &Planned) -> Result<Vec<u8>, TooLarge> {
    // Every type in it is a table, a string, a number or a list of those, which TOML can always
    // hold.
    let text = toml::to_string(planned).unwrap_or_default();
    let too_large = TooLarge { len: text.len() };
    let len = u32::try_from(text.len()).map_err(|_| too_large)?;
    let mut page = Vec::with_capacity(PAGE_LEN);
    page.extend_from_slice(MAGIC);
    for number in [VERSION, len, crc32fast::hash(text.as_bytes())] {
        page.extend_from_slice(&number.to_le_bytes());
    }
    page.extend_from_slice(text.as_bytes());
    if page.len() > PAGE_LEN {
        return Err(too_large);
    }
    page.resize(PAGE_LEN, 0);
    Ok(page)
}

/// The record in a page. `None`: the page holds zeros, so nobody switched on purpose. The error
/// says what is wrong with a page that holds something else.
#[must_use]
pub fn decode(page: &[u8]) -> Option<Result<Planned, String>> {
    let blank = page.iter().all(|&byte| byte == 0);
    if blank { None } else { Some(parse(page)) }
}

fn parse(page: &[u8]) -> Result<Planned, String> {
    let cut = || format!("the page ends after {} bytes", page.len());
    let (magic, rest) = page.split_first_chunk::<8>().ok_or_else(cut)?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
    let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
    let (crc, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
    if magic != MAGIC {
        return Err("no magic number".to_owned());
    }
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(format!("version {version}, and only {VERSION} is known"));
    }
    let len = u32::from_le_bytes(*len);
    let text = usize::try_from(len).ok().and_then(|len| rest.get(..len));
    let text = text.ok_or_else(|| format!("{len} bytes of text do not fit in the page"))?;
    let (found, crc) = (crc32fast::hash(text), u32::from_le_bytes(*crc));
    if found != crc {
        return Err(format!("CRC32 {found:08x} where {crc:08x} should be"));
    }
    let text = core::str::from_utf8(text).map_err(|error| error.to_string())?;
    toml::from_str(text).map_err(|error| error.message().to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Intent, Live};
    use super::*;

    fn sample() -> Planned {
        let intent = Intent {
            who: "root, logged in as ada".into(),
            login_uid: Some(1000),
            sudo_user: "ada".into(),
            session: "7".into(),
            from: "192.0.2.7".into(),
            why: "disk \"b\"\nis slow".into(),
            ticket: "OPS-7".into(),
            at: 1_763_900_000,
            synced: true,
            via_panic: false,
        };
        Planned { intent, live: Some(Live { len: 5000, sha256: "ab".repeat(32), index: vec![0x1234] }) }
    }

    #[test]
    fn a_page_gives_back_what_was_put_in() {
        let page = encode(&sample()).unwrap();
        assert_eq!(page.len(), PAGE_LEN);
        assert_eq!(&page[..12], b"aftimsw\0\x01\0\0\0");
        assert_eq!(decode(&page), Some(Ok(sample())));
        assert_eq!(decode(&[0; PAGE_LEN]), None);
        assert_eq!(decode(&[]), None);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let with = |why: String| {
            let mut planned = sample();
            planned.intent.why = why;
            encode(&planned)
        };
        let TooLarge { len } = with("x".repeat(5000)).unwrap_err();
        assert!(len > 5000);
        // The largest that fits does.
        let spare = ROOM - (len - 5000);
        assert!(decode(&with("x".repeat(spare)).unwrap()).unwrap().is_ok());
        assert_eq!(with("x".repeat(spare + 1)), Err(TooLarge { len: ROOM + 1 }));
    }

    #[test]
    fn damage_is_named() {
        let broken = |at: usize, value: u8| {
            let mut page = encode(&sample()).unwrap();
            page[at] = value;
            decode(&page).unwrap().unwrap_err()
        };
        assert_eq!(broken(0, b'x'), "no magic number");
        assert_eq!(broken(8, 9), "version 9, and only 1 is known");
        assert!(broken(15, 0xff).contains("do not fit"));
        assert!(broken(HEADER_LEN + 3, b'~').starts_with("CRC32 "));
        assert_eq!(decode(&[1; 9]).unwrap().unwrap_err(), "the page ends after 9 bytes");
    }

    proptest! {
        #[test]
        fn any_page_is_decoded_or_refused(
            mut page in prop::collection::vec(any::<u8>(), 0..200), framed: bool
        ) {
            if framed {
                let text = page.clone();
                page = MAGIC.to_vec();
                page.extend(VERSION.to_le_bytes());
                page.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
                page.extend(crc32fast::hash(&text).to_le_bytes());
                page.extend(text);
            }
            let blank = page.iter().all(|&byte| byte == 0);
            prop_assert_eq!(decode(&page).is_none(), blank);
        }

        #[test]
        fn one_wrong_bit_is_noticed(at in 0_usize..PAGE_LEN, bit in 0..8_u32) {
            let mut page = encode(&sample()).unwrap();
            let used = page.iter().rposition(|&byte| byte != 0).unwrap() + 1;
            page[at % used] ^= 1 << bit;
            prop_assert!(decode(&page).is_some_and(|found| found.is_err()));
        }
    }
}

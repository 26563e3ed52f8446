//! VMCOREINFO text: every getter is total and says what the text says.

use vmcore::format::vmcoreinfo::{MAX_LEN, VmcoreInfo};

const SEED: &[u8] = b"OSRELEASE=6.1.0-56-cloud-amd64\nPAGESIZE=4096\nSYMBOL(prb)=ffffffff82a0\nOFFSET(page.lru)=8\n\
    SIZE(page)=64\nNUMBER(phys_base)=-228589568\nNUMBER(sme_mask)=0x8000000000000000\nCRASHTIME=1763900000\n\0";

/// What drgn mended in July and August 2026, as far as this text is concerned; the commits are its.
const MENDED: &[&[u8]] = &[
    // 046b94f0: the text ends within a number, a name, behind the equals sign.
    b"NUMBER(phys_base)=-",
    b"SYMBOL(prb)=ffffffff82",
    b"OFFSET(page.lru)=\nSIZE(page",
    b"PAGESIZE=",
    // e1c1354f: bytes that are negative as char.
    b"SYMBOL(\xff\x80)=\xff\nOSRELEASE=\xe9\nPAGESIZE=4096\n",
    // e1e00068, d796eead, 5ba3e661: numbers without an opposite, and those that no word holds.
    b"NUMBER(phys_base)=-9223372036854775808\nNUMBER(a)=-9223372036854775809\nNUMBER(b)=9223372036854775808\n\
    SIZE(page)=18446744073709551616\nSYMBOL(prb)=10000000000000000\nNUMBER(sme_mask)=0x10000000000000000\n",
    // 7ea4199b, a499fdd5: sizes that are none, or not a power of two.
    b"PAGESIZE=0\nSIZE(page)=0\n",
    b"PAGESIZE=4097\nSIZE(mem_section)=24\n",
    b"PAGESIZE=9223372036854775808\nSIZE(page)=18446744073709551615\n",
];

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let info = VmcoreInfo::parse(data);
    let read = &data[..data.len().min(MAX_LEN)];
    let lines =
        read.split(|byte| matches!(byte, b'\n' | 0)).filter_map(|line| std::str::from_utf8(line).ok());
    let pairs: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once('=')).collect();
    assert_eq!(info.is_empty(), pairs.is_empty());
    for &(key, _) in &pairs {
        let last = pairs.iter().rev().find(|pair| pair.0 == key).map(|pair| pair.1.trim());
        assert_eq!(info.get(key), last, "the last value of {key:?} wins");
        if let Some(name) = key.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')) {
            let (offset, size) = (info.offset(name), info.size(name));
            assert!(offset.is_none() || info.get(&format!("OFFSET({name})")).is_some());
            assert!(size.is_none() || info.get(&format!("SIZE({name})")).is_some());
            let _ = (info.symbol(name), info.number(name));
        }
    }
    if let Some(size) = info.page_size() {
        assert!(size.bytes().is_power_of_two() && (4096..=65536).contains(&size.bytes()));
    }
    let _ = info.crash_time();
    let again: Vec<u8> =
        pairs.iter().flat_map(|(key, value)| format!("{key}={}\n", value.trim()).into_bytes()).collect();
    if again.len() <= MAX_LEN {
        assert_eq!(VmcoreInfo::parse(&again), info, "what was understood says the same again");
    }
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [SEED].iter().chain(MENDED).map(|text| text.to_vec()).collect()
}

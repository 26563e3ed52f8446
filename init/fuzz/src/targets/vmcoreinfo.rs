//! VMCOREINFO text: every getter is total and says what the text says.

use vmcore::format::vmcoreinfo::{MAX_LEN, VmcoreInfo};

const SEED: &[u8] = b"OSRELEASE=6.1.0-56-cloud-amd64\nPAGESIZE=4096\nSYMBOL(prb)=ffffffff82a0\nOFFSET(page.lru)=8\n\
    SIZE(page)=64\nNUMBER(phys_base)=-228589568\nNUMBER(sme_mask)=0x8000000000000000\nCRASHTIME=1763900000\n\0";

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
    vec![SEED.to_vec()]
}

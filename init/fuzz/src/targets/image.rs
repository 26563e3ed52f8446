//! What the host side reads: cpio archives, modules to strip.
//!
//! Input: a byte that says which, then the file.

use crate::build::put;
use crate::take;
use afterimage::{cpio, strip};

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let mut bytes = data;
    match take(&mut bytes, 1).first().copied().unwrap_or(0) % 2 {
        0 => check_cpio(bytes),
        _ => check_strip(bytes),
    }
}

/// The files of an archive, written again, are the same files.
fn check_cpio(bytes: &[u8]) {
    let files = match cpio::read_files(bytes) {
        Ok(files) => files,
        Err(cpio::NotAnArchive(at)) => return assert!(at <= bytes.len().next_multiple_of(4)),
    };
    assert!(files.len() <= bytes.len() / 110);
    // `write` makes parent directories, one per slash; one named like the trailer would end the
    // archive.
    if files.iter().any(|(path, _)| path.matches('/').count() > 16 || path.contains("TRAILER!!!")) {
        return;
    }
    let entries: Vec<cpio::Entry> =
        files.iter().map(|(path, data)| cpio::Entry::file(path, 0o644, data.to_vec())).collect();
    let again = cpio::write(&entries);
    let again = cpio::read_files(&again).expect("our own archive");
    let names = |files: &[(String, &[u8])]| -> Vec<String> {
        files.iter().map(|(path, _)| path.trim_start_matches('/').to_owned()).collect()
    };
    assert_eq!(names(&files), names(&again));
    assert!(
        files.iter().zip(&again).all(|(before, after)| before.1 == after.1),
        "{files:?} became {again:?}"
    );
}

/// A stripped module is not larger, but for alignment.
fn check_strip(bytes: &[u8]) {
    let bytes = bytes.to_vec(); // aligned, as a file that has been read is; `object` refuses anything else
    let out = strip::strip(&bytes);
    assert!(out.len() <= 2 * bytes.len() + 65536, "{} bytes became {}", bytes.len(), out.len());
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let archive = cpio::write(&[
        cpio::Entry { path: "dev/console".into(), mode: 0o600, kind: cpio::Kind::CharDevice(5, 1) },
        cpio::Entry::file("etc/afterimage/config.toml", 0o600, b"abc".to_vec()),
    ]);
    let module = module();
    assert!(
        strip::strip(&module).len() < module.len(),
        "the fuzzer starts from a module that can be stripped"
    );
    let signed = [
        &module,
        &[0xaa; 30][..],
        &[0, 0, 2, 0, 0, 0, 0, 0],
        &30_u32.to_be_bytes(),
        b"~Module signature appended~\n",
    ]
    .concat();
    [(0, archive), (1, module), (1, signed)].map(|(kind, file)| [&[kind], &file[..]].concat()).to_vec()
}

/// Name, type, flags, bytes, link and info, alignment and entry size.
type Section<'a> = (&'a str, u32, u64, &'a [u8], [u32; 2], [u64; 2]);

/// A relocatable x86_64 ELF file: code, something to strip, a symbol, a relocation.
fn module() -> Vec<u8> {
    let names = b"\0.text\0.debug_info\0.symtab\0.strtab\0.shstrtab\0.rela.text\0";
    let name = |wanted: &str| names.windows(wanted.len()).position(|part| part == wanted.as_bytes()).unwrap();
    let mut symbols = [0; 48];
    put(&mut symbols, 24, &[1, 0, 0, 0, 0x12, 0, 1]); // "f", a global function in section 1
    let mut relocation = [0; 24];
    put(&mut relocation, 8, &(1_u64 << 32 | 2).to_le_bytes());
    let sections: [Section<'_>; 6] = [
        (".text", 1, 6, &[0x90; 32], [0, 0], [16, 0]),
        (".debug_info", 1, 0, &[1; 64], [0, 0], [1, 0]),
        (".symtab", 2, 0, &symbols, [4, 1], [8, 24]),
        (".strtab", 3, 0, b"\0f\0", [0, 0], [1, 0]),
        (".shstrtab", 3, 0, names, [0, 0], [1, 0]),
        (".rela.text", 4, 0x40, &relocation, [3, 1], [8, 24]),
    ];
    let mut out = vec![0; 64];
    let mut table = vec![0; 64];
    for (section, kind, flags, bytes, links, sizes) in sections {
        out.resize(out.len().next_multiple_of(16), 0);
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        table.extend(u32::try_from(name(section)).unwrap().to_le_bytes());
        table.extend(kind.to_le_bytes());
        table.extend(words(&[
            flags,
            0,
            u64::try_from(out.len()).unwrap(),
            u64::try_from(bytes.len()).unwrap(),
        ]));
        table.extend(links.map(u32::to_le_bytes).concat());
        table.extend(words(&sizes));
        out.extend(bytes);
    }
    out.resize(out.len().next_multiple_of(16), 0);
    let at = u64::try_from(out.len()).unwrap();
    put(&mut out, 0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(&mut out, 16, &[1, 0, 62, 0, 1]); // ET_REL, x86_64
    put(&mut out, 40, &at.to_le_bytes());
    put(&mut out, 52, &[64, 0, 0, 0, 0, 0, 64, 0, 7, 0, 5]); // e_ehsize … e_shentsize, e_shnum, e_shstrndx
    out.extend(table);
    out
}

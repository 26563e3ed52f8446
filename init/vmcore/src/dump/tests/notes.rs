//! What describes the kernel in a dump.

use super::*;
use crate::dump::notes;

#[test]
fn vmcoreinfo_that_was_found_elsewhere_goes_into_the_dump() {
    let memory = || CoreFile::new().memory(0x1000, 159, 1).note("CORE", 1, &[1; 336]);
    let damaged = INFO.to_ascii_lowercase();
    for (core, notes) in [(memory(), 2), (memory().note("VMCOREINFO", 0, &damaged), 2)] {
        let core = open(core.note("LINUX", 0x700, &[9; 300]).write().path());
        for format in [Format::Kdump, Format::Elf, Format::Flattened] {
            let request = Request { format, ..request(0, Compress::None, 1) };
            let mut sink = MemorySink::default();
            dump(&core, &request, &mut sink).0.unwrap();
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), &sink.bytes).unwrap();
            let again: Box<dyn Core> = match format {
                Format::Elf => Box::new(open(file.path())),
                _ => Box::new(Kdump::open(file.path()).unwrap()),
            };
            assert_eq!(*again.info(), VmcoreInfo::parse(INFO), "{format}");
            assert_eq!((again.notes().notes.len(), again.notes().cpus()), (notes + 1, 1), "{format}");
        }
        let mut sink = MemorySink::default();
        notes::write(&core, &VmcoreInfo::parse(INFO), &mut sink).unwrap();
        let line = b"OSRELEASE=6.1-test\n";
        assert!(sink.bytes.windows(line.len()).any(|window| window == line));
    }
}

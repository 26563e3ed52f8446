//! A sink that fails after n bytes, for every n of a small dump: what is left is complete, or
//! incomplete and readable.

use super::*;

/// Takes so many bytes in all, wherever they go; then every write fails, or only the one that came
/// too late.
struct Failing {
    bytes: Vec<u8>,
    left: usize,
    for_good: bool,
    failed: bool,
}

impl Sink for Failing {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let error = || SinkError::Write { offset, len: bytes.len(), source: io::Error::from_raw_os_error(5) };
        if self.failed && self.for_good {
            return Err(error());
        }
        let taken = if self.failed { bytes.len() } else { self.left.min(bytes.len()) };
        let (at, end) = (to_usize(offset), to_usize(offset) + taken);
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[at..end].copy_from_slice(&bytes[..taken]);
        self.left -= if self.failed { 0 } else { taken };
        if taken < bytes.len() {
            self.failed = true;
            return Err(error());
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> Result<(), SinkError> {
        self.bytes.resize(to_usize(len), 0);
        Ok(())
    }
}

fn run(core: &Vmcore, sink: &mut Failing) -> (Result<(), DumpError>, Written) {
    let mut written = Written::default();
    let result = write(core, None, &request(0, Compress::None, 1), sink, &mut written);
    (result, written)
}

#[test]
fn a_sink_that_fails_after_any_number_of_bytes_leaves_a_true_dump() {
    let file = CoreFile::new().memory(0x1000, 3, 1).note("VMCOREINFO", 0, INFO).write();
    let core = open(file.path());
    let mut expected = vec![vec![0; 4096]; 4];
    for pfn in 1..4_u64 {
        core.page_reader().read_page(Pfn(pfn), &mut expected[to_usize(pfn)]).unwrap();
    }
    let new = |left, for_good| Failing { bytes: Vec::new(), left, for_good, failed: false };
    let mut whole = new(usize::MAX, true);
    run(&core, &mut whole).0.unwrap();
    let all = usize::MAX - whole.left;
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut page = vec![0; 4096];
    let (mut readable, mut with_pages) = (0, 0);
    for (for_good, step) in [(true, 1), (false, 13)] {
        for left in (0..all).step_by(step) {
            let mut sink = new(left, for_good);
            let (result, written) = run(&core, &mut sink);
            result.unwrap_err();
            fs::write(path.path(), &sink.bytes).unwrap();
            // No dump at all may be left only as long as no page was promised to be in it.
            let Ok(back) = Kdump::open(path.path()) else {
                assert_eq!(written.pages.in_dump(), 0, "after {left} bytes");
                continue;
            };
            readable += 1;
            // The header that falls last says complete: then all of it is there.
            let found = (1..4).filter(|&pfn| match back.page_reader().read_page(Pfn(pfn), &mut page) {
                Ok(()) => {
                    assert!(page == expected[to_usize(pfn)], "page {pfn} after {left} bytes");
                    true
                }
                Err(_) => false,
            });
            let found = found.count();
            assert!(
                back.header().incomplete || found == 3,
                "after {left} bytes: {found} pages and not INCOMPLETE"
            );
            assert!(
                found >= to_usize(written.pages.in_dump()),
                "after {left} bytes: {found} pages, {written:?}"
            );
            with_pages += usize::from(found > 0);
        }
    }
    assert!(readable > all / 2 && with_pages > 4096, "{readable} of {all} readable, {with_pages} with pages");
}

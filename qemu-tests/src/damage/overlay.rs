//! A vmcore with some bytes that are not what the file has: what a crash that tore memory leaves
//! behind.

use base::addr::{PageSize, Pfn, PfnRange, PhysAddr, VirtAddr, to_u64, to_usize};
use std::collections::BTreeMap;
use std::io;
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::source::{Anomaly, Core, NoteIndex, PageReader, PhysicalMemory, ReadError, Vmcore};

/// A healthy core under a few bytes of damage.
#[derive(Debug)]
pub struct Overlay<'c> {
    core: &'c Vmcore,
    info: VmcoreInfo,
    /// Damaged bytes by physical address.
    bytes: BTreeMap<u64, u8>,
}

impl<'c> Overlay<'c> {
    /// `core` with another VMCOREINFO.
    #[must_use]
    pub fn new(core: &'c Vmcore, info: VmcoreInfo) -> Self {
        Self { core, info, bytes: BTreeMap::new() }
    }

    /// Puts `bytes` at a physical address.
    pub fn patch(&mut self, at: PhysAddr, bytes: &[u8]) {
        self.bytes.extend((at.0..).zip(bytes.iter().copied()));
    }

    fn damage(&self, at: PhysAddr, out: &mut [u8]) {
        let end = at.0.saturating_add(to_u64(out.len()));
        for (&place, &byte) in self.bytes.range(at.0..end) {
            if let Some(out) = out.get_mut(to_usize(place.saturating_sub(at.0))) {
                *out = byte;
            }
        }
    }
}

impl PhysicalMemory for Overlay<'_> {
    fn page_size(&self) -> PageSize {
        self.core.page_size()
    }

    fn ranges(&self) -> &[PfnRange] {
        self.core.ranges()
    }

    fn read_exact_at(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        self.core.read_exact_at(addr, out)?;
        self.damage(addr, out);
        Ok(())
    }

    fn page_reader(&self) -> Box<dyn PageReader + '_> {
        Box::new(Reader { overlay: self, inner: self.core.page_reader() })
    }
}

impl Core for Overlay<'_> {
    fn machine(&self) -> Option<&str> {
        self.core.machine()
    }

    fn info(&self) -> &VmcoreInfo {
        &self.info
    }

    fn notes(&self) -> &NoteIndex {
        self.core.notes()
    }

    fn read_note_bytes(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.core.read_note_bytes(offset, out)
    }

    fn mappings(&self) -> &[(VirtAddr, PhysAddr, u64)] {
        self.core.mappings()
    }

    fn anomalies(&self) -> &[Anomaly] {
        self.core.anomalies()
    }
}

struct Reader<'o> {
    overlay: &'o Overlay<'o>,
    inner: Box<dyn PageReader + 'o>,
}

impl PageReader for Reader<'_> {
    fn read_exact_at(&mut self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        self.inner.read_exact_at(addr, out)?;
        self.overlay.damage(addr, out);
        Ok(())
    }

    fn read_page(&mut self, pfn: Pfn, page: &mut [u8]) -> Result<(), ReadError> {
        self.inner.read_page(pfn, page)?;
        self.overlay.damage(self.overlay.page_size().addr_of(pfn).unwrap_or(PhysAddr(u64::MAX)), page);
        Ok(())
    }
}

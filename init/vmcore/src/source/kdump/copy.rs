//! What there is of a dump, put into a plain file that every reader opens.

use std::io;

use crate::format::kdump::{self, PageDesc};
use crate::sink::{Sink, SinkError};
use crate::source::faults_with;
use crate::source::kdump::Kdump;
use base::addr::{to_u64, to_usize};
use base::read_at::ReadAt;

/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;

/// Why the copy is not whole.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The dump cannot be read.
    #[error("reading the dump")]
    Read(#[from] io::Error),
    /// The copy cannot be written.
    #[error("writing the copy")]
    Write(#[from] SinkError),
}

pub(super) fn copy(dump: &Kdump, sink: &mut dyn Sink) -> Result<u64, CopyError> {
    let file = dump.file()?;
    let (block, layout) = (dump.layout.page_size.bytes(), &dump.layout);
    let mut head = vec![0; to_usize(block.saturating_mul(2))];
    let sub_end = to_usize(block).saturating_add(kdump::SUB_HEADER_LEN);
    head.truncate(sub_end);
    file.read_whole(&mut head, 0)?;
    kdump::mark_incomplete(&mut head);
    sink.write_at(0, &head)?;
    for (start, len) in file.pieces() {
        copy_piece(file, start, len, sink)?;
    }
    let (mut descs, mut at, mut there) = (Vec::new(), layout.descs_offset(), 0_u64);
    let mut result = Ok(());
    let mut write = |descs: &mut Vec<u8>| {
        let written = sink.write_at(at, descs);
        at = at.saturating_add(to_u64(descs.len()));
        descs.clear();
        written
    };
    dump.for_each_desc(|index, desc: PageDesc| {
        if index == 0 && result.is_ok() {
            there = there.saturating_add(u64::from(desc.offset != 0));
            descs.extend(desc.emit());
            if to_u64(descs.len()) >= PIECE {
                result = write(&mut descs);
            }
        }
    })?;
    result.and_then(|()| write(&mut descs))?;
    sink.sync()?;
    let lost = dump.kept().saturating_sub(there);
    if faults_with(dump, lost).is_empty() {
        file.read_whole(&mut head, 0)?;
        sink.write_at(0, &head)?;
        sink.sync()?;
    }
    Ok(lost)
}

/// Copies a piece but for the header, which is written apart.
fn copy_piece(file: &dyn ReadAt, start: u64, len: u64, sink: &mut dyn Sink) -> Result<(), CopyError> {
    let (mut at, end) = (start, start.saturating_add(len));
    let mut bytes = Vec::new();
    while at < end {
        bytes.resize(to_usize(PIECE.min(end.saturating_sub(at))), 0);
        file.read_whole(&mut bytes, at)?;
        if at == 0 {
            kdump::mark_incomplete(&mut bytes);
        }
        sink.write_at(at, &bytes)?;
        at = at.saturating_add(to_u64(bytes.len()));
    }
    Ok(())
}

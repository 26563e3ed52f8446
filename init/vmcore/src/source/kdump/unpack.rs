//! Decompressing one page. The contexts are made on first use and serve every page of a reader.

use std::io;

use crate::format::kdump::Compression;
use base::addr::to_usize;

/// Decompressors.
#[derive(Default)]
pub(super) struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    zlib: Option<Box<flate2::Decompress>>,
}

impl Unpacker {
    /// Fills `page` with what `packed` holds; data that is not exactly a page is an error.
    pub(super) fn unpack(
        &mut self,
        compression: Compression,
        packed: &[u8],
        page: &mut [u8],
    ) -> io::Result<()> {
        let got = match compression {
            Compression::Raw => {
                if let Some(whole) = packed.get(..page.len()) {
                    page.copy_from_slice(whole);
                }
                packed.len()
            }
            Compression::Zlib => self.inflate(packed, page)?,
            Compression::Lzo => lzokay::decompress::decompress(packed, page)
                .map_err(|error| io::Error::other(format!("LZO data: {error}")))?,
            Compression::Snappy => {
                snap::raw::Decoder::new().decompress(packed, page).map_err(io::Error::other)?
            }
            Compression::Zstd => self.zstd()?.decompress_to_buffer(packed, page)?,
        };
        if got == page.len() { Ok(()) } else { Err(io::Error::other(format!("page data of {got} bytes"))) }
    }

    fn zstd(&mut self) -> io::Result<&mut zstd::bulk::Decompressor<'static>> {
        let made = self.zstd.take().map_or_else(zstd::bulk::Decompressor::new, Ok)?;
        Ok(self.zstd.insert(made))
    }

    fn inflate(&mut self, packed: &[u8], page: &mut [u8]) -> io::Result<usize> {
        let stream = self.zlib.get_or_insert_with(|| Box::new(flate2::Decompress::new(true)));
        stream.reset(true);
        let status = stream.decompress(packed, page, flate2::FlushDecompress::Finish);
        if status.map_err(io::Error::other)? != flate2::Status::StreamEnd {
            return Err(io::Error::other("a zlib stream that is no page"));
        }
        Ok(to_usize(stream.total_out()))
    }
}

//! Compressing one page. Each worker has a codec of its own, whose context is reused for every
//! page.

use std::io;

use crate::format::kdump::Compression;
use base::addr::to_usize;
use base::config::Compress;

/// The level of zstd at which `compress = "auto"` begins; the tuner chooses others.
pub(super) const AUTO_START: i32 = 1;

/// A compressor for pages.
pub(super) enum Codec {
    Zstd(Box<zstd::bulk::Compressor<'static>>),
    Zlib(Box<flate2::Compress>),
    None,
}

impl Codec {
    pub(super) fn new(compress: Compress) -> io::Result<Self> {
        Ok(match compress {
            Compress::Auto => Self::zstd(AUTO_START)?,
            Compress::Zstd(level) => Self::zstd(level)?,
            Compress::Zlib => Self::Zlib(Box::new(flate2::Compress::new(flate2::Compression::fast(), true))),
            Compress::None => Self::None,
        })
    }

    fn zstd(level: i32) -> io::Result<Self> {
        let mut context = zstd::bulk::Compressor::new(level)?;
        // Every reader knows how long a page is: a byte less in each.
        context.include_contentsize(false)?;
        Ok(Self::Zstd(Box::new(context)))
    }

    /// The flag that the header of a dump made with `compress` carries.
    pub(super) fn flag(compress: Compress) -> u32 {
        match compress {
            Compress::Auto | Compress::Zstd(_) => Compression::Zstd.flag(),
            Compress::Zlib => Compression::Zlib.flag(),
            Compress::None => Compression::Raw.flag(),
        }
    }

    /// Puts `page` at the start of `out`, compressed if that makes it smaller, and says how long it
    /// is there. Never fails: a page that the compressor will not take is stored as it is. `out`
    /// has room for a page.
    pub(super) fn pack_or_copy(&mut self, page: &[u8], out: &mut [u8]) -> (usize, Compression) {
        // One byte less than the page: what does not fit is not worth it, and readers take no more
        // than a page.
        let place = out.get_mut(..page.len().saturating_sub(1)).unwrap_or_default();
        if let Some(packed) = self.pack(page, place) {
            return packed;
        }
        let place = out.get_mut(..page.len()).unwrap_or_default();
        place.copy_from_slice(page.get(..place.len()).unwrap_or_default());
        (place.len(), Compression::Raw)
    }

    /// Changes the level, where there is one to change.
    pub(super) fn set_level(&mut self, level: i32) {
        if let Self::Zstd(context) = self
            && let Err(error) = context.set_compression_level(level)
        {
            log::debug!("zstd level {level}: {error}");
        }
    }

    /// Compresses `page` into `place`; `None` if it does not fit.
    fn pack(&mut self, page: &[u8], place: &mut [u8]) -> Option<(usize, Compression)> {
        match self {
            Self::Zstd(context) => Some((context.compress_to_buffer(page, place).ok()?, Compression::Zstd)),
            Self::Zlib(context) => Some((deflate(context, page, place)?, Compression::Zlib)),
            Self::None => None,
        }
    }
}

/// Bytes of the zlib stream, or `None` if it does not fit.
fn deflate(context: &mut flate2::Compress, page: &[u8], out: &mut [u8]) -> Option<usize> {
    context.reset();
    match context.compress(page, out, flate2::FlushCompress::Finish) {
        Ok(flate2::Status::StreamEnd) => Some(to_usize(context.total_out())),
        _ => None,
    }
}

/// Whether a page is all zero.
pub(super) fn is_zero(page: &[u8]) -> bool {
    // The C library compares as fast as memory is; most pages that are not zero differ in the first
    // piece.
    let (pieces, rest) = page.as_chunks::<512>();
    rest.iter().all(|&byte| byte == 0) && pieces.iter().all(|piece| *piece == [0; 512])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incompressible_pages_are_raw_and_others_are_smaller() {
        let mut x = 1_u64;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()[3]
        };
        let noise: Vec<u8> = (0..4096).map(|_| next()).collect();
        for compress in [Compress::Zstd(1), Compress::Zstd(-5), Compress::Zlib] {
            let mut codec = Codec::new(compress).unwrap();
            let mut out = vec![9; 5000];
            assert_eq!(codec.pack_or_copy(&noise, &mut out), (4096, Compression::Raw), "{compress}");
            assert_eq!(out[..4096], noise);
            let (len, compression) = codec.pack_or_copy(&[7; 4096], &mut out);
            assert_eq!(compression.flag(), Codec::flag(compress));
            assert!(len < 100);
        }
        let mut codec = Codec::new(Compress::None).unwrap();
        assert_eq!(codec.pack_or_copy(&[0; 4096], &mut [1; 4096]), (4096, Compression::Raw));
    }

    #[test]
    fn zero_means_every_byte() {
        let mut page = vec![0; 4096];
        assert!(is_zero(&page));
        for at in [0, 63, 64, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
        assert!(!is_zero(&[0, 0, 1]));
    }
}

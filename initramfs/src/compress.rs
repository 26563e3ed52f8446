//! Compressing an image in a way that the kernel unpacks, and unpacking it again.

use std::io::{self, Read, Write};

use base::config::ImageCompress;

/// Dictionary of xz and window of zstd: the kernel allocates as much while it unpacks.
const WINDOW_LOG: u32 = 19;

/// Compresses an archive, the same way every time.
pub(crate) fn compress(archive: &[u8], how: ImageCompress) -> io::Result<Vec<u8>> {
    match how {
        ImageCompress::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            out.write_all(archive)?;
            out.finish()
        }
        ImageCompress::Xz => {
            let mut options = liblzma::stream::LzmaOptions::new_preset(9)?;
            options.dict_size(1 << WINDOW_LOG);
            let mut filters = liblzma::stream::Filters::new();
            filters.x86().lzma2(&options);
            // The kernel's decoder knows CRC32 only (Documentation/staging/xz.rst).
            let stream =
                liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32)?;
            let mut out = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            out.write_all(archive)?;
            out.finish()
        }
        ImageCompress::Zstd => {
            let mut out = zstd::stream::Encoder::new(Vec::new(), 19)?;
            out.window_log(WINDOW_LOG)?;
            out.write_all(archive)?;
            out.finish()
        }
    }
}

/// The archive in an image, by its magic number; trailing archives (facts) are not looked at.
pub(crate) fn decompress(image: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    match image {
        [0x1f, 0x8b, ..] => flate2::read::GzDecoder::new(image).read_to_end(&mut out),
        [0xfd, b'7', b'z', ..] => liblzma::read::XzDecoder::new(image).read_to_end(&mut out),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::stream::Decoder::new(image).and_then(|decoder| decoder.single_frame().read_to_end(&mut out))
        }
        [b'0', b'7', b'0', b'7', ..] => return Ok(image.to_vec()),
        _ => return Err(io::Error::other("neither gzip, xz, zstd nor cpio")),
    }?;
    Ok(out)
}

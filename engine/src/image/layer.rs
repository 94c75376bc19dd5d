//! Layers as streams: what compresses one is told by its first bytes, for media types are wrong often enough (and a `docker
//! save` tar has none).

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

/// What a stream is compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Nothing.
    None,
    /// gzip (RFC 1952), of one or more members.
    Gzip,
    /// Zstandard (RFC 8878), of one or more frames, skippable ones among them.
    Zstd,
}

impl Compression {
    /// What the first bytes tell.
    ///
    /// # Errors
    /// `Unsupported` for bzip2 and xz, which no image specification allows.
    pub fn of(start: &[u8]) -> io::Result<Self> {
        let other = |name| {
            Err(io::Error::new(io::ErrorKind::Unsupported, format!("{name} compression is not supported")))
        };
        match start {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
            [first, 0x2a, 0x4d, 0x18, ..] if first & 0xf0 == 0x50 => Ok(Compression::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => other("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => other("xz"),
            _ => Ok(Compression::None),
        }
    }

    /// The media type of a layer (OCI image specification, `layer.md`).
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// The uncompressed bytes of a stream, and what it was compressed with.
pub(crate) fn decompress<'a>(source: impl Read + 'a) -> io::Result<(Box<dyn Read + 'a>, Compression)> {
    // zstd's magic is 4 bytes, and a pipe may give fewer at first: read them by hand and put them in front again.
    let mut source = source;
    let mut start = Vec::with_capacity(8);
    source.by_ref().take(8).read_to_end(&mut start)?;
    let compression = Compression::of(&start)?;
    let whole = BufReader::with_capacity(128 * 1024, io::Cursor::new(start).chain(source));
    let decoder: Box<dyn Read + 'a> = match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
    };
    Ok((decoder, compression))
}

/// The uncompressed bytes of a file.
pub(crate) fn open(path: &Path) -> io::Result<(Box<dyn Read>, Compression)> {
    decompress(File::open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 1).unwrap()
    }

    fn read(data: &[u8]) -> io::Result<(Vec<u8>, Compression)> {
        let (mut stream, compression) = decompress(data)?;
        let mut out = Vec::new();
        stream.read_to_end(&mut out)?;
        Ok((out, compression))
    }

    #[test]
    fn plain_gzip_and_zstd_streams_are_told_apart_and_read() {
        assert_eq!(read(b"plain").unwrap(), (b"plain".to_vec(), Compression::None));
        assert_eq!(read(b"").unwrap(), (Vec::new(), Compression::None));
        assert_eq!(read(&gzip(b"data")).unwrap(), (b"data".to_vec(), Compression::Gzip));
        assert_eq!(read(&zstd(b"data")).unwrap(), (b"data".to_vec(), Compression::Zstd));
    }

    #[test]
    fn several_gzip_members_and_zstd_frames_are_one_stream() {
        let members = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        assert_eq!(read(&members).unwrap().0, b"one two");
        let skippable = b"\x53\x2a\x4d\x18\x03\0\0\0abc";
        let frames = [&skippable[..], &zstd(b"one "), skippable, &zstd(b"two"), skippable].concat();
        assert_eq!(read(&frames).unwrap(), (b"one two".to_vec(), Compression::Zstd));
    }

    #[test]
    fn damaged_cut_and_trailing_bytes_are_errors() {
        for whole in [gzip(&[7; 5000]), zstd(&[7; 5000])] {
            assert!(read(&whole[..whole.len() - 1]).is_err(), "cut");
            let mut more = whole.clone();
            more.extend_from_slice(b"trailing garbage");
            assert!(read(&more).is_err(), "trailing");
        }
        let mut flipped = gzip(b"some data that is checked");
        let at = flipped.len() - 6;
        flipped[at] ^= 1;
        assert!(read(&flipped).is_err(), "flipped");
    }

    #[test]
    fn foreign_compressions_are_refused_by_name() {
        assert_eq!(read(b"BZh91AY").unwrap_err().to_string(), "bzip2 compression is not supported");
        assert_eq!(read(b"\xfd7zXZ\0..").unwrap_err().to_string(), "xz compression is not supported");
    }
}

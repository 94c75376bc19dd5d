//! The parts of a block request (virtio 1.2, 5.2.6), and clearing ranges of the file.

use std::fs::File;
use std::io;

use virtio_bindings::bindings::virtio_blk as blk;

use crate::os;
use crate::virtio::Reader;

/// The head of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) kind: u32,
    pub(super) sector: u64,
}

impl Header {
    /// Bytes: type (4), reserved (4), sector (8).
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let [kind, sector]: [u64; 2] = reader.read_obj()?;
        Some(Self { kind: u64::from_le(kind) as u32, sector: u64::from_le(sector) })
    }
}

/// One range of a discard or write-zeroes request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) sector: u64,
    pub(super) count: u32,
    pub(super) flags: u32,
}

impl Range {
    /// Bytes of a range in a request.
    pub(super) const LEN: usize = 16;

    /// Bytes: sector (8), number of sectors (4), flags (4).
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let [sector, rest]: [u64; 2] = reader.read_obj()?;
        let rest = u64::from_le(rest);
        Some(Self { sector: u64::from_le(sector), count: rest as u32, flags: (rest >> 32) as u32 })
    }
}

/// The status byte of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Ok => blk::VIRTIO_BLK_S_OK as u8,
            Self::IoError => blk::VIRTIO_BLK_S_IOERR as u8,
            Self::Unsupported => blk::VIRTIO_BLK_S_UNSUPP as u8,
        }
    }

    /// An error of the file becomes the guest's I/O error, as on a failing disk.
    #[allow(clippy::needless_pass_by_value)]
    pub(super) fn log(error: io::Error) -> Self {
        log::warn!("disk: {error}");
        Self::IoError
    }
}

/// Discards or zeroes a range that was checked to lie on the disk.
pub(super) fn clear(file: &File, kind: u32, flags: u32, offset: u64, len: u64) -> Result<(), Status> {
    const UNMAP: u32 = blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    if len == 0 {
        return Ok(());
    }
    match (kind, flags) {
        (blk::VIRTIO_BLK_T_DISCARD, 0) => match os::punch_hole(file, offset, len) {
            // Discarding is a hint: a file system that cannot do it keeps the data.
            Ok(_) => Ok(()),
            Err(error) => Err(Status::log(error)),
        },
        (blk::VIRTIO_BLK_T_WRITE_ZEROES, 0 | UNMAP) => {
            let clear = if flags == UNMAP { os::punch_hole } else { os::zero_range };
            match clear(file, offset, len) {
                Ok(true) => Ok(()),
                Ok(false) => write_zeroes(file, offset, len).map_err(Status::log),
                Err(error) => Err(Status::log(error)),
            }
        }
        _ => Err(Status::Unsupported),
    }
}

/// Not on the stack: its pages would be touched at every kick, by the function that this is a part of.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

fn write_zeroes(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let step = usize::try_from(len - done).unwrap_or(ZEROES.len()).min(ZEROES.len());
        os::write_all_at(file, ZEROES.get(..step).unwrap_or(&ZEROES), offset + done)?;
        done += step as u64;
    }
    Ok(())
}

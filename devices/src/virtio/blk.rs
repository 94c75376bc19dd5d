//! Block device (virtio 1.2, section 5.2) over a raw file or a host block device.
//!
//! Requests are served in order, on the device's thread, straight between the file and guest memory. Read-only is
//! enforced here, whatever the driver negotiated and however the file was opened.

mod bytes;
mod request;

use std::fs::File;
use std::io::{self, Seek as _};
use std::path::Path;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk as blk;

use super::{Chain, ConfigSpace, Error, Io, Reader, VirtioDevice, Writer, id};
use crate::event::{Ready, Token};
use crate::mem::file_ref;
use crate::state::{self, State, StateError};
use bytes::Bytes;
use request::{Header, Range, Status};

/// Bytes of a sector, the unit of every address (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

const QUEUE_SIZES: [u16; 1] = [256];
/// Ranges in one discard or write-zeroes request.
const MAX_RANGES: u32 = 64;
/// Sectors in one range of such a request: 1 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Bytes of the identity string (virtio 1.2, 5.2.6).
const ID_LEN: usize = 20;

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened or looked at.
    #[error("opening disk {path}")]
    Open {
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The size is no multiple of a sector.
    #[error("disk {path} has {size} bytes, which is no multiple of {SECTOR}; pad the file")]
    Size {
        /// The file.
        path: String,
        /// Its size in bytes.
        size: u64,
    },
}

/// The block device.
#[derive(Debug)]
pub struct Blk {
    bytes: Bytes,
    sectors: u64,
    read_only: bool,
    /// A flush is answered at once: what was written is safe from the end of this process, and not of its host.
    relaxed: bool,
    id: [u8; ID_LEN],
    config: ConfigSpace,
    /// The driver flushes on its own; otherwise every write is made durable (virtio 1.2, 5.2.6.2).
    driver_flushes: bool,
}

impl Blk {
    /// Opens a raw disk image. `id` is the identity that the guest sees, cut to 20 bytes.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, read_only: bool, id: &str) -> Result<Self, OpenError> {
        let text = || path.display().to_string();
        let open = |source| OpenError::Open { path: text(), source };
        let mut file = File::options().read(true).write(!read_only).open(path).map_err(open)?;
        // The end of a host block device is where it can be sought to; its metadata has no size.
        let size = file.seek(io::SeekFrom::End(0)).map_err(open)?;
        if !size.is_multiple_of(SECTOR) {
            return Err(OpenError::Size { path: text(), size });
        }
        Ok(Self::new(file, size / SECTOR, read_only, id))
    }

    /// A disk of `sectors` sectors over `file`.
    #[must_use]
    pub fn new(file: File, sectors: u64, read_only: bool, id: &str) -> Self {
        Self::over(Bytes::File(file), sectors, read_only, id)
    }

    /// A writable disk of `sectors` sectors that reads from `base`, which is never written. The first write asks `make` for a
    /// file of its own with the same bytes; from then on that is the disk, and the base is let go. A disk that is never
    /// written needs no file.
    #[must_use]
    pub fn copy_on_write(
        base: impl Into<Arc<File>>,
        sectors: u64,
        id: &str,
        make: impl FnMut(&File) -> io::Result<File> + Send + 'static,
    ) -> Self {
        Self::over(Bytes::Base { base: base.into(), make: Box::new(make) }, sectors, false, id)
    }

    /// The same disk without durability: a flush does not wait for the host's disk. What was written outlives this process; if
    /// the host goes down, the last of it may be lost, in any order.
    #[must_use]
    pub fn relaxed(mut self) -> Self {
        self.relaxed = true;
        self
    }

    fn over(bytes: Bytes, sectors: u64, read_only: bool, id: &str) -> Self {
        let mut id_bytes = [0; ID_LEN];
        id_bytes.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        Self {
            bytes,
            sectors,
            read_only,
            relaxed: false,
            id: id_bytes,
            config: ConfigSpace::new(config_bytes(sectors)),
            driver_flushes: false,
        }
    }

    fn serve(&mut self, chain: &Chain, io: &dyn Io) -> Result<u32, Error> {
        let mem = io.mem();
        let mut reader = chain.reader(&mem);
        let mut writer = chain.writer(&mem);
        let data_len = writer.len().checked_sub(1);
        let (Some(header), Some(data_len)) = (Header::read(&mut reader), data_len) else {
            return Err(Error::Guest("block request without header or status".into()));
        };
        let mut status_writer = writer.split_off(data_len);
        let status = self.execute(header, &mut reader, &mut writer);
        status_writer.write_obj(&status.code());
        // The length counts bytes written from the start on (virtio 1.2, 2.7.8.2): the status only after all data.
        Ok(if writer.is_empty() { writer.written() + 1 } else { writer.written() })
    }

    fn execute(&mut self, header: Header, reader: &mut Reader<'_>, writer: &mut Writer<'_>) -> Status {
        let Header { kind, sector } = header;
        let done = match kind {
            blk::VIRTIO_BLK_T_IN => self.read(sector, writer),
            blk::VIRTIO_BLK_T_GET_ID => {
                let _ = io::Write::write(writer, &self.id);
                Ok(())
            }
            blk::VIRTIO_BLK_T_FLUSH => self.sync(),
            blk::VIRTIO_BLK_T_OUT | blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES
                if self.read_only =>
            {
                Err(Status::IoError)
            }
            blk::VIRTIO_BLK_T_OUT => self.write(sector, reader),
            blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES => self.clear(kind, reader),
            _ => Err(Status::Unsupported),
        };
        done.err().unwrap_or(Status::Ok)
    }

    /// The byte offset of a request of `len` bytes at `sector`, if it lies on the disk in whole sectors.
    fn offset(&self, sector: u64, len: usize) -> Result<u64, Status> {
        let len = len as u64;
        let end =
            sector.checked_add(len / SECTOR).filter(|&end| end <= self.sectors && len.is_multiple_of(SECTOR));
        end.map(|_| sector * SECTOR).ok_or(Status::IoError)
    }

    fn read(&self, sector: u64, writer: &mut Writer<'_>) -> Result<(), Status> {
        let mut offset = self.offset(sector, writer.len())?;
        while !writer.is_empty() {
            match writer
                .read_from_at(file_ref(self.bytes.file()), writer.len(), offset)
                .map_err(Status::log)?
            {
                // The file is shorter than it was.
                0 => return Err(Status::IoError),
                done => offset += done as u64,
            }
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, reader: &mut Reader<'_>) -> Result<(), Status> {
        let mut offset = self.offset(sector, reader.len())?;
        let file = self.bytes.own().map_err(Status::log)?;
        while !reader.is_empty() {
            match reader.write_to_at(file_ref(file), reader.len(), offset).map_err(Status::log)? {
                0 => return Err(Status::IoError),
                done => offset += done as u64,
            }
        }
        if self.driver_flushes { Ok(()) } else { self.sync() }
    }

    fn sync(&self) -> Result<(), Status> {
        if self.relaxed { Ok(()) } else { self.bytes.sync().map_err(Status::log) }
    }

    fn clear(&mut self, kind: u32, reader: &mut Reader<'_>) -> Result<(), Status> {
        if reader.is_empty() || reader.len() > MAX_RANGES as usize * Range::LEN {
            return Err(Status::IoError);
        }
        while !reader.is_empty() {
            let Range { sector, count, flags } = Range::read(reader).ok_or(Status::IoError)?;
            if count > MAX_RANGE_SECTORS {
                return Err(Status::IoError);
            }
            let len = u64::from(count) * SECTOR;
            let offset = self.offset(sector, usize::try_from(len).map_err(|_| Status::IoError)?)?;
            let file = self.bytes.own().map_err(Status::log)?;
            request::clear(file, kind, flags, offset, len)?;
        }
        if self.driver_flushes { Ok(()) } else { self.sync() }
    }
}

/// `struct virtio_blk_config` (virtio 1.2, 5.2.4) up to the write-zeroes fields.
fn config_bytes(sectors: u64) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    let mut put = |offset: usize, value: &[u8]| {
        bytes.iter_mut().skip(offset).zip(value).for_each(|(to, from)| *to = *from);
    };
    put(0, &sectors.to_le_bytes());
    // seg_max: a chain less its header and status.
    put(12, &u32::from(QUEUE_SIZES[0] - 2).to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    put(34, &1_u16.to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &(4096 / SECTOR as u32).to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[1]);
    bytes
}

impl VirtioDevice for Blk {
    fn id(&self) -> u32 {
        id::BLOCK
    }

    fn features(&self) -> u64 {
        let common =
            1 << blk::VIRTIO_BLK_F_SEG_MAX | 1 << blk::VIRTIO_BLK_F_BLK_SIZE | 1 << blk::VIRTIO_BLK_F_FLUSH;
        let more = if self.read_only {
            1 << blk::VIRTIO_BLK_F_RO
        } else {
            1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES
        };
        common | more
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn start(&mut self, features: u64, _: &mut dyn Io) -> Result<(), Error> {
        self.driver_flushes = features & (1 << blk::VIRTIO_BLK_F_FLUSH) != 0;
        Ok(())
    }

    fn on_kick(&mut self, queue: u16, io: &mut dyn Io) -> Result<(), Error> {
        while let Some(chain) = io.pop(queue)? {
            let written = self.serve(&chain, io)?;
            io.complete(queue, chain, written)?;
        }
        Ok(())
    }

    fn on_host(&mut self, _: Token, _: Ready, _: &mut dyn Io) -> Result<(), Error> {
        Ok(())
    }

    fn on_config_write(&mut self, _: u64, _: &[u8], _: &mut dyn Io) -> Result<(), Error> {
        Ok(())
    }

    fn stop(&mut self, _: &mut dyn Io) {}

    fn save(&self) -> Result<Vec<u8>, StateError> {
        state::encode(&BlkState { sectors: self.sectors, read_only: self.read_only })
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: BlkState = state::decode(bytes)?;
        if (saved.sectors, saved.read_only) == (self.sectors, self.read_only) {
            return Ok(());
        }
        let why = format!(
            "the disk had {} sectors (read-only: {}), this one has {} (read-only: {})",
            saved.sectors, saved.read_only, self.sectors, self.read_only
        );
        Err(StateError::Mismatch { what: BlkState::NAME, why })
    }
}

/// What a disk must still be after a restore.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct BlkState {
    sectors: u64,
    read_only: bool,
}

impl State for BlkState {
    const NAME: &'static str = "virtio-blk";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests;

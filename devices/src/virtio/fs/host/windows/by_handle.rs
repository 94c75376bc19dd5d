//! Files held by handles that open nothing but attributes, and are opened by once more for more.
//!
//! Every step is one name below the handle of a directory (`NtCreateFile` with a root directory), a reparse point is opened
//! itself and not what it leads to, and nobody is kept from anything by how we open (all sharing is allowed). A handle
//! stays with its file when that gets another name. What was opened once more is compared: file systems of other machines do
//! it by name.

use std::ffi::OsStr;
use std::fs::{File, FileTimes, OpenOptions};
use std::os::windows::ffi::OsStrExt as _;
use std::os::windows::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use windows_sys::Wdk::Storage::FileSystem::{
    FILE_CREATE, FILE_DIRECTORY_FILE, FILE_NON_DIRECTORY_FILE, FILE_OPEN, FILE_WRITE_THROUGH,
};
use windows_sys::Win32::Storage::FileSystem::{
    DELETE, FILE_FLAG_BACKUP_SEMANTICS, FILE_LIST_DIRECTORY, FILE_READ_ATTRIBUTES, FILE_READ_DATA,
    FILE_WRITE_ATTRIBUTES, FILE_WRITE_DATA,
};
use windows_sys::Win32::System::Ioctl::{FSCTL_GET_REPARSE_POINT, FSCTL_SET_REPARSE_POINT};

use super::super::super::vfs::{Attr, DirEntry, Errno, NAME_MAX, Seek, SetAttr, StatFs, Time};
use super::super::Owners;
use super::super::listing::Listing;
use super::super::system::{FileId, Found, Result, Stat, System, access, kind};
use super::shape::{Shape, attribute};
use super::{calls, entries, names, removal, shape, space};
use crate::mem::FileRef;

/// The most bytes of a reparse point (`MAXIMUM_REPARSE_DATA_BUFFER_SIZE`).
const REPARSE_MAX: usize = 16 << 10;

/// An open file or directory.
pub(in super::super) type OpenFile = File;

/// Times to set.
pub(in super::super) type Timestamps = FileTimes;

/// An open file, as reads and writes take it.
pub(in super::super) fn file_ref(file: &File) -> FileRef<'_> {
    file
}

/// Where a read or a write goes to in a file that was opened with these flags: the largest offset is the end of the file, wherever
/// that is by then, and none that a guest names.
pub(in super::super) fn placed(flags: u32, offset: u64) -> u64 {
    if flags & access::APPEND != 0 { u64::MAX } else { offset.min(i64::MAX.cast_unsigned()) }
}

/// Changes the size of an open file.
pub(in super::super) fn resize(file: &File, size: u64) -> Result<()> {
    if size > i64::MAX.cast_unsigned() {
        return Err(Errno::FBIG);
    }
    done(file.set_len(size))
}

/// The name that the guest knows a name of the host by.
pub(in super::super) fn name_bytes(name: &OsStr) -> Option<Vec<u8>> {
    names::decode(&name.encode_wide().collect::<Vec<_>>())
}

/// How owners look from inside: everything is root's.
pub(in super::super) fn host_owners() -> Owners {
    Owners::Squashed { uid: 0, gid: 0 }
}

/// The times that a change has.
pub(in super::super) fn timestamps(change: &SetAttr) -> Result<Timestamps> {
    let time = |time: Time| match time {
        Time::Now => Ok(SystemTime::now()),
        Time::At { seconds, nanos } if nanos < 1_000_000_000 => {
            let whole = Duration::from_secs(seconds.unsigned_abs());
            let second = if seconds < 0 {
                SystemTime::UNIX_EPOCH.checked_sub(whole)
            } else {
                SystemTime::UNIX_EPOCH.checked_add(whole)
            };
            let time = second.and_then(|second| second.checked_add(Duration::from_nanos(nanos.into())));
            time.ok_or(Errno::INVAL)
        }
        Time::At { .. } => Err(Errno::INVAL),
    };
    let mut times = FileTimes::new();
    if let Some(at) = change.atime {
        times = times.set_accessed(time(at)?);
    }
    if let Some(at) = change.mtime {
        times = times.set_modified(time(at)?);
    }
    Ok(times)
}

/// The result of a call of the standard library's, in the guest's terms.
pub(super) fn done<T>(result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| match error.kind() {
        // It has looked at what was asked for itself.
        std::io::ErrorKind::InvalidInput => Errno::INVAL,
        _ => Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })
}

/// See the module's description.
#[derive(Debug)]
pub struct ByHandle(());

/// How a file is held.
#[derive(Debug)]
pub struct Anchor {
    pub(super) file: File,
    id: FileId,
    /// The share's own directory, in which what waits for its end is put out of the way.
    pub(super) root: Arc<File>,
}

/// What a file is to a guest.
pub(super) fn shape_of(file: &File) -> Result<Shape> {
    let tag = calls::tag(file)?;
    Ok(Shape::of(tag.FileAttributes, tag.ReparseTag))
}

/// Changes whether a file may be written.
pub(super) fn set_read_only(file: &File, read_only: bool) -> Result<()> {
    let others = calls::basic(file)?.FileAttributes & !attribute::READ_ONLY;
    calls::set_attributes(file, if read_only { others | attribute::READ_ONLY } else { others })
}

/// What makes it the same file.
pub(super) fn id_of(file: &File) -> Result<FileId> {
    let Ok(id) = calls::id(file) else {
        let (volume, index) = calls::short_id(file)?;
        return Ok(FileId { dev: (volume, 0), ino: index, born: (0, 0) });
    };
    let volume = id.VolumeSerialNumber;
    let number = u128::from_le_bytes(id.FileId.Identifier);
    Ok(FileId {
        dev: (volume as u32, (volume >> 32) as u32),
        ino: number as u64,
        // Not the time, which can be set: what ReFS has above 64 bits. A number that NTFS uses again differs from the one before.
        born: (((number >> 64) as u64).cast_signed(), 0),
    })
}

/// What a file is.
fn stat(file: &File) -> Result<Stat> {
    let (basic, standard, id) = (calls::basic(file)?, calls::standard(file)?, id_of(file)?);
    let is_reparse = basic.FileAttributes & attribute::REPARSE_POINT != 0;
    let tag = if is_reparse { calls::tag(file)?.ReparseTag } else { 0 };
    let shape = Shape::of(basic.FileAttributes, tag);
    let size = match shape.kind {
        kind::LINK => read_link(file).map_or(0, |target| target.len() as u64),
        kind::FILE => u64::try_from(standard.EndOfFile).unwrap_or(0),
        _ => 0,
    };
    Ok(Stat {
        id,
        attr: Attr {
            ino: id.ino,
            size,
            blocks: u64::try_from(standard.AllocationSize).unwrap_or(0).div_ceil(512),
            atime: shape::time(basic.LastAccessTime),
            mtime: shape::time(basic.LastWriteTime),
            ctime: shape::time(basic.ChangeTime),
            mode: shape.mode(),
            nlink: standard.NumberOfLinks.saturating_sub(u32::from(standard.DeletePending)),
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            submount: false,
        },
    })
}

fn read_link(file: &File) -> Result<Vec<u8>> {
    let mut data = vec![0; REPARSE_MAX];
    let len = calls::control(file, FSCTL_GET_REPARSE_POINT, &[], &mut data)?;
    data.truncate(len);
    shape::target(&data)
}

impl Anchor {
    /// The handle of a directory whose entries are its own.
    pub(super) fn enter(&self) -> Result<&File> {
        shape_of(&self.file)?.enter()?;
        Ok(&self.file)
    }

    /// Opens the file once more, for more.
    fn again(&self, rights: u32, options: u32) -> Result<File> {
        let opened = calls::open_at(&self.file, &[], rights | FILE_READ_ATTRIBUTES, FILE_OPEN, options);
        // It has lost the name that it was found by.
        let opened = opened.map_err(|errno| if errno == Errno::NOENT { Errno::STALE } else { errno })?;
        if id_of(&opened)? == self.id { Ok(opened) } else { Err(Errno::STALE) }
    }
}

/// Opens an entry of a directory, whatever it is.
pub(super) fn open_entry(dir: &File, name: &[u16], rights: u32) -> Result<File> {
    calls::open_at(dir, name, rights | FILE_READ_ATTRIBUTES, FILE_OPEN, 0)
}

/// The rights that flags of an open ask for.
fn rights(flags: u32) -> u32 {
    match access::mode(flags) {
        0 => FILE_READ_DATA,
        access::WRONLY => FILE_WRITE_DATA,
        _ => FILE_READ_DATA | FILE_WRITE_DATA,
    }
}

/// Options of an open of a regular file.
fn options(flags: u32) -> u32 {
    FILE_NON_DIRECTORY_FILE | if flags & access::DSYNC != 0 { FILE_WRITE_THROUGH } else { 0 }
}

impl System for ByHandle {
    type Anchor = Anchor;
    type Listing = Listing<entries::Stream>;
    const DIRECTORY_GIVES_GROUP: bool = false;

    fn new() -> Result<Self> {
        Ok(Self(()))
    }

    fn root(path: &Path) -> Result<Anchor> {
        let mut how = OpenOptions::new();
        how.access_mode(FILE_READ_ATTRIBUTES).custom_flags(FILE_FLAG_BACKUP_SEMANTICS);
        let file = done(how.open(path))?;
        shape_of(&file)?.enter()?;
        let (id, root) = (id_of(&file)?, Arc::new(done(file.try_clone())?));
        Ok(Anchor { file, id, root })
    }

    fn find(parent: &Arc<Anchor>, name: &[u8]) -> Result<Found<Self>> {
        let file = open_entry(parent.enter()?, &names::encode(name)?, 0)?;
        let stat = stat(&file)?;
        let anchor = Anchor { file, id: stat.id, root: Arc::clone(&parent.root) };
        Ok(Found { anchor: Arc::new(anchor), stat })
    }

    fn stat(anchor: &Anchor) -> Result<Stat> {
        stat(&anchor.file)
    }

    fn stat_open(file: &File) -> Result<Stat> {
        stat(file)
    }

    fn is_pinned(_: &Anchor) -> bool {
        true
    }

    fn pin(found: &Found<Self>) -> Option<Arc<Anchor>> {
        Some(Arc::clone(&found.anchor))
    }

    /// It does, but can be opened once more by the name only that it was opened by.
    fn moves_along(_: &Anchor) -> bool {
        false
    }

    fn open(&self, anchor: &Anchor, flags: u32) -> Result<File> {
        if shape_of(&anchor.file)?.sealed {
            return Err(Errno::ACCESS);
        }
        let file = anchor.again(rights(flags), options(flags))?;
        if flags & access::TRUNC == 0 {
            return Ok(file);
        }
        if access::mode(flags) == 0 {
            resize(&anchor.again(rights(access::WRONLY), FILE_NON_DIRECTORY_FILE)?, 0)?;
        } else {
            resize(&file, 0)?;
        }
        Ok(file)
    }

    fn open_directory(&self, anchor: &Anchor) -> Result<File> {
        anchor.enter()?;
        anchor.again(FILE_LIST_DIRECTORY, FILE_DIRECTORY_FILE)
    }

    fn create(dir: &Anchor, name: &[u8], flags: u32, _: u32) -> Result<File> {
        let rights = rights(flags) | FILE_READ_ATTRIBUTES;
        calls::open_at(dir.enter()?, &names::encode(name)?, rights, FILE_CREATE, options(flags))
    }

    fn chmod(&self, anchor: &Anchor, mode: u32) -> Result<()> {
        let shape = shape_of(&anchor.file)?;
        let read_only = mode & 0o200 == 0;
        // Nothing else of a mode is kept.
        if shape.kind != kind::FILE || shape.read_only == read_only {
            return Ok(());
        }
        set_read_only(&anchor.again(FILE_WRITE_ATTRIBUTES, 0)?, read_only)
    }

    /// The only owner that is asked for is the one that everything has.
    fn chown(_: &Anchor, _: Option<u32>, _: Option<u32>) -> Result<()> {
        Ok(())
    }

    fn set_times(&self, anchor: &Anchor, times: &Timestamps) -> Result<()> {
        done(anchor.again(FILE_WRITE_ATTRIBUTES, 0)?.set_times(*times))
    }

    fn readlink(anchor: &Anchor) -> Result<Vec<u8>> {
        if shape_of(&anchor.file)?.kind != kind::LINK {
            return Err(Errno::INVAL);
        }
        read_link(&anchor.file)
    }

    fn symlink(dir: &Anchor, name: &[u8], target: &[u8]) -> Result<()> {
        let (name, data) = (names::encode(name)?, shape::link(target)?);
        let rights = FILE_WRITE_DATA | FILE_WRITE_ATTRIBUTES | FILE_READ_ATTRIBUTES | DELETE;
        let file = calls::open_at(dir.enter()?, &name, rights, FILE_CREATE, FILE_NON_DIRECTORY_FILE)?;
        let Err(errno) = calls::control(&file, FSCTL_SET_REPARSE_POINT, &data, &mut []) else {
            return Ok(());
        };
        calls::remove_later(&file)?;
        // As Linux says it of a file system that has none.
        Err(if matches!(errno, Errno::OPNOTSUPP | Errno::INVAL) { Errno::PERM } else { errno })
    }

    fn mknod(dir: &Anchor, name: &[u8], mode: u32) -> Result<()> {
        match kind::of(mode) {
            kind::FILE => Self::create(dir, name, access::WRONLY, mode).map(drop),
            _ => Err(Errno::PERM),
        }
    }

    fn mkdir(dir: &Anchor, name: &[u8], _: u32) -> Result<()> {
        let name = names::encode(name)?;
        calls::open_at(dir.enter()?, &name, FILE_READ_ATTRIBUTES, FILE_CREATE, FILE_DIRECTORY_FILE).map(drop)
    }

    fn unlink(dir: &Anchor, name: &[u8]) -> Result<()> {
        removal::unlink(dir, &names::encode(name)?)
    }

    fn rmdir(dir: &Anchor, name: &[u8]) -> Result<()> {
        removal::rmdir(dir, &names::encode(name)?)
    }

    fn rename(from: (&Anchor, &[u8]), to: (&Anchor, &[u8]), flags: u32) -> Result<()> {
        let (old, new) = (names::encode(from.1)?, names::encode(to.1)?);
        match flags {
            0 | 1 => removal::rename((from.0, &old), (to.0, &new), flags == 0),
            // Names are not exchanged in one step, and a whiteout is a device.
            _ => Err(Errno::INVAL),
        }
    }

    fn link(&self, anchor: &Anchor, dir: &Anchor, name: &[u8]) -> Result<()> {
        if shape_of(&anchor.file)?.is_directory() {
            return Err(Errno::PERM);
        }
        let name = names::encode(name)?;
        calls::link(&anchor.again(FILE_WRITE_ATTRIBUTES, 0)?, dir.enter()?, &name)
    }

    fn getxattr(_: &Anchor, _: &[u8]) -> Result<Vec<u8>> {
        Err(Errno::OPNOTSUPP)
    }

    fn listxattr(_: &Anchor) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn setxattr(_: &Anchor, _: &[u8], _: &[u8], _: u32) -> Result<()> {
        Err(Errno::OPNOTSUPP)
    }

    fn removexattr(_: &Anchor, _: &[u8]) -> Result<()> {
        Err(Errno::OPNOTSUPP)
    }

    fn statfs(anchor: &Anchor) -> Result<StatFs> {
        let (blocks, blocks_available, blocks_free, sectors, bytes) = calls::volume(&anchor.file)?;
        let block_size = sectors.saturating_mul(bytes);
        Ok(StatFs {
            blocks,
            blocks_free,
            blocks_available,
            // Windows has no such number.
            files: 0,
            files_free: 0,
            block_size,
            name_max: NAME_MAX as u32,
            fragment_size: block_size,
        })
    }

    /// Only the administrator may write a whole file system out.
    fn sync(_: &File) -> Result<()> {
        Err(Errno::NOSYS)
    }

    fn fsync(file: &File, data_only: bool) -> Result<()> {
        match done(if data_only { file.sync_data() } else { file.sync_all() }) {
            // Only who may write makes it durable. The names in a directory are in the file system's own log.
            Err(Errno::ACCESS) if shape_of(file)?.is_directory() => Ok(()),
            Err(Errno::ACCESS) => {
                let id = id_of(file)?;
                let again = calls::open_at(file, &[], FILE_WRITE_DATA | FILE_READ_ATTRIBUTES, FILE_OPEN, 0)?;
                if id_of(&again)? == id { done(again.sync_all()) } else { Err(Errno::STALE) }
            }
            synced => synced,
        }
    }

    fn fallocate(file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
        space::fallocate(file, mode, offset, len)
    }

    fn seek(file: &File, offset: u64, seek: Seek) -> Result<u64> {
        space::seek(file, offset, seek)
    }

    fn copy_range(from: (&File, u64), to: (&File, u64), len: u64) -> Result<u64> {
        space::copy_range(from, to, len)
    }

    fn list(
        file: &File,
        listing: &mut Self::Listing,
        offset: u64,
        room: usize,
        only: Option<&[u8]>,
    ) -> Result<Vec<DirEntry>> {
        listing.list(file, offset, room, only)
    }
}

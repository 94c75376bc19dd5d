//! How names go and move. Windows of today does it as POSIX asks, at once and whoever has the file open; where a file system
//! cannot (FAT, shares of other machines), a file that is still open is put out of the way under a name that no guest has, in
//! the share's own directory, and goes when it is closed.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use windows_sys::Win32::Storage::FileSystem::{
    DELETE, FILE_DISPOSITION_FLAG_DELETE, FILE_DISPOSITION_FLAG_IGNORE_READONLY_ATTRIBUTE,
    FILE_DISPOSITION_FLAG_POSIX_SEMANTICS, FILE_LIST_DIRECTORY, FILE_WRITE_ATTRIBUTES,
};

use super::super::super::vfs::Errno;
use super::super::listing::Entries as _;
use super::super::system::Result;
use super::by_handle::{Anchor, id_of, open_entry, set_read_only, shape_of};
use super::calls;
use super::entries::Stream;

/// Flags of `FILE_RENAME_INFORMATION_EX`.
const REPLACE: u32 = 0x1;
const POSIX: u32 = 0x2;
const IGNORE_READ_ONLY: u32 = 0x40;

const REMOVE: u32 = FILE_DISPOSITION_FLAG_DELETE
    | FILE_DISPOSITION_FLAG_POSIX_SEMANTICS
    | FILE_DISPOSITION_FLAG_IGNORE_READONLY_ATTRIBUTE;

/// What a file system says that cannot do it as POSIX asks.
fn is_unknown(errno: Errno) -> bool {
    matches!(errno, Errno::OPNOTSUPP | Errno::INVAL)
}

/// Removes an entry that is no directory.
pub(super) fn unlink(dir: &Anchor, name: &[u16]) -> Result<()> {
    let file = open_entry(dir.enter()?, name, DELETE)?;
    if shape_of(&file)?.is_directory() {
        return Err(Errno::ISDIR);
    }
    remove(dir, name, &file)
}

/// Removes an empty directory. What leads elsewhere stays, as a mount point does.
pub(super) fn rmdir(dir: &Anchor, name: &[u16]) -> Result<()> {
    let file = open_entry(dir.enter()?, name, DELETE | FILE_LIST_DIRECTORY)?;
    let shape = shape_of(&file)?;
    if !shape.is_directory() {
        return Err(Errno::NOTDIR);
    }
    if shape.sealed {
        return Err(Errno::BUSY);
    }
    remove(dir, name, &file)
}

fn remove(dir: &Anchor, name: &[u16], file: &File) -> Result<()> {
    match calls::remove(file, REMOVE) {
        Err(errno) if is_unknown(errno) => remove_plainly(dir, name, file),
        removed => removed,
    }
}

fn remove_plainly(dir: &Anchor, name: &[u16], file: &File) -> Result<()> {
    if shape_of(file)?.is_directory() && !is_empty(file)? {
        return Err(Errno::NOTEMPTY);
    }
    make_removable(dir, name, file)?;
    // Where that cannot be, the name is there until the file is closed.
    let away = put_away(&dir.root, file).is_ok();
    calls::remove_later(file).inspect_err(|_| {
        if away {
            let _ = calls::rename_plainly(file, &dir.file, name, false);
        }
    })
}

/// A file that may not be written cannot be removed either.
fn make_removable(dir: &Anchor, name: &[u16], file: &File) -> Result<()> {
    if !shape_of(file)?.read_only {
        return Ok(());
    }
    set_read_only(&open_entry(&dir.file, name, FILE_WRITE_ATTRIBUTES)?, false)
}

fn is_empty(dir: &File) -> Result<bool> {
    let mut stream = Stream::of(dir)?;
    // Whatever it is, shown to the guest or not.
    stream.has_none()
}

/// Gives a file a name that stands for none of a guest's.
fn put_away(root: &Arc<File>, file: &File) -> Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("\u{f02e}servin-{}-{number}", std::process::id());
        match calls::rename_plainly(file, root, &name.encode_utf16().collect::<Vec<_>>(), false) {
            Err(Errno::EXIST) => {}
            renamed => return renamed,
        }
    }
}

/// Renames an entry; what has the new name already goes if `replace` says so.
pub(super) fn rename(from: (&Anchor, &[u16]), to: (&Anchor, &[u16]), replace: bool) -> Result<()> {
    let (old, new) = (from.0.enter()?, to.0.enter()?);
    let file = open_entry(old, from.1, DELETE)?;
    let shape = shape_of(&file)?;
    if shape.is_directory() && shape.sealed {
        return Err(Errno::BUSY);
    }
    let mut replaced = None;
    match open_entry(new, to.1, 0) {
        Ok(target) if id_of(&target)? == id_of(&file)? => {
            // The same name in other letters changes; another name of the same file stays beside it.
            let same = id_of(old)? == id_of(new)? && letters(from.1) == letters(to.1);
            if !same {
                return if replace { Ok(()) } else { Err(Errno::EXIST) };
            }
        }
        Ok(_) if !replace => return Err(Errno::EXIST),
        Ok(target) => match (shape.is_directory(), shape_of(&target)?.is_directory()) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            (true, true) => {
                drop(target);
                rmdir(to.0, to.1)?;
            }
            (false, false) => replaced = Some(target),
        },
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let flags = POSIX | IGNORE_READ_ONLY | if replaced.is_some() { REPLACE } else { 0 };
    match calls::rename(&file, new, to.1, flags) {
        Err(errno) if is_unknown(errno) => {}
        renamed => return renamed,
    }
    if replaced.take().is_none() {
        return calls::rename_plainly(&file, new, to.1, false);
    }
    let target = open_entry(new, to.1, DELETE)?;
    make_removable(to.0, to.1, &target)?;
    put_away(&to.0.root, &target)?;
    calls::rename_plainly(&file, new, to.1, false).inspect_err(|_| {
        let _ = calls::rename_plainly(&target, new, to.1, false);
    })?;
    calls::remove_later(&target)
}

fn letters(name: &[u16]) -> String {
    String::from_utf16_lossy(name).to_lowercase()
}

//! The calls about files that the standard library does not have: each is one call of the system, and decides nothing.

// A leaf that may use unsafe: the kernel's calls take names, structures and handles by pointer.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::os::windows::io::{AsRawHandle as _, FromRawHandle as _};
use std::ptr::{null, null_mut};

use windows_sys::Wdk::Foundation::OBJECT_ATTRIBUTES;
use windows_sys::Wdk::Storage::FileSystem::{
    FILE_OPEN_REPARSE_POINT, FILE_SYNCHRONOUS_IO_NONALERT, FileBasicInformation, FileDispositionInformation,
    FileDispositionInformationEx, FileFsFullSizeInformation, FileLinkInformation, FileRenameInformation,
    FileRenameInformationEx, NtCreateFile, NtQueryVolumeInformationFile, NtSetInformationFile,
};
use windows_sys::Win32::Foundation::{
    ERROR_FILE_NOT_FOUND, ERROR_MORE_DATA, ERROR_NO_MORE_FILES, GetLastError, HANDLE, OBJ_CASE_INSENSITIVE,
    UNICODE_STRING,
};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_ATTRIBUTE_NORMAL, FILE_ATTRIBUTE_TAG_INFO, FILE_BASIC_INFO,
    FILE_ID_INFO, FILE_INFO_BY_HANDLE_CLASS, FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE,
    FILE_STANDARD_INFO, FileAttributeTagInfo, FileBasicInfo, FileIdBothDirectoryInfo,
    FileIdBothDirectoryRestartInfo, FileIdInfo, FileStandardInfo, GetFileInformationByHandle,
    GetFileInformationByHandleEx, SYNCHRONIZE,
};
use windows_sys::Win32::System::IO::{DeviceIoControl, IO_STATUS_BLOCK};

use super::super::super::vfs::Errno;
use super::super::system::Result;

fn handle(file: &File) -> HANDLE {
    file.as_raw_handle()
}

fn len<T>() -> u32 {
    size_of::<T>() as u32
}

fn nt(status: i32) -> Result<()> {
    if status >= 0 { Ok(()) } else { Err(Errno::from_status(status.cast_unsigned())) }
}

fn win32(done: i32) -> Result<()> {
    if done != 0 {
        return Ok(());
    }
    // SAFETY: it reads a number of this thread.
    Err(Errno::from_windows(unsafe { GetLastError() }))
}

/// Opens or makes the one entry `name` of an open directory, itself if it is a reparse point; with an empty name, what is open
/// once more. Everybody may open it meanwhile, for everything.
pub(super) fn open_at(dir: &File, name: &[u16], access: u32, disposition: u32, options: u32) -> Result<File> {
    let bytes = u16::try_from(size_of_val(name)).map_err(|_| Errno::NAMETOOLONG)?;
    let name = UNICODE_STRING { Length: bytes, MaximumLength: bytes, Buffer: name.as_ptr().cast_mut() };
    let attributes = OBJECT_ATTRIBUTES {
        Length: len::<OBJECT_ATTRIBUTES>(),
        RootDirectory: handle(dir),
        ObjectName: &raw const name,
        // As every program has it; a directory in which case matters keeps to that.
        Attributes: OBJ_CASE_INSENSITIVE,
        ..OBJECT_ATTRIBUTES::default()
    };
    let mut opened: HANDLE = null_mut();
    let mut block = IO_STATUS_BLOCK::default();
    // SAFETY: all that is pointed to lives as long as the call, which reads the name and does not change it; the directory is
    // open.
    let status = unsafe {
        NtCreateFile(
            &raw mut opened,
            access | SYNCHRONIZE,
            &raw const attributes,
            &raw mut block,
            null(),
            FILE_ATTRIBUTE_NORMAL,
            FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
            disposition,
            options | FILE_OPEN_REPARSE_POINT | FILE_SYNCHRONOUS_IO_NONALERT,
            null(),
            0,
        )
    };
    nt(status)?;
    // SAFETY: the call opened it, and it is nobody else's.
    Ok(unsafe { File::from_raw_handle(opened) })
}

/// # Safety
/// `T` is plain numbers, and what the class fills.
unsafe fn query<T: Default>(file: &File, class: FILE_INFO_BY_HANDLE_CLASS) -> Result<T> {
    let mut found = T::default();
    // SAFETY: there is as much room as is said, and the file is open.
    win32(unsafe { GetFileInformationByHandleEx(handle(file), class, (&raw mut found).cast(), len::<T>()) })?;
    Ok(found)
}

/// Attributes and times.
pub(super) fn basic(file: &File) -> Result<FILE_BASIC_INFO> {
    // SAFETY: the structure is that of the class.
    unsafe { query(file, FileBasicInfo) }
}

/// Sizes and links.
pub(super) fn standard(file: &File) -> Result<FILE_STANDARD_INFO> {
    // SAFETY: the structure is that of the class.
    unsafe { query(file, FileStandardInfo) }
}

/// Attributes, and the tag of a reparse point.
pub(super) fn tag(file: &File) -> Result<FILE_ATTRIBUTE_TAG_INFO> {
    // SAFETY: the structure is that of the class.
    unsafe { query(file, FileAttributeTagInfo) }
}

/// Volume and number.
pub(super) fn id(file: &File) -> Result<FILE_ID_INFO> {
    // SAFETY: the structure is that of the class.
    unsafe { query(file, FileIdInfo) }
}

/// Volume and number, of file systems that know no longer ones.
pub(super) fn short_id(file: &File) -> Result<(u32, u64)> {
    let mut found = BY_HANDLE_FILE_INFORMATION::default();
    // SAFETY: the structure is there to be filled, and the file is open.
    win32(unsafe { GetFileInformationByHandle(handle(file), &raw mut found) })?;
    let index = u64::from(found.nFileIndexHigh) << 32 | u64::from(found.nFileIndexLow);
    Ok((found.dwVolumeSerialNumber, index))
}

/// The next entries of an open directory (`FILE_ID_BOTH_DIR_INFO`), or the first ones with `restart`. False at the end.
pub(super) fn entries(dir: &File, restart: bool, into: &mut [u64]) -> Result<bool> {
    let class = if restart { FileIdBothDirectoryRestartInfo } else { FileIdBothDirectoryInfo };
    let room = u32::try_from(size_of_val(into)).map_err(|_| Errno::INVAL)?;
    // SAFETY: there is as much room as is said, aligned for the structures, and the directory is open.
    let listed =
        win32(unsafe { GetFileInformationByHandleEx(handle(dir), class, into.as_mut_ptr().cast(), room) });
    if listed.is_ok() {
        return Ok(true);
    }
    // SAFETY: it reads a number of this thread.
    match unsafe { GetLastError() } {
        // A drive's own directory can have no entries, not even itself.
        ERROR_NO_MORE_FILES | ERROR_FILE_NOT_FOUND => Ok(false),
        _ => listed.map(|()| false),
    }
}

fn set<T: ?Sized>(file: &File, class: i32, value: &T) -> Result<()> {
    let bytes = u32::try_from(size_of_val(value)).map_err(|_| Errno::NAMETOOLONG)?;
    let mut block = IO_STATUS_BLOCK::default();
    let value: *const T = value;
    // SAFETY: there are as many bytes as is said, which are only read, and the file is open.
    nt(unsafe {
        NtSetInformationFile(handle(file), &raw mut block, value.cast::<c_void>().cast_mut(), bytes, class)
    })
}

/// `FILE_RENAME_INFORMATION` and `FILE_LINK_INFORMATION`, in words of 8 bytes: flags, the directory, the length of the name and
/// the name.
fn placed(flags: u32, dir: &File, name: &[u16]) -> Vec<u64> {
    let name_len = size_of_val(name) as u64;
    let mut units = vec![name_len as u16, (name_len >> 16) as u16];
    units.extend(name);
    units.resize(units.len().next_multiple_of(4).max(8), 0);
    let mut words = vec![u64::from(flags), handle(dir) as u64];
    words.extend(
        units.chunks(4).map(|part| part.iter().rev().fold(0, |word, &unit| word << 16 | u64::from(unit))),
    );
    words
}

/// Renames an open file, with flags of `FILE_RENAME_INFORMATION_EX`.
pub(super) fn rename(file: &File, dir: &File, name: &[u16], flags: u32) -> Result<()> {
    set(file, FileRenameInformationEx, &*placed(flags, dir, name))
}

/// Renames an open file, on any file system; with `replace`, over one that nobody has open.
pub(super) fn rename_plainly(file: &File, dir: &File, name: &[u16], replace: bool) -> Result<()> {
    set(file, FileRenameInformation, &*placed(u32::from(replace), dir, name))
}

/// Gives an open file another name.
pub(super) fn link(file: &File, dir: &File, name: &[u16]) -> Result<()> {
    set(file, FileLinkInformation, &*placed(0, dir, name))
}

/// Removes the name that a file was opened by, with flags of `FILE_DISPOSITION_INFORMATION_EX`.
pub(super) fn remove(file: &File, flags: u32) -> Result<()> {
    set(file, FileDispositionInformationEx, &flags)
}

/// Removes the name that a file was opened by when nobody has it open any more, on any file system.
pub(super) fn remove_later(file: &File) -> Result<()> {
    set(file, FileDispositionInformation, &1_u8)
}

/// Sets attributes, and leaves the times alone.
pub(super) fn set_attributes(file: &File, attributes: u32) -> Result<()> {
    // None at all would leave them alone too.
    let attributes = if attributes == 0 { FILE_ATTRIBUTE_NORMAL } else { attributes };
    set(
        file,
        FileBasicInformation,
        &FILE_BASIC_INFO { FileAttributes: attributes, ..FILE_BASIC_INFO::default() },
    )
}

/// Units of allocation: in all, free for us, free; sectors in one, and bytes in a sector.
pub(super) fn volume(file: &File) -> Result<(u64, u64, u64, u32, u32)> {
    // `FILE_FS_FULL_SIZE_INFORMATION`.
    let mut found = [0_u64; 4];
    let mut block = IO_STATUS_BLOCK::default();
    // SAFETY: there is as much room as is said, and the file is open.
    nt(unsafe {
        NtQueryVolumeInformationFile(
            handle(file),
            &raw mut block,
            (&raw mut found).cast(),
            len::<[u64; 4]>(),
            FileFsFullSizeInformation,
        )
    })?;
    let [all, ours, free, units] = found;
    Ok((all, ours, free, units as u32, (units >> 32) as u32))
}

/// A control code of the file system: what goes in, and room for what comes out. Returns the bytes that came, which may not be all.
pub(super) fn control(file: &File, code: u32, input: &[u8], output: &mut [u8]) -> Result<usize> {
    let lengths = (u32::try_from(input.len()), u32::try_from(output.len()));
    let (Ok(given), Ok(room)) = lengths else { return Err(Errno::INVAL) };
    let mut came = 0;
    // SAFETY: there are as many bytes on both sides as is said, the file is open, and it was opened to wait for each call.
    let called = win32(unsafe {
        DeviceIoControl(
            handle(file),
            code,
            input.as_ptr().cast(),
            given,
            output.as_mut_ptr().cast(),
            room,
            &raw mut came,
            null_mut(),
        )
    });
    match called {
        // SAFETY: it reads a number of this thread.
        Err(errno) if unsafe { GetLastError() } != ERROR_MORE_DATA => Err(errno),
        _ => Ok(came as usize),
    }
}

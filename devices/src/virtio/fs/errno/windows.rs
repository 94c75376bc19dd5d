//! From the errors of Windows, and the statuses of its kernel, to the numbers of Linux, which the guest is told.

use super::Errno;

macro_rules! table {
    ($name:ident: $what:literal; $($theirs:ident $number:literal => $ours:ident;)*) => {
        #[doc = $what]
        const $name: &[(u32, Errno)] = &[$(($number, Errno::$ours)),*];

        // That the numbers are right is checked where it is compiled for Windows.
        #[cfg(windows)]
        const _: () = { $(assert!(windows_sys::Win32::Foundation::$theirs.cast_unsigned() == $number);)* };
    };
    ($name:ident, unsigned: $what:literal; $($theirs:ident $number:literal => $ours:ident;)*) => {
        #[doc = $what]
        const $name: &[(u32, Errno)] = &[$(($number, Errno::$ours)),*];

        #[cfg(windows)]
        const _: () = { $(assert!(windows_sys::Win32::Foundation::$theirs == $number);)* };
    };
}

table! {
    CODES, unsigned: "What calls of Win32 say, and what comes nearest.";
    ERROR_INVALID_FUNCTION 1 => OPNOTSUPP;
    ERROR_FILE_NOT_FOUND 2 => NOENT;
    ERROR_PATH_NOT_FOUND 3 => NOENT;
    ERROR_TOO_MANY_OPEN_FILES 4 => MFILE;
    ERROR_ACCESS_DENIED 5 => ACCESS;
    ERROR_INVALID_HANDLE 6 => BADF;
    ERROR_NOT_ENOUGH_MEMORY 8 => NOMEM;
    ERROR_OUTOFMEMORY 14 => NOMEM;
    ERROR_WRITE_PROTECT 19 => ROFS;
    ERROR_SHARING_VIOLATION 32 => BUSY;
    ERROR_LOCK_VIOLATION 33 => AGAIN;
    ERROR_HANDLE_DISK_FULL 39 => NOSPC;
    ERROR_NOT_SUPPORTED 50 => OPNOTSUPP;
    ERROR_FILE_EXISTS 80 => EXIST;
    ERROR_INVALID_PARAMETER 87 => INVAL;
    ERROR_DISK_FULL 112 => NOSPC;
    ERROR_CALL_NOT_IMPLEMENTED 120 => OPNOTSUPP;
    ERROR_INVALID_NAME 123 => INVAL;
    ERROR_DIR_NOT_EMPTY 145 => NOTEMPTY;
    ERROR_BUSY 170 => BUSY;
    ERROR_ALREADY_EXISTS 183 => EXIST;
    ERROR_FILENAME_EXCED_RANGE 206 => NAMETOOLONG;
    ERROR_FILE_TOO_LARGE 223 => FBIG;
    ERROR_DIRECTORY 267 => NOTDIR;
    ERROR_DELETE_PENDING 303 => NOENT;
    ERROR_USER_MAPPED_FILE 1224 => BUSY;
    ERROR_NO_SYSTEM_RESOURCES 1450 => NOMEM;
    ERROR_TOO_MANY_LINKS 1142 => MLINK;
    ERROR_CANT_ACCESS_FILE 1920 => ACCESS;
    ERROR_NOT_A_REPARSE_POINT 4390 => INVAL;
}

table! {
    STATUSES: "What the kernel says, and what comes nearest.";
    STATUS_NOT_IMPLEMENTED 0xc000_0002 => OPNOTSUPP;
    STATUS_INVALID_INFO_CLASS 0xc000_0003 => OPNOTSUPP;
    STATUS_INVALID_HANDLE 0xc000_0008 => BADF;
    STATUS_INVALID_PARAMETER 0xc000_000d => INVAL;
    STATUS_NO_SUCH_FILE 0xc000_000f => NOENT;
    STATUS_INVALID_DEVICE_REQUEST 0xc000_0010 => OPNOTSUPP;
    STATUS_NO_MEMORY 0xc000_0017 => NOMEM;
    STATUS_ACCESS_DENIED 0xc000_0022 => ACCESS;
    STATUS_OBJECT_NAME_INVALID 0xc000_0033 => INVAL;
    STATUS_OBJECT_NAME_NOT_FOUND 0xc000_0034 => NOENT;
    STATUS_OBJECT_NAME_COLLISION 0xc000_0035 => EXIST;
    STATUS_OBJECT_PATH_NOT_FOUND 0xc000_003a => NOENT;
    STATUS_SHARING_VIOLATION 0xc000_0043 => BUSY;
    STATUS_FILE_LOCK_CONFLICT 0xc000_0054 => AGAIN;
    STATUS_DELETE_PENDING 0xc000_0056 => NOENT;
    STATUS_DISK_FULL 0xc000_007f => NOSPC;
    STATUS_INSUFFICIENT_RESOURCES 0xc000_009a => NOMEM;
    STATUS_MEDIA_WRITE_PROTECTED 0xc000_00a2 => ROFS;
    STATUS_FILE_IS_A_DIRECTORY 0xc000_00ba => ISDIR;
    STATUS_NOT_SUPPORTED 0xc000_00bb => OPNOTSUPP;
    STATUS_NOT_SAME_DEVICE 0xc000_00d4 => XDEV;
    STATUS_DIRECTORY_NOT_EMPTY 0xc000_0101 => NOTEMPTY;
    STATUS_NOT_A_DIRECTORY 0xc000_0103 => NOTDIR;
    STATUS_NAME_TOO_LONG 0xc000_0106 => NAMETOOLONG;
    STATUS_TOO_MANY_OPENED_FILES 0xc000_011f => MFILE;
    STATUS_CANNOT_DELETE 0xc000_0121 => ACCESS;
    STATUS_FILE_DELETED 0xc000_0123 => NOENT;
    STATUS_USER_MAPPED_FILE 0xc000_0243 => BUSY;
    STATUS_TOO_MANY_LINKS 0xc000_0265 => MLINK;
}

fn find(table: &[(u32, Errno)], number: u32) -> Errno {
    table.iter().find(|(theirs, _)| *theirs == number).map_or(Errno::IO, |&(_, ours)| ours)
}

impl Errno {
    /// From an error of a call of Win32. What Linux has no word for is EIO.
    #[must_use]
    pub fn from_windows(code: u32) -> Self {
        find(CODES, code)
    }

    /// From a status of the kernel. What Linux has no word for is EIO.
    #[must_use]
    pub fn from_status(status: u32) -> Self {
        find(STATUSES, status)
    }

    /// The error of a call of this host.
    #[cfg(windows)]
    #[must_use]
    pub fn from_io_error(error: &std::io::Error) -> Option<Self> {
        error.raw_os_error().map(|code| Self::from_windows(code.cast_unsigned()))
    }
}

#[cfg(windows)]
impl From<Errno> for std::io::Error {
    /// By its kind and words: the number is another system's.
    fn from(errno: Errno) -> Self {
        use std::io::ErrorKind;
        let kind = match errno {
            Errno::NOENT => ErrorKind::NotFound,
            Errno::NOTDIR => ErrorKind::NotADirectory,
            Errno::ACCESS | Errno::PERM => ErrorKind::PermissionDenied,
            _ => ErrorKind::Other,
        };
        Self::new(kind, errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errors_of_windows_become_those_of_linux() {
        for (code, linux) in
            [(2, Errno::NOENT), (5, Errno::ACCESS), (32, Errno::BUSY), (145, Errno::NOTEMPTY)]
        {
            assert_eq!(Errno::from_windows(code), linux);
        }
        for (status, linux) in
            [(0xc000_0034, Errno::NOENT), (0xc000_0035, Errno::EXIST), (0xc000_0103, Errno::NOTDIR)]
        {
            assert_eq!(Errno::from_status(status), linux);
        }
        for table in [CODES, STATUSES] {
            for (at, (number, _)) in table.iter().enumerate() {
                assert!(table[..at].iter().all(|(other, _)| other != number), "{number:#x} twice");
            }
        }
        assert_eq!((Errno::from_windows(0), Errno::from_status(0xffff_ffff)), (Errno::IO, Errno::IO));
    }
}

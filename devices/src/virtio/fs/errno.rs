//! The errors of a Linux file system by their Linux numbers, for hosts that have others: they are what the guest is told
//! (`include/uapi/asm-generic/errno.h`).

#[cfg(any(test, target_os = "macos"))]
mod macos;
#[cfg(any(test, windows))]
mod windows;

/// An error of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! numbers {
    ($($name:ident = $number:literal, $what:literal;)*) => {
        #[allow(missing_docs, reason = "they are those of Linux")]
        impl Errno {
            $(#[doc = $what] pub const $name: Self = Self($number);)*

            fn what(self) -> Option<&'static str> {
                Some(match self.0 {
                    $($number => $what,)*
                    _ => return None,
                })
            }
        }
    };
}

numbers! {
    PERM = 1, "operation not permitted";
    NOENT = 2, "no such file or directory";
    INTR = 4, "interrupted";
    IO = 5, "input/output error";
    NXIO = 6, "no such device or address";
    TOOBIG = 7, "argument list too long";
    BADF = 9, "bad file handle";
    AGAIN = 11, "try again";
    NOMEM = 12, "out of memory";
    ACCESS = 13, "permission denied";
    BUSY = 16, "busy";
    EXIST = 17, "file exists";
    XDEV = 18, "on another file system";
    NOTDIR = 20, "not a directory";
    ISDIR = 21, "is a directory";
    INVAL = 22, "invalid argument";
    NFILE = 23, "too many open files in the system";
    MFILE = 24, "too many open files";
    NOTTY = 25, "not a terminal";
    FBIG = 27, "file too large";
    NOSPC = 28, "no space left";
    ROFS = 30, "read-only file system";
    MLINK = 31, "too many links";
    RANGE = 34, "result too large";
    NAMETOOLONG = 36, "file name too long";
    NOLCK = 37, "no locks available";
    NOSYS = 38, "function not implemented";
    NOTEMPTY = 39, "directory not empty";
    LOOP = 40, "too many symbolic links";
    NODATA = 61, "no data available";
    PROTO = 71, "protocol error";
    ILSEQ = 84, "no name in Unicode";
    OPNOTSUPP = 95, "operation not supported";
    STALE = 116, "stale file handle";
}

impl Errno {
    /// The number on Linux.
    #[must_use]
    pub fn raw_os_error(self) -> i32 {
        self.0
    }

    /// From the number on Linux.
    #[must_use]
    pub fn from_raw_os_error(number: i32) -> Self {
        Self(number)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.what() {
            Some(what) => f.write_str(what),
            None => write!(f, "error {} of Linux", self.0),
        }
    }
}

impl std::error::Error for Errno {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_linux() {
        use rustix::io::Errno as Linux;
        for (ours, theirs) in [
            (Errno::PERM, Linux::PERM),
            (Errno::NOENT, Linux::NOENT),
            (Errno::INTR, Linux::INTR),
            (Errno::IO, Linux::IO),
            (Errno::NXIO, Linux::NXIO),
            (Errno::TOOBIG, Linux::TOOBIG),
            (Errno::BADF, Linux::BADF),
            (Errno::AGAIN, Linux::AGAIN),
            (Errno::NOMEM, Linux::NOMEM),
            (Errno::ACCESS, Linux::ACCESS),
            (Errno::BUSY, Linux::BUSY),
            (Errno::EXIST, Linux::EXIST),
            (Errno::XDEV, Linux::XDEV),
            (Errno::NOTDIR, Linux::NOTDIR),
            (Errno::ISDIR, Linux::ISDIR),
            (Errno::INVAL, Linux::INVAL),
            (Errno::NFILE, Linux::NFILE),
            (Errno::MFILE, Linux::MFILE),
            (Errno::NOTTY, Linux::NOTTY),
            (Errno::FBIG, Linux::FBIG),
            (Errno::NOSPC, Linux::NOSPC),
            (Errno::ROFS, Linux::ROFS),
            (Errno::MLINK, Linux::MLINK),
            (Errno::RANGE, Linux::RANGE),
            (Errno::NAMETOOLONG, Linux::NAMETOOLONG),
            (Errno::NOLCK, Linux::NOLCK),
            (Errno::NOSYS, Linux::NOSYS),
            (Errno::NOTEMPTY, Linux::NOTEMPTY),
            (Errno::LOOP, Linux::LOOP),
            (Errno::NODATA, Linux::NODATA),
            (Errno::PROTO, Linux::PROTO),
            (Errno::ILSEQ, Linux::ILSEQ),
            (Errno::OPNOTSUPP, Linux::OPNOTSUPP),
            (Errno::STALE, Linux::STALE),
        ] {
            assert_eq!(ours.raw_os_error(), theirs.raw_os_error(), "{ours}");
        }
        assert_eq!(Errno::STALE.to_string(), "stale file handle");
        assert_eq!(Errno::from_raw_os_error(4095).to_string(), "error 4095 of Linux");
    }
}

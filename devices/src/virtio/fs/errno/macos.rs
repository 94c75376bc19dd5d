//! From the numbers of macOS (`sys/errno.h`) to those of Linux, which the guest is told.

use super::Errno;

macro_rules! table {
    ($($theirs:ident $number:literal => $ours:ident $linux:literal;)*) => {
        /// The number on macOS, and that of Linux for the same, or for what comes nearest.
        const TABLE: &[(i32, i32)] = &[$(($number, $linux)),*];

        // That the left column is right is checked where it is compiled for macOS, the right one by a test on Linux.
        #[cfg(target_os = "macos")]
        const _: () = { $(assert!(libc::$theirs == $number);)* };

        #[cfg(all(test, target_os = "linux"))]
        const OF_LINUX: &[(i32, i32)] = &[$((libc::$ours, $linux)),*];
    };
}

// Numbers 1 to 10 and 12 to 34 are the same on both.
table! {
    EDEADLK 11 => EDEADLK 35;
    EAGAIN 35 => EAGAIN 11;
    EINPROGRESS 36 => EINPROGRESS 115;
    EALREADY 37 => EALREADY 114;
    ENOTSUP 45 => EOPNOTSUPP 95;
    ENETDOWN 50 => ENETDOWN 100;
    ENETUNREACH 51 => ENETUNREACH 101;
    ENETRESET 52 => ENETRESET 102;
    ECONNABORTED 53 => ECONNABORTED 103;
    ECONNRESET 54 => ECONNRESET 104;
    ENOBUFS 55 => ENOBUFS 105;
    ENOTCONN 57 => ENOTCONN 107;
    ESHUTDOWN 58 => ESHUTDOWN 108;
    ETIMEDOUT 60 => ETIMEDOUT 110;
    ECONNREFUSED 61 => ECONNREFUSED 111;
    ELOOP 62 => ELOOP 40;
    ENAMETOOLONG 63 => ENAMETOOLONG 36;
    EHOSTDOWN 64 => EHOSTDOWN 112;
    EHOSTUNREACH 65 => EHOSTUNREACH 113;
    ENOTEMPTY 66 => ENOTEMPTY 39;
    EPROCLIM 67 => EAGAIN 11;
    EUSERS 68 => EUSERS 87;
    EDQUOT 69 => EDQUOT 122;
    ESTALE 70 => ESTALE 116;
    EREMOTE 71 => EREMOTE 66;
    ENOLCK 77 => ENOLCK 37;
    ENOSYS 78 => ENOSYS 38;
    EFTYPE 79 => EINVAL 22;
    EAUTH 80 => EACCES 13;
    ENEEDAUTH 81 => EACCES 13;
    EOVERFLOW 84 => EOVERFLOW 75;
    ECANCELED 89 => ECANCELED 125;
    EIDRM 90 => EIDRM 43;
    ENOMSG 91 => ENOMSG 42;
    EILSEQ 92 => EILSEQ 84;
    ENOATTR 93 => ENODATA 61;
    EBADMSG 94 => EBADMSG 74;
    EMULTIHOP 95 => EMULTIHOP 72;
    ENODATA 96 => ENODATA 61;
    ENOLINK 97 => ENOLINK 67;
    ENOSR 98 => ENOSR 63;
    ENOSTR 99 => ENOSTR 60;
    EPROTO 100 => EPROTO 71;
    ETIME 101 => ETIME 62;
    EOPNOTSUPP 102 => EOPNOTSUPP 95;
    ENOTRECOVERABLE 104 => ENOTRECOVERABLE 131;
    EOWNERDEAD 105 => EOWNERDEAD 130;
    EQFULL 106 => ENOBUFS 105;
    ENOTCAPABLE 107 => EPERM 1;
}

impl Errno {
    /// From the number on macOS. One that Linux has no word for (of a device, of a program's format) is EIO.
    #[must_use]
    pub fn from_macos(number: i32) -> Self {
        let same = matches!(number, 1..=10 | 12..=34);
        let linux = TABLE.iter().find(|(theirs, _)| *theirs == number).map(|&(_, linux)| linux);
        linux.or(same.then_some(number)).map_or(Self::IO, Self)
    }

    /// The error of a call of this host.
    #[cfg(target_os = "macos")]
    #[must_use]
    pub fn from_io_error(error: &std::io::Error) -> Option<Self> {
        error.raw_os_error().map(Self::from_macos)
    }
}

#[cfg(target_os = "macos")]
impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::from_macos(errno.raw_os_error())
    }
}

#[cfg(target_os = "macos")]
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_macos_become_those_of_linux() {
        for (libc, linux) in OF_LINUX {
            assert_eq!(libc, linux);
        }
        assert!(TABLE.is_sorted_by(|one, next| one.0 < next.0), "each once");
        for (number, linux) in
            [(2, Errno::NOENT), (66, Errno::NOTEMPTY), (35, Errno::AGAIN), (93, Errno::NODATA)]
        {
            assert_eq!(Errno::from_macos(number), linux);
        }
        // Programs' formats, devices, and numbers of the future.
        for number in [0, -1, 11 + 77, 83, 9999] {
            assert_eq!(Errno::from_macos(number), Errno::IO, "{number}");
        }
    }
}

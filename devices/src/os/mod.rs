//! What the hosts have in common but say differently; one leaf file each.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as host;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as host;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
use windows as host;

#[cfg(windows)]
pub(crate) use host::name_servers;
pub use host::random;
pub(crate) use host::{
    CONNECTING, RECEIVE, SEND, accept, is_closed_port, is_forbidden, punch_hole, quiet, socket, zero_range,
};
#[cfg(windows)]
pub(crate) use host::{connect_unix, is_unix_socket, keep_to_owner, unix_address};
#[cfg(windows)]
pub use host::{read_exact_at, write_all_at};
#[cfg(unix)]
pub(crate) use unix::{connect_unix, is_unix_socket, keep_to_owner, unix_address};

/// Reads exactly `into` from `file` at `offset`.
///
/// # Errors
/// The error of `pread(2)`, or the file is too short.
#[cfg(unix)]
pub fn read_exact_at(file: &std::fs::File, into: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, offset)
}

/// Writes all of `from` to `file` at `offset`.
///
/// # Errors
/// The error of `pwrite(2)`.
#[cfg(unix)]
pub fn write_all_at(file: &std::fs::File, from: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, from, offset)
}

/// The resolvers that the system itself knows: none, for here they stand in a file.
#[cfg(unix)]
pub(crate) fn name_servers() -> Vec<std::net::IpAddr> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    #[test]
    fn random_bytes_fill_the_whole_of_what_was_given() {
        let mut bytes = [0; 4096];
        super::random(&mut bytes).unwrap();
        // Eight zeroes in a row at the end would be one chance in 2^64.
        assert_ne!(bytes[4088..], [0; 8]);
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_does_not_block_and_is_closed_in_children() {
        use rustix::net::{AddressFamily, SocketType};
        let socket = super::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        assert!(rustix::fs::fcntl_getfl(&socket).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
        assert!(rustix::io::fcntl_getfd(&socket).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        super::quiet(&socket).unwrap();
    }
}

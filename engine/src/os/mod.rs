//! What the hosts have in common but say differently; one leaf file each.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as host;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as host;

pub(crate) use host::{
    NOT_SUPPORTED, allocate, copy_range, device_numbers, enter, guest_error, make_node, mounts, networks,
    own_program, peer_uid, raw_mode, socket, weigh_session, with_short_path,
};
#[cfg(target_os = "macos")]
pub(crate) use host::{Vnodes, sysctl, task};

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_socket_is_found_however_long_the_way_to_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a-directory-of-a-long-name".repeat(8));
        std::fs::create_dir(&deep).unwrap();
        let listener = with_short_path(&deep, "socket", |path| UnixListener::bind(path)).unwrap();
        let here = with_short_path(&deep, "socket", |path| UnixStream::connect(path)).unwrap();
        let (there, _) = listener.accept().unwrap();
        assert_eq!(peer_uid(&there).unwrap(), rustix::process::geteuid());
        assert_eq!(peer_uid(&here).unwrap(), rustix::process::geteuid());
        let names: Vec<_> =
            std::fs::read_dir(&deep).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["socket"]);
        assert!(with_short_path(&deep.join("not"), "socket", |path| UnixStream::connect(path)).is_err());
    }

    #[test]
    fn the_root_is_a_mount_and_the_own_program_is_there() {
        assert!(mounts().unwrap().contains(&"/".into()));
        assert!(std::fs::metadata(own_program().unwrap()).unwrap().is_file());
    }
}

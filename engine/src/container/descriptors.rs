//! The descriptors of a monitor: as many as it may have, and how its devices share them, so that no guest can use up what
//! another part needs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use servin_devices::virtio::fs::host::Options;
use servin_devices::virtio::vsock::Limits;

/// More are never asked for: a process that closes all of them one by one should not take long.
const MOST: u64 = 32 * 1024;
/// A process of macOS may have so many in any case (`OPEN_MAX`).
#[cfg(target_os = "macos")]
const OPEN_MAX: u64 = 10240;
/// For everything but sockets and shares: the hypervisor, doorbells and interrupts, the network, the store, clients.
const RESERVED: u64 = 1280;
/// Descriptors of one connection: the host's end of it, and one that is being taken in.
const EACH_CONNECTION: u64 = 2;
/// Descriptors of a file that a share knows or has open, at most: a Mac's shares may need the directory, too.
const EACH_FILE: usize = if cfg!(target_os = "macos") { 2 } else { 1 };
/// What a guest gets at least, however few there are.
const LEAST: usize = 16;

/// What the devices may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Division {
    pub(super) sockets: Limits,
    pub(super) share: Options,
}

/// Raises this process's limit of descriptors as far as it may (programs that use `select` have a low one), and returns it.
pub(super) fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(MOST).min(MOST);
    // What macOS calls no limit has one.
    #[cfg(target_os = "macos")]
    let wanted = wanted.min(crate::os::sysctl(c"kern.maxfilesperproc").unwrap_or(OPEN_MAX));
    let now = limit.current.unwrap_or(MOST);
    if now >= wanted {
        return now;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
        Ok(()) => wanted,
        Err(_) => now,
    }
}

/// Divides `limit` descriptors between the sockets and the shares of a guest: what they like to have if that is there, else
/// equal parts of it.
pub(super) fn divide(limit: u64, shares: usize) -> Division {
    let mut sockets = Limits::default();
    let mut share = Options::default();
    let of_share = ((share.max_nodes_open + share.max_handles) * EACH_FILE + share.max_locks) as u64;
    let wanted = sockets.connections as u64 * EACH_CONNECTION + of_share * shares as u64;
    let there = limit.saturating_sub(RESERVED).max(limit / 4);
    if there < wanted {
        let part = |count: usize| {
            let part = u128::from(there) * count as u128 / u128::from(wanted.max(1));
            usize::try_from(part).unwrap_or(count).clamp(LEAST, count)
        };
        sockets.connections = part(sockets.connections);
        share.max_nodes_open = part(share.max_nodes_open);
        share.max_handles = part(share.max_handles);
        share.max_locks = part(share.max_locks);
    }
    Division { sockets, share }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(division: &Division, shares: usize) -> u64 {
        let share = &division.share;
        let share = (share.max_nodes_open + share.max_handles) * EACH_FILE + share.max_locks;
        division.sockets.connections as u64 * EACH_CONNECTION + (share * shares) as u64
    }

    #[test]
    fn devices_get_what_they_like_or_their_part_of_what_there_is() {
        let rich = divide(MOST, 12);
        assert_eq!(rich.sockets.connections, 1023);
        assert_eq!(rich.share, Options::default());
        for (limit, shares) in [(1024, 0), (1024, 1), (1024, 12), (4096, 0), (4096, 5), (4096, 12)] {
            let division = divide(limit, shares);
            assert!(total(&division, shares) <= limit - limit / 4, "{limit} {shares}: {division:?}");
            assert!(division.sockets.connections >= LEAST && division.share.max_handles >= LEAST);
        }
    }

    #[test]
    fn the_limit_is_raised_to_what_is_allowed() {
        let raised = raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current.unwrap_or(MOST), raised);
        assert!(raised >= limit.maximum.unwrap_or(MOST).min(MOST));
        assert_eq!(raise(), raised);
    }
}

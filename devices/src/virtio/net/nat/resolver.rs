//! Where questions go that the guest asks at the gateway: the host's resolvers, and names that are known here.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

/// How long the host's list is believed without a look at its file.
const FRESH: Duration = Duration::from_secs(5);

/// Names that are answered here and not asked for.
pub trait Names: Send {
    /// The addresses of `name` (lower case, without a dot at its end); `None` when it is not known here.
    fn lookup(&self, name: &str) -> Option<Vec<IpAddr>>;
}

#[derive(Debug)]
pub(super) struct Resolvers {
    file: PathBuf,
    fixed: bool,
    list: Vec<IpAddr>,
    seen: Option<(Instant, Option<SystemTime>)>,
    at: usize,
}

impl Resolvers {
    /// These, or those in `file`, or without a file's name those that the system says.
    pub(super) fn new(file: PathBuf, list: Vec<IpAddr>) -> Self {
        Self { file, fixed: !list.is_empty(), list, seen: None, at: 0 }
    }

    /// The one to ask now; `None` when the host knows none.
    pub(super) fn current(&mut self, now: Instant) -> Option<IpAddr> {
        let is_fresh = self.seen.is_some_and(|(at, _)| now.saturating_duration_since(at) < FRESH);
        if !self.fixed && !is_fresh {
            let has_file = !self.file.as_os_str().is_empty();
            let changed = std::fs::metadata(&self.file).and_then(|meta| meta.modified()).ok();
            if !has_file {
                let list = crate::os::name_servers();
                self.at = if list == self.list { self.at } else { 0 };
                self.list = list;
            } else if self.seen.is_none_or(|(_, before)| before != changed) {
                self.list = parse(&std::fs::read_to_string(&self.file).unwrap_or_default());
                self.at = 0;
            }
            self.seen = Some((now, changed));
        }
        self.list.get(self.at % self.list.len().max(1)).copied()
    }

    /// `server` did not answer: another one is asked next.
    pub(super) fn failed(&mut self, server: IpAddr) {
        if self.list.get(self.at % self.list.len().max(1)) == Some(&server) {
            self.at += 1;
        }
    }
}

/// The `nameserver` lines of a resolv.conf.
fn parse(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let server = words.next().filter(|word| *word == "nameserver").and(words.next())?;
            server.split('%').next()?.parse().ok()
        })
        .collect()
}

/// Types of questions.
const A: u16 = 1;
const AAAA: u16 = 28;
/// NXDOMAIN (RFC 1035, 4.1.1).
const NO_SUCH_NAME: u16 = 3;

/// The answer to a DNS question about a name that is known here; `None` when it is to be asked elsewhere. Where there is
/// no elsewhere, `is_last`, other names do not exist.
pub(super) fn answer(question: &[u8], names: Option<&dyn Names>, is_last: bool) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u16::from_be_bytes([*question.get(at)?, *question.get(at + 1)?]));
    // A standard query of one question.
    if word(2)? & 0xf800 != 0 || word(4)? != 1 {
        return None;
    }
    let mut at = 12;
    let mut name = String::new();
    loop {
        let len = usize::from(*question.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        // Compression makes no sense in the first name, and a name has 255 bytes at most.
        if len > 63 || name.len() + len > 254 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(question.get(at..at + len)?).ok()?);
        at += len;
    }
    let (kind, class) = (word(at)?, word(at + 2)?);
    let end = at + 4;
    if class != 1 {
        return None;
    }
    let (addresses, code) = match names.and_then(|names| names.lookup(&name.to_ascii_lowercase())) {
        Some(addresses) => (addresses, 0),
        None if is_last => (Vec::new(), NO_SUCH_NAME),
        None => return None,
    };
    let records: Vec<Vec<u8>> = addresses
        .iter()
        .filter_map(|address| match address {
            IpAddr::V4(address) if kind == A => Some(address.octets().to_vec()),
            IpAddr::V6(address) if kind == AAAA => Some(address.octets().to_vec()),
            _ => None,
        })
        .collect();
    let mut out = question.get(..end)?.to_vec();
    // An authoritative answer, recursion is available; as much as was desired stays.
    let flags = 0x8480 | (word(2)? & 0x0100) | code;
    let count = u16::try_from(records.len()).ok()?;
    for (at, value) in [(2, flags), (6, count), (8, 0), (10, 0)] {
        out.get_mut(at..at + 2)?.copy_from_slice(&value.to_be_bytes());
    }
    for record in records {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        // Class IN, for ten minutes less than anybody would notice: containers come and go.
        out.extend([0, 1, 0, 0, 0, 5]);
        out.extend(u16::try_from(record.len()).ok()?.to_be_bytes());
        out.extend(record);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known;

    impl Names for Known {
        fn lookup(&self, name: &str) -> Option<Vec<IpAddr>> {
            (name == "web").then(|| vec!["10.9.0.2".parse().unwrap()])
        }
    }

    fn question(name: &str, kind: u8) -> Vec<u8> {
        let mut out = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            out.push(label.len() as u8);
            out.extend(label.as_bytes());
        }
        out.extend([0, 0, kind, 0, 1]);
        out
    }

    #[test]
    fn nameservers_are_read_from_the_hosts_file() {
        let list = parse(
            "# nameserver 1.1.1.1\nsearch x\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver x\n",
        );
        assert_eq!(list, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
    }

    #[test]
    fn a_resolver_that_does_not_answer_is_followed_by_the_next() {
        let servers: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let mut resolvers = Resolvers::new(PathBuf::new(), servers.clone());
        let now = Instant::now();
        assert_eq!(resolvers.current(now), Some(servers[0]));
        resolvers.failed(servers[0]);
        resolvers.failed(servers[0]);
        assert_eq!(resolvers.current(now), Some(servers[1]));
        resolvers.failed(servers[1]);
        assert_eq!(resolvers.current(now), Some(servers[0]));
        assert_eq!(Resolvers::new("/nonexistent".into(), Vec::new()).current(now), None);
    }

    #[test]
    fn known_names_are_answered_and_others_are_not() {
        let got = answer(&question("WEB", 1), Some(&Known), false).unwrap();
        assert_eq!(got.get(..12).unwrap(), [7, 7, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert!(got.ends_with(&[0, 4, 10, 9, 0, 2]));
        // It exists and has no such address.
        let none = answer(&question("web", 28), Some(&Known), false).unwrap();
        assert_eq!(none.get(6..8).unwrap(), [0, 0]);
        assert_eq!(answer(&question("example.org", 1), Some(&Known), false), None);
    }

    #[test]
    fn where_there_is_no_elsewhere_other_names_do_not_exist() {
        let none = answer(&question("example.org", 1), Some(&Known), true).unwrap();
        assert_eq!(none.get(2..8).unwrap(), [0x85, 0x83, 0, 1, 0, 0]);
        assert!(answer(&question("web", 1), Some(&Known), true).unwrap().ends_with(&[10, 9, 0, 2]));
        assert_eq!(answer(&question("web", 1), None, true).unwrap().get(3), Some(&0x83));
    }

    #[test]
    fn a_question_of_any_bytes_is_no_answer() {
        let whole = question("web", 1);
        for len in 0..whole.len() {
            assert_eq!(answer(&whole[..len], Some(&Known), true), None, "{len}");
        }
        let mut loops = question("web", 1);
        loops[12] = 0xc0;
        assert_eq!(answer(&loops, Some(&Known), true), None);
    }
}

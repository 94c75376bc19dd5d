//! Who is on a network: a file that the host keeps, with a line for each member, and beside it the sockets of those that run.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::super::nat::Names;
use super::super::wire::Mac;

/// One member, as a line of the file: address, address on the wire, IPv6 address if there is one, names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its address in the network.
    pub address: Ipv4Addr,
    /// Its address on the wire.
    pub mac: Mac,
    /// Its IPv6 address, where the network has them.
    pub address6: Option<Ipv6Addr>,
    /// What it is called, in lower case.
    pub names: Vec<String>,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.address, self.mac)?;
        self.address6.iter().try_for_each(|address| write!(f, " {address}"))?;
        self.names.iter().try_for_each(|name| write!(f, " {name}"))
    }
}

impl Member {
    /// The member in a line.
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace().peekable();
        Some(Self {
            address: words.next()?.parse().ok()?,
            mac: words.next()?.parse().ok()?,
            // No name has a colon.
            address6: words.next_if(|word| word.contains(':')).map(str::parse).transpose().ok()?,
            names: words.map(str::to_owned).collect(),
        })
    }

    /// Its addresses.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.address.into()).chain(self.address6.map(IpAddr::from))
    }

    fn has(&self, address: IpAddr) -> bool {
        self.addresses().any(|own| own == address)
    }
}

/// The directory of a network, held open.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    open: File,
}

impl Directory {
    /// The file that lists the members.
    pub(super) const MEMBERS: &'static str = "members";

    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_path_buf(), open: File::open(path)? })
    }

    /// Something in it. A socket's path has about a hundred bytes at most: where the system names descriptors, the way is
    /// by the directory's.
    fn entry(&self, name: &str) -> PathBuf {
        if cfg!(target_os = "linux") {
            format!("/proc/self/fd/{}/{name}", self.open.as_raw_fd()).into()
        } else {
            self.path.join(name)
        }
    }

    /// Where the member with this address on the wire receives.
    pub(super) fn socket(&self, mac: Mac) -> PathBuf {
        let [a, b, c, d, e, f] = mac.0;
        self.entry(&format!("{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}"))
    }
}

/// The members of a network, as the file has them now.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) directory: Directory,
    known: Mutex<Known>,
}

/// What tells one version of the file from another: it is never changed, but replaced.
type Stamp = (u64, i64, i64);

#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    list: Vec<Member>,
}

impl Members {
    pub(super) fn new(directory: Directory) -> Self {
        Self { directory, known: Mutex::default() }
    }

    /// Looks at the members; the file is read again if it is another one.
    pub(super) fn look<T>(&self, look: impl FnOnce(&[Member]) -> T) -> T {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.directory.entry(Directory::MEMBERS);
        let stamp = fs::metadata(&path).map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec())).ok();
        if known.stamp != stamp {
            let text = fs::read_to_string(&path).unwrap_or_default();
            *known = Known { stamp, list: text.lines().filter_map(Member::read).collect() };
        }
        look(&known.list)
    }

    /// Who has this address; of the list as it was last read where it knows one.
    pub(super) fn mac_of(&self, address: IpAddr) -> Option<Mac> {
        let find = |list: &[Member]| list.iter().find(|one| one.has(address)).map(|one| one.mac);
        self.look(find)
    }

    /// Whether `mac` is the member with this address.
    pub(super) fn is_pair(&self, address: IpAddr, mac: Mac) -> bool {
        let is = |list: &[Member]| list.iter().any(|one| one.mac == mac && one.has(address));
        is(&self.known.lock().unwrap_or_else(PoisonError::into_inner).list) || self.look(is)
    }

    /// Whether somebody receives at this address on the wire.
    pub(super) fn is_there(&self, mac: Mac) -> bool {
        UnixDatagram::unbound().and_then(|probe| probe.connect(self.directory.socket(mac))).is_ok()
    }
}

/// Names of members that run.
#[derive(Debug)]
pub(super) struct MemberNames(pub(super) std::sync::Arc<Members>);

impl Names for MemberNames {
    fn lookup(&self, name: &str) -> Option<Vec<IpAddr>> {
        let has_name = |member: &&Member| member.names.iter().any(|known| known == name);
        let named: Vec<Member> = self.0.look(|list| list.iter().filter(has_name).cloned().collect());
        let there: Vec<IpAddr> = named
            .iter()
            .filter(|one| self.0.is_there(one.mac))
            .flat_map(|one| one.addresses().collect::<Vec<_>>())
            .collect();
        Some(there).filter(|there| !there.is_empty())
    }
}

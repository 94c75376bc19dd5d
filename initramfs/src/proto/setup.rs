//! What the container is made of: its root, mounts, names, clock and limits.

use alloc::{string::String, vec::Vec};

use super::{
    Error, Network, Networks,
    wire::{Reader, Writer},
};

/// The file system that the container's image lies on; never written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lower {
    /// The virtio-fs share with this tag.
    Virtiofs(String),
    /// An EROFS image on this block device, as `/dev/vda`.
    Erofs(String),
    /// A directory of the initramfs itself, as `/image`.
    Directory(String),
}

/// Where the container's changes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upper {
    /// Nowhere: the root is the lower file system, read-only.
    None,
    /// Guest memory; gone with the machine.
    Tmpfs,
    /// The directories `upper` and `work` of an ext4 file system on this block device, as `/dev/vdb`.
    Ext4(String),
}

/// The container's root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The image.
    pub lower: Lower,
    /// Laid over it by overlayfs.
    pub upper: Upper,
}

impl Root {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        let lower = match r.u8()? {
            0 => Lower::Virtiofs(r.text("root.lower")?),
            1 => Lower::Erofs(r.text("root.lower")?),
            2 => Lower::Directory(r.text("root.lower")?),
            _ => return Err(Error::Invalid("root.lower")),
        };
        let upper = match r.u8()? {
            0 => Upper::None,
            1 => Upper::Tmpfs,
            2 => Upper::Ext4(r.text("root.upper")?),
            _ => return Err(Error::Invalid("root.upper")),
        };
        Ok(Self { lower, upper })
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) {
        match &self.lower {
            Lower::Virtiofs(tag) => w.u8(0).bytes(tag.as_bytes()),
            Lower::Erofs(device) => w.u8(1).bytes(device.as_bytes()),
            Lower::Directory(path) => w.u8(2).bytes(path.as_bytes()),
        };
        match &self.upper {
            Upper::None => w.u8(0),
            Upper::Tmpfs => w.u8(1),
            Upper::Ext4(device) => w.u8(2).bytes(device.as_bytes()),
        };
    }
}

/// What is mounted at a [`Mount`]'s target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A virtio-fs share, or something in it.
    Virtiofs {
        /// Tag of the share. Several mounts may name one share; it is then mounted once.
        tag: String,
        /// Path below the share's root of the file or directory that is bound to the target; empty is the
        /// share's root itself. No `..`.
        path: Vec<u8>,
    },
    /// A new tmpfs.
    Tmpfs {
        /// Greatest size in bytes; `None` is half of the guest's memory, the kernel's default.
        size: Option<u64>,
        /// Permissions of its root, as `0o1777`.
        mode: u32,
    },
}

/// One more mount in the container, made in the order of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What.
    pub source: MountSource,
    /// Absolute path in the container. Made if missing: a directory, or an empty file if a file is bound.
    pub target: Vec<u8>,
    /// No writing through this mount. For a share the host enforces it as well.
    pub read_only: bool,
    /// `noexec`.
    pub no_exec: bool,
    /// `nosuid`.
    pub no_suid: bool,
    /// `nodev`.
    pub no_dev: bool,
}

impl Mount {
    fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        let source = match r.u8()? {
            0 => {
                let tag = r.text("mount.tag")?;
                let path = r.c_bytes("mount.path")?;
                if path.starts_with(b"/") || path.split(|b| *b == b'/').any(|name| name == b"..") {
                    return Err(Error::Invalid("mount.path"));
                }
                MountSource::Virtiofs { tag, path }
            }
            1 => MountSource::Tmpfs { size: r.option("mount.size", Reader::u64)?, mode: r.u32()? },
            _ => return Err(Error::Invalid("mount.source")),
        };
        let target = r.c_bytes("mount.target")?;
        if !target.starts_with(b"/") {
            return Err(Error::Invalid("mount.target"));
        }
        Ok(Self {
            source,
            target,
            read_only: r.bool("mount.read_only")?,
            no_exec: r.bool("mount.no_exec")?,
            no_suid: r.bool("mount.no_suid")?,
            no_dev: r.bool("mount.no_dev")?,
        })
    }

    fn write(&self, w: &mut Writer<'_>) {
        match &self.source {
            MountSource::Virtiofs { tag, path } => w.u8(0).bytes(tag.as_bytes()).bytes(path),
            MountSource::Tmpfs { size, mode } => w
                .u8(1)
                .option(size.as_ref(), |w, size| {
                    w.u64(*size);
                })
                .u32(*mode),
        };
        w.bytes(&self.target).bool(self.read_only).bool(self.no_exec).bool(self.no_suid).bool(self.no_dev);
    }
}

/// A share of processor time: `quota_us` of every `period_us` (cgroup v2, cpu.max).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuLimit {
    /// Microseconds, at least 1000; `u32::MAX` takes the limit away.
    pub quota_us: u32,
    /// Microseconds, 1000 to 1,000,000.
    pub period_us: u32,
}

/// Limits of the container's cgroup; `None` is no limit, or the one that was.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes of memory (memory.max); swap is not given on top of it.
    pub memory_max: Option<u64>,
    /// Processes and threads (pids.max); `u64::MAX` takes the limit away.
    pub pids_max: Option<u64>,
    /// Processor time (cpu.max).
    pub cpu: Option<CpuLimit>,
    /// Further files of the cgroup and what is written into them, as `memory.low` and `1048576`. Names are of lower-case
    /// letters, dots and underscores.
    pub files: Vec<(String, String)>,
}

impl Limits {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            memory_max: r.option("memory_max", Reader::u64)?,
            pids_max: r.option("pids_max", Reader::u64)?,
            cpu: r.option("cpu", |r| {
                let cpu = CpuLimit { quota_us: r.u32()?, period_us: r.u32()? };
                if cpu.quota_us < 1000 || !(1000..=1_000_000).contains(&cpu.period_us) {
                    return Err(Error::Invalid("cpu"));
                }
                Ok(cpu)
            })?,
            files: r.list(8, |r| {
                let (name, value) = (r.text("limits.file")?, r.text("limits.value")?);
                let fits = |byte: u8| byte.is_ascii_lowercase() || byte == b'.' || byte == b'_';
                if name.starts_with('.') || name.is_empty() || !name.bytes().all(fits) {
                    return Err(Error::Invalid("limits.file"));
                }
                Ok((name, value))
            })?,
        })
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) {
        w.option(self.memory_max.as_ref(), |w, n| {
            w.u64(*n);
        })
        .option(self.pids_max.as_ref(), |w, n| {
            w.u64(*n);
        })
        .option(self.cpu.as_ref(), |w, cpu| {
            w.u32(cpu.quota_us).u32(cpu.period_us);
        })
        .list(&self.files, |w, (name, value)| {
            w.bytes(name.as_bytes()).bytes(value.as_bytes());
        });
    }
}

/// Everything the container needs before its first program.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Configure {
    /// Host name, at most 64 bytes; also the content of /etc/hostname.
    pub hostname: String,
    /// NIS domain name (setdomainname(2)), at most 64 bytes; empty leaves the kernel's.
    pub domainname: String,
    /// Content of /etc/hosts; `None` leaves the image's. In a container that was restored, lines that its programs wrote
    /// stay.
    pub hosts: Option<Vec<u8>>,
    /// Content of /etc/resolv.conf; `None` leaves the image's.
    pub resolv_conf: Option<Vec<u8>>,
    /// Nanoseconds since 1970 when this was sent; `None` leaves the guest's clock.
    pub realtime_ns: Option<u64>,
    /// Credited to the kernel's random pool, 8 bits a byte; at most 512 bytes.
    pub entropy: Vec<u8>,
    /// The root, if the kernel command line did not name it ([`super::BootOptions`]).
    pub root: Option<Root>,
    /// Make the root read-only after the mount points were made. Other mounts are not affected.
    pub read_only: bool,
    /// The container's changes need not outlive the machine: nothing is written back for them at its end.
    pub forget_changes: bool,
    /// Further mounts, in this order.
    pub mounts: Vec<Mount>,
    /// Limits of the container.
    pub limits: Limits,
    /// Size of /dev/shm in bytes; `None` is 64 MiB.
    pub shm_size: Option<u64>,
    /// Kernel settings, by their path below /proc/sys, and what is written into them.
    pub sysctls: Vec<(String, String)>,
    /// The card, where it is not [`Network::OWN`] as [`super::BootOptions::network`] set it up.
    pub network: Option<Network>,
    /// All networks, where there are more than one; [`Self::network`] says nothing then.
    pub networks: Option<Networks>,
    /// Content of /etc/machine-id (machine-id(5)) and of D-Bus's copy, where there are such files; `None` leaves them.
    pub machine_id: Option<Vec<u8>>,
}

impl Configure {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        let hostname = r.text("hostname")?;
        if hostname.len() > 64 {
            return Err(Error::Invalid("hostname"));
        }
        let domainname = r.text("domainname")?;
        if domainname.len() > 64 {
            return Err(Error::Invalid("domainname"));
        }
        let hosts = r.option("hosts", Reader::bytes)?;
        let resolv_conf = r.option("resolv_conf", Reader::bytes)?;
        let realtime_ns = r.option("realtime_ns", Reader::u64)?;
        let entropy = r.bytes()?;
        if entropy.len() > 512 {
            return Err(Error::Invalid("entropy"));
        }
        Ok(Self {
            hostname,
            domainname,
            hosts,
            resolv_conf,
            realtime_ns,
            entropy,
            root: r.option("root", Root::read)?,
            read_only: r.bool("read_only")?,
            forget_changes: r.bool("forget_changes")?,
            mounts: r.list(15, Mount::read)?,
            limits: Limits::read(r)?,
            shm_size: r.option("shm_size", Reader::u64)?,
            sysctls: r.list(8, |r| {
                let (path, value) = (r.text("sysctl")?, r.text("sysctl.value")?);
                if path.split('/').any(|name| matches!(name, "" | "." | "..")) {
                    return Err(Error::Invalid("sysctl"));
                }
                Ok((path, value))
            })?,
            network: r.option("network", Network::read)?,
            networks: r.option("networks", Networks::read)?,
            machine_id: r.option("machine_id", Reader::bytes)?,
        })
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) {
        w.bytes(self.hostname.as_bytes())
            .bytes(self.domainname.as_bytes())
            .option(self.hosts.as_ref(), |w, hosts| {
                w.bytes(hosts);
            })
            .option(self.resolv_conf.as_ref(), |w, conf| {
                w.bytes(conf);
            })
            .option(self.realtime_ns.as_ref(), |w, ns| {
                w.u64(*ns);
            })
            .bytes(&self.entropy)
            .option(self.root.as_ref(), |w, root| root.write(w))
            .bool(self.read_only)
            .bool(self.forget_changes)
            .list(&self.mounts, |w, mount| mount.write(w));
        self.limits.write(w);
        w.option(self.shm_size.as_ref(), |w, size| {
            w.u64(*size);
        })
        .list(&self.sysctls, |w, (path, value)| {
            w.bytes(path.as_bytes()).bytes(value.as_bytes());
        })
        .option(self.network.as_ref(), |w, network| network.write(w))
        .option(self.networks.as_ref(), |w, networks| networks.write(w))
        .option(self.machine_id.as_ref(), |w, id| {
            w.bytes(id);
        });
    }
}

/// What containers of one image have in common, made before the machine is saved as a template.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Prepare {
    /// The program that is likely to be run, as in [`super::Exec::argv`]: its file is read ahead. Empty for none.
    pub program: Vec<u8>,
    /// The `PATH` that it is looked for in; empty is the default one.
    pub path: Vec<u8>,
    /// `Configure` will bring a /etc/hosts.
    pub hosts: bool,
    /// `Configure` will bring a /etc/resolv.conf.
    pub resolv_conf: bool,
}

impl Prepare {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            program: r.c_bytes("program")?,
            path: r.c_bytes("path")?,
            hosts: r.bool("hosts")?,
            resolv_conf: r.bool("resolv_conf")?,
        })
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) {
        w.bytes(&self.program).bytes(&self.path).bool(self.hosts).bool(self.resolv_conf);
    }
}

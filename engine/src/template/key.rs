//! What a template was made from, as one number: another of anything is another template.

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use servin_init::proto::BootOptions;

use crate::host;
use crate::monitor::MachinePlan;
use crate::{Error, Result, os};

/// Bumped when templates are made in another way.
const VERSION: u32 = 2;

/// The key of a machine's template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    /// The key of this machine; `None` for one that cannot be cloned: with shares (the guest would hold files of a host
    /// that has changed), a console, or a network that is not ours (it offers the guest less).
    ///
    /// Files are known by what the file system says of them (device, inode, size, times of content and inode): reading
    /// them would cost more than the start. So a file that was replaced, or written in place, has another key.
    pub(crate) fn new(plan: &MachinePlan, boot: &BootOptions) -> Result<Option<Self>> {
        let Some(disk) = &plan.disk else { return Ok(None) };
        if !plan.shares.is_empty() || plan.verbose || plan.card.as_ref().is_some_and(|card| !card.is_ours()) {
            return Ok(None);
        }
        let changes = plan.changes.as_ref().map_or(0, |disk| disk.size);
        let version = env!("CARGO_PKG_VERSION");
        let mut text = format!("{VERSION} {version} {} {} {changes} {boot}\n", plan.memory, plan.cpus);
        let program = os::own_program().map_err(|source| Error::io("find", "this program", source))?;
        for path in [&program, &plan.guest.kernel, &plan.guest.initramfs, disk] {
            identity(path, &mut text)?;
        }
        let host = rustix::system::uname();
        let _ = write!(text, "{:?} {:x?}", host.release(), host::cpu_identity());
        let mut key = String::with_capacity(64);
        for byte in Sha256::digest(text) {
            let _ = write!(key, "{byte:02x}");
        }
        Ok(Some(Key(key)))
    }

    /// As text: 64 hexadecimal digits.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    #[cfg(test)]
    pub(super) fn of(text: &str) -> Self {
        Key(text.to_owned())
    }
}

fn identity(path: &Path, text: &mut String) -> Result<()> {
    let meta = std::fs::metadata(path).map_err(|source| Error::io("look at", path, source))?;
    let _ = writeln!(
        text,
        "{} {} {} {}.{} {}.{}",
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    );
    Ok(())
}

//! Which pages of a VM were written since it was saved or restored, so that the next snapshot need not look at the others.
//!
//! ```text
//! since it was restored    pages that are not the file's any more, as the host tells (no cost while it runs)
//! since it was saved       the hypervisor's log of what vCPUs write, and the count of what devices write
//! ```

use servin_devices::mem::Mem;
use vm_memory::GuestMemoryBackend as _;

use crate::error::Error;
use crate::hv;
use crate::memory::{self, Pages};
use crate::snapshot::{SnapshotId, runs};

/// What is known of the pages that were written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// The snapshot that the VM was restored from, where the host tells what is not that file's any more.
    restored: Option<SnapshotId>,
    /// The snapshot since which is logged.
    followed: Option<Log>,
}

#[derive(Debug)]
struct Log {
    since: SnapshotId,
    /// A bit for each page that was taken from the logs, region by region: what was read from them is gone there.
    pages: Vec<Vec<u64>>,
}

impl Written {
    /// Of a new VM.
    pub(crate) fn new(restored: Option<SnapshotId>) -> Self {
        // Only Linux tells (pagemap).
        Self { restored: restored.filter(|_| cfg!(target_os = "linux")), followed: None }
    }

    /// The snapshots since which it is known what was written, the latest first.
    pub(crate) fn known(&self) -> Vec<SnapshotId> {
        self.followed.iter().map(|log| log.since).chain(self.restored).collect()
    }

    /// Logs from now on, where the hypervisor can: RAM is as the snapshot `since` has it.
    pub(crate) fn follow(&mut self, vm: &dyn hv::Vm, mem: &Mem, since: SnapshotId) -> Result<bool, Error> {
        // What is noted until now is in the snapshot.
        self.followed = None;
        let Some(tracked) = vm.track_dirty() else { return Ok(false) };
        tracked?;
        memory::count_written(mem);
        let mut log = Log { since, pages: vec![Vec::new(); mem.num_regions()] };
        log.read(vm, mem)?;
        log.pages.iter_mut().for_each(|pages| pages.fill(0));
        self.followed = Some(log);
        Ok(true)
    }

    /// The pages that were written since the snapshot `since`, and perhaps others.
    pub(crate) fn since(
        &mut self,
        vm: &dyn hv::Vm,
        mem: &Mem,
        since: SnapshotId,
    ) -> Result<Vec<Pages>, Error> {
        if let Some(log) = self.followed.as_mut().filter(|log| log.since == since) {
            log.read(vm, mem)?;
            let lengths = mem.iter().map(vm_memory::GuestMemoryRegion::len);
            return Ok(runs(lengths.zip(log.pages.iter().map(Vec::as_slice))));
        }
        if self.restored == Some(since) {
            return memory::written(mem).map_err(Error::host("finding the pages that were written"));
        }
        Err(Error::Snapshot(format!("it is not known what the guest has written since the snapshot {since}")))
    }
}

impl Log {
    /// Adds what was written since the last time.
    fn read(&mut self, vm: &dyn hv::Vm, mem: &Mem) -> Result<(), Error> {
        let devices = memory::take_written(mem).unwrap_or_default();
        for (pages, by_devices) in self.pages.iter_mut().zip(&devices) {
            add(pages, by_devices);
        }
        for (region, pages) in self.pages.iter_mut().enumerate() {
            if let Some(by_cpus) = vm.take_dirty(region) {
                add(pages, &by_cpus?);
            }
        }
        Ok(())
    }
}

fn add(pages: &mut Vec<u64>, more: &[u64]) {
    if pages.len() < more.len() {
        pages.resize(more.len(), 0);
    }
    pages.iter_mut().zip(more).for_each(|(page, more)| *page |= more);
}

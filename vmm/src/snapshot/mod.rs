//! Snapshots: a paused VM in two files, and back.
//!
//! ```text
//! save:     vCPUs parked, devices paused ─► devices, machine, vCPUs ─► `state`;  RAM ─► `memory`, zero pages as holes
//! restore:  `memory` mapped privately ─► machine made ─► devices, machine, vCPUs take their state ─► start
//! ```
//! A snapshot may be restored many times: nothing is written to its files, and the guest's pages are read when touched.
//! The two files carry one random number, so that parts of different snapshots are not mixed.
//!
//! A snapshot may build on another one, its parent: of RAM it has only the pages that changed since, and it knows the
//! parent's number. It is opened with all those below it ([`Snapshot::open_chain`]); the first of them is whole.

mod changes;
mod early;
mod format;
mod memory_file;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use servin_devices::mem::Mem;
use servin_devices::state::{self, State};

use crate::config::Config;
use crate::error::Error;
use crate::hv::{MachineState, VcpuState};
use crate::layout;
use crate::memory::{self, Pages};

use changes::Changes;
pub use changes::SnapshotId;
#[cfg(any(test, feature = "testing"))]
pub use changes::fuzz as fuzz_changes;
pub(crate) use changes::runs;
use format::Sections;
pub(crate) use memory_file::MemoryFile;

/// The state of everything but RAM.
const STATE: &str = "state";
/// The pages that are written first, once a restored VM has told.
const EARLY: &str = "early";
/// RAM.
const MEMORY: &str = "memory";

/// What a VM must be like to be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    /// The same number as in the memory file.
    id: SnapshotId,
    memory_mib: u64,
    cpus: u8,
    /// Device types in the order of their places.
    devices: Vec<u32>,
}

impl State for Shape {
    const NAME: &'static str = "the VM";
    const VERSION: u16 = 1;
}

/// A saved VM, opened: give it to [`crate::VmBuilder::restore`].
#[derive(Debug)]
pub struct Snapshot {
    shape: Shape,
    sections: Sections,
    pub(crate) memory: MemoryFile,
    /// Pages to be copied at once.
    pub(crate) early: Option<Vec<Pages>>,
}

impl Snapshot {
    /// Opens the snapshot in the directory `dir` and checks its state.
    ///
    /// # Errors
    /// It is not whole, not a snapshot, or of another version; or it builds on another one ([`Self::open_chain`]).
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let (shape, sections, changes) = read(dir)?;
        if let Some(Changes { parent, .. }) = changes {
            return Err(Error::Snapshot(format!(
                "{} has only what changed since the snapshot {parent}, which was not given",
                dir.display()
            )));
        }
        let memory = MemoryFile::open(&dir.join(MEMORY), &shape.id.0, shape.memory_mib)?;
        let early = early::read(&dir.join(EARLY), &shape.id.0);
        Ok(Self { shape, sections, memory, early })
    }

    /// Opens the snapshot in the last of the directories, with those that it builds on before it: the first one is whole,
    /// and each of the others builds on the one before it.
    ///
    /// # Errors
    /// As [`Self::open`], or one of them does not build on the one before it.
    pub fn open_chain<P: AsRef<Path>>(dirs: &[P]) -> Result<Self, Error> {
        let (first, others) =
            dirs.split_first().ok_or_else(|| Error::Snapshot("none was given".to_owned()))?;
        let mut snapshot = Self::open(first.as_ref())?;
        for dir in others {
            snapshot.add(dir.as_ref())?;
        }
        Ok(snapshot)
    }

    /// Becomes the snapshot in `dir`, which builds on this one.
    fn add(&mut self, dir: &Path) -> Result<(), Error> {
        let failed = |why: &str| Err(Error::Snapshot(format!("{}: {why}", dir.display())));
        let (shape, sections, changes) = read(dir)?;
        let Some(changes) = changes else { return failed("it is whole and builds on no other snapshot") };
        if changes.parent != self.shape.id {
            return failed(&format!(
                "it builds on the snapshot {}, and {} was given",
                changes.parent, self.shape.id
            ));
        }
        let as_before = Shape { id: self.shape.id, ..shape.clone() };
        if as_before != self.shape {
            return failed("its memory, vCPUs or devices are not those of the snapshot that it builds on");
        }
        self.memory.add(&dir.join(MEMORY), &shape.id.0, changes.pages)?;
        (self.shape, self.sections, self.early) = (shape, sections, None);
        Ok(())
    }

    /// The number of the snapshot in `dir`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn id_of(dir: &Path) -> Result<SnapshotId, Error> {
        Ok(read(dir)?.0.id)
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.shape.id
    }

    /// A VM that was restored from it has told which pages are written first ([`Snapshot::learn`]).
    #[must_use]
    pub fn has_learned(&self) -> bool {
        self.early.is_some()
    }

    /// Learns from the RAM of a VM that was restored from the snapshot in `dir` which pages are written first: those that
    /// it has written by now. Later restores copy them at once.
    ///
    /// # Errors
    /// The snapshot cannot be read, or the list not be written.
    pub fn learn(dir: &Path, ram: &Mem) -> Result<(), Error> {
        let id = Self::open(dir)?.shape.id;
        let runs = memory::written(ram).map_err(Error::host("finding the pages that were written"))?;
        let list = Draft::new(dir, EARLY);
        let bytes = early::encode(id.0, runs)?;
        fs::write(&list.path, bytes).map_err(Error::host("writing the list of early pages"))?;
        list.keep()
    }

    /// Memory of the saved VM in MiB.
    #[must_use]
    pub fn memory_mib(&self) -> u64 {
        self.shape.memory_mib
    }

    /// vCPUs of the saved VM.
    #[must_use]
    pub fn cpus(&self) -> u8 {
        self.shape.cpus
    }

    /// Types of its virtio devices (virtio 1.2, section 5), in order: the same must be given to the builder.
    #[must_use]
    pub fn devices(&self) -> &[u32] {
        &self.shape.devices
    }

    pub(crate) fn take_device(&mut self, index: usize) -> Result<Vec<u8>, Error> {
        self.sections.take(&format!("device{index}"))
    }

    pub(crate) fn take_machine(&mut self) -> Result<MachineState, Error> {
        Ok(state::decode(&self.sections.take("machine")?)?)
    }

    pub(crate) fn take_vcpu(&mut self, index: usize) -> Result<VcpuState, Error> {
        Ok(state::decode(&self.sections.take(&format!("vcpu{index}"))?)?)
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), Error> {
        self.sections.finish()
    }

    /// The builder's configuration must be that of the saved VM where it matters.
    pub(crate) fn adapt(&self, config: &mut Config, devices: &[u32]) -> Result<(), Error> {
        if devices != self.shape.devices {
            return Err(Error::Snapshot(format!(
                "it was saved with virtio devices of types {:?}, the VM has {devices:?}",
                self.shape.devices
            )));
        }
        config.memory_mib = self.shape.memory_mib;
        config.cpus = self.shape.cpus;
        Ok(())
    }
}

/// Everything of a paused VM.
pub(crate) struct Contents<'a> {
    pub(crate) memory_mib: u64,
    pub(crate) mem: &'a Mem,
    /// Type and state of each device.
    pub(crate) devices: Vec<(u32, Vec<u8>)>,
    pub(crate) machine: MachineState,
    pub(crate) vcpus: Vec<VcpuState>,
}

/// Reads the state of the snapshot in `dir`.
fn read(dir: &Path) -> Result<(Shape, Sections, Option<Changes>), Error> {
    let path = dir.join(STATE);
    let bytes = fs::read(&path).map_err(|e| Error::Snapshot(format!("{}: {e}", path.display())))?;
    let mut sections = Sections::decode(&bytes)?;
    let shape: Shape = state::decode(&sections.take("vm")?)?;
    let changes: Option<Changes> =
        sections.take_if_there("changes").map(|body| state::decode(&body)).transpose()?;
    if let Some(changes) = &changes {
        changes.check(layout::ram(shape.memory_mib)?.iter().map(|(_, len)| len).sum())?;
    }
    Ok((shape, sections, changes))
}

/// Writes a snapshot into the directory `dir`: with a parent and the pages that may have changed since, one that builds on
/// it.
pub(crate) fn write(
    dir: &Path,
    contents: Contents<'_>,
    since: Option<(&Snapshot, &[Pages])>,
) -> Result<SnapshotId, Error> {
    let mut id = [0; 16];
    servin_devices::os::random(&mut id).map_err(Error::host("numbering a snapshot"))?;
    let shape = Shape {
        id: SnapshotId(id),
        memory_mib: contents.memory_mib,
        cpus: u8::try_from(contents.vcpus.len()).unwrap_or(u8::MAX),
        devices: contents.devices.iter().map(|(kind, _)| *kind).collect(),
    };
    let mut sections = Sections::default();
    sections.push("vm", state::encode(&shape)?);
    for (index, (_, device)) in contents.devices.into_iter().enumerate() {
        sections.push(format!("device{index}"), device);
    }
    sections.push("machine", state::encode(&contents.machine)?);
    for (index, vcpu) in contents.vcpus.iter().enumerate() {
        sections.push(format!("vcpu{index}"), state::encode(vcpu)?);
    }

    let memory = Draft::new(dir, MEMORY);
    match since {
        None => MemoryFile::write(&memory.path, &id, contents.mem)?,
        Some((parent, pages)) => {
            let pages = parent.memory.write_changes(&memory.path, &id, contents.mem, pages)?;
            sections.push("changes", state::encode(&Changes { parent: parent.shape.id, pages })?);
        }
    }
    let state = Draft::new(dir, STATE);
    fs::write(&state.path, sections.encode()).map_err(Error::host("writing the state of a snapshot"))?;
    memory.keep()?;
    state.keep()?;
    Ok(SnapshotId(id))
}

/// A file that is not there under its name before it is whole.
struct Draft {
    path: PathBuf,
    name: PathBuf,
}

impl Draft {
    fn new(dir: &Path, name: &str) -> Self {
        Self { path: dir.join(format!("{name}.new")), name: dir.join(name) }
    }

    fn keep(self) -> Result<(), Error> {
        fs::rename(&self.path, &self.name).map_err(Error::host("naming a file of a snapshot"))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone when it was kept.
        let _ = fs::remove_file(&self.path);
    }
}

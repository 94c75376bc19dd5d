//! Snapshots: a paused VM in two files, and back.
//!
//! ```text
//! save:     vCPUs parked, devices paused ─► devices, machine, vCPUs ─► `state`;  RAM ─► `memory`, zero pages as holes
//! restore:  `memory` mapped privately ─► machine made ─► devices, machine, vCPUs take their state ─► start
//! ```
//! A snapshot may be restored many times: nothing is written to its files, and the guest's pages are read when touched.
//! The two files carry one random number, so that parts of different snapshots are not mixed.

mod format;
mod memory_file;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use serde::{Deserialize, Serialize};
use servin_devices::state::{self, State};

use crate::config::Config;
use crate::error::Error;
use crate::gate::Phase;
use crate::hv::{MachineState, VcpuState};
use crate::vm::{Vm, lock};

use format::Sections;
pub(crate) use memory_file::MemoryFile;

/// The state of everything but RAM.
const STATE: &str = "state";
/// RAM.
const MEMORY: &str = "memory";

/// What a VM must be like to be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    /// The same number as in the memory file.
    id: [u8; 16],
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
}

impl Snapshot {
    /// Opens the snapshot in the directory `dir` and checks its state.
    ///
    /// # Errors
    /// It is not whole, not a snapshot, or of another version.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(STATE);
        let bytes = fs::read(&path).map_err(|e| Error::Snapshot(format!("{}: {e}", path.display())))?;
        let mut sections = Sections::decode(&bytes)?;
        let shape: Shape = state::decode(&sections.take("vm")?)?;
        let memory = MemoryFile::open(&dir.join(MEMORY), &shape.id, shape.memory_mib)?;
        Ok(Self { shape, sections, memory })
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

impl Vm {
    /// Saves a paused VM into the directory `dir`, which must exist. The VM stays paused. Files of an earlier snapshot are
    /// replaced once the new ones are whole.
    ///
    /// # Errors
    /// The VM is not paused, has a serial port (whose state cannot be saved), or the host failed.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        if self.gate.phase() != Phase::Paused {
            return Err(Error::Lifecycle { what: "save", is: "is not paused" });
        }
        if self.has_serial {
            return Err(Error::Unsupported {
                what: "saving a VM with a serial port",
                why: "the state of the port cannot be saved; use a virtio console".to_owned(),
            });
        }
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::Host { doing: "numbering a snapshot", source: e.into() })?;

        let mut sections = Sections::default();
        let mut types = Vec::new();
        for (index, device) in self.devices.iter().enumerate() {
            let transport = lock(&device.transport);
            types.push(transport.device_id());
            sections.push(format!("device{index}"), transport.save()?);
        }
        sections.push("machine", state::encode(&self.machine.save()?)?);
        for index in 0..self.config.cpus.into() {
            sections.push(format!("vcpu{index}"), state::encode(&self.save_vcpu(index)?)?);
        }
        let shape = Shape { id, memory_mib: self.config.memory_mib, cpus: self.config.cpus, devices: types };
        sections.push("vm", state::encode(&shape)?);

        let memory = Draft::new(dir, MEMORY);
        MemoryFile::write(&memory.path, &id, &self.mem)?;
        let state = Draft::new(dir, STATE);
        fs::write(&state.path, sections.encode()).map_err(Error::host("writing the state of a snapshot"))?;
        memory.keep()?;
        state.keep()
    }

    /// Has a parked vCPU save itself on its own thread.
    fn save_vcpu(&self, index: usize) -> Result<VcpuState, Error> {
        let (give, take) = mpsc::sync_channel(1);
        self.gate.command(
            index,
            Box::new(move |vcpu| {
                // Nobody waits any more when the VM ended meanwhile.
                let _ = give.send(vcpu.save());
            }),
        )?;
        take.recv().map_err(|_| Error::Lifecycle { what: "save", is: "has ended" })?
    }
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

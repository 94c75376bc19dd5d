//! A virtual machine: start it, wait for it, pause, resume and stop it.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use servin_devices::mem::Mem;
use servin_devices::virtio::mmio::MmioTransport;
use servin_devices::virtio::vsock::VsockHost;

use crate::config::Config;
use crate::error::Error;
use crate::event::ExitReason;
use crate::gate::{End, Gate, Phase};
use crate::hv::{self, VcpuState};
use crate::snapshot::{self, Snapshot, SnapshotId};
use crate::timeline::Timeline;
use crate::vcpu;
use crate::written::Written;

/// A virtio device with its place on the bus.
pub(crate) struct Device {
    pub(crate) transport: Arc<Mutex<MmioTransport>>,
    /// Doorbells that the hypervisor answers.
    pub(crate) _offloads: Vec<hv::Offload>,
}

/// A virtual machine, made by [`crate::VmBuilder`]. Every method may be called from any thread (but a vCPU's or a device's
/// own). Dropping it stops it and takes its threads, descriptors and mappings back.
pub struct Vm {
    pub(crate) gate: Arc<Gate>,
    pub(crate) timeline: Timeline,
    pub(crate) config: Config,
    pub(crate) mem: Mem,
    pub(crate) machine: Arc<dyn hv::Vm>,
    pub(crate) devices: Vec<Device>,
    pub(crate) vsock: Option<VsockHost>,
    pub(crate) has_serial: bool,
    pub(crate) written: Mutex<Written>,
    /// vCPUs before the start.
    pub(crate) seats: Mutex<Vec<vcpu::Seat>>,
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Vm {
    /// Starts every vCPU.
    ///
    /// # Errors
    /// The VM was started before, or no thread can be had.
    pub fn start(&self) -> Result<(), Error> {
        self.gate.start()?;
        // Those of a restored VM that ran when it was saved go on, once every vCPU has its state: an interrupt that they
        // raise before that would be lost when a local APIC gets the state that was saved.
        self.spawn().and_then(|()| self.resume_devices()).inspect_err(|_| self.stop())
    }

    fn resume_devices(&self) -> Result<(), Error> {
        for device in &self.devices {
            let mut transport = lock(&device.transport);
            let name = describe(&transport);
            transport.resume().map_err(|source| Error::Device { device: name, source })?;
        }
        Ok(())
    }

    /// Starts the vCPUs' threads, and waits until those that were saved have their state.
    fn spawn(&self) -> Result<(), Error> {
        let seats = std::mem::take(&mut *lock(&self.seats));
        let (awaited, all) = mpsc::channel::<()>();
        for mut seat in seats {
            if matches!(seat.start, vcpu::Start::State(_)) {
                seat.awaited = Some(awaited.clone());
            }
            let thread = vcpu::spawn(seat)?;
            lock(&self.threads).push(thread);
        }
        drop(awaited);
        // Nothing is sent; the wait ends when the last vCPU has let go of its end.
        let _ = all.recv();
        Ok(())
    }

    /// Waits until the VM has ended and its vCPUs are gone.
    ///
    /// # Errors
    /// What ended the VM: a fault of the guest, of a device, of the hypervisor. Everybody who waits gets it.
    pub fn wait(&self) -> Result<ExitReason, Arc<Error>> {
        // Without a deadline there is always an end.
        self.gate.wait_end(None).unwrap_or(Ok(ExitReason::Stopped))
    }

    /// Waits as [`Self::wait`], at most `limit`; `None` when the VM goes on.
    pub fn wait_timeout(&self, limit: Duration) -> Option<Result<ExitReason, Arc<Error>>> {
        self.gate.wait_end(Some(Instant::now() + limit))
    }

    /// Stops every vCPU between two instructions, with no access half done, and every device between two requests.
    ///
    /// # Errors
    /// The VM is not running.
    pub fn pause(&self) -> Result<(), Error> {
        self.gate.pause()?;
        for device in &self.devices {
            lock(&device.transport).pause();
        }
        Ok(())
    }

    /// Lets a paused VM go on.
    ///
    /// # Errors
    /// The VM is not paused, or no thread can be had for a device (the VM stays paused).
    pub fn resume(&self) -> Result<(), Error> {
        if self.gate.phase() == Phase::Paused {
            self.resume_devices()?;
        }
        self.gate.resume()
    }

    /// Saves a paused VM into the directory `dir`, which must exist, and tells the number of the snapshot. The VM stays
    /// paused. Files of an earlier snapshot are replaced once the new ones are whole.
    ///
    /// # Errors
    /// The VM is not paused, has a serial port (whose state cannot be saved), or the host failed.
    pub fn save(&self, dir: &Path) -> Result<SnapshotId, Error> {
        let contents = self.contents()?;
        snapshot::write(dir, contents, None)
    }

    /// Saves as [`Self::save`] does, but of RAM only what differs from the snapshot `parent`, which must be one of
    /// [`Self::known`]. Restoring it needs that one as well ([`Snapshot::open_chain`]).
    ///
    /// # Errors
    /// As [`Self::save`], or it is not known what was written since then.
    pub fn save_changes(&self, dir: &Path, parent: &Snapshot) -> Result<SnapshotId, Error> {
        // Saving the vCPUs can write guest memory (a clock's page): what is written is asked for afterwards.
        let contents = self.contents()?;
        let pages = lock(&self.written).since(&*self.machine, &self.mem, parent.id())?;
        snapshot::write(dir, contents, Some((parent, &pages)))
    }

    /// Notes from now on which pages are written, for [`Self::save_changes`]: the VM is paused, and RAM is as it was saved
    /// in the snapshot `since`. `false` where the hypervisor cannot; what is written costs more from here on.
    ///
    /// # Errors
    /// The VM is not paused, or the hypervisor failed.
    pub fn follow(&self, since: SnapshotId) -> Result<bool, Error> {
        if self.gate.phase() != Phase::Paused {
            return Err(Error::Lifecycle { what: "follow", is: "is not paused" });
        }
        lock(&self.written).follow(&*self.machine, &self.mem, since)
    }

    /// The snapshots since which it is known what was written, the latest first: the one given to [`Self::follow`], and the
    /// one that the VM was restored from.
    #[must_use]
    pub fn known(&self) -> Vec<SnapshotId> {
        lock(&self.written).known()
    }

    /// Everything of a paused VM.
    fn contents(&self) -> Result<snapshot::Contents<'_>, Error> {
        if self.gate.phase() != Phase::Paused {
            return Err(Error::Lifecycle { what: "save", is: "is not paused" });
        }
        if self.has_serial {
            return Err(Error::Unsupported {
                what: "saving a VM with a serial port",
                why: "the state of the port cannot be saved; use a virtio console".to_owned(),
            });
        }
        let devices = self.devices.iter().map(|device| {
            let transport = lock(&device.transport);
            Ok((transport.device_id(), transport.save()?))
        });
        Ok(snapshot::Contents {
            memory_mib: self.config.memory_mib,
            mem: &self.mem,
            devices: devices.collect::<Result<_, Error>>()?,
            machine: self.machine.save()?,
            vcpus: (0..self.config.cpus.into())
                .map(|index| self.save_vcpu(index))
                .collect::<Result<_, _>>()?,
        })
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

    /// Ends the VM at once, whatever the guest does. [`Self::wait`] tells when it is done.
    pub fn stop(&self) {
        self.gate.end(Ok(ExitReason::Stopped));
    }

    /// The host's side of the socket device, where there is one: `connect` to a port of the guest, `listen` on one of the
    /// host.
    #[must_use]
    pub fn vsock(&self) -> Option<&VsockHost> {
        self.vsock.as_ref()
    }

    /// The clocks of this VM.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// What the VM was made of.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Guest RAM.
    #[must_use]
    pub fn mem(&self) -> &Mem {
        &self.mem
    }

    /// Ends the VM with an error that somebody outside found.
    pub fn fail(&self, error: Error) {
        self.gate.end(End::Err(Arc::new(error)));
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
        let this = std::thread::current().id();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // An event sink may hold the last reference; its own thread ends by itself.
            if thread.thread().id() != this {
                // A panic was caught inside and became the VM's end.
                let _ = thread.join();
            }
        }
    }
}

pub(crate) fn describe(transport: &MmioTransport) -> String {
    format!("virtio device of type {}", transport.device_id())
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A VM is shared between the threads of its owner.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Vm>();
};

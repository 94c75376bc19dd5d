//! Building a VM: memory, machine, devices, kernel.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use servin_devices::bus::Bus;
use servin_devices::mem::Mem;
use servin_devices::power::{PowerRequest, PowerSink};
use servin_devices::virtio::VirtioDevice;
use servin_devices::virtio::mmio::{Activation, MMIO_LEN, MmioTransport, QUEUE_NOTIFY};
use servin_devices::virtio::vsock::{Limits, Vsock, VsockHost};

use crate::boot::{self, Hardware, Protocol, Source, cmdline};
use crate::config::Config;
use crate::error::Error;
use crate::event::{ExitReason, VmEvent};
use crate::gate::{EventSink, Gate};
use crate::hv::{self, Caps, Doorbell, Hypervisor, Plan};
use crate::layout::{GSIS, VIRTIO_BASE, VIRTIO_GSI, VIRTIO_MAX, VIRTIO_STRIDE};
use crate::memory;
use crate::platform::{self, Platform};
use crate::snapshot::Snapshot;
use crate::timeline::{Mark, Timeline};
use crate::trace::Accesses;
use crate::vcpu::{Io, Seat, Start};
use crate::vm::{Device, Vm, describe, lock};
use crate::written::Written;

/// Says what a VM is made of, then makes it.
#[derive(Default)]
pub struct VmBuilder {
    config: Config,
    hypervisor: Option<Arc<dyn Hypervisor>>,
    devices: Vec<Box<dyn VirtioDevice>>,
    serial: Option<Box<dyn Write + Send>>,
    events: Option<EventSink>,
    vsock: Option<(u64, VsockHost)>,
    vsock_limits: Limits,
    snapshot: Option<Snapshot>,
    timeline: Timeline,
    trace: Option<Accesses>,
}

impl fmt::Debug for VmBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl VmBuilder {
    /// A VM of 512 MiB with one vCPU, no devices and no kernel.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The hypervisor; this host's own by default.
    #[must_use]
    pub fn hypervisor(mut self, hypervisor: Arc<dyn Hypervisor>) -> Self {
        self.hypervisor = Some(hypervisor);
        self
    }

    /// Memory in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.config.memory_mib = mib;
        self
    }

    /// Number of vCPUs, 1 to 8.
    #[must_use]
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.config.cpus = cpus;
        self
    }

    /// The kernel: an ELF or bzImage file.
    #[must_use]
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.kernel = Some(path.into());
        self
    }

    /// An initramfs archive. Several are unpacked one after the other.
    #[must_use]
    pub fn initramfs(mut self, source: impl Into<Source>) -> Self {
        self.config.initramfs.push(source.into());
        self
    }

    /// Words behind the command line that the monitor makes. A second call adds to the first.
    #[must_use]
    pub fn cmdline_extra(mut self, words: &str) -> Self {
        if !self.config.cmdline_extra.is_empty() {
            self.config.cmdline_extra.push(' ');
        }
        self.config.cmdline_extra.push_str(words);
        self
    }

    /// How the kernel is entered.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.config.protocol = protocol;
        self
    }

    /// A virtio device. Devices get their places in the order of the calls.
    #[must_use]
    pub fn device(mut self, device: Box<dyn VirtioDevice>) -> Self {
        self.devices.push(device);
        self
    }

    /// A socket device. The guest is `cid` (3 or more); `host` listens and connects, and so does [`Vm::vsock`].
    #[must_use]
    pub fn vsock(mut self, cid: u64, host: &VsockHost) -> Self {
        self.vsock = Some((cid, host.clone()));
        self
    }

    /// What the socket device allows itself and the guest.
    #[must_use]
    pub fn vsock_limits(mut self, limits: Limits) -> Self {
        self.vsock_limits = limits;
        self
    }

    /// A serial port whose output goes to `output`, which must not block for long: a vCPU waits for it.
    #[must_use]
    pub fn serial(mut self, output: Box<dyn Write + Send>) -> Self {
        self.serial = Some(output);
        self
    }

    /// Who is told of events, on the thread where they happen. Must not block.
    #[must_use]
    pub fn on_event(mut self, sink: impl Fn(VmEvent) + Send + Sync + 'static) -> Self {
        self.events = Some(Box::new(sink));
        self
    }

    /// Takes up a saved VM instead of booting a kernel. Memory and vCPUs are those of the snapshot; the same devices must
    /// be given in the same order.
    #[must_use]
    pub fn restore(mut self, snapshot: Snapshot) -> Self {
        self.snapshot = Some(snapshot);
        self
    }

    /// When the process that wants the VM was executed: the first clock of the [`Timeline`].
    #[must_use]
    pub fn executed_at(self, when: Instant) -> Self {
        self.timeline.mark_at(Mark::Exec, when);
        self
    }

    /// Notes every access of the guest that reaches the monitor.
    #[must_use]
    pub fn trace(mut self, accesses: Accesses) -> Self {
        self.trace = Some(accesses);
        self
    }

    /// Makes the VM. Nothing runs before [`Vm::start`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn build(self) -> Result<Vm, Error> {
        let Self {
            mut config,
            hypervisor,
            devices,
            serial,
            events,
            vsock,
            vsock_limits,
            mut snapshot,
            timeline,
            trace,
        } = self;
        let devices = with_vsock(devices, vsock.as_ref(), vsock_limits)?;
        if let Some(snapshot) = &snapshot {
            let types: Vec<u32> = devices.iter().map(|device| device.id()).collect();
            snapshot.adapt(&mut config, &types)?;
        }
        config.check()?;
        if devices.len() > VIRTIO_MAX {
            return Err(Error::Config(format!(
                "{} virtio devices; {VIRTIO_MAX} are possible",
                devices.len()
            )));
        }
        let hypervisor = hypervisor.map_or_else(hv::open, Ok)?;
        let caps = hypervisor.caps().clone();
        let words = cmdline::build(&caps, devices.len(), &config.cmdline_extra)?;
        let (virtio, has_serial) = (devices.len(), serial.is_some());
        let mem = match &snapshot {
            None => memory::anonymous(config.memory_mib)?,
            Some(snapshot) => {
                let mem = snapshot.memory.map()?;
                memory::populate(&mem, snapshot.early.as_deref().unwrap_or_default());
                mem
            }
        };
        let plan = Plan::new(Arc::clone(&mem), config.cpus, GSIS);
        let machine = hypervisor.create(&plan)?;
        let gate = Arc::new(Gate::new(config.cpus, timeline.clone(), events));
        gate.set_kicks(machine.slots.iter().map(|slot| slot.kick()).collect());
        if !caps.starts_cpus {
            gate.hold_all_but_first();
        }

        let (mut mmio, mut ports) = (Bus::new(), Bus::new());
        platform::attach(Platform {
            vm: &*machine.vm,
            mmio: &mut mmio,
            ports: &mut ports,
            serial,
            power: &|| power(&gate),
        })?;
        let devices = (0_u64..)
            .zip(devices)
            .map(|(index, device)| attach(&*machine.vm, &mem, &gate, &mut mmio, index, device))
            .collect::<Result<Vec<_>, _>>()?;
        let mut starts = match &mut snapshot {
            Some(snapshot) => take_up(snapshot, &devices, &*machine.vm, config.cpus)?,
            None => {
                let hardware = Hardware { irqchip: machine.irqchip, virtio, serial: has_serial };
                load(&config, &caps, &mem, &words, hardware)?.map(Start::Entry).into_iter().collect()
            }
        }
        .into_iter();
        let written = Written::new(snapshot.as_ref().map(Snapshot::id));
        snapshot.map_or(Ok(()), Snapshot::finish)?;

        let io = Io { mmio: Arc::new(mmio), ports: Arc::new(ports) };
        let seats = machine.slots.into_iter().map(|slot| Seat {
            slot,
            start: starts.next().unwrap_or(Start::Reset),
            io: io.clone(),
            gate: Arc::clone(&gate),
            timeline: timeline.clone(),
            trace: trace.clone(),
            awaited: None,
        });
        let seats = Mutex::new(seats.collect());
        timeline.mark(Mark::Created);
        Ok(Vm {
            gate,
            timeline,
            config,
            mem,
            machine: machine.vm,
            devices,
            vsock: vsock.map(|(_, host)| host),
            has_serial,
            written: Mutex::new(written),
            seats,
            threads: Mutex::default(),
        })
    }
}

/// The devices with the socket device behind them, where there is one.
fn with_vsock(
    mut devices: Vec<Box<dyn VirtioDevice>>,
    vsock: Option<&(u64, VsockHost)>,
    limits: Limits,
) -> Result<Vec<Box<dyn VirtioDevice>>, Error> {
    if let Some((cid, host)) = vsock {
        let device =
            Vsock::with_limits(*cid, host, limits).map_err(Error::host("making the socket device"))?;
        devices.push(Box::new(device));
    }
    Ok(devices)
}

/// Loads the kernel. A hypervisor that executes no code (the fake) needs none.
fn load(
    config: &Config,
    caps: &Caps,
    mem: &Mem,
    words: &str,
    hardware: Hardware,
) -> Result<Option<hv::Entry>, Error> {
    let Some(kernel) = &config.kernel else {
        if caps.executes_code {
            return Err(Error::Config("no kernel was given".to_owned()));
        }
        return Ok(None);
    };
    boot::load(&boot::Plan {
        mem,
        cpus: config.cpus,
        kernel,
        initramfs: &config.initramfs,
        cmdline: words,
        protocol: config.protocol,
        hardware,
    })
    .map(Some)
}

/// Gives devices and machine their saved state; returns that of the vCPUs.
fn take_up(
    snapshot: &mut Snapshot,
    devices: &[Device],
    vm: &dyn hv::Vm,
    cpus: u8,
) -> Result<Vec<Start>, Error> {
    for (index, device) in devices.iter().enumerate() {
        lock(&device.transport).restore(&snapshot.take_device(index)?)?;
    }
    vm.restore(&snapshot.take_machine()?)?;
    (0..usize::from(cpus)).map(|index| snapshot.take_vcpu(index).map(Start::State)).collect()
}

/// Tells the gate that the guest wants an end.
fn power(gate: &Arc<Gate>) -> PowerSink {
    let gate = Arc::clone(gate);
    Box::new(move |request| {
        gate.end(Ok(match request {
            PowerRequest::Off => ExitReason::Off,
            PowerRequest::Reset => ExitReason::Reset,
        }));
    })
}

/// Gives a device its place on the bus, its interrupt line and its doorbells.
fn attach(
    vm: &dyn hv::Vm,
    mem: &Mem,
    gate: &Arc<Gate>,
    mmio: &mut Bus,
    index: u64,
    device: Box<dyn VirtioDevice>,
) -> Result<Device, Error> {
    let base = VIRTIO_BASE + index * VIRTIO_STRIDE;
    let line = vm.irq_line(VIRTIO_GSI + u32::try_from(index).unwrap_or(GSIS))?;
    let name = format!("virtio device {index} of type {}", device.id());
    let faults = {
        let (gate, name) = (Arc::clone(gate), name.clone());
        Arc::new(move |source| gate.end(Err(Arc::new(Error::Device { device: name.clone(), source }))))
    };
    let transport = MmioTransport::new(device, Arc::clone(mem), line, Activation::Thread(faults))
        .map_err(|source| Error::Device { device: name, source })?;
    let offloads = (0..)
        .zip(transport.doorbells())
        .filter_map(|(queue, event)| {
            vm.offload(Doorbell { addr: base + QUEUE_NOTIFY, len: 4, value: queue }, event)
        })
        .collect();
    log::debug!("{} at {base:#x}", describe(&transport));
    let transport = Arc::new(Mutex::new(transport));
    mmio.attach(base, MMIO_LEN, Arc::<Mutex<MmioTransport>>::clone(&transport))?;
    Ok(Device { transport, _offloads: offloads })
}

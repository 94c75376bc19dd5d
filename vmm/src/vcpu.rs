//! The vCPU loop: one thread per vCPU, from the gate into the guest and back.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use servin_devices::bus::Bus;

use crate::error::Error;
use crate::event::ExitReason;
use crate::gate::{Gate, Pass};
use crate::hv::{Arm64Entry, Entry, Exit, GuestIo, VcpuSlot, VcpuState};
use crate::timeline::{Mark, Timeline};
use crate::trace::{Accesses, Traced};

/// How a vCPU begins.
pub(crate) enum Start {
    /// At this instruction.
    Entry(Entry),
    /// Where it was saved.
    State(VcpuState),
    /// As the hypervisor made it: another vCPU starts it.
    Reset,
}

/// The address spaces of the devices, as the vCPUs reach them.
#[derive(Clone)]
pub(crate) struct Io {
    pub(crate) mmio: Arc<Bus>,
    pub(crate) ports: Arc<Bus>,
}

impl GuestIo for Io {
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        self.mmio.read(addr, data);
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        self.mmio.write(addr, data);
    }

    fn pio_in(&mut self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }

    fn pio_out(&mut self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }
}

/// What one vCPU thread needs.
pub(crate) struct Seat {
    pub(crate) slot: Box<dyn VcpuSlot>,
    pub(crate) start: Start,
    pub(crate) io: Io,
    pub(crate) gate: Arc<Gate>,
    pub(crate) timeline: Timeline,
    /// Its accesses are noted here, if anywhere.
    pub(crate) trace: Option<Accesses>,
    /// Dropped when the vCPU has its state, or never will.
    pub(crate) awaited: Option<mpsc::Sender<()>>,
}

/// Starts the thread of a vCPU. It ends when the VM does; an error or a panic on it ends the VM.
pub(crate) fn spawn(seat: Seat) -> Result<JoinHandle<()>, Error> {
    let gate = Arc::clone(&seat.gate);
    gate.thread_begins();
    let name = format!("vcpu{}", seat.slot.index());
    let body = move || {
        let gate = Arc::clone(&seat.gate);
        // Nothing that the closure touches is used after a panic but the gate, whose state is plain.
        match catch_unwind(AssertUnwindSafe(|| run(seat))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => gate.end(Err(Arc::new(error))),
            Err(panic) => gate.end(Err(Arc::new(Error::Panic(message(&*panic))))),
        }
        gate.thread_ends();
    };
    thread::Builder::new().name(name).spawn(body).map_err(|source| {
        gate.thread_ends();
        Error::Host { doing: "starting a vCPU thread", source }
    })
}

fn run(seat: Seat) -> Result<(), Error> {
    let Seat { slot, start, io, gate, timeline, trace, awaited } = seat;
    let index = slot.index();
    let (mut plain, mut traced);
    let io: &mut dyn GuestIo = match trace {
        None => {
            plain = io;
            &mut plain
        }
        Some(accesses) => {
            traced = Traced { io, cpu: index.into(), accesses };
            &mut traced
        }
    };
    let mut vcpu = slot.bind()?;
    match start {
        Start::Entry(entry) => vcpu.set_entry(&entry)?,
        Start::State(state) => vcpu.restore(&state)?,
        Start::Reset => {}
    }
    drop(awaited);
    loop {
        match gate.pass(index, &mut *vcpu) {
            Pass::Run => {}
            Pass::Start(entry) => vcpu.set_entry(&entry)?,
            Pass::Leave => return Ok(()),
        }
        if index == 0 {
            timeline.mark(Mark::Entered);
        }
        match vcpu.run(io)? {
            Exit::Kicked => {}
            Exit::CpuOn { cpu, entry, context } => {
                if !gate.start_vcpu(cpu, Entry::Arm64(Arm64Entry { pc: entry, x0: context })) {
                    log::warn!("vCPU {index} started vCPU {cpu}, which is not there or runs already");
                }
            }
            Exit::CpuOff => gate.stop_vcpu(index),
            Exit::Off => gate.end(Ok(ExitReason::Off)),
            Exit::Reset => gate.end(Ok(ExitReason::Reset)),
            Exit::Fault(fault) => gate.end(Err(Arc::new(Error::Fault(fault)))),
        }
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

//! A virtual processor: entering it, and turning its exits into calls of [`GuestIo`].

use std::marker::PhantomData;
use std::sync::Arc;

use super::api::{CONTEXT_SIZE, Context, Hresult, name};
use super::exit::{self, Reason};
use super::registers::{Packed, Stopped, packed_table, pending_exception};
use super::vm::Vm;
use super::{failed, state};
use crate::error::Error;
use crate::hv::kick::Kicks;
use crate::hv::x86::pic::Pics;
use crate::hv::x86::{self, AssistError, hyperv, ioapic};
use crate::hv::{Entry, Exit, Fault, GuestIo, Kick, Vcpu, VcpuSlot, VcpuState, X86Entry, X86Mode};

/// `IA32_MTRR_DEF_TYPE`: enabled, write-back. Without it the kernel maps nothing cacheable by PAT.
const MTRR_DEF_TYPE: u64 = 1 << 11 | 6;
/// CR0: protection, extension type (reads as one).
const CR0_PE_ET: u64 = 0x11;
/// CR0: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// `WHV_INTERNAL_ACTIVITY_REGISTER`: waits for INIT and SIPI.
const STARTUP_SUSPEND: u128 = 1;
/// Bytes of `rdmsr`, `wrmsr` and `cpuid`.
const TWO_BYTES: u64 = 2;

/// A virtual processor of a partition, deleted on drop.
struct Vp {
    vm: Arc<Vm>,
    index: u8,
    kicks: Arc<Kicks>,
}

impl Drop for Vp {
    fn drop(&mut self) {
        self.kicks.unbind();
        if let Err(error) = self.vm.api.delete_vp(self.vm.partition, self.index.into()) {
            log::error!("deleting a virtual processor: {error}");
        }
    }
}

/// A vCPU on its way to its thread.
pub(super) struct Slot(Vp);

impl Slot {
    pub(super) fn new(vm: &Arc<Vm>, index: u8) -> Result<Self, Error> {
        let (partition, number) = (vm.partition, u32::from(index));
        vm.api.create_vp(partition, number).map_err(failed("creating a virtual processor"))?;
        let kicks = Arc::<Kicks>::default();
        let slot = Self(Vp { vm: Arc::clone(vm), index, kicks: Arc::clone(&kicks) });
        let api = Arc::clone(&vm.api);
        // Unbound before the processor is deleted.
        kicks.bind(move || {
            if let Err(error) = api.cancel_vp(partition, number) {
                log::error!("cancelling a virtual processor: {error}");
            }
        });
        if index > 0 {
            let values = [(name::INTERNAL_ACTIVITY_STATE, STARTUP_SUSPEND)];
            vm.api
                .set_registers(partition, number, &values)
                .map_err(failed("parking a virtual processor"))?;
        }
        Ok(slot)
    }
}

impl VcpuSlot for Slot {
    fn index(&self) -> u8 {
        self.0.index
    }

    fn kick(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.0.kicks) as Arc<dyn Kick>
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, Error> {
        Ok(Box::new(Bound {
            vp: self.0,
            context: Box::new(Context([0; CONTEXT_SIZE])),
            hyperv: hyperv::Registers::default(),
            not_send: PhantomData,
        }))
    }
}

/// A vCPU on its thread.
pub(super) struct Bound {
    vp: Vp,
    context: Box<Context>,
    pub(super) hyperv: hyperv::Registers,
    /// The contract's; the platform itself has no such rule.
    not_send: PhantomData<*mut ()>,
}

impl Bound {
    pub(super) fn vm(&self) -> &Vm {
        &self.vp.vm
    }

    pub(super) fn stopped(&self) -> Stopped<'_> {
        let vm = self.vm();
        Stopped { api: &*vm.api, partition: vm.partition, index: self.vp.index.into(), ram: vm.ram() }
    }

    fn set(&self, doing: &'static str, values: &[(u32, u128)]) -> Result<(), Error> {
        self.stopped().set(values).map_err(Error::hypervisor(doing))
    }

    /// Answers an exit; `Some` leaves the run.
    fn step(&mut self, io: &mut dyn GuestIo) -> Result<Option<Exit>, Error> {
        let exit = exit::decode(&self.context);
        let fault = |why: String, bytes: &[u8]| {
            Ok(Some(Exit::Fault(Fault { why, pc: Some(exit.rip), bytes: bytes.to_vec() })))
        };
        let next = |length: u64| {
            let rip = exit.rip.wrapping_add(length);
            (name::RIP, u128::from(if exit.long { rip } else { rip & 0xffff_ffff }))
        };
        match exit.reason {
            Reason::Memory { gpa, bytes, fetch: true } => {
                fault(format!("the guest executes at {gpa:#x}, where there is no memory"), bytes.as_slice())
            }
            Reason::Memory { bytes, .. } => self.access(io, bytes.as_slice()),
            Reason::Port { port, write, size: size @ (1 | 2 | 4), string: false, rax, .. }
                if exit.length > 0 =>
            {
                let mut value = rax.to_le_bytes();
                let (data, _) = value.split_at_mut(size.into());
                let rip = next(exit.length.into());
                let mut chips = Chips { vm: self.vm(), io, failure: None };
                if write {
                    chips.pio_out(port, data);
                    self.set("advancing a vCPU", &[rip])?;
                } else {
                    chips.pio_in(port, data);
                    let mut value = u64::from_le_bytes(value);
                    if size == 4 {
                        value &= 0xffff_ffff;
                    }
                    self.set("answering a port", &[(name::RAX, value.into()), rip])?;
                }
                Ok(None)
            }
            Reason::Port { bytes, .. } => self.access(io, bytes.as_slice()),
            Reason::Msr { msr, write, value } => {
                let clocks = self.vm().host.clocks;
                let answer = if write {
                    self.hyperv.write(msr, value).then(Vec::new)
                } else {
                    self.hyperv.read(msr, clocks, self.vp.index).map(|value| {
                        vec![
                            (name::RAX, u128::from(value & 0xffff_ffff)),
                            (name::RDX, u128::from(value >> 32)),
                        ]
                    })
                };
                let values = match answer {
                    Some(mut values) => {
                        values.push(next(TWO_BYTES));
                        values
                    }
                    None => {
                        let protection = pending_exception(x86::exception::GP, Some(0));
                        vec![(name::PENDING_INTERRUPTION, protection)]
                    }
                };
                self.set("answering an MSR", &values)?;
                Ok(None)
            }
            Reason::Cpuid { default: [a, b, c, d] } => {
                let named = [(name::RAX, a), (name::RBX, b), (name::RCX, c), (name::RDX, d)];
                let mut values: Vec<_> = named.map(|(name, value)| (name, value.into())).to_vec();
                values.push(next(TWO_BYTES));
                self.set("answering CPUID", &values)?;
                Ok(None)
            }
            Reason::ApicEoi { vector } => {
                let mut chip = self.vm().ioapic();
                for message in chip.end(vector) {
                    self.vm().send(message).map_err(failed("requesting an interrupt"))?;
                }
                Ok(None)
            }
            // `run` looks at the kicks; a cancellation without one is left from another run.
            Reason::Canceled | Reason::InterruptWindow => Ok(None),
            Reason::UnrecoverableException => Ok(Some(Exit::Reset)),
            Reason::Halt => {
                fault("the platform gave a halted processor back, though it has the APIC".to_owned(), &[])
            }
            Reason::InvalidRegister => fault("the registers are not valid for a processor".to_owned(), &[]),
            Reason::UnsupportedFeature { code, parameter } => fault(
                format!("the guest used a feature that the platform lacks (code {code}, {parameter:#x})"),
                &[],
            ),
            Reason::Other(code) => fault(format!("the platform stopped with exit reason {code:#x}"), &[]),
        }
    }

    /// Carries out the access that the vCPU stands in front of.
    fn access(&self, io: &mut dyn GuestIo, bytes: &[u8]) -> Result<Option<Exit>, Error> {
        let mut chips = Chips { vm: self.vm(), io, failure: None };
        let result = x86::access(&mut self.stopped(), &mut chips, bytes);
        if let Some(error) = chips.failure {
            return Err(failed("requesting an interrupt")(error));
        }
        match result {
            Ok(_) => Ok(None),
            Err(AssistError::Hypervisor { doing, source }) => Err(Error::Hypervisor { doing, source }),
            Err(AssistError::Unsupported { rip, bytes }) => Ok(Some(Exit::Fault(Fault {
                why: "the monitor knows no access to a device by this instruction".into(),
                pc: Some(rip),
                bytes: bytes.as_slice().to_vec(),
            }))),
            Err(error) => {
                Ok(Some(Exit::Fault(Fault { why: error.to_string(), pc: None, bytes: bytes.to_vec() })))
            }
        }
    }
}

/// The I/O APIC and the 8259s in front of the monitor's devices.
struct Chips<'a> {
    vm: &'a Vm,
    io: &'a mut dyn GuestIo,
    failure: Option<Hresult>,
}

/// Offset into the I/O APIC of an address within it.
fn ioapic_offset(addr: u64) -> Option<u64> {
    addr.checked_sub(ioapic::BASE).filter(|offset| *offset < ioapic::SIZE)
}

impl GuestIo for Chips<'_> {
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        match ioapic_offset(addr) {
            Some(offset) => self.vm.ioapic().read(offset, data),
            None => self.io.mmio_read(addr, data),
        }
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        let Some(offset) = ioapic_offset(addr) else { return self.io.mmio_write(addr, data) };
        let mut chip = self.vm.ioapic();
        if let Some(message) = chip.write(offset, data)
            && let Err(error) = self.vm.send(message)
        {
            self.failure = Some(error);
        }
    }

    fn pio_in(&mut self, port: u16, data: &mut [u8]) {
        match data {
            [byte] if Pics::has(port) => *byte = self.vm.pics().read(port),
            _ => self.io.pio_in(port, data),
        }
    }

    fn pio_out(&mut self, port: u16, data: &[u8]) {
        match *data {
            [byte] if Pics::has(port) => self.vm.pics().write(port, byte),
            _ => self.io.pio_out(port, data),
        }
    }
}

impl Vcpu for Bound {
    fn set_entry(&mut self, entry: &Entry) -> Result<(), Error> {
        let Entry::X86(entry) = entry else {
            return Err(Error::Unsupported {
                what: "an arm64 entry",
                why: "this vCPU is x86_64; take a kernel for x86_64".to_owned(),
            });
        };
        self.set("setting the registers of a vCPU", &first_registers(entry))
    }

    fn run(&mut self, io: &mut dyn GuestIo) -> Result<Exit, Error> {
        loop {
            if self.vp.kicks.take() {
                return Ok(Exit::Kicked);
            }
            let (vp, context) = (&self.vp, &mut *self.context);
            let enter = || vp.vm.api.run_vp(vp.vm.partition, vp.index.into(), context);
            let Some(entered) = vp.kicks.enter(enter) else { continue };
            entered.map_err(failed("running a vCPU"))?;
            if let Some(exit) = self.step(io)? {
                return Ok(exit);
            }
        }
    }

    fn program_counter(&mut self) -> Result<u64, Error> {
        let [rip] = self.stopped().get(&[name::RIP]).map_err(Error::hypervisor("reading registers"))?;
        Ok(rip as u64)
    }

    fn save(&mut self) -> Result<VcpuState, Error> {
        state::save_vcpu(self)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Error> {
        state::restore_vcpu(self, state)
    }
}

/// Names and values of the registers in which a guest begins.
fn first_registers(entry: &X86Entry) -> Vec<(u32, u128)> {
    /// Type, S, P, G.
    const FLAT: u16 = 1 << 4 | 1 << 7 | 1 << 15;
    let long = matches!(entry.mode, X86Mode::Long { .. });
    let flat = |selector, kind, size: u16| {
        Packed { base: 0, limit: u32::MAX, selector, attributes: FLAT | kind | size }.value()
    };
    let code = flat(X86Entry::CODE, 0xb, if long { 1 << 13 } else { 1 << 14 });
    let data = flat(X86Entry::DATA, 0x3, 1 << 14);
    let task = Packed { base: 0, limit: 0x67, selector: X86Entry::TASK, attributes: 0xb | 1 << 7 };
    // Unusable: not present.
    let none = Packed { base: 0, limit: 0, selector: 0, attributes: 2 };
    let gdt_limit = u16::try_from(size_of_val(&X86Entry::gdt(entry.mode)) - 1).unwrap_or(0);
    let (mut cr0, mut cr3, mut cr4, mut efer) = (CR0_PE_ET, 0, 0, 0);
    if let X86Mode::Long { page_table } = entry.mode {
        cr0 |= CR0_PG;
        cr3 = page_table;
        cr4 = CR4_PAE;
        efer = EFER_LME_LMA;
    }
    let mut values: Vec<(u32, u128)> = (name::RAX..=name::R15).map(|name| (name, 0)).collect();
    for (name, value) in [(name::RSP, entry.rsp), (name::RBX, entry.rbx), (name::RSI, entry.rsi)] {
        if let Some(slot) = values.get_mut(name as usize) {
            slot.1 = value.into();
        }
    }
    values.extend([
        (name::RIP, entry.rip.into()),
        (name::RFLAGS, 2),
        (name::CS, code),
        (name::DS, data),
        (name::ES, data),
        (name::FS, data),
        (name::GS, data),
        (name::SS, data),
        (name::TR, task.value()),
        (name::LDTR, none.value()),
        (name::GDTR, packed_table(entry.gdt, gdt_limit)),
        (name::IDTR, packed_table(0, 0)),
        (name::CR0, cr0.into()),
        (name::CR3, cr3.into()),
        (name::CR4, cr4.into()),
        (name::EFER, efer.into()),
        (name::MTRR_DEF_TYPE, MTRR_DEF_TYPE.into()),
    ]);
    values
}

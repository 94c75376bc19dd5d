//! A virtual CPU: its first state, what it takes before an entry, and entering it.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::api::{FOREVER, VcpuId, reg};
use super::fields::{self, blocked, entry, event, primary};
use super::registers::{Event, Stopped, UNUSABLE};
use super::vm::Vm;
use super::{failed, msr, state};
use crate::error::Error;
use crate::hv::hvf::vm::Seat;
use crate::hv::x86::{cr0, cr4, efer, hyperv};
use crate::hv::{Entry, Exit, GuestIo, Kick, Vcpu, VcpuSlot, VcpuState, X86Entry, X86Mode};

/// RFLAGS: reads as one.
const FLAGS: u64 = 2;
/// RFLAGS.IF.
const INTERRUPTS: u64 = 1 << 9;
/// EFER.LME.
pub(super) const LME: u64 = 1 << 8;
/// CR0: caches, numeric errors, extension type.
pub(super) const CD: u64 = 1 << 30;
pub(super) const NW: u64 = 1 << 29;
const NE: u64 = 1 << 5;
const ET: u64 = 1 << 4;
/// The bits of CR0 that the guest reads from the shadow, and whose change is an exit.
pub(super) const CR0_KEPT: u64 = cr0::PG | CD | NW | NE | ET;
/// CR4.VMXE: set for the processor, hidden from the guest.
pub(super) const VMXE: u64 = 1 << 13;

/// A vCPU on its way to its thread, which will make it.
pub(super) struct Slot {
    vm: Arc<Vm>,
    index: u8,
    seat: Arc<Seat>,
}

impl Slot {
    pub(super) fn new(vm: &Arc<Vm>, index: u8) -> Self {
        let seat = vm.seats.get(usize::from(index)).cloned().unwrap_or_default();
        Self { vm: Arc::clone(vm), index, seat }
    }
}

impl VcpuSlot for Slot {
    fn index(&self) -> u8 {
        self.index
    }

    fn kick(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.seat.kicks) as Arc<dyn Kick>
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, Error> {
        let Self { vm, index, seat } = *self;
        let id = vm.api.vcpu_create().map_err(failed("creating a virtual CPU"))?;
        let vcpu = Bound {
            primary: vm.host.controls.primary,
            vm: Arc::clone(&vm),
            index,
            seat: Arc::clone(&seat),
            id,
            pending: None,
            halted: false,
            hyperv: hyperv::Registers::default(),
            kept: msr::Kept::default(),
            not_send: PhantomData,
        };
        // From here on the drop destroys it.
        for kicks in [&*seat.kicks, &seat.nudges] {
            let (api, seat) = (Arc::clone(&vm.api), Arc::downgrade(&seat));
            kicks.bind(move || {
                if let Some(seat) = seat.upgrade() {
                    seat.wake();
                }
                if let Err(error) = api.interrupt(id) {
                    log::error!("interrupting a virtual CPU: {error}");
                }
            });
        }
        vcpu.prepare()?;
        Ok(Box::new(vcpu))
    }
}

/// A vCPU on its thread.
pub(super) struct Bound {
    pub(super) vm: Arc<Vm>,
    pub(super) index: u8,
    seat: Arc<Seat>,
    pub(super) id: VcpuId,
    /// What it takes with the next entry.
    pub(super) pending: Option<Event>,
    /// It waits for an interrupt.
    pub(super) halted: bool,
    pub(super) hyperv: hyperv::Registers,
    pub(super) kept: msr::Kept,
    /// The primary controls as they are set.
    primary: u32,
    /// The framework's rule.
    not_send: PhantomData<*mut ()>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.seat.kicks.unbind();
        self.seat.nudges.unbind();
        if let Err(error) = self.vm.api.vcpu_destroy(self.id) {
            log::error!("destroying a virtual CPU: {error}");
        }
    }
}

impl Bound {
    pub(super) fn reg(&self, name: u32) -> Result<u64, Error> {
        self.vm.api.reg(self.id, name).map_err(failed("reading a register"))
    }

    pub(super) fn set_reg(&self, name: u32, value: u64) -> Result<(), Error> {
        self.vm.api.set_reg(self.id, name, value).map_err(failed("setting a register"))
    }

    pub(super) fn field(&self, field: u32) -> Result<u64, Error> {
        self.vm.api.vmcs(self.id, field).map_err(failed("reading the VMCS"))
    }

    pub(super) fn set_field(&self, field: u32, value: u64) -> Result<(), Error> {
        self.vm.api.set_vmcs(self.id, field, value).map_err(failed("writing the VMCS"))
    }

    pub(super) fn stopped(&mut self) -> Stopped<'_> {
        let Self { vm, id, pending, .. } = self;
        Stopped { api: &*vm.api, id: *id, ram: vm.ram(), pending }
    }

    /// What holds for the life of the vCPU.
    fn prepare(&self) -> Result<(), Error> {
        let controls = self.vm.host.controls;
        self.set_field(fields::PIN_CONTROLS, controls.pin.into())?;
        self.set_field(fields::CONTROLS, controls.primary.into())?;
        if controls.primary & primary::SECONDARY != 0 {
            self.set_field(fields::SECONDARY_CONTROLS, controls.secondary.into())?;
        }
        self.set_field(fields::EXIT_CONTROLS, controls.exit.into())?;
        self.set_field(fields::ENTRY_CONTROLS, controls.entry.into())?;
        self.set_field(fields::EXCEPTIONS, 0)?;
        self.set_field(fields::CR0_MASK, CR0_KEPT)?;
        self.set_field(fields::CR4_MASK, VMXE)?;
        for msr in msr::NATIVE {
            self.vm.api.enable_native_msr(self.id, msr).map_err(failed("giving an MSR to the guest"))?;
        }
        self.set_tsc_offset()?;
        // x87 alone: what a processor has after reset.
        self.set_reg(reg::XCR0, 1)
    }

    pub(super) fn set_tsc_offset(&self) -> Result<(), Error> {
        self.set_field(fields::TSC_OFFSET, self.vm.tsc_offset.load(Ordering::Acquire))
    }

    fn set_segment(
        &self,
        index: u32,
        selector: u16,
        base: u64,
        limit: u32,
        rights: u32,
    ) -> Result<(), Error> {
        self.set_field(fields::SELECTOR + 2 * index, selector.into())?;
        self.set_field(fields::BASE + 2 * index, base)?;
        self.set_field(fields::LIMIT + 2 * index, limit.into())?;
        self.set_field(fields::RIGHTS + 2 * index, rights.into())
    }

    /// CR0 as the guest reads it.
    pub(super) fn cr0(&self) -> Result<u64, Error> {
        Ok(self.field(fields::CR0)? & !CR0_KEPT | self.field(fields::CR0_SHADOW)? & CR0_KEPT)
    }

    /// Sets CR0 as the guest meant it, and enters or leaves long mode with it (SDM vol. 3, 9.8.5).
    pub(super) fn set_cr0(&self, value: u64) -> Result<(), Error> {
        let (extended, controls) = (self.field(fields::EFER)?, self.field(fields::ENTRY_CONTROLS)?);
        let long = value & cr0::PG != 0 && extended & LME != 0;
        let bit = u64::from(entry::LONG);
        self.set_field(fields::EFER, if long { extended | efer::LMA } else { extended & !efer::LMA })?;
        self.set_field(fields::ENTRY_CONTROLS, if long { controls | bit } else { controls & !bit })?;
        if long {
            // The task register holds a busy 64-bit segment (SDM vol. 3, 26.3.1.2).
            let rights = self.field(fields::RIGHTS + 2 * fields::TR)?;
            self.set_field(fields::RIGHTS + 2 * fields::TR, rights & !0xf | 0xb)?;
        }
        self.set_field(fields::CR0_SHADOW, value)?;
        self.set_field(fields::CR0, value & !(CD | NW) | NE | ET)?;
        if value & cr0::PG != 0 && !long && self.field(fields::CR4)? & cr4::PAE != 0 {
            let table = self.field(fields::CR3)? & 0xffff_ffe0;
            let mut bytes = [0; 32];
            // Where there is no RAM the entries are not present, as for the processor that reads all ones or zeroes.
            let _ = crate::hv::x86::Physical::read_physical(&mut self.vm.ram(), table, &mut bytes);
            for (index, eight) in (0..).zip(bytes.as_chunks::<8>().0) {
                self.set_field(fields::PDPTE + 2 * index, u64::from_le_bytes(*eight))?;
            }
        }
        self.vm.api.invalidate_tlb(self.id).map_err(failed("dropping translations"))
    }

    pub(super) fn set_cr4(&self, value: u64) -> Result<(), Error> {
        self.set_field(fields::CR4_SHADOW, value)?;
        self.set_field(fields::CR4, value | VMXE)?;
        self.vm.api.invalidate_tlb(self.id).map_err(failed("dropping translations"))
    }

    /// Registers that every first state has in common; control registers come after.
    fn clear(&mut self, rip: u64) -> Result<(), Error> {
        self.pending = None;
        self.halted = false;
        for name in reg::GENERAL {
            self.set_reg(name, 0)?;
        }
        self.set_reg(reg::RIP, rip)?;
        self.set_reg(reg::RFLAGS, FLAGS)?;
        for field in [fields::INTERRUPTIBILITY, fields::ACTIVITY, fields::PENDING_DEBUG, fields::ENTRY_EVENT]
        {
            self.set_field(field, 0)?;
        }
        self.set_field(fields::IDTR_BASE, 0)
    }

    /// What SIPI makes of it (SDM vol. 3, 9.1.4 and 8.4.4): real mode at the beginning of a page.
    fn start(&mut self, page: u8) -> Result<(), Error> {
        /// Present, S, accessed: data to write, code to read.
        const DATA: u32 = 0x93;
        const CODE: u32 = 0x9b;
        self.clear(0)?;
        self.set_field(fields::EFER, 0)?;
        self.set_cr4(0)?;
        self.set_field(fields::CR3, 0)?;
        self.set_cr0(CD | NW | ET)?;
        for segment in [fields::ES, fields::SS, fields::DS, fields::FS, fields::GS] {
            self.set_segment(segment, 0, 0, 0xffff, DATA)?;
        }
        self.set_segment(fields::CS, u16::from(page) << 8, u64::from(page) << 12, 0xffff, CODE)?;
        self.set_segment(fields::LDTR, 0, 0, 0xffff, 0x82)?;
        self.set_segment(fields::TR, 0, 0, 0xffff, 0x8b)?;
        self.set_field(fields::GDTR_BASE, 0)?;
        self.set_field(fields::GDTR_LIMIT, 0xffff)?;
        self.set_field(fields::IDTR_LIMIT, 0xffff)
    }

    /// Calls `enter`, which kicks and nudges end; `None`: there is one already.
    fn enter<T>(&self, enter: impl FnOnce() -> T) -> Option<T> {
        self.seat.kicks.enter(|| self.seat.nudges.enter(enter)).flatten()
    }

    /// Looks at INIT, SIPI and what a halted vCPU waits for. `Ok(None)`: it runs.
    fn wait(&mut self) -> Result<Option<Wait>, Error> {
        let now = self.vm.api.now();
        let (init, waits, startup) = self.vm.with_lapic(self.index, |chip| {
            chip.tick(now);
            let init = chip.take_init();
            (init, chip.waits(), if chip.waits() { chip.take_startup() } else { None })
        });
        if init && self.index == 0 {
            // The first one would begin at the firmware, which is not there.
            return Ok(Some(Wait::Reset));
        }
        if let Some(page) = startup {
            self.start(page)?;
        } else if waits {
            return Ok(Some(Wait::Park(None)));
        }
        if self.halted && self.pending.is_none() {
            let enabled = self.reg(reg::RFLAGS)? & INTERRUPTS != 0;
            let (wakes, deadline) = self.vm.with_lapic(self.index, |chip| {
                (chip.has_nmi() || enabled && chip.pending().is_some(), chip.deadline())
            });
            if !wakes {
                return Ok(Some(Wait::Park(
                    deadline.map(|due| Duration::from_nanos(due.saturating_sub(now))),
                )));
            }
        }
        self.halted = false;
        Ok(None)
    }

    /// Gives the vCPU the interrupt that it can take now, or asks for an exit when it can. Returns the timer's deadline.
    fn show_interrupts(&mut self) -> Result<u64, Error> {
        let (nmi, mut vector, deadline) =
            self.vm.with_lapic(self.index, |chip| (chip.has_nmi(), chip.pending(), chip.deadline()));
        let mut nmi_waits = nmi;
        if self.pending.is_none() && (nmi || vector.is_some()) {
            let held = self.field(fields::INTERRUPTIBILITY)?;
            let shadow = held & (blocked::STI | blocked::MOV_SS) != 0;
            if nmi && !shadow && held & blocked::NMI == 0 {
                self.vm.with_lapic(self.index, |chip| chip.take_nmi());
                self.pending = Some(Event::nmi());
                nmi_waits = false;
            } else if let Some(taken) = vector
                && !shadow
                && self.reg(reg::RFLAGS)? & INTERRUPTS != 0
            {
                vector = self.vm.with_lapic(self.index, |chip| {
                    chip.accept(taken);
                    chip.pending()
                });
                self.pending = Some(Event::interrupt(taken));
            }
        }
        let windows = if vector.is_some() { primary::INTERRUPT_WINDOW } else { 0 }
            | if nmi_waits { primary::NMI_WINDOW } else { 0 };
        let controls = self.vm.host.controls.primary | windows;
        if controls != self.primary {
            self.set_field(fields::CONTROLS, controls.into())?;
            self.primary = controls;
        }
        if let Some(next) = self.pending {
            if next.is_nmi() {
                let held = self.field(fields::INTERRUPTIBILITY)?;
                self.set_field(fields::INTERRUPTIBILITY, held & !blocked::NMI)?;
            }
            self.set_field(fields::ENTRY_ERROR, next.error.into())?;
            self.set_field(fields::ENTRY_LENGTH, next.length.into())?;
            // In real mode no exception has an error code (SDM vol. 3, 26.2.1.3).
            let real = next.info & event::ERROR != 0 && self.field(fields::CR0)? & cr0::PE == 0;
            let info = if real { next.info & !event::ERROR } else { next.info };
            self.set_field(fields::ENTRY_EVENT, info.into())?;
        }
        Ok(deadline.unwrap_or(FOREVER))
    }

    /// What became of the event of the last entry. The processor clears its valid bit when it delivers it; what was cut short
    /// by the exit is to be delivered again.
    fn settle(&mut self) -> Result<(), Error> {
        if self.pending.is_some() && self.field(fields::ENTRY_EVENT)? as u32 & event::VALID != 0 {
            self.set_field(fields::ENTRY_EVENT, 0)?;
            return Ok(());
        }
        let info = self.field(fields::VECTORING_EVENT)? as u32;
        self.pending = None;
        if info & event::VALID != 0 {
            self.pending = Some(Event {
                info: info & event::KNOWN,
                error: if info & event::ERROR != 0 { self.field(fields::VECTORING_ERROR)? as u32 } else { 0 },
                length: self.field(fields::INSTRUCTION_LENGTH)? as u32 & 0xf,
            });
        }
        Ok(())
    }
}

/// Why a vCPU does not run.
enum Wait {
    /// It waits, at most this long.
    Park(Option<Duration>),
    /// It was reset.
    Reset,
}

impl Vcpu for Bound {
    fn set_entry(&mut self, entry: &Entry) -> Result<(), Error> {
        /// Type, S, P, G.
        const FLAT: u32 = 1 << 4 | 1 << 7 | 1 << 15;
        let Entry::X86(entry) = entry else {
            return Err(Error::Unsupported {
                what: "an arm64 entry",
                why: "this vCPU is x86_64; take a kernel for x86_64".to_owned(),
            });
        };
        let table = match entry.mode {
            X86Mode::Protected => None,
            X86Mode::Long { page_table } => Some(page_table),
        };
        self.clear(entry.rip)?;
        for (name, value) in [(8, entry.rsp), (reg::RBX, entry.rbx), (6, entry.rsi)] {
            self.set_reg(name, value)?;
        }
        let code = FLAT | 0xb | if table.is_some() { 1 << 13 } else { 1 << 14 };
        self.set_segment(fields::CS, X86Entry::CODE, 0, u32::MAX, code)?;
        for segment in [fields::ES, fields::SS, fields::DS, fields::FS, fields::GS] {
            self.set_segment(segment, X86Entry::DATA, 0, u32::MAX, FLAT | 0x3 | 1 << 14)?;
        }
        self.set_segment(fields::TR, X86Entry::TASK, 0, 0x67, 0xb | 1 << 7)?;
        self.set_segment(fields::LDTR, 0, 0, 0, UNUSABLE)?;
        self.set_field(fields::GDTR_BASE, entry.gdt)?;
        let limit = u16::try_from(size_of_val(&X86Entry::gdt(entry.mode)) - 1).unwrap_or(0);
        self.set_field(fields::GDTR_LIMIT, limit.into())?;
        self.set_field(fields::IDTR_LIMIT, 0)?;
        self.set_field(fields::EFER, if table.is_some() { LME } else { 0 })?;
        self.set_field(fields::CR3, table.unwrap_or(0))?;
        self.set_cr4(if table.is_some() { cr4::PAE } else { 0 })?;
        self.set_cr0(cr0::PE | ET | if table.is_some() { cr0::PG } else { 0 })
    }

    fn run(&mut self, io: &mut dyn GuestIo) -> Result<Exit, Error> {
        loop {
            if self.seat.kicks.take() {
                return Ok(Exit::Kicked);
            }
            self.seat.nudges.take();
            match self.wait()? {
                Some(Wait::Reset) => return Ok(Exit::Reset),
                Some(Wait::Park(limit)) => {
                    self.enter(|| self.seat.park(limit));
                    continue;
                }
                None => {}
            }
            let deadline = self.show_interrupts()?;
            let Some(entered) = self.enter(|| self.vm.api.run(self.id, deadline)) else { continue };
            entered.map_err(failed("running a vCPU"))?;
            self.settle()?;
            if let Some(exit) = self.step(io)? {
                return Ok(exit);
            }
        }
    }

    fn program_counter(&mut self) -> Result<u64, Error> {
        self.reg(reg::RIP)
    }

    fn save(&mut self) -> Result<VcpuState, Error> {
        state::save_vcpu(self)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Error> {
        state::restore_vcpu(self, state)
    }
}

//! The platform's registers as the decoder's, and the stopped vCPU that it works on.

use std::io;

use super::api::{Api, Partition, name};
use crate::hv::x86::ram::Ram;
use crate::hv::x86::{self, Event, OutOfRam, Physical, Regs, Segment, Sregs, Table};

/// General registers, RIP and RFLAGS in the order of their names.
pub(super) const GENERAL: [u32; 18] =
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, name::RIP, name::RFLAGS];

/// What [`Sregs`] is made of.
const SYSTEM: [u32; 12] = [
    name::CS,
    name::SS,
    name::DS,
    name::ES,
    name::FS,
    name::GS,
    name::GDTR,
    name::LDTR,
    name::CR0,
    name::CR3,
    name::CR4,
    name::EFER,
];

/// A segment as the platform packs it: base 64 bits, limit 32, selector 16, attributes 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) base: u64,
    pub(super) limit: u32,
    pub(super) selector: u16,
    /// Type 4 bits, S, DPL 2, P, 4 reserved, AVL, L, D, G.
    pub(super) attributes: u16,
}

impl Packed {
    pub(super) fn value(self) -> u128 {
        u128::from(self.base)
            | u128::from(self.limit) << 64
            | u128::from(self.selector) << 96
            | u128::from(self.attributes) << 112
    }

    pub(super) fn from_value(value: u128) -> Self {
        Self {
            base: value as u64,
            limit: (value >> 64) as u32,
            selector: (value >> 96) as u16,
            attributes: (value >> 112) as u16,
        }
    }
}

/// A descriptor table as the platform packs it: 48 bits of padding, limit 16, base 64.
pub(super) fn packed_table(base: u64, limit: u16) -> u128 {
    u128::from(base) << 64 | u128::from(limit) << 48
}

fn table(value: u128) -> Table {
    Table { base: (value >> 64) as u64, limit: u32::from((value >> 48) as u16) }
}

fn segment(value: u128) -> Segment {
    let packed = Packed::from_value(value);
    let bit = |bit: u16| packed.attributes >> bit & 1 != 0;
    Segment {
        base: packed.base,
        limit: packed.limit,
        kind: (packed.attributes & 0xf) as u8,
        long: bit(13),
        big: bit(14),
        unusable: !bit(7),
    }
}

/// `WHV_X64_PENDING_INTERRUPTION_REGISTER` for an exception: pending, type 3, error code, vector.
pub(super) fn pending_exception(vector: u8, error_code: Option<u32>) -> u128 {
    let deliver = u128::from(error_code.is_some());
    1 | 3 << 1 | deliver << 4 | u128::from(vector) << 16 | u128::from(error_code.unwrap_or(0)) << 32
}

/// A vCPU that is not running.
pub(super) struct Stopped<'a> {
    pub(super) api: &'a dyn Api,
    pub(super) partition: Partition,
    pub(super) index: u32,
    pub(super) ram: Ram<'a>,
}

impl Stopped<'_> {
    pub(super) fn get<const N: usize>(&self, names: &[u32; N]) -> io::Result<[u128; N]> {
        let mut values = [0; N];
        self.api.registers(self.partition, self.index, names, &mut values)?;
        Ok(values)
    }

    pub(super) fn set(&self, values: &[(u32, u128)]) -> io::Result<()> {
        Ok(self.api.set_registers(self.partition, self.index, values)?)
    }
}

impl Physical for Stopped<'_> {
    fn read_physical(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), OutOfRam> {
        self.ram.read_physical(gpa, buf)
    }

    fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), OutOfRam> {
        self.ram.write_physical(gpa, data)
    }

    fn compare_exchange_8(&mut self, gpa: u64, current: u64, new: u64) -> Result<u64, OutOfRam> {
        self.ram.compare_exchange_8(gpa, current, new)
    }
}

impl x86::Registers for Stopped<'_> {
    fn regs(&mut self) -> io::Result<Regs> {
        let [gpr @ .., rip, rflags] = self.get(&GENERAL)?;
        Ok(Regs { gpr: gpr.map(|value: u128| value as u64), rip: rip as u64, rflags: rflags as u64 })
    }

    fn set_regs(&mut self, regs: &Regs) -> io::Result<()> {
        let values = regs.gpr.into_iter().chain([regs.rip, regs.rflags]);
        let pairs: Vec<_> = GENERAL.into_iter().zip(values.map(u128::from)).collect();
        self.set(&pairs)
    }

    fn sregs(&mut self) -> io::Result<Sregs> {
        let [cs, ss, ds, es, fs, gs, gdt, ldt, cr0, cr3, cr4, efer] = self.get(&SYSTEM)?;
        let ldtr = segment(ldt);
        Ok(Sregs {
            cs: segment(cs),
            ss: segment(ss),
            ds: segment(ds),
            es: segment(es),
            fs: segment(fs),
            gs: segment(gs),
            gdt: table(gdt),
            ldt: Table { base: ldtr.base, limit: if ldtr.unusable { 0 } else { ldtr.limit } },
            cr0: cr0 as u64,
            cr3: cr3 as u64,
            cr4: cr4 as u64,
            efer: efer as u64,
            cpl: (Packed::from_value(ss).attributes >> 5 & 3) as u8,
            // The processor has walked the tables already and found no reserved bit set.
            physical_bits: 52,
        })
    }

    fn inject(&mut self, event: &Event) -> io::Result<()> {
        match *event {
            Event::Exception { vector, error_code } => {
                self.set(&[(name::PENDING_INTERRUPTION, pending_exception(vector, error_code))])
            }
            Event::PageFault { address, error_code } => self.set(&[
                (name::CR2, address.into()),
                (name::PENDING_INTERRUPTION, pending_exception(x86::exception::PF, Some(error_code))),
            ]),
            Event::Interrupt { vector } => {
                Err(io::Error::other(format!("an access does not end in software interrupt {vector}")))
            }
        }
    }
}

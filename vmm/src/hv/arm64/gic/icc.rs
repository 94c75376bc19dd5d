//! The CPU interfaces: ICC_* system registers (IHI 0069, 12.2).

use serde::{Deserialize, Serialize};

use super::super::esr::Register;
use super::{Gic, IDLE, PRIORITY, SPURIOUS};

/// ICC_CTLR_EL1.PRIbits: 5 bits of priority.
const PRIORITY_BITS: u64 = 4 << 8;
/// ICC_CTLR_EL1.CBPR: group 1 uses the binary point of group 0.
const COMMON_POINT: u64 = 1;
/// ICC_CTLR_EL1.EOImode: an end drops the priority only.
const SPLIT_END: u64 = 1 << 1;
/// ICC_SRE_EL1: system registers on, no bypass; fixed.
const SRE: u64 = 7;
/// The least binary point of group 0; that of group 1 is one more.
const LEAST_POINT: u8 = 2;
/// ICC_SGI1R_EL1.IRM: to all but the sender.
const TO_OTHERS: u64 = 1 << 40;
/// ICC_SGI1R_EL1: Aff1, Aff2 and Aff3, which are 0 for all of ours.
const AFFINITIES: u64 = 0x00ff_00ff_00ff_0000;

/// A CPU interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Interface {
    mask: u8,
    points: [u8; 2],
    enabled: [bool; 2],
    /// CBPR, EOImode.
    control: u64,
    /// AP0R0, AP1R0: a bit for each priority that is active.
    active: [u32; 2],
}

impl Default for Interface {
    fn default() -> Self {
        Self {
            mask: 0,
            points: [LEAST_POINT, LEAST_POINT + 1],
            enabled: [false; 2],
            control: 0,
            active: [0; 2],
        }
    }
}

impl Interface {
    /// Whether saved state is one that an interface can be in.
    pub(super) fn is_valid(&self) -> bool {
        let [first, second] = self.points;
        self.mask & !PRIORITY == 0
            && (LEAST_POINT..8).contains(&first)
            && (LEAST_POINT + 1..8).contains(&second)
            && self.control & !(COMMON_POINT | SPLIT_END) == 0
    }

    /// The bits of a priority that decide about preemption.
    fn group_mask(&self, group1: bool) -> u8 {
        let [first, second] = self.points;
        let shift = if group1 && self.control & COMMON_POINT == 0 { second } else { first + 1 };
        (0xff_u16 << shift.min(8)) as u8
    }

    /// The highest priority that is active.
    fn running(&self) -> u8 {
        let [first, second] = self.active;
        match (first | second).trailing_zeros() {
            32 => IDLE,
            bit => (bit << 3) as u8,
        }
    }

    pub(super) fn lets_through(&self, priority: u8, group1: bool) -> bool {
        self.enabled.get(usize::from(group1)) == Some(&true)
            && priority < self.mask
            && priority & self.group_mask(group1) < self.running()
    }
}

impl Gic {
    /// A read of a system register by a vCPU; `None`: it is not one of these, or cannot be read.
    pub fn read_register(&mut self, cpu: u8, register: Register) -> Option<u64> {
        let cpu = usize::from(cpu);
        let icc = &self.cpus.get(cpu)?.icc;
        let [point0, point1] = icc.points;
        let [active0, active1] = icc.active;
        let [enabled0, enabled1] = icc.enabled;
        Some(match key(register)? {
            (4, 6, 0) => icc.mask.into(),
            (12, 8, 0) => self.acknowledge(cpu, false).into(),
            (12, 8, 2) => self.pending(cpu, false).into(),
            (12, 8, 3) => point0.into(),
            (12, 8, 4) => active0.into(),
            (12, 9, 0) => active1.into(),
            // Further active priorities: 5 bits need one register.
            (12, 8, 5..=7) | (12, 9, 1..=3) => 0,
            (12, 11, 3) => icc.running().into(),
            (12, 12, 0) => self.acknowledge(cpu, true).into(),
            (12, 12, 2) => self.pending(cpu, true).into(),
            (12, 12, 3) if icc.control & COMMON_POINT != 0 => (point0 + 1).min(7).into(),
            (12, 12, 3) => point1.into(),
            (12, 12, 4) => icc.control | PRIORITY_BITS,
            (12, 12, 5) => SRE,
            (12, 12, 6) => enabled0.into(),
            (12, 12, 7) => enabled1.into(),
            _ => return None,
        })
    }

    /// A write of a system register by a vCPU; false: it is not one of these, or cannot be written.
    pub fn write_register(&mut self, cpu: u8, register: Register, value: u64) -> bool {
        let sender = usize::from(cpu);
        let Some(icc) = self.cpus.get_mut(sender).map(|cpu| &mut cpu.icc) else { return false };
        let intid = (value & 0xff_ffff) as u32;
        let [point0, point1] = &mut icc.points;
        let [active0, active1] = &mut icc.active;
        let [enabled0, enabled1] = &mut icc.enabled;
        match key(register) {
            Some((4, 6, 0)) => icc.mask = value as u8 & PRIORITY,
            Some((12, 8, 1)) => self.end(sender, false, intid),
            Some((12, 8, 3)) => *point0 = (value as u8 & 7).max(LEAST_POINT),
            Some((12, 8, 4)) => *active0 = value as u32,
            Some((12, 9, 0)) => *active1 = value as u32,
            Some((12, 8, 5..=7) | (12, 9, 1..=3) | (12, 12, 5)) => {}
            Some((12, 11, 1)) => self.deactivate(sender, intid),
            Some((12, 11, 5)) => self.send(sender, value, true),
            Some((12, 11, 7)) => self.send(sender, value, false),
            // To the other security state, of which there is none.
            Some((12, 11, 6)) => {}
            Some((12, 12, 1)) => self.end(sender, true, intid),
            Some((12, 12, 3)) if icc.control & COMMON_POINT == 0 => {
                *point1 = (value as u8 & 7).max(LEAST_POINT + 1);
            }
            Some((12, 12, 3)) => {}
            Some((12, 12, 4)) => icc.control = value & (COMMON_POINT | SPLIT_END),
            Some((12, 12, 6)) => *enabled0 = value & 1 != 0,
            Some((12, 12, 7)) => *enabled1 = value & 1 != 0,
            _ => return false,
        }
        true
    }

    fn acknowledge(&mut self, cpu: usize, group1: bool) -> u32 {
        let Some(next) = self.deliverable(cpu).filter(|next| next.group1 == group1) else { return SPURIOUS };
        if let Some(source) = self.source(cpu, next.intid) {
            source.active = true;
            source.latched = false;
        }
        if let Some(icc) = self.cpus.get_mut(cpu).map(|cpu| &mut cpu.icc) {
            let bit = (next.priority & icc.group_mask(group1)) >> 3;
            if let Some(active) = icc.active.get_mut(usize::from(group1)) {
                *active |= 1 << bit;
            }
        }
        next.intid
    }

    fn pending(&self, cpu: usize, group1: bool) -> u32 {
        self.highest(cpu).filter(|next| next.group1 == group1).map_or(SPURIOUS, |next| next.intid)
    }

    /// ICC_EOIR: drops the running priority, and ends the interrupt unless DIR does.
    fn end(&mut self, cpu: usize, group1: bool, intid: u32) {
        let Some(icc) = self.cpus.get_mut(cpu).map(|cpu| &mut cpu.icc) else { return };
        if (1020..1024).contains(&intid) {
            return;
        }
        if let Some(active) = icc.active.get_mut(usize::from(group1)) {
            *active &= active.wrapping_sub(1);
        }
        if icc.control & SPLIT_END == 0 {
            self.deactivate(cpu, intid);
        }
    }

    fn deactivate(&mut self, cpu: usize, intid: u32) {
        if let Some(source) = self.source(cpu, intid) {
            source.active = false;
        }
    }

    /// ICC_SGI1R, ICC_SGI0R: an interrupt for other vCPUs, of the group that each has it in.
    fn send(&mut self, sender: usize, value: u64, group1: bool) {
        let intid = (value >> 24 & 0xf) as usize;
        let first = (value >> 44 & 0xf) as usize * 16;
        for (index, cpu) in self.cpus.iter_mut().enumerate() {
            let named = index.checked_sub(first).is_some_and(|bit| bit < 16 && value >> bit & 1 != 0);
            let to = if value & TO_OTHERS != 0 { index != sender } else { named && value & AFFINITIES == 0 };
            if let Some(source) = cpu.private.get_mut(intid).filter(|source| to && source.group1 == group1) {
                source.latched = true;
            }
        }
    }
}

/// CRn, CRm and op2 of a register with op0 3 and op1 0, where all of these are.
fn key(register: Register) -> Option<(u8, u8, u8)> {
    (register.op0 == 3 && register.op1 == 0).then_some((register.crn, register.crm, register.op2))
}

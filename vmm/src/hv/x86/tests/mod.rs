//! Instruction by instruction, on a vCPU of plain memory.

mod access;
mod bits;
mod control;
mod fuzz;
mod operand;
mod paging;
mod vector;
mod xrstor;
mod xsave;

use super::testing::FakeCpu;
use super::{AssistError, Event, Outcome, assist, exception};

/// Where the tests keep their data; RBX points at it.
const DATA: u64 = 0x2_0000;

/// A 64-bit kernel whose RBX points at [`DATA`].
fn kernel() -> FakeCpu {
    let mut cpu = FakeCpu::mapped();
    cpu.set(3, DATA);
    cpu
}

impl FakeCpu {
    fn set(&mut self, register: usize, value: u64) {
        self.regs.gpr[register] = value;
    }

    fn get(&self, register: usize) -> u64 {
        self.regs.gpr[register]
    }
}

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;

/// Carries the instruction out, and demands that it is done and RIP behind it.
#[track_caller]
fn done(cpu: &mut FakeCpu, code: &[u8]) {
    let rip = cpu.regs.rip;
    let outcome = assist(cpu, code).unwrap();
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(cpu.regs.rip, rip + code.len() as u64);
    assert_eq!(cpu.injected, []);
}

/// Demands that the instruction ends in this event, with the registers untouched.
#[track_caller]
fn faults(cpu: &mut FakeCpu, code: &[u8], event: Event) {
    let (regs, xstate) = (cpu.regs, cpu.xstate.clone());
    let outcome = assist(cpu, code).unwrap();
    assert_eq!(outcome, Outcome::Injected(event));
    assert_eq!(cpu.injected, [event]);
    assert_eq!(cpu.regs, regs);
    assert!(cpu.xstate == xstate, "the extended state changed");
}

fn undefined() -> Event {
    Event::Exception { vector: exception::UD, error_code: None }
}

fn not_available() -> Event {
    Event::Exception { vector: exception::NM, error_code: None }
}

fn protection() -> Event {
    Event::Exception { vector: exception::GP, error_code: Some(0) }
}

/// Demands that nobody knows the instruction.
#[track_caller]
fn unsupported(cpu: &mut FakeCpu, code: &[u8]) -> String {
    let regs = cpu.regs;
    let error = assist(cpu, code).unwrap_err();
    assert!(matches!(error, AssistError::Unsupported { .. }), "{error:?}");
    assert_eq!(cpu.regs, regs);
    error.to_string()
}

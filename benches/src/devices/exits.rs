//! Exits from a guest of a few instructions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use servin_devices::event::Event;
use servin_devices::mem::Mem;
use servin_vmm::hv::{Doorbell, Entry, Exit, GuestIo, Hypervisor, Kick, Plan, X86Entry, X86Mode};
use servin_vmm::{Error, memory};
use vm_memory::{Bytes, GuestAddress};

use super::Rate;

const CODE: u64 = 0x10_0000;
const GDT: u64 = 0x8000;
const TABLES: u64 = 0x1_0000;
/// Not RAM: below 4 GiB, above all memory of this machine.
const MMIO: u32 = 0xd000_0000;
/// A write to this port ends the program.
const DONE: u16 = 0xf4;

/// A port write, a memory write and an offloaded doorbell, in exits a second.
///
/// # Errors
/// If the hypervisor refuses the machine.
pub fn exits(hypervisor: &dyn Hypervisor, time: Duration) -> Result<Vec<Rate>, Error> {
    // The access in the loop's middle; EDI is the address, DX the port.
    let (port, store) = (&[0xee_u8][..], &[0x89_u8, 0x07][..]);
    let mut rates = Vec::new();
    for (what, access, offload) in [
        ("exit: port write to the monitor and back", port, false),
        ("exit: memory write to the monitor and back", store, false),
        ("exit: doorbell that the hypervisor answers", store, true),
    ] {
        if offload && !hypervisor.caps().doorbells {
            continue;
        }
        // As many as take about the wanted time, from a first try of a thousand.
        let first = run(hypervisor, access, 1000, offload)?;
        let count = (1000.0 * time.as_secs_f64() / first.as_secs_f64().max(1e-6)).clamp(1000.0, 5e7) as u32;
        let elapsed = run(hypervisor, access, count, offload)?;
        rates.push(Rate {
            what: what.into(),
            per_second: f64::from(count) / elapsed.as_secs_f64(),
            bytes: 0,
        });
    }
    Ok(rates)
}

/// How long the guest's loop of `count` accesses takes.
fn run(hypervisor: &dyn Hypervisor, access: &[u8], count: u32, offload: bool) -> Result<Duration, Error> {
    let mem: Mem = memory::anonymous(32)?;
    let doing = |_| Error::Config("the program does not fit".into());
    let mode = X86Mode::Long { page_table: TABLES };
    X86Entry::write_gdt(&mem, GDT, mode).map_err(doing)?;
    X86Entry::write_identity_map(&mem, TABLES, 4).map_err(doing)?;
    // mov edi, MMIO; mov dx, 0x500; mov ecx, count; again: ACCESS; dec ecx; jnz again; mov dx, DONE; out dx, al; hlt
    let mut code = vec![0xbf];
    code.extend(MMIO.to_le_bytes());
    code.extend([0x66, 0xba, 0x00, 0x05, 0xb9]);
    code.extend(count.to_le_bytes());
    code.extend(access);
    code.extend([0xff, 0xc9, 0x75, 0_u8.wrapping_sub(access.len() as u8 + 4)]);
    code.extend([0x66, 0xba]);
    code.extend(DONE.to_le_bytes());
    code.extend([0xee, 0xf4, 0xeb, 0xfd]);
    mem.write_slice(&code, GuestAddress(CODE)).map_err(doing)?;

    let machine = hypervisor.create(&Plan::new(Arc::clone(&mem), 1, 24))?;
    let event = Event::new().map_err(|source| Error::Host { doing: "making an event", source })?;
    let doorbell = Doorbell { addr: MMIO.into(), len: 4, value: 0 };
    let offloaded = if offload { machine.vm.offload(doorbell, &event) } else { None };
    if offload && offloaded.is_none() {
        return Err(Error::Config("the hypervisor did not take the doorbell".into()));
    }
    let Some(slot) = machine.slots.into_iter().next() else {
        return Err(Error::Config("a machine without a vCPU".into()));
    };
    let mut io = Io { kick: slot.kick(), done: false };
    let mut vcpu = slot.bind()?;
    vcpu.set_entry(&Entry::X86(X86Entry { mode, rip: CODE, rsp: 0, rbx: 0, rsi: 0, gdt: GDT }))?;
    let start = Instant::now();
    while !io.done {
        match vcpu.run(&mut io)? {
            Exit::Kicked => {}
            other => return Err(Error::Config(format!("the guest ended by {other:?}"))),
        }
    }
    Ok(start.elapsed())
}

struct Io {
    kick: Arc<dyn Kick>,
    done: bool,
}

impl GuestIo for Io {
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn mmio_write(&mut self, _: u64, _: &[u8]) {}

    fn pio_in(&mut self, _: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_out(&mut self, port: u16, _: &[u8]) {
        if port == DONE {
            self.done = true;
            self.kick.kick();
        }
    }
}

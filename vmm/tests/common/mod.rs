//! What the tests of the embedding API share.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use servin_vmm::hv::{self, Hypervisor};

/// Longer than anything here takes on the slowest host.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// This host's hypervisor, or a line that says there is none.
pub(crate) fn host() -> Option<Arc<dyn Hypervisor>> {
    hv::open().inspect_err(|error| println!("skipped: {error}")).ok()
}

/// An ELF kernel of one segment at 2 MiB: `code`, entered at its first byte by the 64-bit protocol, and by PVH at `pvh`
/// bytes into it where there is such an entry.
pub(crate) fn kernel(code: &[u8], pvh: Option<u32>) -> tempfile::NamedTempFile {
    const BASE: u64 = 0x20_0000;
    let (code_at, note_at) = (0x1000_u64, 0x200_u64);
    let mut elf = vec![0; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(20, &1_u32.to_le_bytes());
    put(24, &BASE.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &(1 + u16::from(pvh.is_some())).to_le_bytes());
    let mut segment = |index: usize, kind: u32, at: u64, addr: u64, len: u64| {
        let header = 64 + 56 * index;
        put(header, &kind.to_le_bytes());
        for (field, value) in [(8, at), (16, addr), (24, addr), (32, len), (40, len)] {
            put(header + field, &value.to_le_bytes());
        }
    };
    segment(0, 1, code_at, BASE, code.len() as u64);
    if let Some(offset) = pvh {
        segment(1, 4, note_at, 0, 20);
        let entry = (BASE as u32 + offset).to_le_bytes();
        let note = [&4_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), &18_u32.to_le_bytes(), b"Xen\0", &entry];
        elf[note_at as usize..][..20].copy_from_slice(&note.concat());
    }
    elf.extend_from_slice(code);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    file
}

/// Powers off: `mov dx, 0x600; mov al, 1; out dx, al; jmp $`. The same bytes in 64-bit and 32-bit mode but for the first
/// instruction's prefix, which both know.
pub(crate) const POWER_OFF: &[u8] = b"\x66\xba\x00\x06\xb0\x01\xee\xeb\xfe";

/// Spins for ever.
pub(crate) const SPIN: &[u8] = b"\xeb\xfe";

/// Output that can be waited for.
#[derive(Clone, Default)]
pub(crate) struct Output(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.0.lock().unwrap().extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Output {
    /// Waits until `done` is true of what was written; returns it.
    pub(crate) fn wait(&self, done: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = Instant::now() + LIMIT;
        let mut bytes = self.0.0.lock().unwrap();
        while !done(&bytes) {
            let left = deadline.checked_duration_since(Instant::now()).expect("the output did not come");
            bytes = self.0.1.wait_timeout(bytes, left).unwrap().0;
        }
        bytes.clone()
    }
}

//! What a hostile guest may send, as one function per fuzz target.
//!
//! Each takes any bytes, drives the real device through the test rig (or the real decoder), and panics only where a
//! promise is broken: a device that panics, hangs, reports a host fault or leaves its memory. The corpus is replayed
//! by an ordinary test, so that every input that was ever interesting stays so.

mod devices;
mod guest;

pub use devices::{chain, fs, mmio, net, serial, switch, vsock};
pub use guest::{access, assist, gic, hvf, proto, vmx, whp};
pub use servin_engine::fuzz::{
    archive as image_archive, disk_changes, layers as image_layers, tar as image_tar,
};
pub use servin_vmm::fuzz_changes as memory_changes;

/// A reader of fuzz input that never runs dry in the middle of a value.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    pub(crate) fn u64(&mut self) -> u64 {
        let mut word = [0; 8];
        let bytes = self.bytes(8);
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    }

    pub(crate) fn u32(&mut self) -> u32 {
        let mut word = [0; 4];
        let bytes = self.bytes(4);
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(word)
    }

    pub(crate) fn u16(&mut self) -> u16 {
        let mut word = [0; 2];
        let bytes = self.bytes(2);
        word[..bytes.len()].copy_from_slice(bytes);
        u16::from_le_bytes(word)
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Every file of `corpus/TARGET` through its target.
    fn replay(target: &str, run: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            run(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "no corpus for {target}");
        println!("{target}: {count} inputs");
    }

    macro_rules! replays {
        ($($target:ident)*) => {
            $(#[test]
            fn $target() {
                replay(stringify!($target), super::$target);
            })*
        };
    }

    replays!(chain mmio fs serial net switch vsock proto access assist gic hvf vmx whp);
    replays!(image_archive image_layers image_tar memory_changes disk_changes);
}

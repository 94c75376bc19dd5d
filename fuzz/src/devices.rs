//! Devices behind the rig.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use servin_devices::bus::BusDevice as _;
use servin_devices::event::{Ready, Token};
use servin_devices::serial::Serial;
use servin_devices::state::StateError;
use servin_devices::testing::{CountingLine, Rig};
use servin_devices::virtio::console::{Console, Output};
use servin_devices::virtio::fs::Fs;
use servin_devices::virtio::fs::memfs::MemFs;
use servin_devices::virtio::rng::Rng;
use servin_devices::virtio::{ConfigSpace, Error, Io, VirtioDevice, blk::Blk};
use vm_memory::{Bytes as _, GuestAddress};

use crate::Input;

/// Where the rig puts the descriptor table of queue 0, and its available ring.
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x5000;

/// Reads everything of every chain and writes it back, in pieces.
#[derive(Default)]
struct Echo(ConfigSpace);

impl VirtioDevice for Echo {
    fn id(&self) -> u32 {
        99
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[256]
    }
    fn config(&self) -> ConfigSpace {
        self.0.clone()
    }
    fn start(&mut self, _: u64, _: &mut dyn Io) -> Result<(), Error> {
        Ok(())
    }
    fn on_kick(&mut self, queue: u16, io: &mut dyn Io) -> Result<(), Error> {
        let mem = io.mem();
        while let Some(chain) = io.pop(queue)? {
            let (mut reader, mut writer) = (chain.reader(&mem), chain.writer(&mem));
            let (readable, writable) = (reader.len(), writer.len());
            let mut rest = reader.split_off(readable / 3);
            assert_eq!(reader.len() + rest.len(), readable);
            let mut status = writer.split_off(writable.saturating_sub(1));
            let mut bytes = vec![0; 4096];
            while let done @ 1.. = reader.read(&mut bytes).unwrap() {
                let written = writer.write(&bytes[..done]).unwrap();
                assert!(written <= done);
            }
            rest.skip(7);
            let _ = rest.read_obj::<u64>();
            writer.write_zeroes(100);
            status.write_obj(&1_u8);
            assert!(writer.written() as usize <= writable);
            let written = writer.written();
            io.complete(queue, chain, written)?;
        }
        Ok(())
    }
    fn on_host(&mut self, _: Token, _: Ready, _: &mut dyn Io) -> Result<(), Error> {
        Ok(())
    }
    fn on_config_write(&mut self, _: u64, _: &[u8], _: &mut dyn Io) -> Result<(), Error> {
        Ok(())
    }
    fn stop(&mut self, _: &mut dyn Io) {}
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(Vec::new())
    }
    fn restore(&mut self, _: &[u8]) -> Result<(), StateError> {
        Ok(())
    }
}

/// Descriptor tables and available rings of any content.
pub fn chain(data: &[u8]) {
    let mut input = Input(data);
    let mut rig = Rig::new(Box::new(Echo::default()));
    rig.init(if input.u8() & 1 == 0 { u64::MAX } else { 0 });
    for _ in 0..8 {
        if input.is_empty() {
            break;
        }
        // Descriptors whose addresses lie in RAM more often than not, indirect tables among them.
        for index in 0..u64::from(input.u8() % 16) {
            let near = input.u32();
            let addr = if near & 1 == 0 { u64::from(near) % (64 << 20) } else { input.u64() };
            let mut raw = addr.to_le_bytes().to_vec();
            raw.extend((input.u32() & 0xfffff).to_le_bytes());
            raw.extend([input.u8() & 7, 0, input.u8() % 20, 0]);
            rig.mem().write_slice(&raw, GuestAddress(TABLE + index * 16)).unwrap();
        }
        let heads = u64::from(input.u8() % 8);
        for slot in 0..heads {
            let head = u16::from(input.u8());
            rig.mem().write_obj(head, GuestAddress(AVAILABLE + 4 + slot * 2)).unwrap();
        }
        rig.mem().write_obj(input.u16(), GuestAddress(AVAILABLE + 2)).unwrap();
        rig.notify(0);
        if rig.needs_reset() {
            rig.init(u64::MAX);
        }
    }
}

fn any_device(choice: u8) -> Box<dyn VirtioDevice> {
    match choice % 4 {
        0 => Box::new(Rng::new()),
        1 => Box::new(Console::new(Output::Writer(Box::new(std::io::sink())), None)),
        2 => {
            let file = tempfile::tempfile().unwrap();
            file.set_len(64 * 512).unwrap();
            Box::new(Blk::new(file, 64, choice & 4 != 0, "fuzz"))
        }
        _ => Box::new(Fs::new("fuzz", Box::new(MemFs::new(1 << 20))).unwrap()),
    }
}

/// Any register accesses, in any order, of any device, with rings of any content behind them.
pub fn mmio(data: &[u8]) {
    let mut input = Input(data);
    let mut rig = Rig::new(any_device(input.u8()));
    for _ in 0..400 {
        if input.is_empty() {
            break;
        }
        match input.u8() % 8 {
            0 => drop(rig.read32(u32::from(input.u8()) * 2)),
            1 => rig.write32(u32::from(input.u8()) & !3, u32::from(input.u8())),
            2 => rig.write32(u32::from(input.u8()) & !3, input.u32()),
            3 => {
                let mut bytes = vec![0; usize::from(input.u8() % 9)];
                let _ = rig.transport().read(u64::from(input.u16() % 0x200), &mut bytes);
            }
            4 => {
                let at = u64::from(input.u16() % 0x200);
                let len = usize::from(input.u8() % 9);
                let bytes = input.bytes(len);
                let _ = rig.transport().write(at, bytes);
            }
            5 => {
                let at = u64::from(input.u16());
                let len = usize::from(input.u8());
                let bytes = input.bytes(len);
                rig.mem().write_slice(bytes, GuestAddress(at)).unwrap();
            }
            6 => rig.init(u64::from(input.u32())),
            _ => {
                let queue = u16::from(input.u8() % 3);
                rig.notify(queue);
            }
        }
        rig.run();
    }
    rig.transport().pause();
    if let Ok(saved) = rig.transport().save() {
        let mut copy = Rig::new(any_device(data.first().copied().unwrap_or(0)));
        // The copy has other memory: rings may not fit, but nothing may break.
        let _ = copy.transport().restore(&saved);
    }
}

/// Any FUSE requests to a file system in memory.
pub fn fs(data: &[u8]) {
    let mut input = Input(data);
    let mut rig = Rig::started(Box::new(Fs::new("fuzz", Box::new(MemFs::new(1 << 18))).unwrap()));
    let mut unique = 0_u64;
    let mut request = |opcode: u32, node: u64, args: &[u8], room: usize, lie: u32| {
        let len = (40 + args.len() as u32).wrapping_add(lie);
        let mut header = [len.to_le_bytes(), opcode.to_le_bytes()].concat();
        unique += 1;
        header.extend([unique.to_le_bytes(), node.to_le_bytes(), [0; 8], [0; 8]].concat());
        // Requests that wait for a lock (33) are answered later, or never. Those that give one up (36) name one of the last.
        let interrupt = (opcode == 36).then(|| unique.wrapping_sub(node).to_le_bytes());
        let args = interrupt.as_ref().map_or(args, |name| &name[..]);
        if rig.try_add(1, &[&header, args], &[16, room]).is_some() {
            while let Some(used) = rig.used(1) {
                let told = u32::from_le_bytes(used.data[..4].try_into().unwrap());
                assert!(used.len == 0 || told == used.len, "a reply says {told} bytes of {}", used.len);
            }
        }
        if rig.needs_reset() {
            rig.init(u64::MAX);
        }
    };
    // INIT, so that the rest gets somewhere.
    request(26, 0, &[7, 0, 0, 0, 38, 0, 0, 0, 0, 0, 1, 0, 255, 255, 255, 255], 64, 0);
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let opcode = u32::from(input.u8() % 56);
        let node = u64::from(input.u8() % 12);
        let room = usize::from(input.u16() % 4200);
        let len = usize::from(input.u8());
        let args = input.bytes(len);
        let lie = if len == 255 { input.u32() } else { 0 };
        request(opcode, node, args, room, lie);
    }
}

/// Any accesses to a serial port.
pub fn serial(data: &[u8]) {
    let mut input = Input(data);
    let mut serial = Serial::new(Arc::new(CountingLine::default()), Box::new(std::io::sink()));
    while !input.is_empty() {
        let (what, at) = (input.u8(), u64::from(input.u8()));
        let len = usize::from(what % 9);
        if what & 0x80 == 0 {
            let mut bytes = vec![0; len];
            let _ = serial.read(at, &mut bytes);
        } else {
            let bytes = input.bytes(len);
            let _ = serial.write(at % 10, bytes);
        }
    }
}

/// Any packets to the socket device, with connections from both sides; or any packets to one connection.
pub fn vsock(data: &[u8]) {
    servin_devices::virtio::vsock::testing::fuzz(data);
}

/// Any frames to the network card with its user-mode network.
pub fn net(data: &[u8]) {
    servin_devices::virtio::net::fuzz::fuzz(data);
}

/// Any frames and datagrams to a network card on a network that is shared.
pub fn switch(data: &[u8]) {
    let dir = std::env::temp_dir().join(format!("servin-fuzz-switch-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory for the network");
    servin_devices::virtio::net::switch::fuzz::fuzz(data, &dir);
    std::fs::remove_dir_all(&dir).expect("the directory can be removed");
}

//! The driver side of a virtio device, for tests and fuzz targets: [`Rig`] owns guest RAM, sets rings up through
//! the registers as a driver would, and runs the device inline or on its real thread.
//!
//! Everything here may panic: a test that misuses the rig shall fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::{virtio_config as config, virtio_mmio as reg, virtio_ring as ring};
use vm_memory::{Bytes as _, GuestAddress};

use crate::bus::BusDevice as _;
use crate::irq::IrqLine;
use crate::mem::{GuestRam, Mem, Written};
use crate::virtio::{Activation, Error, MmioTransport, VirtioDevice};

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(20);

/// Guest RAM of a rig: enough for rings and buffers, untouched pages cost nothing.
const RAM: usize = 64 << 20;
/// Buffers are handed out from here up, and from here again when the end is reached.
const BUFFERS: u64 = 1 << 20;

/// An interrupt line that counts its edges.
#[derive(Debug, Default)]
pub struct CountingLine {
    edges: Mutex<u64>,
    raised: Condvar,
}

impl IrqLine for CountingLine {
    fn trigger(&self) -> io::Result<()> {
        *self.edges.lock().unwrap() += 1;
        self.raised.notify_all();
        Ok(())
    }
}

impl CountingLine {
    /// Edges so far.
    pub fn edges(&self) -> u64 {
        *self.edges.lock().unwrap()
    }

    /// Waits until there were at least `count` edges.
    ///
    /// # Panics
    /// When they do not come in time.
    pub fn wait(&self, count: u64) {
        let (edges, timeout) = self
            .raised
            .wait_timeout_while(self.edges.lock().unwrap(), DEADLINE, |edges| *edges < count)
            .unwrap();
        assert!(!timeout.timed_out(), "waited for {count} interrupts, got {}", *edges);
    }
}

/// A chain that the device gave back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Names the chain: what [`Rig::add`] returned.
    pub head: u16,
    /// How many bytes the device says it wrote.
    pub len: u32,
    /// The contents of the writable buffers, one after another, all of their bytes.
    pub data: Vec<u8>,
}

/// One ring as the driver keeps it.
#[derive(Debug)]
struct DriverRing {
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    next_avail: u16,
    next_used: u16,
    free: Vec<u16>,
    /// By head.
    flight: HashMap<u16, Flight>,
}

/// A chain that the device has.
#[derive(Debug)]
struct Flight {
    descriptors: Vec<u16>,
    /// Address and length.
    writable: Vec<(u64, usize)>,
}

/// A driver with its device.
pub struct Rig {
    transport: MmioTransport,
    mem: Mem,
    line: Arc<CountingLine>,
    rings: Vec<DriverRing>,
    next_buffer: u64,
    threaded: bool,
    features: u64,
    /// Host faults that the device's thread reported.
    pub faults: Arc<Mutex<Vec<Error>>>,
}

impl std::fmt::Debug for Rig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rig").field("transport", &self.transport).finish_non_exhaustive()
    }
}

/// A mapping of zeroed memory that costs nothing until it is touched; `tracked`, with a bitmap of its written pages.
#[cfg(unix)]
#[must_use]
pub fn region(size: usize, tracked: bool) -> vm_memory::MmapRegion<Written> {
    let written = Written::default();
    if tracked {
        written.count(size as u64);
    }
    vm_memory::mmap::MmapRegionBuilder::new_with_bitmap(size, written)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .unwrap()
}

/// A mapping of zeroed memory. Written pages are not tracked on Windows.
#[cfg(windows)]
#[must_use]
pub fn region(size: usize, _: bool) -> vm_memory::MmapRegion<Written> {
    vm_memory::MmapRegion::new(size).unwrap()
}

/// 64 MiB of guest RAM at address 0.
#[must_use]
pub fn ram() -> GuestRam {
    small_ram(RAM)
}

/// `size` bytes of guest RAM at address 0.
#[must_use]
pub fn small_ram(size: usize) -> GuestRam {
    let region = vm_memory::GuestRegionMmap::new(region(size, false), GuestAddress(0)).unwrap();
    GuestRam::from_regions(vec![region]).unwrap()
}

impl Rig {
    /// A device that runs inline, its driver not yet initialised.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::build(device, false)
    }

    /// A device that runs on its own thread, as in a VM.
    #[must_use]
    pub fn threaded(device: Box<dyn VirtioDevice>) -> Self {
        Self::build(device, true)
    }

    /// An inline device whose driver accepted all features and is ready.
    #[must_use]
    pub fn started(device: Box<dyn VirtioDevice>) -> Self {
        let mut rig = Self::new(device);
        rig.init(u64::MAX);
        rig
    }

    fn build(device: Box<dyn VirtioDevice>, threaded: bool) -> Self {
        let (mem, line, faults) =
            (Arc::new(ram()), Arc::new(CountingLine::default()), Arc::<Mutex<Vec<_>>>::default());
        let activation = if threaded {
            let faults = Arc::clone(&faults);
            Activation::Thread(Arc::new(move |fault| faults.lock().unwrap().push(fault)))
        } else {
            Activation::Inline
        };
        let transport =
            MmioTransport::new(device, Arc::clone(&mem), Arc::<CountingLine>::clone(&line), activation)
                .unwrap();
        Self { transport, mem, line, rings: Vec::new(), next_buffer: BUFFERS, threaded, features: 0, faults }
    }

    /// The transport, to look at or to drive by hand.
    pub fn transport(&mut self) -> &mut MmioTransport {
        &mut self.transport
    }

    /// Guest memory.
    #[must_use]
    pub fn mem(&self) -> &GuestRam {
        &self.mem
    }

    /// Guest memory, to share with another device.
    #[must_use]
    pub fn shared_mem(&self) -> &Mem {
        &self.mem
    }

    /// Sets or clears the driver's wish for no interrupts (only heeded without EVENT_IDX).
    pub fn suppress_interrupts(&mut self, queue: u16, suppress: bool) {
        let avail = self.rings[usize::from(queue)].avail;
        self.mem.write_obj(u16::from(suppress).to_le(), GuestAddress(avail)).unwrap();
    }

    /// The interrupt line.
    #[must_use]
    pub fn line(&self) -> &CountingLine {
        &self.line
    }

    /// The features that both sides agreed on.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Reads a register.
    pub fn read32(&mut self, offset: u32) -> u32 {
        let mut data = [0xff; 4];
        let _ = self.transport.read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write32(&mut self, offset: u32, value: u32) {
        let _ = self.transport.write(offset.into(), &value.to_le_bytes());
    }

    /// Reads the configuration space.
    pub fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.read(u64::from(reg::VIRTIO_MMIO_CONFIG) + offset, data).unwrap();
    }

    /// `Status`, with DEVICE_NEEDS_RESET (64) when the driver broke the rules.
    pub fn status(&mut self) -> u32 {
        self.read32(reg::VIRTIO_MMIO_STATUS)
    }

    /// Whether the device waits for a reset.
    pub fn needs_reset(&mut self) -> bool {
        self.status() & config::VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// Initialises the device as a driver does: features (`wanted` and offered), queues of at most 256, DRIVER_OK.
    pub fn init(&mut self, wanted: u64) {
        self.write32(reg::VIRTIO_MMIO_STATUS, 0);
        self.write32(reg::VIRTIO_MMIO_STATUS, 1);
        self.write32(reg::VIRTIO_MMIO_STATUS, 3);
        let mut offered = 0;
        for select in [1, 0] {
            self.write32(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            offered = offered << 32 | u64::from(self.read32(reg::VIRTIO_MMIO_DEVICE_FEATURES));
        }
        self.features = offered & (wanted | 1 << config::VIRTIO_F_VERSION_1);
        for select in [0, 1] {
            self.write32(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write32(reg::VIRTIO_MMIO_DRIVER_FEATURES, (self.features >> (32 * select)) as u32);
        }
        self.write32(reg::VIRTIO_MMIO_STATUS, 11);
        assert_eq!(self.status(), 11, "the device refused the features");
        self.rings.clear();
        for queue in 0.. {
            self.write32(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
            let max = self.read32(reg::VIRTIO_MMIO_QUEUE_NUM_MAX);
            if max == 0 {
                break;
            }
            self.set_up_queue(queue, u16::try_from(max.min(256)).unwrap());
        }
        self.write32(reg::VIRTIO_MMIO_STATUS, 15);
        self.run();
    }

    fn set_up_queue(&mut self, queue: u32, size: u16) {
        let desc = 0x1000 + u64::from(queue) * 0x8000;
        let (avail, used) = (desc + 0x4000, desc + 0x6000);
        self.mem.write_slice(&[0; 0x8000], GuestAddress(desc)).unwrap();
        self.write32(reg::VIRTIO_MMIO_QUEUE_NUM, size.into());
        for (register, addr) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, desc),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.write32(register, addr as u32);
            self.write32(register + 4, (addr >> 32) as u32);
        }
        self.write32(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        self.rings.push(DriverRing {
            size,
            desc,
            avail,
            used,
            next_avail: 0,
            next_used: 0,
            free: (0..size).rev().collect(),
            flight: HashMap::new(),
        });
    }

    /// Reserves `len` bytes of guest memory.
    pub fn buffer(&mut self, len: usize) -> u64 {
        let len = (len as u64).next_multiple_of(16);
        if self.next_buffer + len > RAM as u64 {
            self.next_buffer = BUFFERS;
        }
        self.next_buffer += len;
        self.next_buffer - len
    }

    /// Adds a chain of readable buffers with these contents and writable ones of these lengths, and tells the
    /// device. Returns the chain's head; `None` when the ring is full.
    pub fn try_add(&mut self, queue: u16, readable: &[&[u8]], writable: &[usize]) -> Option<u16> {
        if self.rings[usize::from(queue)].free.len() < readable.len() + writable.len() {
            return None;
        }
        let mut segments = Vec::new();
        for bytes in readable {
            let addr = self.buffer(bytes.len());
            self.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
            segments.push((addr, bytes.len(), false));
        }
        for &len in writable {
            let addr = self.buffer(len);
            self.mem.write_slice(&vec![0; len], GuestAddress(addr)).unwrap();
            segments.push((addr, len, true));
        }
        let head = self.add_raw(queue, &segments);
        self.notify(queue);
        Some(head)
    }

    /// As [`Self::try_add`].
    ///
    /// # Panics
    /// When the ring is full.
    pub fn add(&mut self, queue: u16, readable: &[&[u8]], writable: &[usize]) -> u16 {
        self.try_add(queue, readable, writable).expect("the ring is full")
    }

    /// Adds a chain of segments (address, length, writable) as they are, without telling the device.
    pub fn add_raw(&mut self, queue: u16, segments: &[(u64, usize, bool)]) -> u16 {
        let mem = Arc::clone(&self.mem);
        let ring = &mut self.rings[usize::from(queue)];
        let indices: Vec<u16> = segments.iter().map(|_| ring.free.pop().expect("the ring is full")).collect();
        for (position, (&(addr, len, writable), &index)) in segments.iter().zip(&indices).enumerate() {
            let next = indices.get(position + 1);
            let flags = next.map_or(0, |_| ring::VRING_DESC_F_NEXT)
                | if writable { ring::VRING_DESC_F_WRITE } else { 0 };
            let mut raw = [0; 16];
            raw[..8].copy_from_slice(&addr.to_le_bytes());
            raw[8..12].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
            raw[12..14].copy_from_slice(&(flags as u16).to_le_bytes());
            raw[14..].copy_from_slice(&next.copied().unwrap_or(0).to_le_bytes());
            mem.write_slice(&raw, GuestAddress(ring.desc + u64::from(index) * 16)).unwrap();
        }
        let head = indices[0];
        let slot = ring.avail + 4 + u64::from(ring.next_avail % ring.size) * 2;
        mem.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        ring.next_avail = ring.next_avail.wrapping_add(1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        mem.write_obj(ring.next_avail.to_le(), GuestAddress(ring.avail + 2)).unwrap();
        let writable =
            segments.iter().filter(|segment| segment.2).map(|&(addr, len, _)| (addr, len)).collect();
        ring.flight.insert(head, Flight { descriptors: indices, writable });
        head
    }

    /// Rings the doorbell of a queue, and runs the device if it runs inline.
    pub fn notify(&mut self, queue: u16) {
        self.write32(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue.into());
        self.run();
    }

    /// Runs an inline device until it has nothing to do.
    ///
    /// # Panics
    /// On a host fault, or when it never comes to rest.
    pub fn run(&mut self) {
        let start = Instant::now();
        while self.transport.turn(Duration::ZERO).unwrap() {
            assert!(start.elapsed() < DEADLINE, "the device never comes to rest");
        }
    }

    /// Takes one chain that the device has given back, if there is one.
    pub fn used(&mut self, queue: u16) -> Option<Used> {
        let mem = Arc::clone(&self.mem);
        let ring = &mut self.rings[usize::from(queue)];
        let index: u16 = mem.read_obj(GuestAddress(ring.used + 2)).unwrap();
        if u16::from_le(index) == ring.next_used {
            return None;
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let slot = ring.used + 4 + u64::from(ring.next_used % ring.size) * 8;
        let [head, len]: [u32; 2] = mem.read_obj(GuestAddress(slot)).unwrap();
        ring.next_used = ring.next_used.wrapping_add(1);
        // `used_event`: interrupt at the next one.
        let event = ring.avail + 4 + u64::from(ring.size) * 2;
        mem.write_obj(ring.next_used.to_le(), GuestAddress(event)).unwrap();
        let head = u16::try_from(u32::from_le(head)).unwrap();
        let Flight { descriptors, writable } =
            ring.flight.remove(&head).expect("the device gave back what it did not have");
        ring.free.extend(descriptors);
        let mut data = Vec::new();
        for (addr, len) in writable {
            let start = data.len();
            data.resize(start + len, 0);
            mem.read_slice(&mut data[start..], GuestAddress(addr)).unwrap();
        }
        let len = u32::from_le(len);
        assert!(len as usize <= data.len(), "the device says it wrote {len} bytes into {}", data.len());
        Some(Used { head, len, data })
    }

    /// Waits for the next chain that the device gives back.
    ///
    /// # Panics
    /// When none comes in time.
    pub fn wait_used(&mut self, queue: u16) -> Used {
        let start = Instant::now();
        loop {
            let edges = self.line.edges();
            if let Some(used) = self.used(queue) {
                return used;
            }
            assert!(start.elapsed() < DEADLINE, "the device gave nothing back on queue {queue}");
            self.wait(edges);
        }
    }

    /// Waits a while for the device to do something; `edges` are the interrupts that there were before the rings were looked
    /// at, so that one that was raised since ends it.
    ///
    /// # Panics
    /// On a host fault.
    pub fn wait(&mut self, edges: u64) {
        if self.threaded {
            let guard = self.line.edges.lock().unwrap();
            let step = Duration::from_millis(200);
            drop(self.line.raised.wait_timeout_while(guard, step, |now| *now == edges).unwrap());
        } else {
            self.transport.turn(Duration::from_millis(20)).unwrap();
        }
    }

    /// Adds a chain and waits for the device to give it back.
    pub fn ask(&mut self, queue: u16, readable: &[&[u8]], writable: &[usize]) -> Used {
        let head = self.add(queue, readable, writable);
        let used = self.wait_used(queue);
        assert_eq!(used.head, head, "the device gave back another chain");
        used
    }
}

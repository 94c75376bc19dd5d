//! Snapshots: a VM goes on where it was saved, as often as one likes.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use common::LIMIT;
use servin_devices::virtio::rng::Rng;
use servin_vmm::hv::Hypervisor;
use servin_vmm::hv::fake::Fake;
use servin_vmm::layout::VIRTIO_BASE;
use servin_vmm::{Error, ExitReason, Snapshot, Vm, VmBuilder};
use vm_memory::{Bytes, GuestAddress};

/// Counts in memory at [`COUNTER`] and in RBX, until the byte behind the counter is set; then stores RBX and powers off.
///
/// ```text
///     mov edi, 0x300000
/// 1:  inc qword ptr [rdi]
///     inc rbx
///     cmp byte ptr [rdi + 8], 0
///     je 1b
///     mov [rdi + 16], rbx
///     mov dx, 0x600
///     mov al, 1
///     out dx, al
/// 2:  jmp 2b
/// ```
const COUNT: &[u8] =
    b"\xbf\x00\x00\x30\x00\x48\xff\x07\x48\xff\xc3\x80\x7f\x08\x00\x74\xf4\x48\x89\x5f\x10\x66\xba\x00\
                       \x06\xb0\x01\xee\xeb\xfe";
const COUNTER: GuestAddress = GuestAddress(0x30_0000);
const FINISH: GuestAddress = GuestAddress(0x30_0008);
const RESULT: GuestAddress = GuestAddress(0x30_0010);

fn counter(vm: &Vm) -> u64 {
    vm.mem().read_obj(COUNTER).unwrap()
}

/// Waits until the guest has counted beyond `seen`.
fn wait_beyond(vm: &Vm, seen: u64) {
    let start = Instant::now();
    while counter(vm) <= seen {
        assert!(start.elapsed() < LIMIT, "the guest does not count");
        std::thread::yield_now();
    }
}

fn restored(host: &Arc<dyn Hypervisor>, dir: &Path) -> Vm {
    VmBuilder::new()
        .hypervisor(Arc::clone(host))
        .device(Box::new(Rng::new()))
        .restore(Snapshot::open(dir).unwrap())
        .build()
        .unwrap()
}

#[test]
fn a_guest_goes_on_where_it_was_saved_again_and_again() {
    let Some(host) = common::host() else { return };
    let kernel = common::kernel(COUNT, None);
    let dir = tempfile::tempdir().unwrap();
    let vm = VmBuilder::new()
        .hypervisor(Arc::clone(&host))
        .memory_mib(64)
        .device(Box::new(Rng::new()))
        .kernel(kernel.path())
        .build()
        .unwrap();
    vm.start().unwrap();
    wait_beyond(&vm, 100);
    vm.pause().unwrap();
    let saved = counter(&vm);
    vm.save(dir.path()).unwrap();
    vm.resume().unwrap();
    // The original goes on as well.
    wait_beyond(&vm, saved);
    drop(vm);

    for _ in 0..2 {
        let vm = restored(&host, dir.path());
        assert_eq!(counter(&vm), saved);
        vm.start().unwrap();
        wait_beyond(&vm, saved + 100);
        vm.mem().write_obj(1_u8, FINISH).unwrap();
        assert_eq!(vm.wait_timeout(LIMIT).unwrap().unwrap(), ExitReason::Off);
        assert_eq!(vm.mem().read_obj::<u64>(RESULT).unwrap(), counter(&vm));
    }
}

/// A VM on the fake with one device, paused, and saved into a directory.
fn saved_on_the_fake() -> (Fake, tempfile::TempDir) {
    let fake = Fake::new();
    let dir = tempfile::tempdir().unwrap();
    let vm = VmBuilder::new()
        .hypervisor(Arc::new(fake.clone()))
        .memory_mib(32)
        .cpus(2)
        .device(Box::new(Rng::new()))
        .build()
        .unwrap();
    vm.start().unwrap();
    let cpu = fake.cpu(1).unwrap();
    cpu.set_register(7, 1234);
    cpu.write32(VIRTIO_BASE + 0x70, 3);
    cpu.write32(0x1000, 77);
    vm.pause().unwrap();
    vm.save(dir.path()).unwrap();
    (fake, dir)
}

fn builder(fake: &Fake) -> VmBuilder {
    VmBuilder::new().hypervisor(Arc::new(fake.clone()))
}

#[test]
fn memory_registers_and_devices_come_back() {
    let (fake, dir) = saved_on_the_fake();
    let snapshot = Snapshot::open(dir.path()).unwrap();
    assert_eq!((snapshot.memory_mib(), snapshot.cpus(), snapshot.devices()), (32, 2, &[4][..]));
    let vm = builder(&fake).device(Box::new(Rng::new())).restore(snapshot).build().unwrap();
    vm.start().unwrap();
    let cpu = fake.cpu(1).unwrap();
    assert_eq!((cpu.read32(0x1000), cpu.read32(VIRTIO_BASE + 0x70)), (77, 3));
    assert_eq!(cpu.register(7), Some(1234));
}

#[test]
fn only_a_paused_vm_without_a_serial_port_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new();
    let vm = builder(&fake).memory_mib(32).build().unwrap();
    vm.start().unwrap();
    assert!(matches!(vm.save(dir.path()), Err(Error::Lifecycle { .. })));
    let vm = builder(&fake).memory_mib(32).serial(Box::new(std::io::sink())).build().unwrap();
    vm.start().unwrap();
    vm.pause().unwrap();
    assert!(matches!(vm.save(dir.path()), Err(Error::Unsupported { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_snapshot_wants_the_same_devices() {
    let (fake, dir) = saved_on_the_fake();
    let error = builder(&fake).restore(Snapshot::open(dir.path()).unwrap()).build().unwrap_err();
    assert!(error.to_string().contains("[4]"), "{error}");
}

#[test]
fn damaged_missing_and_mixed_files_are_refused() {
    let (_fake, dir) = saved_on_the_fake();
    let (_fake, other) = saved_on_the_fake();
    fs::copy(other.path().join("memory"), dir.path().join("memory")).unwrap();
    let error = Snapshot::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("another snapshot"), "{error}");
    let state = other.path().join("state");
    let mut bytes = fs::read(&state).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&state, bytes).unwrap();
    let error = Snapshot::open(other.path()).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
    fs::remove_file(state).unwrap();
    assert!(Snapshot::open(other.path()).is_err());
}

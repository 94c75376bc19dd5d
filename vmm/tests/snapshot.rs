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

#[test]
fn a_guest_is_saved_with_what_changed_and_goes_on_from_there() {
    let Some(host) = common::host() else { return };
    let kernel = common::kernel(COUNT, None);
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let vm = VmBuilder::new()
        .hypervisor(Arc::clone(&host))
        .memory_mib(64)
        .device(Box::new(Rng::new()))
        .kernel(kernel.path())
        .build()
        .unwrap();
    // Neither the guest nor a device touches this one again.
    let far = GuestAddress(0x200_0000);
    vm.mem().write_slice(&[7; 0x10_0000], far).unwrap();
    vm.start().unwrap();
    wait_beyond(&vm, 100);
    vm.pause().unwrap();
    assert_eq!(vm.known(), []);
    let id = vm.save(dirs[0].path()).unwrap();
    if !vm.follow(id).unwrap() {
        println!("skipped: this hypervisor does not tell what is written");
        return;
    }
    let mut saved = Vec::new();
    for upto in 1..3 {
        let seen = counter(&vm);
        vm.resume().unwrap();
        wait_beyond(&vm, seen + 100);
        vm.pause().unwrap();
        saved.push(counter(&vm));
        let chain: Vec<&Path> = dirs[..upto].iter().map(tempfile::TempDir::path).collect();
        let id = vm.save_changes(dirs[upto].path(), &Snapshot::open_chain(&chain).unwrap()).unwrap();
        assert!(vm.follow(id).unwrap());
        assert_eq!(vm.known(), [id]);
    }
    drop(vm);
    let chain: Vec<&Path> = dirs.iter().map(tempfile::TempDir::path).collect();
    let size = |at: usize| data(&chain[at].join("memory"));
    assert!(size(0) > 1 << 20 && size(1) < 256 << 10 && size(2) < 256 << 10, "{}, {}", size(1), size(2));

    let restored = |chain: &[&Path]| {
        VmBuilder::new()
            .hypervisor(Arc::clone(&host))
            .device(Box::new(Rng::new()))
            .restore(Snapshot::open_chain(chain).unwrap())
            .build()
            .unwrap()
    };
    assert_eq!(counter(&restored(&chain[..2])), saved[0]);
    let vm = restored(&chain[..3]);
    assert_eq!(counter(&vm), saved[1]);
    assert_eq!(vm.mem().read_obj::<u8>(GuestAddress(0x20f_ffff)).unwrap(), 7);
    vm.start().unwrap();
    wait_beyond(&vm, saved[1] + 100);
    vm.pause().unwrap();
    let seen = counter(&vm);
    // Without a log: the host tells what is not as it was restored.
    let parent = Snapshot::open_chain(&chain[..3]).unwrap();
    assert_eq!(vm.known(), [parent.id()]);
    vm.save_changes(chain[3], &parent).unwrap();
    assert!(size(3) < 256 << 10, "{}", size(3));
    drop(vm);
    let vm = restored(&chain);
    assert_eq!(counter(&vm), seen);
    vm.start().unwrap();
    wait_beyond(&vm, seen + 100);
    vm.mem().write_obj(1_u8, FINISH).unwrap();
    assert_eq!(vm.wait_timeout(LIMIT).unwrap().unwrap(), ExitReason::Off);
    assert_eq!(vm.mem().read_obj::<u64>(RESULT).unwrap(), counter(&vm));
}

/// Bytes of a file that are not holes.
fn data(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap()) * 512
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

#[test]
fn a_chain_that_does_not_belong_together_is_refused() {
    let fake = Fake::new();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let path = |at: usize| dirs[at].path();
    let vm = builder(&fake).memory_mib(32).build().unwrap();
    vm.start().unwrap();
    vm.pause().unwrap();
    let id = vm.save(path(0)).unwrap();
    assert!(vm.save_changes(path(1), &Snapshot::open(path(0)).unwrap()).is_err(), "nothing was noted");
    assert!(vm.follow(id).unwrap());
    vm.mem().write_obj(5_u32, GuestAddress(0x9000)).unwrap();
    vm.save_changes(path(1), &Snapshot::open(path(0)).unwrap()).unwrap();
    vm.save(path(2)).unwrap();
    let why = |chain: &[&Path]| Snapshot::open_chain(chain).unwrap_err().to_string();
    Snapshot::open_chain(&[path(0), path(1)]).unwrap();
    assert!(why(&[path(1)]).contains("only what changed since the snapshot"), "{}", why(&[path(1)]));
    assert!(why(&[path(0), path(2)]).contains("it is whole and builds on no other"));
    assert!(why(&[path(2), path(1)]).contains("it builds on the snapshot"));
    assert!(why(&[path(0), path(1), path(1)]).contains("it builds on the snapshot"));
    assert!(why(&[]).contains("none was given"));
    // Every byte of the state, and every cut of both files.
    let state = path(1).join("state");
    let bytes = fs::read(&state).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(&state, damaged).unwrap();
        assert!(Snapshot::open_chain(&[path(0), path(1)]).is_err(), "byte {at}");
        fs::write(&state, &bytes[..at]).unwrap();
        assert!(Snapshot::open_chain(&[path(0), path(1)]).is_err(), "cut at {at}");
    }
    fs::write(&state, &bytes).unwrap();
    let memory = fs::File::options().write(true).open(path(1).join("memory")).unwrap();
    let length = memory.metadata().unwrap().len();
    memory.set_len(length - 1).unwrap();
    assert!(why(&[path(0), path(1)]).contains("bytes long instead of"));
}

#[test]
fn what_devices_and_vcpus_write_is_told_since_it_was_followed() {
    let fake = Fake::new();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let path = |at: usize| dirs[at].path();
    let vm = builder(&fake).memory_mib(32).build().unwrap();
    vm.start().unwrap();
    let cpu = fake.cpu(0).unwrap();
    cpu.write32(0x3000, 3);
    vm.pause().unwrap();
    vm.follow(vm.save(path(0)).unwrap()).unwrap();
    vm.resume().unwrap();
    cpu.write32(0x4ffe, 0x0404_0404);
    vm.mem().write_obj(9_u32, GuestAddress(0x9000)).unwrap();
    vm.pause().unwrap();
    let parent = Snapshot::open(path(0)).unwrap();
    // A snapshot that comes to nothing loses nothing.
    assert!(vm.save_changes(&path(1).join("nope"), &parent).is_err());
    vm.save_changes(path(1), &parent).unwrap();
    assert_eq!(data(&path(1).join("memory")), 4 * 0x1000, "a header and three pages");
    drop(vm);
    let chain = Snapshot::open_chain(&[path(0), path(1)]).unwrap();
    let vm = builder(&fake).restore(chain).build().unwrap();
    let read = |at: u64| vm.mem().read_obj::<u32>(GuestAddress(at)).unwrap();
    assert_eq!((read(0x3000), read(0x4ffe), read(0x9000)), (3, 0x0404_0404, 9));
}

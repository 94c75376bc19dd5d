//! The embedding API: the life of a VM, on the fake and on this host's hypervisor.

mod common;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::{LIMIT, Output, POWER_OFF, SPIN};
use servin_devices::virtio::rng::Rng;
use servin_vmm::hv::Fault;
use servin_vmm::hv::fake::Fake;
use servin_vmm::layout::VIRTIO_BASE;
use servin_vmm::{Error, ExitReason, Mark, Protocol, Source, VmBuilder, VmEvent};

/// A VM on a fake of its own.
fn on_the_fake() -> (Fake, VmBuilder) {
    let fake = Fake::new();
    let builder = VmBuilder::new().memory_mib(32).hypervisor(Arc::new(fake.clone()));
    (fake, builder)
}

#[test]
fn the_guest_powers_off_and_resets_through_its_ports() {
    for (port, value, reason) in
        [(0x600, 1, ExitReason::Off), (0x600, 2, ExitReason::Reset), (0x64, 0xfe, ExitReason::Reset)]
    {
        let (fake, builder) = on_the_fake();
        let vm = builder.build().unwrap();
        vm.start().unwrap();
        fake.cpu(0).unwrap().out8(port, value);
        assert_eq!(vm.wait_timeout(LIMIT).unwrap().unwrap(), reason);
    }
}

#[test]
fn a_paused_vm_executes_nothing_until_it_is_resumed() {
    let (fake, builder) = on_the_fake();
    let vm = builder.device(Box::new(Rng::new())).build().unwrap();
    vm.start().unwrap();
    let cpu = fake.cpu(0).unwrap();
    assert_eq!(cpu.read32(VIRTIO_BASE), 0x7472_6976);
    vm.pause().unwrap();
    let (tell, told) = mpsc::channel();
    let guest = std::thread::spawn(move || tell.send(cpu.read32(VIRTIO_BASE)).unwrap());
    assert_eq!(told.recv_timeout(Duration::from_millis(50)), Err(mpsc::RecvTimeoutError::Timeout));
    vm.resume().unwrap();
    assert_eq!(told.recv_timeout(LIMIT), Ok(0x7472_6976));
    guest.join().unwrap();
}

#[test]
fn what_does_not_fit_the_life_of_a_vm_is_refused() {
    let (_fake, builder) = on_the_fake();
    let vm = builder.build().unwrap();
    let refused = |result: Result<(), Error>| assert!(matches!(result, Err(Error::Lifecycle { .. })));
    refused(vm.pause());
    refused(vm.resume());
    vm.start().unwrap();
    refused(vm.start());
    refused(vm.resume());
    vm.pause().unwrap();
    refused(vm.pause());
    vm.stop();
    assert_eq!(vm.wait_timeout(LIMIT).unwrap().unwrap(), ExitReason::Stopped);
    refused(vm.resume());
    refused(vm.start());
}

#[test]
fn a_fault_of_the_guest_is_told_to_everybody_who_waits() {
    let (fake, builder) = on_the_fake();
    let vm = builder.build().unwrap();
    vm.start().unwrap();
    fake.cpu(0).unwrap().fault(Fault {
        why: "an odd instruction".to_owned(),
        pc: Some(16),
        bytes: vec![0x0f],
    });
    for _ in 0..2 {
        let error = vm.wait_timeout(LIMIT).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the guest stopped: an odd instruction at 0x10, instruction 0f");
    }
}

#[test]
fn a_panic_on_a_vcpu_thread_becomes_an_error() {
    struct Broken;
    impl std::io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            panic!("a broken writer")
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (fake, builder) = on_the_fake();
    let vm = builder.serial(Box::new(Broken)).build().unwrap();
    vm.start().unwrap();
    fake.cpu(0).unwrap().out8(0x3f8, b'x');
    let error = vm.wait_timeout(LIMIT).unwrap().unwrap_err();
    assert!(matches!(&*error, Error::Panic(message) if message == "a broken writer"), "{error}");
}

#[test]
fn vcpus_sleep_until_another_starts_them_where_the_hypervisor_does_not() {
    let fake = Fake::with_sleeping_cpus();
    let output = Output::default();
    let vm = VmBuilder::new()
        .memory_mib(32)
        .cpus(2)
        .hypervisor(Arc::new(fake.clone()))
        .serial(Box::new(output.clone()))
        .build()
        .unwrap();
    vm.start().unwrap();
    let second = fake.cpu(1).unwrap();
    let guest = std::thread::spawn(move || {
        second.out8(0x3f8, b'2');
        second.stop_cpu();
    });
    let first = fake.cpu(0).unwrap();
    first.out8(0x3f8, b'1');
    vm.pause().unwrap();
    vm.resume().unwrap();
    first.start_cpu(1, 0x1000, 0);
    assert_eq!(output.wait(|bytes| bytes.len() == 2), b"12");
    guest.join().unwrap();
    first.out8(0x600, 1);
    assert_eq!(vm.wait_timeout(LIMIT).unwrap().unwrap(), ExitReason::Off);
}

#[test]
fn events_and_clocks_tell_the_life_of_a_vm() {
    let (tell, told) = mpsc::channel();
    let (fake, builder) = on_the_fake();
    let vm = builder
        .executed_at(std::time::Instant::now())
        .on_event(move |event| tell.send(event).unwrap())
        .build()
        .unwrap();
    vm.start().unwrap();
    vm.pause().unwrap();
    vm.resume().unwrap();
    fake.cpu(0).unwrap().out8(0x600, 1);
    vm.wait_timeout(LIMIT).unwrap().unwrap();
    let event = || told.recv_timeout(LIMIT).unwrap();
    assert!(matches!(event(), VmEvent::Started));
    assert!(matches!(event(), VmEvent::Paused));
    assert!(matches!(event(), VmEvent::Resumed));
    assert!(matches!(event(), VmEvent::Ended(Ok(ExitReason::Off))));
    let marks = [Mark::Exec, Mark::Created, Mark::Entered, Mark::Exit];
    for pair in marks.windows(2) {
        assert!(vm.timeline().between(pair[0], pair[1]).is_some(), "{pair:?}");
    }
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let build = |change: fn(VmBuilder) -> VmBuilder| change(on_the_fake().1).build().map(drop);
    assert!(matches!(build(|vm| vm.memory_mib(16)), Err(Error::Config(_))));
    assert!(matches!(build(|vm| vm.cpus(0)), Err(Error::Config(_))));
    assert!(matches!(build(|vm| vm.cpus(9)), Err(Error::Config(_))));
    assert!(matches!(build(|vm| vm.cmdline_extra("a\nb")), Err(Error::Config(_))));
    let crowd = |vm: VmBuilder| (0..20).fold(vm, |vm, _| vm.device(Box::new(Rng::new())));
    assert!(matches!(build(crowd), Err(Error::Config(_))));
    let error = build(|vm| vm.kernel("/nonexistent/kernel")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/kernel"), "{error}");
}

#[test]
fn a_file_that_is_no_kernel_is_refused_by_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![0x90; 4096]).unwrap();
    let error = on_the_fake().1.kernel(file.path()).build().unwrap_err().to_string();
    assert!(error.contains(file.path().to_str().unwrap()) && error.contains("ELF"), "{error}");
}

#[test]
fn an_initramfs_that_does_not_fit_is_refused() {
    let kernel = common::kernel(POWER_OFF, None);
    let error =
        on_the_fake().1.kernel(kernel.path()).initramfs(vec![0; 40 << 20]).build().unwrap_err().to_string();
    assert!(error.contains("more memory"), "{error}");
}

/// A guest that spins on the host is stopped from outside.
#[test]
fn a_spinning_guest_is_paused_resumed_and_stopped() {
    let Some(host) = common::host() else { return };
    let kernel = common::kernel(SPIN, None);
    let vm = VmBuilder::new().hypervisor(host).memory_mib(32).cpus(2).kernel(kernel.path()).build().unwrap();
    vm.start().unwrap();
    for _ in 0..5 {
        vm.pause().unwrap();
        vm.resume().unwrap();
    }
    vm.stop();
    assert_eq!(vm.wait_timeout(LIMIT).unwrap().unwrap(), ExitReason::Stopped);
}

/// Each protocol enters a kernel on this host, with more than 4 GiB of memory too.
#[test]
fn kernels_are_entered_by_both_protocols() {
    let Some(host) = common::host() else { return };
    let kernel = common::kernel(POWER_OFF, Some(0));
    for (protocol, mib) in [(Protocol::Linux64, 32), (Protocol::Pvh, 32), (Protocol::Auto, 5 * 1024)] {
        let vm = VmBuilder::new()
            .hypervisor(Arc::clone(&host))
            .memory_mib(mib)
            .kernel(kernel.path())
            .protocol(protocol)
            .initramfs(Source::Bytes(b"not looked at".to_vec()))
            .build()
            .unwrap();
        vm.start().unwrap();
        assert_eq!(vm.wait_timeout(LIMIT).unwrap().unwrap(), ExitReason::Off, "{protocol:?}");
    }
}

#[test]
fn a_kernel_without_a_pvh_entry_is_refused_for_pvh() {
    let kernel = common::kernel(POWER_OFF, None);
    let error = on_the_fake().1.kernel(kernel.path()).protocol(Protocol::Pvh).build().unwrap_err();
    assert!(error.to_string().contains("PVH"), "{error}");
}

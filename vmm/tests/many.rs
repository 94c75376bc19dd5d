//! Many VMs in one process leave nothing behind. One test, alone in its process, because it counts what the process has.

mod common;

use std::fs;
use std::sync::Arc;

use servin_devices::virtio::rng::Rng;
use servin_vmm::hv::Hypervisor;
use servin_vmm::hv::fake::Fake;
use servin_vmm::{ExitReason, Vm, VmBuilder};

/// Descriptors, threads and mappings of this process, and the signals that it blocks, ignores and has handlers for.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    mappings: usize,
    signals: Vec<String>,
}

fn holdings() -> Holdings {
    Holdings {
        descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        threads: fs::read_dir("/proc/self/task").unwrap().count(),
        signals: fs::read_to_string("/proc/thread-self/status")
            .unwrap()
            .lines()
            .filter(|line| ["SigBlk", "SigIgn", "SigCgt"].iter().any(|name| line.starts_with(name)))
            .map(str::to_owned)
            .collect(),
        mappings: fs::read_to_string("/proc/self/maps").unwrap().lines().count(),
    }
}

const VMS: usize = 16;

/// Ends VM number `index` in one of the ways that there are.
fn finish(index: usize, vm: &Vm, fake: Option<&Fake>) {
    match (index % 3, fake) {
        (0, None) => assert_eq!(vm.wait().unwrap(), ExitReason::Off),
        (0, Some(fake)) => {
            fake.cpu(0).unwrap().out8(0x600, 1);
            assert_eq!(vm.wait().unwrap(), ExitReason::Off);
        }
        // It may have powered off already.
        (1, _) => {
            vm.stop();
            vm.wait().unwrap();
        }
        // Dropped while it runs.
        _ => {}
    }
}

fn round(build: &dyn Fn() -> (Vm, Option<Fake>)) {
    for index in 0..VMS {
        let (vm, fake) = build();
        vm.start().unwrap();
        finish(index, &vm, fake.as_ref());
    }
    let vms: Vec<_> = (0..VMS).map(|_| build()).collect();
    vms.iter().for_each(|(vm, _)| vm.start().unwrap());
    vms.iter().enumerate().for_each(|(index, (vm, fake))| finish(index, vm, fake.as_ref()));
}

#[test]
fn sixteen_vms_one_after_another_and_at_once_leave_nothing_behind() {
    let kernel = common::kernel(common::POWER_OFF, None);
    let builder = || VmBuilder::new().memory_mib(64).cpus(2).device(Box::new(Rng::new()));
    let on_the_fake = || {
        let fake = Fake::new();
        (builder().hypervisor(Arc::new(fake.clone())).build().unwrap(), Some(fake))
    };
    let host: Option<Arc<dyn Hypervisor>> = common::host();
    let on_the_host = || {
        let host = Arc::clone(host.as_ref().unwrap());
        (builder().hypervisor(host).kernel(kernel.path()).build().unwrap(), None)
    };
    let all = || {
        round(&on_the_fake);
        if host.is_some() {
            round(&on_the_host);
        }
    };
    // The first round fills what the C library keeps: thread stacks and arenas.
    all();
    let before = holdings();
    all();
    assert_eq!(holdings(), before);
}

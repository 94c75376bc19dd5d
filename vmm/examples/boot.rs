//! Boots a kernel with a serial console on this host's hypervisor and says how long it took.
//!
//! ```text
//! boot KERNEL [--initramfs FILE]... [--append WORDS]... [--cpus N] [--mem MIB] [--pvh]
//! ```

use std::error::Error;
use std::time::Instant;

use servin_devices::virtio::rng::Rng;
use servin_vmm::{Mark, Protocol, Source, VmBuilder};

fn main() -> Result<(), Box<dyn Error>> {
    let mut vm = VmBuilder::new().executed_at(Instant::now()).serial(Box::new(std::io::stdout()));
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        vm = match arg.as_str() {
            "--initramfs" => vm.initramfs(Source::File(value()?.into())),
            "--append" => vm.cmdline_extra(&value()?),
            "--cpus" => vm.cpus(value()?.parse()?),
            "--mem" => vm.memory_mib(value()?.parse()?),
            "--pvh" => vm.protocol(Protocol::Pvh),
            "--rng" => vm.device(Box::new(Rng::new())),
            _ => vm.kernel(arg),
        };
    }
    let vm = vm.build()?;
    vm.start()?;
    let end = vm.wait();
    for (from, to) in
        [(Mark::Exec, Mark::Created), (Mark::Created, Mark::Entered), (Mark::Entered, Mark::Exit)]
    {
        if let Some(time) = vm.timeline().between(from, to) {
            eprintln!("{} -> {}: {time:?}", from.name(), to.name());
        }
    }
    eprintln!("{:?}", end?);
    Ok(())
}

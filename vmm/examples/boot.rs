//! Boots a kernel on this host's hypervisor with its console on stdout, or takes a saved VM up, and tells the clocks.
//!
//! ```text
//! boot KERNEL [--initramfs FILE]... [--append WORDS]... [--cpus N] [--mem MIB] [--pvh] [--serial]
//!             [--save DIR TEXT]      save into DIR when the console has said TEXT, and stop
//! boot --restore DIR
//! ```
//! The console is virtio (`console=hvc0`), or with `--serial` a serial port (`console=ttyS0`, no snapshots).

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use servin_devices::virtio::console::{Console, Output};
use servin_devices::virtio::rng::Rng;
use servin_vmm::{Mark, Protocol, Snapshot, Source, Vm, VmBuilder};

/// Passes everything on to stdout, and tells once when `text` has come by.
struct Watch {
    text: Option<(Vec<u8>, mpsc::Sender<()>)>,
    seen: Vec<u8>,
}

impl Write for Watch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some((text, told)) = &self.text {
            self.seen.extend_from_slice(bytes);
            if self.seen.windows(text.len()).any(|part| part == &text[..]) {
                // Nobody listens when the VM is going down already.
                let _ = told.send(());
                self.text = None;
            }
        }
        io::stdout().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

fn save(vm: &Vm, dir: &Path) -> Result<(), servin_vmm::Error> {
    let start = Instant::now();
    vm.pause()?;
    let paused = start.elapsed();
    vm.save(dir)?;
    eprintln!("paused after {paused:?}, saved after {:?}", start.elapsed());
    vm.stop();
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut vm = VmBuilder::new().executed_at(Instant::now());
    let (mut serial, mut save_to) = (false, None);
    let (told, text_came) = mpsc::channel();
    let mut watch = Watch { text: None, seen: Vec::new() };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        vm = match arg.as_str() {
            "--initramfs" => vm.initramfs(Source::File(value()?.into())),
            "--append" => vm.cmdline_extra(&value()?),
            "--cpus" => vm.cpus(value()?.parse()?),
            "--mem" => vm.memory_mib(value()?.parse()?),
            "--pvh" => vm.protocol(Protocol::Pvh),
            "--restore" => vm.restore(Snapshot::open(Path::new(&value()?))?),
            "--save" => {
                save_to = Some(PathBuf::from(value()?));
                watch.text = Some((value()?.into_bytes(), told.clone()));
                vm
            }
            "--serial" => {
                serial = true;
                vm
            }
            _ => vm.kernel(arg),
        };
    }
    drop(told);
    vm = if serial {
        vm.serial(Box::new(watch))
    } else {
        vm.device(Box::new(Console::new(Output::Writer(Box::new(watch)), None)))
    };
    let vm = Arc::new(vm.device(Box::new(Rng::new())).build()?);
    vm.start()?;
    let saver = save_to.map(|dir| {
        let vm = Arc::clone(&vm);
        std::thread::spawn(move || match text_came.recv() {
            Ok(()) => save(&vm, &dir),
            Err(_) => Ok(()),
        })
    });
    let end = vm.wait();
    if let Some(Err(error)) = saver.and_then(|saver| saver.join().ok()) {
        return Err(error.into());
    }
    for pair in [Mark::Exec, Mark::Created, Mark::Entered, Mark::Exit].windows(2) {
        if let [from, to] = *pair
            && let Some(time) = vm.timeline().between(from, to)
        {
            eprintln!("{} -> {}: {time:?}", from.name(), to.name());
        }
    }
    eprintln!("{:?}", end?);
    Ok(())
}

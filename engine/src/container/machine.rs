//! The virtual machine of a container: its devices, and the guest's connections.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use servin_devices::event::Event;
use servin_devices::virtio::blk::Blk;
use servin_devices::virtio::console::{Console, Output};
use servin_devices::virtio::fs::Fs;
use servin_devices::virtio::fs::host::{HostFs, Options};
use servin_devices::virtio::fs::readonly::ReadOnly;
use servin_devices::virtio::fs::vfs::FileSystem;
use servin_devices::virtio::vsock::{Listener, VsockHost};
use servin_init::proto::{CONTROL_PORT, Hello, STREAM_PORT};
use servin_vmm::{ExitReason, Mark, Snapshot, Timeline, Vm, VmBuilder, VmEvent};

use crate::monitor::machine::{BootClocks, Ended, Machine};
use crate::monitor::{MachinePlan, Share};
use crate::store::now_ns;
use crate::template::{About, Key};
use crate::{Error, Result, chain};

/// The guest's context id. Each machine has a socket device of its own, so that one number serves all.
const CID: u64 = 3;
/// Nobody reads the kernel's words without `-D`.
const QUIET: &str = "quiet";
/// The kernel's words go to the virtio console.
const VERBOSE: &str = "console=hvc0 loglevel=7";

/// A started machine.
#[derive(Debug)]
pub(crate) struct VirtualMachine {
    plan: MachinePlan,
    /// The template that it was cloned from, or that it is to leave.
    key: Option<Key>,
    warm: bool,
    /// It is the first clone, by which the template learns what to copy for the next.
    teaches: bool,
    vm: Option<Vm>,
    timeline: Timeline,
    news: Arc<News>,
    listeners: Vec<Listener>,
    /// The socket device is gone: its listeners would be ready for ever.
    deaf: bool,
}

/// The machine's end, told by one of its threads.
#[derive(Debug)]
struct News {
    event: Event,
    ended: Mutex<Option<Ended>>,
}

/// Makes the machine and starts it: a clone where there is a template, else from the kernel.
pub(crate) fn start(plan: &MachinePlan) -> Result<VirtualMachine> {
    let key = plan.templates.as_ref().and_then(|_| {
        Key::new(plan).unwrap_or_else(|error| {
            ::log::info!("no template: {}", chain(&error));
            None
        })
    });
    let (Some(templates), Some(key)) = (&plan.templates, key) else {
        return power_on(plan.clone(), None, None);
    };
    if let Some(snapshot) = templates.open(&key) {
        match power_on(plan.clone(), Some(key.clone()), Some(snapshot)) {
            Ok(machine) => return Ok(machine),
            Err(error) => {
                ::log::info!("the template {} cannot be used: {}", key.as_str(), chain(&error));
                templates.discard(&key);
            }
        }
    }
    power_on(plan.clone(), Some(key), None)
}

/// Starts a machine; with a snapshot a clone of it.
fn power_on(plan: MachinePlan, key: Option<Key>, snapshot: Option<Snapshot>) -> Result<VirtualMachine> {
    let warm = snapshot.is_some();
    let teaches = snapshot.as_ref().is_some_and(|snapshot| !snapshot.has_learned());
    let host = VsockHost::new().map_err(Error::Vsock)?;
    let listeners = [CONTROL_PORT, STREAM_PORT]
        .into_iter()
        .map(|port| host.listen(port))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(Error::Vsock)?;
    let news = Arc::new(News { event: Event::new().map_err(Error::Vsock)?, ended: Mutex::new(None) });
    let words = if plan.verbose { VERBOSE } else { QUIET };
    let mut builder = VmBuilder::new()
        .memory_mib(plan.memory >> 20)
        .cpus(u8::try_from(plan.cpus).unwrap_or(u8::MAX))
        .executed_at(plan.began)
        .on_event({
            let news = Arc::clone(&news);
            move |event| news.hear(&event)
        })
        .vsock(CID, &host);
    builder = match snapshot {
        Some(snapshot) => builder.restore(snapshot),
        None => builder
            .kernel(&plan.guest.kernel)
            .initramfs(plan.guest.initramfs.clone())
            .cmdline_extra(&format!("{words} {}", plan.boot)),
    };
    if let Some(disk) = &plan.disk {
        let disk = Blk::open(disk, true, "servin-root").map_err(Error::Disk)?;
        builder = builder.device(Box::new(disk));
    }
    for share in &plan.shares {
        builder = builder.device(Box::new(open(share)?));
    }
    if plan.verbose {
        let output = Output::Writer(Box::new(std::io::stderr()));
        builder = builder.device(Box::new(Console::new(output, None)));
    }
    let vm = builder.build()?;
    let timeline = vm.timeline().clone();
    vm.start()?;
    Ok(VirtualMachine { plan, key, warm, teaches, vm: Some(vm), timeline, news, listeners, deaf: false })
}

impl VirtualMachine {
    fn try_save(&self) -> Result<()> {
        let (Some(templates), Some(key), Some(vm)) = (&self.plan.templates, &self.key, &self.vm) else {
            return Ok(());
        };
        let Some(draft) = templates.draft(key)? else {
            ::log::info!("another run makes the template {}", key.as_str());
            return Ok(());
        };
        vm.pause()?;
        let saved = vm.save(draft.path());
        vm.resume()?;
        saved?;
        draft.finish(&About {
            image: self.plan.image.clone(),
            memory_mib: self.plan.memory >> 20,
            cpus: self.plan.cpus,
            created_ns: now_ns(),
        })
    }
}

fn open(share: &Share) -> Result<Fs> {
    let fail = |error: &dyn std::error::Error| Error::Share { path: share.path.clone(), why: chain(error) };
    let open = if share.is_file { HostFs::file } else { HostFs::directory };
    let files = open(&share.path, Options::default()).map_err(|error| fail(&error))?;
    let files: Box<dyn FileSystem> =
        if share.read_only { Box::new(ReadOnly(files)) } else { Box::new(files) };
    Fs::new(&share.tag, files).map_err(|error| fail(&error))
}

impl News {
    fn hear(&self, event: &VmEvent) {
        let VmEvent::Ended(end) = event else { return };
        let ended = match end {
            Ok(ExitReason::Off | ExitReason::Stopped) => Ended::Off,
            Ok(ExitReason::Reset) => {
                Ended::Failed("the guest's kernel crashed (run with -D to see its words)".into())
            }
            Err(error) => Ended::Failed(chain(error)),
        };
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
        self.event.signal();
    }
}

impl Machine for VirtualMachine {
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let mut sources = vec![self.news.event.as_fd()];
        if !self.deaf {
            sources.extend(self.listeners.iter().map(AsFd::as_fd));
        }
        sources
    }

    fn accept(&mut self) -> Option<(u32, UnixStream)> {
        for listener in self.listeners.iter() {
            match listener.try_accept() {
                Ok(Some(stream)) => return Some((listener.port(), stream)),
                Ok(None) => {}
                Err(_) => {
                    self.deaf = true;
                    return None;
                }
            }
        }
        None
    }

    fn said_hello(&mut self, _: &Hello, now: Instant) {
        self.timeline.mark_at(Mark::Init, now);
    }

    fn ended(&mut self) -> Option<Ended> {
        self.news.event.take();
        self.news.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn kill(&mut self) {
        // Dropping it stops it and waits for its threads.
        self.vm = None;
    }

    fn clocks(&self) -> BootClocks {
        BootClocks {
            vm_created: self.timeline.at(Mark::Created),
            kernel_entered: self.timeline.at(Mark::Entered),
            init_started: self.timeline.at(Mark::Init),
        }
    }

    fn is_warm(&self) -> bool {
        self.warm
    }

    fn wants_template(&self) -> bool {
        self.key.is_some() && !self.warm
    }

    fn save_template(&mut self) {
        let began = Instant::now();
        match self.try_save() {
            Ok(()) => ::log::info!("the template took {} us", began.elapsed().as_micros()),
            Err(error) => ::log::warn!("cannot make a template: {}", chain(&error)),
        }
        self.key = None;
    }

    fn main_started(&mut self) {
        if !std::mem::take(&mut self.teaches) {
            return;
        }
        if let (Some(templates), Some(key), Some(vm)) = (&self.plan.templates, &self.key, &self.vm)
            && let Err(error) = Snapshot::learn(&templates.path(key), vm.mem())
        {
            ::log::info!("the template learned nothing: {}", chain(&error));
        }
    }

    fn start_cold(&mut self) -> bool {
        if !self.warm {
            return false;
        }
        self.vm = None;
        if let (Some(templates), Some(key)) = (&self.plan.templates, &self.key) {
            templates.discard(key);
        }
        match power_on(self.plan.clone(), None, None) {
            Ok(machine) => {
                *self = machine;
                true
            }
            Err(error) => {
                ::log::error!("cannot boot instead of the clone: {}", chain(&error));
                false
            }
        }
    }
}

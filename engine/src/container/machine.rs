//! The virtual machine of a container: its devices, and the guest's connections.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use servin_devices::event::Event;
use servin_devices::virtio::blk::{Blk, SECTOR};
use servin_devices::virtio::console::{Console, Output};
use servin_devices::virtio::id;
use servin_devices::virtio::net::trunk::Plug;
use servin_devices::virtio::vsock::{Listener, VsockHost};
use servin_init::proto::{BootOptions, CONTROL_PORT, Hello, Root, STREAM_PORT};
use servin_vmm::{ExitReason, Mark, Snapshot, Timeline, Vm, VmBuilder, VmEvent};

use super::{Disk, descriptors, share};
use crate::monitor::MachinePlan;
use crate::monitor::machine::{BootClocks, Ended, Machine};
use crate::monitor::wire::Clocks;
use crate::network::{Card, NetworkPlan, Published};
use crate::snapshot::{self, Place};
use crate::store::now_ns;
use crate::template::{About, Draft, Key};
use crate::{Error, Result, chain, trace};

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
    /// What the agent knows from the kernel command line.
    boot: BootOptions,
    /// The template that it was cloned from, or that it is to leave.
    key: Option<Key>,
    warm: bool,
    /// It continues a container that was saved: its root is there.
    restored: bool,
    /// What the disk for changes reads, while the container has none of its own.
    base: Weak<File>,
    /// It is the first clone, by which the template learns what to copy for the next.
    teaches: bool,
    /// What changes the networks of its card.
    plug: Option<Plug>,
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
    if let Some(chain) = &plan.snapshot {
        let snapshot = Snapshot::open_chain(chain)?;
        // It has the devices of the one that was saved.
        let verbose = snapshot.devices().contains(&id::CONSOLE);
        let mut machine = power_on(MachinePlan { verbose, ..plan.clone() }, None, Some(snapshot))?;
        // Another machine of the container boots.
        (machine.plan.snapshot, machine.restored) = (None, true);
        return Ok(machine);
    }
    let boot = boot_options(plan);
    let key = plan.templates.as_ref().and_then(|_| {
        Key::new(plan, &boot).unwrap_or_else(|error| {
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

/// A disk that has changes on it is not mounted before the container is known: so one template serves all of them.
fn boot_options(plan: &MachinePlan) -> BootOptions {
    let late = plan.disk.is_some() && plan.changes.as_ref().is_some_and(Disk::exists);
    BootOptions { root: (!late).then(|| plan.root.clone()), network: plan.card.is_some(), sockets: None }
}

/// The disk for changes. A clone whose root is mounted continues with what the template's disk held. Its flushes do not wait
/// for the host's disk: a container's end would, and data that must outlive its host belongs into a volume.
fn changes(
    disk: &Disk,
    plan: &MachinePlan,
    boot: &BootOptions,
    clone_of: Option<&Key>,
) -> Result<(Blk, Weak<File>)> {
    const ID: &str = "servin-changes";
    let sectors = |file: &File| {
        let length =
            file.metadata().map_err(|source| Error::io("look at", "the disk for changes", source))?.len();
        Ok::<_, Error>(length / SECTOR)
    };
    let base = match (clone_of, &plan.templates, &boot.root) {
        _ if plan.snapshot.is_some() => match plan.snapshot.as_deref() {
            Some([whole]) => Some(snapshot::disk::open(whole)?),
            _ => None,
        },
        (Some(key), Some(templates), Some(_)) => Some(templates.disk(key)?),
        _ => None,
    };
    if let Some(base) = base {
        let (sectors, own, base) = (sectors(&base)?, disk.clone(), Arc::new(base));
        let weak = Arc::downgrade(&base);
        return Ok((Blk::copy_on_write(base, sectors, ID, move |base| own.copy_of(base)).relaxed(), weak));
    }
    let file = match &plan.snapshot {
        // What changed since the first of them has nobody to share it with.
        Some(chain) => disk.write(|file| snapshot::disk::write(chain, file))?,
        None if disk.exists() => disk.open()?,
        None => disk.create()?,
    };
    let sectors = sectors(&file)?;
    let file = file.try_clone().map_err(|source| Error::io("open", "the disk for changes", source))?;
    Ok((Blk::new(file, sectors, false, ID).relaxed(), Weak::new()))
}

/// Starts a machine; with a snapshot a clone of it.
fn power_on(plan: MachinePlan, key: Option<Key>, snapshot: Option<Snapshot>) -> Result<VirtualMachine> {
    let warm = snapshot.is_some() && plan.snapshot.is_none();
    let mut base = Weak::new();
    let boot = boot_options(&plan);
    let teaches = warm && snapshot.as_ref().is_some_and(|snapshot| !snapshot.has_learned());
    let division = descriptors::divide(descriptors::raise(), plan.shares.len());
    let host = VsockHost::new().map_err(Error::Vsock)?;
    let listeners = [CONTROL_PORT, STREAM_PORT]
        .into_iter()
        .map(|port| host.listen(port))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(Error::Vsock)?;
    let news = Arc::new(News { event: Event::new().map_err(Error::Vsock)?, ended: Mutex::new(None) });
    let words = match (&plan.trace, plan.verbose) {
        (Some(_), _) => trace::WORDS,
        (None, true) => VERBOSE,
        (None, false) => QUIET,
    };
    let mut builder = VmBuilder::new()
        .memory_mib(plan.memory >> 20)
        .cpus(u8::try_from(plan.cpus).unwrap_or(u8::MAX))
        .executed_at(plan.began)
        .on_event({
            let news = Arc::clone(&news);
            move |event| news.hear(&event)
        })
        .vsock(CID, &host)
        .vsock_limits(division.sockets);
    builder = match snapshot {
        Some(snapshot) => builder.restore(snapshot),
        None => builder
            .kernel(&plan.guest.kernel)
            .initramfs(plan.guest.initramfs.clone())
            .cmdline_extra(&format!("{words} {boot}")),
    };
    if let Some(disk) = &plan.disk {
        let disk = Blk::open(disk, true, "servin-root").map_err(Error::Disk)?;
        builder = builder.device(Box::new(disk));
    }
    if let Some(disk) = &plan.changes {
        let clone_of = key.as_ref().filter(|_| warm);
        let (disk, read) = changes(disk, &plan, &boot, clone_of)?;
        base = read;
        builder = builder.device(Box::new(disk));
    }
    for share in &plan.shares {
        builder = builder.device(Box::new(share::open(share, division.share)?));
    }
    let mut plug = None;
    if let Some(card) = &plan.card {
        let (device, its_plug) = card.device()?;
        (builder, plug) = (builder.device(Box::new(device)), its_plug);
    }
    let console: Option<Box<dyn std::io::Write + Send>> = match &plan.trace {
        Some(trace) => Some(Box::new(trace.log())),
        None if plan.verbose => Some(Box::new(std::io::stderr())),
        None => None,
    };
    if let Some(output) = console {
        builder = builder.device(Box::new(Console::new(Output::Writer(output), None)));
    }
    if let Some(trace) = &plan.trace {
        builder = builder.trace(trace.accesses.clone());
    }
    let vm = builder.build()?;
    let timeline = vm.timeline().clone();
    vm.start()?;
    Ok(VirtualMachine {
        plan,
        boot,
        key,
        warm,
        restored: false,
        base,
        teaches,
        plug,
        vm: Some(vm),
        timeline,
        news,
        listeners,
        deaf: false,
    })
}

impl VirtualMachine {
    /// The template's disk is what the saved memory fits, if it was mounted.
    fn keep_disk(&self, draft: &Draft) -> Result<()> {
        match &self.plan.changes {
            Some(disk) if self.boot.root.is_some() => draft.keep_disk(&disk.look()?),
            _ => Ok(()),
        }
    }

    fn try_save(&self) -> Result<()> {
        let (Some(templates), Some(key), Some(vm)) = (&self.plan.templates, &self.key, &self.vm) else {
            return Ok(());
        };
        let Some(draft) = templates.draft(key)? else {
            ::log::info!("another run makes the template {}", key.as_str());
            return Ok(());
        };
        vm.pause()?;
        let saved = vm.save(draft.path()).map_err(Error::from).and_then(|_| self.keep_disk(&draft));
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

impl VirtualMachine {
    /// Saves the container, of whose machine nothing moves.
    fn try_snapshot(&self, vm: &Vm, place: &Place) -> Result<()> {
        let Place { dir, below, follow } = place;
        let id = match &below[..] {
            [] => vm.save(dir)?,
            below => vm.save_changes(dir, &Snapshot::open_chain(below)?)?,
        };
        match (&self.plan.changes, self.base.upgrade()) {
            (_, Some(base)) => snapshot::disk::keep(dir, below, &base)?,
            (Some(disk), None) => snapshot::disk::keep(dir, below, &disk.look()?)?,
            (None, None) => {}
        }
        if *follow {
            vm.follow(id)?;
        }
        Ok(())
    }
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
        (self.vm, self.plug) = (None, None);
    }

    fn publishes(&self) -> bool {
        self.plan.card.as_ref().is_some_and(Card::publishes)
    }

    fn retire(&mut self) {
        self.kill();
        self.plan.card = None;
    }

    fn clocks(&self) -> BootClocks {
        BootClocks {
            vm_created: self.timeline.at(Mark::Created),
            kernel_entered: self.timeline.at(Mark::Entered),
            init_started: self.timeline.at(Mark::Init),
        }
    }

    fn root(&self) -> Option<Root> {
        (self.boot.root.is_none() && !self.restored).then(|| self.plan.root.clone())
    }

    fn is_warm(&self) -> bool {
        self.warm
    }

    fn wants_template(&self) -> bool {
        self.key.is_some() && !self.warm
    }

    fn save_template(&mut self) -> std::result::Result<(), String> {
        let began = Instant::now();
        let saved = self.try_save().map_err(|error| chain(&error));
        ::log::info!("the template took {} us", began.elapsed().as_micros());
        self.key = None;
        saved
    }

    fn pause(&mut self) -> std::result::Result<(), String> {
        let vm = self.vm.as_ref().ok_or("the virtual machine has ended")?;
        vm.pause().map_err(|error| format!("cannot pause the virtual machine: {}", chain(&error)))
    }

    fn resume(&mut self) -> std::result::Result<(), String> {
        let vm = self.vm.as_ref().ok_or("the virtual machine has ended")?;
        vm.resume().map_err(|error| format!("cannot let the virtual machine go on: {}", chain(&error)))
    }

    fn known(&self) -> Vec<String> {
        self.vm.iter().flat_map(Vm::known).map(|id| id.to_string()).collect()
    }

    fn save(&self, place: &Place) -> std::result::Result<(), String> {
        let vm = self.vm.as_ref().ok_or("the virtual machine has ended")?;
        self.try_snapshot(vm, place).map_err(|error| format!("cannot save the container: {}", chain(&error)))
    }

    fn learn(&mut self) {
        if !std::mem::take(&mut self.teaches) {
            return;
        }
        if let (Some(templates), Some(key), Some(vm)) = (&self.plan.templates, &self.key, &self.vm)
            && let Err(error) = Snapshot::learn(&templates.path(key), vm.mem())
        {
            ::log::info!("the template learned nothing: {}", chain(&error));
        }
    }

    fn rewire(&mut self, networks: &NetworkPlan) -> std::result::Result<Vec<Published>, String> {
        let card = self.plan.card.as_mut().ok_or("the virtual machine has no network card")?;
        card.rewire(&networks.networking, &networks.publish, self.plug.as_ref())
    }

    fn write_trace(&self, clocks: &Clocks) {
        if let Some(trace) = &self.plan.trace
            && let Err(error) = trace.write(self.plan.began, clocks, &self.plan.guest.kernel)
        {
            ::log::error!("cannot write the trace: {error}");
        }
    }

    fn start_again(&mut self) -> Result<(), String> {
        *self = start(&self.plan).map_err(|error| chain(&error))?;
        Ok(())
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

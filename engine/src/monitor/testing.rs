//! A guest that is a few threads: it speaks the agent's wire and has programs of its own, one for each behaviour that the
//! session must meet. Beside it a record and a client.

mod client;
mod program;
mod record;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use servin_devices::event::Event;
use servin_init::proto::{
    CONTROL_PORT, Channel, Encode as _, Exec, Frames, GuestMessage, Hello, HostMessage, Networks, VERSION,
};

use super::machine::{BootClocks, Ended, Machine};
use crate::network::{NetworkPlan, Published};
use crate::snapshot::Place;
use program::{Input, program};
use record::names;

pub(super) use client::Client;
pub(super) use record::FakeRecord;

/// How long a test waits for anything.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// The machine's side of the fake.
pub(crate) struct FakeMachine {
    connections: Receiver<(u32, UnixStream)>,
    shared: Arc<Shared>,
    pub(crate) warm: bool,
    pub(crate) template: bool,
    pub(crate) publishes: bool,
}

/// What the guest's threads and the machine share.
struct Shared {
    event: Event,
    ended: Mutex<Option<Ended>>,
    sender: Mutex<Sender<(u32, UnixStream)>>,
    control: Mutex<UnixStream>,
    log: Mutex<Vec<String>>,
    /// It cannot stand still.
    restless: AtomicBool,
    /// The machine is not taken apart while a test holds it.
    apart: Mutex<()>,
}

/// What a test sees of the guest.
#[derive(Clone)]
pub(super) struct FakeGuest(Arc<Shared>);

impl FakeGuest {
    /// What reached the guest, and the machine's end.
    pub(super) fn log(&self) -> Vec<String> {
        self.0.log.lock().unwrap().clone()
    }

    /// From now on it cannot stand still.
    pub(super) fn be_restless(&self) {
        self.0.restless.store(true, Ordering::Relaxed);
    }

    /// Keeps the machine from being taken apart.
    pub(super) fn hold(&self) -> std::sync::MutexGuard<'_, ()> {
        self.0.apart.lock().unwrap()
    }

    /// Ends the machine under the session.
    pub(super) fn end(&self, ended: Ended) {
        *self.0.ended.lock().unwrap() = Some(ended);
        self.0.event.signal();
    }
}

impl Shared {
    fn connect(&self, port: u32) -> UnixStream {
        let (mine, theirs) = UnixStream::pair().unwrap();
        self.sender.lock().unwrap().send((port, theirs)).unwrap();
        self.event.signal();
        mine
    }

    fn say(&self, message: &GuestMessage) {
        let _ = self.control.lock().unwrap().write_all(&message.to_frame().unwrap());
    }

    fn note(&self, text: impl Into<String>) {
        self.log.lock().unwrap().push(text.into());
    }
}

/// A guest that says this hello or none, and its machine.
pub(super) fn hello(hello: Option<Hello>) -> (FakeMachine, FakeGuest) {
    let (sender, connections) = mpsc::channel();
    let (control, theirs) = UnixStream::pair().unwrap();
    let shared = Arc::new(Shared {
        event: Event::new().unwrap(),
        ended: Mutex::new(None),
        sender: Mutex::new(sender.clone()),
        control: Mutex::new(control.try_clone().unwrap()),
        log: Mutex::default(),
        restless: AtomicBool::new(false),
        apart: Mutex::default(),
    });
    sender.send((CONTROL_PORT, theirs)).unwrap();
    shared.event.signal();
    let machine = FakeMachine {
        connections,
        shared: Arc::clone(&shared),
        warm: false,
        template: false,
        publishes: false,
    };
    let guest = FakeGuest(Arc::clone(&shared));
    if let Some(hello) = hello {
        shared.say(&GuestMessage::Hello(hello));
    }
    thread::spawn(move || serve(&shared, control));
    (machine, guest)
}

fn serve(shared: &Arc<Shared>, mut control: UnixStream) {
    let mut frames = Frames::new(Channel::HostControl);
    let mut programs: HashMap<u32, Sender<Input>> = HashMap::new();
    loop {
        while let Some(frame) = frames.next_frame().unwrap() {
            match HostMessage::decode(frame).unwrap() {
                HostMessage::Configure(configure) => {
                    let on = configure.networks.map(|networks| format!(" on{}", numbers(&networks)));
                    shared.note(format!("configure {}{}", configure.hostname, on.unwrap_or_default()));
                    shared.say(&GuestMessage::Ready);
                }
                HostMessage::Exec(exec) => {
                    let (sender, inputs) = mpsc::channel();
                    programs.insert(exec.id, sender.clone());
                    let shared = Arc::clone(shared);
                    thread::spawn(move || program(&shared, &exec, &sender, &inputs));
                }
                HostMessage::Signal { id, signal } => {
                    shared.note(format!("signal {id} {signal}"));
                    let _ = programs.get(&id).map(|program| program.send(Input::Signal(signal)));
                }
                HostMessage::Resize { size, .. } => {
                    shared.note(format!("resize {}x{}", size.cols, size.rows))
                }
                HostMessage::Prepare(prepare) => {
                    shared.note(format!("prepare {}", String::from_utf8_lossy(&prepare.program)));
                }
                HostMessage::Files { id } => {
                    // One that gives back what it is given.
                    let (sender, inputs) = mpsc::channel();
                    programs.insert(id, sender.clone());
                    let exec = Exec { id, argv: vec![b"cat".to_vec()], ..Exec::default() };
                    let shared = Arc::clone(shared);
                    thread::spawn(move || program(&shared, &exec, &sender, &inputs));
                }
                HostMessage::Sync { token } => shared.say(&GuestMessage::Synced { token }),
                HostMessage::Update(limits) => {
                    shared.note(format!("update {:?} {:?}", limits.memory_max, limits.pids_max));
                    let message = if limits.pids_max == Some(13) { "unlucky" } else { "" };
                    shared.say(&GuestMessage::Updated { errno: 22, message: message.into() });
                }
                HostMessage::Observe { token, subject } => {
                    let text = format!("{subject:?}").into_bytes();
                    shared.say(&GuestMessage::Observed { token, cut: true, text });
                }
                HostMessage::Freeze { frozen } => {
                    shared.note(format!("freeze {frozen}"));
                    let message = if shared.restless.load(Ordering::Relaxed) { "stop" } else { "" };
                    shared.say(&GuestMessage::Frozen { errno: 0, message: message.into() });
                }
                HostMessage::Networks(networks) => {
                    let numbers = numbers(&networks);
                    shared.note(format!("networks{numbers}"));
                    // What ends with number 2 it cannot do, and to number 4 it says nothing.
                    let message = if numbers.ends_with('2') { "unlucky" } else { "" };
                    if !numbers.ends_with('4') {
                        shared.say(&GuestMessage::Networked { errno: 22, message: message.into() });
                    }
                }
                HostMessage::Shutdown => {
                    shared.note("shutdown");
                    *shared.ended.lock().unwrap() = Some(Ended::Off);
                    shared.event.signal();
                }
            }
        }
        match control.read(frames.space()) {
            Ok(count) if count > 0 => frames.advance(count),
            _ => return,
        }
    }
}

impl Machine for FakeMachine {
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.shared.event.as_fd()]
    }
    fn accept(&mut self) -> Option<(u32, UnixStream)> {
        self.shared.event.take();
        self.connections.try_recv().ok()
    }
    fn said_hello(&mut self, hello: &Hello, _: Instant) {
        assert_eq!(hello.version, VERSION);
    }
    fn ended(&mut self) -> Option<Ended> {
        self.shared.ended.lock().unwrap().clone()
    }
    fn kill(&mut self) {
        drop(self.shared.apart.lock().unwrap());
        self.shared.note("killed");
    }
    fn publishes(&self) -> bool {
        self.publishes
    }
    fn clocks(&self) -> BootClocks {
        BootClocks::default()
    }
    fn is_warm(&self) -> bool {
        self.warm
    }
    fn wants_template(&self) -> bool {
        self.template
    }
    fn save_template(&mut self) -> Result<(), String> {
        self.template = false;
        self.shared.note("template");
        Ok(())
    }
    fn pause(&mut self) -> Result<(), String> {
        self.shared.note("pause");
        Ok(())
    }
    fn resume(&mut self) -> Result<(), String> {
        self.shared.note("resume");
        Ok(())
    }
    fn known(&self) -> Vec<String> {
        vec!["7".into()]
    }
    fn save(&self, place: &Place) -> Result<(), String> {
        let Place { dir, below, .. } = place;
        let on = below.iter().map(|below| format!(" on {}", below.display())).collect::<String>();
        self.shared.note(format!("save {}{on}", dir.display()));
        if dir.ends_with("full") { Err("the disk is full".into()) } else { Ok(()) }
    }
    fn rewire(&mut self, networks: &NetworkPlan) -> Result<Vec<Published>, String> {
        let names = names(&networks.networking);
        self.shared.note(format!("rewire {names}"));
        if names.contains("broken") { Err("it is broken".into()) } else { Ok(Vec::new()) }
    }
    fn learn(&mut self) {}
    fn start_again(&mut self) -> Result<(), String> {
        self.shared.note("again");
        self.reboot();
        Ok(())
    }
    fn start_cold(&mut self) -> bool {
        self.shared.note("cold");
        self.reboot();
        std::mem::take(&mut self.warm)
    }
}

impl FakeMachine {
    fn reboot(&self) {
        *self.shared.ended.lock().unwrap() = None;
        let control = self.shared.connect(CONTROL_PORT);
        *self.shared.control.lock().unwrap() = control.try_clone().unwrap();
        self.shared.say(&GuestMessage::Hello(Hello { version: VERSION, ..Hello::default() }));
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || serve(&shared, control));
    }
}

fn numbers(networks: &Networks) -> String {
    networks.cards.iter().map(|card| format!(" {}", card.number)).collect()
}

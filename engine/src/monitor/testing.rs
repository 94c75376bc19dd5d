//! A guest that is a few threads: it speaks the agent's wire and has programs of its own, one for each behaviour that the
//! session must meet. And a client, as a command is.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use servin_devices::event::Event;
use servin_init::proto::{
    CONTROL_PORT, Channel, Encode, Exec, ExitStatus, Frames, GuestMessage, Hello, HostMessage, Networks,
    STREAM_PORT, Stage, StreamMessage, VERSION,
};

use super::machine::{BootClocks, Ended, Machine};
use super::wire::{Ask, Decoder, Exit, Message, Tell};
use crate::container::{Health, Update};
use crate::network::{Attachment, Change, Mode, NetworkPlan, Networking, Published};
use crate::snapshot::{Place, Target};

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

/// What reaches a program.
enum Input {
    Data(Vec<u8>),
    Eof,
    CloseStdout,
    Signal(u8),
}

fn program(shared: &Arc<Shared>, exec: &Exec, sender: &Sender<Input>, inputs: &Receiver<Input>) {
    let id = exec.id;
    let words: Vec<String> =
        exec.argv.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let name = words[0].as_str();
    let refuse = |errno| {
        shared.say(&GuestMessage::ExecFailed {
            id,
            stage: Stage::Program,
            errno,
            message: format!("exec {name}"),
        });
    };
    match name {
        "nope" => return refuse(2),
        "denied" => return refuse(13),
        _ => {}
    }
    let mut stream = shared.connect(STREAM_PORT);
    let mut send = |message: StreamMessage<'_>| stream.write_all(&message.to_frame().unwrap()).is_ok();
    send(StreamMessage::Hello { id });
    shared.say(&GuestMessage::Started { id, pid: 1 });
    let exit = |status, oom| shared.say(&GuestMessage::Exited { id, status, oom });
    let next = || inputs.recv_timeout(LIMIT).ok();
    let mut status = ExitStatus::Code(0);
    match name {
        "echo" => {
            send(StreamMessage::Stdout(format!("{}\n", words[1..].join(" ")).as_bytes()));
        }
        "both" => {
            send(StreamMessage::Stdout(b"out"));
            send(StreamMessage::Stderr(b"err"));
        }
        "exit" => status = ExitStatus::Code(words[1].parse().unwrap()),
        "late" => {
            // The exit overtakes the output.
            exit(ExitStatus::Code(4), false);
            thread::sleep(Duration::from_millis(100));
            send(StreamMessage::Stdout(b"last words"));
        }
        "wait" => loop {
            match next() {
                Some(Input::Signal(signal)) => break status = ExitStatus::Signal(signal),
                Some(_) => {}
                None => return,
            }
        },
        "stubborn" => while next().is_some() {},
        "oom" => {
            return (
                send(StreamMessage::StdoutEof),
                send(StreamMessage::StderrEof),
                exit(ExitStatus::Signal(9), true),
            )
                .2;
        }
        "cat" | "yes" => {
            let mut input = stream.try_clone().unwrap();
            let sender = sender.clone();
            thread::spawn(move || read_input(&mut input, &sender));
            let mut send =
                |message: StreamMessage<'_>| stream.write_all(&message.to_frame().unwrap()).is_ok();
            if name == "cat" {
                loop {
                    match next() {
                        Some(Input::Data(data)) => send(StreamMessage::Stdout(&data)),
                        Some(Input::Eof) => break,
                        Some(_) => true,
                        None => return,
                    };
                }
            } else {
                while !matches!(inputs.try_recv(), Ok(Input::CloseStdout)) {
                    if !send(StreamMessage::Stdout(&b"y\n".repeat(8192))) {
                        return;
                    }
                }
                status = ExitStatus::Signal(13);
            }
        }
        other => panic!("no program {other}"),
    }
    let mut send = |message: StreamMessage<'_>| stream.write_all(&message.to_frame().unwrap()).is_ok();
    send(StreamMessage::StdoutEof);
    send(StreamMessage::StderrEof);
    if name != "late" {
        exit(status, false);
    }
}

fn read_input(stream: &mut UnixStream, sender: &Sender<Input>) {
    let mut frames = Frames::new(Channel::HostStream);
    loop {
        while let Some(frame) = frames.next_frame().unwrap() {
            let input = match StreamMessage::decode(frame).unwrap() {
                StreamMessage::Stdin(data) => Input::Data(data.to_vec()),
                StreamMessage::StdinEof => Input::Eof,
                StreamMessage::CloseStdout => Input::CloseStdout,
                _ => continue,
            };
            let _ = sender.send(input);
        }
        match stream.read(frames.space()) {
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

/// What the record was told.
#[derive(Clone, Default)]
pub(super) struct FakeRecord(
    pub(super) Arc<Mutex<Vec<String>>>,
    bool,
    Option<PathBuf>,
    /// The events.
    pub(super) Arc<Mutex<Vec<String>>>,
    /// The networks.
    Arc<Mutex<Networking>>,
);

impl FakeRecord {
    /// On these networks, too.
    pub(super) fn connect(&self, networks: &[&str]) {
        let mut networking = self.4.lock().unwrap();
        networks.iter().for_each(|name| networking.push(Attachment::new(Mode::Shared((*name).into()))));
    }
}

fn numbers(networks: &Networks) -> String {
    networks.cards.iter().map(|card| format!(" {}", card.number)).collect()
}

fn names(networking: &Networking) -> String {
    networking.attachments.iter().map(|one| one.mode.network()).collect::<Vec<_>>().join(" ")
}

impl super::record::Record for FakeRecord {
    fn started(&mut self) {
        self.1 = true;
    }
    fn rest(&mut self) {}
    fn is_unsettled(&self) -> bool {
        self.1
    }
    fn settle(&mut self) {
        if std::mem::take(&mut self.1) {
            self.0.lock().unwrap().push("started".into());
        }
    }
    fn resting(&mut self, exit: &Exit, error: &str) {
        self.settle();
        self.0.lock().unwrap().push(format!("resting {} {error}", exit.code).trim_end().into());
    }
    fn ended(&mut self, exit: &Exit, error: &str) {
        self.settle();
        self.0
            .lock()
            .unwrap()
            .push(format!("ended {} oom={} {error}", exit.code, exit.oom).trim_end().into());
    }
    fn paused(&mut self, paused: bool) {
        self.0.lock().unwrap().push(if paused { "paused" } else { "unpaused" }.into());
    }
    fn updated(&mut self, update: &Update) {
        self.0.lock().unwrap().push(format!("updated {:?}", update.memory));
    }
    fn checked(&mut self, health: &Health, changed: bool) {
        let last = health.log.last().map(|result| format!(" {} {}", result.exit_code, result.output));
        let changed = if changed { " changed" } else { "" };
        self.0.lock().unwrap().push(format!("{}{changed}{}", health.status, last.unwrap_or_default()));
    }
    fn networks(&self) -> Result<NetworkPlan, String> {
        Ok(NetworkPlan { networking: self.4.lock().unwrap().clone(), ..NetworkPlan::default() })
    }
    fn foresee(&self, change: &Change) -> Result<NetworkPlan, String> {
        let networking = self.4.lock().unwrap().changed("box", change).map_err(|error| error.to_string())?;
        Ok(NetworkPlan { networking, ..NetworkPlan::default() })
    }
    fn reconnect(&mut self, change: &Change) -> Result<NetworkPlan, String> {
        let foreseen = self.foresee(change)?;
        self.0.lock().unwrap().push(format!("on {}", names(&foreseen.networking)).trim_end().into());
        *self.4.lock().unwrap() = foreseen.networking.clone();
        Ok(foreseen)
    }
    fn published(&mut self, ports: Vec<Published>) {
        assert!(ports.is_empty());
    }
    fn begin_snapshot(&mut self, target: &Target, known: &[String]) -> Result<(), String> {
        assert_eq!(known, ["7"]);
        match target {
            Target::Name(name) if name == "taken" => Err("there is one".into()),
            Target::Name(name) => {
                self.2 = Some(name.into());
                Ok(())
            }
            Target::Directory(_) => Err("not here".into()),
        }
    }
    fn snapshot(&self) -> Option<Place> {
        let dir = self.2.clone()?;
        let below = if dir.ends_with("two") { vec!["one".into()] } else { Vec::new() };
        Some(Place { dir, below, follow: true })
    }
    fn keep_snapshot(&mut self) -> Result<(), String> {
        self.settle();
        let name = self.2.take().ok_or("none was begun")?;
        self.0.lock().unwrap().push(format!("snapshot {}", name.display()));
        Ok(())
    }
    fn drop_snapshot(&mut self) {
        self.settle();
        self.2 = None;
        self.0.lock().unwrap().push("no snapshot".into());
    }
    fn event(&mut self, action: &str, attributes: &[(&str, &str)]) {
        let more: String = attributes.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        self.3.lock().unwrap().push(format!("{action}{more}"));
    }
}

/// A command's end of a connection.
pub(super) struct Client {
    pub(super) stream: UnixStream,
    decoder: Decoder,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Client { stream, decoder: Decoder::default() }
    }

    pub(super) fn ask(&mut self, ask: &Ask) {
        let mut frame = Vec::new();
        ask.encode(&mut frame);
        self.stream.write_all(&frame).unwrap();
    }

    /// The next message; `None` at the end of the connection.
    pub(super) fn next(&mut self) -> Option<Tell> {
        loop {
            if let Some(tell) = self.decoder.next_message().unwrap() {
                return Some(tell);
            }
            let mut buf = [0; 4096];
            match self.stream.read(&mut buf).expect("a message within the limit") {
                0 => return None,
                count => self.decoder.push(&buf[..count]),
            }
        }
    }

    /// Messages up to one that fits, which must come.
    pub(super) fn until(&mut self, fits: impl Fn(&Tell) -> bool) -> Vec<Tell> {
        let mut seen = Vec::new();
        loop {
            let tell = self.next().unwrap_or_else(|| panic!("the connection ended after {seen:?}"));
            let done = fits(&tell);
            seen.push(tell);
            if done {
                return seen;
            }
        }
    }

    /// Everything up to the end: standard output, standard error, and the last message.
    pub(super) fn finish(&mut self) -> (Vec<u8>, Vec<u8>, Option<Tell>) {
        let (mut out, mut err, mut last) = (Vec::new(), Vec::new(), None);
        while let Some(tell) = self.next() {
            match tell {
                Tell::Stdout(data) => out.extend(data),
                Tell::Stderr(data) => err.extend(data),
                other => last = Some(other),
            }
        }
        (out, err, last)
    }
}

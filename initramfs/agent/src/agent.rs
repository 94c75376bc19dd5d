//! The one loop: waits for the host and for the programs, and does what they ask for.

use alloc::{format, string::String, vec, vec::Vec};

use core::convert::Infallible;

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    fs::FlockOperation,
    io::Errno,
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};
use servin_init::proto::{
    BootOptions, Card, Channel, Configure, Exec, ExitStatus, GuestMessage, Hello, HostMessage, MAX_DATA,
    Network, Networks, Prepare, Root, Subject, Upper, VERSION,
};

use crate::{
    ahead, boot,
    child::{self, Place},
    failure::{Doing as _, Failure},
    files,
    link::{Link, Transport},
    network, observe, power,
    program::{Program, Source},
    setup::{self, Container},
    spawn::{self, Refusal},
    sys::{self, Parked},
};

type Result<T> = core::result::Result<T, Failure>;

const SIGKILL: u8 = 9;

/// What poll waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Control,
    /// The program at this index.
    Program(usize, Source),
}

#[derive(Debug)]
pub(crate) struct Agent {
    transport: Transport,
    control: Link,
    generation: u32,
    entry_cycles: u64,
    /// The initramfs, once the container's root was entered.
    initramfs: Option<OwnedFd>,
    container: Option<Container>,
    /// A process that waits to become the main program.
    parked: Option<Parked>,
    /// The networks that are set up.
    cards: Vec<Card>,
    programs: Vec<Program>,
    /// Programs that start when the container does not stand still for its files any more.
    waiting: Vec<Exec>,
    /// A main program was started, whether or not it still runs.
    had_main: bool,
    /// The container stands still: nothing of its programs is looked at.
    frozen: bool,
    /// New processes are born in the container's PID namespace.
    joined: bool,
    /// The container's changes go to a disk.
    has_disk: bool,
    /// Something outlives the machine, and is written back before its end is told.
    writes_back: bool,
}

impl Agent {
    /// Runs until the machine ends.
    pub(crate) fn run(options: &BootOptions, entry_cycles: u64) -> ! {
        let transport = match &options.sockets {
            Some(name) => {
                power::spare_the_machine();
                Transport::Unix(name.clone())
            }
            None => Transport::Vsock,
        };
        let control = match connect(&transport) {
            Ok(control) => control,
            Err(failure) => power::fail(&failure),
        };
        let mut agent = Self {
            transport,
            control,
            generation: 0,
            entry_cycles,
            initramfs: None,
            container: None,
            parked: None,
            cards: Vec::new(),
            programs: Vec::new(),
            waiting: Vec::new(),
            had_main: false,
            frozen: false,
            joined: false,
            has_disk: false,
            writes_back: false,
        };
        let Err(failure) = agent.prepare(options).and_then(|()| agent.serve());
        // The agent, and with it the connection, is still there to tell it.
        power::fail(&failure)
    }

    fn prepare(&mut self, options: &BootOptions) -> Result<()> {
        if let Some(root) = &options.root {
            self.enter(root)?;
        }
        if options.network {
            network::change(&mut self.cards, &[alone(Network::OWN)])?;
        }
        self.hello()?;
        if self.initramfs.is_some() {
            boot::furnish()?;
        }
        Ok(())
    }

    fn enter(&mut self, root: &Root) -> Result<()> {
        self.initramfs = Some(boot::enter_root(root)?);
        self.has_disk = matches!(root.upper, Upper::Ext4(_));
        Ok(())
    }

    fn hello(&mut self) -> Result<()> {
        self.control.queue(&GuestMessage::Hello(Hello {
            version: VERSION,
            generation: self.generation,
            entry_cycles: self.entry_cycles,
            hello_cycles: sys::cycles(),
        }))?;
        self.control.flush().doing("say hello to the host")
    }

    fn serve(&mut self) -> Result<Infallible> {
        let mut scratch = vec![0; MAX_DATA];
        loop {
            let ready = self.wait()?;
            for (token, flags) in &ready {
                match *token {
                    Token::Control => self.control_ready(*flags)?,
                    // What was ready before the container stood still.
                    Token::Program(..) if self.frozen => {}
                    Token::Program(index, source) => {
                        if let Some(program) = self.programs.get_mut(index) {
                            program.ready(source, *flags, &mut scratch)?;
                        }
                    }
                }
            }
            self.finish_programs()?;
            for exec in core::mem::take(&mut self.waiting) {
                self.exec(exec)?;
            }
            if self.control.has_pending() && self.control.flush().is_err() {
                self.lost_control(Errno::PIPE)?;
            }
        }
    }

    /// Waits until something is ready, and lists it.
    fn wait(&mut self) -> Result<Vec<(Token, PollFlags)>> {
        let mut tokens = vec![Token::Control];
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, self.control.has_pending());
        let mut fds = vec![PollFd::from_borrowed_fd(self.control.as_fd(), flags)];
        let watched = if self.frozen { &[][..] } else { &self.programs };
        for (index, program) in watched.iter().enumerate() {
            program.sources(|source, fd| {
                tokens.push(Token::Program(index, source));
                fds.push(fd);
            });
        }
        let draining: Vec<usize> =
            (0..watched.len()).filter(|i| watched.get(*i).is_some_and(Program::is_draining)).collect();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, (!draining.is_empty()).then_some(&now)) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno).doing("wait"),
        }
        let ready: Vec<_> = tokens
            .into_iter()
            .zip(fds.iter().map(PollFd::revents))
            .filter(|(_, flags)| !flags.is_empty())
            .collect();
        drop(fds);
        for index in draining {
            if let Some(program) = self.programs.get_mut(index) {
                program.end_output(|source| ready.iter().any(|(t, _)| *t == Token::Program(index, source)));
            }
        }
        Ok(ready)
    }

    fn control_ready(&mut self, flags: PollFlags) -> Result<()> {
        if flags.contains(PollFlags::ERR) {
            let errno = self.control.error();
            return self.lost_control(errno);
        }
        if flags.intersects(PollFlags::IN | PollFlags::HUP) {
            if let Err(errno) = self.control.receive() {
                return self.lost_control(errno);
            }
            while let Some(frame) = self.control.frames.next_frame()? {
                let message = HostMessage::decode(frame)?;
                self.handle(message)?;
            }
            if self.control.ended {
                return self.lost_control(Errno::CONNRESET);
            }
        }
        Ok(())
    }

    /// The control connection is gone. A machine that was restored from a snapshot makes a new one; a container
    /// that has run, and does not stand still, ends with it.
    fn lost_control(&mut self, errno: Errno) -> Result<()> {
        let said_hello = !self.control.has_pending();
        if !self.frozen && (self.had_main || !self.programs.is_empty()) || !said_hello {
            if self.programs.is_empty() && self.had_main {
                power::off();
            }
            power::remember_control(-1);
            return Err(errno).doing("talk to the host");
        }
        self.control = connect(&self.transport)?;
        self.generation += 1;
        for program in &mut self.programs {
            program.take_up(&self.transport)?;
        }
        self.hello()
    }

    fn handle(&mut self, message: HostMessage) -> Result<()> {
        match message {
            HostMessage::Configure(configure) => self.configure(&configure),
            HostMessage::Prepare(prepare) => self.make_ready(&prepare),
            HostMessage::Exec(exec) => self.exec(exec),
            HostMessage::Files { id } => self.files(id),
            HostMessage::Signal { id, signal } => {
                if let Some(program) = self.program(id) {
                    program.signal(signal);
                } else if let Some(index) = self.waiting.iter().position(|exec| exec.id == id) {
                    self.waiting.remove(index);
                    return self.started(id, Err(Refusal::request("it was killed before it was started")));
                }
                Ok(())
            }
            HostMessage::Resize { id, size } => {
                if let Some(program) = self.program(id) {
                    program.resize(size);
                }
                Ok(())
            }
            HostMessage::Sync { token } => {
                rustix::fs::sync();
                Ok(self.control.queue(&GuestMessage::Synced { token })?)
            }
            HostMessage::Shutdown => self.shut_down(),
            HostMessage::Update(limits) => {
                let (errno, message) =
                    answer(self.cgroup().and_then(|cgroup| setup::set_limits(cgroup, &limits)));
                Ok(self.control.queue(&GuestMessage::Updated { errno, message })?)
            }
            HostMessage::Freeze { frozen } => {
                let (errno, message) = answer(self.freeze(frozen));
                Ok(self.control.queue(&GuestMessage::Frozen { errno, message })?)
            }
            HostMessage::Networks(networks) => {
                let (errno, message) = answer(self.networks(&networks));
                Ok(self.control.queue(&GuestMessage::Networked { errno, message })?)
            }
            HostMessage::Observe { token, subject } => {
                // Where /proc cannot be read there is nothing to tell.
                let (text, cut) = match subject {
                    Subject::Usage => (observe::usage(self.cgroup().ok()), false),
                    Subject::Processes => observe::processes().unwrap_or_default(),
                };
                Ok(self.control.queue(&GuestMessage::Observed { token, cut, text })?)
            }
        }
    }

    fn cgroup(&self) -> Result<BorrowedFd<'_>> {
        let cgroup = self.container.as_ref().and_then(|container| container.cgroup.as_ref());
        cgroup.map(|cgroup| cgroup.as_fd()).ok_or_else(|| Failure::new("the guest's kernel has no cgroups"))
    }

    /// Lets the container stand still, with everything sent that was read of its programs, or go on.
    fn freeze(&mut self, frozen: bool) -> Result<()> {
        self.frozen = frozen;
        let done = self
            .cgroup()
            .and_then(|cgroup| setup::freeze(cgroup, frozen))
            .and_then(|()| self.programs.iter_mut().try_for_each(Program::send_all));
        if frozen && done.is_err() {
            let _ = self.freeze(false);
        }
        done
    }

    /// Moves the container to these networks, and tells it of them.
    fn networks(&mut self, networks: &Networks) -> Result<()> {
        network::change(&mut self.cards, &networks.cards)?;
        match (&mut self.container, &self.initramfs) {
            (Some(container), Some(initramfs)) => setup::tell(container, networks, initramfs.as_fd()),
            _ => Err(Failure::new("the container is not configured yet")),
        }
    }

    fn program(&self, id: u32) -> Option<&Program> {
        self.programs.iter().find(|program| program.id == id)
    }

    fn configure(&mut self, configure: &Configure) -> Result<()> {
        if self.had_main && !self.frozen {
            return Err(Failure::new("the host configured a container that runs already"));
        }
        match (&self.initramfs, &configure.root) {
            (None, Some(root)) => {
                self.enter(root)?;
                boot::furnish()?;
            }
            (None, None) => return Err(Failure::new("neither the command line nor the host named a root")),
            (Some(_), Some(_)) => {
                return Err(Failure::new("the host named a root, but there is one already"));
            }
            (Some(_), None) => {}
        }
        match (&configure.networks, configure.network) {
            (Some(networks), _) => network::change(&mut self.cards, &networks.cards)?,
            (None, Some(network)) => network::change(&mut self.cards, &[alone(network)])?,
            (None, None) => {}
        }
        let Some(initramfs) = &self.initramfs else { return Ok(()) };
        let container = setup::configure(configure, initramfs.as_fd(), self.container.take())?;
        self.writes_back = container.has_shares || self.has_disk && !configure.forget_changes;
        self.container = Some(container);
        Ok(self.control.queue(&GuestMessage::Ready)?)
    }

    fn make_ready(&mut self, prepare: &Prepare) -> Result<()> {
        let Some(initramfs) = self.initramfs.as_ref().filter(|_| self.container.is_none()) else {
            return Err(Failure::new(
                "the host prepared a container without a root, or one that is made already",
            ));
        };
        let container = setup::prepare(prepare, initramfs.as_fd())?;
        ahead::read(&prepare.program, &prepare.path);
        let cgroup = container.cgroup.as_ref().map(|cgroup| cgroup.as_fd());
        // Without it the main program's process is made when it is asked for.
        self.parked = sys::park(cgroup, child::settle_in_early).ok();
        self.container = Some(container);
        Ok(())
    }

    /// Starts a program, at once or when the container's files were read. One that is born into a cgroup that stands still
    /// never comes to its first instruction, and this process waits for that: nothing would carry the file server's answers
    /// out, and the container would stand still for ever.
    fn exec(&mut self, exec: Exec) -> Result<()> {
        let turn = match &self.initramfs {
            Some(initramfs) if !exec.main => {
                setup::turn(initramfs.as_fd(), FlockOperation::NonBlockingLockExclusive)
            }
            _ => Ok(None),
        };
        if matches!(turn, Err(Errno::WOULDBLOCK)) {
            self.waiting.push(exec);
            return Ok(());
        }
        let started = self.try_exec(&exec);
        drop(turn);
        self.started(exec.id, started)
    }

    fn files(&mut self, id: u32) -> Result<()> {
        let started = self.try_files(id);
        self.started(id, started)
    }

    fn started(&mut self, id: u32, started: core::result::Result<(Program, u32), Refusal>) -> Result<()> {
        let message = match started {
            Ok((program, pid)) => {
                self.had_main |= program.is_main;
                self.programs.push(program);
                GuestMessage::Started { id, pid }
            }
            Err(Refusal { stage, errno, message }) => GuestMessage::ExecFailed { id, stage, errno, message },
        };
        Ok(self.control.queue(&message)?)
    }

    fn try_exec(&mut self, exec: &Exec) -> core::result::Result<(Program, u32), Refusal> {
        let Some(container) = &self.container else {
            return Err(Refusal::request("the container is not configured yet"));
        };
        if self.program(exec.id).is_some() {
            return Err(Refusal::request("a running program has this id"));
        }
        let main = self.programs.iter().find(|program| program.is_main && program.exit.is_none());
        match (exec.main, main) {
            (true, _) if self.had_main => Err(Refusal::request("there was a main program already")),
            (true, _) => {
                let parked = spawn::fit(self.parked.take(), exec).map_err(|errno| Refusal {
                    stage: servin_init::proto::Stage::Namespace,
                    errno: errno.raw_os_error(),
                    message: "take the prepared process apart".into(),
                })?;
                spawn::start(exec, container, &self.transport, Place::Main, parked)
            }
            (false, None) => Err(Refusal::request("no main program is running")),
            (false, Some(main)) => {
                if !self.joined {
                    move_into_thread_name_spaces(main.pidfd(), ThreadNameSpaceType::PROCESS_ID).map_err(
                        |errno| Refusal {
                            stage: servin_init::proto::Stage::Namespace,
                            errno: errno.raw_os_error(),
                            message: "join the container's PID namespace".into(),
                        },
                    )?;
                    self.joined = true;
                }
                spawn::start(exec, container, &self.transport, Place::Beside(main.pidfd()), None)
            }
        }
    }

    fn try_files(&self, id: u32) -> core::result::Result<(Program, u32), Refusal> {
        let (Some(container), Some(initramfs)) = (&self.container, &self.initramfs) else {
            return Err(Refusal::request("the container is not configured yet"));
        };
        if self.program(id).is_some() {
            return Err(Refusal::request("a running program has this id"));
        }
        let exec = Exec { main: !self.had_main, ..files::exec(id) };
        spawn::start(&exec, container, &self.transport, Place::Machine(initramfs.as_fd()), None)
    }

    /// Sends what the programs have produced, and reports those that are through.
    fn finish_programs(&mut self) -> Result<()> {
        for program in &mut self.programs {
            program.flush();
        }
        let mut index = 0;
        while let Some(program) = self.programs.get(index) {
            let Some(status) = program.finished() else {
                index += 1;
                continue;
            };
            let (id, is_main) = (program.id, program.is_main);
            self.programs.remove(index);
            let oom = status != ExitStatus::Code(0)
                && self
                    .container
                    .as_ref()
                    .and_then(|container| container.cgroup.as_ref())
                    .is_some_and(|cgroup| setup::met_memory_limit(cgroup.as_fd()));
            if is_main && self.writes_back {
                // The host may stop the machine as soon as it knows of the exit.
                rustix::fs::sync();
            }
            self.control.queue(&GuestMessage::Exited { id, status, oom })?;
        }
        Ok(())
    }

    /// Kills what runs, waits for it (the main program takes everything else in its PID namespace with it), and
    /// powers off. A process that hangs in the kernel is not waited for longer than this.
    fn shut_down(&mut self) -> Result<()> {
        const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
        let running = || self.programs.iter().filter(|program| program.exit.is_none());
        for program in running() {
            program.signal(SIGKILL);
        }
        for program in running() {
            let mut fds = [PollFd::from_borrowed_fd(program.pidfd(), PollFlags::IN)];
            // Whatever it says, the next step is the same.
            let _ = poll(&mut fds, Some(&PATIENCE));
        }
        power::off()
    }
}

/// The network of a container that has one.
fn alone(network: Network) -> Card {
    Card { number: 0, network, leads_out: true }
}

/// A failure as it is told: number and text, empty if there was none.
fn answer(done: Result<()>) -> (i32, String) {
    match done {
        Ok(()) => (0, String::new()),
        Err(failure) => (failure.errno, failure.doing),
    }
}

fn connect(transport: &Transport) -> Result<Link> {
    let link = Link::connect(transport, Channel::HostControl).doing(format_args!(
        "connect to the host by {}",
        match transport {
            Transport::Vsock => format!("vsock port {}", servin_init::proto::CONTROL_PORT),
            Transport::Unix(name) => format!("the socket {name}/control"),
        }
    ))?;
    power::remember_control(link.as_fd().as_raw_fd());
    Ok(link)
}

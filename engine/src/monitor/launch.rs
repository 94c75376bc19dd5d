//! From a request to a monitor: the fork, and what the new process does first.

use std::fs::File;
use std::io::Write;
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use servin_init::proto::{Exec, WindowSize};

use super::found::{Found, MachinePlan, machine_plan, made};
use super::keeper::Keeper;
use super::log::Log;
use super::machine::Machine;
use super::record::Record;
use super::restore::Restore;
use super::session::{Session, Start};
use super::shares::{MOST_SHARES, shares, volume_shares};
use super::wire::{Exit, Failure, Message, Size, Tell};
use crate::container::{self, Request, Wanted, random, reconcile};
use crate::network::Card;
#[cfg(target_os = "linux")]
use crate::process::Fork;
use crate::process::{self, Signals};
use crate::store::Store;
use crate::{Error, Result, chain, host, os};

/// How long a guest may take to its first word.
const BOOT: Duration = Duration::from_secs(60);
/// The same where guest kernels are emulated.
const SLOW_BOOT: Duration = Duration::from_secs(300);
/// Signals that a host sends to everybody when it goes down (`SIGHUP`, `SIGINT`, `SIGTERM`): the container is stopped.
const ENDING: &[i32] = &[1, 2, 15];

/// What a monitor is for.
#[derive(Debug, Serialize, Deserialize)]
pub enum What {
    /// A new container.
    Run(Box<Request>),
    /// The template that a new container like this one would clone: nothing runs, and the container goes with its machine.
    Template(Box<Request>),
    /// A new container that continues one that was saved.
    Restore(Box<Restore>),
    /// One that is there and does not run, by its full id.
    Start {
        /// Its id.
        id: String,
        /// The command watches the program, and gives its input if it has one.
        attach: bool,
        /// The command has no input for it.
        no_stdin: bool,
    },
    /// The files of one that does not run, by its full id: the command speaks with a file server instead of a program.
    Files(String),
}

/// A monitor to be started.
#[derive(Debug)]
pub struct Launch {
    /// The data root; the default one without.
    pub data_root: Option<PathBuf>,
    /// What it is for.
    pub what: What,
    /// Size of the command's terminal.
    pub size: Option<Size>,
    /// When the command was executed.
    pub began: Instant,
    /// Keep the command's standard error for the monitor's log.
    pub keep_stderr: bool,
    /// Clone a template where there is one, and leave one where there is none.
    pub warm: bool,
    /// Write the start as a trace into this file, absolute; the machine then boots.
    pub trace: Option<PathBuf>,
}

impl Launch {
    /// Forks the monitor and gives the connection to it. Call it while the process has one thread.
    ///
    /// # Errors
    /// If the system refuses the fork; everything else is told on the connection.
    #[cfg(target_os = "linux")]
    pub fn fork(self) -> Result<UnixStream> {
        let (mine, theirs) = UnixStream::pair().map_err(Error::Fork)?;
        match process::fork(vec![OwnedFd::from(theirs)]).map_err(Error::Fork)? {
            Fork::Parent(_) => Ok(mine),
            Fork::Child(kept) => {
                let socket = kept.into_iter().next().map(UnixStream::from);
                let code = socket.map_or(125, |socket| self.serve(socket));
                std::process::exit(i32::from(code));
            }
        }
    }

    /// Executes this program once more, as the monitor, and gives the connection to it: what Apple's libraries hold does not
    /// survive a fork. The program must begin with [`super::serve_handed`].
    ///
    /// # Errors
    /// If the system refuses the new process; everything else is told on the connection.
    #[cfg(target_os = "macos")]
    pub fn fork(self) -> Result<UnixStream> {
        let mut command = std::process::Command::new(os::own_program().map_err(Error::Fork)?);
        std::os::unix::process::CommandExt::arg0(&mut command, "servin-monitor");
        command.args([super::HANDED, ::log::max_level().as_str()]);
        self.hand_over(command)
    }

    /// The monitor's whole life.
    pub(super) fn serve(self, socket: UnixStream) -> u8 {
        let _ = std::env::set_current_dir("/");
        // On macOS it was executed by that name.
        #[cfg(target_os = "linux")]
        let _ = rustix::thread::set_name(c"servin-monitor");
        // Before the machine's threads are made, which inherit it.
        let signals = Signals::take(ENDING).ok();
        if !self.keep_stderr {
            let _ = process::leave_terminal(None);
        }
        match prepare(&self, &socket, crate::container::machine::start) {
            Ok(mut session) => {
                session.stop_on(signals);
                // Everything is open, and no byte of the guest was seen yet.
                confine(session.has_network());
                session.run()
            }
            Err(error) => {
                tell(&socket, &Tell::Failed(failure(&error)));
                125
            }
        }
    }
}

/// Takes what it does not need from this process.
#[cfg(target_os = "linux")]
fn confine(network: bool) {
    if let Err(error) = super::confine::confine(network) {
        ::log::warn!("the monitor runs without a filter of system calls: {error}");
    }
}

/// Nothing: macOS gives programs no such filter.
#[cfg(target_os = "macos")]
fn confine(_: bool) {}

/// Takes less of the host's processors than others, or more where the host allows that. Before the machine's threads are
/// made, which inherit it.
fn take_turns(niceness: i32) {
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        ::log::warn!("the host does not let the monitor have niceness {niceness}: {error}");
    }
    os::weigh_session(niceness);
}

/// Everything up to a started machine.
pub(crate) fn prepare<M: Machine>(
    launch: &Launch,
    socket: &UnixStream,
    make: impl FnOnce(&MachinePlan) -> Result<M>,
) -> Result<Session<M, Keeper>> {
    let store = match &launch.data_root {
        Some(root) => Store::open(root)?,
        None => Store::open_default()?,
    };
    reconcile(&store)?;
    let (found, mut machine_plan, mut binds) = match &launch.what {
        What::Run(request) | What::Template(request) => {
            made(launch, &store, (**request).clone(), Wanted::new(&store, request)?)?
        }
        What::Restore(restore) => {
            let (request, wanted, chain) = restore.open(&store)?;
            let (found, machine_plan, binds) = made(launch, &store, request, wanted)?;
            (found, MachinePlan { snapshot: Some(chain), ..machine_plan }, binds)
        }
        What::Start { id, .. } | What::Files(id) => {
            let mut found = Found::again(&store, id)?;
            let is_start = matches!(launch.what, What::Start { .. });
            let made = shares(&found.request).and_then(|(shares, binds)| {
                // What only serves files has no network.
                let card = if is_start { found.bind(&store)? } else { None };
                let plan =
                    machine_plan(launch, &store, &found.request, found.image.as_ref(), id, shares, card)?;
                Ok((plan, binds))
            });
            match made {
                Ok((machine_plan, binds)) => (found, machine_plan, binds),
                Err(error) => {
                    let _ = found.run.remove();
                    return Err(error);
                }
            }
        }
    };
    let Found { record, request, plan, image, run } = found;
    if request.limits.cpu_shares.is_some() {
        take_turns(request.limits.niceness());
    }
    let files_only = matches!(launch.what, What::Files(_));
    let listener = if files_only { run.serves_files().map(|()| None) } else { run.listen().map(Some) };
    let id = record.id.clone();
    let dir = store.container_dir(&id);
    let created = matches!(launch.what, What::Run(_) | What::Restore(_) | What::Template(_));
    let mut keeper = Keeper::new(store, record, run, &request, files_only);
    tell(socket, &Tell::Created(id.clone()));
    let kind = host::hypervisor_kind();
    let is_slow = kind.is_some_and(host::Kind::is_slow);
    let made = listener.and_then(|listener| {
        keep_log(launch, &dir)?;
        if created {
            container::attach_volumes(
                &keeper.store,
                &id,
                &request,
                image.as_ref(),
                machine_plan.disk.as_deref(),
            )?;
        }
        for (share, bind) in
            volume_shares(&keeper.store, &id, container::has_volumes(&request, image.as_ref()))?
        {
            machine_plan.shares.push(share);
            binds.push(bind);
        }
        if machine_plan.shares.len() > MOST_SHARES {
            return Err(Error::TooManyShares { count: machine_plan.shares.len(), most: MOST_SHARES });
        }
        let entropy = random::<64>()?;
        let log = if files_only { None } else { Log::open(&dir, &request.log)? };
        Ok((make(&machine_plan)?, log, entropy, listener))
    });
    let (machine, log, entropy, listener) = match made {
        Ok(made) => made,
        Err(error) => {
            keeper.ended(&Exit { code: 125, oom: false }, &chain(&error));
            return Err(error);
        }
    };
    if is_slow && !machine.is_warm() && machine_plan.snapshot.is_none() {
        let text =
            "starting: guest kernels are emulated on this host (kvm_pvm), so that a start takes many seconds";
        tell(socket, &Tell::Notice(text.into()));
    }
    let mut configure = plan.configure(&request, &binds);
    configure.entropy = entropy.to_vec();
    if files_only {
        (configure.network, configure.networks) = (None, None);
    }
    let size = launch.size.map(|size| WindowSize { rows: size.rows, cols: size.cols });
    let main = plan.main(&request, super::session::MAIN, size);
    let start = Start {
        configure,
        restored: machine_plan.snapshot.is_some(),
        main: if files_only { Exec { terminal: None, stdin: true, ..main } } else { main },
        files_only,
        template_only: matches!(launch.what, What::Template(_)),
        network: machine_plan.card.as_ref().is_some_and(Card::is_ours),
        restart: request.restart,
        deadline: if is_slow { SLOW_BOOT } else { BOOT },
        stop_signal: plan.stop_signal,
        stop_timeout: Duration::from_secs(plan.stop_timeout.into()),
        needs_shutdown: machine_plan.shares.iter().any(|share| !share.read_only),
        began: launch.began,
        memory: machine_plan.memory,
        cpus: machine_plan.cpus,
        health: plan.health.clone().filter(|_| !files_only),
    };
    let mut session = Session::new(machine, keeper, start, log);
    if let Some(listener) = listener {
        session.listen(listener);
    }
    if let Ok(socket) = socket.try_clone() {
        let (watching, gives_input) = match &launch.what {
            What::Run(request) => (!request.detach, true),
            What::Restore(restore) => (!restore.detach, true),
            What::Start { attach, no_stdin, .. } => (*attach, !no_stdin),
            What::Files(_) => (true, true),
            What::Template(_) => (true, false),
        };
        session.launcher(socket, watching, gives_input);
    }
    Ok(session)
}

/// From here on the monitor's own diagnostics go to a file of the container.
fn keep_log(launch: &Launch, dir: &std::path::Path) -> Result<()> {
    if launch.keep_stderr {
        return Ok(());
    }
    let path = dir.join("monitor.log");
    let fail = |source| Error::io("open", &path, source);
    let file = File::options().append(true).create(true).open(&path).map_err(fail)?;
    process::leave_terminal(Some(&file)).map_err(fail)
}

/// Tells the command something before the loop runs. If it is gone, nobody needs to know.
fn tell(mut socket: &UnixStream, tell: &Tell) {
    let mut frame = Vec::new();
    tell.encode(&mut frame);
    let _ = socket.write_all(&frame);
}

fn failure(error: &Error) -> Failure {
    let hint = match error {
        Error::Guest(_) => Some("see \"servin doctor\"".to_owned()),
        _ => None,
    };
    Failure { code: 125, text: chain(error), hint }
}

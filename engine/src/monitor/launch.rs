//! From a request to a monitor: the fork, and what the new process does first.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use servin_init::proto::{BootOptions, Lower, Root, Upper, WindowSize};

use super::log::Log;
use super::machine::Machine;
use super::session::{Record, Session, Start};
use super::wire::{Exit, Failure, Message, Size, Tell};
use crate::container::{
    BindShare, Config, Plan, ROOT_TAG, Request, RootSource, RunDir, machine_memory, new_id, new_name, random,
    reconcile, remove_container,
};
use crate::guest::Guest;
use crate::image::{self, Image, Images, Process};
use crate::process::{self, Fork, Signals};
use crate::store::{self, State, Store, now_ns};
use crate::template::Templates;
use crate::{Error, Result, chain, host};

/// How long a guest may take to its first word.
const BOOT: Duration = Duration::from_secs(60);
/// The same where guest kernels are emulated.
const SLOW_BOOT: Duration = Duration::from_secs(300);
/// Signals that a host sends to everybody when it goes down (`SIGHUP`, `SIGINT`, `SIGTERM`): the container is stopped.
const ENDING: &[i32] = &[1, 2, 15];
/// How often a made-up name is tried.
const NAMES: u32 = 16;

/// A container to be run.
#[derive(Debug)]
pub struct Launch {
    /// The data root; the default one without.
    pub data_root: Option<PathBuf>,
    /// What to run.
    pub request: Request,
    /// Size of the command's terminal.
    pub size: Option<Size>,
    /// When the command was executed.
    pub began: Instant,
    /// Keep the command's standard error for the monitor's log.
    pub keep_stderr: bool,
    /// Clone a template where there is one, and leave one where there is none.
    pub warm: bool,
}

impl Launch {
    /// Forks the monitor and gives the connection to it. Call it while the process has one thread.
    ///
    /// # Errors
    /// If the system refuses the fork; everything else is told on the connection.
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

    /// The monitor's whole life.
    fn serve(self, socket: UnixStream) -> u8 {
        let _ = std::env::set_current_dir("/");
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
                if let Err(error) = super::confine::confine() {
                    ::log::warn!("the monitor runs without a filter of system calls: {error}");
                }
                session.run()
            }
            Err(error) => {
                tell(&socket, &Tell::Failed(failure(&error)));
                125
            }
        }
    }
}

/// What the machine is made from.
#[derive(Debug, Clone)]
pub(crate) struct MachinePlan {
    /// Kernel and initramfs.
    pub(crate) guest: Guest,
    /// Bytes.
    pub(crate) memory: u64,
    /// Virtual CPUs.
    pub(crate) cpus: u32,
    /// A read-only disk that becomes `/dev/vda`.
    pub(crate) disk: Option<PathBuf>,
    /// Directories and files of the host.
    pub(crate) shares: Vec<Share>,
    /// The guest kernel's words go to standard error.
    pub(crate) verbose: bool,
    /// When the command was executed.
    pub(crate) began: Instant,
    /// The agent's part of the kernel command line.
    pub(crate) boot: BootOptions,
    /// The image's name, for people.
    pub(crate) image: String,
    /// Where templates are; without, the machine boots and leaves none.
    pub(crate) templates: Option<Templates>,
}

/// A directory of the host, or one file in it, as a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) tag: String,
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
    /// `path` is a file: the share shows it alone, under its own name.
    pub(crate) is_file: bool,
}

/// Everything up to a started machine.
pub(crate) fn prepare<M: Machine>(
    launch: &Launch,
    socket: &UnixStream,
    make: impl FnOnce(&MachinePlan) -> Result<M>,
) -> Result<Session<M, Keeper>> {
    let request = &launch.request;
    let store = match &launch.data_root {
        Some(root) => Store::open(root)?,
        None => Store::open_default()?,
    };
    reconcile(&store)?;
    let image = match &request.root {
        RootSource::Image(name) => {
            let guest = image::guest_directory();
            Some(Images::new(&store).find_or_base(name, guest.as_deref(), &mut |_| {})?)
        }
        RootSource::Directory(_) => None,
    };
    let id = new_id()?;
    let defaults = Process::default();
    let plan = Plan::new(request, image.as_ref().map_or(&defaults, |image| &image.config.process), &id)?;
    let kernel = request.kernel.as_ref().map(|kernel| kernel.as_path());
    let (shares, binds) = shares(request)?;
    let machine_plan = MachinePlan {
        guest: Guest::find(kernel)?,
        memory: machine_memory(request.memory),
        cpus: request.cpus.count(),
        disk: image.as_ref().map(|image| Images::new(&store).root(image)).transpose()?,
        shares,
        verbose: launch.keep_stderr,
        began: launch.began,
        boot: boot_options(request),
        image: match &request.root {
            RootSource::Image(name) => name.clone(),
            RootSource::Directory(_) => String::new(),
        },
        templates: launch.warm.then(|| Templates::new(&store)),
    };
    let run = RunDir::create(store.root(), &id)?;
    let listener = run.listen()?;
    let dir = store.container_dir(&id);
    std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|source| Error::io("make", &dir, source))?;
    let mut keeper = Keeper::insert(store, run, request, &plan, image.as_ref(), &id)?;
    tell(socket, &Tell::Created(id.clone()));
    let kind = host::kvm_kind();
    let is_slow = kind.is_some_and(host::Kind::is_slow);
    let made = keep_log(launch, &dir).and_then(|()| {
        let entropy = random::<64>()?;
        let log = Log::open(&dir)?;
        Ok((make(&machine_plan)?, log, entropy))
    });
    let (machine, log, entropy) = match made {
        Ok(made) => made,
        Err(error) => {
            keeper.ended(&Exit { code: 125, oom: false }, &chain(&error));
            return Err(error);
        }
    };
    if is_slow && !machine.is_warm() {
        let text =
            "starting: guest kernels are emulated on this host (kvm_pvm), so that a start takes many seconds";
        tell(socket, &Tell::Notice(text.into()));
    }
    let mut configure = plan.configure(request, &binds);
    configure.entropy = entropy.to_vec();
    let size = launch.size.map(|size| WindowSize { rows: size.rows, cols: size.cols });
    let start = Start {
        configure,
        main: plan.main(request, super::session::MAIN, size),
        deadline: if is_slow { SLOW_BOOT } else { BOOT },
        stop_signal: plan.stop_signal,
        stop_timeout: Duration::from_secs(plan.stop_timeout.into()),
        needs_shutdown: machine_plan.shares.iter().any(|share| !share.read_only),
        began: launch.began,
    };
    let mut session = Session::new(machine, keeper, start, Some(log));
    session.listen(listener);
    if let Ok(socket) = socket.try_clone() {
        session.launcher(socket, !request.detach);
    }
    Ok(session)
}

/// The shares that the request needs: the root, and one for each bind.
fn shares(request: &Request) -> Result<(Vec<Share>, Vec<BindShare>)> {
    let (mut shares, mut binds) = (Vec::new(), Vec::new());
    if let RootSource::Directory(dir) = &request.root {
        let path = dir.as_path().to_path_buf();
        let meta = std::fs::metadata(&path).map_err(|source| Error::io("open", &path, source))?;
        if !meta.is_dir() {
            return Err(Error::Share { path, why: "the root file system must be a directory".into() });
        }
        shares.push(Share { tag: ROOT_TAG.into(), path, read_only: true, is_file: false });
    }
    for (index, bind) in request.binds.iter().enumerate() {
        let path = bind.host.as_path().to_path_buf();
        let is_file = match std::fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => false,
            Ok(meta) if meta.is_file() => true,
            Ok(_) => {
                return Err(Error::Share { path, why: "it is neither a directory nor a file".into() });
            }
            // As docker does it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !bind.read_only => {
                std::fs::create_dir_all(&path).map_err(|source| Error::io("make", &path, source))?;
                false
            }
            Err(source) => return Err(Error::io("open", &path, source)),
        };
        let path = path.canonicalize().map_err(|source| Error::io("open", &path, source))?;
        let tag = format!("v{index}");
        binds.push(BindShare {
            tag: tag.clone(),
            path: match path.file_name() {
                Some(name) if is_file => std::os::unix::ffi::OsStrExt::as_bytes(name).to_vec(),
                _ => Vec::new(),
            },
            target: bind.target.clone(),
            read_only: bind.read_only,
        });
        shares.push(Share { tag, path, read_only: bind.read_only, is_file });
    }
    Ok((shares, binds))
}

fn boot_options(request: &Request) -> BootOptions {
    let lower = match request.root {
        RootSource::Image(_) => Lower::Erofs("/dev/vda".into()),
        RootSource::Directory(_) => Lower::Virtiofs(ROOT_TAG.into()),
    };
    BootOptions { root: Some(Root { lower, upper: Upper::Tmpfs }), sockets: None }
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

/// The container's row and run directory, kept by its monitor.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Store,
    record: store::Record,
    remove: bool,
    run: Option<RunDir>,
}

impl Keeper {
    fn insert(
        store: Store,
        run: RunDir,
        request: &Request,
        plan: &Plan,
        image: Option<&Image>,
        id: &str,
    ) -> Result<Self> {
        let config = Config { request: request.clone(), plan: plan.clone() };
        let config = serde_json::to_string(&config)
            .map_err(|source| Error::Json { what: "the container's record".into(), source })?;
        let mut record = store::Record {
            id: id.to_owned(),
            name: String::new(),
            image: image.map(|image| image.id),
            config,
            state: State::Created,
            pid: i32::try_from(std::process::id()).ok(),
            exit_code: None,
            oom: false,
            error: String::new(),
            created_ns: now_ns(),
            started_ns: None,
            finished_ns: None,
        };
        let mut attempt = 0;
        loop {
            record.name = match &request.name {
                Some(name) => name.clone(),
                None => new_name(attempt)?,
            };
            match store.containers().insert(&record) {
                Ok(()) => break,
                Err(Error::NameTaken { .. }) if request.name.is_none() && attempt < NAMES => attempt += 1,
                Err(error) => {
                    let _ = std::fs::remove_dir_all(store.container_dir(id));
                    let _ = run.remove();
                    return Err(error);
                }
            }
        }
        Ok(Keeper { store, record, remove: request.remove, run: Some(run) })
    }
}

impl Record for Keeper {
    fn started(&mut self) {
        self.record.state = State::Running;
        self.record.started_ns = Some(now_ns());
        if let Err(error) = self.store.containers().update(&self.record) {
            ::log::error!("cannot record that the container runs: {}", chain(&error));
        }
    }

    fn ended(&mut self, exit: &Exit, error: &str) {
        self.record.state = State::Exited;
        self.record.exit_code = Some(i32::from(exit.code));
        self.record.oom = exit.oom;
        self.record.error = error.to_owned();
        self.record.pid = None;
        self.record.finished_ns = Some(now_ns());
        let done =
            self.store.containers().update(&self.record).and_then(|()| {
                if self.remove { remove_container(&self.store, &self.record) } else { Ok(()) }
            });
        let removed = self.run.take().map_or(Ok(()), RunDir::remove);
        for error in [done, removed].into_iter().filter_map(Result::err) {
            ::log::error!("cannot record the container's end: {}", chain(&error));
        }
    }
}

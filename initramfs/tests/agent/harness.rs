//! Runs the real agent as PID 1 of namespaces of its own, with Unix sockets in the place of vsock, and plays the host.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{PermissionsExt as _, symlink},
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use servin_init::proto::*;

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Says why the test is skipped, if it must be.
pub(crate) fn skipped() -> bool {
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
        let bits = effective.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
        if bits >> 21 & 1 == 0 {
            eprintln!("skipped: namespaces and mounts need root (CAP_SYS_ADMIN)");
            return true;
        }
    }
    if !Path::new("/bin/busybox").exists() {
        eprintln!("skipped: the container's programs come from busybox-static, which is not installed");
        return true;
    }
    false
}

/// The agent, built from this tree by the script that everybody uses, unless it is newer than its sources.
fn agent() -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| {
        let initramfs = Path::new(env!("CARGO_MANIFEST_DIR"));
        let agent = initramfs.join("../target/guest/servin-agent");
        let sources =
            ["src", "agent", "build.sh"].iter().filter_map(|source| newest(&initramfs.join(source)));
        if newest(&agent) < sources.max() {
            let built = Command::new(initramfs.join("build.sh")).status().expect("initramfs/build.sh runs");
            assert!(built.success(), "initramfs/build.sh: {built}");
        }
        agent
    })
}

/// When the newest file at or below `path` was changed; `None` if there is none.
fn newest(path: &Path) -> Option<SystemTime> {
    match fs::read_dir(path) {
        Ok(entries) => {
            let entries = entries.map(|entry| entry.unwrap());
            entries
                .filter(|entry| entry.file_name() != "target")
                .filter_map(|entry| newest(&entry.path()))
                .max()
        }
        Err(_) => fs::metadata(path).and_then(|metadata| metadata.modified()).ok(),
    }
}

/// A machine's worth of agent.
pub(crate) struct Guest {
    directory: PathBuf,
    cgroup: Option<PathBuf>,
    process: Child,
    control_listener: UnixListener,
    stream_listener: UnixListener,
    pub(crate) control: Wire,
    next_id: u32,
}

/// One connection, read frame by frame.
pub(crate) struct Wire {
    pub(crate) socket: UnixStream,
    frames: Frames,
}

impl Wire {
    fn new(socket: UnixStream, channel: Channel) -> Self {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { socket, frames: Frames::new(channel) }
    }

    pub(crate) fn send(&mut self, message: &impl Encode) {
        self.socket.write_all(&message.to_frame().unwrap()).unwrap();
    }

    /// The next frame through `decode`; `None` at the end of the stream.
    fn next<T>(&mut self, decode: impl Fn(Frame<'_>) -> Result<T, Error>) -> Option<T> {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(decode(frame).unwrap());
            }
            match self.socket.read(self.frames.space()) {
                Ok(0) => return None,
                Ok(count) => self.frames.advance(count),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came from the agent: {error}"),
            }
        }
    }

    pub(crate) fn message(&mut self) -> Option<GuestMessage> {
        self.next(GuestMessage::decode)
    }
}

/// What came out of a program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) code: u8,
}

impl Outcome {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

impl Guest {
    /// Starts the agent with an image made of busybox and waits for its Hello.
    pub(crate) fn boot(upper: Upper) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("servin-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&name);
        for empty in ["lower", "upper", "root", "cgroup", "shares", "files", "dev"] {
            fs::create_dir_all(directory.join(empty)).unwrap();
        }
        image(&directory.join("image"));
        fs::copy(agent(), directory.join("init")).unwrap();
        let listener = |kind: &str| {
            let address = SocketAddr::from_abstract_name(format!("{name}/{kind}")).unwrap();
            UnixListener::bind_addr(&address).unwrap()
        };
        let (control_listener, stream_listener) = (listener("control"), listener("stream"));
        let root = Some(Root { lower: Lower::Directory("/image".into()), upper });
        let options = BootOptions { root, network: false, sockets: Some(name) }.to_string();
        // A cgroup of its own to be the root of what it sees: this machine's are shared by all tests. It starts
        // outside, because a cgroup with processes passes no controllers on.
        let root = cgroup_root();
        let cgroup = root.as_ref().map(|root| root.join(directory.file_name().unwrap()));
        let mut script = format!(
            "exec env -i \"$@\" /usr/bin/unshare --mount --uts --ipc --pid --fork --kill-child=KILL --root {} /init",
            directory.display()
        );
        if let (Some(root), Some(cgroup)) = (root, &cgroup) {
            fs::create_dir(cgroup).unwrap();
            let (root, cgroup) = (root.display(), cgroup.display());
            script = format!(
                "echo $$ > {cgroup}/cgroup.procs && exec /usr/bin/unshare --cgroup \
                 sh -c 'echo $$ > {root}/cgroup.procs && {script}' sh \"$@\""
            );
        }
        let process = Command::new("sh")
            .args(["-c", &script, "sh"])
            .args(options.split(' '))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("sh runs");
        let mut process = process;
        let control = accept(&control_listener, &mut process);
        let control = Wire::new(control, Channel::GuestControl);
        let mut guest =
            Self { directory, cgroup, process, control_listener, stream_listener, control, next_id: 1 };
        guest.hello(0);
        guest
    }

    /// A guest that is configured with `configure`.
    pub(crate) fn configured(configure: Configure) -> Self {
        let mut guest = Self::boot(Upper::Tmpfs);
        guest.configure(configure);
        guest
    }

    pub(crate) fn configure(&mut self, configure: Configure) {
        self.control.send(&HostMessage::Configure(configure));
        assert_eq!(self.control.message(), Some(GuestMessage::Ready));
    }

    /// Prepares a container, as before a template is made.
    pub(crate) fn prepare(&mut self, prepare: Prepare) {
        self.control.send(&HostMessage::Prepare(prepare));
        self.control.send(&HostMessage::Sync { token: 7 });
        assert_eq!(self.control.message(), Some(GuestMessage::Synced { token: 7 }));
    }

    pub(crate) fn hello(&mut self, expected: u32) {
        let Some(GuestMessage::Hello(hello)) = self.control.message() else { panic!("no Hello") };
        assert_eq!((hello.version, hello.generation), (VERSION, expected));
        assert!(hello.hello_cycles >= hello.entry_cycles);
    }

    /// Closes a program's stream, as a machine that is restored finds it.
    pub(crate) fn drop_stream(&mut self, running: Running) {
        running.stream.socket.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// Takes the stream that the program with this id opens anew.
    pub(crate) fn again(&mut self, id: u32) -> Running {
        self.stream(id)
    }

    /// Closes the control connection and takes the agent's next one.
    pub(crate) fn reconnect(&mut self) {
        self.control.socket.shutdown(std::net::Shutdown::Both).unwrap();
        let socket = accept(&self.control_listener, &mut self.process);
        self.control = Wire::new(socket, Channel::GuestControl);
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join("image")
    }

    /// Sends `Exec` with a fresh id and takes the stream that belongs to it.
    pub(crate) fn exec(&mut self, mut exec: Exec) -> Running {
        exec.id = self.next_id;
        self.next_id += 1;
        self.control.send(&HostMessage::Exec(exec.clone()));
        self.stream(exec.id)
    }

    /// Starts a file server.
    pub(crate) fn files(&mut self) -> Running {
        let id = self.next_id;
        self.next_id += 1;
        self.control.send(&HostMessage::Files { id });
        let running = self.stream(id);
        match self.control.message() {
            Some(GuestMessage::Started { id: started, .. }) if started == id => running,
            other => panic!("the file server did not start: {other:?}"),
        }
    }

    /// Takes the stream of the program that was asked for last.
    fn stream(&mut self, id: u32) -> Running {
        let stream = accept(&self.stream_listener, &mut self.process);
        let mut stream = Wire::new(stream, Channel::GuestStream);
        stream.next(|frame| {
            assert_eq!(StreamMessage::decode(frame), Ok(StreamMessage::Hello { id }));
            Ok(())
        });
        Running { id, stream, output: Outcome::default(), ended: (false, false) }
    }

    /// [`Guest::exec`], and waits until the program has started.
    pub(crate) fn start(&mut self, exec: Exec) -> Running {
        let running = self.exec(exec);
        match self.control.message() {
            Some(GuestMessage::Started { id, .. }) if id == running.id => running,
            other => panic!("the program did not start: {other:?}"),
        }
    }

    /// Runs a program to its end.
    pub(crate) fn run(&mut self, exec: Exec) -> Outcome {
        let running = self.start(exec);
        self.wait(running)
    }

    /// Reads a program's stream and takes its exit.
    pub(crate) fn wait(&mut self, mut running: Running) -> Outcome {
        running.read_to_end();
        let (status, _) = self.exit(running.id);
        Outcome { code: status.code(), ..running.output }
    }

    pub(crate) fn exit(&mut self, wanted: u32) -> (ExitStatus, bool) {
        match self.control.message() {
            Some(GuestMessage::Exited { id, status, oom }) if id == wanted => (status, oom),
            other => panic!("expected the exit of {wanted}: {other:?}"),
        }
    }

    /// Waits until the agent has ended its machine.
    pub(crate) fn ends(&mut self) {
        let start = Instant::now();
        // Its end closes the connection, which is what is waited for.
        while self.control.message().is_some() {}
        let status = self.process.wait().unwrap();
        assert!(start.elapsed() < DEADLINE, "it took {:?} to end: {status}", start.elapsed());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
        if let Some(cgroup) = &self.cgroup {
            // The kernel says nothing when a killed process has left its cgroup, so this asks.
            let start = Instant::now();
            while cgroup.exists() && start.elapsed() < Duration::from_secs(2) {
                let _ = fs::remove_dir(cgroup.join("container"));
                if fs::remove_dir(cgroup).is_err() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

/// Says so if this machine does not hand out these controllers by cgroup v2.
pub(crate) fn skipped_without(controllers: &[&str]) -> bool {
    let Some(root) = cgroup_root() else {
        eprintln!("skipped: there is no cgroup v2 on this machine");
        return true;
    };
    let given = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
    let missing = controllers.iter().find(|wanted| !given.split_whitespace().any(|name| name == **wanted));
    if let Some(name) = missing {
        eprintln!("skipped: cgroup v2 gives no {name} controller on this machine");
    }
    missing.is_some()
}

/// Where this machine has cgroup v2 mounted.
fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.starts_with("cgroup2 ") || line.contains(" cgroup2 "))?;
    mount.split(' ').nth(1).map(PathBuf::from)
}

/// Takes a connection, unless the agent ends first.
fn accept(listener: &UnixListener, agent: &mut Child) -> UnixStream {
    // std has no accept with a deadline, so readiness is asked for through a thread that the deadline abandons.
    let (sender, receiver) = std::sync::mpsc::channel();
    let listener = listener.try_clone().unwrap();
    std::thread::spawn(move || sender.send(listener.accept().map(|(socket, _)| socket)));
    match receiver.recv_timeout(DEADLINE) {
        Ok(socket) => socket.unwrap(),
        Err(_) => panic!("the agent did not connect; it is {:?}", agent.try_wait()),
    }
}

/// A program whose stream is open.
pub(crate) struct Running {
    pub(crate) id: u32,
    pub(crate) stream: Wire,
    pub(crate) output: Outcome,
    ended: (bool, bool),
}

impl Running {
    pub(crate) fn input(&mut self, data: &[u8]) {
        for chunk in data.chunks(MAX_DATA) {
            self.stream.send(&StreamMessage::Stdin(chunk));
        }
    }

    pub(crate) fn end_input(&mut self) {
        self.stream.send(&StreamMessage::StdinEof);
    }

    /// Reads one frame of output; false at the end of the stream.
    pub(crate) fn read(&mut self) -> bool {
        let (output, ended) = (&mut self.output, &mut self.ended);
        let seen = self.stream.next(|frame| {
            // `next` takes a `Fn`; what is borrowed from the frame leaves it as an owned value.
            Ok(match StreamMessage::decode(frame)? {
                StreamMessage::Stdout(data) => (Some(data.to_vec()), None, false, false),
                StreamMessage::Stderr(data) => (None, Some(data.to_vec()), false, false),
                StreamMessage::StdoutEof => (None, None, true, false),
                StreamMessage::StderrEof => (None, None, false, true),
                other => panic!("{other:?} from the guest"),
            })
        });
        let Some((stdout, stderr, stdout_eof, stderr_eof)) = seen else { return false };
        assert!(!(ended.0 && (stdout.is_some() || stdout_eof)), "standard output goes on after its end");
        assert!(!(ended.1 && (stderr.is_some() || stderr_eof)), "standard error goes on after its end");
        output.stdout.extend(stdout.unwrap_or_default());
        output.stderr.extend(stderr.unwrap_or_default());
        ended.0 |= stdout_eof;
        ended.1 |= stderr_eof;
        true
    }

    pub(crate) fn read_until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.output.stdout).contains(text) {
            assert!(self.read(), "the stream ended before {text:?}: {:?}", self.output);
        }
    }

    pub(crate) fn read_to_end(&mut self) {
        while self.read() {}
        assert_eq!(self.ended, (true, true), "the stream ended without both EOF frames");
    }
}

/// An image: busybox and a few users.
fn image(directory: &Path) {
    for made in ["bin", "etc", "tmp", "root", "proc", "sys", "dev"] {
        fs::create_dir_all(directory.join(made)).unwrap();
    }
    fs::copy("/bin/busybox", directory.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "echo", "cat", "id", "stty", "sleep", "dd", "head", "wc", "ls", "true", "mount", "touch", "rm",
        "env", "pwd", "kill", "ps", "hostname", "yes", "grep", "mkdir", "mv", "stat", "test", "nproc",
        "setsid", "cut",
    ] {
        symlink("busybox", directory.join("bin").join(applet)).unwrap();
    }
    let write = |path: &str, text: &str, mode| {
        fs::write(directory.join(path), text).unwrap();
        fs::set_permissions(directory.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/var/www:/bin/sh\n", 0o644);
    write("etc/group", "root:x:0:\nwww:x:34:\nextra:x:35:other,www\n", 0o644);
    write("etc/plain", "not a program\n", 0o644);
    write("etc/script", "no interpreter here\n", 0o755);
}

/// `sh -c script`.
pub(crate) fn sh(script: &str) -> Exec {
    command(&["sh", "-c", script])
}

pub(crate) fn command(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|arg| arg.as_bytes().to_vec()).collect(), ..Exec::default() }
}

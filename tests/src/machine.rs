//! How the whole-machine tests find servin, run it with a deadline, and see what came of it.
//!
//! The tests run on whatever `/dev/kvm` there is: the machine's own, or the nested host's. Where there is none they
//! print `skipped: no hypervisor`. On a host that emulates guest kernels (`kvm_pvm`) a start takes seconds, so most
//! tests print `skipped: slow hypervisor` there; the nested host runs every one of them.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::{pty, termios};

use crate::stuck;

/// The longest that one command may take, on the slowest host there is.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// The servin to be tested, with a data root of its own that goes when this does.
#[derive(Debug)]
pub struct Servin {
    program: PathBuf,
    root: tempfile::TempDir,
    /// Variables of its environment besides `PATH` and `HOME`.
    pub env: Vec<(String, String)>,
}

/// What came of a command.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the test unless the command ended with `code` and wrote exactly `stdout`.
    #[track_caller]
    pub fn expect(&self, code: i32, stdout: &str) {
        assert!(
            self.code == Some(code) && self.stdout == stdout.as_bytes(),
            "expected code {code} and output {stdout:?}, got {self:#?}"
        );
    }
}

/// Whether `/dev/kvm` can be used.
pub fn hypervisor() -> bool {
    File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Whether the hypervisor emulates guest kernels.
pub fn slow() -> bool {
    Path::new("/sys/module/kvm_pvm").exists()
        && !["kvm_amd", "kvm_intel"].iter().any(|name| Path::new("/sys/module").join(name).exists())
}

/// The servin that was built: `$SERVIN_BIN`, else the release build, else the debug build.
///
/// # Panics
/// If there is none: these tests are run by `make test`, which builds it.
pub fn program() -> PathBuf {
    if let Some(named) = env::var_os("SERVIN_BIN") {
        return named.into();
    }
    let exe = env::current_exe().expect("the test knows its own path");
    let target = exe.ancestors().nth(3).expect("the test lies in target/PROFILE/deps");
    ["release", "debug"]
        .iter()
        .map(|profile| target.join(profile).join("servin"))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("no servin in {}: cargo build --release -p servin", target.display()))
}

impl Servin {
    /// servin alone, for what needs no hypervisor.
    pub fn without_machine() -> Self {
        Self { program: program(), root: tempfile::tempdir().expect("a temporary folder"), env: Vec::new() }
    }

    /// servin on any hypervisor, a slow one included. `None`, and a line that says so, where there is none.
    pub fn on_any_host() -> Option<Self> {
        if hypervisor() {
            return Some(Self::without_machine());
        }
        println!("skipped: no hypervisor");
        None
    }

    /// servin on a hypervisor on which a start takes no seconds.
    pub fn new() -> Option<Self> {
        if hypervisor() && slow() {
            println!("skipped: slow hypervisor (kvm_pvm); the nested host runs this test");
            return None;
        }
        Self::on_any_host()
    }

    /// Where its images and containers are.
    pub fn data_root(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// A folder for the test's own files.
    pub fn folder(&self) -> &Path {
        self.root.path()
    }

    /// A command with these words, its environment cleared but for what servin needs.
    pub fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, words: I) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_clear().env("SERVIN_DATA_ROOT", self.data_root()).env("HOME", self.root.path());
        for name in ["PATH", "SERVIN_GUEST_DIR"] {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs servin with these words and waits for it.
    #[track_caller]
    pub fn go(&self, words: &[&str]) -> Outcome {
        self.start(words).finish()
    }

    /// Runs servin with these words and `input` on its standard input.
    #[track_caller]
    pub fn go_with_input(&self, words: &[&str], input: &[u8]) -> Outcome {
        let mut command = self.command(words);
        command.stdin(Stdio::piped());
        let mut running = Running::spawn(command);
        let mut stdin = running.child.stdin.take().expect("a pipe");
        let input = input.to_vec();
        let writer = thread::spawn(move || stdin.write_all(&input));
        let outcome = running.finish();
        // A program that ends before it has read everything breaks the pipe: that is its right.
        let _ = writer.join();
        outcome
    }

    /// Starts servin with these words.
    #[track_caller]
    pub fn start(&self, words: &[&str]) -> Running {
        Running::spawn(self.command(words))
    }

    /// Starts servin with these words on a new terminal of `rows` and `columns`, which controls it. What it writes there
    /// is the process's standard output.
    ///
    /// # Panics
    /// If the host gives no terminal.
    #[track_caller]
    pub fn on_terminal(&self, rows: u16, columns: u16, words: &[&str]) -> (Running, Terminal) {
        let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).expect("a terminal");
        pty::grantpt(&master).expect("grantpt");
        pty::unlockpt(&master).expect("unlockpt");
        let name = pty::ptsname(&master, Vec::new()).expect("its name").into_string().expect("ASCII");
        let slave = File::options().read(true).write(true).open(name).expect("the other side");
        let terminal = Terminal(master.into());
        terminal.resize(rows, columns);
        // setsid makes the terminal the controlling one of its session, and becomes servin.
        let plain = self.command(words);
        let mut command = Command::new("setsid");
        command.arg("-c").arg(plain.get_program()).args(plain.get_args()).env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let share = || slave.try_clone().expect("a descriptor");
        command.stdin(share()).stdout(share()).stderr(share());
        let mut running = Running::spawn(command);
        running.stdout = drain(terminal.0.try_clone().expect("a descriptor"));
        (running, terminal)
    }

    /// Starts servin with these words, its standard input a pipe: [`Running::say`].
    #[track_caller]
    pub fn start_with_input(&self, words: &[&str]) -> Running {
        let mut command = self.command(words);
        command.stdin(Stdio::piped());
        Running::spawn(command)
    }

    /// Where the programs of `tests/guest` are, which run in guests and on the host: built already
    /// (`SERVIN_TEST_PROGRAMS`), or now. Without a compiler it says so.
    ///
    /// # Panics
    /// If they do not build.
    pub fn programs(&self) -> Option<PathBuf> {
        if let Some(built) = env::var_os("SERVIN_TEST_PROGRAMS") {
            return Some(built.into());
        }
        if Command::new("gcc").arg("--version").output().is_err() {
            println!("skipped: no gcc to build the guest's programs with");
            return None;
        }
        let programs = self.folder().join("programs");
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/build.sh");
        let built = Command::new(build).arg(&programs).output().expect("the script runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Some(programs)
    }

    /// Starts a command made by [`Servin::command`].
    #[track_caller]
    pub fn spawn(&self, command: Command) -> Running {
        Running::spawn(command)
    }
}

/// The user's side of a terminal.
#[derive(Debug)]
pub struct Terminal(File);

impl Terminal {
    /// Types these bytes.
    ///
    /// # Panics
    /// If the terminal is gone.
    #[track_caller]
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the terminal takes what is typed");
    }

    /// Changes the terminal's size.
    ///
    /// # Panics
    /// If the terminal is gone.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        termios::tcsetwinsize(&self.0, size).expect("the terminal has a size");
    }

    /// Whether the terminal works line by line and shows what is typed, as one does that nobody has in hand.
    ///
    /// # Panics
    /// If the terminal is gone.
    #[track_caller]
    pub fn is_cooked(&self) -> bool {
        let modes = termios::tcgetattr(&self.0).expect("the terminal has modes").local_modes;
        modes.contains(termios::LocalModes::ICANON | termios::LocalModes::ECHO | termios::LocalModes::ISIG)
    }
}

/// A servin that runs.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub child: Child,
    stdout: mpsc::Receiver<Vec<u8>>,
    stderr: mpsc::Receiver<Vec<u8>>,
    seen: Vec<u8>,
    started: Instant,
}

impl Running {
    #[track_caller]
    fn spawn(mut command: Command) -> Self {
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = child.stdout.take().map_or_else(|| mpsc::channel().1, drain);
        let stderr = child.stderr.take().map_or_else(|| mpsc::channel().1, drain);
        Self { child, stdout, stderr, seen: Vec::new(), started }
    }

    fn left(&self) -> Duration {
        DEADLINE.saturating_sub(self.started.elapsed())
    }

    /// Waits until standard output holds `text`.
    ///
    /// # Panics
    /// If the output ends, or the deadline passes, before it does.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            match self.stdout.recv_timeout(self.left()) {
                Ok(more) => self.seen.extend(more),
                Err(error) => {
                    println!("{}", stuck::report(self.child.id()));
                    let _ = self.child.kill();
                    let stderr: Vec<u8> = self.stderr.iter().flatten().collect();
                    panic!(
                        "no {text:?} ({error}) in {:?}; standard error: {}",
                        String::from_utf8_lossy(&self.seen),
                        String::from_utf8_lossy(&stderr)
                    );
                }
            }
        }
    }

    /// Writes to its standard input.
    ///
    /// # Panics
    /// If it was started without, or reads no more.
    #[track_caller]
    pub fn say(&mut self, text: &str) {
        let input = self.child.stdin.as_mut().expect("a pipe");
        input.write_all(text.as_bytes()).expect("standard input is read");
    }

    /// Ends its standard input.
    pub fn end_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Sends the servin process a signal, by name.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -s {name} failed");
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If the deadline passes; the process is killed then.
    #[track_caller]
    pub fn finish(mut self) -> Outcome {
        let (mut stdout, mut stderr) = (std::mem::take(&mut self.seen), Vec::new());
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                break status;
            }
            if self.left().is_zero() {
                println!("{}", stuck::report(self.child.id()));
                let _ = self.child.kill();
                stdout.extend(self.stdout.try_iter().flatten());
                stderr.extend(self.stderr.try_iter().flatten());
                panic!(
                    "still running after {DEADLINE:?}; output {:?}, standard error {:?}",
                    String::from_utf8_lossy(&stdout),
                    String::from_utf8_lossy(&stderr)
                );
            }
            // The end of the output is the event to wait for; a short wait serves when output was closed early.
            match self.stdout.recv_timeout(Duration::from_millis(20).min(self.left())) {
                Ok(more) => stdout.extend(more),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(5)),
            }
        };
        let took = self.started.elapsed();
        stdout.extend(collect(&self.stdout));
        stderr.extend(collect(&self.stderr));
        Outcome { code: status.code(), stdout, stderr: String::from_utf8_lossy(&stderr).into_owned(), took }
    }
}

/// What is still to come until the pipe closes; a process left behind that keeps it open fails the test.
#[track_caller]
fn collect(pipe: &mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    let mut all = Vec::new();
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match pipe.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(more) => all.extend(more),
            Err(mpsc::RecvTimeoutError::Disconnected) => return all,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("servin has ended, but its output is still open"),
        }
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    if sender.send(buffer[..length].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

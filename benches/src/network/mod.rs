//! TCP between a container and its host, through the network in the monitor and through `passt`, in one run.
//!
//! The container's busybox is the other end: `dd` sends and takes, `cat` gives back what it gets. The clock is this
//! program's own, from the first byte to the last; the machine's start is not in it. Where clocks count instructions
//! (`tests/nested/run.sh --icount`) the figures are those of the one CPU on which guest, monitor, `passt` and this
//! program take turns: less work is more speed.

mod passt;

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use passt::Passt;

/// Bytes of a small exchange.
const SMALL: usize = 64;
/// Exchanges before those that count.
const WARM_UP: usize = 50;
/// Bytes that the host's end reads or writes at a time.
const CHUNK: usize = 64 << 10;
/// No answer for so long is none.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is measured, and with what.
#[derive(Debug, Clone)]
pub struct Setup {
    /// servin's path.
    pub servin: PathBuf,
    /// Its data root.
    pub data_root: PathBuf,
    /// `passt`'s path.
    pub passt: PathBuf,
    /// An address of this host that is not the loopback's.
    pub address: IpAddr,
    /// MiB of one transfer.
    pub mib: usize,
    /// Transfers in each direction.
    pub transfers: usize,
    /// Small exchanges.
    pub exchanges: usize,
}

/// What the container's card is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// The network in the monitor.
    Own,
    /// `passt`, over `--network socket:PATH`.
    Passt,
}

/// What one wire carries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// MiB in a second from the container to the host, median of the transfers.
    pub out_mib_per_s: f64,
    /// The other way.
    pub in_mib_per_s: f64,
    /// Microseconds of a small exchange, median.
    pub round_trip_us: f64,
    /// Nine in ten are no longer.
    pub round_trip_p90_us: f64,
}

/// Both wires.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The network in the monitor.
    pub servin: Figures,
    /// `passt`.
    pub passt: Figures,
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:<44}{:>12}{:>12}{:>16}", "TCP", "servin", "passt", "servin / passt")?;
        let mut row = |what: &str, unit: &str, of: fn(&Figures) -> f64| {
            let (own, other) = (of(&self.servin), of(&self.passt));
            writeln!(f, "{:<44}{own:>12.1}{other:>12.1}{:>16.2}", format!("{what}, {unit}"), own / other)
        };
        row("container to host", "MiB/s", |all| all.out_mib_per_s)?;
        row("host to container", "MiB/s", |all| all.in_mib_per_s)?;
        row("64 bytes there and back, median", "us", |all| all.round_trip_us)?;
        row("64 bytes there and back, 90th percentile", "us", |all| all.round_trip_p90_us)
    }
}

/// Measures both wires.
///
/// # Errors
/// As [`measure`].
pub fn compare(setup: &Setup) -> io::Result<Comparison> {
    Ok(Comparison { servin: measure(setup, Wire::Own)?, passt: measure(setup, Wire::Passt)? })
}

/// Measures one wire, in one container.
///
/// # Errors
/// If servin or `passt` cannot be started, or a transfer is cut: with what they said.
pub fn measure(setup: &Setup, wire: Wire) -> io::Result<Figures> {
    let listener = TcpListener::bind((setup.address, 0))?;
    listener.set_nonblocking(true)?;
    let at = listener.local_addr()?;
    let mut passt = None;
    let mut command = Command::new(&setup.servin);
    command.args(["run", "--rm"]).env("SERVIN_DATA_ROOT", &setup.data_root);
    if wire == Wire::Passt {
        let passt = passt.insert(Passt::start(&setup.passt)?);
        command.arg("--network").arg(format!("socket:{}", passt.socket().display()));
    }
    // One connection after the other, in the order in which they are taken below.
    let call = format!("nc {} {} -e", at.ip(), at.port());
    let script = format!(
        "set -e; {call} cat; for n in $(seq {}); do {call} dd if=/dev/zero bs=64k count={} 2>/dev/null; \
         {call} dd of=/dev/null bs=64k 2>/dev/null; done",
        setup.transfers,
        setup.mib * 16,
    );
    command.args(["servin/base", "sh", "-c", &script]).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let done = drive(setup, &listener, || Ok(child.try_wait()?.is_some()));
    if done.is_err() {
        let _ = child.kill();
    }
    let ended = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    let also = passt.map_or_else(String::new, |passt| format!("; passt said: {}", passt.end()));
    done.map_err(|error| io::Error::other(format!("{wire:?}: {error}; servin said: {said}{also}")))
}

/// The host's end of everything.
fn drive(
    setup: &Setup,
    listener: &TcpListener,
    mut is_over: impl FnMut() -> io::Result<bool>,
) -> io::Result<Figures> {
    let mut accept = || next(listener, &mut is_over);
    let mut trips = exchange(accept()?, setup.exchanges)?;
    let (mut out, mut into) = (Vec::new(), Vec::new());
    for _ in 0..setup.transfers {
        out.push(take(accept()?, setup.mib)?);
        into.push(send(accept()?, setup.mib)?);
    }
    let at = |list: &mut Vec<f64>, tenths: usize| {
        list.sort_by(f64::total_cmp);
        list.get(list.len() * tenths / 10).copied().ok_or_else(|| io::Error::other("nothing was measured"))
    };
    Ok(Figures {
        out_mib_per_s: at(&mut out, 5)?,
        in_mib_per_s: at(&mut into, 5)?,
        round_trip_us: at(&mut trips, 5)?,
        round_trip_p90_us: at(&mut trips, 9)?,
    })
}

/// The container's next connection, unless the container has ended.
fn next(listener: &TcpListener, is_over: &mut impl FnMut() -> io::Result<bool>) -> io::Result<TcpStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if is_over()? {
            return Err(io::Error::other("the container ended before its time"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Microseconds of each exchange.
fn exchange(mut stream: TcpStream, count: usize) -> io::Result<Vec<f64>> {
    let mut trips = Vec::with_capacity(count);
    for number in 0..WARM_UP + count {
        let word = [number as u8; SMALL];
        let mut back = [0; SMALL];
        let began = Instant::now();
        stream.write_all(&word)?;
        stream.read_exact(&mut back)?;
        let took = began.elapsed();
        if back != word {
            return Err(io::Error::other("what came back is not what was sent"));
        }
        if number >= WARM_UP {
            trips.push(took.as_secs_f64() * 1e6);
        }
    }
    Ok(trips)
}

/// MiB in a second of what the container sends.
fn take(mut stream: TcpStream, mib: usize) -> io::Result<f64> {
    let mut chunk = vec![0; CHUNK];
    let mut total = stream.read(&mut chunk)?;
    let began = Instant::now();
    let first = total;
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            count => total += count,
        }
    }
    let took = began.elapsed().as_secs_f64();
    if total != mib << 20 {
        return Err(io::Error::other(format!("{total} bytes came, and {mib} MiB were sent")));
    }
    Ok((total - first) as f64 / f64::from(1 << 20) / took)
}

/// MiB in a second of what the container takes, to the last byte.
fn send(mut stream: TcpStream, mib: usize) -> io::Result<f64> {
    let chunk = vec![0x5a; CHUNK];
    let began = Instant::now();
    for _ in 0..(mib << 20) / CHUNK {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The program in the container ends when it has all.
    if stream.read(&mut [0])? != 0 {
        return Err(io::Error::other("an answer where none was asked for"));
    }
    Ok(mib as f64 / began.elapsed().as_secs_f64())
}

/// Whether the program is there, for a clear word where it is not.
///
/// # Errors
/// It is not.
pub fn check(program: &Path) -> io::Result<()> {
    let found = program.is_file();
    found.then_some(()).ok_or_else(|| io::Error::other(format!("there is no {}", program.display())))
}

//! What the monitor and its devices carry in a second, on this machine and without a guest kernel.
//!
//! Devices are driven by the driver side that the tests use ([`servin_devices::testing::Rig`]), so the figures hold the
//! driver's own cost too; they are for comparing two versions on one machine, in one run, not for brochures.

mod exits;
mod files;
mod queue;
mod shared_network;
mod sockets;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use exits::exits;
pub use files::files;
pub use queue::queue;
pub use shared_network::shared_network;
pub use sockets::sockets;

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// What was done.
    pub what: String,
    /// How often in a second.
    pub per_second: f64,
    /// How many bytes each time carried; 0 where there are none to speak of.
    pub bytes: u64,
}

impl Rate {
    /// MiB in a second.
    pub fn mib(&self) -> f64 {
        self.per_second * self.bytes as f64 / f64::from(1 << 20)
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<56}{:>14.0} /s", self.what, self.per_second)?;
        if self.bytes > 0 {
            write!(f, "{:>10.0} MiB/s", self.mib())?;
        }
        Ok(())
    }
}

/// Does `some` (which says how many it did) for about `time`, after a tenth of that to warm up.
fn rate(what: &str, bytes: u64, time: Duration, mut some: impl FnMut() -> u64) -> Rate {
    let warm = Instant::now();
    while warm.elapsed() < time / 10 {
        some();
    }
    let (mut done, start) = (0, Instant::now());
    while start.elapsed() < time {
        done += some();
    }
    Rate { what: what.into(), per_second: done as f64 / start.elapsed().as_secs_f64(), bytes }
}

/// Everything, each figure measured for `time`.
///
/// # Errors
/// If the host refuses a file, a socket or a machine. Where there is no hypervisor, exits are left out and said to be.
pub fn all(time: Duration) -> Result<Vec<Rate>, Box<dyn std::error::Error>> {
    let mut rates = Vec::new();
    match servin_vmm::hv::open() {
        Ok(hypervisor) => rates.extend(exits(&*hypervisor, time)?),
        Err(error) => eprintln!("exits are not measured: {error}"),
    }
    rates.extend(queue(time));
    rates.extend(files(time)?);
    rates.extend(sockets(time)?);
    rates.extend(shared_network(time)?);
    Ok(rates)
}

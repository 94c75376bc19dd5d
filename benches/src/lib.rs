//! Boot latency and device throughput, measured.
//!
//! - [`boot`]: five clocks of `servin run`, from outside and from its own `--timing`; exits by reason; resident memory.
//!   Run in the nested host under `-icount` by `make bench`, where one nanosecond is one instruction.
//! - [`network`]: TCP of a container beside `passt`'s, there too.
//! - [`devices`]: exits, queues, shares and sockets in a second, by the tests' driver.

pub mod boot;
pub mod devices;
pub mod network;

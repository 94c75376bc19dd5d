//! Containers: what was asked for, what it becomes, and its life.

mod request;

pub use request::{Bind, Cpus, DEFAULT_MEMORY, LEAST_MEMORY, MOST_CPUS, Request, RootSource, Text, Tmpfs};

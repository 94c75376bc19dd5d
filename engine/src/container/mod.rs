//! Containers: what was asked for, what it becomes, and its life.

mod life;
pub(crate) mod machine;
mod plan;
mod record;
mod request;
pub mod signal;
#[cfg(test)]
mod tests;

pub(crate) use life::{RunDir, remove_container};
pub use life::{connect, is_living, reconcile, remove};
pub(crate) use plan::{BindShare, ROOT_TAG};
pub use plan::{Plan, machine_memory, short};
pub use record::Config;
pub(crate) use record::{new_id, new_name, random};
pub use request::{Bind, Cpus, DEFAULT_MEMORY, LEAST_MEMORY, MOST_CPUS, Request, RootSource, Text, Tmpfs};

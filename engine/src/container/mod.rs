//! Containers: what was asked for, what it becomes, and its life.

pub mod capability;
mod create;
mod descriptors;
pub(crate) mod disk;
mod health;
mod life;
mod limits;
pub(crate) mod machine;
mod plan;
mod record;
mod request;
mod share;
pub mod signal;
#[cfg(test)]
mod tests;

pub use create::create;
pub(crate) use create::{Wanted, attach_volumes, has_volumes, insert};
pub use disk::DEFAULT_DISK;
pub(crate) use disk::Disk;
pub use health::{Health, HealthCheck, HealthRequest, HealthResult};
pub(crate) use life::{RunDir, remove_container};
pub use life::{await_end, connect, is_living, reconcile, remove};
pub use limits::{Limits, PERIOD_US, Privileges, Ulimit, Update};
pub(crate) use plan::{BindShare, ROOT_TAG};
pub use plan::{Plan, container_memory, machine_memory, short};
pub use record::Config;
pub(crate) use record::{new_id, new_name, random};
pub use request::{
    Bind, Consistency, Cpus, DEFAULT_MEMORY, LEAST_MEMORY, MOST_CPUS, Request, Restart, RootSource, Text,
    Tmpfs,
};

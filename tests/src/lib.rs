//! What only the whole tree can be tested for.
//!
//! - [`layering`]: the floors of ARCHITECTURE.md, by crates and by modules.
//! - [`tree`]: sizes, `unsafe`, and words that do not belong in a source tree.
//! - [`machine`]: how the tests in `tests/tests/` find servin and run it; they are the same on the machine's own
//!   `/dev/kvm` and in the nested host (`tests/nested/suite.sh`).
//! - [`packages`] and [`registry`]: what they take from Debian packages: images, clients, a registry.

pub mod layering;
pub mod machine;
pub mod packages;
pub mod registry;
pub mod source;
pub mod stuck;
pub mod tree;

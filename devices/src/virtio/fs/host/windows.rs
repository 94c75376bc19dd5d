//! Directories of Windows, passed through: names and reparse points in Linux's terms, and files by handles.

#[cfg(windows)]
mod by_handle;
#[cfg(windows)]
mod calls;
#[cfg(windows)]
mod entries;
#[cfg_attr(not(windows), allow(dead_code))]
mod names;
#[cfg(windows)]
mod removal;
#[cfg_attr(not(windows), allow(dead_code))]
mod shape;
#[cfg(windows)]
mod space;
#[cfg(all(test, windows))]
mod tests;

#[cfg(windows)]
pub use by_handle::ByHandle;
#[cfg(windows)]
pub(super) use by_handle::{
    OpenFile, Timestamps, file_ref, host_owners, name_bytes, placed, resize, timestamps,
};

//! The files of a container, seen from the host: a conversation with the file server in its guest
//! ([`servin_init::proto::FilesAsk`]), whether the container runs or a machine was started for this alone.
//!
//! What the guest says is not believed: names that lead out of where they are put, or data that no node has, end the
//! conversation with an error.

mod client;
mod host;
mod tar;
#[cfg(test)]
mod tests;

pub use client::{Client, Told};
pub use host::{Extract, send_tree};
pub use tar::{TarWriter, send_tar};

pub use servin_init::proto::{ChangeKind, FilesAsk, Node, NodeKind};

use crate::{Error, Result};

/// The names in a relative path, if it leads nowhere but down.
fn names(path: &[u8]) -> Result<Vec<&[u8]>> {
    let bad = |why: &str| Error::Files {
        what: format!("the name \"{}\" {why}", String::from_utf8_lossy(path)),
        source: std::io::ErrorKind::InvalidData.into(),
    };
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(bad("leads out of its directory")),
            name if name.contains(&0) => return Err(bad("has a NUL in it")),
            name => names.push(name),
        }
    }
    Ok(names)
}

/// An absolute path of a container, made of what a user typed: relative ones are below the root.
#[must_use]
pub fn absolute(path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() }
}

//! `servin cp`, by docker's rules:
//!
//! * A file goes to the path that was named, or into the directory that is there.
//! * A directory becomes the path that was named if nothing is there, else it goes into the directory that is there; with
//!   `/.` at its end its content does.
//! * `-` is a tar, on standard output or input.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use servin_engine::Error as Failure;
use servin_engine::files::{Client, Extract, FilesAsk, Node, NodeKind, absolute, send_tar, send_tree};

use super::files::{server, to_output};
use crate::args::Global;
use crate::error::{Error, Result};

/// Most symbolic links that are followed to where something is to be put.
const LINKS: usize = 16;

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    /// `-`
    Stream,
    Host(PathBuf),
    Container(String, Vec<u8>),
}

impl Side {
    fn read(word: &OsStr) -> Result<Self> {
        let bytes = word.as_bytes();
        if bytes == b"-" {
            return Ok(Side::Stream);
        }
        let colon = bytes.iter().position(|byte| *byte == b':');
        match colon.map(|at| bytes.split_at(at)) {
            // As with docker: a path of the host that has a colon is written with a ./ before it.
            Some((name, path)) if !name.is_empty() && !name.starts_with(b".") && !name.contains(&b'/') => {
                let name =
                    std::str::from_utf8(name).map_err(|_| usage("the container's name is not UTF-8"))?;
                Ok(Side::Container(name.to_owned(), path.get(1..).unwrap_or_default().to_vec()))
            }
            _ => Ok(Side::Host(PathBuf::from(word))),
        }
    }
}

fn usage(what: &str) -> Error {
    Error::Usage { what: what.to_owned(), verb: "cp".into() }
}

fn refused(what: String) -> Error {
    Failure::Files { what, source: io::Error::other("see \"servin cp --help\"") }.into()
}

/// Copies.
pub(crate) fn run(
    global: &Global,
    began: Instant,
    archive: bool,
    follow: bool,
    from: &OsString,
    to: &OsString,
) -> Result<u8> {
    match (Side::read(from)?, Side::read(to)?) {
        (Side::Container(..), Side::Container(..)) => {
            Err(usage("copying between containers is not possible"))
        }
        (Side::Container(name, path), to) => {
            let (_, mut client) = server(global, began, &name)?;
            out_of(&mut client, &path, &to, follow, archive)?;
            Ok(client.finish().map(|()| 0)?)
        }
        (from, Side::Container(name, path)) => {
            let (_, mut client) = server(global, began, &name)?;
            into(&mut client, &from, &path, follow, archive)?;
            Ok(client.finish().map(|()| 0)?)
        }
        _ => Err(usage("one of the two must be in a container: CONTAINER:PATH")),
    }
}

/// Whether only what is in the directory is meant.
fn means_content(path: &[u8]) -> bool {
    path.ends_with(b"/.") || path == b"."
}

/// The last name of a path; empty for a root, or for what is not a name.
pub(super) fn base(path: &[u8]) -> Vec<u8> {
    let name = path.split(|byte| *byte == b'/').rfind(|name| !matches!(*name, b"" | b"."));
    name.filter(|name| *name != b"..").unwrap_or_default().to_vec()
}

/// What a path is in; the path is absolute.
pub(super) fn parent(path: &[u8]) -> Vec<u8> {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let path = path.get(..end).unwrap_or_default();
    let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    absolute(path.get(..slash).unwrap_or_default())
}

pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => directory.to_vec(),
        _ => [directory, b"/", name].concat(),
    }
}

fn out_of(client: &mut Client, path: &[u8], to: &Side, follow: bool, archive: bool) -> Result<()> {
    let path = absolute(path);
    let shown = String::from_utf8_lossy(&path).into_owned();
    let follow = follow || path.ends_with(b"/") || means_content(&path);
    let Some(found) = client.stat(&path, follow)? else {
        return Err(Failure::Files {
            what: format!("find {shown} in the container"),
            source: io::Error::new(io::ErrorKind::NotFound, "no such file or directory"),
        }
        .into());
    };
    let is_directory = found.kind == NodeKind::Directory;
    if !is_directory && (path.ends_with(b"/") || means_content(&path)) {
        return Err(refused(format!("copy {shown} of the container, which is no directory")));
    }
    let name = if means_content(&path) { Vec::new() } else { base(&path) };
    let ask = FilesAsk::Read { path: path.clone(), follow };
    match to {
        Side::Stream => to_output("cp", None, |out| {
            client.ask(&ask)?;
            let keep = |inner: &[u8]| Some(join(&name, inner)).filter(|path| !path.is_empty());
            super::export::archive(client, out, &keep).map(drop)
        }),
        Side::Container(..) => Err(usage("copying between containers is not possible")),
        Side::Host(host) => {
            let there = fs::metadata(host).ok();
            let (directory, name) = match (there.map(|meta| meta.is_dir()), is_directory) {
                (Some(true), _) => (host.clone(), name),
                (Some(false), true) => {
                    return Err(refused(format!("copy a directory to {}, which is a file", host.display())));
                }
                (None, true) => {
                    fs::create_dir(host).map_err(|source| Error::Host {
                        what: format!("make {}", host.display()),
                        source,
                        code: 1,
                    })?;
                    (host.clone(), Vec::new())
                }
                (None, false) if host.as_os_str().as_bytes().ends_with(b"/") => {
                    return Err(refused(format!("copy into {}, which is no directory", host.display())));
                }
                (_, false) => {
                    let directory = host.parent().filter(|parent| !parent.as_os_str().is_empty());
                    let name = host.file_name().unwrap_or_default().as_bytes().to_vec();
                    (directory.unwrap_or(Path::new(".")).to_path_buf(), name)
                }
            };
            let extract = Extract::new(&directory, archive)?;
            client.ask(&ask)?;
            Ok(extract.receive(client, &|inner| join(&name, inner))?)
        }
    }
}

/// What is at a path where something is to be put, and where that is: symbolic links at its end are followed.
pub(super) fn place(client: &mut Client, path: &[u8]) -> Result<(Vec<u8>, Option<Node>)> {
    let mut path = absolute(path);
    for _ in 0..LINKS {
        match client.stat(&path, false)? {
            Some(node) if node.kind == NodeKind::Symlink => {
                path = if node.link.starts_with(b"/") { node.link } else { join(&parent(&path), &node.link) };
            }
            found => return Ok((path, found)),
        }
    }
    Err(refused(format!("follow the symbolic links at {}", String::from_utf8_lossy(&path))))
}

fn into(client: &mut Client, from: &Side, path: &[u8], follow: bool, archive: bool) -> Result<()> {
    let ends_in_slash = path.ends_with(b"/") || means_content(path);
    let (path, there) = place(client, path)?;
    let shown = String::from_utf8_lossy(&path).into_owned();
    let is_directory = there.map(|node| node.kind == NodeKind::Directory);
    let host = match from {
        Side::Host(host) => host,
        Side::Stream if is_directory == Some(true) => {
            client.ask(&FilesAsk::Write { path })?;
            let sent = send_tar(client, &mut io::stdin().lock());
            return finish(client, sent);
        }
        Side::Stream => return Err(refused(format!("copy an archive to {shown}, which is no directory"))),
        Side::Container(..) => return Err(usage("copying between containers is not possible")),
    };
    let typed = host.as_os_str().as_bytes();
    let follow = follow || typed.ends_with(b"/") || means_content(typed);
    let meta = if follow { fs::metadata(host) } else { fs::symlink_metadata(host) };
    let meta =
        meta.map_err(|source| Error::Host { what: format!("read {}", host.display()), source, code: 1 })?;
    let name = match base(typed) {
        // `.`, `..` and `/` have no name of their own to be put by.
        name if name.is_empty() || means_content(typed) => Vec::new(),
        name => name,
    };
    let (directory, name) = match (is_directory, meta.is_dir()) {
        (Some(true), _) => (path, name),
        (Some(false), true) => return Err(refused(format!("copy a directory to {shown}, which is a file"))),
        (None, false) if ends_in_slash => {
            return Err(refused(format!("copy into {shown}, which is no directory")));
        }
        (None, _) | (Some(false), false) => (parent(&path), base(&path)),
    };
    client.ask(&FilesAsk::Write { path: directory })?;
    let sent = send_tree(client, host, &name, follow, &mut |_, node| {
        if !archive {
            (node.uid, node.gid) = (0, 0);
        }
        true
    });
    finish(client, sent)
}

/// Ends what was sent and takes the answer. What could not be read here is told before what the guest makes of that.
pub(super) fn finish(client: &mut Client, sent: servin_engine::Result<()>) -> Result<()> {
    sent?;
    client.ask(&FilesAsk::End)?;
    Ok(client.done()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_a_container_if_a_name_and_a_colon_come_first() {
        let read = |word: &str| Side::read(OsStr::new(word)).unwrap();
        assert_eq!(read("-"), Side::Stream);
        assert_eq!(read("box:/etc"), Side::Container("box".into(), b"/etc".to_vec()));
        assert_eq!(read("box:etc:x"), Side::Container("box".into(), b"etc:x".to_vec()));
        for host in ["file", "./box:/etc", "/a:b", "dir/box:x", ":x"] {
            assert_eq!(read(host), Side::Host(host.into()), "{host}");
        }
    }

    #[test]
    fn paths_have_a_last_name_and_something_they_are_in() {
        for (path, name, above) in [
            ("/a/b", "b", "/a"),
            ("/a/b/", "b", "/a"),
            ("/a", "a", "/"),
            ("/", "", "/"),
            ("/a/..", "", "/a"),
            ("/a/.", "a", "/a"),
        ] {
            assert_eq!(
                (base(path.as_bytes()), parent(path.as_bytes())),
                (name.into(), above.into()),
                "{path}"
            );
        }
    }
}

//! `COPY` and `ADD`: files of the context, or of another stage's image, into the container of a step.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use servin_engine::files::{Client, FilesAsk, Node, NodeKind, Told, send_tree};

use super::context::Context;
use super::machine::read_file;
use crate::error::{Error, Result};
use crate::verbs::copy::{base, finish, join, parent, place};

/// What is to be copied.
pub(super) struct Copy {
    /// Absolute path in the container.
    pub(super) to: Vec<u8>,
    /// It was written as a directory, or there are several sources.
    pub(super) into_directory: bool,
    /// `--chown`, as written.
    pub(super) owner: Option<String>,
    /// `--chmod`.
    pub(super) mode: Option<u32>,
}

/// Owner and permissions that everything gets.
#[derive(Clone, Copy, Default)]
struct Shape {
    uid: u32,
    gid: u32,
    mode: Option<u32>,
}

impl Shape {
    fn apply(self, node: &mut Node) {
        (node.uid, node.gid) = (self.uid, self.gid);
        if let Some(mode) = self.mode.filter(|_| node.kind != NodeKind::Symlink) {
            node.mode = mode;
        }
    }
}

impl Copy {
    /// Files of the context.
    pub(super) fn of_context(
        &self,
        client: &mut Client,
        context: &Context,
        sources: &[PathBuf],
    ) -> Result<()> {
        let shape = self.shape(client)?;
        for source in sources {
            let what = || format!("read {}", source.display());
            // As with docker, a source that is a link is what it leads to.
            let meta =
                fs::metadata(source).map_err(|error| Error::Host { what: what(), source: error, code: 1 })?;
            let name = source.file_name().unwrap_or_default().as_bytes();
            let (directory, name) = self.place(client, meta.is_dir(), name)?;
            client.ask(&FilesAsk::Write { path: directory })?;
            let sent = send_tree(client, source, &name, true, &mut |path: &Path, node: &mut Node| {
                shape.apply(node);
                !context.ignores(path)
            });
            finish(client, sent)?;
        }
        Ok(())
    }

    /// Files of another container. Owners stay as they are there unless they are told.
    pub(super) fn of_container(
        &self,
        client: &mut Client,
        from: &mut Client,
        sources: &[Vec<u8>],
    ) -> Result<()> {
        let shape = self.shape(client)?;
        for source in sources {
            let shown = String::from_utf8_lossy(source).into_owned();
            let there = from.stat(source, true)?.ok_or_else(|| Error::Host {
                what: format!("find {shown} in the image that COPY --from names"),
                source: std::io::ErrorKind::NotFound.into(),
                code: 1,
            })?;
            let (directory, name) = self.place(client, there.kind == NodeKind::Directory, &base(source))?;
            client.ask(&FilesAsk::Write { path: directory })?;
            from.ask(&FilesAsk::Read { path: source.clone(), follow: true })?;
            let sent = relay(client, from, &name, &mut |node| {
                if self.owner.is_some() {
                    shape.apply(node);
                } else {
                    Shape { uid: node.uid, gid: node.gid, ..shape }.apply(node);
                }
            });
            finish(client, sent)?;
        }
        Ok(())
    }

    /// The directory that is there, and the name below it.
    fn place(&self, client: &mut Client, is_directory: bool, name: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut to = self.to.clone();
        // The content of a directory goes into what was named, a file into a directory or to that name.
        if !is_directory && self.into_directory {
            to = join(&to, name);
        }
        let (path, there) = place(client, &to)?;
        match (is_directory, there.map(|node| node.kind == NodeKind::Directory)) {
            (true, Some(true)) => return Ok((path, Vec::new())),
            (false, Some(true)) => return Ok((path, name.to_vec())),
            (true, Some(false)) => {
                let what = format!("copy a directory to {}, which is a file", String::from_utf8_lossy(&path));
                return Err(Error::Host { what, source: std::io::ErrorKind::NotADirectory.into(), code: 1 });
            }
            (false, Some(false)) | (_, None) => {}
        }
        // What is missing on the way is made with it.
        let (mut above, mut name) = (parent(&path), base(&path));
        while client.stat(&above, true)?.is_none() {
            name = join(&base(&above), &name);
            above = parent(&above);
        }
        Ok((above, name))
    }

    fn shape(&self, client: &mut Client) -> Result<Shape> {
        let mut shape = Shape { mode: self.mode, ..Shape::default() };
        let Some(owner) = &self.owner else { return Ok(shape) };
        let (user, group) =
            owner.split_once(':').map_or((owner.as_str(), None), |(user, group)| (user, Some(group)));
        let fail = |kind: &str, name: &str| Error::Usage {
            what: format!("there is no {kind} {name} in the image (--chown={owner})"),
            verb: "build".into(),
        };
        let passwd = |client: &mut Client, file: &[u8]| -> Result<String> {
            Ok(String::from_utf8_lossy(&read_file(client, file)?.unwrap_or_default()).into_owned())
        };
        match user.parse() {
            Ok(uid) => (shape.uid, shape.gid) = (uid, uid),
            Err(_) => {
                let fields =
                    entry(&passwd(client, b"/etc/passwd")?, user).ok_or_else(|| fail("user", user))?;
                (shape.uid, shape.gid) = fields;
            }
        }
        if let Some(group) = group {
            shape.gid = match group.parse() {
                Ok(gid) => gid,
                Err(_) => {
                    entry(&passwd(client, b"/etc/group")?, group).ok_or_else(|| fail("group", group))?.0
                }
            };
        }
        Ok(shape)
    }
}

/// The two numbers behind a name in /etc/passwd; in /etc/group the first is the group's.
fn entry(text: &str, name: &str) -> Option<(u32, u32)> {
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let first = fields.next()?.parse().ok()?;
    Some((first, fields.next().and_then(|field| field.parse().ok()).unwrap_or(first)))
}

/// Hands on what one file server tells to another, with `name` before each path.
fn relay(
    to: &mut Client,
    from: &mut Client,
    name: &[u8],
    shape: &mut dyn FnMut(&mut Node),
) -> servin_engine::Result<()> {
    while let Some(told) = from.told()? {
        match told {
            Told::Node(mut node) => {
                node.path = join(name, &node.path);
                if node.kind == NodeKind::HardLink {
                    node.link = join(name, &node.link);
                }
                shape(&mut node);
                to.ask(&FilesAsk::Node(node))?;
            }
            Told::Data(data) => to.ask(&FilesAsk::Data(&data))?,
            Told::Change(..) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_numbers() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:44::/:/bin/false\n";
        assert_eq!(entry(passwd, "web"), Some((33, 44)));
        assert_eq!(entry("adm:x:4:web\n", "adm"), Some((4, 4)));
        assert_eq!(entry(passwd, "nobody"), None);
    }
}

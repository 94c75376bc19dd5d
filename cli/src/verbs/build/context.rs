//! The directory that a build takes files from, less what its `.dockerignore` names.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use glob::{MatchOptions, Pattern};
use servin_engine::image::{Digest, Hashing};

use crate::error::{Error, Result};

/// A build's context.
pub(super) struct Context {
    root: PathBuf,
    /// The patterns in their order; `true` for those that take back (`!`).
    ignored: Vec<(Glob, bool)>,
}

fn host(what: String) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Host { what, source, code: 1 }
}

/// A pattern as Go's `filepath.Match` has it, and `**` for any number of directories.
struct Glob(Pattern);

impl Glob {
    fn new(pattern: &str) -> std::result::Result<Self, String> {
        let parts: Vec<String> = pattern.split('/').map(translated).collect();
        Pattern::new(&parts.join("/")).map(Self).map_err(|error| error.to_string())
    }

    fn fits(&self, path: &Path) -> bool {
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
        self.0.matches_with(&path.to_string_lossy(), options)
    }
}

/// One part of a path's pattern in the words of `glob`, which has `[!a]` for `[^a]` and `[*]` for `\*`, and takes `**` alone.
fn translated(part: &str) -> String {
    if part == "**" {
        return part.into();
    }
    let mut out = String::new();
    let mut letters = part.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(plain) if "*?[]".contains(plain) => out.extend(['[', plain, ']']),
                Some(plain) => out.push(plain),
                None => out.push('\\'),
            },
            '*' if out.ends_with('*') => {}
            '[' if letters.peek() == Some(&'^') => {
                letters.next();
                out.push_str("[!");
            }
            other => out.push(other),
        }
    }
    out
}

impl Context {
    /// A directory.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let root = fs::canonicalize(root).map_err(host(format!("open the context {}", root.display())))?;
        let ignore = root.join(".dockerignore");
        let text = match fs::read_to_string(&ignore) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(host(format!("read {}", ignore.display()))(error)),
        };
        Ok(Context { root, ignored: patterns(&text)? })
    }

    /// Whether a path below the root is left out: the last pattern that fits it, or something that it is in, decides.
    pub(super) fn ignores(&self, path: &Path) -> bool {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        let mut left_out = false;
        for (pattern, back) in &self.ignored {
            let fits = below.ancestors().any(|part| !part.as_os_str().is_empty() && pattern.fits(part));
            if fits {
                left_out = !back;
            }
        }
        left_out
    }

    /// What a source of `COPY` names: one path, or those that fit its pattern.
    pub(super) fn sources(&self, source: &str) -> Result<Vec<PathBuf>> {
        let none = || Error::Host {
            what: format!("find {source} in the context {}", self.root.display()),
            source: io::ErrorKind::NotFound.into(),
            code: 1,
        };
        // Above the root is the root, as with docker.
        let mut below = PathBuf::new();
        for part in Path::new(source).components() {
            match part {
                Component::Normal(name) => below.push(name),
                Component::ParentDir => drop(below.pop()),
                _ => {}
            }
        }
        if !source.contains(['*', '?', '[']) {
            let path = self.inside(&self.root.join(&below))?;
            let there = fs::symlink_metadata(&path).is_ok() && !self.ignores(&path);
            return if there { Ok(vec![path]) } else { Err(none()) };
        }
        let bad = |why| Error::Usage { what: format!("{source} is no pattern: {why}"), verb: "build".into() };
        let pattern = Glob::new(&below.to_string_lossy()).map_err(bad)?;
        let depth = below.components().count();
        let mut found = Vec::new();
        let mut waiting = vec![(self.root.clone(), 0)];
        while let Some((directory, level)) = waiting.pop() {
            for path in entries(&directory)? {
                if level + 1 < depth {
                    if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                        waiting.push((path, level + 1));
                    }
                } else if pattern.fits(path.strip_prefix(&self.root).unwrap_or(&path)) && !self.ignores(&path)
                {
                    found.push(path);
                }
            }
        }
        found.sort();
        if found.is_empty() { Err(none()) } else { Ok(found) }
    }

    /// The path, if no symbolic link on the way to it leads out of the context.
    fn inside(&self, path: &Path) -> Result<PathBuf> {
        let parent = path.parent().unwrap_or(path);
        match fs::canonicalize(parent) {
            Ok(real) if path == self.root || real.starts_with(&self.root) => Ok(path.to_path_buf()),
            Ok(_) => Err(Error::Usage {
                what: format!("{} leads out of the context", path.display()),
                verb: "build".into(),
            }),
            // What is not there is told as that.
            Err(_) => Ok(path.to_path_buf()),
        }
    }

    /// What `COPY` would take of a path: names, kinds, permissions and contents.
    pub(super) fn digest(&self, paths: &[PathBuf]) -> Result<Digest> {
        let mut hash = Hashing::new(io::sink());
        let mut waiting: Vec<PathBuf> = paths.iter().rev().cloned().collect();
        while let Some(path) = waiting.pop() {
            let fail = || host(format!("read {}", path.display()));
            let meta = fs::symlink_metadata(&path).map_err(fail())?;
            let kind = meta.file_type();
            if !self.ignores(&path) {
                let name = path.strip_prefix(&self.root).unwrap_or(&path).as_os_str().as_bytes();
                let head = format!(
                    "{}:{:o}:{}:",
                    name.len(),
                    meta.mode(),
                    if kind.is_file() { meta.len() } else { 0 }
                );
                let mut add = |bytes: &[u8]| io::Write::write_all(&mut hash, bytes).map_err(fail());
                add(head.as_bytes())?;
                add(name)?;
                if kind.is_symlink() {
                    add(fs::read_link(&path).map_err(fail())?.as_os_str().as_bytes())?;
                } else if kind.is_file() {
                    let mut file = fs::File::open(&path).map_err(fail())?;
                    io::copy(&mut file, &mut hash).map_err(fail())?;
                }
            }
            if kind.is_dir() {
                let mut below = entries(&path)?;
                below.sort();
                waiting.extend(below.into_iter().rev());
            }
        }
        Ok(hash.finish().1)
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let fail = || host(format!("read {}", directory.display()));
    fs::read_dir(directory)
        .map_err(fail())?
        .map(|entry| entry.map(|entry| entry.path()).map_err(fail()))
        .collect()
}

fn patterns(text: &str) -> Result<Vec<(Glob, bool)>> {
    let mut all = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (pattern, back) = line.strip_prefix('!').map_or((line, false), |rest| (rest.trim(), true));
        let pattern = pattern.trim_matches('/').trim_start_matches("./");
        if pattern.is_empty() || pattern == "." {
            continue;
        }
        let bad = |why| Error::Usage {
            what: format!("the line \"{line}\" of .dockerignore is no pattern: {why}"),
            verb: "build".into(),
        };
        all.push((Glob::new(pattern).map_err(bad)?, back));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, *file).unwrap();
        }
        dir
    }

    #[test]
    fn what_is_ignored_is_left_out_and_can_be_taken_back() {
        let dir = tree(&["a.log", "keep.log", "deep/b.log", "node/x/y", "src/m.rs"]);
        fs::write(dir.path().join(".dockerignore"), "# what\n*.log\n!keep.log\nnode\n**/b.log\n").unwrap();
        let context = Context::open(dir.path()).unwrap();
        let root = context.root.clone();
        let ignored = |path: &str| context.ignores(&root.join(path));
        assert!(ignored("a.log") && ignored("deep/b.log") && ignored("node") && ignored("node/x/y"));
        assert!(!ignored("keep.log") && !ignored("src/m.rs") && !ignored("deep"));
        assert!(context.sources("a.log").is_err());
        assert_eq!(context.sources("*.log").unwrap(), [root.join("keep.log")]);
        assert_eq!(context.sources("s*/*.rs").unwrap(), [root.join("src/m.rs")]);
        assert_eq!(context.sources("../../src").unwrap(), [root.join("src")]);
    }

    #[test]
    fn a_pattern_says_what_it_says_to_docker() {
        for (pattern, fitting, other) in [
            ("*.log", "a.log", "deep/a.log"),
            ("**/a.log", "a.log", "a.logs"),
            ("**/a.log", "x/y/a.log", "x/y/ba.log"),
            ("x/**", "x/y/z", "xy"),
            ("x/**/z", "x/z", "x/z/y"),
            ("a**c", "abbc", "ab/c"),
            ("?.c", "a.c", "ab.c"),
            ("[a-c]", "b", "d"),
            ("[^a-c]", "d", "b"),
            ("\\*", "*", "a"),
            ("\\[x\\]", "[x]", "x"),
            ("{a,b}", "{a,b}", "a"),
            ("*", ".hidden", "a/b"),
        ] {
            let glob = Glob::new(pattern).unwrap();
            assert!(glob.fits(Path::new(fitting)) && !glob.fits(Path::new(other)), "{pattern}");
        }
        assert!(Glob::new("[a").is_err());
    }

    #[test]
    fn the_digest_follows_contents_and_permissions_of_what_is_taken() {
        let dir = tree(&["a", "b", "skip"]);
        fs::write(dir.path().join(".dockerignore"), "skip\n.dockerignore").unwrap();
        let context = Context::open(dir.path()).unwrap();
        let all = [context.root.clone()];
        let first = context.digest(&all).unwrap();
        fs::write(dir.path().join("skip"), "other").unwrap();
        assert_eq!(context.digest(&all).unwrap(), first);
        fs::write(dir.path().join("a"), "other").unwrap();
        let second = context.digest(&all).unwrap();
        assert_ne!(second, first);
        fs::set_permissions(dir.path().join("b"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        assert_ne!(context.digest(&all).unwrap(), second);
    }

    #[test]
    fn a_link_that_leads_out_is_refused() {
        let dir = tree(&["a"]);
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        let context = Context::open(dir.path()).unwrap();
        assert!(context.sources("out/passwd").unwrap_err().to_string().contains("leads out"));
        assert_eq!(context.sources("out").unwrap().len(), 1, "the link itself is a file like any other");
    }
}

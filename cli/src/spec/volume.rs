//! `-v` and `--tmpfs`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use servin_engine::container::{Bind, Consistency, Request, Text, Tmpfs};
use servin_engine::volume::{VolumeMount, is_name};

use super::size;

/// What a flag mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mounted {
    /// Of the host.
    Bind(Bind),
    /// A volume.
    Volume(VolumeMount),
    /// Memory.
    Tmpfs(Tmpfs),
}

impl Mounted {
    /// Adds it to what is asked for.
    pub(crate) fn add_to(self, request: &mut Request) {
        match self {
            Mounted::Bind(bind) => request.binds.push(bind),
            Mounted::Volume(volume) => request.volumes.push(volume),
            Mounted::Tmpfs(tmpfs) => request.tmpfs.push(tmpfs),
        }
    }
}

/// `HOST:CONTAINER[:ro|rw|consistent|cached|delegated]`, where a relative HOST begins with a dot and counts from `cwd`; `NAME:CONTAINER[:ro|rw|nocopy]`
/// for a volume, and CONTAINER alone for a new one without a name.
pub(crate) fn volume(word: &OsStr, cwd: &Path) -> Result<Mounted, String> {
    let parts: Vec<&[u8]> = word.as_bytes().split(|byte| *byte == b':').collect();
    let (host, target, options) = match parts.as_slice() {
        [target] => {
            let target = target_path(target)?;
            return Ok(Mounted::Volume(VolumeMount { name: None, target, read_only: false, no_copy: false }));
        }
        [host, target] => (*host, *target, &b""[..]),
        [host, target, options] => (*host, *target, *options),
        _ => {
            return Err("it is HOST:CONTAINER, NAME:CONTAINER or CONTAINER, with :ro behind it or not".into());
        }
    };
    let is_path = host.starts_with(b".") || host.contains(&b'/');
    let (mut read_only, mut no_copy, mut consistency) = (false, false, Consistency::default());
    for option in options.split(|byte| *byte == b',').filter(|option| !option.is_empty()) {
        match option {
            b"ro" => read_only = true,
            b"rw" => read_only = false,
            b"nocopy" if !is_path => no_copy = true,
            b"consistent" if is_path => consistency = Consistency::Consistent,
            b"cached" if is_path => consistency = Consistency::Cached,
            b"delegated" if is_path => consistency = Consistency::Delegated,
            other => {
                return Err(format!("the option \"{}\" is not supported", String::from_utf8_lossy(other)));
            }
        }
    }
    if host.is_empty() {
        return Err("the host's path, or the volume's name, is empty".into());
    }
    let target = target_path(target)?;
    if !is_path {
        let name = Some(volume_name(host)?);
        return Ok(Mounted::Volume(VolumeMount { name, target, read_only, no_copy }));
    }
    let host = Text::from(clean(&cwd.join(OsStr::from_bytes(host))));
    Ok(Mounted::Bind(Bind { host, target, read_only, must_exist: false, consistency }))
}

/// `CONTAINER[:ro|rw]`: whose mounts, and whether they are read-only.
pub(super) fn from(word: &OsStr) -> Result<(String, Option<bool>), String> {
    let text = word.to_str().ok_or("it is not valid UTF-8")?;
    match text.split_once(':').unwrap_or((text, "")) {
        ("", _) => Err("it is CONTAINER, with :ro behind it or not".into()),
        (container, "") => Ok((container.to_owned(), None)),
        (container, "ro") => Ok((container.to_owned(), Some(true))),
        (container, "rw") => Ok((container.to_owned(), Some(false))),
        (_, option) => Err(format!("the option \"{option}\" is not supported: it is ro or rw")),
    }
}

/// The name of a volume.
pub(super) fn volume_name(name: &[u8]) -> Result<String, String> {
    let name = String::from_utf8_lossy(name).into_owned();
    if is_name(&name) {
        return Ok(name);
    }
    Err(format!(
        "\"{name}\" is no name of a volume (2 to 128 letters, digits, _ . or -), and a path of the host begins with / or ./"
    ))
}

/// `DIR[:OPTIONS]`, the options as mount(8) knows them.
pub(crate) fn tmpfs(word: &OsStr) -> Result<Tmpfs, String> {
    let text = word.as_bytes();
    let colon = text.iter().position(|byte| *byte == b':');
    let (target, options) = match colon {
        Some(at) => (&text[..at], String::from_utf8_lossy(&text[at + 1..]).into_owned()),
        None => (text, String::new()),
    };
    let mut tmpfs = Tmpfs {
        target: target_path(target)?,
        size: None,
        mode: 0o1777,
        read_only: false,
        no_exec: true,
        no_suid: true,
        no_dev: true,
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("rw", "") => tmpfs.read_only = false,
            ("ro", "") => tmpfs.read_only = true,
            ("exec", "") => tmpfs.no_exec = false,
            ("noexec", "") => tmpfs.no_exec = true,
            ("suid", "") => tmpfs.no_suid = false,
            ("nosuid", "") => tmpfs.no_suid = true,
            ("dev", "") => tmpfs.no_dev = false,
            ("nodev", "") => tmpfs.no_dev = true,
            ("size", value) => {
                let bytes = size::bytes(value).map_err(|why| format!("size: {why}"))?;
                tmpfs.size = Some(bytes).filter(|bytes| *bytes > 0);
            }
            ("mode", value) => {
                let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                tmpfs.mode = mode.ok_or("mode is an octal number up to 7777")?;
            }
            (name, _) => return Err(format!("the option \"{name}\" is not supported")),
        }
    }
    Ok(tmpfs)
}

/// An absolute path in the container that is not its root.
pub(super) fn target_path(target: &[u8]) -> Result<Text, String> {
    if !target.starts_with(b"/") {
        return Err("the container's path must begin with /".into());
    }
    match clean(Path::new(OsStr::from_bytes(target))) {
        path if path == Path::new("/") => Err("the container's root cannot be mounted over".into()),
        path => Ok(Text::from(path)),
    }
}

/// The path without `.`, `..`, double and trailing slashes, by its words alone.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut out: Vec<&OsStr> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    let mut bytes = Vec::new();
    for name in &out {
        bytes.push(b'/');
        bytes.extend_from_slice(name.as_bytes());
    }
    if bytes.is_empty() {
        bytes.push(b'/');
    }
    PathBuf::from(OsString::from_vec(bytes))
}

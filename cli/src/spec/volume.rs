//! `-v` and `--tmpfs`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use servin_engine::container::{Bind, Text, Tmpfs};

use super::size;

/// `HOST:CONTAINER[:ro|rw]`; a relative HOST begins with a dot and counts from `cwd`.
pub(crate) fn bind(word: &OsStr, cwd: &Path) -> Result<Bind, String> {
    let parts: Vec<&[u8]> = word.as_bytes().split(|byte| *byte == b':').collect();
    let (host, target, options) = match parts.as_slice() {
        [_] => return Err("volumes without a name are not built yet: write HOST:CONTAINER".into()),
        [host, target] => (*host, *target, &b""[..]),
        [host, target, options] => (*host, *target, *options),
        _ => return Err("it is HOST:CONTAINER or HOST:CONTAINER:ro".into()),
    };
    let mut read_only = false;
    for option in options.split(|byte| *byte == b',').filter(|option| !option.is_empty()) {
        match option {
            b"ro" => read_only = true,
            b"rw" => read_only = false,
            other => {
                return Err(format!("the option \"{}\" is not supported", String::from_utf8_lossy(other)));
            }
        }
    }
    if host.is_empty() {
        return Err("the host's path is empty".into());
    }
    if !host.starts_with(b"/") && !host.starts_with(b".") && !host.contains(&b'/') {
        return Err("named volumes are not built yet: a path of the host begins with / or ./".into());
    }
    let host = clean(&cwd.join(OsStr::from_bytes(host)));
    Ok(Bind { host: Text::from(host), target: target_path(target)?, read_only })
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
fn target_path(target: &[u8]) -> Result<Text, String> {
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

//! What `servin run` means.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use servin_engine::container::{Cpus, LEAST_MEMORY, MOST_CPUS, Request, Restart, RootSource, Text, signal};
use servin_engine::image::Platform;

use super::{detach_keys, env, limits, mount, network, restart, size, volume};
use crate::args;
use crate::error::{Error, Result};

/// A checked `servin run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// For the engine.
    pub(crate) request: Request,
    /// Containers whose mounts this one gets too, and whether they are read-only in it.
    pub(crate) volumes_from: Vec<(String, Option<bool>)>,
    /// When to get the image from its registry.
    pub(crate) pull: Pull,
    /// Which image of several to get.
    pub(crate) platform: Platform,
    /// Show no progress of that.
    pub(crate) quiet: bool,
    /// Print the clocks of the start.
    pub(crate) timing: bool,
    /// Write the start as a trace into this file.
    pub(crate) trace: Option<PathBuf>,
    /// Clone a template, or leave one.
    pub(crate) warm: bool,
    /// Pass signals on.
    pub(crate) sig_proxy: bool,
    /// Keys that detach; empty for none.
    pub(crate) detach_keys: Vec<u8>,
    /// Where to write the id; absolute.
    pub(crate) cidfile: Option<PathBuf>,
}

/// When an image is got from its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pull {
    /// Every time.
    Always,
    /// When there is none of that name.
    Missing,
    /// Never.
    Never,
}

/// What the meaning of words depends on.
pub(crate) trait Host {
    /// Working directory.
    fn cwd(&self) -> io::Result<PathBuf>;
    /// A variable.
    fn variable(&self, name: &OsStr) -> Option<OsString>;
    /// A file's content.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Whether the standard input is a terminal.
    fn input_is_terminal(&self) -> bool;
}

pub(super) fn value(flag: &'static str, value: &(impl AsRef<OsStr> + ?Sized)) -> impl Fn(String) -> Error {
    let value = value.as_ref().display().to_string();
    move |why| Error::Value { flag, value: value.clone(), why, code: 125 }
}

/// Checks `servin run`.
pub(crate) fn run(typed: args::Run, host: &dyn Host) -> Result<Run> {
    let cwd = host.cwd().map_err(|source| Error::Host {
        what: "find the working directory".into(),
        source,
        code: 125,
    })?;
    let mut words = typed.words.clone().into_iter();
    let root = match &typed.rootfs {
        Some(dir) if dir.is_empty() => {
            return Err(value("--rootfs", dir)("it is a directory".into()));
        }
        Some(dir) => RootSource::Directory(Text::from(volume::clean(&cwd.join(dir)))),
        None => {
            let image = words.next().unwrap_or_default();
            match image.into_string() {
                Ok(image) if !image.is_empty() => RootSource::Image(image),
                Ok(image) => return Err(value("IMAGE", &image)("it is empty".into())),
                Err(image) => return Err(value("IMAGE", &image)("it is not valid UTF-8".into())),
            }
        }
    };
    let mut request = Request::new(root);
    request.args = words.map(Text::from).collect();
    request.entrypoint = typed.entrypoint.map(Text::from);
    request.env = variables(&typed.env_file, &typed.env, &cwd, host)?;
    request.name = typed.name.map(|name| checked_name(&name)).transpose()?;
    request.hostname = typed.hostname.map(|name| checked_hostname(&name)).transpose()?;
    request.user = typed.user.map(|user| checked_user(&user)).transpose()?.flatten();
    request.cwd = match typed.workdir {
        Some(dir) if !dir.as_bytes().starts_with(b"/") => {
            return Err(value("-w, --workdir", &dir)("it must begin with /".into()));
        }
        Some(dir) => Some(Text::from(volume::clean(Path::new(&dir)))),
        None => None,
    };
    if let Some(text) = &typed.memory {
        request.memory = checked_memory(text)?;
    }
    if let Some(text) = &typed.cpus {
        request.cpus = checked_cpus(text)?;
    }
    for word in &typed.volume {
        volume::volume(word, &cwd).map_err(value("-v, --volume", word))?.add_to(&mut request);
    }
    for word in &typed.tmpfs {
        request.tmpfs.push(volume::tmpfs(word).map_err(value("--tmpfs", word))?);
    }
    for word in &typed.mount {
        mount::mount(word, &cwd).map_err(value("--mount", word))?.add_to(&mut request);
    }
    refuse_twice(&request)?;
    let volumes_from = typed
        .volumes_from
        .iter()
        .map(|word| volume::from(word).map_err(value("--volumes-from", word)))
        .collect::<Result<_>>()?;
    for word in &typed.label {
        let text = word.to_str().ok_or_else(|| value("-l, --label", word)("it is not valid UTF-8".into()))?;
        let (name, content) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() {
            return Err(value("-l, --label", word)("a label needs a name".into()));
        }
        request.labels.push((name.to_owned(), content.to_owned()));
    }
    limits::fill(&mut request, &typed.limits, &cwd, host)?;
    let (quota, period) = (request.limits.cpu_quota, request.limits.cpu_period);
    if typed.cpus.is_some() && (quota.is_some() || period.is_some()) {
        return Err(Error::Usage { what: limits::TWICE.into(), verb: "run".into() });
    }
    if let Some(quota) = quota {
        request.cpus = limits::time(quota, period).map_err(value("--cpu-quota", &quota.to_string()))?;
    }
    request.network = network::networking(&typed.network)?;
    if let Some(text) = &typed.stop_signal {
        request.stop_signal = Some(signal::number(text).map_err(value("--stop-signal", text))?);
    }
    if let Some(text) = &typed.stop_timeout {
        let seconds =
            text.parse().map_err(|_| value("--stop-timeout", text)("it is a number of seconds".into()))?;
        request.stop_timeout = Some(seconds);
    }
    let pull = match typed.pull.as_deref() {
        None | Some("missing") => Pull::Missing,
        Some("always") => Pull::Always,
        Some("never") => Pull::Never,
        Some(other) => return Err(value("--pull", other)("it is always, missing or never".into())),
    };
    if typed.rootfs.is_some() && (typed.pull.is_some() || typed.platform.is_some()) {
        let what = "--pull and --platform are about images, and --rootfs is none".into();
        return Err(Error::Usage { what, verb: "run".into() });
    }
    let platform = match &typed.platform {
        None => Platform::native(),
        Some(text) => checked_platform(text)?,
    };
    if let Some(text) = &typed.restart {
        request.restart = restart::policy(text).map_err(value("--restart", text))?;
        if typed.rm && request.restart != Restart::No {
            return Err(Error::Usage {
                what: "--rm and --restart contradict each other: leave one of them out".into(),
                verb: "run".into(),
            });
        }
    }
    for word in &typed.storage_opt {
        request.disk = Some(restart::disk_size(word).map_err(value("--storage-opt", word))?);
    }
    let detach_keys = detach_keys(typed.detach_keys.as_deref(), 125)?;
    request.kernel = typed.kernel.map(|path| Text::from(volume::clean(&cwd.join(path))));
    request.read_only = typed.read_only;
    request.terminal = typed.tty;
    request.stdin = typed.interactive;
    request.detach = typed.detach;
    request.remove = typed.rm;
    if request.terminal && request.stdin && !request.detach && !host.input_is_terminal() {
        return Err(Error::Usage {
            what: "-t with -i needs a terminal as standard input, and there is none: leave -t out".into(),
            verb: "run".into(),
        });
    }
    let cidfile = typed.cidfile.map(|path| volume::clean(&cwd.join(path)));
    Ok(Run {
        request,
        volumes_from,
        pull,
        platform,
        quiet: typed.quiet,
        timing: typed.timing,
        trace: typed.trace.map(PathBuf::from),
        warm: !typed.no_warm,
        sig_proxy: typed.sig_proxy,
        detach_keys,
        cidfile,
    })
}

pub(super) fn variables(
    files: &[OsString],
    words: &[OsString],
    cwd: &Path,
    host: &dyn Host,
) -> Result<Vec<Text>> {
    let lookup = |name: &OsStr| host.variable(name);
    let mut variables = Vec::new();
    for file in files {
        let content = host.read(&cwd.join(file)).map_err(|source| Error::Host {
            what: format!("read --env-file {}", file.display()),
            source,
            code: 125,
        })?;
        variables.extend(env::file(&content, lookup).map_err(value("--env-file", file))?);
    }
    for word in words {
        variables.push(env::word(word, lookup).map_err(value("-e, --env", word))?);
    }
    Ok(variables)
}

pub(crate) fn checked_name(name: &str) -> Result<String> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if first && rest && (2..=128).contains(&name.len()) {
        return Ok(name.to_owned());
    }
    let why = "a name begins with a letter or digit, goes on with those or _ . - and has 2 to 128 of them";
    Err(value("--name", name)(why.into()))
}

pub(crate) fn checked_hostname(name: &str) -> Result<String> {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if name.len() <= 64 && name.split('.').all(label) {
        return Ok(name.to_owned());
    }
    Err(value("-h, --hostname", name)("it has letters, digits, - and dots, at most 64 of them".into()))
}

/// Empty means the image's user, as with docker.
pub(super) fn checked_user(user: &str) -> Result<Option<String>> {
    if user.is_empty() {
        return Ok(None);
    }
    let (name, group) = user.split_once(':').unwrap_or((user, ""));
    if name.is_empty()
        || group.contains(':')
        || user.bytes().any(|byte| byte.is_ascii_control() || byte == b'/')
    {
        return Err(value("-u, --user", user)("it is USER or USER:GROUP, by name or number".into()));
    }
    Ok(Some(user.to_owned()))
}

fn checked_platform(text: &str) -> Result<Platform> {
    let fail = value("--platform", text);
    let platform: Platform = text.parse().map_err(|error: servin_engine::Error| fail(error.to_string()))?;
    match platform.runs_here() {
        true => Ok(platform),
        false => Err(fail(format!("guests of this host run {}", Platform::native()))),
    }
}

pub(crate) fn checked_memory(text: &str) -> Result<u64> {
    let fail = value("-m, --memory", text);
    match size::bytes(text) {
        Ok(0) => Err(fail("a virtual machine has a size: give one, as 512m".into())),
        Ok(bytes) if bytes < LEAST_MEMORY => Err(fail("the least is 6m".into())),
        Ok(bytes) => Ok(bytes),
        Err(why) => Err(fail(why)),
    }
}

pub(crate) fn checked_cpus(text: &str) -> Result<Cpus> {
    let fail = value("--cpus", text);
    match size::nano(text) {
        Ok(nano) if nano < 10_000_000 => Err(fail("the least is 0.01".into())),
        Ok(nano) if nano > u64::from(MOST_CPUS) * 1_000_000_000 => {
            Err(fail(format!("the most is {MOST_CPUS}")))
        }
        Ok(nano) => Ok(Cpus { nano }),
        Err(why) => Err(fail(why)),
    }
}

fn refuse_twice(request: &Request) -> Result<()> {
    let mut seen = HashSet::new();
    let binds = request.binds.iter().map(|bind| ("-v, --volume", &bind.target));
    let volumes = request.volumes.iter().map(|volume| ("-v, --volume", &volume.target));
    let tmpfs = request.tmpfs.iter().map(|tmpfs| ("--tmpfs", &tmpfs.target));
    for (flag, target) in binds.chain(volumes).chain(tmpfs) {
        if !seen.insert(target) {
            let target = OsString::from_vec(target.0.clone());
            return Err(value(flag, &target)("something else is mounted there already".into()));
        }
    }
    Ok(())
}

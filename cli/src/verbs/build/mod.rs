//! `servin build`: an image as a Dockerfile says.
//!
//! ```text
//! Dockerfile --parse--> stages that the target needs --> each instruction in its place:
//!     ENV, CMD, ...   change what the image will say of itself              (stage)
//!     RUN             a container of the image so far; what it changed      (steps, machine)
//!     COPY, ADD       files of the context or another stage into one        (copy, context)
//! ```
//! Every `RUN` runs in a microVM of its own, and can reach nothing of the host but the network. What was built stays without a
//! name and is taken again by the next build (see [`stage`]); `servin image prune` removes what no name holds.

mod context;
mod copy;
mod machine;
mod plan;
mod stage;
mod steps;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use parse_dockerfile::{Dockerfile, Instruction};
use servin_engine::image::{Change, Composed, Digest, Image, Images, Platform, Reference, guest_directory};

use self::context::Context;
use self::plan::{Place, Progress, find, index, needed, start};
use self::stage::Stage;
use crate::args::{self, Global};
use crate::error::{Error, Result};
use crate::output;

/// Variables that may be given without an `ARG`, as docker has them; they are in no key and in no image.
const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];
/// What the comment of a step in an image's history begins with.
const KEY: &str = "servin.build.v1 ";

fn usage(what: String) -> Error {
    Error::Usage { what, verb: "build".into() }
}

fn not_built(what: &str) -> Error {
    Error::NotBuilt { what: format!("build: {what}"), code: 1 }
}

fn host(what: String) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Host { what, source, code: 1 }
}

/// Builds, names the image, and says its id.
pub(crate) fn run(global: &Global, typed: &args::Build) -> Result<u8> {
    let names = typed.tags.iter().map(|name| Ok(name.parse::<Reference>()?)).collect::<Result<Vec<_>>>()?;
    let address = typed.context.to_string_lossy();
    if address.contains("://") || address.starts_with("git@") {
        return Err(not_built("a context that is an address; clone it, and name the directory"));
    }
    let context = if typed.context == Path::new("-") { None } else { Some(Context::open(&typed.context)?) };
    let text = dockerfile(typed)?;
    let file = parse_dockerfile::parse(&text).map_err(|error| usage(format!("the Dockerfile: {error}")))?;
    if file.parser_directives.escape.as_ref().is_some_and(|escape| escape.value.value != '\\') {
        return Err(not_built("another escape than \\"));
    }
    let labels = typed
        .labels
        .iter()
        .map(|label| {
            label
                .split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .unwrap_or((label.clone(), String::new()))
        })
        .collect();
    let mut build =
        Build { global, typed, text: &text, context, args: build_args(typed), used: BTreeSet::new(), labels };
    let image = build.all(&file)?;
    build.tell_unused();
    let store = super::store(global)?;
    let images = Images::new(&store);
    for name in &names {
        images.tag(&image.id.to_string(), name)?;
    }
    if let Some(path) = &typed.iidfile {
        fs::write(path, image.id.to_string()).map_err(host(format!("write {}", path.display())))?;
    }
    if typed.quiet {
        output::text(&format!("{}\n", image.id));
    } else {
        output::note(&format!("built {}\n", image.id));
        names.iter().for_each(|name| output::note(&format!("named {}\n", name.familiar())));
    }
    Ok(0)
}

/// The Dockerfile's text.
fn dockerfile(typed: &args::Build) -> Result<String> {
    let path = match &typed.file {
        Some(path) => path.clone(),
        None if typed.context == Path::new("-") => PathBuf::from("-"),
        None => typed.context.join("Dockerfile"),
    };
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(host("read the Dockerfile from standard input".into()))?;
        return Ok(text);
    }
    fs::read_to_string(&path).map_err(host(format!("read the Dockerfile {}", path.display())))
}

/// `--build-arg`; a name alone takes the value of our environment, if there is one.
fn build_args(typed: &args::Build) -> BTreeMap<String, String> {
    let of = |arg: &String| match arg.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => Some((arg.clone(), std::env::var(arg).ok()?)),
    };
    typed.args.iter().filter_map(of).collect()
}

/// What the platform's variables are, for an `ARG` that wants one.
fn platform_arg(name: &str) -> Option<String> {
    let platform = Platform::native();
    match name {
        "TARGETPLATFORM" | "BUILDPLATFORM" => Some(platform.to_string()),
        "TARGETOS" | "BUILDOS" => Some(platform.os),
        "TARGETARCH" | "BUILDARCH" => Some(platform.architecture),
        "TARGETVARIANT" | "BUILDVARIANT" => Some(platform.variant),
        _ => None,
    }
}

/// A build on its way.
struct Build<'a> {
    global: &'a Global,
    typed: &'a args::Build,
    text: &'a str,
    context: Option<Context>,
    args: BTreeMap<String, String>,
    /// Those of them that an `ARG` took.
    used: BTreeSet<String>,
    labels: Vec<(String, String)>,
}

impl Build<'_> {
    /// Builds the stages that are needed, in their order, and gives the last one's image.
    fn all(&mut self, file: &Dockerfile<'_>) -> Result<Image> {
        let mut head: Vec<(String, String)> = Vec::new();
        for arg in file.global_args() {
            let lookup = |name: &str| find(&head, name);
            for one in
                words::words(&arg.arguments.value, &lookup).map_err(|why| self.at(arg.arg.span.start, why))?
            {
                let (name, default) =
                    one.split_once('=').map_or((one.as_str(), None), |(name, value)| (name, Some(value)));
                let value = self
                    .args
                    .get(name)
                    .cloned()
                    .or_else(|| default.map(str::to_owned))
                    .or_else(|| platform_arg(name));
                self.used.insert(name.to_owned());
                head.extend(value.map(|value| (name.to_owned(), value)));
            }
        }
        let mut places = Vec::new();
        for stage in file.stages() {
            if let Some(option) = stage.from.options.first() {
                return Err(not_built(&format!("FROM --{}", option.name.value)));
            }
            let from = words::word(&stage.from.image.value, &|name| find(&head, name))
                .map_err(|why| self.at(stage.from.from.span.start, why))?;
            let name = stage.from.as_.as_ref().map(|(_, name)| name.value.to_lowercase());
            places.push(Place { from, name, stage });
        }
        let target = match &self.typed.target {
            None => places.len().checked_sub(1).ok_or_else(|| usage("the Dockerfile has no FROM".into()))?,
            Some(wanted) => index(&places, places.len(), wanted)
                .ok_or_else(|| usage(format!("the Dockerfile has no stage {wanted}")))?,
        };
        let needed = needed(&places, target);
        let steps: usize = places
            .iter()
            .enumerate()
            .filter(|(at, _)| needed.contains(at))
            .map(|(_, place)| 1 + place.stage.instructions.len())
            .sum();
        let mut progress = Progress { done: 0, steps, quiet: self.typed.quiet };
        let mut images: BTreeMap<usize, Image> = BTreeMap::new();
        for (at, place) in places.iter().enumerate().filter(|(at, _)| needed.contains(at)) {
            progress.step(&match &place.name {
                Some(name) => format!("FROM {} AS {name}", place.from),
                None => format!("FROM {}", place.from),
            });
            let image = match index(&places, at, &place.from).and_then(|at| images.get(&at)) {
                Some(image) => image.clone(),
                None => self.base(&place.from)?,
            };
            let mut stage = Stage::new(image);
            for instruction in place.stage.instructions {
                progress.step(&self.source(instruction));
                self.step(&mut stage, instruction, &head, &places[..at], &images, &progress)
                    .map_err(|error| self.place(instruction, error))?;
            }
            let last = at == target;
            images.insert(at, self.close(stage, last)?);
        }
        images.remove(&target).ok_or_else(|| usage("the Dockerfile has no FROM".into()))
    }

    /// The image that a stage begins with, pulled if it is missing.
    fn base(&self, from: &str) -> Result<Image> {
        if from == "scratch" {
            return self.scratch();
        }
        let ours = super::pull::comes_with_us(from);
        if !ours && (self.typed.pull || super::pull::is_missing(self.global, from)?) {
            super::pull::for_container(self.global, from, &Platform::native(), self.typed.quiet)
                .map_err(|error| error.with_code(1))?;
        }
        let store = super::store(self.global)?;
        let image = Images::new(&store).find_or_base(from, guest_directory().as_deref(), &mut |_| {})?;
        image.must_run_here()?;
        if image.config_json.contains("\"OnBuild\":[\"") {
            return Err(not_built(&format!("FROM {from}, which has ONBUILD instructions")));
        }
        Ok(image)
    }

    /// The image with nothing in it.
    fn scratch(&self) -> Result<Image> {
        let composed = Composed { comment: format!("{KEY}scratch"), ..Composed::default() };
        if let Some(image) = self.built(&composed.comment)? {
            return Ok(image);
        }
        let store = super::store(self.global)?;
        let images = Images::new(&store);
        let made = images.import(&mut io::repeat(0).take(1024), &Platform::native(), &composed)?;
        Ok(images.find(&made.id.to_string())?)
    }

    /// The image of a step that was done before.
    fn built(&self, key: &str) -> Result<Option<Image>> {
        let store = super::store(self.global)?;
        let all = Images::new(&store).list()?;
        Ok(all.into_iter().find(|image| image.config.history.last().is_some_and(|step| step.comment == key)))
    }

    /// The stage's image, with what changed since its last layer, and the last one's labels.
    fn close(&self, mut stage: Stage, last: bool) -> Result<Image> {
        for (name, value) in self.labels.iter().filter(|_| last) {
            stage.pending.push(Change::Label(name.clone(), value.clone()));
            stage.before.push(format!("LABEL {name}={value}"));
        }
        if stage.pending.is_empty() && stage.before.is_empty() {
            return Ok(stage.image);
        }
        let key = format!(
            "{KEY}{}",
            Digest::of(format!("{:?} {:?} {:?}", stage.image.id, stage.pending, stage.before).as_bytes())
        );
        if let (false, Some(image)) = (self.typed.no_cache, self.built(&key)?) {
            return Ok(image);
        }
        let said = stage.before.pop().unwrap_or_default();
        let composed = Composed {
            author: stage.author,
            before: stage.before,
            created_by: said,
            comment: key,
            changes: stage.pending,
            name: None,
        };
        let store = super::store(self.global)?;
        let images = Images::new(&store);
        let made = images.configure(&stage.image, &composed)?;
        self.passed(&stage.image, stage.is_base)?;
        Ok(images.find(&made.id.to_string())?)
    }

    /// An image that the stage has left behind. Its layers are in the next one; it is only taken again if that is not.
    fn passed(&self, image: &Image, is_base: bool) -> Result<()> {
        if is_base {
            return Ok(());
        }
        let store = super::store(self.global)?;
        let images = Images::new(&store);
        if images.names(&image.id)?.is_empty() { Ok(images.forget_root(image)?) } else { Ok(()) }
    }

    /// An instruction as it was written, on one line.
    fn source(&self, instruction: &Instruction<'_>) -> String {
        let from = self.text.get(start(instruction)..).unwrap_or_default();
        let first = from.lines().next().unwrap_or_default().trim_end();
        first.strip_suffix('\\').map_or_else(|| first.to_owned(), |line| format!("{}...", line.trim_end()))
    }

    /// A reason with its line.
    fn at(&self, start: usize, why: String) -> Error {
        let line = self.text.get(..start).unwrap_or_default().matches('\n').count() + 1;
        usage(format!("line {line} of the Dockerfile: {why}"))
    }

    fn place(&self, instruction: &Instruction<'_>, error: Error) -> Error {
        match error {
            Error::Usage { what, .. } => self.at(start(instruction), what),
            other => {
                let line = self.text.get(..start(instruction)).unwrap_or_default().matches('\n').count() + 1;
                output::note(&format!(
                    "line {line} of the Dockerfile failed: {}\n",
                    self.source(instruction)
                ));
                other
            }
        }
    }

    fn tell_unused(&self) {
        for name in
            self.args.keys().filter(|name| !self.used.contains(*name) && !PROXIES.contains(&name.as_str()))
        {
            output::note(&format!("warning: no ARG of the Dockerfile took --build-arg {name}\n"));
        }
    }
}

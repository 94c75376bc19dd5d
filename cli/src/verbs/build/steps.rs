//! The steps that make a layer: `RUN`, `COPY`, `ADD`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use parse_dockerfile::{Command, Flag, Instruction, Source};
use servin_engine::container::{Request, RootSource};
use servin_engine::image::{Composed, Digest, Image};
use servin_engine::network::Networking;

use super::copy::Copy;
use super::machine::Container;
use super::plan::{Place, Progress, find, index};
use super::stage::Stage;
use super::{Build, KEY, PROXIES, not_built, platform_arg, usage, words};
use crate::error::Result;
use crate::spec;

impl Build<'_> {
    /// One instruction.
    pub(super) fn step(
        &mut self,
        stage: &mut Stage,
        instruction: &Instruction<'_>,
        head: &[(String, String)],
        earlier: &[Place<'_, '_>],
        images: &BTreeMap<usize, Image>,
        progress: &Progress,
    ) -> Result<()> {
        if stage.configure(instruction)? {
            return Ok(());
        }
        match instruction {
            Instruction::Arg(arg) => {
                let args = &self.args;
                let mut taken = Vec::new();
                for word in words::words(&arg.arguments.value, &|name| stage.lookup(name)).map_err(usage)? {
                    taken.push(word.split('=').next().unwrap_or_default().to_owned());
                }
                self.used.extend(taken);
                let head = |name: &str| find(head, name).or_else(|| platform_arg(name));
                stage.arg(&arg.arguments.value, &|name| args.get(name).cloned(), &head).map_err(usage)
            }
            Instruction::Run(run) => {
                if let Some(option) = run.options.first() {
                    return Err(not_built(&format!("RUN --{}", option.name.value)));
                }
                let mut words = stage.command(&run.arguments);
                if let [script, rest @ ..] = run.here_docs.as_slice() {
                    let nothing_else =
                        matches!(&run.arguments, Command::Shell(line) if line.value.trim().is_empty());
                    if !nothing_else || !rest.is_empty() || script.value.starts_with("#!") {
                        return Err(not_built(
                            "a here-document that is not the whole RUN, or names its interpreter",
                        ));
                    }
                    words = [stage.shell.as_slice(), &[script.value.to_string()]].concat();
                }
                self.run_step(stage, words, progress)
            }
            Instruction::Copy(copy) => self.copy_step(
                stage,
                "COPY",
                (&copy.options, &copy.src, &copy.dest.value),
                earlier,
                images,
                progress,
            ),
            Instruction::Add(add) => self.copy_step(
                stage,
                "ADD",
                (&add.options, &add.src, &add.dest.value),
                earlier,
                images,
                progress,
            ),
            _ => Err(usage("this instruction is not known here".into())),
        }
    }

    fn run_step(&self, stage: &mut Stage, words: Vec<String>, progress: &Progress) -> Result<()> {
        let said = format!("RUN {}", words.join(" "));
        self.layer(stage, &said, "", progress, |stage| {
            let mut request = self.request(stage)?;
            request.args = words.iter().map(|word| word.clone().into()).collect();
            let proxies = PROXIES.iter().filter_map(|name| Some((name, self.args.get(*name)?)));
            let variables = stage.args.iter().filter(|(name, _)| find(&stage.env, name).is_none());
            let all = proxies.map(|(name, value)| format!("{name}={value}"));
            let all = all.chain(variables.chain(&stage.env).map(|(name, value)| format!("{name}={value}")));
            request.env = all.map(Into::into).collect();
            let (container, code) = Container::run(self.global, request, stage.is_base, self.typed.quiet)?;
            if code != 0 {
                let hint = if self.typed.quiet { "; without -q its output is shown" } else { "" };
                return Err(usage(format!(
                    "the command \"{}\" ended with code {code}{hint}",
                    words.join(" ")
                )));
            }
            Ok(container)
        })
    }

    fn copy_step(
        &self,
        stage: &mut Stage,
        verb: &str,
        (options, sources, to): (&[Flag<'_>], &[Source<'_>], &str),
        earlier: &[Place<'_, '_>],
        images: &BTreeMap<usize, Image>,
        progress: &Progress,
    ) -> Result<()> {
        let mut from = None;
        let mut copy = Copy { to: Vec::new(), into_directory: sources.len() > 1, owner: None, mode: None };
        for option in options {
            let value = option
                .value
                .as_ref()
                .map(|value| stage.word(&value.value))
                .transpose()
                .map_err(usage)?
                .unwrap_or_default();
            match option.name.value.as_ref() {
                "from" if verb == "COPY" => from = Some(value),
                "chown" => copy.owner = Some(value),
                "chmod" => {
                    let mode = u32::from_str_radix(&value, 8).ok().filter(|mode| *mode <= 0o7777);
                    copy.mode =
                        Some(mode.ok_or_else(|| {
                            usage(format!("--chmod={value} is no octal number such as 755"))
                        })?);
                }
                other => return Err(not_built(&format!("{verb} --{other}"))),
            }
        }
        let mut named = Vec::new();
        for source in sources {
            let Source::Path(path) = source else {
                return Err(not_built(&format!("{verb} of a here-document")));
            };
            let path = stage.word(&path.value).map_err(usage)?;
            if verb == "ADD" && (path.contains("://") || path.starts_with("git@")) {
                return Err(not_built("ADD of an address"));
            }
            named.push(path);
        }
        let to = stage.word(to).map_err(usage)?;
        copy.into_directory |= to.ends_with('/') || to.ends_with("/.") || matches!(to.as_str(), "." | "..");
        copy.to = stage.path(&to).into_bytes();
        let said = format!("{verb} {} {to}", named.join(" "));
        let request = self.request(stage)?;
        match from {
            Some(from) => {
                let image = match index(earlier, earlier.len(), &from).and_then(|at| images.get(&at)) {
                    Some(image) => image.clone(),
                    None => self.base(&from)?,
                };
                let paths: Vec<Vec<u8>> =
                    named.iter().map(|path| servin_engine::files::absolute(path.as_bytes())).collect();
                let source = format!("{} {:?} {:?}", image.id, copy.owner, copy.mode);
                self.layer(stage, &said, &source, progress, |_| {
                    let (to, from) = (
                        Container::create(self.global, &request)?,
                        Container::create(self.global, &self.plain(&image))?,
                    );
                    let (mut client, mut other) = (to.files()?, from.files()?);
                    copy.of_container(&mut client, &mut other, &paths)?;
                    other.finish()?;
                    client.finish()?;
                    Ok(to)
                })
            }
            None => {
                let context = self
                    .context
                    .as_ref()
                    .ok_or_else(|| usage("there is no context: the Dockerfile alone was given".into()))?;
                let mut paths = Vec::new();
                for name in &named {
                    paths.extend(context.sources(name)?);
                }
                if verb == "ADD" && paths.iter().any(|path| is_archive(path)) {
                    return Err(not_built(
                        "ADD of an archive, which is unpacked; COPY it, or unpack it with RUN",
                    ));
                }
                copy.into_directory |= paths.len() > 1;
                let source = format!("{} {:?} {:?}", context.digest(&paths)?, copy.owner, copy.mode);
                self.layer(stage, &said, &source, progress, |_| {
                    let to = Container::create(self.global, &request)?;
                    let mut client = to.files()?;
                    copy.of_context(&mut client, context, &paths)?;
                    client.finish()?;
                    Ok(to)
                })
            }
        }
    }

    /// Makes a layer of what `make` leaves in a container, unless that was done before.
    fn layer<'c>(
        &'c self,
        stage: &mut Stage,
        said: &str,
        source: &str,
        progress: &Progress,
        make: impl FnOnce(&Stage) -> Result<Container<'c>>,
    ) -> Result<()> {
        let all = (
            &stage.image.id,
            &stage.pending,
            &stage.before,
            &stage.author,
            &stage.args,
            &stage.cwd,
            &stage.user,
        );
        let key = format!("{KEY}{}", Digest::of(format!("{all:?} {said:?} {source}").as_bytes()));
        let before = if self.typed.no_cache { None } else { self.built(&key)? };
        let image = match before {
            Some(image) => {
                progress.cached();
                image
            }
            None => {
                let container = make(stage)?;
                let composed = Composed {
                    author: stage.author.clone(),
                    before: stage.before.clone(),
                    created_by: said.to_owned(),
                    comment: key,
                    changes: stage.pending.clone(),
                    name: None,
                };
                container.commit(&stage.image, &composed)?
            }
        };
        self.passed(&stage.image, stage.is_base)?;
        (stage.image, stage.is_base) = (image, false);
        stage.pending.clear();
        stage.before.clear();
        Ok(())
    }

    /// What a step's container is made by.
    fn request(&self, stage: &Stage) -> Result<Request> {
        let mut request = self.plain(&stage.image);
        request.cwd = Some(stage.cwd.clone().into());
        request.user = Some(stage.user.clone()).filter(|user| !user.is_empty());
        if let Some(text) = &self.typed.memory {
            request.memory = spec::memory(text).map_err(|error| error.with_code(1))?;
        }
        match self.typed.network.as_deref() {
            None | Some("default" | "bridge") => {}
            Some("none") => request.network = Networking::none(),
            Some(other) => {
                return Err(usage(format!("--network {other}: a step's network is default or none")));
            }
        }
        Ok(request)
    }

    /// A container of an image, whose own program does not matter.
    fn plain(&self, image: &Image) -> Request {
        let mut request = Request::new(RootSource::Image(image.id.to_string()));
        request.entrypoint = Some(String::new().into());
        request.args = vec!["/bin/sh".to_owned().into()];
        request.health.disabled = true;
        request
    }
}

/// Whether docker would unpack it: by its first bytes.
fn is_archive(path: &Path) -> bool {
    let mut head = [0; 265];
    let count = fs::File::open(path).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
    let head = head.get(..count).unwrap_or_default();
    [&b"\x1f\x8b"[..], b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"].iter().any(|magic| head.starts_with(magic))
        || head.get(257..262) == Some(b"ustar")
}

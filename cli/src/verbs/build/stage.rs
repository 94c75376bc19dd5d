//! One stage of a Dockerfile: what its instructions have come to so far, step by step.
//!
//! Instructions that only change the image's configuration are kept until one makes a layer. `RUN` and `COPY` make one each;
//! what they depend on is hashed into a key, and the image of a step that was made before with the same key is taken
//! again. The key stands in the comment of the step in the image's history.

use parse_dockerfile::{Command, HealthcheckArguments, Instruction, JsonOrStringArray};
use serde_json::{Value, json};
use servin_engine::image::{Change, Image};

use super::words::{pairs, shell_line, word, words};
use crate::error::{Error, Result};

/// A reason, without its place.
pub(super) type Why<T> = std::result::Result<T, String>;

/// The state.
pub(super) struct Stage {
    /// What the next step begins with.
    pub(super) image: Image,
    /// Variables of the image, those that are not in it yet included.
    pub(super) env: Vec<(String, String)>,
    /// `ARG`s that have a value.
    pub(super) args: Vec<(String, String)>,
    pub(super) cwd: String,
    pub(super) user: String,
    pub(super) shell: Vec<String>,
    pub(super) author: String,
    /// Changes that are in no image yet, and how the history calls them.
    pub(super) pending: Vec<Change>,
    pub(super) before: Vec<String>,
    /// A CMD stands in this stage.
    has_cmd: bool,
    /// The image is one that the stage was begun with, not one of its steps'.
    pub(super) is_base: bool,
}

impl Stage {
    /// A stage that begins with an image.
    pub(super) fn new(image: Image) -> Self {
        let process = &image.config.process;
        let split = |variable: &String| {
            variable.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        };
        let shell = serde_json::from_str::<Value>(&image.config_json).ok().and_then(|config| {
            let words = config.get("config")?.get("Shell")?.as_array()?;
            Some(words.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>())
        });
        Stage {
            env: process.env.iter().filter_map(split).collect(),
            cwd: if process.working_dir.is_empty() { "/".into() } else { process.working_dir.clone() },
            user: process.user.clone(),
            shell: shell
                .filter(|words| !words.is_empty())
                .unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]),
            args: Vec::new(),
            author: String::new(),
            pending: Vec::new(),
            before: Vec::new(),
            has_cmd: false,
            is_base: true,
            image,
        }
    }

    /// The value of a variable: `ENV` hides `ARG`.
    pub(super) fn lookup(&self, name: &str) -> Option<String> {
        let find = |list: &[(String, String)]| {
            list.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        find(&self.env).or_else(|| find(&self.args))
    }

    /// What the variables of a text make of it.
    pub(super) fn word(&self, text: &str) -> Why<String> {
        word(text, &|name| self.lookup(name))
    }

    /// A path of the container.
    pub(super) fn path(&self, text: &str) -> String {
        let whole = if text.starts_with('/') { text.to_owned() } else { format!("{}/{text}", self.cwd) };
        let mut parts: Vec<&str> = Vec::new();
        for part in whole.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        format!("/{}", parts.join("/"))
    }

    /// The words that a command runs: those of a list, or the shell's and a line.
    pub(super) fn command(&self, command: &Command<'_>) -> Vec<String> {
        match command {
            Command::Exec(list) => list.value.iter().map(|word| word.value.to_string()).collect(),
            Command::Shell(line) => [self.shell.as_slice(), &[shell_line(line.value)]].concat(),
            _ => Vec::new(),
        }
    }

    fn change(&mut self, change: Change, said: String) {
        self.pending.push(change);
        self.before.push(said);
    }

    /// An `ARG`: what was typed for it, else what the Dockerfile's head says if it says nothing here, else its default.
    pub(super) fn arg(
        &mut self,
        text: &str,
        typed: &dyn Fn(&str) -> Option<String>,
        head: &dyn Fn(&str) -> Option<String>,
    ) -> Why<()> {
        for one in words(text, &|name| self.lookup(name))? {
            let (name, default) =
                one.split_once('=').map_or((one.as_str(), None), |(name, value)| (name, Some(value)));
            let value = typed(name).or_else(|| default.map(str::to_owned)).or_else(|| head(name));
            self.args.extend(value.map(|value| (name.to_owned(), value)));
        }
        Ok(())
    }

    /// An instruction that makes no layer; `false` if it is none.
    pub(super) fn configure(&mut self, instruction: &Instruction<'_>) -> Result<bool, Error> {
        let refused = |what: &str| Error::NotBuilt { what: format!("build: {what}"), code: 1 };
        match instruction {
            Instruction::Onbuild(_) => return Err(refused("ONBUILD")),
            Instruction::Run(_) | Instruction::Copy(_) | Instruction::Add(_) | Instruction::Arg(_) => {
                return Ok(false);
            }
            _ => {}
        }
        self.set(instruction).map_err(|what| Error::Usage { what, verb: "build".into() })?;
        Ok(true)
    }

    fn set(&mut self, instruction: &Instruction<'_>) -> Why<()> {
        match instruction {
            Instruction::Env(env) => {
                // All of a line see the values from before it.
                for (name, value) in pairs(&env.arguments.value, &|name| self.lookup(name))? {
                    self.env.retain(|(known, _)| *known != name);
                    self.env.push((name.clone(), value.clone()));
                    let said = format!("ENV {name}={value}");
                    self.change(Change::Env(name, value), said);
                }
            }
            Instruction::Label(label) => {
                for (name, value) in pairs(&label.arguments.value, &|name| self.lookup(name))? {
                    let said = format!("LABEL {name}={value}");
                    self.change(Change::Label(name, value), said);
                }
            }
            Instruction::Workdir(workdir) => {
                self.cwd = self.path(&self.word(&workdir.arguments.value)?);
                self.change(Change::Text("WorkingDir", self.cwd.clone()), format!("WORKDIR {}", self.cwd));
            }
            Instruction::User(user) => {
                self.user = self.word(&user.arguments.value)?;
                self.change(Change::Text("User", self.user.clone()), format!("USER {}", self.user));
            }
            Instruction::Stopsignal(signal) => {
                let signal = self.word(&signal.arguments.value)?;
                let said = format!("STOPSIGNAL {signal}");
                self.change(Change::Text("StopSignal", signal), said);
            }
            Instruction::Cmd(cmd) => {
                self.has_cmd = true;
                let words = self.command(&cmd.arguments);
                let said = format!("CMD {}", json!(words));
                self.change(Change::Words("Cmd", words), said);
            }
            Instruction::Entrypoint(entrypoint) => {
                // That of the image below belongs to its own entry point.
                if !self.has_cmd {
                    self.pending.push(Change::Words("Cmd", Vec::new()));
                }
                let words = self.command(&entrypoint.arguments);
                let said = format!("ENTRYPOINT {}", json!(words));
                self.change(Change::Words("Entrypoint", words), said);
            }
            Instruction::Shell(shell) => {
                self.shell = shell.arguments.iter().map(|word| word.value.to_string()).collect();
                self.change(
                    Change::Words("Shell", self.shell.clone()),
                    format!("SHELL {}", json!(self.shell)),
                );
            }
            Instruction::Expose(expose) => {
                for text in &expose.arguments {
                    for port in words(&text.value, &|name| self.lookup(name))? {
                        for port in ports(&port)? {
                            let said = format!("EXPOSE {port}");
                            self.change(Change::Member("ExposedPorts", port), said);
                        }
                    }
                }
            }
            Instruction::Volume(volume) => {
                let paths = match &volume.arguments {
                    JsonOrStringArray::Json(list) => list.value.iter(),
                    JsonOrStringArray::String(list) => list.iter(),
                };
                for path in paths {
                    let path = self.word(&path.value)?;
                    let said = format!("VOLUME {path}");
                    self.change(Change::Member("Volumes", path), said);
                }
            }
            Instruction::Healthcheck(check) => {
                let check = self.health(&check.options, &check.arguments)?;
                let said = format!("HEALTHCHECK {check}");
                self.change(Change::Healthcheck(check), said);
            }
            Instruction::Maintainer(maintainer) => self.author = maintainer.name.value.to_string(),
            _ => return Err("this instruction is not known here".into()),
        }
        Ok(())
    }

    /// A check as docker writes it; times in nanoseconds.
    fn health(
        &self,
        options: &[parse_dockerfile::Flag<'_>],
        arguments: &HealthcheckArguments<'_>,
    ) -> Why<Value> {
        let HealthcheckArguments::Cmd { arguments, .. } = arguments else {
            return Ok(json!({ "Test": ["NONE"] }));
        };
        let test: Vec<String> = match arguments {
            Command::Exec(list) => std::iter::once("CMD".to_owned())
                .chain(list.value.iter().map(|word| word.value.to_string()))
                .collect(),
            Command::Shell(line) => vec!["CMD-SHELL".into(), shell_line(line.value)],
            _ => return Err("a check is a list or a line".into()),
        };
        let mut check = json!({ "Test": test });
        for option in options {
            let value = option.value.as_ref().map(|value| value.value.to_string()).unwrap_or_default();
            let time = || {
                crate::spec::limits::duration(&value)
                    .map_err(|why| format!("--{}={value}: {why}", option.name.value))
            };
            let (key, value) = match option.name.value.as_ref() {
                "interval" => ("Interval", json!(time()?)),
                "timeout" => ("Timeout", json!(time()?)),
                "start-period" => ("StartPeriod", json!(time()?)),
                "start-interval" => ("StartInterval", json!(time()?)),
                "retries" => (
                    "Retries",
                    json!(value.parse::<u32>().map_err(|_| format!("--retries={value} is no number"))?),
                ),
                other => return Err(format!("HEALTHCHECK has no --{other}")),
            };
            check[key] = value;
        }
        Ok(check)
    }
}

/// `80`, `80/udp`, `8000-8002`: each with its protocol.
fn ports(text: &str) -> Why<Vec<String>> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("\"{text}\" is no port"));
    let (first, last) = (number(first)?, number(last)?);
    if !matches!(protocol, "tcp" | "udp" | "sctp") || first > last {
        return Err(format!("\"{text}\" is no port"));
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

//! The verbs that talk to registries, `servin pull` and `servin image pull` alike, as they were typed.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Verb, is_on, switch, text, value};
use crate::error::{Error, Result};

/// A verb of registries with its arguments.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Registry {
    /// `pull`
    Pull { image: String, quiet: bool, platform: Option<String> },
    /// `push`
    Push { image: String, quiet: bool, all_tags: bool },
    /// `login`
    Login { server: Option<String>, user: Option<String>, password: Option<String>, password_stdin: bool },
    /// `logout`
    Logout { server: Option<String> },
}

impl std::fmt::Debug for Registry {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Registry::Pull { image, .. } => write!(f, "Pull({image})"),
            Registry::Push { image, .. } => write!(f, "Push({image})"),
            Registry::Login { server, user, .. } => write!(f, "Login({server:?}, {user:?})"),
            Registry::Logout { server } => write!(f, "Logout({server:?})"),
        }
    }
}

/// The verbs of the `image` group that are read here.
pub(super) const IN_GROUP: [&str; 2] = ["pull", "push"];

/// Adds the verbs.
pub(super) fn add(command: Command) -> Command {
    let server = || {
        Arg::new("server")
            .value_name("REGISTRY")
            .value_parser(value_parser!(OsString))
            .help("Host and port [default: Docker Hub]")
    };
    command
        .subcommand(pull(Command::new("pull")))
        .subcommand(push(Command::new("push")))
        .subcommand(
            Command::new("login")
                .about("Log in to a registry, and keep the account")
                .arg(value(Arg::new("username").short('u').long("username"), "USER"))
                .arg(
                    value(Arg::new("password").short('p').long("password"), "PASSWORD")
                        .help("Seen by everybody on this host: better --password-stdin"),
                )
                .arg(
                    switch(Arg::new("password-stdin").long("password-stdin"))
                        .help("Read the password from standard input"),
                )
                .arg(server()),
        )
        .subcommand(Command::new("logout").about("Forget the account at a registry").arg(server()))
}

/// `pull`, under either name.
pub(super) fn pull(command: Command) -> Command {
    command
        .about("Get an image from a registry")
        .arg(
            value(Arg::new("platform").long("platform"), "OS/CPU")
                .help("Which image of several [default: that of this host]"),
        )
        .arg(switch(Arg::new("quiet").short('q').long("quiet")).help("Show no progress"))
        .arg(image("NAME[:TAG|@DIGEST]"))
}

/// `push`, under either name.
pub(super) fn push(command: Command) -> Command {
    command
        .about("Send an image to a registry")
        .arg(switch(Arg::new("all-tags").short('a').long("all-tags")).help("All tags of the name"))
        .arg(switch(Arg::new("quiet").short('q').long("quiet")).help("Show no progress"))
        .arg(image("NAME[:TAG]"))
}

fn image(shown: &'static str) -> Arg {
    Arg::new("image").required(true).value_name(shown).value_parser(value_parser!(OsString))
}

/// Reads a verb of registries; `None` if it is none.
pub(super) fn read(name: &str, matches: &ArgMatches) -> Result<Option<Verb>> {
    let fail = |what: String| Error::Usage { what, verb: name.to_owned() };
    let text = |flag: &str| text(matches, flag).map_err(|what| fail(format!("{flag}: {what}")));
    let on = |flag: &str| is_on(matches, flag);
    let image = || text("image").map(Option::unwrap_or_default);
    let verb = match name {
        "pull" => Registry::Pull { image: image()?, quiet: on("quiet"), platform: text("platform")? },
        "push" => Registry::Push { image: image()?, quiet: on("quiet"), all_tags: on("all-tags") },
        "login" => {
            let login = Registry::Login {
                server: text("server")?,
                user: text("username")?,
                password: text("password")?,
                password_stdin: on("password-stdin"),
            };
            if let Registry::Login { password: Some(_), password_stdin: true, .. } = login {
                return Err(fail("--password and --password-stdin exclude each other".into()));
            }
            login
        }
        "logout" => Registry::Logout { server: text("server")? },
        _ => return Ok(None),
    };
    Ok(Some(Verb::Registry(verb)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Typed, parse};

    fn verb(words: &[&str]) -> Result<Registry> {
        match parse(std::iter::once("servin").chain(words.iter().copied()).map(OsString::from))? {
            Typed::Verb(_, Verb::Registry(verb)) => Ok(verb),
            other => panic!("{words:?} is {other:?}"),
        }
    }

    #[test]
    fn a_verb_and_its_form_in_the_group_are_the_same() {
        let pull = verb(&["pull", "-q", "--platform", "linux/arm64", "busybox"]).unwrap();
        let (quiet, platform) = (true, Some("linux/arm64".to_owned()));
        assert!(pull == Registry::Pull { image: "busybox".into(), quiet, platform });
        assert!(pull == verb(&["image", "pull", "busybox", "--platform=linux/arm64", "--quiet"]).unwrap());
        let push = verb(&["push", "-a", "x"]).unwrap();
        assert!(push == Registry::Push { image: "x".into(), quiet: false, all_tags: true });
        assert!(push == verb(&["image", "push", "--all-tags", "x"]).unwrap());
    }

    #[test]
    fn passwords_are_not_shown_and_come_one_way() {
        let login = verb(&["login", "-u", "me", "-p", "hidden", "x.example"]).unwrap();
        assert!(!format!("{login:?}").contains("hidden"));
        assert!(verb(&["login", "-p", "a", "--password-stdin"]).is_err());
        for bad in [&["pull"][..], &["pull", "a", "b"], &["push"], &["logout", "a", "b"]] {
            assert!(verb(bad).is_err(), "{bad:?}");
        }
    }
}

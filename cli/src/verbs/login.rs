//! `servin login` and `servin logout`.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use servin_engine::Error as Failure;
use servin_engine::image::Reference;
use servin_engine::registry::{Account, Accounts, Kept};

use crate::error::{Error, Result};
use crate::output;

/// Docker Hub's name in references.
const HUB: &str = "docker.io";
/// Longest password in bytes.
const PASSWORD_MAX: u64 = 64 * 1024;

/// Checks an account at its registry, and keeps it.
pub(crate) fn login(
    server: Option<&str>,
    user: Option<&str>,
    password: Option<&str>,
    password_stdin: bool,
) -> Result<u8> {
    let host = host_of(server, "login")?;
    let accounts = Accounts::usual();
    let client = super::pull::client()?;
    if user.is_none()
        && password.is_none()
        && !password_stdin
        && let Some(known) = accounts.find(&host).map_err(Failure::from)?
    {
        output::note("Authenticating with the account that is kept\n");
        match client.verify(&host, &known) {
            Ok(()) => return done(),
            // Then another one is asked for, if somebody can be asked.
            Err(error) if !io::stdin().is_terminal() => return Err(error.into()),
            Err(error) => output::line(&output::chain(&error), None),
        }
    }
    let usage = |what: &str| Error::Usage { what: what.into(), verb: "login".into() };
    if password.is_some() {
        output::note(
            "Everybody on this host can see a password on the command line: --password-stdin is better\n",
        );
    }
    let user = match user {
        Some(user) => user.to_owned(),
        None if password_stdin => return Err(usage("--password-stdin needs --username")),
        None => ask("Username: ", true)?,
    };
    let password = match password {
        Some(password) => password.to_owned(),
        None if password_stdin => {
            let mut text = String::new();
            let read = io::stdin().lock().take(PASSWORD_MAX).read_to_string(&mut text);
            read.map_err(|source| Error::Host { what: "read the password".into(), source, code: 1 })?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => ask("Password: ", false)?,
    };
    if user.is_empty() || password.is_empty() {
        return Err(usage("a user and a password are needed"));
    }
    if user.contains(':') {
        return Err(usage("a user's name has no colon"));
    }
    let account = match user.as_str() {
        "<token>" => Account::Token(password),
        _ => Account::Password { user, password },
    };
    client.verify(&host, &account)?;
    match accounts.keep(&host, &account).map_err(Failure::from)? {
        Kept::File(path) => output::note(&format!(
            "The password is kept in {}, for you alone to read; a credential helper keeps it better\n",
            path.display()
        )),
        Kept::Helper(name) => output::note(&format!("The password is kept by docker-credential-{name}\n")),
    }
    done()
}

/// Forgets an account.
pub(crate) fn logout(server: Option<&str>) -> Result<u8> {
    let host = host_of(server, "logout")?;
    let accounts = Accounts::usual();
    let known = accounts.forget(&host).map_err(Failure::from)?;
    output::text(&match known {
        true => format!("Removed the account at {host}\n"),
        false => format!("Not logged in to {host}\n"),
    });
    if accounts.docker_has(&host).map_err(Failure::from)? {
        output::line(
            &format!("docker's own file still has an account at {host}, and it is used"),
            Some("see \"docker logout\""),
        );
    }
    Ok(0)
}

fn done() -> Result<u8> {
    output::text("Login Succeeded\n");
    Ok(0)
}

/// The registry that was meant, as references name it.
fn host_of(server: Option<&str>, verb: &str) -> Result<String> {
    let Some(text) = server else { return Ok(HUB.into()) };
    let name = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let name = name.split('/').next().unwrap_or_default();
    let name = if name == "registry-1.docker.io" { HUB } else { name };
    match format!("{name}/x").parse::<Reference>() {
        Ok(parsed) if parsed.host() == name || name == "index.docker.io" => Ok(parsed.host().to_owned()),
        _ => Err(Error::Usage {
            what: format!("\"{text}\" is no registry: it looks like registry.example or localhost:5000"),
            verb: verb.into(),
        }),
    }
}

/// Asks on the terminal.
fn ask(prompt: &str, echo: bool) -> Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::Usage {
            what: "there is no terminal to ask on: give --username and --password-stdin".into(),
            verb: "login".into(),
        });
    }
    let fail = |source| Error::Host { what: "ask on the terminal".into(), source, code: 1 };
    output::note(prompt);
    let saved = tcgetattr(&stdin).map_err(|error| fail(error.into()))?;
    if !echo {
        let mut silent = saved.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(|error| fail(error.into()))?;
    }
    let mut line = String::new();
    let read = stdin.lock().take(PASSWORD_MAX).read_line(&mut line);
    if !echo {
        let _ = tcsetattr(&stdin, OptionalActions::Flush, &saved);
        let _ = io::stderr().lock().write_all(b"\n");
    }
    read.map_err(fail)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_named_as_references_name_them() {
        for (typed, host) in [
            (None, "docker.io"),
            (Some("docker.io"), "docker.io"),
            (Some("https://index.docker.io/v1/"), "docker.io"),
            (Some("registry-1.docker.io"), "docker.io"),
            (Some("http://localhost:5000/v2/"), "localhost:5000"),
            (Some("ghcr.io"), "ghcr.io"),
        ] {
            assert_eq!(host_of(typed, "login").unwrap(), host);
        }
        for bad in ["", "registry", "a b.c", "user@ghcr.io"] {
            assert!(host_of(Some(bad), "login").is_err(), "{bad}");
        }
    }
}

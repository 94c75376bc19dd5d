//! What goes wrong between us and a registry. The text says what to do where the user can do something.

use std::io;
use std::path::PathBuf;

/// What can go wrong with a registry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no connection to it.
    #[error("cannot reach the registry {host}: {why}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// The reason.
        why: String,
    },
    /// Its certificate, or its TLS, is not acceptable.
    #[error(
        "the registry {host} cannot be trusted: {why} (its own authority: SSL_CERT_FILE, or certs.d/{host} beside \
         registries.json; none at all: \"insecure-registries\" in registries.json)"
    )]
    Certificate {
        /// Host and port.
        host: String,
        /// The reason.
        why: String,
    },
    /// It wants to know who we are, or knows and does not let us.
    #[error("access to {what} is denied{}: {hint}", why.as_ref().map_or(String::new(), |why| format!(" ({why})")))]
    Denied {
        /// Repository or registry.
        what: String,
        /// Its own words.
        why: Option<String>,
        /// What to do.
        hint: String,
    },
    /// The name, tag or digest is not there.
    #[error("{what} is not in the registry{}", why.as_ref().map_or(String::new(), |why| format!(" ({why})")))]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry's own words.
        why: Option<String>,
    },
    /// An answer that cannot be used.
    #[error("{what}: the registry answered {status}{}", why.as_ref().map_or(String::new(), |why| format!(" ({why})")))]
    Status {
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words.
        why: Option<String>,
    },
    /// All attempts failed.
    #[error("{what}: given up after {attempts} attempts: {why}")]
    GaveUp {
        /// What was tried.
        what: String,
        /// How often.
        attempts: u32,
        /// Why the last one failed.
        why: String,
    },
    /// The answer breaks the specification.
    #[error("{what}: the registry's answer makes no sense: {why}")]
    Malformed {
        /// What was asked for.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// Another part of the same work failed.
    #[error("stopped, for another part failed")]
    Cancelled,
    /// A file of settings or accounts cannot be used.
    #[error("{} cannot be used: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file of settings or accounts cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A credential helper failed.
    #[error("the credential helper docker-credential-{name} failed: {why}")]
    Helper {
        /// Its name without the prefix.
        name: String,
        /// What it said.
        why: String,
    },
    /// There is no place for accounts.
    #[error("no place for accounts: none of SERVIN_AUTH_FILE, XDG_CONFIG_HOME and HOME is set")]
    NoPlace,
}

/// A registry's words, fit to be shown in a line: without control characters, and not long.
pub(super) fn clean(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    text.trim().to_owned()
}

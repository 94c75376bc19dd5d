//! One request, one answer: connections, certificates, redirects, and what an error means.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ureq::http::{HeaderMap, Request, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody};

use super::settings::{Settings, is_loopback};
use super::{Error, Patience};

/// How long somebody who is asked whether they speak TLS may be silent.
const PROBE: Duration = Duration::from_secs(3);
/// Most redirects of one request.
const HOPS: usize = 10;
/// Where systems keep the certificates of public authorities.
const ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Largest file of certificates in bytes.
const ROOTS_MAX: u64 = 16 << 20;

/// A body to be sent. It is made anew for every attempt.
#[derive(Clone, Copy, Debug)]
pub(super) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    File(&'a Path, u64),
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Call<'a> {
    pub(super) method: &'static str,
    pub(super) url: &'a str,
    pub(super) headers: &'a [(&'static str, String)],
    pub(super) payload: Payload<'a>,
}

impl<'a> Call<'a> {
    pub(super) fn get(url: &'a str, headers: &'a [(&'static str, String)]) -> Self {
        Call { method: "GET", url, headers, payload: Payload::None }
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

impl Answer {
    /// A header as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body, if it has at most so many bytes.
    pub(super) fn read(self, most: u64) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let mut reader = self.body.into_with_config().limit(u64::MAX).reader().take(most + 1);
        reader.read_to_end(&mut bytes)?;
        Ok((bytes.len() as u64 <= most).then_some(bytes))
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The other side does not speak TLS.
    NotTls(String),
    /// It speaks TLS, and cannot be trusted.
    Certificate(String),
    /// Nobody answers there.
    Unreachable(String),
    /// The connection was cut, or was silent for too long.
    Cut(String),
    /// The request or the answer is nonsense.
    Odd(String),
    /// A file of ours cannot be used.
    File(Error),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    /// Who does not speak TLS may say nothing at all.
    probe: bool,
    insecure: bool,
    direct: bool,
    certificates: Vec<PathBuf>,
}

/// Connections to registries.
#[derive(Debug)]
pub(super) struct Http {
    settings: Settings,
    patience: Patience,
    agents: Mutex<HashMap<Kind, Agent>>,
}

impl Http {
    pub(super) fn new(settings: Settings, patience: Patience) -> Self {
        Http { settings, patience, agents: Mutex::default() }
    }

    /// Sends a request and follows redirects of GET and HEAD. `authorization` goes to the host of `call.url` alone.
    pub(super) fn send(&self, call: &Call<'_>, authorization: Option<&str>) -> Result<Answer, Failure> {
        self.send_as(call, authorization, false)
    }

    /// Asks whether somebody speaks TLS at this URL.
    pub(super) fn probe(&self, url: &str) -> Result<Answer, Failure> {
        self.send_as(&Call::get(url, &[]), None, true)
    }

    fn send_as(&self, call: &Call<'_>, authorization: Option<&str>, probe: bool) -> Result<Answer, Failure> {
        let first: Uri = call.url.parse().map_err(|_| odd("the URL", call.url))?;
        let mut at = first.clone();
        for _ in 0..=HOPS {
            let own = origin(&at) == origin(&first);
            let answer = self.send_once(call, &at, authorization.filter(|_| own), probe)?;
            let is_redirect = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
            if !is_redirect || !matches!(call.method, "GET" | "HEAD") {
                return Ok(answer);
            }
            let location = answer.header("location").ok_or_else(|| odd("a redirect without", "a place"))?;
            let next = resolve(&at, location).ok_or_else(|| odd("the redirect to", location))?;
            let is_worse = at.scheme_str() == Some("https") && next.scheme_str() != Some("https");
            let host = next.authority().map_or("", |authority| authority.as_str());
            if is_worse && !is_loopback(host) && !self.settings.is_insecure(host) {
                return Err(odd("a redirect from https to", location));
            }
            at = next;
        }
        Err(odd("too many redirects from", call.url))
    }

    fn send_once(
        &self,
        call: &Call<'_>,
        uri: &Uri,
        authorization: Option<&str>,
        probe: bool,
    ) -> Result<Answer, Failure> {
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let agent = self.agent(host, probe)?;
        let mut request = Request::builder().method(call.method).uri(uri);
        // What a proxy on the way compresses has another digest.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        for (name, value) in call.headers {
            request = request.header(*name, value);
        }
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let bad = |error: ureq::http::Error| Failure::Odd(error.to_string());
        let answer = match call.payload {
            Payload::None => agent.run(request.body(SendBody::none()).map_err(bad)?),
            Payload::Bytes(mut bytes) => {
                let request = request.header(header::CONTENT_LENGTH, bytes.len());
                agent.run(request.body(SendBody::from_reader(&mut bytes)).map_err(bad)?)
            }
            Payload::File(path, size) => {
                let opened = File::open(path);
                let opened = opened
                    .map_err(|source| Failure::File(Error::Io { what: "open", path: path.into(), source }))?;
                let request = request.header(header::CONTENT_LENGTH, size);
                let mut file = opened.take(size);
                agent.run(request.body(SendBody::from_reader(&mut file)).map_err(bad)?)
            }
        };
        let (parts, body) = answer.map_err(failure)?.into_parts();
        log::debug!("{} {uri}: {}", call.method, parts.status);
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    fn agent(&self, host: &str, probe: bool) -> Result<Agent, Failure> {
        let insecure = self.settings.is_insecure(host);
        let certificates = self.settings.certificates(host);
        let kind = Kind { probe, insecure, direct: is_loopback(host), certificates };
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&kind) {
            return Ok(agent.clone());
        }
        let agent = make(&kind, &self.patience).map_err(Failure::File)?;
        agents.insert(kind, agent.clone());
        Ok(agent)
    }
}

fn make(kind: &Kind, patience: &Patience) -> Result<Agent, Error> {
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(roots(&kind.certificates)?)))
        .disable_verification(kind.insecure)
        .build();
    let silence = if kind.probe { patience.silence.min(PROBE) } else { patience.silence };
    let mut config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("servin/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(patience.connect))
        .timeout_per_read(Some(silence))
        .timeout_per_write(Some(patience.silence))
        .max_idle_age(Duration::from_secs(10));
    if kind.direct {
        config = config.proxy(None);
    }
    Ok(Agent::new_with_config(config.build()))
}

/// The certificates of the system (`SSL_CERT_FILE`, `SSL_CERT_DIR`, or the usual places), and these.
fn roots(more: &[PathBuf]) -> Result<Vec<Certificate<'static>>, Error> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let (file, dir) = (variable("SSL_CERT_FILE"), variable("SSL_CERT_DIR"));
    let mut files: Vec<PathBuf> = more.to_vec();
    if file.is_none() && dir.is_none() {
        files.extend(ROOTS.iter().map(PathBuf::from).find(|path| path.exists()));
    }
    files.extend(file);
    if let Some(dir) = dir {
        let entries =
            std::fs::read_dir(&dir).map_err(|source| Error::Io { what: "read", path: dir, source })?;
        files.extend(entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_file()));
    }
    let mut certificates = Vec::new();
    for path in files {
        let mut pem = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(ROOTS_MAX).read_to_end(&mut pem));
        read.map_err(|source| Error::Io { what: "read", path: path.clone(), source })?;
        for item in parse_pem(&pem) {
            match item {
                Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
                Ok(_) => {}
                Err(error) => return Err(Error::File { path, why: error.to_string() }),
            }
        }
    }
    Ok(certificates)
}

fn odd(what: &str, which: &str) -> Failure {
    Failure::Odd(format!("{what} {}", super::error::clean(which)))
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> Option<(String, String, u16)> {
    let scheme = uri.scheme_str()?;
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme.to_owned(), uri.host()?.to_ascii_lowercase(), port))
}

/// Whether two URLs lead to the same origin.
pub(super) fn is_same_origin(one: &str, other: &str) -> bool {
    let of = |url: &str| url.parse::<Uri>().ok().and_then(|uri| origin(&uri));
    of(one).is_some() && of(one) == of(other)
}

/// A place relative to a URL (RFC 3986, 5.2, without dot segments).
pub(super) fn resolve(base: &Uri, place: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    let place = place.split('#').next().unwrap_or_default();
    let lower = place.to_ascii_lowercase();
    let whole = if lower.starts_with("http://") || lower.starts_with("https://") {
        place.to_owned()
    } else if place.starts_with("//") {
        format!("{scheme}:{place}")
    } else if place.starts_with('/') {
        format!("{scheme}://{authority}{place}")
    } else if place.starts_with('?') {
        format!("{scheme}://{authority}{}{place}", base.path())
    } else {
        let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{authority}{dir}/{place}")
    };
    let uri: Uri = whole.parse().ok()?;
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    (!has_user && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
}

/// What an error of the library means.
fn failure(error: ureq::Error) -> Failure {
    match error {
        ureq::Error::Io(error) => io_failure(&error),
        ureq::Error::Rustls(error) => tls_failure(&error),
        ureq::Error::HostNotFound => Failure::Unreachable("no such host".into()),
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            Failure::Unreachable("the connection timed out".into())
        }
        ureq::Error::Timeout(_) => Failure::Cut("it was silent for too long".into()),
        ureq::Error::ConnectionFailed => Failure::Unreachable("the connection failed".into()),
        ureq::Error::Protocol(error) => Failure::Cut(format!("it does not speak HTTP: {error}")),
        other => Failure::Odd(other.to_string()),
    }
}

fn io_failure(error: &io::Error) -> Failure {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return tls_failure(tls);
    }
    match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::TimedOut
        | io::ErrorKind::WouldBlock
        | io::ErrorKind::Interrupted => Failure::Cut(error.to_string()),
        _ => Failure::Unreachable(error.to_string()),
    }
}

fn tls_failure(error: &rustls::Error) -> Failure {
    match error {
        rustls::Error::InvalidMessage(_) => Failure::NotTls(error.to_string()),
        _ => Failure::Certificate(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_redirects_and_uploads_are_resolved() {
        let base: Uri = "https://a.example:5000/v2/x/blobs/uploads/".parse().unwrap();
        for (place, whole) in [
            ("https://b.example/y?z=1#f", "https://b.example/y?z=1"),
            ("/v2/y?_state=a%2Fb", "https://a.example:5000/v2/y?_state=a%2Fb"),
            ("//b.example/y", "https://b.example/y"),
            ("77", "https://a.example:5000/v2/x/blobs/uploads/77"),
            ("?a=b", "https://a.example:5000/v2/x/blobs/uploads/?a=b"),
        ] {
            assert_eq!(resolve(&base, place).unwrap().to_string(), whole);
        }
        for bad in ["https://user:word@b.example/", "http://", "https:// x/", "http:\\\\x"] {
            assert!(resolve(&base, bad).is_none_or(|uri| uri.host() == Some("a.example")), "{bad}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert!(is_same_origin("https://A.example/x", "https://a.example:443/y"));
        for other in ["http://a.example/x", "https://b.example/", "https://a.example:444/", "nonsense"] {
            assert!(!is_same_origin("https://a.example/x", other), "{other}");
        }
    }
}

//! Requests with tokens, and manifests. (OCI distribution specification; docker's token authentication.)

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::challenge::{self, Challenge};
use super::error::clean;
use super::http::{Answer, Call, Failure, Http, Payload, is_same_origin};
use super::retry::{Attempts, Trouble};
use super::settings::{HUB, is_loopback};
use super::{Account, Accounts, Cancel, Error, Patience, Settings};
use crate::Result;
use crate::image::{Digest, Reference};

/// Where Docker Hub's registry is.
const HUB_API: &str = "registry-1.docker.io";
/// Largest manifest or index in bytes.
const MANIFEST_MAX: u64 = 8 << 20;
/// Largest answer of a token service, and largest error, in bytes.
const SMALL_MAX: u64 = 1 << 20;
/// All manifests that we read; with none named, registries answer with docker's oldest format or not at all.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Life of a token that does not say, in seconds.
const TOKEN_LIFE: u64 = 60;
/// A token is renewed this long before its end.
const TOKEN_MARGIN: Duration = Duration::from_secs(3);

/// What is wanted of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Pull,
    /// Reading and writing.
    Push,
}

/// A client of registries.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    accounts: Accounts,
    patience: Patience,
    http: Http,
    /// `https://host` or `http://host`, as it was found out.
    bases: Mutex<HashMap<String, String>>,
}

/// A manifest or index as it came.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What it is.
    pub media_type: String,
}

impl Client {
    /// A client that makes no connection yet.
    pub fn new(settings: Settings, accounts: Accounts, patience: Patience) -> Self {
        let http = Http::new(settings.clone(), patience);
        Client { settings, accounts, patience, http, bases: Mutex::default() }
    }

    /// The repository of a name, at the registry itself and, to pull from, at its mirrors, which come first.
    pub fn repositories<'a>(
        &'a self,
        name: &Reference,
        access: Access,
        cancel: &'a Cancel,
    ) -> Vec<Repository<'a>> {
        let mirrors = match access {
            Access::Pull => self.settings.mirrors(name.host()),
            Access::Push => &[],
        };
        let at = |host: String, base: Option<String>| Repository {
            client: self,
            cancel,
            host,
            base,
            path: name.path().to_owned(),
            access,
            more_scopes: Vec::new(),
            grant: Mutex::default(),
        };
        let mirrors = mirrors.iter().map(|url| {
            let base = url.trim_end_matches('/');
            let host = base.split_once("://").map_or(base, |(_, rest)| rest);
            at(host.split('/').next().unwrap_or_default().to_owned(), Some(base.to_owned()))
        });
        mirrors.chain([at(name.host().to_owned(), None)]).collect()
    }

    /// Asks a registry whether it knows the account.
    ///
    /// # Errors
    /// [`Error::Denied`] if it does not.
    pub fn verify(&self, host: &str, account: &Account) -> Result<()> {
        let cancel = Cancel::default();
        let repository = Repository {
            client: self,
            cancel: &cancel,
            host: host.to_owned(),
            base: None,
            path: String::new(),
            access: Access::Pull,
            more_scopes: Vec::new(),
            grant: Mutex::default(),
        };
        let what = || format!("the registry {host}");
        repository.retry(&what, &mut |repository| {
            let url = format!("{}/v2/", repository.base()?);
            let answer = repository.call_as(&Call::get(&url, &[]), &what, Some(account))?;
            repository.expect(answer, &[200], &what).map(|_| ())
        })
    }

    /// How the registry at `host` is spoken to: by HTTPS, and where that is allowed and it does not know that, HTTP.
    fn base(&self, host: &str) -> Result<String, Trouble> {
        let api = if host == HUB { HUB_API } else { host };
        let https = format!("https://{api}");
        if !is_loopback(host) && !self.settings.is_insecure(host) {
            return Ok(https);
        }
        if let Some(base) = self.bases.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            return Ok(base.clone());
        }
        let base = match self.http.probe(&format!("{https}/v2/")) {
            Ok(_) => https,
            Err(Failure::NotTls(_) | Failure::Cut(_)) => format!("http://{api}"),
            Err(failure) => return Err(trouble(host, failure)),
        };
        self.bases.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), base.clone());
        Ok(base)
    }
}

/// What a registry has granted.
#[derive(Debug, Clone)]
struct Grant {
    authorization: String,
    /// When it ends; `None` for never.
    ends: Option<Instant>,
}

/// A repository at one registry or mirror.
#[derive(Debug)]
pub struct Repository<'a> {
    pub(super) client: &'a Client,
    pub(super) cancel: &'a Cancel,
    /// The registry as references name it: what accounts are kept under.
    host: String,
    /// URL of a mirror.
    base: Option<String>,
    pub(super) path: String,
    access: Access,
    more_scopes: Vec<String>,
    grant: Mutex<Option<Grant>>,
}

impl Repository<'_> {
    /// Also asks for the right to read these other repositories of the registry, to take blobs from.
    pub fn also_read(&mut self, paths: impl IntoIterator<Item = String>) {
        self.more_scopes.extend(paths.into_iter().map(|path| format!("repository:{path}:pull")));
    }

    /// The registry, and the repository in it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    pub(super) fn base(&self) -> Result<String, Trouble> {
        self.base.as_ref().map_or_else(|| self.client.base(&self.host), |base| Ok(base.clone()))
    }

    /// The URL of something in the repository.
    pub(super) fn url(&self, rest: &str) -> Result<String, Trouble> {
        Ok(format!("{}/v2/{}/{rest}", self.base()?, self.path))
    }

    /// The manifest of a tag or digest. One of a digest is checked; so is one whose digest the registry says.
    ///
    /// # Errors
    /// Those of [`Error`], and [`crate::Error::WrongDigest`].
    pub fn manifest(&self, reference: &str) -> Result<Manifest> {
        let what = || format!("{}:{reference}", self.name()).replacen(":sha256:", "@sha256:", 1);
        self.retry(&what, &mut |repository| {
            let url = repository.url(&format!("manifests/{reference}"))?;
            let headers = [("accept", ACCEPT.to_owned())];
            let answer = repository.call(&Call::get(&url, &headers), &what)?;
            let answer = repository.expect(answer, &[200], &what)?;
            let told = answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
            let media_type = answer.header("content-type").unwrap_or_default();
            let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
            let bytes = answer.read(MANIFEST_MAX).map_err(|error| Trouble::passing(error.to_string()))?;
            let bytes = bytes.ok_or_else(|| crate::Error::Limit {
                what: what(),
                limit: format!("{} MiB", MANIFEST_MAX >> 20),
            })?;
            let found = Digest::of(&bytes);
            if let Some(expected) = reference.parse().ok().or(told).filter(|expected| *expected != found) {
                return Err(crate::Error::WrongDigest { what: what(), expected, found }.into());
            }
            Ok(Manifest { bytes, digest: found, media_type })
        })
    }

    /// Sends a manifest under a tag.
    ///
    /// # Errors
    /// Those of [`Error`]; [`crate::Error::WrongDigest`] if the registry has understood something else.
    pub fn put_manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        let what = || format!("{}:{tag}", self.name());
        self.retry(&what, &mut |repository| {
            let url = repository.url(&format!("manifests/{tag}"))?;
            let headers = [("content-type", media_type.to_owned())];
            let call = Call { method: "PUT", url: &url, headers: &headers, payload: Payload::Bytes(bytes) };
            let answer = repository.expect(repository.call(&call, &what)?, &[200, 201, 202], &what)?;
            let found = answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
            let expected = Digest::of(bytes);
            match found.filter(|found| *found != expected) {
                Some(found) => Err(crate::Error::WrongDigest { what: what(), expected, found }.into()),
                None => Ok(()),
            }
        })
    }

    /// Repeats an attempt that may go over.
    pub(super) fn retry<T>(
        &self,
        what: &dyn Fn() -> String,
        attempt: &mut dyn FnMut(&Self) -> Result<T, Trouble>,
    ) -> Result<T> {
        let mut attempts = Attempts::new(&self.client.patience, self.cancel);
        loop {
            match attempt(self) {
                Ok(value) => return Ok(value),
                Err(trouble) => attempts.next(what, trouble, &mut |_| {})?,
            }
        }
    }

    pub(super) fn attempts(&self) -> Attempts<'_> {
        Attempts::new(&self.client.patience, self.cancel)
    }

    /// One request with what the registry has granted; a 401 is answered once.
    pub(super) fn call(&self, call: &Call<'_>, what: &dyn Fn() -> String) -> Result<Answer, Trouble> {
        self.call_as(call, what, None)
    }

    fn call_as(
        &self,
        call: &Call<'_>,
        what: &dyn Fn() -> String,
        account: Option<&Account>,
    ) -> Result<Answer, Trouble> {
        if self.cancel.is_ended() {
            return Err(Error::Cancelled.into());
        }
        // Uploads may lead to another host, which is not to see what this one has granted.
        let is_own = is_same_origin(call.url, &self.base()?);
        let lives = |grant: &Grant| grant.ends.is_none_or(|end| Instant::now() < end);
        let used = self.grant.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sent =
            used.as_ref().filter(|grant| is_own && lives(grant)).map(|grant| grant.authorization.clone());
        let answer =
            self.client.http.send(call, sent.as_deref()).map_err(|failure| trouble(&self.host, failure))?;
        if answer.status != 401 || !is_own {
            return Ok(answer);
        }
        let mut grant = self.grant.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have got a new one since.
        let is_newer =
            grant.as_ref().is_some_and(|grant| lives(grant) && Some(&grant.authorization) != sent.as_ref());
        if !is_newer {
            *grant = Some(self.ask(&answer, sent.as_deref(), what, account)?);
        }
        let authorization = grant.as_ref().map(|grant| grant.authorization.clone());
        drop(grant);
        self.client.http.send(call, authorization.as_deref()).map_err(|failure| trouble(&self.host, failure))
    }

    /// Gets what a 401 asks for.
    fn ask(
        &self,
        answer: &Answer,
        refused: Option<&str>,
        what: &dyn Fn() -> String,
        account: Option<&Account>,
    ) -> Result<Grant, Trouble> {
        let challenges = answer.headers.get_all("www-authenticate").iter();
        let challenges: Vec<_> =
            challenges.filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect();
        let account = match account {
            Some(account) => Some(account.clone()),
            None => self.client.accounts.find(&self.host)?,
        };
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scopes } => Some((realm, service, scopes)),
            Challenge::Basic => None,
        });
        if let Some((realm, service, scopes)) = bearer {
            return self.token(realm, service, scopes, account.as_ref(), what);
        }
        if !challenges.contains(&Challenge::Basic) {
            let why = "it asks for credentials of a kind that is not known here".to_owned();
            return Err(Error::Malformed { what: what(), why }.into());
        }
        let denied = |why: &str, hint: String| Error::Denied { what: what(), why: Some(why.into()), hint };
        match account {
            Some(Account::Password { user, password }) => {
                let authorization = super::accounts::basic(&user, &password);
                if refused == Some(authorization.as_str()) {
                    return Err(denied("unknown user or wrong password", self.hint()).into());
                }
                Ok(Grant { authorization, ends: None })
            }
            Some(Account::Token(_)) => {
                Err(denied("it takes a password, and the account has an identity token", self.hint()).into())
            }
            None => Err(denied("it wants a user and a password", self.hint()).into()),
        }
    }

    fn token(
        &self,
        realm: &str,
        service: &str,
        scopes: &[String],
        account: Option<&Account>,
        what: &dyn Fn() -> String,
    ) -> Result<Grant, Trouble> {
        let malformed = |why: String| Error::Malformed { what: what(), why };
        let base = self.base()?;
        let realm_host =
            realm.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?']).next().unwrap_or(""));
        let is_safe = realm.starts_with("https://")
            || (realm.starts_with("http://") && (base.starts_with("http://") || is_loopback(realm_host)));
        if !is_safe || realm_host.is_empty() || realm_host.contains('@') {
            return Err(malformed(format!("its token service \"{}\" has no https URL", clean(realm))).into());
        }
        let mut all = self.scopes();
        all.extend(scopes.iter().filter(|scope| !self.scopes().contains(scope)).cloned());
        let mut query = vec![("service", service.to_owned())];
        query.extend(all.into_iter().map(|scope| ("scope", scope)));
        let mut headers = Vec::new();
        let mut authorization = None;
        let form;
        let url;
        let call = match account {
            Some(Account::Token(token)) => {
                query.extend([
                    ("grant_type", "refresh_token".to_owned()),
                    ("refresh_token", token.clone()),
                    ("client_id", "servin".to_owned()),
                ]);
                form = encode(&query);
                headers.push(("content-type", "application/x-www-form-urlencoded".to_owned()));
                let payload = Payload::Bytes(form.as_bytes());
                Call { method: "POST", url: realm, headers: &headers, payload }
            }
            account => {
                if let Some(Account::Password { user, password }) = account {
                    query.push(("account", user.clone()));
                    authorization = Some(super::accounts::basic(user, password));
                }
                url = format!("{realm}{}{}", if realm.contains('?') { '&' } else { '?' }, encode(&query));
                Call::get(&url, &headers)
            }
        };
        let answer = self.client.http.send(&call, authorization.as_deref());
        let answer = answer.map_err(|failure| trouble(realm_host, failure))?;
        if matches!(answer.status, 400 | 401 | 403) {
            let why = words(answer).or_else(|| account.map(|_| "unknown user or wrong password".into()));
            return Err(Error::Denied { what: what(), why, hint: self.hint() }.into());
        }
        let at = Instant::now();
        let answer = self.expect(answer, &[200], &|| format!("a token for {}", what()))?;
        let json = answer.read(SMALL_MAX).map_err(|error| Trouble::passing(error.to_string()))?;
        let token: Token = serde_json::from_slice(&json.unwrap_or_default())
            .map_err(|error| malformed(format!("its token service's answer: {error}")))?;
        let value = token
            .token
            .or(token.access_token)
            .filter(|value| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic()));
        let value = value.ok_or_else(|| malformed("its token service gave no token".into()))?;
        let life = Duration::from_secs(token.expires_in.unwrap_or(TOKEN_LIFE).min(24 * 3600));
        let life = life.checked_sub(TOKEN_MARGIN).unwrap_or(life / 2);
        Ok(Grant { authorization: format!("Bearer {value}"), ends: Some(at + life) })
    }

    /// What is wanted, as token services see it.
    fn scopes(&self) -> Vec<String> {
        if self.path.is_empty() {
            return Vec::new();
        }
        let actions = match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let own = format!("repository:{}:{actions}", self.path);
        [own].into_iter().chain(self.more_scopes.iter().cloned()).collect()
    }

    fn hint(&self) -> String {
        let login = match self.host.as_str() {
            HUB => "servin login".to_owned(),
            host => format!("servin login {host}"),
        };
        match self.access {
            _ if self.path.is_empty() => "check user and password".into(),
            Access::Pull => format!("it is not there, or needs \"{login}\""),
            Access::Push => format!("it needs \"{login}\" as a user who may write there"),
        }
    }

    /// The answer, if it has one of these statuses.
    pub(super) fn expect(
        &self,
        answer: Answer,
        wanted: &[u16],
        what: &dyn Fn() -> String,
    ) -> Result<Answer, Trouble> {
        let status = answer.status;
        if wanted.contains(&status) {
            return Ok(answer);
        }
        let after =
            answer.header("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let why = words(answer);
        Err(match status {
            401 | 403 => Error::Denied { what: what(), why, hint: self.hint() }.into(),
            404 => Error::NotFound { what: what(), why }.into(),
            408 | 425 | 429 | 500 | 502 | 503 | 504 => {
                let why = why.map_or(String::new(), |why| format!(" ({why})"));
                Trouble::Passing { why: format!("the registry answered {status}{why}"), after }
            }
            status => Error::Status { what: what(), status, why }.into(),
        })
    }
}

/// The answer of a token service.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// What a failure means for the attempt.
pub(super) fn trouble(host: &str, failure: Failure) -> Trouble {
    let host = host.to_owned();
    match failure {
        Failure::NotTls(why) => {
            let why = format!(
                "it does not speak HTTPS ({why}; for HTTP name it in \"insecure-registries\" of registries.json)"
            );
            Error::Unreachable { host, why }.into()
        }
        Failure::Certificate(why) => Error::Certificate { host, why }.into(),
        Failure::Unreachable(why) => Error::Unreachable { host, why }.into(),
        Failure::Odd(why) => Error::Malformed { what: host, why }.into(),
        Failure::File(error) => error.into(),
        Failure::Cut(why) => Trouble::passing(format!("the connection to {host} was cut: {why}")),
    }
}

/// A registry's own words about an error.
fn words(answer: Answer) -> Option<String> {
    let body = answer.read(SMALL_MAX).ok()??;
    let json: Value = serde_json::from_slice(&body).ok()?;
    let first = json.get("errors").and_then(|errors| errors.get(0));
    let text = |value: Option<&Value>, key: &str| value?.get(key)?.as_str().map(str::to_owned);
    let said = text(first, "message")
        .filter(|text| !text.is_empty())
        .or_else(|| text(first, "code"))
        .or_else(|| text(Some(&json), "details"))
        .or_else(|| text(Some(&json), "message"))?;
    Some(clean(&said)).filter(|said| !said.is_empty())
}

/// As a form's or query's fields.
fn encode(fields: &[(&str, String)]) -> String {
    let mut out = String::new();
    for (name, value) in fields {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(name);
        out.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b',' => {
                    out.push(char::from(byte));
                }
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_encoded_as_token_services_read_them() {
        let fields = [("service", "a b&c".to_owned()), ("scope", "repository:x/y:pull,push".to_owned())];
        assert_eq!(encode(&fields), "service=a%20b%26c&scope=repository:x/y:pull,push");
    }
}

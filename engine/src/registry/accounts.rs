//! Who we are at a registry: files in the form of docker's `config.json`, and credential helpers (`docker-credential-NAME`).
//!
//! Ours is `$SERVIN_AUTH_FILE`, else `~/.config/servin/auth.json`, and is read first; docker's (`$DOCKER_CONFIG/config.json`
//! or `~/.docker/config.json`) is read only. In both a helper, for one registry or for all, comes before what is in the file.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Error;
use super::error::clean;
use super::settings::{HUB, config_dir};

/// Docker Hub's name in files of accounts, and for helpers.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Largest file of accounts, and largest answer of a helper, in bytes.
const FILE_MAX: u64 = 4 << 20;
/// The user that helpers give with an identity token.
const TOKEN_USER: &str = "<token>";

/// What proves who we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Account {
    /// User and password.
    Password {
        /// The user.
        user: String,
        /// The password, or an access token that stands for it.
        password: String,
    },
    /// An identity token, to be exchanged for access tokens.
    Token(String),
}

impl std::fmt::Debug for Account {
    /// Without secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Account::Password { user, .. } => write!(f, "Password({user})"),
            Account::Token(_) => f.write_str("Token"),
        }
    }
}

/// Where an account was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In this file, which others cannot read.
    File(PathBuf),
    /// With this helper.
    Helper(String),
}

/// The files of accounts.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    own: Option<PathBuf>,
    docker: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: std::collections::BTreeMap<String, Entry>,
    cred_helpers: std::collections::BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    identitytoken: String,
    username: String,
    password: String,
}

impl Accounts {
    /// The usual files.
    #[must_use]
    pub fn usual() -> Self {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let own = variable("SERVIN_AUTH_FILE").or_else(|| config_dir().map(|dir| dir.join("auth.json")));
        let docker = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")));
        Accounts { own, docker: docker.map(|dir| dir.join("config.json")) }
    }

    /// These files.
    #[must_use]
    pub fn in_files(own: &Path, docker: Option<&Path>) -> Self {
        Accounts { own: Some(own.into()), docker: docker.map(Into::into) }
    }

    /// The account at a registry, if there is one.
    ///
    /// # Errors
    /// A file that cannot be read or understood, or a helper that fails.
    pub fn find(&self, host: &str) -> Result<Option<Account>, Error> {
        for path in [&self.own, &self.docker].into_iter().flatten() {
            let config = read(path)?;
            if let Some(name) = config.helper(host)
                && let Some(account) = helper_get(name, host)?
            {
                return Ok(Some(account));
            }
            let entry = config.auths.iter().find(|(key, _)| key_fits(key, host));
            if let Some(account) = entry.and_then(|(_, entry)| entry.account()) {
                return Ok(Some(account));
            }
        }
        Ok(None)
    }

    /// Keeps an account: with the helper that either file names for the registry, else in our own file.
    ///
    /// # Errors
    /// If it cannot be kept; what was kept before is then still there.
    pub fn keep(&self, host: &str, account: &Account) -> Result<Kept, Error> {
        for path in [&self.own, &self.docker].into_iter().flatten() {
            if let Some(name) = read(path)?.helper(host) {
                let (user, secret) = match account {
                    Account::Password { user, password } => (user.as_str(), password),
                    Account::Token(token) => (TOKEN_USER, token),
                };
                let asked = json!({ "ServerURL": key_of(host), "Username": user, "Secret": secret });
                helper(name, "store", asked.to_string().as_bytes())?;
                return Ok(Kept::Helper(name.to_owned()));
            }
        }
        let path = self.own.as_ref().ok_or(Error::NoPlace)?;
        let entry = match account {
            Account::Password { user, password } => {
                json!({ "auth": base64(format!("{user}:{password}").as_bytes()) })
            }
            Account::Token(token) => json!({ "auth": "", "identitytoken": token }),
        };
        change(path, |auths| {
            auths.retain(|key, _| !key_fits(key, host));
            auths.insert(key_of(host), entry);
        })?;
        Ok(Kept::File(path.clone()))
    }

    /// Forgets the account at a registry; says whether there was one. Docker's file is left alone.
    ///
    /// # Errors
    /// If it cannot be forgotten.
    pub fn forget(&self, host: &str) -> Result<bool, Error> {
        let mut known = false;
        for path in [&self.own, &self.docker].into_iter().flatten() {
            if let Some(name) = read(path)?.helper(host)
                && helper_get(name, host)?.is_some()
            {
                helper(name, "erase", key_of(host).as_bytes())?;
                known = true;
            }
        }
        let Some(path) = &self.own else { return Ok(known) };
        if read(path)?.auths.keys().any(|key| key_fits(key, host)) {
            change(path, |auths| auths.retain(|key, _| !key_fits(key, host)))?;
            known = true;
        }
        Ok(known)
    }

    /// Whether docker's file, which we do not write, has an account at the registry.
    ///
    /// # Errors
    /// If the file cannot be read or understood.
    pub fn docker_has(&self, host: &str) -> Result<bool, Error> {
        let Some(path) = &self.docker else { return Ok(false) };
        Ok(read(path)?.auths.iter().any(|(key, entry)| key_fits(key, host) && entry.account().is_some()))
    }
}

impl Config {
    fn helper(&self, host: &str) -> Option<&str> {
        let own =
            self.cred_helpers.iter().find(|(key, _)| key_fits(key, host)).map(|(_, name)| name.as_str());
        own.or(Some(self.creds_store.as_str())).filter(|name| !name.is_empty())
    }
}

impl Entry {
    fn account(&self) -> Option<Account> {
        if !self.identitytoken.is_empty() {
            return Some(Account::Token(self.identitytoken.clone()));
        }
        if !self.username.is_empty() {
            return Some(Account::Password { user: self.username.clone(), password: self.password.clone() });
        }
        let text = String::from_utf8(unbase64(&self.auth)?).ok()?;
        let (user, password) = text.trim_end_matches('\0').split_once(':')?;
        Some(Account::Password { user: user.to_owned(), password: password.to_owned() })
    }
}

fn key_of(host: &str) -> String {
    if host == HUB { HUB_KEY.to_owned() } else { host.to_owned() }
}

/// Whether an entry is for the registry: keys are hosts, or URLs as docker once wrote them.
fn key_fits(key: &str, host: &str) -> bool {
    let name = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let name =
        ["/v1/", "/v2/", "/v1", "/v2", "/"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let name = if matches!(name, "index.docker.io" | "registry-1.docker.io") { HUB } else { name };
    name.eq_ignore_ascii_case(host)
}

fn read(path: &Path) -> Result<Config, Error> {
    match text_of(path)? {
        Some(json) => serde_json::from_slice(&json)
            .map_err(|error| Error::File { path: path.into(), why: error.to_string() }),
        None => Ok(Config::default()),
    }
}

fn text_of(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { what: "read", path: path.into(), source }),
    }
}

/// Changes `auths` of a file and leaves all else of it as it is. The new file takes the place of the old one at once, under
/// a lock, and is nobody else's to read.
fn change(path: &Path, work: impl FnOnce(&mut Map<String, Value>)) -> Result<(), Error> {
    let fail = |what| move |source| Error::Io { what, path: path.into(), source };
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(fail("make the directory of"))?;
    }
    let beside = |end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(beside(".lock"));
    let lock = lock.map_err(fail("lock"))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| fail("lock")(error.into()))?;
    let bad = |why: String| Error::File { path: path.into(), why };
    let mut json: Value = match text_of(path)? {
        Some(text) => serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?,
        None => json!({}),
    };
    let object = json.as_object_mut().ok_or_else(|| bad("it is no JSON object".into()))?;
    let auths = object.entry("auths").or_insert_with(|| json!({}));
    work(auths.as_object_mut().ok_or_else(|| bad("its \"auths\" is no object".into()))?);
    let text = serde_json::to_vec_pretty(&json).map_err(|error| bad(error.to_string()))?;
    let new = beside(".new");
    // Whatever an earlier process has left there may have other permissions.
    let _ = fs::remove_file(&new);
    let file = File::options().create_new(true).write(true).mode(0o600).open(&new);
    let mut file = file.map_err(fail("write"))?;
    file.write_all(&text)
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .map_err(fail("write"))?;
    fs::rename(&new, path).map_err(fail("write"))
}

fn helper_get(name: &str, host: &str) -> Result<Option<Account>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Found {
        username: String,
        secret: String,
    }
    let Some(out) = helper(name, "get", key_of(host).as_bytes())? else { return Ok(None) };
    let found: Found = serde_json::from_slice(&out)
        .map_err(|error| Error::Helper { name: name.into(), why: format!("its answer: {error}") })?;
    Ok(match (found.username.as_str(), found.secret) {
        (_, secret) if secret.is_empty() => None,
        (TOKEN_USER, token) => Some(Account::Token(token)),
        (user, password) => Some(Account::Password { user: user.to_owned(), password }),
    })
}

/// Runs a helper; `None` is its way to say that it has nothing for this registry.
fn helper(name: &str, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let fail = |why: String| Error::Helper { name: clean(name), why };
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(fail("it is no name of a program".into()));
    }
    let mut child = Command::new(format!("docker-credential-{name}"))
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| fail(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input says why when it ends.
        let _ = stdin.write_all(input);
    }
    let out = child.wait_with_output().map_err(|error| fail(error.to_string()))?;
    if out.status.success() {
        return Ok(Some(out.stdout));
    }
    let said = clean(&String::from_utf8_lossy(&out.stdout));
    if said.contains("credentials not found") {
        return Ok(None);
    }
    Err(fail(if said.is_empty() { out.status.to_string() } else { said }))
}

/// The value of `Authorization` for a user and a password (RFC 7617).
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut word = [0; 4];
        for (byte, from) in word.iter_mut().skip(1).zip(group) {
            *byte = *from;
        }
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place)) & 63;
            let is_there = place <= group.len();
            out.push(if is_there {
                char::from(ALPHABET.get(digit as usize).copied().unwrap_or(b'='))
            } else {
                '='
            });
        }
    }
    out
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut word, mut bits) = (0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let digit = ALPHABET.iter().position(|known| *known == byte)?;
        word = (word << 6) | u32::try_from(digit).ok()?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits) as u8);
            word &= (1 << bits) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn password(user: &str, password: &str) -> Account {
        Account::Password { user: user.into(), password: password.into() }
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("a:b\u{e9}?>", "YTpiw6k/Pg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(unbase64(coded).unwrap(), plain.as_bytes());
        }
        assert_eq!(unbase64("Zm9v\n"), None);
    }

    #[test]
    fn an_account_is_kept_for_its_registry_alone_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/auth.json");
        let accounts = Accounts::in_files(&path, None);
        assert_eq!(accounts.find("a.example").unwrap(), None);
        let kept = accounts.keep("a.example", &password("user", "se:cret")).unwrap();
        assert_eq!(kept, Kept::File(path.clone()));
        accounts.keep(HUB, &password("hub", "x")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(accounts.find("a.example").unwrap(), Some(password("user", "se:cret")));
        assert_eq!(accounts.find("a.example:443").unwrap(), None);
        assert_eq!(accounts.find(HUB).unwrap(), Some(password("hub", "x")));
        assert!(fs::read_to_string(&path).unwrap().contains(HUB_KEY));
        assert!(accounts.forget(HUB).unwrap());
        assert!(!accounts.forget(HUB).unwrap());
        assert_eq!(accounts.find("a.example").unwrap(), Some(password("user", "se:cret")));
    }

    #[test]
    fn what_else_is_in_the_file_stays_and_a_wider_mode_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        fs::write(&path, r#"{"auths": {"https://A.example/v1/": {"auth": "eDp5"}}, "other": {"a": [1]}}"#)
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let accounts = Accounts::in_files(&path, None);
        assert_eq!(accounts.find("a.example").unwrap(), Some(password("x", "y")));
        accounts.keep("a.example", &Account::Token("t".into())).unwrap();
        assert_eq!(accounts.find("a.example").unwrap(), Some(Account::Token("t".into())));
        let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((json["other"]["a"][0].as_i64(), json["auths"].as_object().unwrap().len()), (Some(1), 1));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn dockers_file_is_read_and_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let (own, docker) = (dir.path().join("auth.json"), dir.path().join("config.json"));
        fs::write(&docker, r#"{"auths": {"a.example": {"auth": "eDp5"}}}"#).unwrap();
        let accounts = Accounts::in_files(&own, Some(&docker));
        assert_eq!(accounts.find("a.example").unwrap(), Some(password("x", "y")));
        assert!(accounts.docker_has("a.example").unwrap());
        assert!(!accounts.forget("a.example").unwrap());
        accounts.keep("a.example", &password("own", "z")).unwrap();
        assert_eq!(accounts.find("a.example").unwrap(), Some(password("own", "z")), "ours comes first");
        assert!(fs::read_to_string(&docker).unwrap().contains("eDp5"));
    }

    #[test]
    fn a_file_that_is_no_json_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        fs::write(&path, "{").unwrap();
        let accounts = Accounts::in_files(&path, None);
        let error = accounts.find("a.example").unwrap_err().to_string();
        assert!(error.contains("auth.json"), "{error}");
        assert!(accounts.keep("a.example", &password("x", "y")).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{");
    }

    #[test]
    fn a_helper_that_is_a_path_is_not_run() {
        for name in ["../x", "a/b", "a b", "$(x)"] {
            let error = helper(name, "get", b"").unwrap_err().to_string();
            assert!(error.contains("no name of a program"), "{error}");
        }
    }
}

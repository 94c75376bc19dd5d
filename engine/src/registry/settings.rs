//! `registries.json`: mirrors and insecure registries, in the words of docker's `daemon.json`, and where certificates are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Error;

/// What is set about registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    mirrors: BTreeMap<String, Vec<String>>,
    insecure: Vec<String>,
    /// Directories with a directory for each registry, which holds the certificates of its authorities.
    certificates: Vec<PathBuf>,
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[derive(Default)]
struct File {
    registry_mirrors: Vec<String>,
    mirrors: BTreeMap<String, Vec<String>>,
    insecure_registries: Vec<String>,
}

/// Docker Hub's name in references.
pub(super) const HUB: &str = "docker.io";

impl Settings {
    /// The file `$SERVIN_REGISTRIES_FILE`, else the user's own (`~/.config/servin/registries.json`), else the host's
    /// (`/etc/servin/registries.json`). None of them need be there.
    ///
    /// # Errors
    /// A file that cannot be read, or says what is not understood.
    pub fn load() -> Result<Self, Error> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let named = variable("SERVIN_REGISTRIES_FILE");
        let own = config_dir().map(|dir| dir.join("registries.json"));
        let host = PathBuf::from("/etc/servin/registries.json");
        let mut settings = Settings::default();
        let is_named = named.is_some();
        for path in named.map_or_else(|| own.into_iter().chain([host]).collect(), |path| vec![path]) {
            match std::fs::read(&path) {
                Ok(json) => {
                    settings =
                        Settings::parse(&json).map_err(|why| Error::File { path: path.clone(), why })?;
                    break;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named => {}
                Err(source) => return Err(Error::Io { what: "read", path, source }),
            }
        }
        settings.certificates.extend(config_dir().map(|dir| dir.join("certs.d")));
        settings.certificates.extend(["/etc/servin/certs.d".into(), "/etc/docker/certs.d".into()]);
        Ok(settings)
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        // As serde sees it, an array is a struct as well.
        let json = if json.trim_ascii_start().starts_with(b"{") { json } else { b"" };
        let file: File = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let mut mirrors = file.mirrors;
        mirrors.entry(HUB.into()).or_default().extend(file.registry_mirrors);
        for url in mirrors.values().flatten() {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            if rest.is_none_or(|rest| rest.is_empty() || rest.contains(['?', '#', '@', ' '])) {
                return Err(format!("the mirror \"{url}\" is no URL such as https://mirror.example"));
            }
        }
        for entry in &file.insecure_registries {
            let is_network = entry.split_once('/').is_some_and(|(address, bits)| {
                address.parse::<IpAddr>().is_ok_and(|address| {
                    bits.parse::<u8>().is_ok_and(|bits| bits <= if address.is_ipv4() { 32 } else { 128 })
                })
            });
            if entry.is_empty() || (entry.contains('/') && !is_network) {
                return Err(format!(
                    "\"{entry}\" in insecure-registries is neither HOST[:PORT] nor a network"
                ));
            }
        }
        Ok(Settings { mirrors, insecure: file.insecure_registries, certificates: Vec::new() })
    }

    /// URLs to be asked before the registry itself.
    pub(super) fn mirrors(&self, host: &str) -> &[String] {
        self.mirrors.get(host).map_or(&[], Vec::as_slice)
    }

    /// Whether nothing is known that proves who the registry is, and it is used all the same.
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        let name = name_of(host);
        let address = name.parse::<IpAddr>().ok();
        self.insecure.iter().any(|entry| match entry.split_once('/') {
            Some((network, bits)) => match (address, network.parse(), bits.parse()) {
                (Some(address), Ok(network), Ok(bits)) => is_in(address, network, bits),
                _ => false,
            },
            None => entry.eq_ignore_ascii_case(host) || entry.eq_ignore_ascii_case(name),
        })
    }

    /// Files with the certificates of a registry's own authorities.
    pub(super) fn certificates(&self, host: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        // A host of the grammar has no slash; `..` is none either.
        for dir in self.certificates.iter().map(|dir| dir.join(host)).filter(|_| !host.contains("..")) {
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            let is_certificate =
                |path: &PathBuf| path.extension().is_some_and(|end| end == "crt" || end == "pem");
            found.extend(entries.filter_map(Result::ok).map(|entry| entry.path()).filter(is_certificate));
        }
        found.sort();
        found
    }

    /// Also looks for certificates here.
    pub fn add_certificates(&mut self, dir: &Path) {
        self.certificates.push(dir.to_path_buf());
    }
}

/// A host without its port.
pub(super) fn name_of(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// Whether it is this machine: then HTTP is as good as HTTPS.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = name_of(host);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_in(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= bits,
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= bits,
        _ => false,
    }
}

/// `$XDG_CONFIG_HOME/servin` or `~/.config/servin`.
pub(super) fn config_dir() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_CONFIG_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| variable("HOME").map(|home| home.join(".config")))
        .map(|dir| dir.join("servin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Settings {
        Settings::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn mirrors_in_both_forms_are_asked_in_order() {
        let both = settings(
            r#"{"registry-mirrors": ["https://b"], "mirrors": {"docker.io": ["https://a"], "quay.io": ["http://localhost:1/x"]}}"#,
        );
        assert_eq!(both.mirrors("docker.io"), ["https://a", "https://b"]);
        assert_eq!(both.mirrors("quay.io"), ["http://localhost:1/x"]);
        assert!(both.mirrors("ghcr.io").is_empty());
    }

    #[test]
    fn insecure_registries_are_hosts_ports_and_networks() {
        let some = settings(r#"{"insecure-registries": ["a.lan", "b.lan:5000", "10.0.0.0/8", "fd00::/8"]}"#);
        for host in ["a.lan", "A.LAN:80", "b.lan:5000", "10.1.2.3", "10.1.2.3:5000", "[fd00::1]:5000"] {
            assert!(some.is_insecure(host), "{host}");
        }
        for host in ["b.lan", "b.lan:5001", "xa.lan", "11.0.0.1", "[fe00::1]", "ten.lan"] {
            assert!(!some.is_insecure(host), "{host}");
        }
    }

    #[test]
    fn this_machine_is_told_from_others() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.8.0.1:80", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.evil.example", "128.0.0.1", "127.0.0.1.evil.example:80", "[::2]:5000"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            "",
            "[]",
            r#"{"insecure": []}"#,
            r#"{"registry-mirrors": ["mirror.example"]}"#,
            r#"{"registry-mirrors": ["https://user:word@mirror.example"]}"#,
            r#"{"insecure-registries": ["https://x"]}"#,
            r#"{"insecure-registries": ["10.0.0.0/33"]}"#,
        ] {
            assert!(Settings::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}

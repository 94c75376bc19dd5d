//! Image references: `[host[:port]/]path[:tag][@digest]`, normalised the way docker users expect: `busybox` is
//! `docker.io/library/busybox:latest`, and is shown as `busybox:latest`. The grammar is that of the OCI distribution
//! specification, "Pulling manifests".

use std::fmt;
use std::str::FromStr;

use crate::image::Digest;
use crate::{Error, Result};

const HUB: &str = "docker.io";
const OFFICIAL: &str = "library/";
/// The longest name (host and path) in bytes.
const NAME_MAX: usize = 255;
/// The longest tag in bytes.
const TAG_MAX: usize = 128;

/// A parsed and normalised reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry, such as `docker.io` or `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository inside the registry, such as `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag. It is `latest` where neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest after `@`.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Host and path in full: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// Host and path as users write them: `busybox`, `servin/base`, `quay.io/x/y`.
    pub fn familiar_name(&self) -> String {
        if self.host != HUB {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL) {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// As users write it, with tag and digest: `busybox:latest`.
    pub fn familiar(&self) -> String {
        self.write(self.familiar_name())
    }

    /// Name and tag in full, the key of the store's table of tags; `None` where only a digest was given.
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.name()))
    }

    /// Without its tag: the digest alone.
    pub(super) fn untagged(&self) -> Self {
        Reference { tag: None, ..self.clone() }
    }

    fn write(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.write(self.name()))
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |why| Error::Reference { text: text.chars().take(300).collect(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon after the last slash begins a tag; an earlier one belongs to the port.
        let split = match rest.rfind(':') {
            Some(colon) if !rest.get(colon..).unwrap_or_default().contains('/') => Some(colon),
            _ => None,
        };
        let (name, tag) = match split {
            Some(colon) => (rest.get(..colon).unwrap_or_default(), rest.get(colon + 1..)),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !tag_is_valid(tag)
        {
            return Err(fail("a tag has 1 to 128 of A-Z a-z 0-9 _ . - and begins with none of . and -"));
        }
        if name.is_empty() {
            return Err(fail("it has no name"));
        }
        if Digest::from_hex(name).is_some() {
            return Err(fail("64 hexadecimal digits are an id, not a name"));
        }
        let (host, path) = match name.split_once('/') {
            Some((first, path)) if is_host(first) => (first, path),
            _ => (HUB, name),
        };
        let host = if host == "index.docker.io" { HUB } else { host };
        if !host_is_valid(host) {
            return Err(fail("the registry's name is malformed"));
        }
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(fail("the name must be lower case"));
        }
        if path.is_empty() || !path.split('/').all(component_is_valid) {
            return Err(fail("a name's parts have a-z 0-9, apart by one of . _ __ or dashes"));
        }
        let path =
            if host == HUB && !path.contains('/') { format!("{OFFICIAL}{path}") } else { path.to_owned() };
        if host.len() + 1 + path.len() > NAME_MAX {
            return Err(fail("the name is longer than 255 bytes"));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Reference { host: host.to_owned(), path, tag, digest })
    }
}

fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn host_is_valid(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| {
        port.is_empty() || port.len() > 5 || !port.bytes().all(|byte| byte.is_ascii_digit())
    }) {
        return false;
    }
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    name.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

fn tag_is_valid(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= TAG_MAX
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Runs of a-z and 0-9, apart by `.`, `_`, `__`, or any number of dashes.
fn component_is_valid(part: &str) -> bool {
    let word = |byte: char| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !part.starts_with(word) || !part.ends_with(word) {
        return false;
    }
    part.split(word).all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|byte| byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn short_names_become_full_ones_and_back() {
        for (given, full, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("index.docker.io/library/busybox:1", "docker.io/library/busybox:1", "busybox:1"),
            ("servin/base", "docker.io/servin/base:latest", "servin/base:latest"),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            ("localhost:5000/a/b:v1.2", "localhost:5000/a/b:v1.2", "localhost:5000/a/b:v1.2"),
            ("quay.io/x/y_z", "quay.io/x/y_z:latest", "quay.io/x/y_z:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            ("a--b/c__d", "docker.io/a--b/c__d:latest", "a--b/c__d:latest"),
        ] {
            assert_eq!(parse(given).to_string(), full);
            assert_eq!(parse(given).familiar(), familiar);
            assert_eq!(parse(full), parse(given));
        }
    }

    #[test]
    fn a_digest_takes_the_place_of_the_default_tag() {
        let digest = Digest::of(b"x");
        let reference = parse(&format!("busybox@{digest}"));
        assert_eq!((reference.tag(), reference.digest()), (None, Some(digest)));
        assert_eq!(reference.tagged(), None);
        let both = parse(&format!("busybox:1@{digest}"));
        assert_eq!((both.tag(), both.digest()), (Some("1"), Some(digest)));
    }

    #[test]
    fn malformed_references_are_refused() {
        let id = Digest::of(b"x").hex();
        let long = "a".repeat(256);
        let tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            ":",
            ":tag",
            "a:",
            "A",
            "a/B",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a/",
            "/a",
            "a//b",
            "../a",
            "a b",
            "a:.x",
            "a:b:c",
            "a@sha256:00",
            "a@",
            "ho_st.x/a",
            "x.y:/a",
            "x.y:123456/a",
            "-x.y/a",
            "\u{e9}",
            "a\0",
            &id,
            &long,
            &tag,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was accepted");
        }
    }
}

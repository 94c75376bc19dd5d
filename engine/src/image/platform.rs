//! Platforms, and which manifest of an index fits one.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// An operating system and a CPU in Go's words, as image indexes use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, ...
    pub architecture: String,
    /// `v7`, `v8`, ...; empty for any.
    pub variant: String,
}

impl Platform {
    /// What a guest of this host runs.
    pub fn native() -> Self {
        Platform {
            os: "linux".into(),
            architecture: canonical(std::env::consts::ARCH).into(),
            variant: String::new(),
        }
    }

    /// Whether a guest of this host runs what is for this platform.
    pub fn runs_here(&self) -> bool {
        Platform::native().fit(&self.os, &self.architecture, &self.variant).is_some()
    }

    /// How well an offered platform fits: `None` is not at all, and of several the greatest is the best.
    pub(super) fn fit(&self, os: &str, architecture: &str, variant: &str) -> Option<u8> {
        if os != self.os || canonical(architecture) != self.architecture {
            return None;
        }
        let base = match self.architecture.as_str() {
            "amd64" => "v1",
            "arm64" => "v8",
            _ => "",
        };
        match (self.variant.as_str(), variant) {
            (wanted, offered) if wanted == offered => Some(3),
            // The base variant goes without saying.
            ("", offered) if offered == base => Some(2),
            (wanted, "") if wanted == base => Some(2),
            // Without a wish, an unnamed variant of a CPU that has no base (arm) may be too much for it: last choice.
            ("", _) if base.is_empty() => Some(1),
            // An amd64 image for v2 or v3 needs instructions that the host may not have.
            _ => None,
        }
    }
}

/// Go's name of a CPU.
fn canonical(architecture: &str) -> &str {
    match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "i386" | "i686" | "x86" => "386",
        other => other,
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        };
        let mut parts = text.split('/');
        let (os, architecture, variant, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
        match (os.filter(word), architecture.filter(word), variant.is_none_or(|part| word(&part)), rest) {
            (Some(os), Some(architecture), true, None) => Ok(Platform {
                os: os.to_lowercase(),
                architecture: canonical(&architecture.to_lowercase()).into(),
                variant: variant.unwrap_or_default().to_lowercase(),
            }),
            _ => Err(Error::Platform { text: text.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_in_both_dialects() {
        assert_eq!("linux/x86_64".parse::<Platform>().unwrap().to_string(), "linux/amd64");
        assert_eq!("Linux/ARM64/v8".parse::<Platform>().unwrap().to_string(), "linux/arm64/v8");
        for bad in ["", "linux", "linux/", "/amd64", "linux/amd64/", "a/b/c/d", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_exact_variant_fits_best_and_a_newer_cpu_not_at_all() {
        let amd64: Platform = "linux/amd64".parse().unwrap();
        assert!(amd64.fit("linux", "amd64", "") > amd64.fit("linux", "amd64", "v1"));
        assert!(amd64.fit("linux", "amd64", "v1").is_some());
        assert_eq!(amd64.fit("linux", "amd64", "v3"), None);
        assert_eq!(amd64.fit("windows", "amd64", ""), None);
        let arm64: Platform = "linux/arm64".parse().unwrap();
        assert!(arm64.fit("linux", "aarch64", "v8").is_some());
        assert_eq!(arm64.fit("linux", "arm", "v7"), None);
    }
}

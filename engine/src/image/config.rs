//! The image configuration (OCI image specification, `config.md`), read leniently: builders write `null` for an empty list and
//! docker adds fields of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::{Error, Result};

/// What an image says about itself and about the process it wants run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// When it was made (RFC 3339), or empty.
    #[serde(deserialize_with = "or_default")]
    pub created: String,
    /// Who made it, or empty.
    #[serde(deserialize_with = "or_default")]
    pub author: String,
    /// The CPU as Go names it: `amd64`, `arm64`, ...
    #[serde(deserialize_with = "or_default")]
    pub architecture: String,
    /// The operating system as Go names it.
    #[serde(deserialize_with = "or_default")]
    pub os: String,
    /// The CPU's variant (`v8`), or empty.
    #[serde(deserialize_with = "or_default")]
    pub variant: String,
    /// How to run it.
    #[serde(deserialize_with = "or_default", rename = "config")]
    pub process: Process,
    /// The layers.
    #[serde(deserialize_with = "or_default")]
    pub rootfs: RootFs,
    /// How the layers came to be, the oldest first.
    #[serde(deserialize_with = "or_default")]
    pub history: Vec<HistoryStep>,
}

/// The `config` object: the defaults of the process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Process {
    /// `USER`: name or number, with `:group` or without; empty is root.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// `EXPOSE`: `80/tcp`.
    #[serde(deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// `ENV`: `NAME=VALUE`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// `ENTRYPOINT`. Docker tells none from an empty one only in a Dockerfile.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// `CMD`.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// `VOLUME`: paths.
    #[serde(deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// `WORKDIR`; empty is `/`.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// `LABEL`.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// `STOPSIGNAL`: a name or a number; empty is SIGTERM.
    #[serde(deserialize_with = "or_default")]
    pub stop_signal: String,
    /// `HEALTHCHECK` as docker writes it.
    pub healthcheck: Option<serde_json::Value>,
}

/// The `rootfs` object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Digests of the uncompressed layers, the lowest first.
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<String>,
}

/// One element of `history`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HistoryStep {
    /// When (RFC 3339), or empty.
    #[serde(deserialize_with = "or_default")]
    pub created: String,
    /// The command.
    #[serde(deserialize_with = "or_default")]
    pub created_by: String,
    /// A comment.
    #[serde(deserialize_with = "or_default")]
    pub comment: String,
    /// It made no layer.
    #[serde(deserialize_with = "or_default")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Reads a config object.
    pub fn parse(json: &[u8]) -> Result<Self> {
        // As serde sees it, an array is a struct as well.
        let json = if json.trim_ascii_start().starts_with(b"{") { json } else { b"" };
        serde_json::from_slice(json)
            .map_err(|source| Error::Json { what: "the image's config".into(), source })
    }
}

fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Go's `map[string]struct{}`.
fn keys<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let map: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(from)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_missing_fields_are_empty() {
        let config = ImageConfig::parse(
            br#"{"architecture":"amd64","os":"linux","history":null,"author":null,
                 "config":{"Entrypoint":null,"Cmd":["sh"],"Volumes":null,"ExposedPorts":{"80/tcp":{},"53/udp":{}},"Labels":null},
                 "rootfs":{"type":"layers","diff_ids":null},"docker_version":"20"}"#,
        )
        .unwrap();
        assert_eq!(config.process.cmd, ["sh"]);
        assert_eq!(config.process.exposed_ports, ["53/udp", "80/tcp"]);
        assert!(config.process.entrypoint.is_empty() && config.rootfs.diff_ids.is_empty());
        assert!(ImageConfig::parse(br#"{"config":null}"#).unwrap().process.user.is_empty());
    }

    #[test]
    fn a_config_of_the_wrong_shape_is_refused() {
        for bad in ["", "[]", "{\"config\":{\"Cmd\":\"sh\"}}", "{\"rootfs\":1}"] {
            assert!(ImageConfig::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}

//! Saved state: how a device's `FooState` becomes bytes and back.
//!
//! A state type lives beside the code it describes and carries a version. [`encode`] and [`decode`] frame it;
//! unknown versions and left-over bytes are errors.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why saved state could not be written or taken back.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state could not be encoded.
    #[error("encoding the state of {what}")]
    Encode {
        /// The device or part.
        what: &'static str,
        /// The cause.
        source: postcard::Error,
    },
    /// The bytes are not a state of this kind.
    #[error("decoding the state of {what}")]
    Decode {
        /// The device or part.
        what: &'static str,
        /// The cause.
        source: postcard::Error,
    },
    /// The state has another version than this program writes.
    #[error("state of {what} has version {found}, this program knows version {known}")]
    Version {
        /// The device or part.
        what: &'static str,
        /// The version that was found.
        found: u16,
        /// The version that is known.
        known: u16,
    },
    /// Bytes follow the state.
    #[error("{extra} unexpected bytes after the state of {what}")]
    Trailing {
        /// The device or part.
        what: &'static str,
        /// How many.
        extra: usize,
    },
    /// The state is well-formed but does not fit this device.
    #[error("state of {what} does not fit: {why}")]
    Mismatch {
        /// The device or part.
        what: &'static str,
        /// What differs.
        why: String,
    },
}

/// A saved type: a name for messages and the version of its layout.
pub trait State: Serialize + DeserializeOwned {
    /// The device or part, for messages.
    const NAME: &'static str;
    /// Bumped whenever the layout changes.
    const VERSION: u16;
}

/// Encodes a state: version (2 bytes, little-endian), then the postcard form.
///
/// # Errors
/// [`StateError::Encode`].
pub fn encode<S: State>(state: &S) -> Result<Vec<u8>, StateError> {
    let mut bytes = S::VERSION.to_le_bytes().to_vec();
    bytes.extend(postcard::to_stdvec(state).map_err(|source| StateError::Encode { what: S::NAME, source })?);
    Ok(bytes)
}

/// Decodes what [`encode`] wrote.
///
/// # Errors
/// [`StateError`] on another version, a malformed body, or left-over bytes.
pub fn decode<S: State>(bytes: &[u8]) -> Result<S, StateError> {
    let what = S::NAME;
    let Some((version, body)) = bytes.split_first_chunk::<2>() else {
        return Err(StateError::Decode { what, source: postcard::Error::DeserializeUnexpectedEnd });
    };
    let found = u16::from_le_bytes(*version);
    if found != S::VERSION {
        return Err(StateError::Version { what, found, known: S::VERSION });
    }
    let (state, rest) =
        postcard::take_from_bytes(body).map_err(|source| StateError::Decode { what, source })?;
    if !rest.is_empty() {
        return Err(StateError::Trailing { what, extra: rest.len() });
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Probe {
        a: u32,
        b: Vec<u8>,
    }
    impl State for Probe {
        const NAME: &'static str = "probe";
        const VERSION: u16 = 3;
    }

    #[test]
    fn state_survives_the_way_out_and_back() {
        let probe = Probe { a: 70_000, b: vec![1, 2] };
        assert_eq!(decode::<Probe>(&encode(&probe).unwrap()).unwrap(), probe);
    }

    #[test]
    fn other_versions_short_and_long_bytes_are_errors() {
        let bytes = encode(&Probe { a: 1, b: vec![] }).unwrap();
        assert!(matches!(
            decode::<Probe>(&[4, 0, 1, 0]),
            Err(StateError::Version { found: 4, known: 3, .. })
        ));
        assert!(matches!(decode::<Probe>(&bytes[..3]), Err(StateError::Decode { .. })));
        assert!(matches!(decode::<Probe>(&[]), Err(StateError::Decode { .. })));
        let long = [bytes, vec![0]].concat();
        assert!(matches!(decode::<Probe>(&long), Err(StateError::Trailing { extra: 1, .. })));
    }
}

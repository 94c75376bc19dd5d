//! The container's row: what is kept in its `config`, and new ids and names.

use serde::{Deserialize, Serialize};

use super::{Plan, Request};
use crate::{Error, Result};

/// The JSON in a row's `config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// What was asked for.
    pub request: Request,
    /// What is run.
    pub plan: Plan,
}

/// Random bytes of the host.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    servin_devices::os::random(&mut bytes)
        .map_err(|source| Error::io("take", "the host's random bytes", source))?;
    Ok(bytes)
}

/// A new id: 64 hexadecimal digits. The first twelve are never all decimal, so that no short id looks like a number.
pub(crate) fn new_id() -> Result<String> {
    loop {
        let id: String = random::<32>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        if id.bytes().take(12).any(|byte| byte.is_ascii_alphabetic()) {
            return Ok(id);
        }
    }
}

const FIRST: &[&str] = &[
    "amber", "azure", "brave", "bright", "brisk", "calm", "candid", "clear", "clever", "cosy", "crisp",
    "daring", "eager", "early", "fair", "fleet", "fond", "gentle", "glad", "golden", "grand", "happy",
    "hardy", "hidden", "honest", "jolly", "keen", "kind", "lively", "loyal", "lucid", "lucky", "merry",
    "mild", "modest", "neat", "nimble", "noble", "patient", "plain", "polite", "proud", "quick", "quiet",
    "rapid", "ready", "serene", "sharp", "silent", "simple", "sly", "snug", "solid", "steady", "still",
    "stout", "sunny", "swift", "tidy", "true", "vivid", "warm", "wise", "young",
];
const SECOND: &[&str] = &[
    "alder", "aspen", "badger", "beaver", "birch", "bison", "brook", "cedar", "cliff", "comet", "cove",
    "crane", "delta", "dune", "eagle", "elm", "falcon", "fern", "fjord", "forest", "fox", "glacier", "grove",
    "harbour", "hare", "hawk", "heron", "hill", "island", "juniper", "lake", "lark", "larch", "lynx",
    "maple", "marsh", "meadow", "mesa", "moss", "oak", "otter", "owl", "peak", "pine", "plover", "pond",
    "poplar", "prairie", "raven", "reef", "ridge", "river", "robin", "rowan", "sparrow", "spruce", "swan",
    "thrush", "tundra", "valley", "willow", "wolf", "wren", "yew",
];

/// A made-up name. After the first it carries a number, so that trying again soon succeeds.
pub(crate) fn new_name(attempt: u32) -> Result<String> {
    let [a, b, c, d] = random::<4>()?;
    let pick = |list: &[&'static str], byte: u8| {
        list.get(usize::from(byte) % list.len().max(1)).copied().unwrap_or("x")
    };
    let name = format!("{}_{}", pick(FIRST, a), pick(SECOND, b));
    if attempt == 0 { Ok(name) } else { Ok(format!("{name}{}", u16::from_le_bytes([c, d]))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal_and_differ() {
        let (a, b) = (new_id().unwrap(), new_id().unwrap());
        assert_eq!(a.len(), 64);
        assert!(a.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(a, b);
    }

    #[test]
    fn made_up_names_follow_the_rules_of_names() {
        for attempt in 0..3 {
            let name = new_name(attempt).unwrap();
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{name}");
        }
        assert_eq!((FIRST.len(), SECOND.len()), (64, 64));
    }
}

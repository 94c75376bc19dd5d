//! Restart policies and disk sizes.

use std::ffi::OsStr;

use servin_engine::container::Restart;
use servin_engine::ext4::{LEAST_SIZE, MOST_SIZE};

use super::size;

/// `no`, `on-failure`, `on-failure:N`, `always`, `unless-stopped`.
pub(crate) fn policy(text: &str) -> Result<Restart, String> {
    match text.split_once(':') {
        None => match text {
            "" | "no" => Ok(Restart::No),
            "always" => Ok(Restart::Always),
            "unless-stopped" => Ok(Restart::UnlessStopped),
            "on-failure" => Ok(Restart::OnFailure(None)),
            _ => Err("it is no, on-failure[:N], always or unless-stopped".into()),
        },
        Some(("on-failure", count)) => match count.parse() {
            Ok(0) => Ok(Restart::OnFailure(None)),
            Ok(count) => Ok(Restart::OnFailure(Some(count))),
            Err(_) => Err("behind the colon is a number of times".into()),
        },
        Some(_) => Err("only on-failure takes a number".into()),
    }
}

/// `size=10g`.
pub(super) fn disk_size(word: &OsStr) -> Result<u64, String> {
    let text = word.to_str().ok_or("it is not valid UTF-8")?;
    let Some(size) = text.strip_prefix("size=") else {
        return Err("the only option is size=SIZE".into());
    };
    match size::bytes(size)? {
        bytes if bytes < LEAST_SIZE => Err(format!("the least is {}m", LEAST_SIZE >> 20)),
        bytes if bytes > MOST_SIZE => Err(format!("the most is {}g", MOST_SIZE >> 30)),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_dockers() {
        assert_eq!(policy("no"), Ok(Restart::No));
        assert_eq!(policy("on-failure:3"), Ok(Restart::OnFailure(Some(3))));
        assert_eq!(policy("on-failure"), Ok(Restart::OnFailure(None)));
        assert_eq!(policy("unless-stopped"), Ok(Restart::UnlessStopped));
        for bad in ["sometimes", "always:3", "on-failure:x", "on-failure:-1"] {
            assert!(policy(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_disk_has_a_size_and_nothing_else() {
        assert_eq!(disk_size(OsStr::new("size=10g")), Ok(10 << 30));
        for bad in ["size=", "size=1m", "size=2000g", "inodes=3", "10g"] {
            assert!(disk_size(OsStr::new(bad)).is_err(), "{bad}");
        }
    }
}

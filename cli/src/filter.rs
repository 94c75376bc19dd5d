//! `--filter KEY=VALUE`, the same for every listing: values of one key are alternatives (labels all hold), different keys
//! all hold.

use crate::error::{Error, Result};

/// The typed conditions.
#[derive(Debug, Default)]
pub(crate) struct Filters(Vec<(String, String)>);

impl Filters {
    /// Reads them; `known` are the keys that the listing has.
    pub(crate) fn new(words: &[String], known: &[&str]) -> Result<Self> {
        let read = |word: &String| {
            let bad = |why: String| Error::Value { flag: "-f, --filter", value: word.clone(), why, code: 1 };
            match word.split_once('=') {
                None => Err(bad("it looks like KEY=VALUE".into())),
                Some((key, value)) if known.contains(&key) => Ok((key.to_owned(), value.to_owned())),
                Some((key, _)) => {
                    Err(bad(format!("there is no filter \"{key}\": there are {}", known.join(", "))))
                }
            }
        };
        words.iter().map(read).collect::<Result<_>>().map(Filters)
    }

    /// The values of a key.
    pub(crate) fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Whether a key was typed.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.values(key).next().is_some()
    }

    /// Whether one of the key's values fits, or none was typed.
    pub(crate) fn any(&self, key: &str, fits: impl FnMut(&str) -> bool) -> bool {
        !self.has(key) || self.values(key).any(fits)
    }

    /// Whether every `label=NAME[=VALUE]` is found, and no `label!=` is.
    pub(crate) fn labels<'a>(&self, found: impl Fn(&str) -> Option<&'a str>) -> bool {
        let holds = |word: &str| match word.split_once('=') {
            Some((name, value)) => found(name) == Some(value),
            None => found(word).is_some(),
        };
        self.values("label").all(holds) && !self.values("label!").any(holds)
    }

    /// A value that must be true or false; `None` if it was not typed.
    pub(crate) fn switch(&self, key: &str) -> Result<Option<bool>> {
        self.values(key)
            .last()
            .map(|value| match value {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(bad(key, value, "it is true or false")),
            })
            .transpose()
    }

    /// A value that must be one of these.
    pub(crate) fn one_of(&self, key: &str, words: &[&str]) -> Result<()> {
        match self.values(key).find(|value| !words.contains(value)) {
            Some(value) => Err(bad(key, value, &format!("it is one of {}", words.join(", ")))),
            None => Ok(()),
        }
    }
}

/// A value that a key does not take.
pub(crate) fn bad(key: &str, value: &str, why: &str) -> Error {
    Error::Value { flag: "-f, --filter", value: format!("{key}={value}"), why: why.to_owned(), code: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(words: &[&str]) -> Result<Filters> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Filters::new(&words, &["name", "label", "label!", "dangling"])
    }

    #[test]
    fn values_of_one_key_are_alternatives_and_labels_all_hold() {
        let found = filters(&["name=a", "name=b", "label=x", "label=y=1"]).unwrap();
        assert!(found.any("name", |value| value == "b") && !found.any("name", |value| value == "c"));
        assert!(found.any("dangling", |_| false), "it was not typed");
        let labels = |y: &'static str| {
            move |name: &str| if name == "x" { Some("") } else { (name == "y").then_some(y) }
        };
        assert!(found.labels(labels("1")) && !found.labels(labels("2")));
        assert!(!filters(&["label!=x"]).unwrap().labels(labels("1")));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let text = filters(&["colour=red"]).unwrap_err().to_string();
        assert!(text.contains("\"colour\"") && text.contains("name, label"), "{text}");
        assert!(filters(&["name"]).is_err());
        assert!(filters(&["dangling=perhaps"]).unwrap().switch("dangling").is_err());
        assert_eq!(filters(&["dangling=1"]).unwrap().switch("dangling").unwrap(), Some(true));
        assert!(filters(&["name=x"]).unwrap().one_of("name", &["y"]).is_err());
    }
}

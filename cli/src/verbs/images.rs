//! `servin images`.

use serde_json::{Value, json};
use servin_engine::image::{Image, Images, Reference};
use servin_engine::store::now_ns;
use servin_engine::time::{parse_rfc3339, rfc3339};

use crate::args::{Global, List};
use crate::error::{Error, Result};
use crate::listing::Format;
use crate::{human, output};

const NONE: &str = "<none>";

/// Prints the images, the newest first, a line for each name.
pub(crate) fn run(global: &Global, typed: &List) -> Result<u8> {
    let format = Format::new(typed.format.as_deref(), typed.quiet, "images")?;
    let store = super::store(global)?;
    let images = Images::new(&store);
    let filters = typed.filter.iter().map(|text| Filter::new(text, &images)).collect::<Result<Vec<_>>>()?;
    let mut list = images.list()?;
    list.sort_by_key(|image| std::cmp::Reverse((created(image), image.id)));
    let mut rows = Vec::new();
    for image in &list {
        let names = images.names(&image.id)?;
        if !filters.iter().all(|filter| filter.takes_image(image, &names)) {
            continue;
        }
        let is_wanted = |name: &&Reference| {
            typed.name.as_deref().is_none_or(|pattern| fits(pattern, name))
                && filters.iter().all(|filter| filter.takes_name(name))
        };
        let mut shown: Vec<Option<&Reference>> = names.iter().filter(is_wanted).map(Some).collect();
        let by_name =
            typed.name.is_some() || filters.iter().any(|filter| matches!(filter, Filter::Reference(_)));
        if names.is_empty() && !by_name {
            shown.push(None);
        }
        // One id is one line with -q, however many names it has.
        shown.truncate(if typed.quiet { 1 } else { usize::MAX });
        rows.extend(shown.into_iter().map(|name| row(image, name, typed.no_trunc)));
    }
    let mut columns = vec![("REPOSITORY", "Repository"), ("TAG", "Tag")];
    if typed.digests {
        columns.push(("DIGEST", "Digest"));
    }
    columns.extend([("IMAGE ID", "ID"), ("CREATED", "CreatedSince"), ("SIZE", "Size")]);
    output::text(&format.show(&rows, &columns, "ID")?);
    Ok(0)
}

fn created(image: &Image) -> i64 {
    parse_rfc3339(&image.config.created).unwrap_or(i64::MIN)
}

fn row(image: &Image, name: Option<&Reference>, no_trunc: bool) -> Value {
    let size = human::size(image.size);
    // Reproducible builds say 1970, which means nothing.
    let (at, since) = match parse_rfc3339(&image.config.created).filter(|ns| *ns > 0) {
        Some(ns) => (rfc3339(ns)[..19].replace('T', " ") + " +0000 UTC", human::ago(ns, now_ns())),
        None => ("N/A".into(), "N/A".into()),
    };
    json!({
        "ID": if no_trunc { image.id.to_string() } else { image.id.short() },
        "Repository": name.map_or_else(|| NONE.into(), Reference::familiar_name),
        "Tag": name.and_then(Reference::tag).unwrap_or(NONE),
        "Digest": image.manifest.to_string(),
        "CreatedAt": at,
        "CreatedSince": since,
        "Size": size,
        "VirtualSize": size,
        "Containers": "N/A",
        "SharedSize": "N/A",
        "UniqueSize": "N/A",
    })
}

/// A condition of `--filter`.
#[derive(Debug)]
enum Filter {
    Dangling(bool),
    Reference(String),
    Label(String, Option<String>),
    /// Created before this time.
    Before(i64),
    /// Created after this time.
    Since(i64),
}

impl Filter {
    fn new(text: &str, images: &Images<'_>) -> Result<Self> {
        let bad =
            |why: &str| Error::Value { flag: "-f, --filter", value: text.into(), why: why.into(), code: 1 };
        let (key, value) = text.split_once('=').ok_or_else(|| bad("it looks like KEY=VALUE"))?;
        Ok(match key {
            "dangling" => match value {
                "true" | "1" => Filter::Dangling(true),
                "false" | "0" => Filter::Dangling(false),
                _ => return Err(bad("dangling is true or false")),
            },
            "reference" => Filter::Reference(value.into()),
            "label" => match value.split_once('=') {
                Some((name, value)) => Filter::Label(name.into(), Some(value.into())),
                None => Filter::Label(value.into(), None),
            },
            "before" => Filter::Before(created(&images.find(value)?)),
            "since" => Filter::Since(created(&images.find(value)?)),
            _ => return Err(bad("known are dangling, reference, label, before and since")),
        })
    }

    fn takes_image(&self, image: &Image, names: &[Reference]) -> bool {
        match self {
            Filter::Dangling(dangling) => names.is_empty() == *dangling,
            Filter::Label(name, value) => {
                let found = image.config.process.labels.get(name);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            }
            Filter::Before(time) => created(image) < *time,
            Filter::Since(time) => created(image) > *time,
            Filter::Reference(_) => true,
        }
    }

    fn takes_name(&self, name: &Reference) -> bool {
        match self {
            Filter::Reference(pattern) => fits(pattern, name),
            _ => true,
        }
    }
}

/// Whether a pattern is the name, with its tag or without, as users write it or in full.
fn fits(pattern: &str, name: &Reference) -> bool {
    let tag = name.tag().unwrap_or_default();
    [name.familiar_name(), name.name()].iter().any(|name| {
        glob(pattern.as_bytes(), name.as_bytes())
            || glob(pattern.as_bytes(), format!("{name}:{tag}").as_bytes())
    })
}

/// `*` is any run of bytes but `/`, `?` is any one of them.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where the last star stood, and how much it has taken: one step back is enough.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some(b'?') if text[t] != b'/' => {}
            Some(byte) if *byte == text[t] => {}
            _ => match star {
                Some((at, taken)) if text[taken] != b'/' => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                    continue;
                }
                _ => return false,
            },
        }
        p += 1;
        t += 1;
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names_with_and_without_tags() {
        let name: Reference = "busybox:1.36".parse().unwrap();
        for yes in [
            "busybox",
            "busy*",
            "*",
            "busybox:1.36",
            "busybox:*",
            "b?sybox",
            "docker.io/library/busybox",
            "*:1.*6",
        ] {
            assert!(fits(yes, &name), "{yes}");
        }
        for no in ["busy", "busybox:1.3", "?", "busybox:2*", "*/busybox", ""] {
            assert!(!fits(no, &name), "{no}");
        }
        let deep: Reference = "quay.io/a/b".parse().unwrap();
        assert!(fits("quay.io/*/b", &deep) && !fits("quay.io/*", &deep));
    }

    #[test]
    fn a_pattern_of_many_stars_ends() {
        assert!(!glob("*a".repeat(50).as_bytes(), "b".repeat(5000).as_bytes()));
    }
}

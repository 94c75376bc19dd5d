//! `servin images`.

use serde_json::{Value, json};
use servin_engine::image::{Image, Images, Reference};
use servin_engine::store::now_ns;
use servin_engine::time::parse_rfc3339;

use crate::args::{Global, List};
use crate::error::Result;
use crate::filter::Filters;
use crate::listing::Format;
use crate::{human, output};

const NONE: &str = "<none>";

/// Prints the images, the newest first, a line for each name.
pub(crate) fn run(global: &Global, typed: &List) -> Result<u8> {
    let format = Format::new(typed.format.as_deref(), typed.quiet, "images")?;
    let store = super::store(global)?;
    let images = Images::new(&store);
    let filters = Filters::new(&typed.filter, FILTERS)?;
    let conditions = Conditions::new(&filters, &images)?;
    let mut list = images.list()?;
    list.sort_by_key(|image| std::cmp::Reverse((created(image), image.id)));
    let mut rows = Vec::new();
    for image in &list {
        let names = images.names(&image.id)?;
        if !conditions.takes(image, &names) {
            continue;
        }
        let is_wanted = |name: &&Reference| {
            typed.name.as_deref().is_none_or(|pattern| fits(pattern, name))
                && filters.any("reference", |pattern| fits(pattern, name))
        };
        let mut shown: Vec<Option<&Reference>> = names.iter().filter(is_wanted).map(Some).collect();
        let by_name = typed.name.is_some() || filters.has("reference");
        if names.is_empty() && !by_name {
            shown.push(None);
        }
        // One id is one line with -q, however many names it has.
        shown.truncate(if typed.quiet { 1 } else { usize::MAX });
        let digests = images.repo_digests(image)?;
        rows.extend(shown.into_iter().map(|name| row(image, name, &digests, typed.no_trunc)));
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

fn row(image: &Image, name: Option<&Reference>, digests: &[Reference], no_trunc: bool) -> Value {
    // The digest that pulls it again; of an image that was never at a registry, that of its manifest.
    let pulled = digests.iter().find(|digest| name.is_some_and(|name| name.name() == digest.name()));
    let digest = pulled.and_then(Reference::digest).unwrap_or(image.manifest);
    let size = human::size(image.size);
    // Reproducible builds say 1970, which means nothing.
    let (at, since) = match parse_rfc3339(&image.config.created).filter(|ns| *ns > 0) {
        Some(ns) => (human::time(ns), human::ago(ns, now_ns())),
        None => ("N/A".into(), "N/A".into()),
    };
    json!({
        "ID": if no_trunc { image.id.to_string() } else { image.id.short() },
        "Repository": name.map_or_else(|| NONE.into(), Reference::familiar_name),
        "Tag": name.and_then(Reference::tag).unwrap_or(NONE),
        "Digest": digest.to_string(),
        "CreatedAt": at,
        "CreatedSince": since,
        "Size": size,
        "VirtualSize": size,
        "Containers": "N/A",
        "SharedSize": "N/A",
        "UniqueSize": "N/A",
    })
}

/// Keys of `--filter`.
const FILTERS: &[&str] = &["dangling", "reference", "label", "label!", "before", "since"];

/// What `--filter` says of images; names are another matter.
#[derive(Debug)]
struct Conditions<'a> {
    filters: &'a Filters,
    dangling: Option<bool>,
    /// Made before one of these times.
    before: Vec<i64>,
    /// Made after one of these times.
    since: Vec<i64>,
}

impl<'a> Conditions<'a> {
    fn new(filters: &'a Filters, images: &Images<'_>) -> Result<Self> {
        let times =
            |key| filters.values(key).map(|name| Ok(created(&images.find(name)?))).collect::<Result<_>>();
        Ok(Conditions {
            filters,
            dangling: filters.switch("dangling")?,
            before: times("before")?,
            since: times("since")?,
        })
    }

    fn takes(&self, image: &Image, names: &[Reference]) -> bool {
        let labels = &image.config.process.labels;
        self.dangling.is_none_or(|dangling| names.is_empty() == dangling)
            && self.filters.labels(|name| labels.get(name).map(String::as_str))
            && self.before.iter().all(|time| created(image) < *time)
            && self.since.iter().all(|time| created(image) > *time)
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

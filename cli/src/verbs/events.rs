//! `servin events`.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Value, json};
use servin_engine::container::short;
use servin_engine::events::{Event, Reader};
use servin_engine::store::now_ns;
use servin_engine::time::rfc3339;
use servin_engine::watch::Watch;

use crate::args::{Events, Global};
use crate::error::{Error, Result};
use crate::filter::Filters;
use crate::spec::moment::moment;
use crate::template::Template;

/// Keys of `--filter`.
const FILTERS: &[&str] = &["type", "event", "container", "image", "network", "volume", "label", "label!"];

/// How an event is shown.
enum Shown {
    Line,
    Json,
    Template(Template),
}

/// Prints what happens until it is interrupted, or until the time that was given.
pub(crate) fn run(global: &Global, typed: &Events) -> Result<u8> {
    let filters = Filters::new(&typed.filter, FILTERS)?;
    let shown = match typed.format.as_deref() {
        None | Some("") => Shown::Line,
        Some("json" | "{{json .}}") => Shown::Json,
        Some(text) => Shown::Template(
            Template::parse(text)
                .map_err(|why| Error::Usage { what: format!("--format: {why}"), verb: "events".into() })?,
        ),
    };
    let now = now_ns();
    let at = |flag: &'static str, text: &Option<String>| {
        let text = text.as_deref();
        let bad = |why| Error::Value { flag, value: text.unwrap_or_default().to_owned(), why, code: 1 };
        text.map(|text| moment(text, now)).transpose().map_err(bad)
    };
    let (since, until) = (at("--since", &typed.since)?, at("--until", &typed.until)?);
    let store = super::store(global)?;
    let fail = |source| Error::Host { what: "read the events".into(), source, code: 1 };
    let mut reader = Reader::open(&store).map_err(fail)?;
    let span = (since.unwrap_or(now), until.unwrap_or(i64::MAX));
    match follow(&mut reader, span, |event| fits(&filters, event).then(|| show(&shown, event)).transpose()) {
        Ok(result) => result.map(|()| 0),
        // The reader had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(error) => Err(fail(error)),
    }
}

/// Prints what `text` makes of the events between two times.
fn follow(
    reader: &mut Reader,
    (since, until): (i64, i64),
    text: impl Fn(&Event) -> Result<Option<String>>,
) -> io::Result<Result<()>> {
    let mut watch = Watch::new(reader.dir())?;
    loop {
        // Asked before the reading: what was written before the end is then read.
        let left = until.saturating_sub(now_ns());
        while let Some(event) = reader.next_event()? {
            if !(since..=until).contains(&event.time_ns) {
                continue;
            }
            match text(&event) {
                Ok(Some(line)) => {
                    let mut out = io::stdout().lock();
                    out.write_all(line.as_bytes())?;
                    out.flush()?;
                }
                Ok(None) => {}
                Err(error) => return Ok(Err(error)),
            }
        }
        let Some(left) = u64::try_from(left).ok().filter(|left| *left > 0) else { return Ok(Ok(())) };
        watch.wait(Duration::from_nanos(left));
    }
}

fn fits(filters: &Filters, event: &Event) -> bool {
    let attribute = |name: &str| event.actor.attributes.get(name).map(String::as_str);
    let is_named = |kind: &str, wanted: &str| {
        event.kind == kind && (event.actor.id.starts_with(wanted) || attribute("name") == Some(wanted))
    };
    // docker says "health_status" for both of its values.
    let action = |wanted: &str| {
        event.action == wanted || event.action.split_once(':').is_some_and(|(name, _)| name == wanted)
    };
    filters.any("type", |kind| event.kind == kind)
        && filters.any("event", action)
        && filters.any("container", |name| {
            // Who came to a network or left it.
            is_named("container", name) || attribute("container").is_some_and(|id| id.starts_with(name))
        })
        && filters.any("network", |name| is_named("network", name))
        && filters.any("volume", |name| is_named("volume", name))
        && filters.any("image", |name| is_named("image", name) || attribute("image") == Some(name))
        && filters.labels(attribute)
}

fn show(shown: &Shown, event: &Event) -> Result<String> {
    let value = json(event);
    match shown {
        Shown::Json => Ok(format!("{value}\n")),
        Shown::Template(template) => match template.render(&value) {
            Ok(text) => Ok(text + "\n"),
            Err(why) => Err(Error::Usage { what: format!("--format: {why}"), verb: "events".into() }),
        },
        Shown::Line => {
            let attributes: Vec<String> =
                event.actor.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let more =
                if attributes.is_empty() { String::new() } else { format!(" ({})", attributes.join(", ")) };
            let Event { kind, action, actor, time_ns } = event;
            Ok(format!("{} {kind} {action} {}{more}\n", rfc3339(*time_ns), actor.id))
        }
    }
}

/// docker's object, its older fields too.
fn json(event: &Event) -> Value {
    let from = event.actor.attributes.get("image").cloned().unwrap_or_default();
    json!({
        "status": event.action, "id": event.actor.id, "from": from,
        "Type": event.kind, "Action": event.action, "Actor": event.actor, "ID": short(&event.actor.id),
        "scope": "local", "time": event.time_ns / 1_000_000_000, "timeNano": event.time_ns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let mut event = Event {
            kind: "container".into(),
            action: "health_status: healthy".into(),
            time_ns: 1_709_251_199_000_000_001,
            ..Event::default()
        };
        event.actor.id = "abcdef".into();
        for (name, value) in [("name", "web"), ("image", "servin/base")] {
            event.actor.attributes.insert(name.into(), value.into());
        }
        event
    }

    #[test]
    fn an_event_is_a_line_an_object_or_a_template() {
        let line = "2024-02-29T23:59:59.000000001Z container health_status: healthy abcdef (image=servin/base, name=web)\n";
        assert_eq!(show(&Shown::Line, &event()).unwrap(), line);
        let object: Value = serde_json::from_str(&show(&Shown::Json, &event()).unwrap()).unwrap();
        assert_eq!((&object["Actor"]["ID"], &object["time"]), (&json!("abcdef"), &json!(1_709_251_199)));
        let template = Template::parse("{{.Type}} {{.Actor.Attributes.name}}").unwrap();
        assert_eq!(show(&Shown::Template(template), &event()).unwrap(), "container web\n");
    }

    #[test]
    fn conditions_name_what_it_happened_to() {
        for (words, expected) in [
            (&["type=container"][..], true),
            (&["type=image"], false),
            (&["event=health_status"], true),
            (&["event=die", "event=health_status: healthy"], true),
            (&["container=web"], true),
            (&["container=abc"], true),
            (&["container=other"], false),
            (&["image=servin/base"], true),
            (&["container=web", "event=die"], false),
            (&["network=web"], false),
        ] {
            assert_eq!(fits(&filters(words), &event()), expected, "{words:?}");
        }
        let mut connected = Event { kind: "network".into(), action: "connect".into(), ..Event::default() };
        for (name, value) in [("name", "back"), ("container", "abcdef")] {
            connected.actor.attributes.insert(name.into(), value.into());
        }
        for (words, expected) in
            [(&["network=back"][..], true), (&["container=abc"], true), (&["volume=back"], false)]
        {
            assert_eq!(fits(&filters(words), &connected), expected, "{words:?}");
        }
    }

    fn filters(words: &[&str]) -> Filters {
        let typed: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Filters::new(&typed, FILTERS).unwrap()
    }
}

//! Lines of a Dockerfile that change an image's configuration: `commit --change` and `import --change`.

use std::ffi::OsString;

use servin_engine::image::Change;

use crate::error::{Error, Result};

/// Reads the lines.
pub(crate) fn changes(lines: &[OsString]) -> Result<Vec<Change>> {
    let mut all = Vec::new();
    for line in lines {
        let read = line.to_str().ok_or_else(|| "it is not valid UTF-8".to_owned()).and_then(change);
        all.extend(read.map_err(|why| Error::Value {
            flag: "-c, --change",
            value: line.display().to_string(),
            why,
            code: 1,
        })?);
    }
    Ok(all)
}

fn change(line: &str) -> Result<Vec<Change>, String> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err("something must follow the instruction".into());
    }
    let one = |change| Ok(vec![change]);
    match word.to_ascii_uppercase().as_str() {
        "CMD" => one(Change::Words("Cmd", command(rest)?)),
        "ENTRYPOINT" => one(Change::Words("Entrypoint", command(rest)?)),
        "USER" => one(Change::Text("User", rest.to_owned())),
        "WORKDIR" if !rest.starts_with('/') => Err("the directory must begin with /".into()),
        "WORKDIR" => one(Change::Text("WorkingDir", rest.to_owned())),
        "STOPSIGNAL" => one(Change::Text("StopSignal", rest.to_owned())),
        "ENV" => Ok(pairs(rest)?.into_iter().map(|(name, value)| Change::Env(name, value)).collect()),
        "LABEL" => Ok(pairs(rest)?.into_iter().map(|(name, value)| Change::Label(name, value)).collect()),
        "EXPOSE" => Ok(words(rest)?
            .into_iter()
            .map(|port| Change::Member("ExposedPorts", if port.contains('/') { port } else { port + "/tcp" }))
            .collect()),
        "VOLUME" => {
            let paths = if rest.starts_with('[') { command(rest)? } else { words(rest)? };
            Ok(paths.into_iter().map(|path| Change::Member("Volumes", path)).collect())
        }
        other => Err(format!(
            "{other} is no instruction that can be used here: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, \
             VOLUME, WORKDIR"
        )),
    }
}

/// A JSON list of words, or a line for a shell.
fn command(text: &str) -> Result<Vec<String>, String> {
    if text.starts_with('[') {
        return serde_json::from_str(text).map_err(|_| "a list is written as [\"word\", \"word\"]".into());
    }
    Ok(vec!["/bin/sh".into(), "-c".into(), text.to_owned()])
}

/// `NAME=value NAME="va lue"`, or `NAME value` to the line's end.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split(char::is_whitespace).next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace).ok_or("a name needs a value")?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words(text)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("\"{word}\" is not NAME=value")),
        })
        .collect()
}

/// Words apart by spaces, with quotes and backslashes as in a Dockerfile.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut all, mut word, mut quote, mut in_word) = (Vec::new(), String::new(), None, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', None | Some('"')) => {
                word.push(letters.next().ok_or("a backslash stands at the end")?);
                in_word = true;
            }
            (quoted, Some(open)) if quoted == open => quote = None,
            (quoted, Some(_)) => word.push(quoted),
            ('"' | '\'', None) => (quote, in_word) = (Some(letter), true),
            (space, None) if space.is_whitespace() => {
                if std::mem::take(&mut in_word) {
                    all.push(std::mem::take(&mut word));
                }
            }
            (letter, None) => {
                word.push(letter);
                in_word = true;
            }
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    if in_word {
        all.push(word);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_in_a_dockerfile() {
        assert_eq!(
            change("CMD [\"a\", \"b c\"]"),
            Ok(vec![Change::Words("Cmd", vec!["a".into(), "b c".into()])])
        );
        assert_eq!(
            change("entrypoint run it"),
            Ok(vec![Change::Words("Entrypoint", vec!["/bin/sh".into(), "-c".into(), "run it".into()])])
        );
        assert_eq!(
            change("ENV A=1 B=\"two words\" C=a\\ b"),
            Ok(vec![
                Change::Env("A".into(), "1".into()),
                Change::Env("B".into(), "two words".into()),
                Change::Env("C".into(), "a b".into()),
            ])
        );
        assert_eq!(change("ENV A the rest"), Ok(vec![Change::Env("A".into(), "the rest".into())]));
        assert_eq!(
            change("EXPOSE 80 53/udp"),
            Ok(vec![
                Change::Member("ExposedPorts", "80/tcp".into()),
                Change::Member("ExposedPorts", "53/udp".into())
            ])
        );
        assert_eq!(change("WORKDIR /srv"), Ok(vec![Change::Text("WorkingDir", "/srv".into())]));
    }

    #[test]
    fn lines_that_mean_nothing_here_are_refused() {
        for bad in
            ["RUN true", "CMD", "CMD [a", "ENV A", "ENV A=\"x", "WORKDIR srv", "LABEL =x", "HEALTHCHECK NONE"]
        {
            assert!(change(bad).is_err(), "{bad}");
        }
    }
}

//! Variables: `-e` and `--env-file`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use servin_engine::container::Text;

/// One word of `-e`: `NAME=VALUE`, or `NAME` to pass the host's on. A name that the host has not set removes what the
/// image sets.
pub(crate) fn word(word: &OsStr, host: impl Fn(&OsStr) -> Option<OsString>) -> Result<Text, String> {
    let bytes = word.as_bytes();
    let name = bytes.split(|byte| *byte == b'=').next().unwrap_or_default();
    if name.is_empty() {
        return Err("a variable needs a name".to_owned());
    }
    if bytes.len() > name.len() {
        return Ok(Text(bytes.to_vec()));
    }
    let mut text = name.to_vec();
    if let Some(value) = host(word) {
        text.push(b'=');
        text.extend(value.into_vec());
    }
    Ok(Text(text))
}

/// The variables of a file: one `NAME=VALUE` or `NAME` a line, `#` at the beginning is a comment, values are taken as
/// they are, with quotes and blanks. A `NAME` the host has not set is left out.
pub(crate) fn file(content: &[u8], host: impl Fn(&OsStr) -> Option<OsString>) -> Result<Vec<Text>, String> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let mut variables = Vec::new();
    for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if std::str::from_utf8(line).is_err() {
            return Err(format!("line {} is not valid UTF-8", index + 1));
        }
        let line = line.trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let name = line.split(|byte| *byte == b'=').next().unwrap_or_default();
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return Err(format!("line {}: \"{}\" is no name", index + 1, String::from_utf8_lossy(name)));
        }
        let variable = word(OsStr::from_bytes(line), &host)?;
        if variable.0.contains(&b'=') {
            variables.push(variable);
        }
    }
    Ok(variables)
}

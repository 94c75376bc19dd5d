//! The keys that detach a terminal.

/// The bytes of a key sequence like `ctrl-p,ctrl-q` or `a,b`; empty text switches detaching off.
pub(crate) fn sequence(text: &str) -> Result<Vec<u8>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',').map(key).collect()
}

/// The default: control-P, control-Q.
pub(crate) const DEFAULT: &[u8] = &[0x10, 0x11];

fn key(text: &str) -> Result<u8, String> {
    if let &[byte] = text.as_bytes()
        && byte.is_ascii_graphic()
    {
        return Ok(byte);
    }
    let control = text.strip_prefix("ctrl-").map(str::as_bytes);
    match control {
        Some(&[byte]) if byte.is_ascii_lowercase() => Ok(byte - b'a' + 1),
        Some(&[byte @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => Ok(byte - b'@'),
        _ => Err(format!(
            "\"{text}\" is no key: it is one letter, or ctrl- and a letter or one of @ [ \\ ] ^ _"
        )),
    }
}

//! Names of a Linux guest as Windows can have them, and back.
//!
//! What Windows does not allow in a name, or would not take for the name alone, stands there as a character of the private use
//! area, U+F000 and the character's number, as Cygwin, WSL and Samba have it: the characters `\ : * ? " < > |` and the control
//! characters, a dot or a space at the end, and the last letter of what would name a device (`aux.c`). So no name of a guest is a
//! path, a stream, a pattern or a device, and each is of one name alone. Names of the host that stand for none of the guest's are
//! not listed and cannot be used: with such a character where none is needed, or unpaired surrogates, or more bytes than Linux allows.

use super::super::super::vfs::{Errno, NAME_MAX};
use super::super::system::Result;

/// Where the characters stand that Windows does not have in names.
const PRIVATE: u32 = 0xf000;
/// The highest of them, for all of ASCII.
const PRIVATE_LAST: u32 = PRIVATE + 0x7f;

/// Names of devices: with these digits behind them, or alone.
const NUMBERED: [&str; 2] = ["COM", "LPT"];
const DIGITS: [char; 13] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '\u{b9}', '\u{b2}', '\u{b3}'];
const ALONE: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];

fn is_private(c: char) -> bool {
    (PRIVATE..=PRIVATE_LAST).contains(&u32::from(c))
}

fn private(c: char) -> char {
    char::from_u32(PRIVATE + u32::from(c)).unwrap_or(c)
}

/// The number of characters that name a device at the start of a name; what follows a dot does not matter to Windows, nor do
/// spaces before that.
fn device(name: &str) -> Option<usize> {
    let stem = name.split('.').next().unwrap_or(name).trim_end_matches(' ');
    let upper = stem.to_ascii_uppercase();
    let numbered = NUMBERED.iter().any(|device| {
        upper.strip_prefix(device).is_some_and(|rest| {
            let mut rest = rest.chars();
            rest.next().is_some_and(|digit| DIGITS.contains(&digit)) && rest.next().is_none()
        })
    });
    (numbered || ALONE.contains(&upper.as_str())).then(|| stem.chars().count())
}

/// The name on the host for one of the guest's.
///
/// # Errors
/// EILSEQ: it is no Unicode; EINVAL: it has a character that stands for others, or is none of an entry.
pub(super) fn encode(name: &[u8]) -> Result<Vec<u16>> {
    let name = std::str::from_utf8(name).map_err(|_| Errno::ILSEQ)?;
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) || name.chars().any(is_private) {
        return Err(Errno::INVAL);
    }
    let last = name.chars().count() - 1;
    let device = device(name);
    let mut units = Vec::with_capacity(name.len());
    for (at, c) in name.chars().enumerate() {
        let differs = matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' | '\u{1}'..='\u{1f}')
            || at == last && matches!(c, '.' | ' ')
            || device == Some(at + 1);
        // A digit above ASCII names a device too; the letter before it then differs.
        let digit_follows = device == Some(at + 2) && name.chars().nth(at + 1).is_some_and(|c| !c.is_ascii());
        let c = if (differs || digit_follows) && c.is_ascii() { private(c) } else { c };
        units.extend(c.encode_utf16(&mut [0; 2]).iter());
    }
    Ok(units)
}

/// The guest's name for one of the host's; `None` where there is none.
pub(super) fn decode(units: &[u16]) -> Option<Vec<u8>> {
    let mut name = String::with_capacity(units.len());
    for c in char::decode_utf16(units.iter().copied()) {
        let c = c.ok()?;
        name.push(if is_private(c) { char::from_u32(u32::from(c) - PRIVATE)? } else { c });
    }
    let name = name.into_bytes();
    (name.len() <= NAME_MAX && encode(&name).is_ok_and(|again| again == units)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(text: &str) -> Vec<u16> {
        text.encode_utf16().collect()
    }

    #[test]
    fn what_windows_does_not_allow_stands_in_the_private_use_area_and_comes_back() {
        for (name, there) in [
            ("file.txt", "file.txt"),
            ("\u{fc}\u{1f600}", "\u{fc}\u{1f600}"),
            (".hidden", ".hidden"),
            ("a:b", "a\u{f03a}b"),
            ("file:stream:$DATA", "file\u{f03a}stream\u{f03a}$DATA"),
            ("..\\..\\secret", "..\u{f05c}..\u{f05c}secret"),
            ("\\\\?\\C:\\x", "\u{f05c}\u{f05c}\u{f03f}\u{f05c}C\u{f03a}\u{f05c}x"),
            ("*?\"<>|", "\u{f02a}\u{f03f}\u{f022}\u{f03c}\u{f03e}\u{f07c}"),
            ("line\nbreak\u{1f}", "line\u{f00a}break\u{f01f}"),
            ("dot.", "dot\u{f02e}"),
            ("dots..", "dots.\u{f02e}"),
            ("...", "..\u{f02e}"),
            ("space ", "space\u{f020}"),
            (" ", "\u{f020}"),
            ("nul", "nu\u{f06c}"),
            ("NUL", "NU\u{f04c}"),
            ("aux.c", "au\u{f078}.c"),
            ("Con .x.y", "Co\u{f06e} .x.y"),
            ("con.", "co\u{f06e}\u{f02e}"),
            ("com1", "com\u{f031}"),
            ("lpt\u{b2}.x", "lp\u{f074}\u{b2}.x"),
            ("CONIN$", "CONIN\u{f024}"),
            ("com", "com"),
            ("com10", "com10"),
            ("console", "console"),
            ("nul-x", "nul-x"),
        ] {
            assert_eq!(encode(name.as_bytes()), Ok(units(there)), "{name:?}");
            assert_eq!(decode(&units(there)), Some(name.as_bytes().to_vec()), "{name:?}");
        }
    }

    #[test]
    fn no_name_of_a_guest_is_two_on_the_host_or_a_part_of_a_path() {
        for name in ["", ".", "..", "a/b", "/", "a\0b", "\u{f03a}", "a\u{f02e}b"] {
            assert_eq!(encode(name.as_bytes()), Err(Errno::INVAL), "{name:?}");
        }
        assert_eq!(encode(b"\xff"), Err(Errno::ILSEQ));
        // All of ASCII in each place.
        for c in (1..=127_u8).filter(|&c| c != b'/') {
            for name in [vec![c, b'a'], vec![b'a', c], vec![b'a', c, b'a'], vec![c, c, c]] {
                if name == b".." {
                    continue;
                }
                let there = encode(&name).unwrap();
                assert!(
                    !there.iter().any(|&unit| unit < 32 || b"\\/:*?\"<>|".map(u16::from).contains(&unit))
                );
                assert!(!there.ends_with(&[u16::from(b'.')]) && !there.ends_with(&[u16::from(b' ')]));
                assert_eq!(decode(&there), Some(name));
            }
        }
    }

    #[test]
    fn names_of_the_host_that_stand_for_none_of_the_guests_are_not_shown() {
        for there in [
            "nul",
            "aux.c",
            "dot.",
            "space ",
            "a\u{f062}",
            "\u{f02e}x",
            "",
            ".",
            "..",
            "\u{f02f}",
            "a\u{f000}",
        ] {
            assert_eq!(decode(&units(there)), None, "{there:?}");
        }
        assert_eq!(decode(&[0xd800, 0x61]), None, "half a character");
        assert_eq!(decode(&units(&"\u{4e2d}".repeat(100))), None, "300 bytes");
        assert!(decode(&units(&"\u{4e2d}".repeat(85))).is_some());
    }
}

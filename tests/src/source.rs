//! The source files of this repository, and just enough of Rust's syntax to see what they use.

use std::fs;
use std::path::{Path, PathBuf};

/// The repository's root folder.
pub fn root() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}

/// Every file below `dir` that belongs to the source tree, relative to [`root`] and in order: build output, caches
/// and version control are left out.
pub fn files(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&root().join(dir), &mut found);
    let mut found: Vec<_> =
        found.into_iter().filter_map(|path| path.strip_prefix(root()).map(Path::to_path_buf).ok()).collect();
    found.sort();
    found
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            if !matches!(name.to_str(), Some("target" | ".git" | "artifacts" | "node_modules")) {
                walk(&path, found);
            }
        } else if kind.is_file() {
            found.push(path);
        }
    }
}

/// The Rust files among [`files`].
pub fn rust_files(dir: &str) -> Vec<PathBuf> {
    files(dir)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// A file's text, or nothing when it is not text.
pub fn text(file: &Path) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_default()
}

/// `source` with comments, and what strings and character literals hold, replaced by spaces; lines stay where
/// they are.
pub fn code(source: &str) -> String {
    let bytes = source.as_bytes();
    let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    let blank = |out: &mut Vec<u8>, from: usize, to: usize| {
        for &byte in bytes.get(from..to.min(bytes.len())).unwrap_or_default() {
            out.push(if byte == b'\n' { b'\n' } else { b' ' });
        }
    };
    while i < bytes.len() {
        let start = i;
        match at(i) {
            b'/' if at(i + 1) == b'/' => {
                while i < bytes.len() && at(i) != b'\n' {
                    i += 1;
                }
                blank(&mut out, start, i);
            }
            b'/' if at(i + 1) == b'*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        (b'/', b'*') => (depth, i) = (depth + 1, i + 2),
                        (b'*', b'/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= bytes.len() {
                        break;
                    }
                }
                blank(&mut out, start, i);
            }
            b'r' if matches!(at(i + 1), b'"' | b'#') && !word(at(i.wrapping_sub(1))) => {
                let mut hashes = 0;
                while at(i + 1 + hashes) == b'#' {
                    hashes += 1;
                }
                if at(i + 1 + hashes) != b'"' {
                    out.push(b'r'); // a raw identifier
                    i += 1;
                    continue;
                }
                let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
                i += 2 + hashes;
                while i < bytes.len() && !bytes.get(i..).is_some_and(|rest| rest.starts_with(&close)) {
                    i += 1;
                }
                i += close.len();
                blank(&mut out, start, i);
            }
            b'"' => {
                i += 1;
                while i < bytes.len() && at(i) != b'"' {
                    i += if at(i) == b'\\' { 2 } else { 1 };
                }
                i += 1;
                blank(&mut out, start, i);
            }
            b'\'' if at(i + 1) == b'\\' || at(i + 2) == b'\'' => {
                i += if at(i + 1) == b'\\' { 3 } else { 2 };
                while i < bytes.len() && at(i) != b'\'' {
                    i += 1;
                }
                i += 1;
                blank(&mut out, start, i);
            }
            byte => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// [`code`] up to the file's own test module, which may use whatever it likes.
pub fn product_code(source: &str) -> String {
    let code = code(source);
    let mut from = 0;
    while let Some(found) = code[from..].find("#[cfg(test)]") {
        let after = from + found + "#[cfg(test)]".len();
        if code[after..].trim_start().starts_with("mod ") && code[after..].contains('{') {
            let rest = code[after..].trim_start();
            // `mod tests;` names a file of its own and ends nothing here.
            if rest.find('{').unwrap_or(usize::MAX) < rest.find(';').unwrap_or(usize::MAX) {
                return code[..from + found].to_string();
            }
        }
        from = after;
    }
    code
}

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether `word` stands in `code` as a word of its own; with the lines on which it does.
pub fn lines_with_word(code: &str, wanted: &str) -> Vec<usize> {
    code.lines()
        .enumerate()
        .filter(|(_, line)| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == wanted))
        .map(|(number, _)| number + 1)
        .collect()
}

/// The paths that follow `prefix::` in `code`, in `use` trees and in expressions: for `use crate::{a, b::{C, d}}` and
/// the prefix `crate` they are `a`, `b::C`, `b::d`.
pub fn paths(code: &str, prefix: &str) -> Vec<Vec<String>> {
    let needle = format!("{prefix}::");
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = code[from..].find(&needle) {
        let start = from + at;
        from = start + needle.len();
        let before = start.checked_sub(1).and_then(|i| bytes.get(i)).copied().unwrap_or(b' ');
        if !word(before) && before != b':' {
            tree(&mut Cursor { bytes, at: from }, &mut Vec::new(), &mut found);
        }
    }
    found
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&mut self) -> u8 {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    fn word(&mut self) -> String {
        let start = self.at;
        while self.bytes.get(self.at).is_some_and(|&byte| word(byte)) {
            self.at += 1;
        }
        String::from_utf8_lossy(self.bytes.get(start..self.at).unwrap_or_default()).into_owned()
    }
}

fn tree(cursor: &mut Cursor<'_>, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let depth = path.len();
    loop {
        match cursor.peek() {
            b'{' => {
                cursor.at += 1;
                loop {
                    match cursor.peek() {
                        b'}' | 0 => break,
                        b',' => cursor.at += 1,
                        _ => {
                            let before = cursor.at;
                            tree(cursor, path, found);
                            // `a as b`, or something that is no use tree at all
                            while !matches!(cursor.peek(), b',' | b'}' | 0) {
                                cursor.at += 1;
                            }
                            if cursor.at == before {
                                cursor.at += 1;
                            }
                        }
                    }
                }
                cursor.at += 1;
                break;
            }
            byte if word(byte) => {
                let next = cursor.word();
                path.push(next);
                if cursor.bytes.get(cursor.at..cursor.at + 2) == Some(b"::") {
                    cursor.at += 2;
                    continue;
                }
                found.push(path.clone());
                break;
            }
            _ => {
                found.push(path.clone());
                break;
            }
        }
    }
    path.truncate(depth);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_blanks_comments_and_literals() {
        let source =
            "a // unsafe\n/* unsafe /* nested */ */ b \"unsafe \\\" \" r#\"unsafe\"# 'u' '\\'' <'a> c";
        let code = code(source);
        assert!(!code.contains("unsafe"), "{code}");
        assert!(code.contains('a') && code.contains('b') && code.contains("<'a> c"), "{code}");
        assert_eq!(code.len(), source.len());
    }

    #[test]
    fn paths_follow_use_trees_and_expressions() {
        let code = "use crate::{a, b::{C, d as e}, f::*};\nfn x() { crate::g::h(1); mycrate::no(); }";
        let found: Vec<_> = paths(code, "crate").iter().map(|path| path.join("::")).collect();
        assert_eq!(found, ["a", "b::C", "b::d", "f", "g::h"]);
    }

    #[test]
    fn product_code_ends_at_the_test_module() {
        let code = product_code(
            "#[cfg(test)]\nmod tests;\nuse crate::a;\n#[cfg(test)]\nmod tests { use crate::b; }",
        );
        assert_eq!(paths(&code, "crate"), [["a".to_string()]]);
    }
}

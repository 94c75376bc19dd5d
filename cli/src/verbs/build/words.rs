//! The words of an instruction, as the Dockerfile reference has them: quotes, backslashes, and variables (`$NAME`, `${NAME}`,
//! `${NAME:-word}`, `${NAME:+word}`, and both without the colon). What a variable holds is never split into words.

/// Gives a variable's value, if it is set.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The words, apart by white space.
///
/// # Errors
/// A quote or a brace that is not closed, or a form of a variable that is none of the above.
pub(super) fn words(text: &str, lookup: Lookup<'_>) -> Result<Vec<String>, String> {
    let mut lexer = Lexer { text: text.chars().collect(), at: 0, lookup };
    let mut words = Vec::new();
    loop {
        while lexer.peek().is_some_and(char::is_whitespace) {
            lexer.at += 1;
        }
        if lexer.peek().is_none() {
            return Ok(words);
        }
        words.push(lexer.until(&|c| c.is_whitespace())?);
    }
}

/// The whole text as one word.
///
/// # Errors
/// As [`words`].
pub(super) fn word(text: &str, lookup: Lookup<'_>) -> Result<String, String> {
    Lexer { text: text.trim().chars().collect(), at: 0, lookup }.until(&|_| false)
}

struct Lexer<'a> {
    text: Vec<char>,
    at: usize,
    lookup: Lookup<'a>,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    /// Up to the first character outside quotes that ends it, which is not taken.
    fn until(&mut self, ends: &dyn Fn(char) -> bool) -> Result<String, String> {
        let mut out = String::new();
        while let Some(c) = self.peek().filter(|c| !ends(*c)) {
            self.at += 1;
            match c {
                '\'' => loop {
                    match self.next().ok_or("a ' is not closed")? {
                        '\'' => break,
                        c => out.push(c),
                    }
                },
                '"' => self.quoted(&mut out)?,
                '\\' => out.extend(self.next()),
                '$' => self.variable(&mut out)?,
                c => out.push(c),
            }
        }
        Ok(out)
    }

    fn quoted(&mut self, out: &mut String) -> Result<(), String> {
        loop {
            match self.next().ok_or("a \" is not closed")? {
                '"' => return Ok(()),
                '\\' => match self.next().ok_or("a \" is not closed")? {
                    c @ ('"' | '\\' | '$') => out.push(c),
                    c => out.extend(['\\', c]),
                },
                '$' => self.variable(out)?,
                c => out.push(c),
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek().filter(|c| c.is_ascii_alphanumeric() || *c == '_') {
            if name.is_empty() && c.is_ascii_digit() {
                break;
            }
            name.push(c);
            self.at += 1;
        }
        name
    }

    fn variable(&mut self, out: &mut String) -> Result<(), String> {
        if self.peek() != Some('{') {
            let name = self.name();
            match name.is_empty() {
                true => out.push('$'),
                false => out.push_str(&(self.lookup)(&name).unwrap_or_default()),
            }
            return Ok(());
        }
        self.at += 1;
        let name = self.name();
        if name.is_empty() {
            return Err("behind ${ a name is missing".into());
        }
        let value = (self.lookup)(&name);
        let open = || format!("${{{name} is not closed");
        let mut operator = self.next().ok_or_else(open)?;
        if operator == '}' {
            out.push_str(&value.unwrap_or_default());
            return Ok(());
        }
        let filled = operator == ':';
        if filled {
            operator = self.next().ok_or_else(open)?;
        }
        let word = self.until(&|c| c == '}')?;
        self.next().ok_or_else(open)?;
        let value = value.filter(|value| !filled || !value.is_empty());
        match operator {
            '-' => out.push_str(&value.unwrap_or(word)),
            '+' => out.push_str(value.map_or("", |_| &word)),
            '?' => out.push_str(&value.ok_or_else(|| format!("{name}: {word}"))?),
            other => {
                return Err(format!("${{{name}{other}...}} is no form of a variable that is known here"));
            }
        }
        Ok(())
    }
}

/// `NAME=value ...`, or `NAME value` to the line's end.
///
/// # Errors
/// As [`words`], or a word that is neither.
pub(super) fn pairs(text: &str, lookup: Lookup<'_>) -> Result<Vec<(String, String)>, String> {
    let first = text.split(char::is_whitespace).next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace).ok_or("a name needs a value")?;
        return Ok(vec![(word(name, lookup)?, word(value, lookup)?)]);
    }
    let split = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("\"{word}\" is not NAME=value")),
    };
    words(text, lookup)?.into_iter().map(split).collect()
}

/// A line for a shell: its continuations joined, the comments between them gone.
pub(super) fn shell_line(text: &str) -> String {
    let mut out = String::new();
    let mut goes_on = false;
    for line in text.lines() {
        if goes_on && (line.trim_start().starts_with('#') || line.trim().is_empty()) {
            continue;
        }
        match line.trim_end().strip_suffix('\\') {
            Some(line) => {
                out.push_str(line);
                goes_on = true;
            }
            None => {
                out.push_str(line);
                out.push('\n');
                goes_on = false;
            }
        }
    }
    out.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Option<String> {
        match name {
            "A" => Some("one two".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_put_in_and_never_split() {
        let all = |text: &str| words(text, &of).unwrap();
        assert_eq!(all("x $A ${A}y"), ["x", "one two", "one twoy"]);
        assert_eq!(all(r#"'$A' "$A" \$A $ 5$"#), ["$A", "one two", "$A", "$", "5$"]);
        assert_eq!(
            all("${NO:-d e} ${NO-f} ${EMPTY:-g} [${EMPTY-h}] ${A:+i}${NO+j}"),
            ["d e", "f", "g", "[]", "i"]
        );
        assert_eq!(word("  /a ${A}/b ", &of).unwrap(), "/a one two/b");
        for (bad, why) in
            [("'x", "not closed"), ("\"x", "not closed"), ("${A", "not closed"), ("${}", "name")]
        {
            assert!(words(bad, &of).unwrap_err().contains(why), "{bad}");
        }
        assert_eq!(words("${NO:?is wanted}", &of).unwrap_err(), "NO: is wanted");
    }

    #[test]
    fn pairs_come_in_both_forms() {
        let all = |text: &str| pairs(text, &of).unwrap();
        let two = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(all(r#"X="a b" Y=c\ d Z=$A"#), [two("X", "a b"), two("Y", "c d"), two("Z", "one two")]);
        assert_eq!(all("X some words"), [two("X", "some words")]);
        assert!(pairs("X", &of).is_err() && pairs("X=1 y", &of).is_err());
    }

    #[test]
    fn a_shell_line_is_what_docker_gives_to_the_shell() {
        assert_eq!(shell_line("a && \\\n  # why\n\n  b"), "a &&   b");
        assert_eq!(shell_line("echo 'a\\b'"), "echo 'a\\b'");
    }
}

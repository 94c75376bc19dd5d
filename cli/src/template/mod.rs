//! `--format`: Go's templates as docker's users write them. Paths, variables, pipelines, `if`, `range`, `with`, and the functions
//! of Go and docker that are listed in [`FUNCTIONS`]. Anything else is refused by name.

mod fill;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Value(Expr),
    /// `$x := EXPR`, or `$x = EXPR` of one that is there.
    Set {
        name: String,
        expr: Expr,
        is_new: bool,
    },
    If(Block),
    With(Block),
    Range(Block),
}

/// A block with what stands after its `else`, and the names that it gives: the value's, or the key's and the value's.
#[derive(Debug, Clone, PartialEq)]
struct Block {
    expr: Expr,
    names: Vec<String>,
    body: Vec<Part>,
    other: Vec<Part>,
}

/// A path from the dot or a variable, a literal, a function with its arguments.
#[derive(Debug, Clone, PartialEq)]
enum Expr {
    Dot,
    Variable(String),
    Literal(Value),
    Fields(Box<Expr>, Vec<String>),
    /// `.Label "x"` of a listing's row.
    Label(Box<Expr>, Box<Expr>),
    Call(String, Vec<Expr>),
}

/// What a template may call.
const FUNCTIONS: [&str; 23] = [
    "json", "join", "index", "len", "upper", "lower", "title", "split", "pad", "truncate", "print", "printf",
    "println", "slice", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not",
];
/// Go's own actions that are not built.
const UNBUILT: [&str; 5] = ["template", "define", "block", "break", "continue"];
/// Deepest nesting of blocks and parentheses.
const DEPTH_MAX: usize = 50;

impl Template {
    /// Reads a template; `\t` and `\n` in its text are what they mean, as docker has it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text;
        let (parts, end) = block(&mut rest, 0)?;
        match end {
            Stop::Text => Ok(Template(parts)),
            _ => Err("{{end}} or {{else}} without a beginning".into()),
        }
    }

    /// Fills it in.
    pub(crate) fn render(&self, value: &Value) -> Result<String, String> {
        self.render_row(value, &BTreeMap::new())
    }

    /// Fills it in for a row of a listing that shows these labels as one string.
    pub(crate) fn render_row(
        &self,
        row: &Value,
        labels: &BTreeMap<String, String>,
    ) -> Result<String, String> {
        fill::fill(&self.0, row, labels)
    }
}

/// What ended a list of parts.
#[derive(PartialEq)]
enum Stop {
    Text,
    /// With the `if` or `with` after it, and its argument.
    Else(String),
    End,
}

fn block(rest: &mut &str, depth: usize) -> Result<(Vec<Part>, Stop), String> {
    let mut parts = Vec::new();
    let mut trim = false;
    while !rest.is_empty() {
        let (mut text, action) = match rest.split_once("{{") {
            Some((text, action)) => (text, Some(action)),
            None => (*rest, None),
        };
        if trim {
            text = text.trim_start();
        }
        let trims =
            |action: &str| action.strip_prefix('-').is_some_and(|rest| rest.starts_with(char::is_whitespace));
        if action.is_some_and(trims) {
            text = text.trim_end();
        }
        if !text.is_empty() {
            parts.push(Part::Text(text.replace("\\t", "\t").replace("\\n", "\n")));
        }
        let Some(action) = action else {
            *rest = "";
            break;
        };
        let (action, after) = split_action(action)?;
        *rest = after;
        let action = if trims(action) { action.get(1..).unwrap_or_default() } else { action };
        let trimmed = action.strip_suffix('-').filter(|rest| rest.ends_with(char::is_whitespace));
        trim = trimmed.is_some();
        let action = trimmed.unwrap_or(action).trim();
        let (word, argument) = action.split_once(char::is_whitespace).unwrap_or((action, ""));
        match word {
            "end" => return Ok((parts, Stop::End)),
            "else" => return Ok((parts, Stop::Else(argument.trim().to_owned()))),
            "range" | "if" | "with" => parts.push(opened(word, argument, rest, depth + 1)?),
            _ if UNBUILT.contains(&word) => return Err(format!("{{{{{word}}}}} is not supported")),
            _ if action.starts_with("/*") && action.ends_with("*/") => {}
            _ => parts.push(single(action)?),
        }
    }
    Ok((parts, Stop::Text))
}

/// A block whose first action has been read, to its end.
fn opened(word: &str, argument: &str, rest: &mut &str, depth: usize) -> Result<Part, String> {
    if depth > DEPTH_MAX {
        return Err("it is nested too deep".into());
    }
    let (names, expr) = named(argument)?;
    if names.len() > usize::from(word == "range") + 1 {
        return Err(format!("{{{{{word}}}}} takes no more than one variable"));
    }
    let unfinished = || format!("{{{{{word}}}}} has no {{{{end}}}}");
    let (body, stop) = block(rest, depth)?;
    let other = match stop {
        Stop::Text => return Err(unfinished()),
        Stop::End => Vec::new(),
        Stop::Else(next) if next.is_empty() => match block(rest, depth)? {
            (other, Stop::End) => other,
            _ => return Err(unfinished()),
        },
        // One end for the whole chain.
        Stop::Else(next) => match next.split_once(char::is_whitespace) {
            Some((next, argument)) if matches!(next, "if" | "with") && word != "range" => {
                vec![opened(next, argument, rest, depth + 1)?]
            }
            _ => return Err(format!("{{{{else {next}}}}} is not supported")),
        },
    };
    let block = Block { expr, names, body, other };
    Ok(match word {
        "range" => Part::Range(block),
        "with" => Part::With(block),
        _ => Part::If(block),
    })
}

/// An action that is no block.
fn single(action: &str) -> Result<Part, String> {
    let tokens = tokens(action)?;
    match tokens.as_slice() {
        [name, sign, rest @ ..] if name.is_variable() && matches!(sign.text.as_str(), ":=" | "=") => {
            let (name, is_new) = (name.text[1..].to_owned(), sign.text == ":=");
            Ok(Part::Set { name, expr: whole(rest)?, is_new })
        }
        rest => Ok(Part::Value(whole(rest)?)),
    }
}

/// What a block is about: `EXPR`, `$x := EXPR` or `$k, $v := EXPR`.
fn named(argument: &str) -> Result<(Vec<String>, Expr), String> {
    let tokens = tokens(argument)?;
    let name = |token: &Token| token.text[1..].to_owned();
    match tokens.as_slice() {
        [one, sign, rest @ ..] if one.is_variable() && sign.text == ":=" => {
            Ok((vec![name(one)], whole(rest)?))
        }
        [key, comma, one, sign, rest @ ..]
            if key.is_variable() && comma.text == "," && one.is_variable() && sign.text == ":=" =>
        {
            Ok((vec![name(key), name(one)], whole(rest)?))
        }
        rest => Ok((Vec::new(), whole(rest)?)),
    }
}

/// What stands before `}}`, which may be part of a string, and what after.
fn split_action(text: &str) -> Result<(&str, &str), String> {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if open == c => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '`') => quote = Some(c),
            None if text[at..].starts_with("}}") => return Ok((&text[..at], &text[at + 2..])),
            None => {}
        }
    }
    Err("{{ has no }}".into())
}

/// A word of an expression: strings keep their quotes, parentheses and signs are words.
#[derive(Debug, PartialEq)]
struct Token {
    text: String,
    /// No blank is before it.
    is_joined: bool,
}

impl Token {
    fn is_variable(&self) -> bool {
        self.text.len() > 1 && self.text.starts_with('$') && !self.text.contains('.')
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    const SIGNS: [char; 6] = ['(', ')', '|', ',', ':', '='];
    let mut out: Vec<Token> = Vec::new();
    let mut chars = text.chars().peekable();
    let mut is_joined = false;
    while let Some(c) = chars.next() {
        if c.is_whitespace() {
            is_joined = false;
            continue;
        }
        let mut word = String::from(c);
        match c {
            ':' => word.extend(chars.next_if_eq(&'=')),
            '"' | '`' => loop {
                match chars.next() {
                    Some('\\') if c == '"' => {
                        word.push('\\');
                        word.extend(chars.next());
                    }
                    Some(next) => {
                        word.push(next);
                        if next == c {
                            break;
                        }
                    }
                    None => return Err("a string has no end".into()),
                }
            },
            _ if SIGNS.contains(&c) => {}
            _ => {
                let goes_on = |c: &char| !c.is_whitespace() && !SIGNS.contains(c) && !matches!(c, '"' | '`');
                while let Some(next) = chars.next_if(goes_on) {
                    word.push(next);
                }
            }
        }
        out.push(Token { text: word, is_joined });
        is_joined = true;
    }
    Ok(out)
}

/// An expression with nothing after it.
fn whole(tokens: &[Token]) -> Result<Expr, String> {
    let mut rest = tokens;
    let expr = pipeline(&mut rest, 0)?;
    match rest.first() {
        None => Ok(expr),
        Some(token) => Err(format!("unexpected \"{}\"", token.text)),
    }
}

/// Commands with `|` between them: `.X | json` is `json .X`.
fn pipeline(rest: &mut &[Token], depth: usize) -> Result<Expr, String> {
    let mut expr = command(rest, depth)?;
    while let Some((_, after)) = rest.split_first().filter(|(token, _)| token.text == "|") {
        *rest = after;
        match command(rest, depth)? {
            Expr::Call(name, mut arguments) => {
                arguments.push(expr);
                expr = Expr::Call(name, arguments);
            }
            _ => return Err("after | a function is expected".into()),
        }
    }
    Ok(expr)
}

/// A function with its arguments up to `|`, `)` or the end, or one value.
fn command(rest: &mut &[Token], depth: usize) -> Result<Expr, String> {
    let Some((first, after)) = rest.split_first() else { return Err("an empty action".into()) };
    let first = &first.text;
    let ends =
        |rest: &&[Token]| matches!(rest.first().map(|token| token.text.as_str()), None | Some("|" | ")"));
    if !first.starts_with(|c: char| c.is_ascii_alphabetic())
        || matches!(first.as_str(), "true" | "false" | "nil")
    {
        return match operand(rest, depth)? {
            Expr::Fields(row, names) if names == ["Label"] && !ends(rest) => {
                Ok(Expr::Label(row, Box::new(operand(rest, depth)?)))
            }
            other => Ok(other),
        };
    }
    if !FUNCTIONS.contains(&first.as_str()) {
        return Err(format!("the function \"{first}\" is not supported (known: {})", FUNCTIONS.join(", ")));
    }
    *rest = after;
    let mut arguments = Vec::new();
    while !ends(rest) {
        arguments.push(operand(rest, depth)?);
    }
    Ok(Expr::Call(first.clone(), arguments))
}

fn operand(rest: &mut &[Token], depth: usize) -> Result<Expr, String> {
    let Some((first, after)) = rest.split_first() else { return Err("a value is missing".into()) };
    *rest = after;
    let first = first.text.as_str();
    if depth > DEPTH_MAX {
        return Err("it is nested too deep".into());
    }
    let bad = || format!("\"{first}\" is no value");
    let below = |expr: Expr, path: &str| {
        let names: Vec<String> = path.split('.').map(str::to_owned).collect();
        if names.iter().any(String::is_empty) { Err(bad()) } else { Ok(Expr::Fields(Box::new(expr), names)) }
    };
    match first.as_bytes() {
        b"(" => {
            let inner = pipeline(rest, depth + 1)?;
            match rest.split_first() {
                Some((close, after)) if close.text == ")" => *rest = after,
                _ => return Err("a ) is missing".into()),
            }
            match rest.split_first() {
                Some((path, after)) if path.is_joined && path.text.starts_with('.') => {
                    *rest = after;
                    below(inner, &path.text[1..])
                }
                _ => Ok(inner),
            }
        }
        b"." => Ok(Expr::Dot),
        [b'.', ..] => below(Expr::Dot, &first[1..]),
        [b'$', ..] => match first[1..].split_once('.') {
            Some((name, path)) => below(Expr::Variable(name.to_owned()), path),
            None => Ok(Expr::Variable(first[1..].to_owned())),
        },
        [b'"', ..] => serde_json::from_str(first).map(Expr::Literal).map_err(|_| bad()),
        [b'`', ..] => Ok(Expr::Literal(first.trim_matches('`').into())),
        b"true" | b"false" => Ok(Expr::Literal((first == "true").into())),
        b"nil" => Ok(Expr::Literal(Value::Null)),
        _ => match (first.parse::<i64>(), first.parse::<f64>()) {
            (Ok(number), _) => Ok(Expr::Literal(number.into())),
            (_, Ok(number)) if first.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                Ok(Expr::Literal(number.into()))
            }
            _ => Err(bad()),
        },
    }
}

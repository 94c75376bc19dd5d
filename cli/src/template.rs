//! `--format`: Go's templates as far as docker's users write them. Paths (`{{.State.ExitCode}}`), `json`, `join`, `index`, `len`,
//! `upper`, `lower`, `printf` with `%s`, `%d`, `%v` and `%q`, `range`, `if`, `else`, `end`. Anything else is refused by name.

use serde_json::Value;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Value(Expr),
    Range(Expr, Vec<Part>, Vec<Part>),
    If(Expr, Vec<Part>, Vec<Part>),
}

/// A function with its arguments, a path, or a literal.
#[derive(Debug, Clone, PartialEq)]
enum Expr {
    Path(Vec<String>),
    Literal(Value),
    Call(String, Vec<Expr>),
}

const FUNCTIONS: [&str; 7] = ["json", "join", "index", "len", "upper", "lower", "printf"];
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
        let mut out = String::new();
        render(&self.0, value, &mut out)?;
        Ok(out)
    }
}

#[derive(PartialEq)]
enum Stop {
    Text,
    Else,
    Block,
}

fn block(rest: &mut &str, depth: usize) -> Result<(Vec<Part>, Stop), String> {
    if depth > DEPTH_MAX {
        return Err("it is nested too deep".into());
    }
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
        if action.is_some_and(|action| action.starts_with("- ")) {
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
        trim = action.ends_with(" -");
        let action = action.strip_prefix("- ").unwrap_or(action);
        let action = action.strip_suffix(" -").unwrap_or(action).trim();
        let (word, argument) = action.split_once(char::is_whitespace).unwrap_or((action, ""));
        match word {
            "end" => return Ok((parts, Stop::Block)),
            "else" if argument.is_empty() => return Ok((parts, Stop::Else)),
            "else" => return Err("{{else if}} is not supported".into()),
            "range" | "if" => {
                let over = expression(argument)?;
                let (body, end) = block(rest, depth + 1)?;
                let (other, end) =
                    if end == Stop::Else { block(rest, depth + 1)? } else { (Vec::new(), end) };
                if end != Stop::Block {
                    return Err(format!("{{{{{word}}}}} has no {{{{end}}}}"));
                }
                parts.push(if word == "range" {
                    Part::Range(over, body, other)
                } else {
                    Part::If(over, body, other)
                });
            }
            _ if action.starts_with("/*") && action.ends_with("*/") => {}
            _ => parts.push(Part::Value(expression(action)?)),
        }
    }
    Ok((parts, Stop::Text))
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

/// Words of an expression: strings keep their quotes, parentheses are words.
fn tokens(text: &str) -> Result<Vec<String>, String> {
    let mut out: Vec<String> = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            _ if c.is_whitespace() => {
                chars.next();
            }
            '(' | ')' | '|' => {
                chars.next();
                out.push(c.into());
            }
            '"' | '`' => {
                let mut word = String::from(c);
                chars.next();
                loop {
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
                }
                out.push(word);
            }
            _ => {
                let mut word = String::new();
                while let Some(&next) = chars.peek() {
                    if next.is_whitespace() || matches!(next, '(' | ')' | '|' | '"' | '`') {
                        break;
                    }
                    word.push(next);
                    chars.next();
                }
                out.push(word);
            }
        }
    }
    Ok(out)
}

fn expression(text: &str) -> Result<Expr, String> {
    let tokens = tokens(text)?;
    let mut rest = tokens.as_slice();
    let mut expr = pipeline(&mut rest, 0)?;
    // `.X | json` is `json .X`.
    while let Some((bar, after)) = rest.split_first() {
        if bar != "|" {
            return Err(format!("unexpected \"{bar}\""));
        }
        rest = after;
        match pipeline(&mut rest, 0)? {
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
fn pipeline(rest: &mut &[String], depth: usize) -> Result<Expr, String> {
    let Some((first, after)) = rest.split_first() else { return Err("an empty action".into()) };
    if !first.starts_with(|c: char| c.is_ascii_alphabetic())
        || matches!(first.as_str(), "true" | "false" | "nil")
    {
        return operand(rest, depth);
    }
    if !FUNCTIONS.contains(&first.as_str()) {
        return Err(format!("the function \"{first}\" is not supported (known: {})", FUNCTIONS.join(", ")));
    }
    *rest = after;
    let mut arguments = Vec::new();
    while !matches!(rest.first().map(String::as_str), None | Some("|" | ")")) {
        arguments.push(operand(rest, depth)?);
    }
    Ok(Expr::Call(first.clone(), arguments))
}

fn operand(rest: &mut &[String], depth: usize) -> Result<Expr, String> {
    let Some((first, after)) = rest.split_first() else { return Err("a value is missing".into()) };
    *rest = after;
    if depth > DEPTH_MAX {
        return Err("it is nested too deep".into());
    }
    let bad = || format!("\"{first}\" is no value");
    match first.as_bytes() {
        b"(" => {
            let inner = pipeline(rest, depth + 1)?;
            match rest.split_first() {
                Some((close, after)) if close == ")" => *rest = after,
                _ => return Err("a ) is missing".into()),
            }
            Ok(inner)
        }
        b"." => Ok(Expr::Path(Vec::new())),
        [b'.', ..] => {
            let names: Vec<String> = first[1..].split('.').map(str::to_owned).collect();
            if names.iter().any(String::is_empty) { Err(bad()) } else { Ok(Expr::Path(names)) }
        }
        [b'"', ..] => serde_json::from_str(first).map(Expr::Literal).map_err(|_| bad()),
        [b'`', ..] => Ok(Expr::Literal(first.trim_matches('`').into())),
        b"true" | b"false" => Ok(Expr::Literal((first == "true").into())),
        b"nil" => Ok(Expr::Literal(Value::Null)),
        _ => first.parse::<i64>().map(|number| Expr::Literal(number.into())).map_err(|_| bad()),
    }
}

fn render(parts: &[Part], value: &Value, out: &mut String) -> Result<(), String> {
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Value(expr) => out.push_str(&show(&evaluate(expr, value)?)),
            Part::If(expr, yes, no) => {
                render(if is_true(&evaluate(expr, value)?) { yes } else { no }, value, out)?
            }
            Part::Range(expr, body, none) => {
                let over = evaluate(expr, value)?;
                let items: Vec<&Value> = match &over {
                    Value::Array(items) => items.iter().collect(),
                    Value::Object(map) => map.values().collect(),
                    Value::Null => Vec::new(),
                    _ => return Err("range needs a list or a map".into()),
                };
                if items.is_empty() {
                    render(none, value, out)?;
                }
                for item in items {
                    render(body, item, out)?;
                }
            }
        }
    }
    Ok(())
}

fn evaluate(expr: &Expr, value: &Value) -> Result<Value, String> {
    match expr {
        Expr::Literal(literal) => Ok(literal.clone()),
        Expr::Path(names) => {
            let mut at = value;
            for name in names {
                at = match at {
                    Value::Object(map) => {
                        map.get(name).ok_or_else(|| format!("there is no field .{name}"))?
                    }
                    // A map that is not there has no entries either.
                    Value::Null => at,
                    _ => return Err(format!("there is no field .{name} in a simple value")),
                };
            }
            Ok(at.clone())
        }
        Expr::Call(name, arguments) => {
            let values: Vec<Value> =
                arguments.iter().map(|argument| evaluate(argument, value)).collect::<Result<_, _>>()?;
            call(name, &values)
        }
    }
}

fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let text = |text: String| Ok(Value::String(text));
    match (name, arguments) {
        ("json", [value]) => text(value.to_string()),
        ("upper", [Value::String(value)]) => text(value.to_uppercase()),
        ("lower", [Value::String(value)]) => text(value.to_lowercase()),
        ("len", [Value::Array(items)]) => Ok(items.len().into()),
        ("len", [Value::Object(map)]) => Ok(map.len().into()),
        ("len", [Value::String(value)]) => Ok(value.len().into()),
        ("len", [Value::Null]) => Ok(0.into()),
        ("join", [Value::Array(items), Value::String(between)]) => {
            text(items.iter().map(show).collect::<Vec<_>>().join(between))
        }
        ("join", [Value::Null, Value::String(_)]) => text(String::new()),
        ("index", [value, keys @ ..]) if !keys.is_empty() => {
            let mut at = value;
            for key in keys {
                let found = match (at, key) {
                    (Value::Object(map), Value::String(key)) => Some(map.get(key).unwrap_or(&Value::Null)),
                    (Value::Array(items), Value::Number(at)) => {
                        at.as_u64().and_then(|at| items.get(usize::try_from(at).ok()?))
                    }
                    (Value::Null, Value::String(_)) => Some(&Value::Null),
                    _ => None,
                };
                at = found.ok_or_else(|| format!("there is no element {key}"))?;
            }
            Ok(at.clone())
        }
        ("printf", [Value::String(format), values @ ..]) => text(printf(format, values)?),
        _ => Err(format!("the function \"{name}\" does not take these values")),
    }
}

fn printf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let verb = chars.next();
        if verb == Some('%') {
            out.push('%');
            continue;
        }
        let value = values.next().ok_or("printf has fewer values than verbs")?;
        match verb {
            Some('s' | 'v' | 'd') => out.push_str(&show(value)),
            Some('q') => out.push_str(&Value::String(show(value)).to_string()),
            _ => return Err(format!("printf knows %s, %d, %v and %q, not %{}", verb.unwrap_or(' '))),
        }
    }
    Ok(out)
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As Go's `fmt` prints it.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut entries: Vec<_> =
                map.iter().map(|(key, value)| format!("{key}:{}", show(value))).collect();
            entries.sort();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fill(template: &str) -> Result<String, String> {
        let value = json!({
            "ID": "abc", "Size": 7, "Up": true, "Tags": ["a", "b"], "None": null, "Empty": [],
            "State": { "ExitCode": 3 }, "Labels": { "x.y": "z", "a": "1" },
        });
        Template::parse(template)?.render(&value)
    }

    #[test]
    fn what_users_write_is_filled_in_as_go_does() {
        for (template, expected) in [
            ("{{.ID}}", "abc"),
            ("{{ .ID }}\\t{{.Size}}", "abc\t7"),
            ("{{.State.ExitCode}}", "3"),
            ("{{json .Tags}}", "[\"a\",\"b\"]"),
            ("{{.Tags | json}}", "[\"a\",\"b\"]"),
            ("{{.Tags}} {{.Labels}}", "[a b] map[a:1 x.y:z]"),
            ("{{index .Labels \"x.y\"}}{{index .Tags 1}}", "zb"),
            ("{{index .Labels \"none\"}}", "<no value>"),
            ("{{range .Tags}}<{{.}}>{{end}}", "<a><b>"),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("{{if .Up}}up{{else}}down{{end}}{{if .None}}x{{end}}", "up"),
            ("{{join .Tags \", \"}} {{len .Tags}} {{upper .ID}}", "a, b 2 ABC"),
            ("{{printf \"%s=%d %q %%\" .ID .Size .ID}}", "abc=7 \"abc\" %"),
            ("a {{- .ID -}} b", "aabcb"),
            ("{{\"}}\"}}{{/* a comment */}}", "}}"),
            ("{{if (index .Tags 0)}}y{{end}}{{lower (upper .ID)}}", "yabc"),
        ] {
            assert_eq!(fill(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_is_not_there_or_not_known_is_an_error() {
        for bad in [
            "{{.Nope}}",
            "{{.ID.x}}",
            "{{",
            "{{.ID",
            "{{end}}",
            "{{range .Tags}}",
            "{{html .ID}}",
            "{{template \"x\"}}",
            "{{}}",
            "{{index .Tags 9}}",
            "{{upper .Size}}",
            "{{.ID .Size}}",
            "{{(json .ID}}",
            "{{\"x}}",
            "{{..}}",
            "{{.ID | .Size}}",
            "{{range .ID}}{{end}}",
            "{{printf \"%x\" .ID}}",
            "{{else if .Up}}",
        ] {
            assert!(fill(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_does_not_overflow() {
        assert!(fill(&"{{if .Up}}".repeat(100_000)).is_err());
        assert!(fill(&format!("{{{{{}}}}}", "json (".repeat(100_000))).is_err());
    }
}

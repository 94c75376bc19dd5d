//! Filling a template in: values as Go's `text/template` takes and prints them.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::Value;

use super::{Block, Expr, Part};

/// Fields that docker's objects have always, empty where they mean nothing; their JSON leaves them out.
const OPTIONAL: [&str; 3] = ["Health", "SizeRw", "SizeRootFs"];
/// The widest that `pad` and `printf` make a word.
const WIDTH_MAX: usize = 10_000;

/// The text of a template for this value; `labels` are those of a listing's row, which has them as one string.
pub(super) fn fill(
    parts: &[Part],
    value: &Value,
    labels: &BTreeMap<String, String>,
) -> Result<String, String> {
    let mut out = String::new();
    let mut scope = Scope { variables: vec![(String::new(), value.clone())], labels };
    scope.render(parts, value, &mut out)?;
    Ok(out)
}

/// What a part sees.
struct Scope<'l> {
    /// The variables, the innermost last; the first is `$`.
    variables: Vec<(String, Value)>,
    /// What a row's `.Label` knows.
    labels: &'l BTreeMap<String, String>,
}

impl Scope<'_> {
    fn render(&mut self, parts: &[Part], dot: &Value, out: &mut String) -> Result<(), String> {
        let outside = self.variables.len();
        for part in parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Value(expr) => out.push_str(&show(&self.evaluate(expr, dot)?)),
                Part::Set { name, expr, is_new } => {
                    let value = self.evaluate(expr, dot)?;
                    if *is_new {
                        self.variables.push((name.clone(), value));
                    } else {
                        let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
                        known.ok_or_else(|| format!("there is no variable ${name}"))?.1 = value;
                    }
                }
                Part::If(block) => {
                    let value = self.evaluate(&block.expr, dot)?;
                    self.choose(block, is_true(&value), dot, &[(None, &value)], out)?;
                }
                Part::With(block) => {
                    let value = self.evaluate(&block.expr, dot)?;
                    let dot = if is_true(&value) { value.clone() } else { dot.clone() };
                    self.choose(block, is_true(&value), &dot, &[(None, &value)], out)?;
                }
                Part::Range(block) => self.range(block, dot, out)?,
            }
        }
        self.variables.truncate(outside);
        Ok(())
    }

    fn range(&mut self, block: &Block, dot: &Value, out: &mut String) -> Result<(), String> {
        let items: Vec<(Value, Value)> = match self.evaluate(&block.expr, dot)? {
            Value::Array(items) => {
                items.into_iter().enumerate().map(|(at, item)| (at.into(), item)).collect()
            }
            Value::Object(map) => {
                let mut items: Vec<(String, Value)> = map.into_iter().collect();
                items.sort_by(|one, other| one.0.cmp(&other.0));
                items.into_iter().map(|(key, item)| (key.into(), item)).collect()
            }
            Value::Null => Vec::new(),
            _ => return Err("range needs a list or a map".into()),
        };
        if items.is_empty() {
            return self.render(&block.other, dot, out);
        }
        for (key, item) in &items {
            self.choose(block, true, item, &[(Some(key), item)], out)?;
        }
        Ok(())
    }

    /// Renders a block's body or the other one, with the block's variables.
    fn choose(
        &mut self,
        block: &Block,
        body: bool,
        dot: &Value,
        given: &[(Option<&Value>, &Value)],
        out: &mut String,
    ) -> Result<(), String> {
        let outside = self.variables.len();
        for (key, value) in given {
            match (block.names.as_slice(), key) {
                ([name], _) => self.variables.push((name.clone(), (*value).clone())),
                ([key_name, name], Some(key)) => {
                    self.variables.push((key_name.clone(), (*key).clone()));
                    self.variables.push((name.clone(), (*value).clone()));
                }
                _ => {}
            }
        }
        self.render(if body { &block.body } else { &block.other }, dot, out)?;
        self.variables.truncate(outside);
        Ok(())
    }

    fn evaluate(&self, expr: &Expr, dot: &Value) -> Result<Value, String> {
        match expr {
            Expr::Dot => Ok(dot.clone()),
            Expr::Variable(name) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                known.map(|(_, value)| value.clone()).ok_or_else(|| format!("there is no variable ${name}"))
            }
            Expr::Literal(literal) => Ok(literal.clone()),
            Expr::Fields(from, names) => {
                let from = self.evaluate(from, dot)?;
                fields(&from, names).cloned()
            }
            Expr::Label(row, name) => {
                match (self.evaluate(row, dot)?.get("Labels"), self.evaluate(name, dot)?) {
                    (Some(Value::String(_)), Value::String(name)) => {
                        Ok(self.labels.get(&name).cloned().unwrap_or_default().into())
                    }
                    (Some(labels), Value::String(name)) => {
                        Ok(labels.get(&name).map(show).unwrap_or_default().into())
                    }
                    (None, _) => Err("there is no field .Label".into()),
                    (_, name) => Err(format!("{name} is no label's name")),
                }
            }
            // These two look no further than they must.
            Expr::Call(name, arguments) if matches!(name.as_str(), "and" | "or") => {
                let mut last = Err(format!("the function \"{name}\" needs a value"));
                for argument in arguments {
                    let value = self.evaluate(argument, dot)?;
                    let decided = is_true(&value) == (name == "or");
                    last = Ok(value);
                    if decided {
                        break;
                    }
                }
                last
            }
            Expr::Call(name, arguments) => {
                let values: Vec<Value> = arguments
                    .iter()
                    .map(|argument| self.evaluate(argument, dot))
                    .collect::<Result<_, _>>()?;
                call(name, &values)
            }
        }
    }
}

fn fields<'a>(from: &'a Value, names: &[String]) -> Result<&'a Value, String> {
    let (mut at, mut above) = (from, "");
    for name in names {
        at = match at {
            Value::Object(map) => match map.get(name) {
                Some(value) => value,
                // A map has what its user wrote, an object what its kind has.
                None if above == "Labels" || OPTIONAL.contains(&name.as_str()) => &Value::Null,
                None => return Err(format!("there is no field .{name}")),
            },
            // A map that is not there has no entries either.
            Value::Null => at,
            _ => return Err(format!("there is no field .{name} in a simple value")),
        };
        above = name;
    }
    Ok(at)
}

fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let text = |text: String| Ok(Value::String(text));
    match (name, arguments) {
        ("json", [value]) => text(value.to_string()),
        ("upper", [Value::String(value)]) => text(value.to_uppercase()),
        ("lower", [Value::String(value)]) => text(value.to_lowercase()),
        ("title", [Value::String(value)]) => text(title(value)),
        ("split", [Value::String(value), Value::String(at)]) if at.is_empty() => {
            Ok(value.chars().map(String::from).collect::<Vec<_>>().into())
        }
        ("split", [Value::String(value), Value::String(at)]) => {
            Ok(value.split(at.as_str()).map(str::to_owned).collect::<Vec<_>>().into())
        }
        ("pad", [Value::String(value), before, after]) => {
            let blanks = |count: &Value| Ok::<_, String>(" ".repeat(whole(count)?.min(WIDTH_MAX)));
            text(if value.is_empty() { String::new() } else { blanks(before)? + value + &blanks(after)? })
        }
        ("truncate", [Value::String(value), most]) => text(value.chars().take(whole(most)?).collect()),
        ("len", [Value::Array(items)]) => Ok(items.len().into()),
        ("len", [Value::Object(map)]) => Ok(map.len().into()),
        ("len", [Value::String(value)]) => Ok(value.len().into()),
        ("len", [Value::Null]) => Ok(0.into()),
        ("join", [Value::Array(items), Value::String(between)]) => {
            text(items.iter().map(show).collect::<Vec<_>>().join(between))
        }
        ("join", [Value::Null, Value::String(_)]) => text(String::new()),
        ("index", [value, keys @ ..]) if !keys.is_empty() => {
            keys.iter().try_fold(value.clone(), |at, key| element(&at, key))
        }
        ("slice", [value, ends @ ..]) if ends.len() <= 2 => slice(value, ends),
        ("print", values) => text(print(values, false)),
        ("println", values) => text(print(values, true) + "\n"),
        ("printf", [Value::String(format), values @ ..]) => text(printf(format, values)?),
        ("not", [value]) => Ok((!is_true(value)).into()),
        ("eq", [one, others @ ..]) if !others.is_empty() => {
            for other in others {
                if compare(one, other)? == Some(Ordering::Equal) {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        }
        ("ne", [one, other]) => Ok((compare(one, other)? != Some(Ordering::Equal)).into()),
        ("lt" | "le" | "gt" | "ge", [Value::Bool(_) | Value::Null, _]) => {
            Err(format!("the function \"{name}\" takes numbers and strings"))
        }
        ("lt", [one, other]) => Ok(compare(one, other)?.is_some_and(Ordering::is_lt).into()),
        ("le", [one, other]) => Ok(compare(one, other)?.is_some_and(Ordering::is_le).into()),
        ("gt", [one, other]) => Ok(compare(one, other)?.is_some_and(Ordering::is_gt).into()),
        ("ge", [one, other]) => Ok(compare(one, other)?.is_some_and(Ordering::is_ge).into()),
        _ => Err(format!("the function \"{name}\" does not take these values")),
    }
}

/// What is at a key of a map or a place of a list. What a map of words has not is empty, as with Go.
fn element(at: &Value, key: &Value) -> Result<Value, String> {
    let found = match (at, key) {
        (Value::Object(map), Value::String(key)) => Some(match map.get(key) {
            Some(value) => value.clone(),
            None if map.values().all(Value::is_string) => String::new().into(),
            None => Value::Null,
        }),
        (Value::Array(items), Value::Number(at)) => {
            at.as_u64().and_then(|at| items.get(usize::try_from(at).ok()?).cloned())
        }
        (Value::Null, Value::String(_)) => Some(Value::Null),
        _ => None,
    };
    found.ok_or_else(|| format!("there is no element {key}"))
}

fn slice(value: &Value, ends: &[Value]) -> Result<Value, String> {
    let ends: Vec<usize> = ends.iter().map(whole).collect::<Result<_, _>>()?;
    let length = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        _ => return Err("slice needs a string or a list".into()),
    };
    let (from, to) = (ends.first().copied().unwrap_or(0), ends.get(1).copied().unwrap_or(length));
    let outside = || format!("there is no slice {from}:{to} of {length}");
    match value {
        Value::String(text) => text.get(from..to).map(Value::from).ok_or_else(outside),
        Value::Array(items) => items.get(from..to).map(|items| items.to_vec().into()).ok_or_else(outside),
        _ => Err(outside()),
    }
}

fn whole(value: &Value) -> Result<usize, String> {
    value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok())
        .ok_or_else(|| format!("{value} is no whole number"))
}

/// How two values of one kind are to each other; `None` for what has no order and is not equal.
fn compare(one: &Value, other: &Value) -> Result<Option<Ordering>, String> {
    match (one, other) {
        (Value::String(one), Value::String(other)) => Ok(Some(one.cmp(other))),
        (Value::Bool(one), Value::Bool(other)) => Ok(Some(one.cmp(other))),
        (Value::Number(one), Value::Number(other)) => Ok(match (one.as_i64(), other.as_i64()) {
            (Some(one), Some(other)) => Some(one.cmp(&other)),
            _ => one.as_f64().zip(other.as_f64()).and_then(|(one, other)| one.partial_cmp(&other)),
        }),
        (Value::Null, Value::Null) => Ok(Some(Ordering::Equal)),
        (Value::Null, _) | (_, Value::Null) => Ok(None),
        _ => Err(format!("{one} and {other} cannot be compared")),
    }
}

/// Each word begins with a capital.
fn title(text: &str) -> String {
    let mut before = ' ';
    let capital = |c: char| {
        let begins = before.is_whitespace();
        before = c;
        if begins { c.to_uppercase().collect::<String>() } else { c.into() }
    };
    text.chars().map(capital).collect()
}

/// Go's `Sprint` has a blank between two values that are no strings, `Sprintln` between all.
fn print(values: &[Value], all: bool) -> String {
    let mut out = String::new();
    for (at, value) in values.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|before| values.get(before));
        if before.is_some_and(|before| all || !(before.is_string() || value.is_string())) {
            out.push(' ');
        }
        out.push_str(&show(value));
    }
    out
}

fn printf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            digits.parse::<usize>().ok().map(|number| number.min(WIDTH_MAX))
        };
        let (mut to_left, mut zeros) = (false, false);
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '0' | '+' | '#')) {
            to_left |= flag == '-';
            zeros |= flag == '0';
        }
        let width = number(&mut chars).unwrap_or(0);
        let precision = chars.next_if_eq(&'.').map(|_| number(&mut chars).unwrap_or(0));
        let verb = chars.next();
        if verb == Some('%') {
            out.push('%');
            continue;
        }
        let value = values.next().ok_or("printf has fewer values than verbs")?;
        let text = match verb {
            Some('s' | 'v') => {
                let text = show(value);
                precision.map_or(text.clone(), |most| text.chars().take(most).collect())
            }
            Some('d' | 't') => show(value),
            Some('q') => Value::String(show(value)).to_string(),
            Some('f') => {
                let number = value.as_f64().ok_or_else(|| format!("%f needs a number, not {value}"))?;
                format!("{number:.*}", precision.unwrap_or(6))
            }
            _ => {
                return Err(format!("printf knows %s, %d, %v, %q, %t and %f, not %{}", verb.unwrap_or(' ')));
            }
        };
        match () {
            () if to_left => out.push_str(&format!("{text:width$}")),
            () if zeros && value.is_number() => out.push_str(&format!("{text:0>width$}")),
            () => out.push_str(&format!("{text:>width$}")),
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

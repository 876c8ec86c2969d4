//! Values spelled as Python spells them.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Deepest nesting written: request bodies are not nested deeper.
const MAX_DEPTH: usize = 200;

/// `repr(value)`, which is also what printing a value that is no string gives.
pub fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(value, MAX_DEPTH, &mut out);
    out
}

fn write_repr(value: &Value, depth: usize, out: &mut String) {
    if depth == 0 {
        out.push_str("...");
        return;
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => write_number(value, out),
        ValueKind::String => repr_str(value.as_str().unwrap_or_default(), out),
        ValueKind::Map => {
            out.push('{');
            for (index, key) in elements(value).enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(&key, depth - 1, out);
                out.push_str(": ");
                write_repr(&value.get_item(&key).unwrap_or_default(), depth - 1, out);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, element) in elements(value).enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(&element, depth - 1, out);
            }
            out.push(']');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

fn elements(value: &Value) -> impl Iterator<Item = Value> {
    value.try_iter().into_iter().flatten()
}

fn repr_str(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for letter in text.chars() {
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if letter == quote => out.extend(['\\', letter]),
            _ if letter < ' ' || letter == '\x7f' => {
                let _ = write!(out, "\\x{:02x}", u32::from(letter));
            }
            _ => out.push(letter),
        }
    }
    out.push(quote);
}

fn write_number(value: &Value, out: &mut String) {
    if value.is_integer() {
        let _ = write!(out, "{value}");
        return;
    }
    match f64::try_from(value.clone()) {
        Ok(number) => write_float(number, out),
        Err(_) => {
            let _ = write!(out, "{value}");
        }
    }
}

/// The shortest digits that read back as the same number, with an exponent below 1e-4 and from 1e16.
fn write_float(number: f64, out: &mut String) {
    if number.is_nan() {
        out.push_str("nan");
        return;
    }
    if number.is_infinite() {
        out.push_str(if number > 0.0 { "inf" } else { "-inf" });
        return;
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        let _ = write!(out, "{digits}e{sign}{exponent:0>2}");
    } else {
        let _ = write!(out, "{number:?}");
    }
}

/// Options of `json.dumps`.
pub struct JsonStyle {
    ascii: bool,
    indent: Option<String>,
    between: String,
    colon: String,
    sorted: bool,
}

impl JsonStyle {
    /// From the filter's arguments, `ensure_ascii` being off unless asked for.
    pub fn new(
        ensure_ascii: Option<Value>,
        indent: Option<Value>,
        separators: Option<Value>,
        sort_keys: Option<Value>,
    ) -> Result<Self, Error> {
        let is_set = |value: Option<Value>| value.is_some_and(|value| value.is_true());
        let given = |value: Option<Value>| value.filter(|value| !value.is_none() && !value.is_undefined());
        let indent = given(indent).map(|value| match value.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(value).unwrap_or(0).min(16)),
        });
        let (between, colon) = match given(separators) {
            None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
            Some(pair) => {
                let text = |index| {
                    let item = pair.get_item_by_index(index)?;
                    let text = item.as_str().map(str::to_owned);
                    text.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "separators must be strings"))
                };
                (text(0)?, text(1)?)
            }
        };
        Ok(Self { ascii: is_set(ensure_ascii), indent, between, colon, sorted: is_set(sort_keys) })
    }
}

/// `json.dumps(value)`.
///
/// # Errors
/// The value has no JSON form.
pub fn json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_json(value, style, 0, &mut out)?;
    Ok(out)
}

fn write_json(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "nested too deep"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => write_number(value, out),
        ValueKind::String => json_str(value.as_str().unwrap_or_default(), style.ascii, out),
        ValueKind::Map => {
            let mut keys: Vec<Value> = elements(value).collect();
            if style.sorted {
                keys.sort();
            }
            let mut first = true;
            out.push('{');
            for key in keys {
                line(style, depth + 1, &mut first, out);
                match key.as_str() {
                    Some(text) => json_str(text, style.ascii, out),
                    None => json_str(&json(&key, style)?, style.ascii, out),
                }
                out.push_str(&style.colon);
                write_json(&value.get_item(&key)?, style, depth + 1, out)?;
            }
            last_line(style, depth, first, out);
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let mut first = true;
            out.push('[');
            for element in elements(value) {
                line(style, depth + 1, &mut first, out);
                write_json(&element, style, depth + 1, out)?;
            }
            last_line(style, depth, first, out);
            out.push(']');
        }
        kind => return Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} has no JSON form"))),
    }
    Ok(())
}

fn line(style: &JsonStyle, depth: usize, first: &mut bool, out: &mut String) {
    if !std::mem::take(first) {
        out.push_str(&style.between);
    }
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

fn last_line(style: &JsonStyle, depth: usize, empty: bool, out: &mut String) {
    if let (Some(indent), false) = (&style.indent, empty) {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

fn json_str(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            _ if letter < ' ' || (ascii && letter > '~') => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            _ => out.push(letter),
        }
    }
    out.push('"');
}

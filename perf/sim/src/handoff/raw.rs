//! Members of JSON objects as they were written.

/// Deepest nesting followed.
const DEEPEST: usize = 128;

/// The text of the value of a top-level member, the last one of that name; `None` where there is none or the text is not
/// an object.
pub(crate) fn member<'a>(text: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut at = blank(text, 0);
    let mut found = None;
    if text.get(at) != Some(&b'{') {
        return None;
    }
    at = blank(text, at + 1);
    while *text.get(at)? != b'}' {
        let key_end = string(text, at)?;
        let key: String = serde_json::from_slice(&text[at..key_end]).ok()?;
        at = blank(text, key_end);
        if *text.get(at)? != b':' {
            return None;
        }
        at = blank(text, at + 1);
        let end = value(text, at, 0)?;
        if key == name {
            found = Some(&text[at..end]);
        }
        at = blank(text, end);
        match *text.get(at)? {
            b',' => at = blank(text, at + 1),
            b'}' => {}
            _ => return None,
        }
    }
    found
}

fn blank(text: &[u8], at: usize) -> usize {
    at + text[at.min(text.len())..].iter().take_while(|b| b.is_ascii_whitespace()).count()
}

/// The end of the string that begins at `at`.
fn string(text: &[u8], at: usize) -> Option<usize> {
    if *text.get(at)? != b'"' {
        return None;
    }
    let mut at = at + 1;
    loop {
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The end of the value that begins at `at`. Brackets are only counted: the caller has had the text parsed.
fn value(text: &[u8], at: usize, depth: usize) -> Option<usize> {
    match *text.get(at)? {
        b'"' => string(text, at),
        b'{' | b'[' => {
            let mut at = at + 1;
            loop {
                match *text.get(at)? {
                    b'}' | b']' => return Some(at + 1),
                    b'"' => at = string(text, at)?,
                    b'{' | b'[' if depth < DEEPEST => at = value(text, at, depth + 1)?,
                    b'{' | b'[' => return None,
                    _ => at += 1,
                }
            }
        }
        _ => {
            let ends = |b: &u8| matches!(b, b',' | b'}' | b']') || b.is_ascii_whitespace();
            Some(at + text[at..].iter().position(ends).unwrap_or(text.len() - at))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_as_they_were_written() {
        for (text, name, found) in [
            (r#"{"a":1}"#, "a", Some("1")),
            (
                r#" { "a" : { "b" : "}\"]" , "c":[1, {}] } , "d":2}"#,
                "a",
                Some(r#"{ "b" : "}\"]" , "c":[1, {}] }"#),
            ),
            (r#"{"x":{"a":1},"b":null}"#, "a", None),
            (r#"{"x":{"a":1},"b":null }"#, "b", Some("null")),
            (r#"{"\u0061":1.50,"a": 2e+3}"#, "a", Some("2e+3")),
            (r#"{"s":"\\","a":"é"}"#, "a", Some("\"é\"")),
            ("[1]", "a", None),
            ("{", "a", None),
            (r#"{"a":"#, "a", None),
        ] {
            assert_eq!(member(text.as_bytes(), name), found.map(str::as_bytes), "{text}");
        }
    }
}

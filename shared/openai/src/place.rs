//! Where in a JSON document an offset lies, in words: `messages[2].content`.
//!
//! Computed only when a body is refused, by a second and tolerant walk from the start, so that the scan itself keeps
//! no path.

use crate::json::Span;

/// Names and indices shown at most; the outermost ones are the telling ones.
const MAX_STEPS: usize = 12;
/// Characters of one name shown at most.
const MAX_NAME: usize = 40;
/// Containers followed at most; deeper ones are counted as part of the last.
const MAX_FRAMES: usize = 256;

enum Frame {
    Object { key: Option<Span>, naming: bool },
    Array { index: usize },
}

/// The path of the value that lies at or begins at `offset`; empty for the document itself.
pub(crate) fn place(body: &[u8], offset: usize) -> String {
    let mut frames: Vec<Frame> = Vec::new();
    let mut at = 0;
    while at < offset.min(body.len()) {
        match body[at] {
            b'{' if frames.len() < MAX_FRAMES => frames.push(Frame::Object { key: None, naming: true }),
            b'[' if frames.len() < MAX_FRAMES => frames.push(Frame::Array { index: 0 }),
            b'}' | b']' => {
                frames.pop();
            }
            b',' => match frames.last_mut() {
                Some(Frame::Array { index }) => *index += 1,
                Some(Frame::Object { key, naming }) => (*key, *naming) = (None, true),
                None => {}
            },
            b'"' => {
                let end = string_end(body, at + 1);
                if end >= offset {
                    break;
                }
                if let Some(Frame::Object { key, naming }) = frames.last_mut()
                    && *naming
                {
                    (*key, *naming) = (Some(Span { start: at + 1, end }), false);
                }
                at = end;
            }
            _ => {}
        }
        at += 1;
    }
    render(body, &frames)
}

/// Offset of the closing quote, or the body's end.
fn string_end(body: &[u8], mut at: usize) -> usize {
    while let Some(byte) = body.get(at) {
        match byte {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    body.len()
}

fn render(body: &[u8], frames: &[Frame]) -> String {
    let mut path = String::new();
    for (step, frame) in frames.iter().enumerate() {
        if step == MAX_STEPS {
            path.push('…');
            break;
        }
        match frame {
            Frame::Array { index } => path.push_str(&format!("[{index}]")),
            Frame::Object { key: Some(key), .. } => {
                let name = String::from_utf8_lossy(key.of(body));
                let plain = !name.is_empty()
                    && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
                let mut shown: String = name.chars().take(MAX_NAME).collect();
                if shown.len() < name.len() {
                    shown.push('…');
                }
                if !plain {
                    path.push_str(&format!("[\"{shown}\"]"));
                } else {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(&shown);
                }
            }
            Frame::Object { key: None, .. } => {}
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn offsets_have_places() {
        // `^` marks the offset asked for.
        let table = [
            (r#"^{"a":1}"#, ""),
            (r#"{^"a":1}"#, ""),
            (r#"{"a":^1}"#, "a"),
            (r#"{"a":1, "b" : ^2}"#, "b"),
            (r#"{"messages":[{"role":"u"},{"content":^5}]}"#, "messages[1].content"),
            (r#"{"messages":[1,[2,^3]]}"#, "messages[1][1]"),
            (r#"{"a":{"b":[]},"c":^0}"#, "c"),
            (r#"{"a":"x^y"}"#, "a"),
            (r#"{"a":"\"}^"}"#, "a"),
            (r#"{"a b":^1}"#, "[\"a b\"]"),
            (r#"{"x":{"":^1}}"#, "x[\"\"]"),
            (r#"{"a":1^"#, "a"),
            (r#"[[^"#, "[0][0]"),
            (r#"]}]^"#, ""),
        ];
        for (marked, expected) in table {
            let offset = marked.find('^').expect("every row has a mark");
            let body = marked.replace('^', "");
            assert_eq!(place(body.as_bytes(), offset), expected, "{marked}");
        }
    }

    #[test]
    fn places_stay_short() {
        let deep = "[".repeat(100_000);
        assert!(place(deep.as_bytes(), deep.len()).len() < 64);
        let long = format!("{{\"{}\":1}}", "k".repeat(10_000));
        assert!(place(long.as_bytes(), long.len() - 2).len() < 64);
    }
}

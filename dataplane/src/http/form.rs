//! Multipart forms (RFC 7578), as far as the field that names the model.
//!
//! The scanner is shown the beginning of a body, longer from call to call, and goes on where it stopped. It looks at the
//! parts' heads and for the borders between them; what a file holds is passed over.

use memchr::memmem::Finder;

/// Longest boundary (RFC 2046).
const MAX_BOUNDARY: usize = 70;
/// Longest head of a part, bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Longest name of a model, bytes.
const MAX_NAME: usize = 1024;

/// What the beginning of a form shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Not enough.
    Nothing,
    /// The model's name.
    Model(String),
    /// The form has ended without one.
    End,
    /// This is no form.
    Bad(&'static str),
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before the first border.
    Preamble,
    /// Behind a border's name.
    Border,
    /// In a part's head.
    Head,
    /// In the part that names the model.
    Value,
    /// In another part.
    Part,
    /// Nothing more is looked for.
    Over,
}

/// Looks for the model's field.
#[derive(Debug)]
pub struct FormScan {
    /// A line's end and the border.
    border: Finder<'static>,
    state: State,
    at: usize,
}

/// Whether a `Content-Type` is that of a form.
pub fn is_form(content_type: &[u8]) -> bool {
    let media = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    media.trim_ascii().eq_ignore_ascii_case(b"multipart/form-data")
}

impl FormScan {
    /// For a body of this `Content-Type`; `None` where it names no proper boundary.
    pub fn new(content_type: &[u8]) -> Option<Self> {
        let boundary = parameter(content_type, b"boundary")?;
        let good = (1..=MAX_BOUNDARY).contains(&boundary.len())
            && boundary.iter().all(|byte| (b' '..=b'~').contains(byte))
            && boundary.last() != Some(&b' ');
        let border = [b"\r\n--", boundary.as_slice()].concat();
        good.then(|| Self { border: Finder::new(&border).into_owned(), state: State::Preamble, at: 0 })
    }

    /// Looks at the body's beginning, which has grown since the last call.
    pub fn look(&mut self, body: &[u8]) -> Found {
        loop {
            let rest = body.get(self.at..).unwrap_or_default();
            match self.state {
                State::Preamble => {
                    // The first border needs no line before it.
                    let bare = self.border.needle().get(2..).unwrap_or_default();
                    if self.at == 0 && rest.len() < bare.len() && bare.starts_with(rest) {
                        return Found::Nothing;
                    }
                    if self.at == 0 && rest.starts_with(bare) {
                        self.at = bare.len();
                        self.state = State::Border;
                    } else if !self.pass_border(rest) {
                        return Found::Nothing;
                    }
                }
                State::Border => match rest {
                    [b'-', b'-', ..] => {
                        self.state = State::Over;
                        return Found::End;
                    }
                    [] | [b'-'] => return Found::Nothing,
                    _ => {
                        // White space may pad the line.
                        let padding = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
                        match rest.get(padding..).unwrap_or_default() {
                            [b'\r', b'\n', ..] if padding < MAX_HEAD => {
                                // Its own end is the end of a head without lines.
                                self.at += padding;
                                self.state = State::Head;
                            }
                            [] | [b'\r'] if padding < MAX_HEAD => return Found::Nothing,
                            _ => return self.bad("a form's border is followed by something else"),
                        }
                    }
                },
                State::Head => {
                    let seen = rest.get(..MAX_HEAD).unwrap_or(rest);
                    let Some(end) = memchr::memmem::find(seen, b"\r\n\r\n") else {
                        if rest.len() >= MAX_HEAD {
                            return self.bad("the head of a form's part is too long");
                        }
                        return Found::Nothing;
                    };
                    let model = names_model(rest.get(..end).unwrap_or_default());
                    // The line's end before a border may be the head's own.
                    self.at += end + 2;
                    if model {
                        self.at += 2;
                    }
                    self.state = if model { State::Value } else { State::Part };
                }
                State::Value => {
                    let border = self.border.needle();
                    let longest = MAX_NAME + border.len();
                    let seen = rest.get(..longest).unwrap_or(rest);
                    let empty = border.get(2..).unwrap_or_default();
                    let end = if rest.starts_with(empty) { Some(0) } else { self.border.find(seen) };
                    let Some(end) = end else {
                        if rest.len() >= longest {
                            return self.bad("the form's `model` is too long");
                        }
                        return Found::Nothing;
                    };
                    let Ok(name) = std::str::from_utf8(rest.get(..end).unwrap_or_default()) else {
                        return self.bad("the form's `model` is not UTF-8");
                    };
                    self.state = State::Over;
                    return Found::Model(name.trim().to_owned());
                }
                State::Part => {
                    if !self.pass_border(rest) {
                        return Found::Nothing;
                    }
                }
                State::Over => return Found::End,
            }
        }
    }

    /// Goes behind the next border; without one, to where it may have begun.
    fn pass_border(&mut self, rest: &[u8]) -> bool {
        let length = self.border.needle().len();
        match self.border.find(rest) {
            Some(at) => {
                self.at += at + length;
                self.state = State::Border;
                true
            }
            None => {
                self.at += rest.len().saturating_sub(length - 1);
                false
            }
        }
    }

    fn bad(&mut self, what: &'static str) -> Found {
        self.state = State::Over;
        Found::Bad(what)
    }
}

/// Whether a part's head is that of the field `model`.
fn names_model(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n').any(|line| {
        let Some(colon) = memchr::memchr(b':', line) else { return false };
        let (name, value) = line.split_at(colon);
        name.trim_ascii().eq_ignore_ascii_case(b"content-disposition")
            && parameter(value, b"name").as_deref() == Some(b"model")
            && parameter(value, b"filename").is_none()
    })
}

/// A parameter of a field's value: a token, or quoted.
fn parameter(value: &[u8], wanted: &[u8]) -> Option<Vec<u8>> {
    let mut rest = value;
    loop {
        let start = memchr::memchr(b';', rest)? + 1;
        rest = rest.get(start..)?.trim_ascii_start();
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b';')).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let is_wanted = name.trim_ascii().eq_ignore_ascii_case(wanted);
        rest = after;
        let [b'=', after @ ..] = after else { continue };
        let after = after.trim_ascii_start();
        if let [b'"', quoted @ ..] = after {
            let (text, length) = unquote(quoted)?;
            if is_wanted {
                return Some(text);
            }
            rest = quoted.get(length..)?;
        } else {
            let end = memchr::memchr(b';', after).unwrap_or(after.len());
            let (text, behind) = after.split_at(end);
            if is_wanted {
                return Some(text.trim_ascii().to_vec());
            }
            rest = behind;
        }
    }
}

/// The text up to the closing quote, and the bytes that it takes with the quote. `None` where there is none.
fn unquote(quoted: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut text, mut at) = (Vec::new(), 0);
    loop {
        match quoted.get(at..)? {
            [b'"', ..] => return Some((text, at + 1)),
            [b'\\', escaped @ (b'"' | b'\\'), ..] => {
                text.push(*escaped);
                at += 2;
            }
            [byte, ..] => {
                text.push(*byte);
                at += 1;
            }
            [] => return None,
        }
    }
}

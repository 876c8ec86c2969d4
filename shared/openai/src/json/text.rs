//! Decoding of strings and their escapes.

use std::borrow::Cow;

use memchr::memchr;

use super::{Fault, MAX_KNOWN_KEY, Parsed, Text, What};

/// Decodes a key into a small buffer; empty if it does not fit.
pub(super) fn short<'k>(body: &[u8], text: Text, buffer: &'k mut [u8; MAX_KNOWN_KEY]) -> &'k [u8] {
    let mut length = 0;
    let fits = pieces(body, text, |piece| {
        if let Some(room) = buffer.get_mut(length..length + piece.len()) {
            room.copy_from_slice(piece);
        }
        length += piece.len();
    });
    match fits {
        Ok(()) => buffer.get(..length).unwrap_or_default(),
        Err(_) => &[],
    }
}

/// Calls `sink` with the decoded bytes of a string, piece by piece.
#[inline]
pub(crate) fn pieces(body: &[u8], text: Text, mut sink: impl FnMut(&[u8])) -> Parsed<()> {
    let bytes = text.span.of(body);
    if !text.escaped {
        sink(bytes);
        return Ok(());
    }
    let mut at = 0;
    while let Some(run) = memchr(b'\\', bytes.get(at..).unwrap_or_default()) {
        if run > 0 {
            sink(&bytes[at..at + run]);
        }
        at += run;
        let (decoded, length) = escape(bytes, at).map_err(|what| Fault { at: text.span.start + at, what })?;
        sink(decoded.encode_utf8(&mut [0; 4]).as_bytes());
        at += length;
    }
    if let Some(tail) = bytes.get(at..)
        && !tail.is_empty()
    {
        sink(tail);
    }
    Ok(())
}

/// A string's decoded value; borrowed unless it holds an escape.
pub(crate) fn decode<'b>(body: &'b [u8], text: Text) -> Cow<'b, str> {
    let bytes = text.span.of(body);
    if !text.escaped {
        return String::from_utf8_lossy(bytes);
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    // A fault cannot happen in a string that the cursor has accepted; what was decoded so far is kept if it does.
    let _ = pieces(body, text, |piece| decoded.extend_from_slice(piece));
    Cow::Owned(String::from_utf8(decoded).unwrap_or_default())
}

/// Decodes the escape whose backslash is at `at`: its character and its length in bytes.
#[inline]
pub(crate) fn escape(bytes: &[u8], at: usize) -> Result<(char, usize), What> {
    let plain = match bytes.get(at + 1) {
        Some(b'n') => '\n',
        Some(b'"') => '"',
        Some(b'\\') => '\\',
        Some(b'/') => '/',
        Some(b't') => '\t',
        Some(b'r') => '\r',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'u') => return unicode(bytes, at),
        Some(_) => return Err(What::Escape),
        None => return Err(What::End),
    };
    Ok((plain, 2))
}

fn unicode(bytes: &[u8], at: usize) -> Result<(char, usize), What> {
    let high = hex4(bytes, at + 2)?;
    match high {
        0xDC00..=0xDFFF => Err(What::Surrogate),
        0xD800..=0xDBFF => {
            if bytes.get(at + 6) != Some(&b'\\') || bytes.get(at + 7) != Some(&b'u') {
                return Err(What::Surrogate);
            }
            let low = hex4(bytes, at + 8)?;
            if !(0xDC00..=0xDFFF).contains(&low) {
                return Err(What::Surrogate);
            }
            let code = 0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00);
            char::from_u32(code).map(|decoded| (decoded, 12)).ok_or(What::Surrogate)
        }
        _ => char::from_u32(high).map(|decoded| (decoded, 6)).ok_or(What::Surrogate),
    }
}

fn hex4(bytes: &[u8], at: usize) -> Result<u32, What> {
    let mut value = 0;
    for offset in 0..4 {
        let byte = *bytes.get(at + offset).ok_or(What::End)?;
        let digit = char::from(byte).to_digit(16).ok_or(What::Escape)?;
        value = value << 4 | digit;
    }
    Ok(value)
}

//! The canonical prompt: the bytes that block hashes are taken over.
//!
//! Routing by prefix needs bytes that are equal for two requests as far as their engines would render equal tokens.
//! The JSON text is not that: spacing, escapes, member order and marks such as `cache_control` change between two
//! turns of one conversation. So the prompt is written anew, in the order in which engines render it: tool
//! definitions, then the system prompt, then the messages. One more turn only appends.
//!
//! Each item is a tag (byte 0xFF, which UTF-8 text never holds, and a letter) and its text, so that two different prompts
//! of strings never give the same bytes. Text is escaped where JSON asks for it and as briefly as it allows: what most
//! clients write needs no copy, and others come to the same. Token ids are little-endian `u32` after their tag.
//!
//! Left out is what templates do not render and clients vary: identifiers of messages and tool calls, `cache_control`,
//! `status`, and the billing line that one coding agent puts, with a new hash in it, before every system prompt. A
//! string and the same string as the only text part are equal. Members of messages, parts and tools may come in any
//! order (of members that occur twice here, which of them counts is not defined); inside the schema of a tool and other deep values the order is the client's, as it is when rendered.

mod emit;
mod item;

use crate::api::Api;
use crate::json::{Cursor, Kind, Parsed, Span};
use crate::scan::Scan;
use emit::{Out, value};
use item::{content, definition, message, part};

/// Writes the canonical prompt of a scanned body into `sink`, in pieces. `body` and `api` must be those given to
/// [`scan`](crate::scan()); with others the result means nothing. Nothing is allocated for ordinary requests.
pub fn canonical(body: &[u8], scan: &Scan<'_>, api: Api, sink: &mut impl FnMut(&[u8])) {
    let mut out = Out::new(body, scan.longs, sink);
    // The scan accepted these bytes, so a fault can only mean that they are not the scanned ones.
    let _ = prompt(&mut out, body, scan, api);
    out.flush();
}

fn prompt(out: &mut Out<'_, '_>, body: &[u8], scan: &Scan<'_>, api: Api) -> Parsed<()> {
    let spans = &scan.prompt;
    let at = |span: Span| Cursor::checked(body, span.start, scan.longs);
    for span in [spans.tools, spans.functions].into_iter().flatten() {
        let mut cursor = at(span);
        match cursor.kind()? {
            Kind::Array => cursor.array(1, "", |cursor, depth| definition(out, cursor, depth))?,
            _ => value(out, &mut cursor, 1)?,
        }
    }
    if let Some(span) = spans.system {
        out.tagged(emit::MESSAGE, b"system");
        content(out, &mut at(span), 1, true)?;
    }
    if let Some(span) = spans.messages {
        let mut cursor = at(span);
        match cursor.kind()? {
            Kind::Array => cursor.array(1, "", |cursor, depth| message(out, cursor, depth))?,
            _ => value(out, &mut cursor, 1)?,
        }
    }
    if let Some(span) = spans.text {
        let mut cursor = at(span);
        match (api, cursor.kind()?) {
            (Api::Responses, Kind::String) => {
                out.tagged(emit::MESSAGE, b"user");
                content(out, &mut cursor, 1, false)?;
            }
            (Api::Responses, Kind::Array) => {
                cursor.array(1, "", |cursor, depth| message(out, cursor, depth))?
            }
            _ => texts(out, &mut cursor, 1)?,
        }
    }
    for (tag, span) in [(emit::QUERY, spans.query), (emit::DOCUMENTS, spans.documents)] {
        if let Some(span) = span {
            out.tag(tag);
            texts(out, &mut at(span), 1)?;
        }
    }
    Ok(())
}

/// Plain text in its several forms: a string, token ids, an object, or an array of those.
fn texts(out: &mut Out<'_, '_>, cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    if cursor.kind()? != Kind::Array {
        return one_text(out, cursor, depth);
    }
    let mut ids = false;
    cursor.array(depth, "", |cursor, depth| match cursor.kind()? {
        Kind::Number => {
            if !ids {
                out.tag(emit::TOKENS);
                ids = true;
            }
            token(out, cursor)
        }
        _ => {
            ids = false;
            one_text(out, cursor, depth)
        }
    })
}

fn one_text(out: &mut Out<'_, '_>, cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    match cursor.kind()? {
        Kind::String => {
            out.tag(emit::INPUT);
            out.string(cursor)
        }
        Kind::Array => {
            out.tag(emit::TOKENS);
            cursor.array(depth, "", |cursor, depth| match cursor.kind()? {
                Kind::Number => token(out, cursor),
                _ => value(out, cursor, depth),
            })
        }
        Kind::Object => {
            out.tag(emit::INPUT);
            part(out, cursor, depth)
        }
        _ => value(out, cursor, depth),
    }
}

/// A token id as the engines' own events carry it; what is none is written as it stands.
fn token(out: &mut Out<'_, '_>, cursor: &mut Cursor<'_>) -> Parsed<()> {
    let start = cursor.at;
    let mut id = Some(0u32);
    while let Some(digit @ b'0'..=b'9') = cursor.peek() {
        id = id.and_then(|id| id.checked_mul(10)?.checked_add(u32::from(digit - b'0')));
        cursor.at += 1;
    }
    if let (Some(id), Some(b',' | b']' | b' ' | b'\n' | b'\r' | b'\t')) = (id, cursor.peek()) {
        out.put(&id.to_le_bytes());
        return Ok(());
    }
    cursor.at = start;
    let digits = cursor.number()?.of(cursor.body);
    out.tagged(emit::SCALAR, digits);
    Ok(())
}

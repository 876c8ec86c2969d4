//! Messages, their content, tool calls and tool definitions.

use std::cmp::Ordering;

use super::emit::{
    CACHE_CONTROL, CALL, CONTENT, DEFINITION, KEY, MESSAGE, NAME, Out, PART, REASONING, STRING, value,
};
use crate::json::{Cursor, Key, Kind, Parsed, Text, decode};

/// Members of a part that are sorted; further ones are left out of the prompt's identity.
const MAX_REST: usize = 16;

/// A text block that one coding agent puts before the system prompt and changes with every request. It says nothing to
/// the model, and would hide that the rest is the same.
const BILLING: &[u8] = b"x-anthropic-billing-header";

/// Where a member's value lies. A string keeps its end, so that it is not searched twice.
#[derive(Clone, Copy, Debug)]
enum Found {
    Text(Text),
    At(usize),
}

/// Passes over a value and remembers it; `null` counts as absent.
fn found(cursor: &mut Cursor<'_>, depth: u32) -> Parsed<Option<Found>> {
    let start = match cursor.kind()? {
        Kind::String => return cursor.string().map(|text| Some(Found::Text(text))),
        Kind::Null => return cursor.literal("null").map(|()| None),
        _ => cursor.at,
    };
    cursor.skip(depth)?;
    Ok(Some(Found::At(start)))
}

fn found_value(out: &mut Out<'_, '_>, value_at: Found, depth: u32) -> Parsed<()> {
    match value_at {
        Found::Text(text) => out.tagged_text(STRING, text),
        Found::At(at) => value(out, &mut out.cursor(at), depth),
    }
}

/// Members of an object that have no place of their own, written in the order of their names.
struct Rest {
    items: [(Text, Option<Found>); MAX_REST],
    length: usize,
}

impl Rest {
    fn new() -> Self {
        Self { items: [(Text::default(), None); MAX_REST], length: 0 }
    }

    fn add(&mut self, body: &[u8], key: &Key<'_>, value_at: Option<Found>) {
        let held = self.items.get(..self.length).unwrap_or_default();
        match held.binary_search_by(|(known, _)| compare(body, *known, key.text)) {
            Ok(at) => self.items[at].1 = value_at,
            Err(at) if self.length < MAX_REST => {
                self.items.copy_within(at..self.length, at + 1);
                self.items[at] = (key.text, value_at);
                self.length += 1;
            }
            Err(_) => {}
        }
    }

    fn write(&self, out: &mut Out<'_, '_>, depth: u32) -> Parsed<()> {
        for (key, value_at) in self.items.iter().take(self.length) {
            if let Some(value_at) = value_at {
                out.tagged_text(KEY, *key)?;
                found_value(out, *value_at, depth)?;
            }
        }
        Ok(())
    }
}

/// Compares names as decoded; only an escaped name costs a decoding.
fn compare(body: &[u8], one: Text, other: Text) -> Ordering {
    if !one.escaped && !other.escaped {
        return one.span.of(body).cmp(other.span.of(body));
    }
    decode(body, one).cmp(&decode(body, other))
}

/// A message of any API, or an item of the Responses API that has no role. Its content follows its role, whatever
/// comes between them in the JSON.
pub(super) fn message(out: &mut Out<'_, '_>, cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    if cursor.kind()? != Kind::Object {
        return value(out, cursor, depth);
    }
    let start = cursor.at;
    let [mut role, mut name, mut text, mut reasoning, mut calls, mut call] = [None; 6];
    let mut begun = false;
    cursor.object(depth, "", |cursor, key, depth| {
        let slot = match key.name {
            b"content" => {
                if let (Some(Found::Text(role)), Kind::String | Kind::Array) = (role, cursor.kind()?) {
                    begun = true;
                    return role_and_content(out, role, cursor, depth);
                }
                &mut text
            }
            b"role" => &mut role,
            b"name" => &mut name,
            b"reasoning" | b"reasoning_content" => &mut reasoning,
            b"tool_calls" => &mut calls,
            b"function_call" => &mut call,
            _ => return cursor.skip(depth),
        };
        *slot = found(cursor, depth)?;
        Ok(())
    })?;
    let inner = depth + 1;
    let Some(Found::Text(role)) = role else {
        return part(out, &mut out.cursor(start), depth);
    };
    match text {
        Some(Found::Text(text)) => {
            out.tagged_text(MESSAGE, role)?;
            out.tagged_text(CONTENT, text)?;
        }
        Some(Found::At(at)) => role_and_content(out, role, &mut out.cursor(at), inner)?,
        None if !begun => out.tagged_text(MESSAGE, role)?,
        None => {}
    }
    for (tag, value_at) in [(NAME, name), (REASONING, reasoning)] {
        if let Some(value_at) = value_at {
            out.tag(tag);
            found_value(out, value_at, inner)?;
        }
    }
    if let Some(Found::At(at)) = calls {
        let mut cursor = out.cursor(at);
        match cursor.kind()? {
            Kind::Array => cursor.array(inner, "", |cursor, depth| tool_call(out, cursor, depth))?,
            _ => value(out, &mut cursor, inner)?,
        }
    }
    match call {
        Some(Found::At(at)) => tool_call(out, &mut out.cursor(at), inner),
        _ => Ok(()),
    }
}

fn role_and_content(out: &mut Out<'_, '_>, role: Text, cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    out.tagged_text(MESSAGE, role)?;
    let system = out.is(role, "system");
    content(out, cursor, depth, system)
}

/// A call of a function by the model. Its id is left out: few templates render it.
fn tool_call(out: &mut Out<'_, '_>, cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    if cursor.kind()? != Kind::Object {
        return value(out, cursor, depth);
    }
    let [mut name, mut arguments, mut function] = [None; 3];
    cursor.object(depth, "", |cursor, key, depth| {
        let slot = match key.name {
            b"name" => &mut name,
            b"arguments" => &mut arguments,
            b"function" => &mut function,
            _ => return cursor.skip(depth),
        };
        *slot = found(cursor, depth)?;
        Ok(())
    })?;
    if let Some(Found::At(at)) = function {
        return tool_call(out, &mut out.cursor(at), depth + 1);
    }
    out.tag(CALL);
    for value_at in [name, arguments].into_iter().flatten() {
        found_value(out, value_at, depth + 1)?;
    }
    Ok(())
}

/// A message's content: a string, or an array of parts.
pub(super) fn content(
    out: &mut Out<'_, '_>,
    cursor: &mut Cursor<'_>,
    depth: u32,
    system: bool,
) -> Parsed<()> {
    match cursor.kind()? {
        Kind::String => {
            out.tag(CONTENT);
            out.string(cursor)
        }
        Kind::Array => cursor.array(depth, "", |cursor, depth| match cursor.kind()? {
            Kind::String => {
                out.tag(CONTENT);
                out.string(cursor)
            }
            Kind::Object => content_part(out, cursor, depth, system),
            _ => value(out, cursor, depth),
        }),
        _ => value(out, cursor, depth),
    }
}

/// An object in a place for content.
pub(super) fn part(out: &mut Out<'_, '_>, cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    content_part(out, cursor, depth, false)
}

fn content_part(out: &mut Out<'_, '_>, cursor: &mut Cursor<'_>, depth: u32, system: bool) -> Parsed<()> {
    let [mut kind, mut text, mut nested] = [None; 3];
    let mut begun = false;
    let mut rest = Rest::new();
    cursor.object(depth, "", |cursor, key, depth| {
        match key.name {
            b"type" => kind = found(cursor, depth)?,
            b"text" => text = found(cursor, depth)?,
            b"content" => match (kind, cursor.kind()?) {
                (Some(kind), Kind::Array) if !begun && !plain(out, kind) => {
                    begun = true;
                    out.tag(PART);
                    found_value(out, kind, depth)?;
                    content(out, cursor, depth, false)?;
                }
                _ => nested = found(cursor, depth)?,
            },
            CACHE_CONTROL | b"id" | b"call_id" | b"tool_use_id" | b"tool_call_id" | b"status" => {
                cursor.skip(depth)?;
            }
            _ => {
                let value_at = found(cursor, depth)?;
                rest.add(cursor.body, key, value_at);
            }
        }
        Ok(())
    })?;
    if let Some(Found::Text(text)) = text
        && kind.is_none_or(|kind| plain(out, kind))
    {
        if system && out.begins(text, BILLING) {
            return Ok(());
        }
        return out.tagged_text(CONTENT, text);
    }
    if !begun {
        out.tag(PART);
        if let Some(kind) = kind {
            found_value(out, kind, depth + 1)?;
        }
    }
    match nested {
        Some(Found::Text(text)) => out.tagged_text(CONTENT, text)?,
        Some(Found::At(at)) => {
            content(out, &mut out.cursor(at), depth + 1, false)?;
        }
        None => {}
    }
    if let Some(text) = text {
        found_value(out, text, depth + 1)?;
    }
    rest.write(out, depth + 1)
}

/// Whether a part of that type is text and nothing else.
fn plain(out: &Out<'_, '_>, kind: Found) -> bool {
    let Found::Text(kind) = kind else { return false };
    out.is(kind, "text") || out.is(kind, "input_text") || out.is(kind, "output_text")
}

/// A tool's definition, in any API's form: its name, its description and its schema, whatever their order.
pub(super) fn definition(out: &mut Out<'_, '_>, cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    if cursor.kind()? != Kind::Object {
        return value(out, cursor, depth);
    }
    let [mut name, mut description, mut schema] = [None; 3];
    let mut wrapped = false;
    let mut begun = false;
    let mut rest = Rest::new();
    cursor.object(depth, "", |cursor, key, depth| {
        let slot = match key.name {
            b"function" if cursor.kind()? == Kind::Object => {
                wrapped = true;
                return definition(out, cursor, depth);
            }
            b"parameters" | b"input_schema" => {
                if let (Some(name), Some(description), Kind::Object) = (name, description, cursor.kind()?)
                    && !begun
                {
                    begun = true;
                    out.tag(DEFINITION);
                    found_value(out, name, depth)?;
                    found_value(out, description, depth)?;
                    return value(out, cursor, depth);
                }
                &mut schema
            }
            b"name" => &mut name,
            b"description" => &mut description,
            CACHE_CONTROL | b"type" | b"strict" => return cursor.skip(depth),
            _ => {
                let value_at = found(cursor, depth)?;
                rest.add(cursor.body, key, value_at);
                return Ok(());
            }
        };
        *slot = found(cursor, depth)?;
        Ok(())
    })?;
    if wrapped {
        return Ok(());
    }
    if !begun {
        out.tag(DEFINITION);
        for value_at in [name, description].into_iter().flatten() {
            found_value(out, value_at, depth + 1)?;
        }
    }
    if let Some(schema) = schema {
        found_value(out, schema, depth + 1)?;
    }
    rest.write(out, depth + 1)
}

//! Edits of one body, and the pieces that come of them.

use bytes::Bytes;

use super::{Located, MAX_OCCURRENCES, Member, Place};
use crate::json::Span;

/// Pieces of an edited body at most. A hand-off's usual edits make ten or fewer.
pub const MAX_PIECES: usize = 2 * (MAX_OCCURRENCES + 1) + 2 * MEMBERS;

const MEMBERS: usize = Member::ALL.len();

/// Stretches up to this length are copied into the new text instead of being a piece of their own: a piece costs its
/// reader an entry of a vectored write, which is more than the copy.
const COPIED: usize = 64;

/// What happens to an occurrence of a member.
#[derive(Clone, Debug, Default)]
enum Change {
    #[default]
    Keep,
    Remove,
    Value(Bytes),
}

/// Changes to a body, collected one by one. A later change of a member replaces an earlier one. Values are JSON of the
/// caller's; they are not checked, and those longer than a few words go out by reference.
#[derive(Debug)]
pub struct Edits<'b> {
    pub(super) located: &'b Located,
    pub(super) body: &'b Bytes,
    changes: [Change; MAX_OCCURRENCES],
    inserts: [Option<Bytes>; MEMBERS],
}

impl<'b> Edits<'b> {
    /// No change yet. `located` must have been read from this `body`.
    pub fn new(located: &'b Located, body: &'b Bytes) -> Self {
        Self { located, body, changes: Default::default(), inserts: Default::default() }
    }

    /// Gives the member this value, in each of its occurrences; one that is absent is inserted.
    pub fn set(self, member: Member, value: impl Into<Bytes>) -> Self {
        let value = value.into();
        if self.located.value(member).is_none() {
            self.insert(member, value)
        } else {
            self.change(member, value)
        }
    }

    /// Gives the member this value in each of its occurrences, if it has any.
    pub fn set_if_present(self, member: Member, value: impl Into<Bytes>) -> Self {
        let value = value.into();
        if self.located.value(member).is_none() { self } else { self.change(member, value) }
    }

    /// Takes every occurrence of the member away, and what was to be inserted under its name.
    pub fn remove(mut self, member: Member) -> Self {
        self.each(member, &Change::Remove);
        self
    }

    /// Puts the member first in the body, whatever the body says about it: occurrences of its own are taken away.
    pub fn insert(mut self, member: Member, value: impl Into<Bytes>) -> Self {
        self.each(member, &Change::Remove);
        if let Some(slot) = self.inserts.get_mut(member as usize) {
            *slot = Some(value.into());
        }
        self
    }

    fn change(mut self, member: Member, value: Bytes) -> Self {
        self.each(member, &Change::Value(value));
        self
    }

    fn each(&mut self, member: Member, change: &Change) {
        if let Some(slot) = self.inserts.get_mut(member as usize) {
            *slot = None;
        }
        for (place, slot) in self.located.places().iter().zip(&mut self.changes) {
            if place.member == member {
                *slot = change.clone();
            }
        }
    }

    /// The edited body.
    pub fn finish(self) -> Edited {
        let mut writer = Writer { body: self.body, at: 0, parts: Vec::with_capacity(8), text: Vec::new() };
        let removed = self.changes.iter().filter(|change| matches!(change, Change::Remove)).count();
        if self.inserts.iter().any(Option::is_some) {
            writer.keep_to(self.located.inside);
            self.insert_into(&mut writer, removed < self.located.total);
        }
        // Removed members before the first that stays take the comma after them along, all others the one before.
        let mut leading = 0;
        for (place, change) in self.located.places().iter().zip(self.changes) {
            match change {
                Change::Keep => {}
                Change::Remove => {
                    let span = if place.index == leading {
                        leading += 1;
                        with_comma_after(self.body, place)
                    } else {
                        with_comma_before(self.body, place)
                    };
                    writer.keep_to(span.start);
                    writer.at = span.end;
                }
                Change::Value(value) => {
                    writer.keep_to(place.value.start);
                    writer.value(value);
                    writer.at = place.value.end;
                }
            }
        }
        writer.finish()
    }

    fn insert_into(&self, writer: &mut Writer<'_>, more: bool) {
        let mut first = true;
        for (member, value) in Member::ALL.iter().zip(&self.inserts) {
            let Some(value) = value else { continue };
            writer.text(if first { b"\"" } else { b",\"" });
            writer.text(member.name().as_bytes());
            writer.text(b"\":");
            writer.value(value.clone());
            first = false;
        }
        if more {
            writer.text(b",");
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

fn with_comma_after(body: &[u8], place: &Place) -> Span {
    let rest = body.get(place.value.end..).unwrap_or_default();
    let spaces = rest.iter().take_while(|&&byte| is_space(byte)).count();
    let comma = rest.get(spaces) == Some(&b',');
    let end = place.value.end + if comma { spaces + 1 } else { 0 };
    Span { start: place.key, end }
}

fn with_comma_before(body: &[u8], place: &Place) -> Span {
    let before = body.get(..place.key).unwrap_or_default();
    let spaces = before.iter().rev().take_while(|&&byte| is_space(byte)).count();
    let comma = before.len().checked_sub(spaces + 1).filter(|&at| before.get(at) == Some(&b','));
    Span { start: comma.unwrap_or(place.key), end: place.value.end }
}

/// A piece, as long as the new text is still being written.
enum Part {
    Body(Span),
    Text(Span),
    Value(Bytes),
}

struct Writer<'b> {
    body: &'b Bytes,
    /// What of the body is dealt with.
    at: usize,
    parts: Vec<Part>,
    text: Vec<u8>,
}

impl Writer<'_> {
    /// Takes over the body from where it stands.
    fn keep_to(&mut self, end: usize) {
        let span = Span { start: self.at, end: end.min(self.body.len()) };
        self.at = self.at.max(end);
        if span.end.saturating_sub(span.start) > COPIED {
            self.parts.push(Part::Body(span));
        } else {
            self.text(span.of(self.body));
        }
    }

    fn text(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.text.len();
        self.text.extend_from_slice(bytes);
        let end = self.text.len();
        match self.parts.last_mut() {
            Some(Part::Text(span)) => span.end = end,
            _ => self.parts.push(Part::Text(Span { start, end })),
        }
    }

    fn value(&mut self, value: Bytes) {
        if value.len() > COPIED { self.parts.push(Part::Value(value)) } else { self.text(&value) }
    }

    fn finish(mut self) -> Edited {
        if self.at == 0 {
            return Edited { length: self.body.len(), pieces: vec![self.body.clone()] };
        }
        self.keep_to(self.body.len());
        let text = Bytes::from(self.text);
        let pieces: Vec<Bytes> = self
            .parts
            .into_iter()
            .map(|part| match part {
                Part::Body(span) => self.body.slice(span.start..span.end),
                Part::Text(span) => text.slice(span.start..span.end),
                Part::Value(value) => value,
            })
            .collect();
        Edited { length: pieces.iter().map(Bytes::len).sum(), pieces }
    }
}

/// An edited body: pieces of the original, by reference, and the new text between them.
#[derive(Clone, Debug)]
pub struct Edited {
    pieces: Vec<Bytes>,
    length: usize,
}

impl Edited {
    /// The pieces in their order; at most [`MAX_PIECES`], none of them empty unless the body was.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The pieces in their order, given away.
    pub fn into_pieces(self) -> Vec<Bytes> {
        self.pieces
    }

    /// Bytes of all pieces: the body's `content-length`.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl From<Bytes> for Edited {
    /// A body without any edit.
    fn from(body: Bytes) -> Self {
        Self { length: body.len(), pieces: vec![body] }
    }
}

//! Changes of a request body without rebuilding it.
//!
//! A hand-off sends two bodies that differ from the client's in a few members. [`Located`] notes once where those
//! members lie; [`Edits`] cuts the body around them. What comes out, [`Edited`], are slices of the client's own bytes
//! with a little new text between them, so that a prompt of any length is neither copied nor written anew.
//!
//! A member may stand twice. The engines' parsers let the last one count, but a proxy behind this one might let the
//! first: an edit changes every one of them.

mod answer;
mod edits;
mod legs;

pub use answer::{member_in, member_of, object_of};
pub use edits::{Edited, Edits, MAX_PIECES};
pub use legs::{decode_copy, prefill_copy};

use crate::json::{Cursor, Fault, Longs, Parsed, Span, What};

macro_rules! members {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A top-level member of a request body that hand-offs read or change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Member { $($(#[$doc])* $variant,)* }

        impl Member {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in the body.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The member of that name.
            pub fn find(name: &[u8]) -> Option<Self> {
                $(if name == $name.as_bytes() { return Some(Self::$variant); })*
                None
            }
        }
    };
}

members! {
    /// `stream`
    Stream = "stream",
    /// `stream_options`
    StreamOptions = "stream_options",
    /// `max_tokens`
    MaxTokens = "max_tokens",
    /// `max_completion_tokens`
    MaxCompletionTokens = "max_completion_tokens",
    /// `max_output_tokens`, of the Responses API
    MaxOutputTokens = "max_output_tokens",
    /// `min_tokens`
    MinTokens = "min_tokens",
    /// `n`
    N = "n",
    /// `kv_transfer_params`, vLLM's
    KvTransferParams = "kv_transfer_params",
    /// `bootstrap_host`, SGLang's
    BootstrapHost = "bootstrap_host",
    /// `bootstrap_port`, SGLang's
    BootstrapPort = "bootstrap_port",
    /// `bootstrap_room`, SGLang's
    BootstrapRoom = "bootstrap_room",
    /// `ignore_eos`
    IgnoreEos = "ignore_eos",
    /// `stop`
    Stop = "stop",
    /// `prompt`
    Prompt = "prompt",
}

/// Occurrences of known members in one body. All of them once are fewer; a body with more repeats itself without need.
pub const MAX_OCCURRENCES: usize = 16;

/// One occurrence of a member.
#[derive(Clone, Copy, Debug)]
struct Place {
    member: Member,
    /// How many members of any name stand before it.
    index: usize,
    /// Offset of the quote that opens the key.
    key: usize,
    value: Span,
}

/// Where the members that hand-offs are concerned with lie in one body.
#[derive(Clone, Debug)]
pub struct Located {
    /// Offset after the brace that opens the body.
    inside: usize,
    /// Members of any name.
    total: usize,
    places: [Place; MAX_OCCURRENCES],
    found: usize,
}

impl Located {
    /// Reads a body that [`scan`](crate::scan) has accepted. `None` for anything that is no JSON object, and for a
    /// body in which known members occur more than [`MAX_OCCURRENCES`] times. What lies between members is checked,
    /// values are not: of a body that was not scanned, the places found mean nothing, but lie within it.
    pub fn of(body: &[u8]) -> Option<Self> {
        let none = Place { member: Member::Stream, index: 0, key: 0, value: Span::default() };
        let mut located = Self { inside: 0, total: 0, places: [none; MAX_OCCURRENCES], found: 0 };
        located.read(body).ok()?;
        Some(located)
    }

    fn read(&mut self, body: &[u8]) -> Parsed<()> {
        let mut cursor = Cursor::checked(body, 0, Longs::default());
        cursor.ws();
        self.inside = cursor.at + 1;
        cursor.object(0, "an object", |cursor, key, depth| {
            let index = self.total;
            self.total += 1;
            let start = cursor.at;
            cursor.skip(depth)?;
            let Some(member) = Member::find(key.name) else { return Ok(()) };
            let key = key.text.span.start.saturating_sub(1);
            let place = Place { member, index, key, value: Span { start, end: cursor.at } };
            let room = self.places.get_mut(self.found);
            *room.ok_or(Fault { at: start, what: What::Expected("fewer members") })? = place;
            self.found += 1;
            Ok(())
        })
    }

    fn places(&self) -> &[Place] {
        self.places.get(..self.found).unwrap_or_default()
    }

    /// The value of a member: of its last occurrence, which is the one that engines see.
    pub fn value(&self, member: Member) -> Option<Span> {
        self.places().iter().rev().find(|place| place.member == member).map(|place| place.value)
    }

    /// Whether the body has no member at all.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

//! Single members of an engine's answer, as raw JSON: what one engine says to another passes through the router as it
//! came, because its fields change with nearly every release.

use crate::json::{Cursor, Parsed, Span};
use crate::scan::end;

/// Where the value of a top-level member of an answer lies; of the last one if the member stands twice. `None` where
/// it is absent, and where the answer is not one JSON object or the value is not UTF-8. Nothing is allocated.
pub fn member_of(answer: &[u8], name: &str) -> Option<Span> {
    let span = find(answer, name.as_bytes()).ok()??;
    simdutf8::basic::from_utf8(span.of(answer)).ok()?;
    Some(span)
}

/// As [`member_of`], for a member that must be an object: `kv_transfer_params` and `usage` may be `null`.
pub fn object_of(answer: &[u8], name: &str) -> Option<Span> {
    member_of(answer, name).filter(|span| span.of(answer).first() == Some(&b'{'))
}

/// Where the value of a member of the object at `within` lies, in offsets of the answer.
pub fn member_in(answer: &[u8], within: Span, name: &str) -> Option<Span> {
    let found = member_of(answer.get(within.start..within.end)?, name)?;
    Some(Span { start: within.start + found.start, end: within.start + found.end })
}

fn find(answer: &[u8], name: &[u8]) -> Parsed<Option<Span>> {
    let mut found = None;
    let mut cursor = Cursor::new(answer);
    cursor.object(0, "an object", |cursor, key, depth| {
        let start = cursor.at;
        cursor.skip(depth)?;
        if key.name == name {
            found = Some(Span { start, end: cursor.at });
        }
        Ok(())
    })?;
    end(&mut cursor)?;
    Ok(found)
}

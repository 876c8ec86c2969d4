//! Events of the realtime API, as far as they say where a connection is to go.

use std::borrow::Cow;

use crate::json::{self, Cursor, Kind, Parsed};
use crate::scan::{ScanError, check_utf8, end, optional_text, refuse};

/// The model that a client's event names: its `model`, else its `session.model`; `None` where it names none.
///
/// # Errors
/// The event is not one JSON object, or the model's name is no string.
pub fn event_model(event: &[u8]) -> Result<Option<Cow<'_, str>>, ScanError> {
    find(event).map_err(|fault| refuse(event, fault))
}

fn find(event: &[u8]) -> Parsed<Option<Cow<'_, str>>> {
    check_utf8(event)?;
    let mut cursor = Cursor::new(event);
    let (mut model, mut session) = (None, None);
    cursor.object(0, "an object", |cursor, key, depth| match key.name {
        b"model" => {
            model = optional_text(cursor)?;
            Ok(())
        }
        b"session" if cursor.kind()? == Kind::Object => {
            session = None;
            cursor.object(depth, "an object", |cursor, key, depth| match key.name {
                b"model" => {
                    session = optional_text(cursor)?;
                    Ok(())
                }
                _ => cursor.skip(depth),
            })
        }
        _ => cursor.skip(depth),
    })?;
    end(&mut cursor)?;
    Ok(model.or(session).map(|text| json::decode(event, text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_events() {
        for (event, want) in [
            (r#"{"type":"session.update","model":"m"}"#, Some("m")),
            (r#"{"type":"session.update","session":{"voice":{"a":1},"model":"m"}}"#, Some("m")),
            (r#"{"session":{"model":"inner"},"model":"outer"}"#, Some("outer")),
            (r#"{"model":"a\/b"}"#, Some("a/b")),
            (r#"{"model":null,"session":null}"#, None),
            (r#"{"session":[{"model":"m"}]}"#, None),
            (r#"{"response":{"model":"m"}}"#, None),
            ("{}", None),
        ] {
            assert_eq!(event_model(event.as_bytes()).unwrap().as_deref(), want, "{event}");
        }
        for (event, place) in [
            (&b""[..], ""),
            (b"hello", ""),
            (b"[]", ""),
            (b"{} {}", ""),
            (b"{\"model\":7}", "model"),
            (b"{\"session\":{\"model\":[]}}", "session.model"),
            (b"{\"a\":\"\xff\"}", "a"),
        ] {
            assert_eq!(event_model(event).unwrap_err().place, place, "{event:?}");
        }
    }
}

//! The scanner against serde_json: what is accepted, and what is found.

mod common;

use common::{Writer, any_text, any_value};
use fairlead_openai::{Api, scan, validate};
use proptest::prelude::*;
use serde_json::Value;

/// Whether serde_json accepts it; `None` where its opinion does not count (it refuses numbers beyond an f64).
fn accepts(body: &[u8]) -> Option<bool> {
    match serde_json::from_slice::<Value>(body) {
        Ok(_) => Some(true),
        Err(error) if error.to_string().contains("out of range") => None,
        Err(_) => Some(false),
    }
}

/// Bytes that matter to JSON, and some that matter to UTF-8.
const ALPHABET: &[u8] = b"\"\\{}[]:,0123456789-+.eEtrufalsnbdD /\n\t\r\0\x1f\x7f\x80\xc3\xa9\xed\xff";

#[derive(Clone, Debug)]
enum Edit {
    Remove(prop::sample::Index),
    Put(prop::sample::Index, u8),
    Replace(prop::sample::Index, u8),
    Cut(prop::sample::Index),
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let byte = prop_oneof![4 => prop::sample::select(ALPHABET), 1 => any::<u8>()];
    let at = any::<prop::sample::Index>;
    prop_oneof![
        3 => at().prop_map(Edit::Remove),
        3 => (at(), byte.clone()).prop_map(|(at, byte)| Edit::Put(at, byte)),
        3 => (at(), byte).prop_map(|(at, byte)| Edit::Replace(at, byte)),
        1 => at().prop_map(Edit::Cut),
    ]
}

fn apply(body: &mut Vec<u8>, edit: &Edit) {
    match edit {
        Edit::Remove(at) if !body.is_empty() => drop(body.remove(at.index(body.len()))),
        Edit::Put(at, byte) => body.insert(at.index(body.len() + 1), *byte),
        Edit::Replace(at, byte) if !body.is_empty() => {
            let at = at.index(body.len());
            body[at] = *byte;
        }
        Edit::Cut(at) => body.truncate(at.index(body.len() + 1)),
        _ => {}
    }
}

const NAMES: &[&str] = &[
    "model",
    "stream",
    "max_tokens",
    "n",
    "user",
    "cache_salt",
    "messages",
    "prompt",
    "tools",
    "kv_transfer_params",
    "temperature",
    "",
];

fn any_member() -> impl Strategy<Value = (String, Value)> {
    let name = prop_oneof![6 => prop::sample::select(NAMES).prop_map(String::from), 1 => any_text()];
    let value = prop_oneof![
        3 => any_text().prop_map(Value::from),
        2 => any::<bool>().prop_map(Value::from),
        2 => any::<u64>().prop_map(Value::from),
        3 => any_value(),
    ];
    (name, value)
}

proptest! {
    #![proptest_config(common::config())]

    #[test]
    fn valid_json_is_accepted(value in any_value(), seed in any::<u64>()) {
        let body = Writer::seeded(seed).value(&value);
        prop_assert_eq!(serde_json::from_str::<Value>(&body).ok(), Some(value));
        prop_assert_eq!(validate(body.as_bytes()), Ok(()));
    }

    #[test]
    fn edited_json_is_judged_as_serde_does(
        value in any_value(),
        seed in any::<u64>(),
        edits in prop::collection::vec(any_edit(), 1..4),
    ) {
        let mut body = Writer::seeded(seed).value(&value).into_bytes();
        for edit in &edits {
            apply(&mut body, edit);
        }
        let ours = validate(&body);
        if let Some(theirs) = accepts(&body) {
            prop_assert_eq!(ours.is_ok(), theirs, "{:?}: {:?}", String::from_utf8_lossy(&body), ours);
        }
        if let Err(error) = ours {
            prop_assert!(error.offset <= body.len());
        }
    }

    #[test]
    fn any_bytes_are_judged_as_serde_does(
        body in prop::collection::vec(prop_oneof![9 => prop::sample::select(ALPHABET), 1 => any::<u8>()], 0..24),
    ) {
        if let Some(theirs) = accepts(&body) {
            prop_assert_eq!(validate(&body).is_ok(), theirs);
        }
        for api in [Api::Chat, Api::Completions, Api::Responses, Api::Other] {
            let _ = scan(&body, api);
        }
    }

    #[test]
    fn members_are_found_as_serde_finds_them(
        members in prop::collection::vec(any_member(), 0..10),
        seed in any::<u64>(),
    ) {
        let mut writer = Writer::seeded(seed);
        let written = members.iter().map(|(name, value)| (name.as_str(), writer.value(value))).collect();
        let body = writer.ordered(written);
        let fits = members.iter().all(|(name, value)| match name.as_str() {
            "model" | "user" | "cache_salt" => value.is_string() || value.is_null(),
            "stream" => value.is_boolean() || value.is_null(),
            "max_tokens" | "n" => value.is_number() || value.is_null(),
            _ => true,
        });
        let found = scan(body.as_bytes(), Api::Other);
        prop_assert_eq!(found.is_ok(), fits, "{}: {:?}", body, found);
        let Ok(found) = found else { return Ok(()) };
        let known: Value = serde_json::from_str(&body).expect("serde accepts what was written");
        prop_assert_eq!(found.model.as_deref(), known["model"].as_str());
        prop_assert_eq!(found.user.as_deref(), known["user"].as_str());
        prop_assert_eq!(found.cache_salt.as_deref(), known["cache_salt"].as_str());
        prop_assert_eq!(found.stream, known["stream"].as_bool().unwrap_or(false));
        prop_assert_eq!(found.max_tokens, known["max_tokens"].as_u64());
        prop_assert_eq!(found.n, known["n"].as_u64());
        let steers = members.iter().any(|(name, value)| name == "kv_transfer_params" && !value.is_null());
        prop_assert_eq!(found.steering.is_some(), steers);
        for (span, name) in [
            (found.prompt.messages, "messages"),
            (found.prompt.text, "prompt"),
            (found.prompt.tools, "tools"),
        ] {
            let value = span.map(|span| serde_json::from_slice::<Value>(span.of(body.as_bytes())).ok());
            let expected = known.get(name).filter(|value| !value.is_null());
            prop_assert_eq!(value, expected.map(|value| Some(value.clone())), "{}", name);
        }
    }
}

//! Edits of bodies: tables of what is expected, and random bodies against an editor of their parts.

mod common;

use bytes::Bytes;
use common::{Writer, any_text, any_value, config};
use fairlead_openai::Api;
use fairlead_openai::splice::{
    Edited, Edits, Located, MAX_OCCURRENCES, MAX_PIECES, Member, decode_copy, member_in, member_of,
    object_of, prefill_copy,
};
use proptest::prelude::*;
use serde_json::{Map, Value};

fn text(edited: &Edited) -> String {
    assert!(edited.pieces().len() <= MAX_PIECES);
    assert!(edited.pieces().iter().all(|piece| !piece.is_empty()));
    let whole = edited.pieces().concat();
    assert_eq!(whole.len(), edited.len());
    String::from_utf8(whole).expect("edits of text")
}

fn located(body: &str) -> Located {
    Located::of(body.as_bytes()).expect("an object")
}

#[test]
fn prefill_legs() {
    let table = [
        (Api::Chat, r#"{}"#, r#"{"max_tokens":1}"#),
        (Api::Chat, r#" { } "#, r#" {"max_tokens":1 } "#),
        (Api::Chat, r#"{"model":"m"}"#, r#"{"max_tokens":1,"model":"m"}"#),
        (
            Api::Chat,
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"max_tokens":100,"min_tokens":5,"n":1}"#,
            r#"{"model":"m","stream":false,"max_tokens":1,"n":1}"#,
        ),
        (
            Api::Chat,
            r#"{"stream_options":null, "max_completion_tokens":9,"stream":true}"#,
            r#"{ "max_completion_tokens":1,"stream":false}"#,
        ),
        (Api::Chat, r#"{"max_completion_tokens":9,"max_tokens":8}"#, r#"{"max_completion_tokens":1}"#),
        (Api::Chat, r#"{"max_completion_tokens":null,"max_tokens":8}"#, r#"{"max_tokens":1}"#),
        (Api::Chat, r#"{"max_completion_tokens": null}"#, r#"{"max_tokens":1}"#),
        (Api::Chat, r#"{"max_tokens":7,"max_tokens":8}"#, r#"{"max_tokens":1,"max_tokens":1}"#),
        (Api::Chat, r#"{"max_tok\u0065ns":7}"#, r#"{"max_tok\u0065ns":1}"#),
        (
            Api::Chat,
            r#"{"x":{"max_tokens":7,"stream":true}}"#,
            r#"{"max_tokens":1,"x":{"max_tokens":7,"stream":true}}"#,
        ),
        (Api::Completions, r#"{"prompt":"p","max_completion_tokens":9}"#, r#"{"max_tokens":1,"prompt":"p"}"#),
        (
            Api::Responses,
            r#"{"input":"p","stream":true}"#,
            r#"{"max_output_tokens":1,"input":"p","stream":false}"#,
        ),
        (Api::Responses, r#"{"input":"p","max_output_tokens":50}"#, r#"{"input":"p","max_output_tokens":1}"#),
        (
            Api::Messages,
            r#"{"max_tokens":50,"stream":true,"messages":[]}"#,
            r#"{"max_tokens":1,"stream":false,"messages":[]}"#,
        ),
    ];
    for (api, body, expected) in table {
        let edited = prefill_copy(&located(body), &Bytes::from(body), api, None);
        assert_eq!(text(&edited), expected, "{body}");
    }
}

#[test]
fn transfer_parameters_replace_those_of_the_client() {
    let table = [
        (r#"{}"#, r#"{"kv_transfer_params":{"a":1}}"#),
        (r#"{ "m":1}"#, r#"{"kv_transfer_params":{"a":1}, "m":1}"#),
        (r#"{"kv_transfer_params":{"b":2}}"#, r#"{"kv_transfer_params":{"a":1}}"#),
        (
            r#"{"kv_transfer_params":1,"m":1 , "kv_transfer_params" : [2] }"#,
            r#"{"kv_transfer_params":{"a":1},"m":1  }"#,
        ),
    ];
    for (body, expected) in table {
        let edited = decode_copy(&located(body), &Bytes::from(body), Bytes::from(r#"{"a":1}"#));
        assert_eq!(text(&edited), expected, "{body}");
    }
}

#[test]
fn later_changes_win() {
    let body = Bytes::from(r#"{"stop":["a"],"n":2}"#);
    let located = Located::of(&body).unwrap();
    let edits = || Edits::new(&located, &body);
    let table = [
        (edits(), r#"{"stop":["a"],"n":2}"#),
        (edits().remove(Member::Stop).set(Member::Stop, "[]"), r#"{"stop":[],"n":2}"#),
        (edits().set(Member::Stop, "[]").remove(Member::Stop), r#"{"n":2}"#),
        (edits().insert(Member::Stop, "[]").remove(Member::Stop), r#"{"n":2}"#),
        (edits().insert(Member::Stop, "[]").set(Member::Stop, "1"), r#"{"stop":1,"n":2}"#),
        (edits().set(Member::Prompt, "[]").remove(Member::Prompt), r#"{"stop":["a"],"n":2}"#),
        (edits().set(Member::Prompt, "1").set(Member::Prompt, "2"), r#"{"prompt":2,"stop":["a"],"n":2}"#),
        (edits().set_if_present(Member::Prompt, "[]"), r#"{"stop":["a"],"n":2}"#),
        (edits().remove(Member::Stop).remove(Member::N), "{}"),
        (
            edits()
                .remove(Member::Stop)
                .remove(Member::N)
                .insert(Member::BootstrapRoom, "7")
                .insert(Member::IgnoreEos, "true"),
            r#"{"bootstrap_room":7,"ignore_eos":true}"#,
        ),
    ];
    for (edits, expected) in table {
        assert_eq!(text(&edits.finish()), expected);
    }
}

#[test]
fn long_parts_are_the_clients_own_bytes() {
    let long = "x".repeat(10_000);
    let body = Bytes::from(format!(
        r#"{{"messages":"{long}","max_tokens":5,"y":"{long}","stream":true,"z":"{long}"}}"#
    ));
    let params = Bytes::from(format!(r#"{{"ids":"{long}"}}"#));
    let edited = prefill_copy(&Located::of(&body).unwrap(), &body, Api::Chat, Some(params.clone()));
    let within = |piece: &Bytes, whole: &Bytes| whole.as_ptr_range().contains(&piece.as_ptr());
    let (mut own, mut new) = (0, 0);
    for piece in edited.pieces() {
        if within(piece, &body) || within(piece, &params) {
            own += piece.len();
        } else {
            new += piece.len();
        }
    }
    assert!(own > 40_000 && new < 100, "{own} {new}");
    assert_eq!(edited.pieces().len(), 8);
}

#[test]
fn too_many_occurrences_are_not_edited() {
    let body = |count: usize| format!("{{{}}}", vec![r#""n":1"#; count].join(","));
    assert!(Located::of(body(MAX_OCCURRENCES).as_bytes()).is_some());
    assert!(Located::of(body(MAX_OCCURRENCES + 1).as_bytes()).is_none());
    for body in ["", "[]", "1", "{", r#"{"n""#, r#"{"n":1"#, r#"{"n":1,}"#] {
        assert!(Located::of(body.as_bytes()).is_none(), "{body}");
    }
}

#[test]
fn members_of_answers() {
    let answer = r#"{"id":"a","kv_transfer_params":null,"usage":{"prompt_tokens":3},"kv_transfer_params":{"remote_engine_id":"e","transfer_mode":"push","first_tok":17,"x":{"transfer_mode":1}},"n":null}"#;
    let bytes = answer.as_bytes();
    let of = |name: &str| member_of(bytes, name).map(|span| &answer[span.start..span.end]);
    assert_eq!(of("usage"), Some(r#"{"prompt_tokens":3}"#));
    assert_eq!(of("n"), Some("null"));
    assert_eq!(of("transfer_mode"), None);
    assert_eq!(object_of(bytes, "n"), None);
    let params = object_of(bytes, "kv_transfer_params").unwrap();
    let within = |name: &str| member_in(bytes, params, name).map(|span| &answer[span.start..span.end]);
    assert_eq!(within("transfer_mode"), Some(r#""push""#));
    assert_eq!(within("remote_engine_id"), Some(r#""e""#));
    assert_eq!(within("first_tok"), Some("17"));
    assert_eq!(within("absent"), None);
    for broken in [
        "",
        "null",
        "[{\"usage\":{}}]",
        "{\"usage\":{}",
        "{\"usage\":{}} x",
        "{\"usage\":{]}",
        "{\"usage\":}",
    ] {
        assert_eq!(member_of(broken.as_bytes(), "usage"), None, "{broken}");
    }
    assert_eq!(member_of(b"{\"usage\":\"\xff\"}", "usage"), None);
    let deep = format!("{{\"usage\":{}1{}}}", "[".repeat(1000), "]".repeat(1000));
    assert_eq!(member_of(deep.as_bytes(), "usage"), None);
}

/// A body in parts, as the slow editor sees it.
#[derive(Debug)]
struct Part {
    name: String,
    before: &'static str,
    key: String,
    value: String,
    after: &'static str,
}

fn parts(members: &[(String, Value)], seed: u64) -> Vec<Part> {
    let mut writer = Writer::seeded(seed);
    let mut part = |(name, value): &(String, Value)| Part {
        name: name.clone(),
        before: writer.space(),
        key: format!("{}{}:{}", writer.string(name), writer.space(), writer.space()),
        value: writer.value(value),
        after: writer.space(),
    };
    members.iter().map(&mut part).collect()
}

fn write(parts: &[Part]) -> String {
    let one = |part: &Part| format!("{}{}{}{}", part.before, part.key, part.value, part.after);
    format!("\n{{{}}} ", parts.iter().map(one).collect::<Vec<_>>().join(","))
}

#[derive(Clone, Copy, Debug)]
enum Do {
    Set,
    SetIfPresent,
    Remove,
    Insert,
}

fn any_do() -> impl Strategy<Value = (Do, Member, String)> {
    let what = prop::sample::select(&[Do::Set, Do::SetIfPresent, Do::Remove, Do::Insert]);
    let value = prop_oneof![Just("1".to_owned()), any_value().prop_map(|value| value.to_string())];
    (what, prop::sample::select(Member::ALL), value)
}

fn any_members() -> impl Strategy<Value = Vec<(String, Value)>> {
    let known = || prop::sample::select(Member::ALL).prop_map(|member| member.name().to_owned());
    let name = prop_oneof![3 => known(), 1 => any_text()];
    let value = prop_oneof![2 => any_value(), 1 => any_text().prop_map(|text| Value::from(text.repeat(4)))];
    prop::collection::vec((name, value), 0..12)
}

/// What each member's edit comes to, applied to the parts one by one.
fn edit_slowly(parts: &[Part], edits: &[(Do, Member, String)]) -> String {
    let mut inserted = String::new();
    let mut fate = std::collections::HashMap::new();
    for (what, member, value) in edits {
        let present = parts.iter().any(|part| part.name == member.name());
        match what {
            Do::Set | Do::SetIfPresent if present => drop(fate.insert(*member, (false, Some(value)))),
            Do::SetIfPresent => {}
            Do::Remove => drop(fate.insert(*member, (false, None))),
            Do::Set | Do::Insert => drop(fate.insert(*member, (true, Some(value)))),
        }
    }
    for member in Member::ALL {
        if let Some((true, Some(value))) = fate.get(member) {
            let comma = if inserted.is_empty() { "" } else { "," };
            inserted.push_str(&format!("{comma}\"{}\":{value}", member.name()));
        }
    }
    let fate_of = |part: &Part| Member::find(part.name.as_bytes()).and_then(|member| fate.get(&member));
    let (mut rest, mut kept) = (String::new(), 0);
    for (index, part) in parts.iter().enumerate() {
        let value = match fate_of(part) {
            None => &part.value,
            Some((false, Some(value))) => value,
            Some(_) if kept > 0 => {
                rest.push_str(part.after);
                continue;
            }
            Some(_) => {
                rest.push_str(part.before);
                rest.push_str(if index + 1 == parts.len() { part.after } else { "" });
                continue;
            }
        };
        let comma = if kept > 0 { "," } else { "" };
        rest.push_str(&format!("{comma}{}{}{value}{}", part.before, part.key, part.after));
        kept += 1;
    }
    let comma = if kept > 0 && !inserted.is_empty() { "," } else { "" };
    format!("\n{{{inserted}{comma}{rest}}} ")
}

/// The same by a document, in which members stand once.
fn edit_document(body: &str, edits: &[(Do, Member, String)]) -> Value {
    let mut document: Map<String, Value> = serde_json::from_str(body).expect("an object");
    for (what, member, value) in edits {
        let value = || serde_json::from_str(value).expect("a value");
        match what {
            Do::SetIfPresent if !document.contains_key(member.name()) => {}
            Do::Remove => drop(document.remove(member.name())),
            _ => drop(document.insert(member.name().to_owned(), value())),
        }
    }
    Value::Object(document)
}

/// One edit for each member: that of several the last counts is the table's to say.
fn once(edits: Vec<(Do, Member, String)>) -> Vec<(Do, Member, String)> {
    let mut seen = std::collections::HashSet::new();
    edits.into_iter().filter(|(_, member, _)| seen.insert(*member)).collect()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn edits_are_those_of_a_document(
        members in any_members(),
        seed in any::<u64>(),
        edits in prop::collection::vec(any_do(), 0..8).prop_map(once),
    ) {
        let parts = parts(&members, seed);
        let body = write(&parts);
        let bytes = Bytes::from(body.clone());
        let located = Located::of(&bytes).unwrap();
        let built = edits.iter().fold(Edits::new(&located, &bytes), |built, (what, member, value)| {
            let value = value.clone();
            match what {
                Do::Set => built.set(*member, value),
                Do::SetIfPresent => built.set_if_present(*member, value),
                Do::Remove => built.remove(*member),
                Do::Insert => built.insert(*member, value),
            }
        });
        let edited = text(&built.finish());
        prop_assert_eq!(&edited, &edit_slowly(&parts, &edits));
        prop_assert_eq!(serde_json::from_str::<Value>(&edited).unwrap(), edit_document(&body, &edits));
    }

    #[test]
    fn members_of_answers_are_those_of_a_document(members in any_members(), seed in any::<u64>()) {
        let body = write(&parts(&members, seed));
        let document: Value = serde_json::from_str(&body).unwrap();
        for member in Member::ALL {
            let found = member_of(body.as_bytes(), member.name()).map(|span| &body[span.start..span.end]);
            let found = found.map(|raw| serde_json::from_str::<Value>(raw).unwrap());
            prop_assert_eq!(found.as_ref(), document.get(member.name()));
            let place = Located::of(body.as_bytes()).unwrap().value(*member);
            prop_assert_eq!(place, member_of(body.as_bytes(), member.name()));
        }
    }

    #[test]
    fn any_bytes_do_no_harm(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..64),
            "[{}\\[\\]\":,\\\\ nstop1]{0,40}".prop_map(String::into_bytes),
        ],
        other in prop::collection::vec(any::<u8>(), 0..32),
    ) {
        let body = Bytes::from(bytes);
        let _ = member_of(&body, "stop").map(|span| member_in(&body, span, "n"));
        if let Some(located) = Located::of(&body) {
            let edit = |body| Edits::new(&located, body).prefill(Api::Chat).insert(Member::Stop, "1").finish().len();
            edit(&body);
            edit(&Bytes::from(other));
        }
    }
}

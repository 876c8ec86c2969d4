//! The canonical prompt: equal for equal conversations however written, a prefix for one more turn, different for
//! different ones.

mod common;

use common::{Writer, any_text, any_value, config};
use fairlead_openai::{Api, canonical, scan};
use proptest::prelude::*;
use serde_json::Value;

fn bytes(api: Api, body: &str) -> Vec<u8> {
    let scan = match scan(body.as_bytes(), api) {
        Ok(scan) => scan,
        Err(error) => panic!("{body}: {error}"),
    };
    let mut out = Vec::new();
    canonical(body.as_bytes(), &scan, api, &mut |piece: &[u8]| out.extend_from_slice(piece));
    out
}

/// Readable form: the mark is shown as `~`.
fn shown(api: Api, body: &str) -> String {
    let bytes = bytes(api, body);
    let parts: Vec<_> = bytes.split(|&byte| byte == 0xFF).map(String::from_utf8_lossy).collect();
    parts.join("~")
}

#[test]
fn prompts_of_every_api() {
    let table: &[(Api, &str, &str)] = &[
        (Api::Chat, "{}", ""),
        (Api::Chat, r#"{"messages":[]}"#, ""),
        (Api::Chat, r#"{"messages":[{"role":"user","content":"hi"}]}"#, "~muser~chi"),
        (
            Api::Chat,
            r#"{"messages":[{"role":"user","content":"a\n\"b\" \u00e9\ud83e\udd80"}]}"#,
            r#"~muser~ca\n\"b\" é🦀"#,
        ),
        (
            Api::Chat,
            r#"{"messages":[{"role":"system","content":"s"},{"role":"user","name":"bob","content":null}]}"#,
            "~msystem~cs~muser~n~sbob",
        ),
        (
            Api::Chat,
            r#"{"messages":[{"role":"assistant","content":"c","reasoning_content":"r","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},{"id":"2","function":{"arguments":"{}","name":"g"}}]},{"role":"tool","tool_call_id":"1","content":"out"}]}"#,
            r#"~massistant~cc~r~sr~t~sf~s{\"a\":1}~t~sg~s{}~mtool~cout"#,
        ),
        (
            Api::Chat,
            r#"{"messages":[{"role":"assistant","function_call":{"name":"f","arguments":"x"}}]}"#,
            "~massistant~t~sf~sx",
        ),
        (
            Api::Chat,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"look"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","detail":"low"}},"plain"]}]}"#,
            "~muser~clook~p~simage_url~kimage_url~{~kurl~sdata:image/png;base64,AA==~kdetail~slow~}~cplain",
        ),
        (
            Api::Chat,
            r#"{"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{}}}}]}"#,
            "~d~sf~sd~{~ktype~sobject~kproperties~{~}~}~muser~chi",
        ),
        (
            Api::Chat,
            r#"{"functions":[{"name":"f","parameters":{"b":1,"a":[true,null,-1.50]}}]}"#,
            "~d~sf~{~kb~v1~ka~[~vtrue~vnull~v-1.50~]~}",
        ),
        (Api::Completions, r#"{"prompt":"once"}"#, "~ionce"),
        (Api::Completions, r#"{"prompt":["once"]}"#, "~ionce"),
        (Api::Completions, r#"{"prompt":["a","b"],"suffix":"z"}"#, "~ia~ib"),
        (Api::Completions, r#"{"prompt":[97,98]}"#, "~#a\0\0\0b\0\0\0"),
        (Api::Completions, r#"{"prompt":[[97],[98]]}"#, "~#a\0\0\0~#b\0\0\0"),
        (Api::Completions, r#"{"prompt":[97,-1,4294967296]}"#, "~#a\0\0\0~v-1~v4294967296"),
        (Api::Embeddings, r#"{"input":["a","b"]}"#, "~ia~ib"),
        (Api::Embeddings, r#"{"input":{"type":"image","url":"u"}}"#, "~i~p~simage~kurl~su"),
        (Api::Responses, r#"{"input":"hi","instructions":"be good"}"#, "~msystem~cbe good~muser~chi"),
        (
            Api::Responses,
            r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]},{"type":"function_call","id":"x","call_id":"c","name":"f","arguments":"{}","status":"completed"},{"type":"function_call_output","call_id":"c","output":"42"},{"type":"message","id":"y","role":"assistant","content":[{"type":"output_text","text":"yes","annotations":[]}]}],"tools":[{"type":"function","name":"f","parameters":{},"strict":true}]}"#,
            "~d~sf~{~}~muser~chi~p~sfunction_call~karguments~s{}~kname~sf~p~sfunction_call_output~koutput~s42~massistant~cyes",
        ),
        (
            Api::Messages,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi","cache_control":{"type":"ephemeral"}}]}],"system":"s","tools":[{"name":"f","description":"d","input_schema":{"type":"object"},"cache_control":{"type":"ephemeral"}}]}"#,
            "~d~sf~sd~{~ktype~sobject~}~msystem~cs~muser~chi",
        ),
        (
            Api::Messages,
            r#"{"system":[{"type":"text","text":"x-anthropic-billing-header: cch=1;"},{"type":"text","text":"s"}],"messages":[]}"#,
            "~msystem~cs",
        ),
        (
            Api::Messages,
            r#"{"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"t1","name":"f","input":{"b":1,"a":2}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":[{"type":"text","text":"out"}],"is_error":false}]}]}"#,
            "~massistant~p~stool_use~kinput~{~kb~v1~ka~v2~}~kname~sf~muser~p~stool_result~cout~kis_error~vfalse",
        ),
        (Api::Rerank, r#"{"documents":["a","b"],"query":"q"}"#, "~q~iq~o~ia~ib"),
        (Api::Score, r#"{"text_1":"a","text_2":"b"}"#, "~q~ia~o~ib"),
        (Api::Tokenize, r#"{"prompt":"a"}"#, "~ia"),
        (Api::Detokenize, r#"{"tokens":[97]}"#, "~#a\0\0\0"),
        (Api::Other, r#"{"messages":5,"prompt":true,"system":{"x":1}}"#, "~msystem~{~kx~v1~}~v5~vtrue"),
        (Api::Other, r#"{"messages":[5,{"content":"no role"}],"tools":{"a":1}}"#, "~{~ka~v1~}~v5~p~cno role"),
    ];
    for (api, body, expected) in table {
        assert_eq!(shown(*api, body), *expected, "{api:?} {body}");
    }
}

#[test]
fn equal_prompts_in_different_forms() {
    let groups: &[&[(Api, &str)]] = &[
        &[
            (Api::Completions, r#"{"prompt":"a/\n\"é\u0001\u001f\b\f\r\t\\"}"#),
            (
                Api::Completions,
                r#"{"prompt":"a\/\u000A\u0022\u00e9\u0001\u001F\u0008\u000c\u000d\u0009\u005C"}"#,
            ),
        ],
        &[
            (Api::Chat, r#"{"messages":[{"role":"user","content":"hi"}]}"#),
            (
                Api::Chat,
                r#"{"temperature":1,"messages":[{"content":[{"text":"hi","type":"text"}],"role":"user"}]}"#,
            ),
            (
                Api::Chat,
                r#"{"messages":[{"role":"system","content":"x"}],"messages":[{"role":"a","role":"user","content":"hi"}]}"#,
            ),
            (Api::Messages, r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":5}"#),
            (Api::Responses, r#"{"input":"hi"}"#),
            (Api::Responses, r#"{"input":[{"role":"user","content":"hi"}]}"#),
            (Api::Tokenize, r#"{"messages":[{"role":"user","content":"hi"}]}"#),
        ],
        &[
            (Api::Chat, r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}]}"#),
            (Api::Messages, r#"{"messages":[{"role":"user","content":"u"}],"system":"s"}"#),
            (Api::Responses, r#"{"instructions":"s","input":"u"}"#),
        ],
        &[
            (
                Api::Messages,
                r#"{"messages":[{"role":"user","content":[{"type":"image","source":{"data":"x"},"cache_control":{}}]}]}"#,
            ),
            (
                Api::Messages,
                r#"{"messages":[{"role":"user","content":[{"source":{"data":"x"},"type":"image"}]}]}"#,
            ),
        ],
    ];
    for group in groups {
        let first = bytes(group[0].0, group[0].1);
        for (api, body) in &group[1..] {
            assert_eq!(bytes(*api, body), first, "{api:?} {body}");
        }
    }
}

#[test]
fn long_text_crosses_every_buffer() {
    for length in [7, 8, 9, 63, 64, 65, 255, 256, 257, 1015, 1016, 1017, 1024, 5000] {
        for gap in [0, 1, 3, 8, 30, 200, 1000] {
            let mut text = String::new();
            while text.len() < length {
                text.push_str(&"x".repeat(gap));
                text.push_str("\n\"é🦀\\");
            }
            let written = Writer::plain().string(&text);
            let body = format!(r#"{{"prompt":{written}}}"#);
            let short = serde_json::to_string(&text).expect("text");
            let expected = [b"\xffi", &short.as_bytes()[1..short.len() - 1]].concat();
            assert_eq!(bytes(Api::Completions, &body), expected, "{length} {gap}");
            let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
            let body = format!(r#"{{"prompt":"{units}"}}"#);
            assert_eq!(bytes(Api::Completions, &body), expected, "{length} {gap}, all escaped");
        }
    }
}

#[test]
fn scans_of_another_body_do_no_harm() {
    let long =
        r#"{"messages":[{"role":"user","content":"hello \n world"}],"tools":[{"name":"x"}],"prompt":"p"}"#;
    let found = scan(long.as_bytes(), Api::Other).expect("valid");
    for other in ["", "{", r#"{"messages":[{"role":"user","content":"\"#, &"[".repeat(200), &"\\".repeat(200)]
    {
        canonical(other.as_bytes(), &found, Api::Other, &mut |_: &[u8]| {});
    }
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Image(String),
    Result { output: String, error: bool },
}

#[derive(Clone, Debug)]
struct Turn {
    role: &'static str,
    name: Option<String>,
    parts: Vec<Part>,
    calls: Vec<(String, String)>,
}

fn any_part() -> impl Strategy<Value = Part> {
    prop_oneof![
        4 => any_text().prop_map(Part::Text),
        1 => any_text().prop_map(Part::Image),
        1 => (any_text(), any::<bool>()).prop_map(|(output, error)| Part::Result { output, error }),
    ]
}

fn any_turn() -> impl Strategy<Value = Turn> {
    (
        prop::sample::select(&["system", "user", "assistant", "tool"][..]),
        prop::option::weighted(0.2, any_text()),
        prop::collection::vec(any_part(), 0..3),
        prop::collection::vec((any_text(), any_text()), 0..2),
    )
        .prop_map(|(role, name, parts, calls)| Turn { role, name, parts, calls })
}

/// Writes a turn in one of its equal forms. `id` stands for what clients vary.
fn write_turn(writer: &mut Writer, turn: &Turn, id: &str) -> String {
    let mut members = vec![("role", writer.string(turn.role))];
    if let Some(name) = &turn.name {
        members.push(("name", writer.string(name)));
    }
    match turn.parts.as_slice() {
        [Part::Text(text)] if id.len().is_multiple_of(2) => members.push(("content", writer.string(text))),
        parts => {
            let parts = parts.iter().map(|part| write_part(writer, part, id)).collect();
            members.push(("content", writer.array(parts)));
        }
    }
    if !turn.calls.is_empty() {
        let calls = turn
            .calls
            .iter()
            .map(|(name, arguments)| {
                let function = vec![("name", writer.string(name)), ("arguments", writer.string(arguments))];
                let call = vec![
                    ("id", writer.string(id)),
                    ("type", writer.string("function")),
                    ("function", writer.object(function)),
                ];
                writer.object(call)
            })
            .collect();
        members.push(("tool_calls", writer.array(calls)));
    }
    members.push(("id", writer.string(id)));
    writer.object(members)
}

fn write_part(writer: &mut Writer, part: &Part, id: &str) -> String {
    let members = match part {
        Part::Text(text) => vec![("type", writer.string("text")), ("text", writer.string(text))],
        Part::Image(url) => {
            let image = vec![("url", writer.string(url))];
            vec![("type", writer.string("image_url")), ("image_url", writer.object(image))]
        }
        Part::Result { output, error } => vec![
            ("type", writer.string("tool_result")),
            ("tool_use_id", writer.string(id)),
            ("content", writer.string(output)),
            ("is_error", error.to_string()),
        ],
    };
    let mut members = members;
    if id.len().is_multiple_of(3) {
        members.push(("cache_control", writer.value(&serde_json::json!({"type": "ephemeral"}))));
    }
    writer.object(members)
}

fn write_tool(writer: &mut Writer, (name, schema): &(String, Value)) -> String {
    let mut function = vec![("name", writer.string(name)), ("parameters", writer.value(schema))];
    if name.len().is_multiple_of(2) {
        function.push(("description", writer.string("what it does")));
    }
    if name.len().is_multiple_of(3) {
        function.push(("z", writer.value(schema)));
        function.push(("a", writer.value(schema)));
    }
    let tool = vec![("type", writer.string("function")), ("function", writer.object(function))];
    writer.object(tool)
}

fn write(writer: &mut Writer, tools: &[(String, Value)], turns: &[Turn], id: &str) -> String {
    let turns = turns.iter().map(|turn| write_turn(writer, turn, id)).collect();
    let mut members = vec![
        ("messages", writer.array(turns)),
        ("model", writer.string("m")),
        ("seed", id.len().to_string()),
    ];
    if !tools.is_empty() {
        let tools = tools.iter().map(|tool| write_tool(writer, tool)).collect();
        members.push(("tools", writer.array(tools)));
    }
    writer.object(members)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn writing_does_not_matter_and_turns_append(
        tools in prop::collection::vec((any_text(), any_value()), 0..3),
        turns in prop::collection::vec(any_turn(), 0..6),
        seeds in any::<[u64; 2]>(),
        ids in ["[a-z]{0,9}", "[a-z]{0,9}"],
        kept in any::<prop::sample::Index>(),
    ) {
        let one = bytes(Api::Chat, &write(&mut Writer::seeded(seeds[0]), &tools, &turns, &ids[0]));
        let other = bytes(Api::Chat, &write(&mut Writer::seeded(seeds[1]), &tools, &turns, &ids[1]));
        prop_assert_eq!(&one, &other);
        let kept = kept.index(turns.len() + 1);
        let earlier = bytes(Api::Chat, &write(&mut Writer::plain(), &tools, &turns[..kept], "id"));
        prop_assert!(one.starts_with(&earlier));
        prop_assert_eq!(earlier.len() == one.len(), kept == turns.len());
    }

    #[test]
    fn different_prompts_differ(
        one in prop::collection::vec((any_text(), any_text()), 0..3),
        other in prop::collection::vec((any_text(), any_text()), 0..3),
    ) {
        let body = |turns: &[(String, String)]| {
            let mut writer = Writer::plain();
            let turns = turns
                .iter()
                .map(|(role, text)| {
                    let members = vec![("role", writer.string(role)), ("content", writer.string(text))];
                    writer.object(members)
                })
                .collect();
            format!(r#"{{"messages":{}}}"#, writer.array(turns))
        };
        let equal = bytes(Api::Chat, &body(&one)) == bytes(Api::Chat, &body(&other));
        prop_assert_eq!(equal, one == other);
    }

    #[test]
    fn any_value_anywhere_is_taken(value in any_value(), seed in any::<u64>()) {
        let mut writer = Writer::seeded(seed);
        for name in ["messages", "tools", "prompt", "input", "system", "query", "documents"] {
            let text = writer.value(&value);
            let body = format!(r#"{{"{name}":{text},"{name}":[{text},{{"role":"x","content":{text},"{name}":{text}}}]}}"#);
            let plain = Writer::plain().value(&value);
            let same = format!(r#"{{"{name}":[{plain},{{"role":"x","content":{plain},"{name}":{plain}}}]}}"#);
            prop_assert_eq!(bytes(Api::Other, &body), bytes(Api::Other, &same));
        }
    }
}

#[test]
fn the_deepest_content_fits_a_small_stack() {
    let nest =
        |head: &str, tail: &str, levels: usize| format!("{}1{}", head.repeat(levels), tail.repeat(levels));
    let bodies = [
        format!(
            r#"{{"messages":[{{"role":"u","content":{}}}]}}"#,
            nest(r#"[{"type":"tool_result","content":"#, "}]", 62)
        ),
        format!(r#"{{"tools":[{}]}}"#, nest(r#"{"function":"#, "}", 125)),
        format!(r#"{{"tools":[{{"x":{}}}]}}"#, nest("[", "]", 125)),
    ];
    let run = move || {
        for body in &bodies {
            assert!(!bytes(Api::Other, body).is_empty());
        }
    };
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(run).expect("a thread");
    assert!(thread.join().is_ok());
}

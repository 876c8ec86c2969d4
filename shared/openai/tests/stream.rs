//! Reading answers over the relay's shoulder: any cutting of a stream gives the same result.

mod common;

use common::{any_text, config};
use fairlead_openai::{SseWatch, Usage, UsageWatch, usage_of_json};
use proptest::prelude::*;

fn watch(pieces: &[&[u8]]) -> SseWatch {
    let mut watch = SseWatch::new();
    for piece in pieces {
        watch.feed(piece);
    }
    watch
}

type State = (Option<Usage>, bool, bool, u64, bool, &'static [u8]);

fn state(watch: &SseWatch) -> State {
    (watch.usage, watch.done, watch.failed, watch.events, watch.mid_event(), watch.separator())
}

const fn usage(prompt_tokens: u64, cached_tokens: Option<u64>, completion_tokens: u64) -> Option<Usage> {
    Some(Usage { prompt_tokens, cached_tokens, completion_tokens })
}

#[test]
fn streams_of_every_kind() {
    let table: &[(&str, State)] = &[
        ("", (None, false, false, 0, false, b"")),
        ("data: {\"a\":1}\n\n", (None, false, false, 1, false, b"")),
        ("data: {\"a\":1}\r\n\r\ndata: 2\r\n\r\n", (None, false, false, 2, false, b"")),
        (": ping\n\n", (None, false, false, 0, false, b"")),
        ("data: [DONE]\n\n", (None, true, false, 1, false, b"")),
        ("data:[DONE]\r\n\r\n", (None, true, false, 1, false, b"")),
        ("data: [DONE] x\n\n", (None, false, false, 1, false, b"")),
        ("data: {\"x\":\"[DONE]\"}\n\ndata: \"[DONE]\"\n\n", (None, false, false, 2, false, b"")),
        ("xdata: [DONE]\n\n", (None, false, false, 0, false, b"")),
        ("data: [DONE]", (None, false, false, 0, true, b"\n\n")),
        ("data: {\"a\":1}\n", (None, false, false, 0, true, b"\n")),
        ("data: {\"a\":", (None, false, false, 0, true, b"\n\n")),
        (
            "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"total_tokens\":25,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":16}}}\n\ndata: [DONE]\n\n",
            (usage(20, Some(16), 5), true, false, 3, false, b""),
        ),
        (
            "data: {\"usage\" : { \"prompt_tokens\" : 20, \"completion_tokens\" : 1, \"prompt_tokens_details\" : null } }\n\ndata: {\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":2}}\n\n",
            (usage(20, None, 2), false, false, 2, false, b""),
        ),
        (
            "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{\\\"prompt_tokens\\\":9,\\\"completion_tokens\\\":9}\"}}]}\n\n",
            (None, false, false, 1, false, b""),
        ),
        (
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":10,\"cache_creation_input_tokens\":3,\"cache_read_input_tokens\":7,\"output_tokens\":1}}}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
            (usage(20, Some(7), 15), true, false, 4, false, b""),
        ),
        ("data: {\"type\": \"message_stop\"}\n\n", (None, true, false, 1, false, b"")),
        (
            "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\nevent: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":30,\"input_tokens_details\":{\"cached_tokens\":0},\"output_tokens\":4,\"output_tokens_details\":{\"reasoning_tokens\":2},\"total_tokens\":34}}}\n\n",
            (usage(30, Some(0), 4), true, false, 2, false, b""),
        ),
        ("event: response.incomplete\ndata: {}\n\n", (None, true, false, 1, false, b"")),
        ("event: response.failed\ndata: {}\n\n", (None, true, true, 1, false, b"")),
        ("data: {\"type\":\"error\",\"error\":{}}\n\n", (None, false, true, 1, false, b"")),
        ("event: error\ndata: {}\n\n", (None, false, true, 1, false, b"")),
        ("data: {\"error\": {\"message\":\"x\"}}\n\n", (None, false, true, 1, false, b"")),
        ("data: {\"error\":null,\"x\":1}\n\n", (None, false, false, 1, false, b"")),
        (
            "data: {\"usage\":{\"properties\":{}}}\n\ndata: {\"usage\":{\"prompt_tokens\":-1}}\n\ndata: {\"usage\":{\"prompt_tokens\"\n\n",
            (None, false, false, 3, false, b""),
        ),
    ];
    for (stream, expected) in table {
        assert_eq!(&state(&watch(&[stream.as_bytes()])), expected, "{stream}");
        let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(&state(&watch(&bytes)), expected, "byte by byte: {stream}");
    }
}

#[test]
fn an_answer_begins_with_the_first_event_that_may_bear_a_token() {
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";
    for idle in [
        "",
        ": ping\n\n",
        "event: ping\ndata: {\"type\": \"ping\"}\n\n",
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{}}\n\n",
        "data: {\"type\":\"response.created\",\"response\":{}}\n\ndata: {\"type\":\"response.in_progress\"}\n\n",
        "event: response.queued\ndata: {}\n\n",
        "data: {\"error\":{\"message\":\"no\"}}\n\n",
        "event: error\ndata: {}\n\n",
        "data: [DONE]\n\n",
        "event: response.output_text.delta\n\n",
    ] {
        let mut seen = watch(&[idle.as_bytes()]);
        assert!(!seen.begun, "{idle}");
        // One event says nothing of the next.
        seen.feed(token.as_bytes());
        assert!(seen.begun, "{idle}");
    }
    for begun in [
        token,
        "data: {\"choices\":[{\"delta\":{\"error\":null}}]}\n\n",
        "event: response.output_text.delta\ndata: {}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\"}\n\n",
    ] {
        assert!(!watch(&[&begun.as_bytes()[..begun.len() - 1]]).begun, "{begun}");
        assert!(watch(&[begun.as_bytes()]).begun, "{begun}");
    }
}

#[test]
fn the_end_completes_an_open_event() {
    let mut watch = watch(&[b"data: 1\n\ndata: [DO", b"NE]"]);
    assert_eq!((watch.done, watch.events), (false, 1));
    watch.finish();
    assert_eq!((watch.done, watch.events, watch.mid_event()), (true, 2, false));
}

#[test]
fn usage_of_whole_answers() {
    let big = format!(
        r#"{{"choices":[{{"message":{{"content":"{}"}}}}],"usage":{{"prompt_tokens":3,"completion_tokens":4,"x":"}}\""}},"tail":"{}"}}"#,
        "x".repeat(100_000),
        "y".repeat(100_000)
    );
    let long = format!(r#"{{"usage":{{"prompt_tokens":3,"x":"{}"}}}}"#, "z".repeat(5000));
    let table: &[(&str, Option<Usage>)] = &[
        ("", None),
        ("{}", None),
        (r#"{"usage":null}"#, None),
        (r#"{"usage":{}}"#, None),
        (r#"{"usage":[{"prompt_tokens":3}]}"#, None),
        (r#"{"usage":{"prompt_tokens":3,"total_tokens":3}}"#, usage(3, None, 0)),
        (r#"{"usage":{"prompt_tokens":"3","completion_tokens":1}}"#, usage(0, None, 1)),
        (
            r#"{"usage":{"input_tokens":3,"output_tokens":2,"cache_read_input_tokens":null}}"#,
            usage(3, None, 2),
        ),
        ("{\n  \"usage\" :\n {\n \"prompt_tokens\": 3,\n \"completion_tokens\": 1 } }", usage(3, None, 1)),
        (r#""usage"usage":{"prompt_tokens":3}"#, None),
        (r#""usage"usage":""usage":{"prompt_tokens":3}"#, usage(3, None, 0)),
        (&big, usage(3, None, 4)),
        (&long, None),
        (r#"usage":{"prompt_tokens":9},"usage":{"prompt_tokens":3}}"#, usage(3, None, 0)),
    ];
    for (answer, expected) in table {
        assert_eq!(usage_of_json(answer.as_bytes()), *expected, "{answer:.60}");
    }
}

/// Pieces of streams, whole and broken.
fn any_event() -> impl Strategy<Value = String> {
    let fixed = prop::sample::select(
        &[
            "data: [DONE]\n\n",
            "data: [DONE]",
            "\n",
            "\r\n",
            "\r",
            "data:",
            "event: message_stop\n",
            "event: error\r\n",
            "data: {\"type\":\"response.failed\"}\n\n",
            "data: {\"error\" : \"x\"}\n\n",
            "\"usage\"",
            "\"usag",
            "\"",
            ":",
            "{",
            "}",
            "\\",
            "\"usage\":{\"prompt_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":3}}",
            "\"usage\":{\"completion_tokens\":9,\"s\":\"}\\\"{\"}",
        ][..],
    );
    prop_oneof![
        4 => fixed.prop_map(String::from),
        2 => any_text().prop_map(|text| format!("data: {text}\n\n")),
        1 => "[a-z]{100,300}",
    ]
}

fn cut<'s>(stream: &'s [u8], cuts: &[prop::sample::Index]) -> Vec<&'s [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    at.sort_unstable();
    at.push(stream.len());
    let mut from = 0;
    at.into_iter().map(|to| &stream[std::mem::replace(&mut from, to)..to]).collect()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn cutting_does_not_matter(
        events in prop::collection::vec(any_event(), 0..24),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..16),
    ) {
        let stream = events.concat().into_bytes();
        let mut whole = watch(&[&stream]);
        let mut pieces = watch(&cut(&stream, &cuts));
        let mut bytes = watch(&stream.chunks(1).collect::<Vec<_>>());
        prop_assert_eq!(state(&pieces), state(&whole));
        prop_assert_eq!(state(&bytes), state(&whole));
        prop_assert_eq!((pieces.begun, bytes.begun), (whole.begun, whole.begun));
        for watch in [&mut whole, &mut pieces, &mut bytes] {
            watch.finish();
        }
        prop_assert_eq!(state(&pieces), state(&whole));
        prop_assert_eq!(state(&bytes), state(&whole));
    }

    #[test]
    fn usage_is_found_wherever_it_is_cut(
        before in any_text(),
        prompt in 1u64..1_000_000,
        completion in 1u64..1_000_000,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let text = common::Writer::plain().string(&before);
        let answer = format!(
            "{{\"text\":{text},\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion}}},\"more\":{text}}}"
        );
        let mut watch = UsageWatch::new();
        for piece in cut(answer.as_bytes(), &cuts) {
            watch.feed(piece);
        }
        prop_assert_eq!(watch.usage(), usage(prompt, None, completion));
    }
}

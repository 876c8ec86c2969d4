//! Tables: what a scan finds, and what it refuses with which words.

use fairlead_openai::{Api, Prompt, Scan, Span, scan, validate};

fn ok(api: Api, body: &str) -> Scan<'_> {
    match scan(body.as_bytes(), api) {
        Ok(scan) => scan,
        Err(error) => panic!("{body}: {error}"),
    }
}

fn part(body: &str, span: Option<Span>) -> Option<&str> {
    span.map(|span| std::str::from_utf8(span.of(body.as_bytes())).expect("spans end at characters"))
}

#[test]
fn members_are_found() {
    let body = r#" { "messages" : [ {"role":"user","content":"hi"} ] , "model":"org/model-7b", "stream" : true,
        "stream_options":{"x":[1],"include_usage":true}, "max_tokens":17, "n":2, "cache_salt":"s", "user":"u",
        "temperature":0.5, "unknown":{"a":[1,2,{"b":null}]} } "#;
    let scan = ok(Api::Chat, body);
    assert_eq!(scan.model.as_deref(), Some("org/model-7b"));
    assert_eq!(part(body, scan.model_span), Some("\"org/model-7b\""));
    assert!(scan.stream && scan.include_usage);
    assert_eq!((scan.max_tokens, scan.n), (Some(17), Some(2)));
    assert_eq!((scan.cache_salt.as_deref(), scan.user.as_deref()), (Some("s"), Some("u")));
    assert_eq!(scan.steering, None);
    assert_eq!(part(body, scan.prompt.messages), Some(r#"[ {"role":"user","content":"hi"} ]"#));
}

#[test]
fn an_empty_object_says_nothing() {
    for api in [Api::Chat, Api::Completions, Api::Responses, Api::Messages, Api::Other] {
        let scan = ok(api, "{}");
        assert_eq!(scan, Scan::default());
        assert!(scan.prompt.is_empty());
    }
}

#[test]
fn nulls_are_absent() {
    let body = r#"{"model":null,"stream":null,"stream_options":null,"max_tokens":null,"n":null,"user":null,
        "messages":null,"tools":null,"cache_salt":null,"kv_transfer_params":null,"session_params":null}"#;
    assert_eq!(ok(Api::Chat, body), Scan::default());
}

#[test]
fn the_last_of_equal_members_counts() {
    let body = r#"{"model":"a","stream":true,"messages":[],"n":1,"model":"b","stream":false,"messages":[{}],"n":null}"#;
    let scan = ok(Api::Chat, body);
    assert_eq!(scan.model.as_deref(), Some("b"));
    assert!(!scan.stream);
    assert_eq!(scan.n, None);
    assert_eq!(part(body, scan.prompt.messages), Some("[{}]"));
}

#[test]
fn escapes_in_names_and_values_are_read() {
    let body = r#"{"m\u006fdel":"a\/b \ud83e\udd80 \"q\"","\u0073tream":true,"kv\u005ftransfer_params":{}}"#;
    let scan = ok(Api::Chat, body);
    assert_eq!(scan.model.as_deref(), Some("a/b 🦀 \"q\""));
    assert!(scan.stream);
    assert_eq!(scan.steering, Some("kv_transfer_params"));
}

#[test]
fn nothing_is_copied_for_plain_strings() {
    let scan = ok(Api::Chat, r#"{"model":"m","user":"ü","cache_salt":"s"}"#);
    for text in [scan.model, scan.user, scan.cache_salt] {
        assert!(matches!(text, Some(std::borrow::Cow::Borrowed(_))));
    }
}

#[test]
fn token_limits_have_many_names() {
    let table = [
        (r#"{"max_tokens":5}"#, Some(5)),
        (r#"{"max_completion_tokens":6}"#, Some(6)),
        (r#"{"max_completion_tokens":6,"max_tokens":5}"#, Some(6)),
        (r#"{"max_tokens":5,"max_completion_tokens":6}"#, Some(6)),
        (r#"{"max_tokens":5,"max_completion_tokens":null}"#, Some(5)),
        (r#"{"max_output_tokens":7}"#, Some(7)),
        (r#"{"max_tokens":5.0}"#, None),
        (r#"{"max_tokens":-5}"#, None),
        (r#"{"max_tokens":123456789012345678901234567890}"#, None),
        (r#"{"max_tokens":18446744073709551615}"#, Some(u64::MAX)),
        (r#"{"max_tokens":1e3}"#, None),
    ];
    for (body, limit) in table {
        assert_eq!(ok(Api::Chat, body).max_tokens, limit, "{body}");
    }
}

#[test]
fn sessions_have_ranks() {
    let table = [
        (r#"{"prompt_cache_key":"k"}"#, Some("k")),
        (r#"{"session_id":"s","prompt_cache_key":"k"}"#, Some("s")),
        (r#"{"session_params":{"a":1,"session_id":"p"},"session_id":"s","prompt_cache_key":"k"}"#, Some("p")),
        (r#"{"session_id":null,"prompt_cache_key":"k"}"#, Some("k")),
        (r#"{"session_params":"odd"}"#, None),
        (r#"{}"#, None),
    ];
    for (body, session) in table {
        assert_eq!(ok(Api::Chat, body).session.as_deref(), session, "{body}");
    }
}

#[test]
fn every_api_has_its_prompt() {
    type Pick = fn(&Prompt) -> Option<Span>;
    let (text, messages): (Pick, Pick) = (|p| p.text, |p| p.messages);
    let (system, tools): (Pick, Pick) = (|p| p.system, |p| p.tools);
    let (query, documents): (Pick, Pick) = (|p| p.query, |p| p.documents);
    let table: &[(Api, &str, Pick, Option<&str>)] = &[
        (Api::Chat, r#"{"messages":[]}"#, messages, Some("[]")),
        (Api::Chat, r#"{"tools":[{}],"messages":[]}"#, tools, Some("[{}]")),
        (Api::Chat, r#"{"functions":[{}]}"#, |p| p.functions, Some("[{}]")),
        (Api::Chat, r#"{"system":"x"}"#, system, None),
        (Api::Chat, r#"{"prompt":5}"#, text, None),
        (Api::Completions, r#"{"prompt":"x"}"#, text, Some("\"x\"")),
        (Api::Completions, r#"{"prompt":["x","y"]}"#, text, Some(r#"["x","y"]"#)),
        (Api::Completions, r#"{"prompt":[1,2]}"#, text, Some("[1,2]")),
        (Api::Completions, r#"{"prompt":[[1],[2]]}"#, text, Some("[[1],[2]]")),
        (Api::Completions, r#"{"prompt":null,"prompt_embeds":"AA"}"#, text, None),
        (Api::Embeddings, r#"{"input":"x"}"#, text, Some("\"x\"")),
        (Api::Embeddings, r#"{"input":[[1,2]]}"#, text, Some("[[1,2]]")),
        (Api::Embeddings, r#"{"input":[{"type":"image"}]}"#, text, Some(r#"[{"type":"image"}]"#)),
        (Api::Embeddings, r#"{"messages":[]}"#, messages, Some("[]")),
        (Api::Responses, r#"{"input":"x","instructions":"i"}"#, text, Some("\"x\"")),
        (Api::Responses, r#"{"input":"x","instructions":"i"}"#, system, Some("\"i\"")),
        (Api::Responses, r#"{"input":[{"role":"user"}],"tools":[]}"#, tools, Some("[]")),
        (Api::Responses, r#"{"prompt":{"id":"p"}}"#, text, None),
        (Api::Messages, r#"{"system":"s","messages":[]}"#, system, Some("\"s\"")),
        (
            Api::Messages,
            r#"{"system":[{"type":"text","text":"s"}]}"#,
            system,
            Some(r#"[{"type":"text","text":"s"}]"#),
        ),
        (
            Api::CountTokens,
            r#"{"messages":[{"role":"user","content":"x"}]}"#,
            messages,
            Some(r#"[{"role":"user","content":"x"}]"#),
        ),
        (Api::Rerank, r#"{"query":"q","documents":["a","b"]}"#, query, Some("\"q\"")),
        (Api::Rerank, r#"{"query":"q","documents":["a","b"]}"#, documents, Some(r#"["a","b"]"#)),
        (Api::Score, r#"{"text_1":"a","text_2":["b"]}"#, query, Some("\"a\"")),
        (Api::Score, r#"{"text_1":"a","text_2":["b"]}"#, documents, Some(r#"["b"]"#)),
        (Api::Tokenize, r#"{"prompt":"x"}"#, text, Some("\"x\"")),
        (Api::Tokenize, r#"{"messages":[]}"#, messages, Some("[]")),
        (Api::Detokenize, r#"{"tokens":[1,2]}"#, text, Some("[1,2]")),
        (Api::Other, r#"{"input":{"odd":1}}"#, text, Some(r#"{"odd":1}"#)),
        (Api::Other, r#"{"messages":5}"#, messages, Some("5")),
    ];
    for (api, body, pick, expected) in table {
        assert_eq!(part(body, pick(&ok(*api, body).prompt)), *expected, "{api:?} {body}");
    }
}

#[test]
fn users_and_earlier_responses() {
    let body = r#"{"metadata":{"user_id":"u-1","x":[]},"user":"other"}"#;
    assert_eq!(ok(Api::Messages, r#"{"metadata":{"user_id":"u-1","x":[]}}"#).user.as_deref(), Some("u-1"));
    assert_eq!(ok(Api::Chat, body).user.as_deref(), Some("other"));
    let body = r#"{"previous_response_id":"resp_1"}"#;
    assert_eq!(ok(Api::Responses, body).previous_response.as_deref(), Some("resp_1"));
    assert_eq!(ok(Api::Chat, body).previous_response, None);
}

#[test]
fn steering_members_are_found() {
    for name in [
        "kv_transfer_params",
        "ec_transfer_params",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "routed_dp_rank",
        "data_parallel_rank",
        "disagg_prefill_dp_rank",
    ] {
        for body in [
            format!(r#"{{"{name}":1}}"#),
            format!(r#"{{"{name}":null,"{name}":{{"a":1}}}}"#),
            format!(r#"{{"vllm_xargs":{{"{name}":[1]}}}}"#),
            format!(r#"{{"sampling_params":{{"extra_args":{{"{name}":"x"}}}}}}"#),
        ] {
            assert_eq!(ok(Api::Chat, &body).steering, Some(name), "{body}");
        }
        for body in [
            format!(r#"{{"{name}":null}}"#),
            format!(r#"{{"x":{{"{name}":1}}}}"#),
            format!(r#"{{"messages":[{{"role":"user","content":"{name}"}}]}}"#),
            format!(r#"{{"x":"\"{name}\":1"}}"#),
        ] {
            assert_eq!(ok(Api::Chat, &body).steering, None, "{body}");
        }
    }
}

#[test]
fn refusals_name_the_place() {
    use Api::*;
    let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(128), "]".repeat(128));
    let table: &[(Api, &str, usize, &str, &str)] = &[
        (Chat, "", 0, "", "unexpected end of the body"),
        (Chat, "  ", 2, "", "unexpected end of the body"),
        (Chat, "[]", 0, "", "expected an object, found an array"),
        (Chat, "\"x\"", 0, "", "expected an object, found a string"),
        (Chat, "{} x", 3, "", "unexpected bytes after the JSON value"),
        (Chat, "{}{}", 2, "", "unexpected bytes after the JSON value"),
        (Chat, "\u{feff}{}", 0, "", "expected a value"),
        (Chat, r#"{"model":"m""#, 12, "model", "unexpected end of the body"),
        (Chat, r#"{"model":"m",}"#, 13, "", "expected a member name in quotes"),
        (Chat, r#"{"model" "m"}"#, 9, "model", "expected `:`"),
        (Chat, r#"{'model':1}"#, 1, "", "expected a member name in quotes"),
        (Chat, r#"{"model":5}"#, 9, "model", "expected a string, found a number"),
        (Chat, r#"{"model":["m"]}"#, 9, "model", "expected a string, found an array"),
        (Chat, r#"{"stream":"yes"}"#, 10, "stream", "expected a boolean, found a string"),
        (Chat, r#"{"stream":1}"#, 10, "stream", "expected a boolean, found a number"),
        (Chat, r#"{"max_tokens":"5"}"#, 14, "max_tokens", "expected a number, found a string"),
        (Chat, r#"{"n":[]}"#, 5, "n", "expected a number, found an array"),
        (Chat, r#"{"stream_options":true}"#, 18, "stream_options", "expected an object, found a boolean"),
        (
            Chat,
            r#"{"stream_options":{"include_usage":1}}"#,
            35,
            "stream_options.include_usage",
            "expected a boolean, found a number",
        ),
        (Chat, r#"{"messages":"hi"}"#, 12, "messages", "expected an array of messages, found a string"),
        (Chat, r#"{"messages":[{},"hi"]}"#, 16, "messages[1]", "expected a message object, found a string"),
        (
            Chat,
            r#"{"messages":[{},{},{"content":5}]}"#,
            30,
            "messages[2].content",
            "expected a string or an array of parts, found a number",
        ),
        (
            Chat,
            r#"{"messages":[{"content":{"a":1}}]}"#,
            24,
            "messages[0].content",
            "expected a string or an array of parts, found an object",
        ),
        (
            Chat,
            r#"{"messages":[{"content":["a",7]}]}"#,
            29,
            "messages[0].content[1]",
            "expected a content part (an object), found a number",
        ),
        (
            Chat,
            r#"{"messages":[{"content":[{"type":1}]}]}"#,
            33,
            "messages[0].content[0].type",
            "expected a string, found a number",
        ),
        (
            Chat,
            r#"{"messages":[{"content":[{"text":[]}]}]}"#,
            33,
            "messages[0].content[0].text",
            "expected a string, found an array",
        ),
        (Chat, r#"{"messages":[{"role":null}]}"#, 21, "messages[0].role", "expected a string, found null"),
        (
            Chat,
            r#"{"messages":[{"tool_calls":{}}]}"#,
            27,
            "messages[0].tool_calls",
            "expected an array, found an object",
        ),
        (Chat, r#"{"tools":{}}"#, 9, "tools", "expected an array, found an object"),
        (Completions, r#"{"prompt":5}"#, 10, "prompt", "expected a string or an array, found a number"),
        (
            Completions,
            r#"{"prompt":["a",true]}"#,
            15,
            "prompt[1]",
            "expected a string, a token id or an array of token ids, found a boolean",
        ),
        (Completions, r#"{"prompt":[[1,"a"]]}"#, 14, "prompt[0][1]", "expected a token id, found a string"),
        (Embeddings, r#"{"input":true}"#, 9, "input", "expected a string or an array, found a boolean"),
        (Responses, r#"{"input":[5]}"#, 10, "input[0]", "expected an input item (an object), found a number"),
        (Responses, r#"{"instructions":[]}"#, 16, "instructions", "expected a string, found an array"),
        (Messages, r#"{"system":5}"#, 10, "system", "expected a string or an array of parts, found a number"),
        (
            Messages,
            r#"{"metadata":{"user_id":5}}"#,
            23,
            "metadata.user_id",
            "expected a string, found a number",
        ),
        (
            Rerank,
            r#"{"documents":5}"#,
            13,
            "documents",
            "expected a string, an object or an array, found a number",
        ),
        (Detokenize, r#"{"tokens":["a"]}"#, 11, "tokens[0]", "expected a token id, found a string"),
        (Chat, r#"{"a":tru}"#, 5, "a", "expected `true`, `false` or `null`"),
        (Chat, r#"{"a":01}"#, 6, "a", "expected `,` or `}`"),
        (Chat, r#"{"a":1.}"#, 7, "a", "malformed number"),
        (Chat, r#"{"a":-}"#, 6, "a", "malformed number"),
        (Chat, r#"{"a":1e+}"#, 8, "a", "malformed number"),
        (Chat, r#"{"a":+1}"#, 5, "a", "expected a value"),
        (Chat, r#"{"a":NaN}"#, 5, "a", "expected a value"),
        (Chat, r#"{"a":[1,]}"#, 8, "a[1]", "expected a value"),
        (Chat, r#"{"a":[1 2]}"#, 8, "a[0]", "expected `,` or `]`"),
        (Chat, r#"{"a":{"b":1]}"#, 11, "a.b", "expected `,` or `}`"),
        (Chat, r#"{"a":"\x"}"#, 6, "a", "invalid escape in a string"),
        (Chat, r#"{"a":"\u12g4"}"#, 6, "a", "invalid escape in a string"),
        (Chat, r#"{"a":"\ud800"}"#, 6, "a", "unpaired surrogate in a \\u escape"),
        (Chat, r#"{"a":"\ud800\u0041"}"#, 6, "a", "unpaired surrogate in a \\u escape"),
        (Chat, r#"{"a":"\udc00"}"#, 6, "a", "unpaired surrogate in a \\u escape"),
        (Chat, "{\"a\":\"x\ny\"}", 7, "a", "raw control character in a string"),
        (
            Chat,
            "{\"a\":\"0123456789012345678901234567890123456789\ty\"}",
            46,
            "a",
            "raw control character in a string",
        ),
        (
            Chat,
            "{\"messages\":[{\"content\":\"\u{0}\"}]}",
            25,
            "messages[0].content",
            "raw control character in a string",
        ),
        (Chat, &deep, 132, "a[0][0][0][0][0][0][0][0][0][0][0]…", "nested more than 128 deep"),
    ];
    for (api, body, offset, place, what) in table {
        let Err(error) = scan(body.as_bytes(), *api) else { panic!("accepted: {body}") };
        assert_eq!((error.offset, &*error.place, &*error.what), (*offset, *place, *what), "{body}");
    }
}

#[test]
fn invalid_utf8_is_refused_where_it_lies() {
    let table: &[(&[u8], usize, &str)] = &[
        (b"{\"messages\":[{\"role\":\"user\",\"content\":\"ab\xff\"}]}", 41, "messages[0].content"),
        (b"{\"model\":\"\xc3(\"}", 10, "model"),
        (b"{\"a\":\"\xed\xa0\x80\"}", 6, "a"),
        (b"\xff{}", 0, ""),
        (b"{}\xe2\x82", 2, ""),
    ];
    for (body, offset, place) in table {
        let error = scan(body, Api::Chat).expect_err("invalid UTF-8");
        assert_eq!((error.offset, &*error.place, &*error.what), (*offset, *place, "invalid UTF-8"));
    }
}

#[test]
fn depth_has_an_exact_bound() {
    for (depth, fits) in [(1, true), (127, true), (128, true), (129, false), (100_000, false)] {
        let arrays = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(validate(arrays.as_bytes()).is_ok(), fits, "{depth} arrays");
        let objects = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        assert_eq!(validate(objects.as_bytes()).is_ok(), fits, "{depth} objects");
        assert_eq!(scan(objects.as_bytes(), Api::Chat).is_ok(), fits, "{depth} objects scanned");
        let hidden = format!("{}1{}", "{\"sampling_params\":".repeat(depth), "}".repeat(depth));
        assert_eq!(scan(hidden.as_bytes(), Api::Chat).is_ok(), fits, "{depth} containers");
    }
}

#[test]
fn odd_numbers_and_unknown_members_pass() {
    let body = r#"{"model":"m","seed":123456789012345678901234567890123456789,"a":1e400,"b":-0.0E-999,"c":-0,"d":"\u0000"}"#;
    assert_eq!(ok(Api::Chat, body).model.as_deref(), Some("m"));
}

#[test]
fn errors_read_well() {
    let error = scan(br#"{"messages":[{"content":5}]}"#, Api::Chat).expect_err("a wrong type");
    assert_eq!(
        error.to_string(),
        "messages[0].content: expected a string or an array of parts, found a number (byte 24)"
    );
    let error = scan(b"", Api::Chat).expect_err("nothing");
    assert_eq!(error.to_string(), "request body: unexpected end of the body (byte 0)");
}

//! The answers that the router writes itself.

mod common;

use common::{any_text, config};
use fairlead_openai::{
    Api, ErrorInfo, ErrorStyle, ModelCard, SseWatch, error_body, error_event, error_type, model_body,
    models_body,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body).expect("valid JSON")
}

#[test]
fn types_follow_the_status() {
    let table = [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (403, "permission_error", "permission_error"),
        (404, "invalid_request_error", "not_found_error"),
        (408, "timeout_error", "timeout_error"),
        (413, "invalid_request_error", "request_too_large"),
        (422, "invalid_request_error", "invalid_request_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "api_error", "api_error"),
        (502, "api_error", "api_error"),
        (503, "overloaded_error", "overloaded_error"),
        (504, "timeout_error", "timeout_error"),
        (529, "overloaded_error", "overloaded_error"),
    ];
    for (status, openai, anthropic) in table {
        assert_eq!(error_type(ErrorStyle::OpenAi, status), openai, "{status}");
        assert_eq!(error_type(ErrorStyle::Anthropic, status), anthropic, "{status}");
    }
}

#[test]
fn bodies_have_their_shapes() {
    let error = ErrorInfo {
        code: Some("model_not_found"),
        param: Some("model"),
        request_id: Some("req_1"),
        ..ErrorInfo::new(404, "no such model")
    };
    assert_eq!(
        parsed(&error_body(ErrorStyle::OpenAi, &error)),
        json!({"error": {"message": "no such model", "type": "invalid_request_error", "param": "model",
            "code": "model_not_found"}})
    );
    assert_eq!(
        parsed(&error_body(ErrorStyle::Anthropic, &error)),
        json!({"type": "error", "error": {"type": "not_found_error", "message": "no such model"},
            "request_id": "req_1"})
    );
    let error = ErrorInfo { kind: Some("own_type"), ..ErrorInfo::new(500, "x") };
    assert_eq!(
        parsed(&error_body(ErrorStyle::OpenAi, &error)),
        json!({"error": {"message": "x", "type": "own_type", "param": null, "code": null}})
    );
    assert_eq!(
        parsed(&error_body(ErrorStyle::Anthropic, &error)),
        json!({"type": "error", "error": {"type": "own_type", "message": "x"}})
    );
}

#[test]
fn events_have_their_stream_s_form() {
    let error = ErrorInfo::new(502, "engine went away");
    let table = [
        (
            Api::Chat,
            "data: ",
            json!({"error": {"message": "engine went away", "type": "api_error", "param": null, "code": null}}),
        ),
        (
            Api::Messages,
            "event: error\ndata: ",
            json!({"type": "error", "error": {"type": "api_error", "message": "engine went away"}}),
        ),
        (
            Api::Responses,
            "event: error\ndata: ",
            json!({"type": "error", "code": "api_error", "message": "engine went away", "param": null, "sequence_number": 7}),
        ),
    ];
    for (api, head, data) in table {
        let event = String::from_utf8(error_event(api, &error, 7)).expect("UTF-8");
        let rest = event.strip_prefix(head).expect("the form's head");
        let body = rest.strip_suffix("\n\n").expect("a blank line");
        assert!(!body.contains('\n'));
        assert_eq!(parsed(body.as_bytes()), data, "{api:?}");
        let mut watch = SseWatch::new();
        watch.feed(event.as_bytes());
        assert!(watch.failed && !watch.done && !watch.mid_event(), "{api:?}");
    }
}

#[test]
fn models_are_listed() {
    assert_eq!(parsed(&models_body([], 5)), json!({"object": "list", "data": []}));
    let cards = [
        ModelCard::new("a\"b"),
        ModelCard { max_model_len: Some(4096), owned_by: "x", ..ModelCard::new("c") },
    ];
    assert_eq!(
        parsed(&models_body(cards, 5)),
        json!({"object": "list", "data": [
            {"id": "a\"b", "object": "model", "created": 5, "owned_by": "fairlead"},
            {"id": "c", "object": "model", "created": 5, "owned_by": "x", "max_model_len": 4096},
        ]})
    );
    assert_eq!(parsed(&model_body(&cards[1], 5))["id"], "c");
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_message_survives(message in any_text(), code in any_text()) {
        let error = ErrorInfo { code: Some(&code), ..ErrorInfo::new(400, &message) };
        let body = parsed(&error_body(ErrorStyle::OpenAi, &error));
        prop_assert_eq!(&body["error"]["message"], &message);
        prop_assert_eq!(&body["error"]["code"], &code);
        let event = error_event(Api::Messages, &error, 0);
        prop_assert_eq!(event.iter().filter(|&&byte| byte == b'\n').count(), 3);
    }
}

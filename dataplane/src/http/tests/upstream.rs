//! Heads for engines: what is kept, what is removed, what is added.

use super::super::*;
use super::request::parse;

const PLAN: UpstreamHead<'static> = UpstreamHead {
    base_path: "",
    host: "10.0.0.1:8000",
    request_id: RequestIdRule::KeepOr("generated"),
    body: OutgoingBody::None,
    plain: false,
    add: &[],
};

fn upstream(bytes: &str, plan: &UpstreamHead<'_>) -> String {
    let (head, parsed) = parse(bytes.as_bytes());
    assert!(matches!(parsed, Parsed::Done(_)), "{parsed:?} for {bytes}");
    let mut out = Vec::new();
    head.write_upstream(bytes.as_bytes(), plan, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn end_to_end_fields_keep_order_case_and_spelling() {
    let text = "POST /v1/x?y=%2F HTTP/1.1\r\nAuthorization: Bearer  k\r\nhost: a\r\nX-Odd:   two  \r\nAccept: */*\r\n\
                X-Odd: again\r\nx-Request-id: mine\r\nContent-Length: 3\r\nZ: \u{fc}\r\n\r\n";
    let plan = UpstreamHead { body: OutgoingBody::Length(3), ..PLAN };
    assert_eq!(upstream(text, &plan), text);
}

#[test]
fn hop_by_hop_and_steering_fields_are_removed() {
    let dropped = [
        "Connection: keep-alive, x-named",
        "X-Named: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic x",
        "Proxy-Authenticate: x",
        "TE: trailers",
        "Trailer: x",
        "Upgrade: websocket",
        "HTTP2-Settings: x",
        "Expect: 100-continue",
        "X-Override-Bootstrap-Host: evil",
        "x-override-bootstrap-port: 1",
        "x-override-bootstrap-room: 1",
        "x-override-routed-dp-rank: 1",
        "x-override-disagg-prefill-dp-rank: 1",
        "x-override-rid: 1",
        "x-override-priority: 1",
        "x-override-conversation-id: 1",
        "x_override_rid: 1",
        "X-OVERRIDE-anything: 1",
        "x-prefiller-host-port: evil:1",
        "x-prefiller-url: http://evil",
        "x-encoder-hosts-ports: evil:1",
        "x-kv-cache-source-host-port: evil:1",
        "X-data-parallel-rank: 1",
        "x-data-parallel-host-port: evil:1",
        "X-Data-Parallel-Endpoint: evil:1",
        "x-gateway-destination-endpoint: evil:1",
        "x-gateway-destination-endpoint-subset: evil:1",
        "x-gateway-destination-endpoint-served: evil:1",
        "x-fairlead-instance: x",
        "x-fairlead-explain: 1",
        "target-pod: evil",
        "target-pod-ip: evil",
        "prefill-target-pod: evil",
        "prefill-target-pod-ip: evil",
        "x-dynamo-worker-instance-id: 1",
        "x-dynamo-dp-rank: 1",
        "X-SMG-Target-Worker: 1",
        "x_request_id: mine",
    ];
    for field in dropped {
        let connection = if field.starts_with("X-Named") { "Connection: x-named\r\n" } else { "" };
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{connection}A: 1\r\n{field}\r\nB: 2\r\n\r\n");
        assert_eq!(
            upstream(&text, &PLAN),
            "GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\nX-Request-Id: generated\r\n\r\n",
            "{field}"
        );
    }
    let kept = [
        "X-Forwarded-For: 1.2.3.4",
        "x-session-id: s",
        "X-Stainless-Lang: python",
        "x-override: no prefix",
        "x-data-parallel: no prefix",
        "x-encoder-hosts-ports-more: other name",
        "te-st: 1",
        "Accept-Encoding: gzip",
        "traceparent: 00-1-2-3",
        "anthropic-version: 2023-06-01",
    ];
    for field in kept {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
        let wanted = format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\nX-Request-Id: generated\r\n\r\n");
        assert_eq!(upstream(&text, &PLAN), wanted, "{field}");
    }
}

#[test]
fn connection_cannot_remove_what_the_gateway_answers_for() {
    let text = "POST / HTTP/1.1\r\nConnection: host, content-length\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
    let plan = UpstreamHead { body: OutgoingBody::Length(3), ..PLAN };
    assert_eq!(
        upstream(text, &plan),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX-Request-Id: generated\r\n\r\n"
    );
}

#[test]
fn framing_is_made_anew() {
    let cases: &[(&str, OutgoingBody, &str)] = &[
        ("Transfer-Encoding: chunked\r\n", OutgoingBody::Length(7), "Content-Length: 7\r\n"),
        ("Transfer-Encoding: CHUNKED\r\n", OutgoingBody::Chunked, "Transfer-Encoding: chunked\r\n"),
        ("Content-Length: 007\r\n", OutgoingBody::Length(7), "Content-Length: 7\r\n"),
        ("Content-Length: 7\r\nContent-Length: 7\r\n", OutgoingBody::Length(7), "Content-Length: 7\r\n"),
        ("Content-Length: 7\r\n", OutgoingBody::Length(9), "Content-Length: 9\r\n"),
        ("Content-Length: 7\r\n", OutgoingBody::Chunked, "Transfer-Encoding: chunked\r\n"),
        ("", OutgoingBody::None, "Content-Length: 0\r\n"),
        ("", OutgoingBody::Length(u64::MAX), "Content-Length: 18446744073709551615\r\n"),
    ];
    for (fields, body, wanted) in cases {
        let text = format!("POST / HTTP/1.1\r\nHost: a\r\nX-Request-Id: i\r\n{fields}\r\n");
        let wanted = format!("POST / HTTP/1.1\r\nHost: a\r\nX-Request-Id: i\r\n{wanted}\r\n");
        assert_eq!(upstream(&text, &UpstreamHead { body: *body, ..PLAN }), wanted, "{fields}");
    }
    assert_eq!(OutgoingBody::like(Framing::Length(3)), OutgoingBody::Length(3));
    assert_eq!(OutgoingBody::like(Framing::Chunked), OutgoingBody::Chunked);
}

#[test]
fn host_comes_from_the_target_then_the_field_then_the_plan() {
    let absolute = "GET http://b:81/x?y HTTP/1.1\r\nA: 1\r\nHost: a\r\nX-Request-Id: i\r\n\r\n";
    assert_eq!(
        upstream(absolute, &PLAN),
        "GET /x?y HTTP/1.1\r\nHost: b:81\r\nA: 1\r\nX-Request-Id: i\r\n\r\n"
    );
    let none = "GET /x HTTP/1.0\r\nX-Request-Id: i\r\n\r\n";
    assert_eq!(upstream(none, &PLAN), "GET /x HTTP/1.1\r\nHost: 10.0.0.1:8000\r\nX-Request-Id: i\r\n\r\n");
}

#[test]
fn request_id_rules() {
    let sent = "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\nB: 1\r\n\r\n";
    let set = UpstreamHead { request_id: RequestIdRule::Set("theirs"), add: &[("x-a", "b")], ..PLAN };
    assert_eq!(
        upstream(sent, &set),
        "GET / HTTP/1.1\r\nHost: a\r\nB: 1\r\nX-Request-Id: theirs\r\nx-a: b\r\n\r\n"
    );
    let bad = "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: not so\r\n\r\n";
    assert_eq!(upstream(bad, &PLAN), "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: generated\r\n\r\n");
}

#[test]
fn base_path_is_removed_at_a_segment_border() {
    let cases: &[(&str, &str, Option<&str>)] = &[
        ("/v1/x", "", Some("/v1/x")),
        ("/v1/x", "/", Some("/v1/x")),
        ("/api/v1/x", "/api", Some("/v1/x")),
        ("/api/v1/x", "/api/", Some("/v1/x")),
        ("/api", "/api", Some("/")),
        ("/api/", "/api", Some("/")),
        ("/apis/v1", "/api", None),
        ("/v1", "/api", None),
        ("*", "", Some("*")),
        ("*", "/api", None),
    ];
    for (path, base, wanted) in cases {
        assert_eq!(strip_base_path(path, base), *wanted, "{path} below {base}");
    }
    let text = "GET /api/v1/models?a HTTP/1.1\r\nHost: a\r\nX-Request-Id: i\r\n\r\n";
    let plan = UpstreamHead { base_path: "/api", ..PLAN };
    assert_eq!(upstream(text, &plan), "GET /v1/models?a HTTP/1.1\r\nHost: a\r\nX-Request-Id: i\r\n\r\n");
    let (head, _) = parse(text.as_bytes());
    assert_eq!(head.route(text.as_bytes(), "/api"), Some("/v1/models"));
    assert_eq!(head.route(text.as_bytes(), "/other"), None);
}

#[test]
fn generated_ids_are_distinct_and_well_formed() {
    let mut ids = RequestIds::new(7);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let id = ids.next_id();
        assert_eq!(id.as_str().len(), 32);
        assert!(is_well_formed_request_id(id.as_str().as_bytes()));
        assert!(seen.insert(id));
    }
    assert_ne!(RequestIds::new(1).next_id(), RequestIds::new(2).next_id());
}

//! Response heads from engines, heads for clients, and the gateway's own answers.

use http::StatusCode;

use super::super::*;

pub(super) fn parse(bytes: &[u8], to_head: bool) -> (ResponseHead, Parsed) {
    let mut head = ResponseHead::new();
    let parsed = head.parse(bytes, to_head, &HeadLimits::default());
    (head, parsed)
}

#[test]
fn framing_follows_status_method_and_fields() {
    let cases: &[(&str, bool, Framing, bool)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, Framing::Length(5), true),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            false,
            Framing::Length(5),
            true,
        ),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", false, Framing::Chunked, true),
        ("HTTP/1.1 200 OK\r\n\r\n", false, Framing::UntilClose, false),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
            false,
            Framing::Length(5),
            false,
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false, Framing::Length(5), false),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
            false,
            Framing::Length(5),
            true,
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, Framing::None, true),
        ("HTTP/1.1 200 OK\r\n\r\n", true, Framing::None, true),
        ("HTTP/1.1 204 No Content\r\n\r\n", false, Framing::None, true),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, Framing::None, true),
        ("HTTP/1.1 503\r\nContent-Length: 0\r\n\r\n", false, Framing::Length(0), true),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            false,
            Framing::Length(5),
            true,
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 P\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
            false,
            Framing::None,
            true,
        ),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", false, Framing::None, true),
    ];
    for (text, to_head, framing, kept) in cases {
        let (head, parsed) = parse(text.as_bytes(), *to_head);
        assert_eq!(parsed, Parsed::Done(text.len()), "{text}");
        assert_eq!(head.framing(), *framing, "{text}");
        assert_eq!(head.keep_alive(), *kept, "{text}");
        assert_eq!(head.head_len(), text.len());
    }
}

#[test]
fn broken_engines_are_recognised() {
    let cases: &[&[u8]] = &[
        b"garbage\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\ngarbage\r\n\r\n",
    ];
    for bytes in cases {
        let text = String::from_utf8_lossy(bytes);
        match parse(bytes, false).1 {
            Parsed::Bad(reject) => assert_eq!(reject.status, StatusCode::BAD_GATEWAY, "{text}"),
            other => panic!("{other:?} for {text}"),
        }
    }
}

#[test]
fn endless_interim_responses_hit_the_limit() {
    let flood = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(3000);
    assert!(matches!(parse(&flood, false).1, Parsed::Bad(_)));
    assert_eq!(parse(&flood[..250], false).1, Parsed::NeedMore);
}

#[test]
fn streams_and_encodings_are_noticed() {
    for (field, stream, encoded) in [
        ("Content-Type: text/event-stream; charset=utf-8", true, false),
        ("content-type: Text/Event-Stream", true, false),
        ("Content-Type: application/json", false, false),
        ("Content-Type: text/event-streams", false, false),
        ("Content-Encoding: gzip", false, true),
        ("Content-Encoding: identity", false, false),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n");
        let (head, _) = parse(text.as_bytes(), false);
        assert_eq!((head.is_event_stream(), head.is_encoded()), (stream, encoded), "{field}");
    }
}

fn client(text: &str, to_head: bool, version: Version, keep_alive: bool) -> (String, ClientBody) {
    let (head, parsed) = parse(text.as_bytes(), to_head);
    assert!(matches!(parsed, Parsed::Done(_)), "{parsed:?} for {text}");
    let mut out = Vec::new();
    let plan = ClientHead { version, keep_alive, own_id: false, add: &[("x-fairlead-instance", "e1")] };
    let body = head.write_client(text.as_bytes(), &plan, &mut out);
    (String::from_utf8(out).unwrap(), body)
}

#[test]
fn heads_for_clients() {
    use Version::{Http10, Http11};
    let raw = ClientBody { relay: Relay::Raw, keep_alive: true };
    let cases: &[(&str, bool, Version, &str, ClientBody)] = &[
        (
            "HTTP/1.1 200 OK\r\nserver: uvicorn\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             transfer-encoding: chunked\r\nTrailer: T\r\nx-fairlead-instance: forged\r\nA:  b \r\n\r\n",
            false,
            Http11,
            "HTTP/1.1 200 OK\r\nserver: uvicorn\r\nTrailer: T\r\nA:  b \r\nTransfer-Encoding: chunked\r\n",
            raw,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\nA: b\r\n\r\n",
            false,
            Http10,
            "HTTP/1.1 200 OK\r\nA: b\r\nConnection: close\r\n",
            ClientBody { relay: Relay::Dechunk, keep_alive: false },
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\nA: b\r\n\r\n",
            false,
            Http11,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n",
            ClientBody { relay: Relay::Length(5), keep_alive: true },
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            false,
            Http10,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n",
            ClientBody { relay: Relay::Length(5), keep_alive: true },
        ),
        (
            "HTTP/1.0 200 Fine by me\r\nA: b\r\n\r\n",
            false,
            Http11,
            "HTTP/1.1 200 Fine by me\r\nA: b\r\nTransfer-Encoding: chunked\r\n",
            ClientBody { relay: Relay::Chunk, keep_alive: true },
        ),
        (
            "HTTP/1.0 200 OK\r\nA: b\r\n\r\n",
            false,
            Http10,
            "HTTP/1.1 200 OK\r\nA: b\r\nConnection: close\r\n",
            ClientBody { relay: Relay::UntilClose, keep_alive: false },
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            true,
            Http11,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
            ClientBody { relay: Relay::None, keep_alive: true },
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            true,
            Http11,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
            ClientBody { relay: Relay::None, keep_alive: true },
        ),
        (
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nA: b\r\n\r\n",
            false,
            Http11,
            "HTTP/1.1 204 No Content\r\nA: b\r\n",
            ClientBody { relay: Relay::None, keep_alive: true },
        ),
        (
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
            false,
            Http11,
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n",
            ClientBody { relay: Relay::None, keep_alive: true },
        ),
        (
            "HTTP/1.1 100 Continue\r\nB: c\r\n\r\nHTTP/1.1 529\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            false,
            Http11,
            "HTTP/1.1 529 \r\nContent-Length: 5\r\n",
            ClientBody { relay: Relay::Length(5), keep_alive: true },
        ),
    ];
    for (text, to_head, version, wanted, body) in cases {
        let (out, got) = client(text, *to_head, *version, true);
        assert_eq!(out, format!("{wanted}x-fairlead-instance: e1\r\n\r\n"), "{text}");
        assert_eq!(got, *body, "{text}");
    }
    let (out, body) = client("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, Http11, false);
    assert_eq!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\nx-fairlead-instance: e1\r\n\r\n"
    );
    assert!(!body.keep_alive);
}

#[test]
fn own_answers() {
    let answer = Answer {
        status: StatusCode::TOO_MANY_REQUESTS,
        content_type: "application/json",
        body: b"{}",
        head_only: false,
        version: Version::Http11,
        keep_alive: true,
        add: &[("Retry-After", "1")],
    };
    let text = |answer: &Answer<'_>| {
        let mut out = Vec::new();
        answer.write(&mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        text(&answer),
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 2\r\nRetry-After: 1\r\n\r\n{}"
    );
    let head_only = Answer { head_only: true, keep_alive: false, add: &[], ..answer };
    assert_eq!(
        text(&head_only),
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    );
    let old = Answer { version: Version::Http10, add: &[], content_type: "", body: b"", ..answer };
    assert_eq!(
        text(&old),
        "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"
    );
    let rare = Answer { status: StatusCode::IM_A_TEAPOT, add: &[], ..answer };
    assert!(text(&rare).starts_with("HTTP/1.1 418 I'm a teapot\r\n"));
    let empty = Answer { status: StatusCode::NO_CONTENT, add: &[], content_type: "", body: b"", ..answer };
    assert_eq!(text(&empty), "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(status_line(StatusCode::OK), Some(&b"HTTP/1.1 200 OK\r\n"[..]));
}

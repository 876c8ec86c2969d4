//! Request heads: what is accepted, what is refused and with which status.

use super::super::*;

pub(super) fn parse(bytes: &[u8]) -> (RequestHead, Parsed) {
    let mut head = RequestHead::new();
    let parsed = head.parse(bytes, &HeadLimits::default());
    (head, parsed)
}

fn status(bytes: &[u8]) -> u16 {
    match parse(bytes).1 {
        Parsed::Done(_) => 200,
        Parsed::NeedMore => 0,
        Parsed::Bad(reject) => reject.status.as_u16(),
    }
}

#[test]
fn plain_post_is_understood() {
    let bytes =
        b"POST /v1/chat/completions?x=1 HTTP/1.1\r\nHost: api.example:8080\r\nContent-Length: 5\r\n\r\nhello";
    let (head, parsed) = parse(bytes);
    assert_eq!(parsed, Parsed::Done(bytes.len() - 5));
    assert_eq!(head.head_len(), bytes.len() - 5);
    assert_eq!(head.method(), "POST");
    assert_eq!(head.path(bytes), "/v1/chat/completions");
    assert_eq!(head.query(bytes), "?x=1");
    assert_eq!(head.host(bytes), Some("api.example:8080"));
    assert_eq!(head.framing(), Framing::Length(5));
    assert_eq!(head.version(), Version::Http11);
    assert!(head.keep_alive());
    assert!(!head.expect_continue());
    assert_eq!(head.request_id(bytes), None);
    assert_eq!(head.header(bytes, "CONTENT-LENGTH"), Some(&b"5"[..]));
}

#[test]
fn what_two_servers_could_read_differently_is_refused() {
    let cases: &[(&str, &str, u16)] = &[
        // Two framings.
        ("length and chunked", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("chunked and length", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("differing lengths", "Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("lengths equal in value only", "Content-Length: 5\r\nContent-Length: 05\r\n", 400),
        ("list of lengths", "Content-Length: 5, 5\r\n", 400),
        ("same length twice", "Content-Length: 5\r\nContent-Length: 5\r\n", 200),
        // Sizes.
        ("plus sign", "Content-Length: +5\r\n", 400),
        ("minus sign", "Content-Length: -5\r\n", 400),
        ("hexadecimal", "Content-Length: 0x5\r\n", 400),
        ("inner space", "Content-Length: 5 5\r\n", 400),
        ("empty length", "Content-Length: \r\n", 400),
        ("letters", "Content-Length: five\r\n", 400),
        ("fraction", "Content-Length: 5.0\r\n", 400),
        ("2^64", "Content-Length: 18446744073709551616\r\n", 400),
        ("2^64 - 1", "Content-Length: 18446744073709551615\r\n", 200),
        ("very long", "Content-Length: 99999999999999999999999999999999999999\r\n", 400),
        // Transfer codings.
        ("unknown coding", "Transfer-Encoding: gzip\r\n", 501),
        ("unknown before chunked", "Transfer-Encoding: gzip, chunked\r\n", 501),
        ("identity", "Transfer-Encoding: identity\r\n", 501),
        ("look-alike", "Transfer-Encoding: xchunked\r\n", 501),
        ("chunked with parameter", "Transfer-Encoding: chunked;q=1\r\n", 501),
        ("quoted", "Transfer-Encoding: \"chunked\"\r\n", 501),
        ("chunked not last", "Transfer-Encoding: chunked, gzip\r\n", 400),
        ("chunked twice", "Transfer-Encoding: chunked, chunked\r\n", 400),
        ("chunked in two fields", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        ("identity in a second field", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", 400),
        ("empty coding", "Transfer-Encoding: \r\n", 400),
        ("commas only", "Transfer-Encoding: ,,\r\n", 400),
        ("chunked in any case", "Transfer-Encoding: ChunKed\r\n", 200),
        ("vertical tab", "Transfer-Encoding: \x0bchunked\r\n", 400),
        // Lines and names.
        ("space before the colon", "Content-Length : 5\r\n", 400),
        ("tab before the colon", "Transfer-Encoding\t: chunked\r\n", 400),
        ("folded value", "X-A: 1\r\n 2\r\n", 400),
        ("folded by tab", "X-A: 1\r\n\t2\r\n", 400),
        ("NUL in a value", "X-A: a\0b\r\n", 400),
        ("NUL in a name", "X\0A: b\r\n", 400),
        ("bare CR in a value", "X-A: a\rb\r\n", 400),
        ("bare LF ends a line", "X-A: a\nX-B: b\r\n", 400),
        ("bare LF before a smuggled field", "X-A: a\nTransfer-Encoding: chunked\r\n", 400),
        ("DEL in a value", "X-A: a\x7fb\r\n", 400),
        ("no colon", "X-A\r\n", 400),
        ("empty name", ": a\r\n", 400),
        ("name with a slash", "X/A: a\r\n", 400),
        ("name beyond ASCII", "X\u{e9}: a\r\n", 400),
        ("value beyond ASCII", "X-A: caf\u{e9}\r\n", 200),
        ("empty value", "X-A:\r\n", 200),
        // Host.
        ("second Host", "Host: b\r\n", 400),
        ("same Host twice", "Host: a\r\n", 400),
        // Expectations.
        ("unknown expectation", "Expect: 200-ok\r\n", 417),
        ("known expectation", "Expect: 100-Continue\r\n", 200),
    ];
    for (name, fields, wanted) in cases {
        let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(status(bytes.as_bytes()), *wanted, "{name}");
    }
}

#[test]
fn start_lines_are_checked() {
    let cases: &[(&str, &[u8], u16)] = &[
        ("missing Host", b"GET / HTTP/1.1\r\n\r\n", 400),
        ("missing Host in 1.0", b"GET / HTTP/1.0\r\n\r\n", 200),
        ("empty Host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("Host with path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("Host with user", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
        ("Host list", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
        ("Host with port of letters", b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
        ("Host IPv6", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200),
        ("Host broken IPv6", b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
        ("chunked in 1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("expectation in 1.0 ignored", b"POST / HTTP/1.0\r\nExpect: x\r\n\r\n", 200),
        ("HTTP/2.0", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("space in the path", b"GET /a /b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("lower-case protocol", b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
        ("no version", b"GET /\r\nHost: a\r\n\r\n", 400),
        ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("space at the end", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        ("tab", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("NUL", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("bare LF", b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
        ("bare LF everywhere", b"GET / HTTP/1.1\nHost: a\n\n", 400),
        ("folded first field", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        ("fragment", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("target beyond ASCII", b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("target without slash", b"GET v1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("authority form", b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("asterisk", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        ("asterisk for GET", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("absolute", b"GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        ("absolute in capitals", b"GET HTTP://b/x HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        ("absolute, other scheme", b"GET ftp://b/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("absolute, no host", b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("absolute with user", b"GET http://u:p@b/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("absolute still needs Host", b"GET http://b/x HTTP/1.1\r\n\r\n", 400),
        ("CONNECT", b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("TRACE", b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("unknown method", b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ("lower-case method", b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ("method with brackets", b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        ("one empty line before", b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        ("bare LF before", b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("many empty lines before", b"\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("nothing yet", b"", 0),
        ("half a line", b"GET / HT", 0),
        ("no empty line yet", b"GET / HTTP/1.1\r\nHost: a\r\n", 0),
    ];
    for (name, bytes, wanted) in cases {
        assert_eq!(status(bytes), *wanted, "{name}");
    }
}

#[test]
fn targets_are_brought_into_origin_form() {
    let cases: &[(&str, &str, &str, &str)] = &[
        ("/a/b?c=d?e", "/a/b", "?c=d?e", "h"),
        ("/?", "/", "?", "h"),
        ("//x", "//x", "", "h"),
        ("http://b:81/x?y", "/x", "?y", "b:81"),
        ("https://b", "/", "", "b"),
        ("http://b?y", "/", "?y", "b"),
    ];
    for (target, path, query, host) in cases {
        let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        let bytes = text.as_bytes();
        let (head, parsed) = parse(bytes);
        assert_eq!(parsed, Parsed::Done(bytes.len()), "{target}");
        assert_eq!((head.path(bytes), head.query(bytes)), (*path, *query), "{target}");
        assert_eq!(head.host(bytes), Some(*host), "{target}");
    }
}

#[test]
fn connection_options_decide_about_keeping() {
    let cases: &[(&str, &str, bool)] = &[
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: x, CLOSE\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ];
    for (version, fields, kept) in cases {
        let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
        let (head, parsed) = parse(text.as_bytes());
        assert_eq!(parsed, Parsed::Done(text.len()), "{text}");
        assert_eq!(head.keep_alive(), *kept, "{text}");
    }
}

#[test]
fn upgrade_needs_both_fields() {
    for (fields, wanted) in [
        ("Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n", true),
        ("Upgrade: websocket\r\n", false),
        ("Connection: upgrade\r\n", false),
    ] {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(parse(text.as_bytes()).0.upgrade(), wanted, "{fields}");
    }
}

#[test]
fn request_ids_are_checked() {
    let long = "a".repeat(128);
    let too_long = "a".repeat(129);
    let cases: &[(&str, bool)] = &[
        ("abc-DEF_1.2:3", true),
        (&long, true),
        (&too_long, false),
        ("", false),
        ("a b", false),
        ("a\"b", false),
        ("a/b", false),
        ("caf\u{e9}", false),
        ("___prefill_addr_10.0.0.1:1___decode_addr_10.0.0.2:2_0", false),
        ("x___prefill_addr_1", false),
        ("x___decode_addr_1", false),
        ("___other", true),
    ];
    for (id, accepted) in cases {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\nx-request-ID: {id}\r\n\r\n");
        let (head, parsed) = parse(text.as_bytes());
        assert_eq!(parsed, Parsed::Done(text.len()), "{id}");
        assert_eq!(head.request_id(text.as_bytes()), accepted.then_some(*id), "{id}");
    }
    let twice = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: a\r\nX-Request-Id: a\r\n\r\n";
    assert_eq!(parse(twice).0.request_id(twice), None);
    let named = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: a\r\nConnection: x-request-id\r\n\r\n";
    assert_eq!(parse(named).0.request_id(named), None);
}

#[test]
fn limits_are_answered_431() {
    let head_of = |len: usize| {
        let mut text = String::from("GET / HTTP/1.1\r\nHost: a\r\nX: ");
        text.push_str(&"x".repeat(len - text.len() - 4));
        text + "\r\n\r\n"
    };
    assert_eq!(status(head_of(64 * 1024).as_bytes()), 200);
    assert_eq!(status(head_of(64 * 1024 + 1).as_bytes()), 431);
    let endless = format!("GET /{}", "x".repeat(64 * 1024));
    assert_eq!(status(endless.as_bytes()), 431);
    let fields = |n: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            (1..n).map(|i| format!("X-{i}: a\r\n")).collect::<String>()
        )
    };
    assert_eq!(status(fields(128).as_bytes()), 200);
    assert_eq!(status(fields(129).as_bytes()), 431);
    let options = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {}\r\n\r\n", "x,".repeat(n));
    assert_eq!(status(options(64).as_bytes()), 200);
    assert_eq!(status(options(65).as_bytes()), 400);
}

#[test]
fn a_head_sent_byte_by_byte_is_parsed_a_few_times_only() {
    // Linear time is seen by the end of the test: re-parsing 60 KB at every byte would take minutes.
    let mut text = String::from("GET / HTTP/1.1\r\nHost: a\r\n");
    for n in 0..100 {
        text.push_str(&format!("X-{n}: {}\r\n", "y".repeat(600)));
    }
    text.push_str("\r\n");
    let bytes = text.as_bytes();
    let mut head = RequestHead::new();
    for end in 0..bytes.len() {
        assert_eq!(head.parse(&bytes[..end], &HeadLimits::default()), Parsed::NeedMore);
    }
    assert_eq!(head.parse(bytes, &HeadLimits::default()), Parsed::Done(bytes.len()));
}

#[test]
fn a_shorter_buffer_is_harmless() {
    let bytes = b"GET /abc?d HTTP/1.1\r\nHost: a\r\nX-Request-Id: r\r\n\r\n";
    let (head, _) = parse(bytes);
    let short = &bytes[..6];
    assert_eq!(head.query(short), "");
    assert_eq!(head.request_id(short), Some(""));
    let mut out = Vec::new();
    let plan = UpstreamHead {
        base_path: "",
        host: "h",
        request_id: RequestIdRule::KeepOr("g"),
        body: OutgoingBody::None,
        plain: false,
        add: &[],
    };
    head.write_upstream(short, &plan, &mut out);
}

//! Heads in both directions, word for word.

use bytes::{Bytes, BytesMut};
use http::Request;

use super::answer::{head_end, parse};
use super::request::write_request;
use super::{PREFACE, Preface, preface};
use crate::http::{HeadLimits, Parsed, RequestHead};

/// The head that a request becomes, and whether its body goes in chunks; or what is wrong.
fn written(request: http::request::Builder, bodiless: bool) -> Result<(String, bool), &'static str> {
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let mut out = BytesMut::new();
    let chunked = write_request(&parts, bodiless, &mut out).map_err(|malformed| malformed.0)?;
    Ok((String::from_utf8_lossy(&out).into_owned(), chunked))
}

#[test]
fn a_request_in_words_of_http_1() {
    let post = || Request::post("http://h:1/v1/x?q=%20");
    for (request, bodiless, head, in_chunks) in [
        (post(), false, "POST /v1/x?q=%20 HTTP/1.1\r\nhost: h:1\r\ntransfer-encoding: chunked\r\n\r\n", true),
        (post(), true, "POST /v1/x?q=%20 HTTP/1.1\r\nhost: h:1\r\n\r\n", false),
        (
            post().header("content-length", "3").header("te", "trailers").header("trailer", "x"),
            false,
            "POST /v1/x?q=%20 HTTP/1.1\r\nhost: h:1\r\ncontent-length: 3\r\n\r\n",
            false,
        ),
        (
            post()
                .header("host", "H:1")
                .header("cookie", "a=1")
                .header("x-y", "\t z")
                .header("cookie", "b=2"),
            true,
            "POST /v1/x?q=%20 HTTP/1.1\r\nhost: h:1\r\nx-y: \t z\r\ncookie: a=1; b=2\r\n\r\n",
            false,
        ),
        (Request::get("/only").header("host", "a"), true, "GET /only HTTP/1.1\r\nhost: a\r\n\r\n", false),
        (Request::options("*"), true, "OPTIONS * HTTP/1.1\r\n\r\n", false),
        (Request::connect("h:443"), true, "CONNECT h:443 HTTP/1.1\r\nhost: h:443\r\n\r\n", false),
        (Request::get("http://h"), true, "GET / HTTP/1.1\r\nhost: h\r\n\r\n", false),
    ] {
        assert_eq!(written(request, bodiless), Ok((head.to_owned(), in_chunks)));
    }
    // Two hosts are for the parser to refuse.
    let (head, _) = written(post().header("host", "other"), true).unwrap();
    let parsed = RequestHead::new().parse(head.as_bytes(), &HeadLimits::default());
    assert!(matches!(parsed, Parsed::Bad(reject) if reject.status == 400), "{parsed:?}");
}

#[test]
fn what_belongs_to_connections_of_http_1_is_malformed() {
    for (name, value) in [
        ("connection", "close"),
        ("keep-alive", "5"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
    ] {
        assert!(written(Request::get("http://h/").header(name, value), true).is_err(), "{name}");
    }
}

#[test]
fn an_answer_in_words_of_http_2() {
    for (head, to_head, wanted) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A:  b \r\nConnection: close\r\n\r\n",
            false,
            Some((200, "content-length: 3|x-a: b", Some(3))),
        ),
        (
            "HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\nKeep-Alive: 1\r\nA: \r\nA: 2\r\n\r\n",
            false,
            Some((200, "a: |a: 2", None)),
        ),
        ("HTTP/1.1 204 No\r\n\r\n", false, Some((204, "", Some(0)))),
        ("HTTP/1.1 304 \r\nContent-Length: 9\r\n\r\n", false, Some((304, "content-length: 9", Some(0)))),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", true, Some((200, "content-length: 9", Some(0)))),
        ("HTTP/1.1 100 Continue\r\n\r\n", false, Some((100, "", Some(0)))),
        // A body that lasts until the close, another protocol, and what is no head.
        ("HTTP/1.1 200 OK\r\n\r\n", false, None),
        ("HTTP/1.1 101 Switching\r\n\r\n", false, None),
        ("HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n", false, None),
        ("HTTP/1.1 2 OK\r\n\r\n", false, None),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", false, None),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", false, None),
        ("HTTP/1.1 200 OK\r\na b: 1\r\nContent-Length: 0\r\n\r\n", false, None),
        ("", false, None),
    ] {
        let parsed = parse(Bytes::copy_from_slice(head.as_bytes()), to_head).map(|head| {
            let fields = head.response.headers().iter();
            let fields: Vec<_> =
                fields.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            (head.response.status().as_u16(), fields.join("|"), head.body.remaining())
        });
        assert_eq!(
            parsed,
            wanted.map(|(status, fields, left)| (status, fields.to_owned(), left)),
            "{head:?}"
        );
    }
    assert_eq!(head_end(b"a\r\n\r\nb"), Some(5));
    assert_eq!(head_end(b"a\r\n\r"), None);
}

#[test]
fn a_preface_is_told_by_its_first_line() {
    for length in 1..16 {
        assert_eq!(preface(&PREFACE[..length]), Preface::NeedMore);
    }
    for length in 16..=PREFACE.len() {
        assert_eq!(preface(&PREFACE[..length]), Preface::Http2);
    }
    for other in
        [&b""[..], b"GET", b"PRI * HTTP/1.1\r\n", b"PRI * HTTP/2.0\n\r\nSM", b"pri * HTTP/2.0\r\n\r\n"]
    {
        assert_eq!(preface(other), Preface::No, "{other:?}");
    }
}

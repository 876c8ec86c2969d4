//! Requests and answers.

use std::sync::mpsc;

use bytes::Bytes;
use http::Request;

use super::common::{Client as Plain, Engine, Rig, Then, chat, chat_body, on_each_driver};
use super::kit::{Client, piece, post, run, streaming, whole};

#[test]
fn requests_of_one_connection_are_served_side_by_side() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, request| {
            conn.ok(&format!("{{\"length\":{}}}", request.body.len()));
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            let mut answers = Vec::new();
            for count in 0..100 {
                let body = chat_body(&"x".repeat(count * 7));
                let (answer, _) =
                    client.send(post("/v1/chat/completions", Some(body.len())), Some(body.as_bytes())).await;
                answers.push((answer, body.len()));
            }
            for (answer, length) in answers {
                let answer = whole(answer).await;
                assert_eq!(answer.status, 200);
                assert_eq!(answer.body, format!("{{\"length\":{length}}}").as_bytes());
                assert_eq!(answer.headers["content-length"], answer.body.len().to_string());
                assert!(answer.headers.contains_key("x-request-id"));
                assert!(!answer.headers.contains_key("connection"));
            }
        });
        rig.assert_settled();
    });
}

#[test]
fn a_request_reaches_the_engine_as_one_of_http_1() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::new(driver, &[&engine]);
        let body = chat_body("hello");
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            let request = Request::post("http://example.com:8080/v1/chat/completions?a=b%20c")
                .header("content-type", "application/json")
                .header("cookie", "a=1")
                .header("cookie", "b=2")
                .header("te", "trailers")
                .header("x-custom", "Kept \u{e9}")
                .header("x-override-target", "dropped")
                .body(())
                .unwrap();
            // Of unknown length, in pieces.
            let (answer, mut stream) = client.send(request, None).await;
            for part in body.as_bytes().chunks(9) {
                stream.send_data(Bytes::copy_from_slice(part), false).unwrap();
            }
            stream
                .send_trailers(http::HeaderMap::from_iter([(
                    http::header::HeaderName::from_static("x-trailer"),
                    http::HeaderValue::from_static("dropped"),
                )]))
                .unwrap();
            assert_eq!(whole(answer).await.status, 200);
        });
        let seen = engine.seen().remove(0);
        assert_eq!(seen.line(), "POST /v1/chat/completions?a=b%20c HTTP/1.1");
        assert_eq!(seen.body, body.as_bytes());
        assert_eq!(seen.header("host"), ["example.com:8080"]);
        assert_eq!(seen.header("cookie"), ["a=1; b=2"]);
        assert_eq!(seen.header("content-length"), [body.len().to_string()]);
        assert_eq!(seen.header("x-custom"), ["Kept \u{e9}"]);
        for gone in ["te", "transfer-encoding", "x-override-target", "x-trailer", "connection"] {
            assert!(seen.header(gone).is_empty(), "{gone}: {}", seen.head);
        }
        rig.assert_settled();
    });
}

#[test]
fn bodies_of_all_sizes_pass_both_ways() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, request| {
            let answer = "a".repeat(request.body.len());
            if request.on_connection % 2 == 0 {
                conn.ok(&answer);
            } else {
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                for part in answer.as_bytes().chunks(10_007) {
                    conn.chunk(std::str::from_utf8(part).unwrap());
                }
                conn.send("0\r\nx-trailer: dropped\r\n\r\n");
            }
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            for size in [0, 1, 15_900, 16_384, 65_535, 65_536, 300_000, 3 << 20] {
                for known in [true, false, true, false] {
                    let body = chat_body(&"y".repeat(size));
                    let (answer, mut stream) =
                        client.send(post("/v1/chat/completions", known.then_some(body.len())), None).await;
                    let sending = async {
                        stream.send_data(Bytes::from(body.clone()), true).unwrap();
                    };
                    let (answer, ()) = tokio::join!(whole(answer), sending);
                    assert_eq!((answer.status.as_u16(), answer.cut), (200, None));
                    assert_eq!(answer.body.len(), body.len(), "{size} {known}");
                }
            }
        });
        assert!(engine.seen().iter().all(|seen| seen.body.ends_with(b"\"}]}")));
        rig.assert_settled();
    });
}

#[test]
fn events_pass_as_they_come() {
    on_each_driver(|driver| {
        let (go, gate) = mpsc::channel::<()>();
        let gate = std::sync::Mutex::new(gate);
        let engine = Engine::start(move |conn, _| {
            conn.sse_head();
            for count in 0..3 {
                conn.chunk(&format!("data: {{\"choices\":[],\"n\":{count}}}\n\n"));
                gate.lock().unwrap().recv().unwrap();
            }
            conn.chunk("data: [DONE]\n\n");
            conn.last_chunk();
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            let (answer, _stream) =
                client.send(post("/v1/chat/completions", None), Some(streaming().as_bytes())).await;
            let answer = answer.await.unwrap();
            assert_eq!(answer.headers()["content-type"], "text/event-stream");
            let mut body = answer.into_body();
            for count in 0..3 {
                let event = piece(&mut body).await.unwrap().unwrap();
                assert_eq!(event, format!("data: {{\"choices\":[],\"n\":{count}}}\n\n"));
                go.send(()).unwrap();
            }
            assert_eq!(piece(&mut body).await.unwrap().unwrap(), "data: [DONE]\n\n");
            // The end may come by itself.
            while let Some(rest) = piece(&mut body).await {
                assert_eq!(rest.unwrap(), "");
            }
            assert!(body.is_end_stream());
        });
        rig.assert_settled();
    });
}

#[test]
fn answers_without_a_body_end_with_their_head() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, request| {
            match request.header("x-want").first() {
                Some(&"204") => conn.send("HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"),
                Some(&"304") => conn.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
                _ => conn.ok("{}"),
            }
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            let body = chat_body("x");
            for status in [204, 304, 200] {
                let mut request = post("/v1/chat/completions", Some(body.len()));
                request.headers_mut().insert("x-want", status.to_string().parse().unwrap());
                let answer = client.ask(request, body.as_bytes()).await;
                assert_eq!((answer.status.as_u16(), answer.cut), (status, None));
                assert_eq!(answer.body.is_empty(), status != 200);
            }
            for method in ["HEAD", "GET"] {
                let request = Request::builder().method(method).uri("http://t/v1/models").body(()).unwrap();
                let answer = client.ask(request, b"").await;
                assert_eq!((answer.status.as_u16(), answer.cut), (200, None));
                assert_eq!(answer.body.is_empty(), method == "HEAD");
                assert_ne!(answer.headers["content-length"], "0");
            }
        });
        rig.assert_settled();
    });
}

#[test]
fn a_waiting_client_is_told_to_go_on() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::new(driver, &[&engine]);
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            let body = chat_body(&"x".repeat(20_000));
            let mut request = post("/v1/chat/completions", Some(body.len()));
            request.headers_mut().insert("expect", "100-continue".parse().unwrap());
            let (mut answer, mut stream) = client.send(request, None).await;
            let told = std::future::poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!(told.status(), 100);
            stream.send_data(body.into(), true).unwrap();
            assert_eq!(whole(answer).await.status, 200);
        });
        rig.assert_settled();
    });
}

#[test]
fn what_is_refused_over_http_1_is_refused_here_and_the_connection_goes_on() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::with(driver, &[&engine], |options| options.limits.max_body = 100_000);
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            let body = chat_body("x");
            let with = |name: &'static str, value: &'static str| {
                let mut request = post("/v1/chat/completions", Some(body.len()));
                request.headers_mut().insert(name, value.parse().unwrap());
                request
            };
            for (request, status) in [
                (with("host", "other"), 400),
                (with("content-encoding", "gzip"), 415),
                (with("expect", "tea"), 417),
                (post("/nothing", Some(body.len())), 404),
                (Request::get("http://user@t/v1/models").body(()).unwrap(), 400),
            ] {
                let answer = client.ask(request, body.as_bytes()).await;
                assert_eq!((answer.status.as_u16(), answer.cut), (status, None), "{:?}", answer.headers);
                assert!(answer.body.starts_with(b"{\"error\":"));
            }
            // One that goes on sending is told to stop, and not that it was at fault.
            let (answer, mut stream) = client.send(post("/v1/chat/completions", Some(200_000)), None).await;
            let answer = whole(answer).await;
            assert_eq!((answer.status.as_u16(), answer.cut), (413, None));
            let reset = std::future::poll_fn(|cx| stream.poll_reset(cx)).await.unwrap();
            assert_eq!(reset, h2::Reason::NO_ERROR);
            assert_eq!(client.chat("x").await.status, 200);
        });
        assert_eq!(engine.requests(), 1);
        rig.assert_settled();
    });
}

#[test]
fn prior_knowledge_is_told_from_http_1_by_the_first_bytes() {
    use std::io::{Read, Write};
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::new(driver, &[&engine]);
        // Byte by byte.
        let mut client = Plain::connect(rig.gateway.addr());
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
            client.stream.write_all(&[*byte]).unwrap();
        }
        let mut head = [0; 9];
        client.stream.read_exact(&mut head).unwrap();
        assert_eq!(head[3], 4, "the first frame is SETTINGS");
        // Not quite.
        for (wrong, answer) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX"[..], &[0u8, 0][..]),
            (b"PRI * HTTP/1.1\r\nHost: t\r\n\r\n", b"HTTP/1.1 501 "),
            (b"PRI / HTTP/2.0\r\n\r\n", b"HTTP/1.1 505 "),
            (b"GET * HTTP/2.0\r\n\r\n", b"HTTP/1.1 505 "),
        ] {
            let mut client = Plain::connect(rig.gateway.addr());
            client.stream.write_all(wrong).unwrap();
            let mut got = Vec::new();
            client.stream.read_to_end(&mut got).unwrap();
            assert!(got.starts_with(answer), "{wrong:?}: {got:?}");
            if answer == [0, 0] {
                assert!(got.ends_with(&[0, 0, 0, 1]), "GOAWAY with PROTOCOL_ERROR: {got:?}");
            }
        }
        // Only at the beginning.
        let mut client = rig.client();
        client.send(chat("x"));
        assert_eq!(client.answer().status, 200);
        client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert_eq!(client.answer().status, 505);
        // Only where it is wanted.
        let rig = Rig::with(driver, &[&engine], |options| options.http2.enabled = false);
        assert_eq!(rig.ask("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").status, 505);
    });
}

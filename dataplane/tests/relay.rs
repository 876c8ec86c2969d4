//! Requests through a gateway to engines: framing, routes, streaming.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

mod common;

use common::*;

#[test]
fn a_request_goes_through_unchanged_and_connections_are_kept() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        let body = r#"{ "model" : "m","messages":[ {"role":"user","content":"h\u00e9"} ],"x":12345678901234567890.10,"z":{"b":1,"a":2}}"#;
        for _ in 0..3 {
            client.send(post("/v1/chat/completions?beta=1", body));
            let answer = client.answer();
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(answer.text().contains("chat.completion"));
            assert_eq!(answer.header("x-fairlead-instance"), Some("engine-0"));
            assert_eq!(answer.header("x-request-id").unwrap().len(), 32);
        }
        let seen = engine.seen();
        assert_eq!(seen.len(), 3);
        assert_eq!(engine.connections(), 1, "the engine's connection is reused");
        assert_eq!(seen[0].line(), "POST /v1/chat/completions?beta=1 HTTP/1.1");
        assert_eq!(seen[2].body, body.as_bytes());
        rig.assert_settled();
    });
}

#[test]
fn large_bodies_are_read_off_the_shard_and_pass_unchanged() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::new(driver, &[&engine]);
        let message = r#"{"role":"user","content":"a"},"#;
        let messages = message.repeat((3 << 20) / message.len());
        let good = format!(r#"{{"model":"m","messages":[{}]}}"#, messages.trim_end_matches(','));
        let mut client = rig.client();
        client.send(post("/v1/chat/completions", &good));
        // Its departure ends the reading of a body as it ends everything else.
        rig.client().send(post("/v1/chat/completions", &good));
        assert_eq!(rig.ask(chat("small")).status, 200);
        assert_eq!(client.answer().status, 200);
        assert!(engine.seen().iter().any(|request| request.body == good.as_bytes()));
        let bad = good.replace(r#"}]}"#, r#"},7]}"#);
        client.send(post("/v1/chat/completions", &bad));
        let answer = client.answer();
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("messages["), "{answer:?}");
        rig.assert_settled();
    });
}

#[test]
fn a_model_is_denied_only_when_the_fleet_is_known() {
    let engine = Engine::simple();
    let rig = Rig::new(drivers()[0], &[&engine]);
    let asks = [
        post("/v1/chat/completions", r#"{"model":"other","messages":[]}"#),
        "GET /v1/models/other HTTP/1.1\r\nHost: t\r\n\r\n".to_owned(),
    ];
    for (known, status, retry) in [(true, 404, None), (false, 503, Some("1")), (true, 404, None)] {
        rig.gateway.shared().set_fleet_known(known);
        for ask in &asks {
            let answer = rig.ask(ask);
            assert_eq!((answer.status, answer.header("retry-after")), (status, retry), "{answer:?}");
        }
        assert_eq!(rig.ask(chat("one that is there")).status, 200);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, request| {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            conn.ok(&body);
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        let all: String = (0..5).map(|i| chat(&format!("number {i}"))).collect();
        client.send(all + "GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n");
        for i in 0..5 {
            assert!(client.answer().text().contains(&format!("number {i}")));
        }
        assert_eq!(client.answer().text(), "ok\n");
    });
}

#[test]
fn chunked_both_ways_with_extensions_and_trailers() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.send("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n");
            conn.send("5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n");
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        let body = chat_body("chunks");
        let (a, b) = body.split_at(9);
        for _ in 0..2 {
            client.send(format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n\
                 {:x};x=y\r\n{a}\r\n{:X}\r\n{b}\r\n0\r\nTrailing: yes\r\n\r\n",
                a.len(),
                b.len()
            ));
            let raw = client.until("X-Sum: 1\r\n\r\n");
            assert!(raw.contains("\r\n\r\n5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1"), "{raw}");
        }
        for request in engine.seen() {
            assert_eq!(request.body, body.as_bytes());
            assert_eq!(request.header("content-length"), [body.len().to_string()]);
            assert!(request.header("transfer-encoding").is_empty());
        }
        assert_eq!(engine.connections(), 1);
    });
}

#[test]
fn http10_head_and_expect() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.sse_head();
            conn.chunk("one ");
            conn.chunk("two");
            conn.last_chunk();
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        let body = chat_body("old");
        // HTTP/1.0 gets no chunks and the connection ends.
        let mut client = rig.client();
        client.send(format!("POST /v1/completions HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (200, "one two"));
        assert!(answer.header("transfer-encoding").is_none());

        let mut client = rig.client();
        client.send("HEAD /v1/models HTTP/1.1\r\nHost: t\r\n\r\n");
        let answer = client.answer_to(true);
        assert_eq!(answer.status, 200);
        assert_ne!(answer.header("content-length"), Some("0"));
        // The connection is still in step.
        client.send("GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n");
        assert_eq!(client.answer().text(), "ok\n");

        let before = engine.requests();
        client.send(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ));
        assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
        client.send(&body);
        assert_eq!(client.answer().text(), "one two");
        assert_eq!(engine.seen()[before].header("expect"), Vec::<&str>::new());

        // Refused before the body: no 100.
        client.send("POST /nowhere HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n");
        assert!(client.until("\r\n").contains("404"));
    });
}

#[test]
fn a_half_closed_client_is_answered() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            std::thread::sleep(std::time::Duration::from_millis(60));
            conn.sse_head();
            for i in 0..4 {
                conn.chunk(&format!("data: {i}\n\n"));
                std::thread::sleep(std::time::Duration::from_millis(30));
            }
            conn.chunk("data: [DONE]\n\n");
            conn.last_chunk();
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        client.send(stream("/v1/chat/completions"));
        client.half_close();
        let answer = client.answer();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.complete);
        assert_eq!(answer.text(), "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\ndata: [DONE]\n\n");
        assert!(client.is_closed());
        // The same for an answer of the gateway itself.
        let mut client = rig.client();
        client.send("GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n");
        client.half_close();
        assert_eq!(client.answer().text(), "ok\n");
        rig.assert_settled();
    });
}

#[test]
fn events_are_relayed_as_they_arrive() {
    on_each_driver(|driver| {
        let (next, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let engine = Engine::start(move |conn, _| {
            conn.sse_head();
            for i in 0..20 {
                conn.chunk(&format!("data: {i}\n\n"));
                // The next event is not sent before the client has seen this one.
                wait.lock().unwrap().recv().unwrap();
            }
            conn.chunk("data: [DONE]\n\n");
            conn.last_chunk();
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        client.send(stream("/v1/chat/completions"));
        for i in 0..20 {
            client.until(&format!("data: {i}\n\n"));
            next.send(()).unwrap();
        }
        client.until("data: [DONE]\n\n\r\n0\r\n\r\n");
        // Both connections go on.
        client.send("GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n");
        assert_eq!(client.answer().status, 200);
        rig.assert_settled();
    });
}

#[test]
fn bodies_of_all_sizes_arrive_whole() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, request| {
            let body = String::from_utf8(request.body.clone()).unwrap();
            conn.ok(&body);
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        for size in [0, 1, 8_000, 16_384, 70_000, 1 << 20, 5 << 20] {
            let body = chat_body(&"x".repeat(size));
            client.send(post("/v1/chat/completions", &body));
            let answer = client.answer();
            assert_eq!((answer.status, answer.body.len()), (200, body.len()), "{size}");
            assert!(answer.complete && answer.body == body.as_bytes());
        }
        rig.assert_settled();
    });
}

#[test]
fn answers_of_every_framing() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, request| {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            let then_close = |conn: &mut Conn, bytes: &str| {
                conn.send(bytes);
                Then::Close
            };
            if body.contains("until-close") {
                then_close(conn, "HTTP/1.1 200 OK\r\n\r\nall of it")
            } else if body.contains("old") {
                then_close(conn, "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold")
            } else if body.contains("empty") {
                conn.send("HTTP/1.1 204 No Content\r\n\r\n");
                Then::Keep
            } else if body.contains("interim") {
                conn.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                Then::Keep
            } else {
                conn.send(
                    "HTTP/1.1 418 Teapot\r\nContent-Length: 5\r\nX-Own: 1\r\nConnection: close\r\n\r\nshort",
                );
                Then::Close
            }
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        for (kind, status, body) in [
            ("until-close", 200, "all of it"),
            ("old", 200, "old"),
            ("empty", 204, ""),
            ("interim", 200, "ok"),
            ("teapot", 418, "short"),
        ] {
            client.send(chat(kind));
            let answer = client.answer();
            assert_eq!((answer.status, answer.text()), (status, body), "{kind}");
            assert!(answer.header("connection").is_none(), "{kind}: the client's connection stays");
        }
        rig.assert_settled();
    });
}

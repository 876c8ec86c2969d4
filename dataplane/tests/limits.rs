//! What is refused, and what never reaches an engine.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::*;

#[test]
fn ambiguous_requests_are_refused_and_nothing_reaches_the_engine() {
    let body = chat_body("x");
    let head = "POST /v1/chat/completions HTTP/1.1\r\n";
    let length = body.len();
    let cases: Vec<(&str, String, u16)> = vec![
        (
            "length and coding",
            format!(
                "{head}Host: t\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            400,
        ),
        (
            "two lengths",
            format!("{head}Host: t\r\nContent-Length: {length}\r\nContent-Length: 3\r\n\r\n{body}"),
            400,
        ),
        ("signed length", format!("{head}Host: t\r\nContent-Length: +{length}\r\n\r\n{body}"), 400),
        ("negative length", format!("{head}Host: t\r\nContent-Length: -1\r\n\r\n{body}"), 400),
        (
            "overflowing length",
            format!("{head}Host: t\r\nContent-Length: 99999999999999999999999\r\n\r\n{body}"),
            400,
        ),
        (
            "unknown coding",
            format!("{head}Host: t\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            501,
        ),
        (
            "coding twice",
            format!("{head}Host: t\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            "folded field",
            format!("{head}Host: t\r\nX: a\r\n b\r\nContent-Length: {length}\r\n\r\n{body}"),
            400,
        ),
        ("nul", format!("{head}Host: t\r\nX: a\0b\r\nContent-Length: {length}\r\n\r\n{body}"), 400),
        ("space before colon", format!("{head}Host: t\r\nContent-Length : {length}\r\n\r\n{body}"), 400),
        ("no host", format!("{head}Content-Length: {length}\r\n\r\n{body}"), 400),
        ("two hosts", format!("{head}Host: t\r\nHost: u\r\nContent-Length: {length}\r\n\r\n{body}"), 400),
        (
            "bare line feeds",
            format!("POST /v1/chat/completions HTTP/1.1\nHost: t\nContent-Length: {length}\n\n{body}"),
            400,
        ),
        (
            "bad chunk size",
            format!("{head}Host: t\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{body}\r\n0\r\n\r\n"),
            400,
        ),
        (
            "overflowing chunk size",
            format!(
                "{head}Host: t\r\nTransfer-Encoding: chunked\r\n\r\n1ffffffffffffffff\r\n{body}\r\n0\r\n\r\n"
            ),
            400,
        ),
        (
            "chunk longer than announced",
            format!("{head}Host: t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{body}\r\n0\r\n\r\n"),
            400,
        ),
        ("version", "GET / HTTP/2.0\r\nHost: t\r\n\r\n".into(), 505),
        ("large head", format!("{head}Host: t\r\nX: {}\r\n\r\n", "a".repeat(70_000)), 431),
        (
            "many fields",
            format!("{head}Host: t\r\n{}\r\n", (0..200).map(|i| format!("X{i}: 1\r\n")).collect::<String>()),
            431,
        ),
        ("large body", format!("{head}Host: t\r\nContent-Length: 1000000000\r\n\r\n"), 413),
        (
            "compressed body",
            format!("{head}Host: t\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n{body}"),
            415,
        ),
    ];
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::new(driver, &[&engine]);
        for (name, request, status) in &cases {
            let mut client = rig.client();
            // A request hidden behind the refused one must not be served either.
            client.send(format!("{request}{}", chat("smuggled")));
            let answer = client.answer();
            assert_eq!(answer.status, *status, "{name}: {answer:?}");
            assert!(answer.text().starts_with("{\"error\":{\"message\":\""), "{name}: {}", answer.text());
            assert_eq!(answer.header("connection"), Some("close"), "{name}");
            assert!(client.is_closed(), "{name}");
        }
        assert_eq!(engine.requests(), 0, "{:?}", engine.seen());
        // The gateway is as good as new.
        assert_eq!(rig.ask(chat("x")).status, 200);
        rig.assert_settled();
    });
}

#[test]
fn bodies_that_cannot_be_routed_are_answered_with_a_reason() {
    let table: &[(&str, &str, u16, &[&str])] = &[
        (
            "/v1/chat/completions",
            r#"{"model":"m","messages":[{"role":"user","content":}]}"#,
            400,
            &["messages[0].content"],
        ),
        ("/v1/chat/completions", r#"{"model":7,"messages":[]}"#, 400, &["model"]),
        ("/v1/chat/completions", "", 400, &["error"]),
        ("/v1/chat/completions", "[]", 400, &["error"]),
        ("/v1/chat/completions", r#"{"model":"m"} trailing"#, 400, &["error"]),
        (
            "/v1/chat/completions",
            r#"{"model":"nope","messages":[]}"#,
            404,
            &["model_not_found", "`nope`", "Models that exist: m."],
        ),
        (
            "/v1/messages",
            r#"{"model":"nope","messages":[]}"#,
            404,
            &[r#"{"type":"error","error":{"type":"not_found_error""#, "Models that exist: m."],
        ),
        (
            "/v1/chat/completions",
            r#"{"model":"m","messages":[],"kv_transfer_params":{"a":1}}"#,
            400,
            &["kv_transfer_params"],
        ),
        (
            "/v1/completions",
            r#"{"model":"m","prompt":"x","bootstrap_host":"evil"}"#,
            400,
            &["bootstrap_host"],
        ),
        ("/nowhere", "{}", 404, &["/nowhere"]),
    ];
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        for (path, body, status, words) in table {
            client.send(post(path, body));
            let answer = client.answer();
            assert_eq!(answer.status, *status, "{path} {body}: {answer:?}");
            for word in *words {
                assert!(answer.text().contains(word), "{path} {body}: {}", answer.text());
            }
            assert!(answer.header("x-request-id").is_some());
        }
        let deep = format!(r#"{{"model":"m","messages":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
        client.send(post("/v1/chat/completions", &deep));
        assert_eq!(client.answer().status, 400);
        let mut bad = post("/v1/chat/completions", &chat_body("XX")).into_bytes();
        let at = bad.windows(2).position(|pair| pair == b"XX").unwrap();
        bad[at] = 0xff;
        client.send(bad);
        assert_eq!(client.answer().status, 400);
        client.send("GET /v1/chat/completions HTTP/1.1\r\nHost: t\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
        // One connection carried them all, and nothing was forwarded.
        assert_eq!(engine.requests(), 0);
        // A fleet with one model knows what a request without one means.
        client.send(post("/v1/chat/completions", r#"{"messages":[]}"#));
        assert_eq!(client.answer().status, 200);
        rig.assert_settled();
    });
}

#[test]
fn own_routes_and_base_path() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::with(driver, &[&engine], |options| options.base_path = "/api/predict".into());
        let mut client = rig.client();
        let mut get = |path: &str| {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n"));
            client.answer()
        };
        let models = get("/api/predict/v1/models");
        assert!(models.text().contains(r#""id":"m""#) && models.text().contains(r#""object":"list""#));
        assert!(get("/api/predict/v1/models/m").text().contains(r#""id":"m""#));
        assert_eq!(get("/api/predict/v1/models/none").status, 404);
        assert_eq!(get("/api/predict/healthz").status, 200);
        assert_eq!(get("/api/predict/readyz").status, 200);
        assert_eq!(get("/v1/models").status, 404);
        assert_eq!(get("/api/predictv1/models").status, 404);
        client.send(post("/api/predict/v1/chat/completions", &chat_body("x")));
        assert_eq!(client.answer().status, 200);
        assert_eq!(engine.seen()[0].line(), "POST /v1/chat/completions HTTP/1.1");

        let empty = Rig::at(driver, &[], |_| {});
        let answer = empty.ask("GET /readyz HTTP/1.1\r\nHost: t\r\n\r\n");
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
        assert!(empty.ask(chat("x")).text().contains("No models are available."));
    });
}

#[test]
fn fields_that_steer_are_stripped_and_others_kept() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::new(driver, &[&engine]);
        let body = chat_body("x");
        let mut client = rig.client();
        client.send(format!(
            "POST http://public.example/v1/chat/completions HTTP/1.1\r\nHost: other\r\nAuthorization: Bearer k\r\n\
             X-Prefiller-Host-Port: evil:1\r\nX-Fairlead-Instance: me\r\nx_data_parallel_rank: 3\r\n\
             Connection: keep-alive, X-Private\r\nX-Private: 1\r\nTE: trailers\r\nX-Request-Id: my-id.1\r\n\
             X-Custom:  kept as it is \r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        let answer = client.answer();
        assert_eq!(answer.header("x-request-id"), Some("my-id.1"));
        let seen = &engine.seen()[0];
        assert_eq!(seen.line(), "POST /v1/chat/completions HTTP/1.1");
        assert_eq!(seen.header("host"), ["public.example"]);
        assert_eq!(seen.header("authorization"), ["Bearer k"]);
        assert_eq!(seen.header("x-request-id"), ["my-id.1"]);
        assert!(seen.head.contains("X-Custom:  kept as it is \r\n"));
        for name in [
            "x-prefiller-host-port",
            "x-fairlead-instance",
            "x_data_parallel_rank",
            "x-private",
            "te",
            "connection",
        ] {
            assert!(seen.header(name).is_empty(), "{name}: {}", seen.head);
        }
        // A malformed id is replaced.
        client.send(chat("x").replace("Host: t", "Host: t\r\nX-Request-Id: a b\"c"));
        assert_eq!(client.answer().header("x-request-id").unwrap().len(), 32);
    });
}

#[test]
fn slow_clients_are_told_and_closed() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::with(driver, &[&engine], |options| {
            options.timeouts.head = Duration::from_millis(150);
            options.timeouts.body = Duration::from_millis(150);
            options.timeouts.idle = Duration::from_millis(150);
        });
        // Nothing at all, or nothing more after an answer: closed without a word.
        let mut client = rig.client();
        assert!(client.is_closed());
        let mut client = rig.client();
        client.send("GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n");
        client.answer();
        assert!(client.is_closed());
        // A head byte by byte.
        let mut client = rig.client();
        let began = Instant::now();
        for byte in b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nX-Slow: " {
            if client.stream.write_all(&[*byte]).is_err() || began.elapsed() > Duration::from_secs(5) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let answer = client.answer();
        assert_eq!(answer.status, 408);
        assert!(client.is_closed());
        // A body that stops, and one that drips.
        for drip in [false, true] {
            let mut client = rig.client();
            client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 500\r\n\r\n{");
            if drip {
                for _ in 0..100 {
                    if client.stream.write_all(b" ").is_err() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            assert_eq!(client.answer().status, 408, "drip {drip}");
            assert!(client.is_closed());
        }
        assert_eq!(engine.requests(), 0);
        // A client that takes its time to be answered is not slow.
        let slow = Engine::start(|conn, _| {
            std::thread::sleep(Duration::from_millis(500));
            conn.ok("{}");
            Then::Keep
        });
        let rig = Rig::with(driver, &[&slow], |options| options.timeouts.idle = Duration::from_millis(100));
        assert_eq!(rig.ask(chat("x")).status, 200);
    });
}

#[test]
fn a_client_that_never_reads_is_cut_off() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.sse_head();
            let event = format!("data: {}\n\n", "x".repeat(60 * 1024));
            conn.stream.set_write_timeout(Some(PATIENCE)).unwrap();
            for _ in 0..4096 {
                conn.chunk(&event);
            }
            conn.wait_closed();
            Then::Close
        });
        let rig =
            Rig::with(driver, &[&engine], |options| options.timeouts.stall = Duration::from_millis(200));
        let mut client = rig.client();
        client.send(stream("/v1/chat/completions"));
        client.until("data: ");
        engine.await_closed(1);
        rig.assert_settled();
    });
}

#[test]
fn bounds_are_answered() {
    on_each_driver(|driver| {
        let held = std::sync::Arc::new((std::sync::Mutex::new(false), std::sync::Condvar::new()));
        let gate = held.clone();
        let engine = Engine::start(move |conn, _| {
            let mut open = gate.0.lock().unwrap();
            while !*open {
                open = gate.1.wait(open).unwrap();
            }
            conn.ok("{}");
            Then::Keep
        });
        let rig = Rig::with(driver, &[&engine], |options| {
            options.limits.max_in_flight = 2;
            options.limits.max_connections = 4;
            options.limits.max_body = 300_000;
            options.limits.body_budget = 450_000;
        });
        let mut first = rig.client();
        first.send(post("/v1/chat/completions", &chat_body(&"x".repeat(290_000))));
        engine.await_requests(1);
        // The first body is held until its answer begins: there is no room for another of that size.
        let mut second = rig.client();
        second.send(post("/v1/chat/completions", &chat_body(&"y".repeat(290_000))));
        let answer = second.answer();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
        let mut second = rig.client();
        second.send(chat("small"));
        engine.await_requests(2);
        // Two are in flight.
        let mut third = rig.client();
        third.send(chat("one too many"));
        let answer = third.answer();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
        // Three or four connections are open (one is closing): the limit comes soon.
        let mut more: Vec<_> = (0..3).map(|_| rig.client()).collect();
        let refused = more.last_mut().unwrap();
        let answer = refused.answer();
        assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
        // Larger than allowed, announced or not.
        drop(more);
        *held.0.lock().unwrap() = true;
        held.1.notify_all();
        assert_eq!(first.answer().status, 200);
        assert_eq!(second.answer().status, 200);
        third.send(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n61a80\r\n{}",
            "z".repeat(400_000)
        ));
        let answer = third.answer();
        assert_eq!(answer.status, 413, "{answer:?}");
        rig.assert_settled();
    });
}

#[test]
fn a_drain_finishes_what_is_in_flight_and_closes_the_rest() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.sse_head();
            for i in 0..10 {
                conn.chunk(&format!("data: {i}\n\n"));
                std::thread::sleep(Duration::from_millis(20));
            }
            conn.chunk("data: [DONE]\n\n");
            conn.last_chunk();
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        let addr = rig.gateway.addr();
        let mut idle = rig.client();
        idle.send("GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n");
        idle.answer();
        let mut fresh = rig.client();
        let mut busy = rig.client();
        busy.send(stream("/v1/chat/completions"));
        busy.until("data: 1\n\n");
        let gateway = rig.gateway;
        let drained = std::thread::spawn(move || gateway.drain(PATIENCE));
        assert!(idle.is_closed() && fresh.is_closed());
        let rest = String::from_utf8(busy.rest()).unwrap();
        assert!(rest.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{rest}");
        assert!(drained.join().unwrap());
        assert!(std::net::TcpStream::connect(addr).is_err(), "nobody listens any more");

        // What does not end in time is cut off.
        let stuck = Engine::start(|conn, _| {
            conn.wait_closed();
            Then::Close
        });
        let rig = Rig::new(driver, &[&stuck]);
        let mut client = rig.client();
        client.send(chat("x"));
        stuck.await_requests(1);
        assert!(!rig.gateway.drain(Duration::from_millis(50)));
        stuck.await_closed(1);
        assert!(client.is_closed());
    });
}

#[test]
fn several_shards_share_one_port() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::with(driver, &[&engine], |options| options.shards = 3);
        assert_eq!(rig.gateway.shards(), 3);
        let mut clients: Vec<_> = (0..24).map(|_| rig.client()).collect();
        for client in &mut clients {
            client.send(chat("x"));
        }
        for client in &mut clients {
            assert_eq!(client.answer().status, 200);
        }
        let mut ids: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                client.send("GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n");
                client.answer().header("x-request-id").unwrap().to_owned()
            })
            .collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 24);
        drop(clients);
        rig.assert_settled();
        assert!(rig.gateway.drain(PATIENCE));
    });
}

//! Engines that fail and clients that leave.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

mod common;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::*;

/// Something that an engine does on a connection.
type Part = fn(&mut Conn);

/// An address at which nobody listens.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn a_refusing_target_is_avoided_and_requests_go_elsewhere() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::at(driver, &[nobody(), engine.addr.to_string()], |_| {});
        for i in 0..8 {
            let answer = rig.ask(chat(&format!("to somebody {i}")));
            assert_eq!((answer.status, answer.header("x-fairlead-instance")), (200, Some("engine-1")));
        }
        let table = rig.gateway.shared().fleet.table_full();
        let dead = table.entries[0].as_ref().unwrap();
        assert!(
            !dead.cells.circuit_closed(fairlead_dataplane::runtime::now_us())
                || dead.cells.counters.requests_total() == 0
        );
        assert!(dead.cells.counters.requests_total() <= 2, "excluded after its first refusal");
        rig.assert_settled();
    });
}

#[test]
fn an_engine_that_dies_before_its_first_byte_is_replaced() {
    on_each_driver(|driver| {
        let turns: [Part; 4] = [
            |_| {},
            |conn| conn.send("HTTP/1.1 200 OK\r\nContent-"),
            // The head alone promises an answer; nothing of it was seen.
            |conn| conn.sse_head(),
            |conn| conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ];
        for (index, turn) in turns.into_iter().enumerate() {
            for reset in [false, true] {
                let dying = Engine::start(move |conn, _| {
                    turn(conn);
                    if reset { Then::Reset } else { Then::Close }
                });
                let other = Engine::simple();
                let rig = Rig::new(driver, &[&dying, &other]);
                for i in 0..6 {
                    let answer = rig.ask(chat(&format!("{i}")));
                    assert_eq!(answer.status, 200, "turn {index}, reset {reset}: {answer:?}");
                    assert_eq!(answer.header("x-fairlead-instance"), Some("engine-1"));
                }
                assert!(dying.requests() > 0, "it was tried");
                rig.assert_settled();
            }
        }
    });
}

#[test]
fn retries_end() {
    on_each_driver(|driver| {
        let tries = Arc::new(AtomicUsize::new(0));
        let engines: Vec<_> = (0..5)
            .map(|_| {
                let tries = tries.clone();
                Engine::start(move |_, _| {
                    tries.fetch_add(1, Ordering::SeqCst);
                    Then::Close
                })
            })
            .collect();
        let rig = Rig::new(driver, &engines.iter().collect::<Vec<_>>());
        let answer = rig.ask(chat("hopeless"));
        assert_eq!(answer.status, 502);
        assert!(answer.text().contains("\"code\":\"upstream_error\""), "{}", answer.text());
        assert_eq!(tries.load(Ordering::SeqCst), 3, "one attempt and two retries");

        let rig = Rig::at(driver, &[nobody()], |_| {});
        let answer = rig.ask(chat("nobody there"));
        assert_eq!(answer.status, 502);
        let answer = rig.ask(post("/v1/messages", &chat_body("x")));
        assert!(answer.text().starts_with(r#"{"type":"error","error":{"type":"#), "{}", answer.text());
        rig.assert_settled();
    });
}

#[test]
fn a_busy_engine_is_passed_over_and_other_errors_pass_through() {
    on_each_driver(|driver| {
        let busy = Engine::start(|conn, _| {
            conn.status("503 Service Unavailable", r#"{"busy":true}"#);
            Then::Keep
        });
        let free = Engine::simple();
        let rig = Rig::new(driver, &[&busy, &free]);
        for i in 0..6 {
            assert_eq!(rig.ask(chat(&format!("{i}"))).status, 200);
        }
        rig.assert_settled();

        let rig = Rig::new(driver, &[&busy]);
        let answer = rig.ask(chat("only one"));
        assert_eq!((answer.status, answer.text()), (503, r#"{"busy":true}"#));

        for status in
            ["400 Bad Request", "429 Too Many Requests", "500 Internal Server Error", "404 Not Found"]
        {
            let engine = Engine::start(move |conn, _| {
                conn.status(status, "its own words");
                Then::Keep
            });
            let other = Engine::start(move |conn, _| {
                conn.status(status, "its own words");
                Then::Keep
            });
            let rig = Rig::new(driver, &[&engine, &other]);
            let answer = rig.ask(chat("x"));
            assert_eq!((answer.status.to_string().as_str(), answer.text()), (&status[..3], "its own words"));
            assert_eq!(engine.requests() + other.requests(), 1);
        }
    });
}

#[test]
fn a_kept_connection_that_was_closed_is_replaced_without_blame() {
    on_each_driver(|driver| {
        // Closes in the moment in which the second request arrives on a connection.
        let engine = Engine::start(|conn, request| {
            if request.on_connection == 1 {
                return Then::Reset;
            }
            conn.ok("{}");
            Then::Keep
        });
        let rig = Rig::with(driver, &[&engine], |options| options.retry.max_retries = 0);
        for _ in 0..6 {
            assert_eq!(rig.ask(chat("again")).status, 200);
        }
        // Closed while idle: noticed before a request is spent on it.
        let quiet = Engine::start(|conn, _| {
            conn.ok("{}");
            Then::Close
        });
        let rig = Rig::with(driver, &[&quiet], |options| options.retry.max_retries = 0);
        for _ in 0..6 {
            assert_eq!(rig.ask(chat("again")).status, 200);
        }
        assert_eq!(quiet.requests(), 6);
    });
}

#[test]
fn an_engine_that_breaks_a_stream_is_reported_in_the_stream() {
    on_each_driver(|driver| {
        let parts: [(&str, Part); 5] = [
            ("between chunks", |conn| conn.chunk("data: {\"n\":1}\n\n")),
            ("in an event", |conn| conn.chunk("data: {\"n\":1}\n\ndata: {\"n\"")),
            ("in a chunk", |conn| conn.send("40\r\ndata: {\"n\":1}\n\n")),
            ("in a size", |conn| {
                conn.chunk("data: {\"n\":1}\n\n");
                conn.send("4");
            }),
            ("behind a chunk", |conn| conn.send("f\r\ndata: {\"n\":1}\n\n\r")),
        ];
        for (name, part) in parts {
            for (path, form) in [
                ("/v1/chat/completions", "data: {\"error\":{\"message\":"),
                ("/v1/messages", "event: error\ndata: {\"type\":\"error\""),
                ("/v1/responses", "event: error\ndata: {\"type\":\"error\",\"code\""),
            ] {
                let engine = Engine::start(move |conn, _| {
                    conn.sse_head();
                    part(conn);
                    Then::Close
                });
                let other = Engine::simple();
                let rig = Rig::new(driver, &[&engine]);
                let mut client = rig.client();
                client.send(stream(path));
                let answer = client.answer();
                assert_eq!(answer.status, 200, "{name}");
                assert!(answer.text().starts_with("data: {\"n\":1}\n\n"), "{name}: {answer:?}");
                assert!(answer.text().contains(&format!("\n\n{form}")), "{name} {path}: {answer:?}");
                assert!(!answer.text().contains("[DONE]") && !answer.text().contains("message_stop"));
                assert!(answer.complete && answer.text().ends_with("\n\n"), "{name}: {answer:?}");
                assert!(client.is_closed());
                assert_eq!(other.requests(), 0);
                rig.assert_settled();
            }
        }
    });
}

#[test]
fn any_other_broken_body_is_visibly_incomplete() {
    on_each_driver(|driver| {
        let cut: [(&str, Part); 3] = [
            ("length", |conn| conn.send("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{\"part")),
            ("chunks", |conn| {
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n{\"part\r\n")
            }),
            ("garbage", |conn| {
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n{\"part\r\nxyz")
            }),
        ];
        for (name, part) in cut {
            let engine = Engine::start(move |conn, _| {
                part(conn);
                Then::Close
            });
            let rig = Rig::new(driver, &[&engine]);
            let mut client = rig.client();
            client.send(chat("x"));
            let answer = client.answer();
            assert_eq!((answer.status, answer.text(), answer.complete), (200, "{\"part", false), "{name}");
            // An HTTP/1.0 client could take the close for the end: it gets a reset instead.
            let body = chat_body("old");
            let mut client = rig.client();
            client.send(format!(
                "POST /v1/completions HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            client.until("{\"part");
            if name != "length" {
                use std::io::Read;
                assert!(client.stream.read(&mut [0; 16]).is_err(), "{name}: a reset");
            }
            rig.assert_settled();
        }
    });
}

#[test]
fn a_stream_that_has_said_done_is_complete() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.sse_head();
            conn.chunk("data: 1\n\ndata: [DONE]\n\n");
            Then::Reset
        });
        let rig = Rig::new(driver, &[&engine]);
        let answer = rig.ask(stream("/v1/chat/completions"));
        assert!(answer.complete);
        assert_eq!(answer.text(), "data: 1\n\ndata: [DONE]\n\n");
    });
}

/// How a client leaves.
fn leave(client: Client, reset: bool) -> Instant {
    let now = Instant::now();
    if reset {
        client.reset()
    } else {
        drop(client)
    }
    now
}

#[test]
fn a_client_that_leaves_cancels_its_request_at_once() {
    on_each_driver(|driver| {
        let phases: [(&str, Part, &str); 5] = [
            ("before the first byte", |_| {}, ""),
            ("after the head", |conn| conn.sse_head(), ""),
            (
                "between events",
                |conn| {
                    conn.sse_head();
                    conn.chunk("data: 1\n\n");
                },
                "data: 1\n\n",
            ),
            (
                "in a chunk",
                |conn| {
                    conn.sse_head();
                    conn.send("1000\r\ndata: 1\n\n");
                },
                "data: 1\n\n",
            ),
            (
                "in a body of known length",
                |conn| conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"part"),
                "{\"part",
            ),
        ];
        for (name, begin, seen) in phases {
            for reset in [false, true] {
                // A clean close in the middle of a chunk or a body looks like a half-close until more is written.
                let hidden = !reset && (name == "in a chunk" || name.starts_with("in a body"));
                let engine = Engine::start(move |conn, _| {
                    begin(conn);
                    if hidden {
                        std::thread::sleep(Duration::from_millis(50));
                        for _ in 0..20 {
                            conn.send("x");
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    }
                    conn.wait_closed();
                    Then::Close
                });
                let rig = Rig::new(driver, &[&engine]);
                let mut client = rig.client();
                client.send(stream("/v1/chat/completions"));
                engine.await_requests(1);
                if seen.is_empty() {
                    std::thread::sleep(Duration::from_millis(20));
                } else {
                    client.until(seen);
                }
                let left = leave(client, reset);
                let took = engine.await_closed(1).saturating_duration_since(left);
                // The bar is 100 ms; the rest is for a loaded machine.
                assert!(took < Duration::from_millis(600), "{name}, reset {reset}: {took:?}");
                rig.assert_settled();
            }
        }
    });
}

#[test]
fn a_client_that_leaves_with_more_requests_queued_cancels_too() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.sse_head();
            conn.chunk("data: 1\n\n");
            conn.wait_closed();
            Then::Close
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        client.send(stream("/v1/chat/completions"));
        client.until("data: 1\n\n");
        client.send(chat("next"));
        std::thread::sleep(Duration::from_millis(30));
        let left = leave(client, false);
        let took = engine.await_closed(1).saturating_duration_since(left);
        assert!(took < Duration::from_millis(600), "{took:?}");
        assert_eq!(engine.requests(), 1);
        rig.assert_settled();
    });
}

#[test]
fn a_client_that_leaves_while_a_connection_is_made_stops_the_attempts() {
    on_each_driver(|driver| {
        // A listener whose queue is full lets further connections hang.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        full.listen(0).unwrap();
        let addr = full.local_addr().unwrap().as_socket().unwrap();
        let fillers: Vec<_> = (0..4)
            .map(|_| {
                let socket =
                    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&addr.into());
                socket
            })
            .collect();
        let rig = Rig::at(driver, &[addr.to_string()], |options| {
            options.timeouts.connect = Duration::from_secs(60);
        });
        let mut client = rig.client();
        client.send(chat("x"));
        eventually("the request is under way", || rig.in_flight() == 1);
        drop(client);
        rig.assert_settled();
        drop(fillers);

        let rig = Rig::at(driver, &[addr.to_string()], |options| {
            options.timeouts.connect = Duration::from_millis(50);
            options.retry.max_retries = 0;
        });
        let fillers: Vec<_> = (0..4)
            .map(|_| {
                let socket =
                    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&addr.into());
                socket
            })
            .collect();
        assert_eq!(rig.ask(chat("x")).status, 504);
        drop(fillers);
    });
}

#[test]
fn a_client_that_does_not_read_stops_the_engine() {
    on_each_driver(|driver| {
        let sent = Arc::new(AtomicUsize::new(0));
        let (go, gone) = mpsc::channel();
        let counter = sent.clone();
        let go = std::sync::Mutex::new(go);
        let engine = Engine::start(move |conn, _| {
            conn.sse_head();
            let event = format!("data: {}\n\n", "x".repeat(8 * 1024));
            conn.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            let mut stalled = false;
            for _ in 0..8192 {
                use std::io::Write;
                match conn.stream.write_all(chunk.as_bytes()) {
                    Ok(()) => {
                        counter.fetch_add(chunk.len(), Ordering::SeqCst);
                    }
                    Err(_) => {
                        stalled = true;
                        break;
                    }
                }
            }
            go.lock().unwrap().send(stalled).unwrap();
            Then::Close
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        socket2::SockRef::from(&client.stream).set_recv_buffer_size(64 * 1024).unwrap();
        client.send(stream("/v1/chat/completions"));
        client.until("data: ");
        assert!(gone.recv_timeout(PATIENCE).unwrap(), "the engine is held up although 64 MB wait");
        // What the engine could send went into socket buffers: two connections on loopback.
        assert!(sent.load(Ordering::SeqCst) < 24 << 20, "{}", sent.load(Ordering::SeqCst));
        drop(client);
        rig.assert_settled();
    });
}

#[test]
fn a_killed_engine_ends_only_what_streams_from_it() {
    on_each_driver(|driver| {
        let slow = || {
            Engine::start(|conn, _| {
                conn.sse_head();
                for i in 0..40 {
                    conn.chunk(&format!("data: {i}\n\n"));
                    std::thread::sleep(Duration::from_millis(10));
                }
                conn.chunk("data: [DONE]\n\n");
                conn.last_chunk();
                Then::Keep
            })
        };
        let engines = [slow(), slow()];
        let rig = Rig::with(driver, &[&engines[0], &engines[1]], |options| {
            options.routing.policy = "round-robin".into();
        });
        let mut clients: Vec<_> = (0..8)
            .map(|_| {
                let mut client = rig.client();
                client.send(stream("/v1/chat/completions"));
                client.until("data: 1\n\n");
                client
            })
            .collect();
        let first = engines[0].requests();
        assert_eq!(first, 4);
        engines[0].kill();
        let mut broken = 0;
        for client in &mut clients {
            let rest = String::from_utf8(client.rest_of_stream()).unwrap();
            if rest.contains("\"error\"") {
                broken += 1;
            } else {
                assert!(rest.contains("[DONE]"), "{rest}");
            }
        }
        assert_eq!(broken, first);
        let mut client = rig.client();
        client.send(stream("/v1/chat/completions"));
        assert!(client.answer().text().contains("[DONE]"));
        rig.assert_settled();
    });
}

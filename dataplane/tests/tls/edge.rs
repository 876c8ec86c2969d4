//! Requests over TLS: what holds for plain connections holds here.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::time::Duration;

use rustls::ProtocolVersion;

use super::common::{Client, Engine, Then, chat, eventually, on_each_driver, post, stream};
use super::kit::{Secure, over, tcp};

#[test]
fn requests_and_answers_in_both_versions_of_the_protocol() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let secure = Secure::new(driver, &engine);
        let mut client = secure.client();
        for _ in 0..3 {
            client.send(chat("hello"));
            assert_eq!(client.answer().status, 200);
        }
        assert_eq!(client.stream.conn.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(client.stream.conn.alpn_protocol(), None);
        // The plain port goes on.
        assert_eq!(secure.rig.ask(chat("plain")).status, 200);
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let mut old = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots(&secure))
            .with_no_client_auth();
        old.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut client = super::kit::client(secure.addr(), &std::sync::Arc::new(old));
        client.send(chat("hello"));
        assert_eq!(client.answer().status, 200);
        assert_eq!(client.stream.conn.protocol_version(), Some(ProtocolVersion::TLSv1_2));
        assert_eq!(client.stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        secure.rig.assert_settled();
    });
}

fn roots(secure: &Secure) -> rustls::RootCertStore {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(secure.authority.file("ca.pem")).unwrap()).unwrap();
    roots
}

#[test]
fn large_bodies_pass_both_ways() {
    on_each_driver(|driver| {
        let answer = "a".repeat(5 << 20);
        let engine = Engine::start(move |conn, _| {
            conn.ok(&answer);
            Then::Keep
        });
        let secure = Secure::new(driver, &engine);
        let text = "x".repeat(3 << 20);
        let mut client = secure.client();
        for _ in 0..2 {
            client.send(chat(&text));
            let answer = client.answer();
            assert_eq!((answer.status, answer.body.len(), answer.complete), (200, 5 << 20, true));
            assert!(answer.body.iter().all(|&byte| byte == b'a'));
        }
        assert!(engine.seen().iter().all(|request| request.body.len() > text.len()));
        secure.rig.assert_settled();
    });
}

#[test]
fn records_of_any_size_and_cut_carry_a_request() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let secure = Secure::new(driver, &engine);
        let request = chat(&"y".repeat(300));
        for piece in [1, 7, 100, request.len()] {
            let mut client = secure.client();
            // Records of `piece` bytes, and each of them in two segments.
            client.send(&request.as_bytes()[..1]);
            for part in request.as_bytes()[1..].chunks(piece) {
                client.stream.conn.writer().write_all(part).unwrap();
                let mut record = Vec::new();
                client.stream.conn.write_tls(&mut record).unwrap();
                let (first, second) = record.split_at(record.len() / 2);
                client.stream.sock.write_all(first).unwrap();
                client.stream.sock.write_all(second).unwrap();
            }
            assert_eq!(client.answer().status, 200, "pieces of {piece}");
        }
        // Two requests in one record are answered one after the other.
        let mut client = secure.client();
        client.send(format!("{request}{request}"));
        assert_eq!([client.answer().status, client.answer().status], [200, 200]);
        secure.rig.assert_settled();
    });
}

#[test]
fn events_of_a_stream_come_one_by_one() {
    on_each_driver(|driver| {
        let (go, gone) = mpsc::channel::<()>();
        let gone = std::sync::Mutex::new(gone);
        let engine = Engine::start(move |conn, _| {
            conn.sse_head();
            for number in 0..5 {
                conn.chunk(&format!("data: {{\"n\":{number}}}\n\n"));
                gone.lock().unwrap().recv().unwrap();
            }
            conn.chunk("data: [DONE]\n\n");
            conn.last_chunk();
            Then::Keep
        });
        let secure = Secure::new(driver, &engine);
        let mut client = secure.client();
        client.send(stream("/v1/chat/completions"));
        for number in 0..5 {
            client.until(&format!("\"n\":{number}"));
            go.send(()).unwrap();
        }
        client.rest_of_stream();
        secure.rig.assert_settled();
    });
}

#[test]
fn a_client_that_leaves_has_its_request_cancelled() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.sse_head();
            conn.chunk("data: {\"n\":1}\n\n");
            conn.wait_closed();
            Then::Close
        });
        let secure = Secure::new(driver, &engine);
        // A connection that just ends, one that is reset, and one that takes its leave and is gone.
        for (number, way) in ["end", "reset", "notice"].into_iter().enumerate() {
            let mut client = secure.client();
            client.send(stream("/v1/chat/completions"));
            client.until("\"n\":1");
            match way {
                "reset" => {
                    let linger = Some(Duration::ZERO);
                    socket2::SockRef::from(&client.stream.sock).set_linger(linger).unwrap();
                }
                "notice" => {
                    client.stream.conn.send_close_notify();
                    client.stream.flush().unwrap();
                }
                _ => {}
            }
            drop(client);
            engine.await_closed(number + 1);
        }
        // Before its answer begins, too.
        let silent = Engine::start(|conn, _| {
            conn.wait_closed();
            Then::Close
        });
        let secure = Secure::new(driver, &silent);
        let mut client = secure.client();
        client.send(chat("wait"));
        silent.await_requests(1);
        drop(client);
        silent.await_closed(1);
        secure.rig.assert_settled();
    });
}

#[test]
fn a_client_that_has_closed_its_side_gets_its_answer() {
    on_each_driver(|driver| {
        let (go, gone) = mpsc::channel::<()>();
        let gone = std::sync::Mutex::new(gone);
        let engine = Engine::start(move |conn, _| {
            gone.lock().unwrap().recv().unwrap();
            conn.ok("{\"late\":true}");
            Then::Keep
        });
        let secure = Secure::new(driver, &engine);
        for fin in [false, true] {
            let mut client = secure.client();
            client.send(chat("hello"));
            client.stream.conn.send_close_notify();
            client.stream.flush().unwrap();
            if fin {
                client.stream.sock.shutdown(Shutdown::Write).unwrap();
            }
            engine.await_requests(1 + usize::from(fin));
            // Long enough for looks and probes.
            std::thread::sleep(Duration::from_millis(60));
            go.send(()).unwrap();
            let answer = client.answer();
            assert_eq!((answer.status, answer.text()), (200, "{\"late\":true}"), "{fin}");
            assert!(client.is_closed());
        }
        secure.rig.assert_settled();
    });
}

#[test]
fn an_answer_that_ends_with_the_connection_ends_with_a_notice_or_not_at_all() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, request| {
            if request.head.contains("/v1/chat") {
                conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nwhole");
                Then::Close
            } else {
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n");
                Then::Reset
            }
        });
        let secure = Secure::new(driver, &engine);
        let old = |request: String| request.replacen("HTTP/1.1", "HTTP/1.0", 1);
        let mut client = secure.client();
        client.send(old(chat("hello")));
        assert!(client.until("whole").contains("200 OK"));
        // The end is a proper one.
        assert_eq!(client.stream.read(&mut [0; 8]).unwrap(), 0);
        let mut client = secure.client();
        client.send(old(post("/v1/completions", r#"{"model":"m","prompt":"p"}"#)));
        client.until("begun");
        // The end is none.
        assert!(client.stream.read(&mut [0; 8]).is_err());
        secure.rig.assert_settled();
    });
}

#[test]
fn who_does_not_speak_tls_is_told_or_closed() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let secure = Secure::with(driver, &engine, |options, _| {
            options.timeouts.head = Duration::from_millis(300);
        });
        let mut plain = Client::connect(secure.addr());
        plain.send(chat("hello"));
        let answer = plain.answer();
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("HTTPS"));
        assert!(plain.is_closed());
        assert_eq!(secure.handshakes("not_tls"), 1.0);

        let garbage =
            [&[0x16, 3, 1, 0, 5, 9, 9, 9, 9, 9][..], &[0xff; 400], b"\x80\x2e\x01\x00\x02", b"lower case"];
        for (number, bytes) in garbage.into_iter().enumerate() {
            let mut client = tcp(secure.addr());
            client.write_all(bytes).unwrap();
            let mut answer = Vec::new();
            // An alert, and the end; or a reset.
            let _ = client.read_to_end(&mut answer);
            assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
            eventually("it is counted", || secure.handshakes("protocol") >= (number + 1) as f64);
        }
        // Nothing at all, and half a hello, for too long.
        for bytes in [&[][..], &[0x16, 3, 1, 2, 0, 1]] {
            let mut client = tcp(secure.addr());
            client.write_all(bytes).unwrap();
            assert_eq!(client.read(&mut [0; 8]).unwrap_or(0), 0);
        }
        eventually("they are counted", || secure.handshakes("late") + secure.handshakes("closed") >= 2.0);
        assert_eq!(secure.ask(chat("hello")).status, 200);
        eventually("all are gone", || secure.rig.gateway.shared().connections.used() == 0);
    });
}

#[test]
fn a_session_is_resumed() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let secure = Secure::with(driver, &engine, |options, _| options.shards = 2);
        for number in 0..6 {
            let mut client = secure.client();
            client.send(chat("hello"));
            assert_eq!(client.answer().status, 200);
            // Any shard takes the tickets of any other.
            let resumed = client.stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
            assert_eq!(resumed, number > 0);
        }
        assert_eq!((secure.handshakes("full"), secure.handshakes("resumed")), (1.0, 5.0));
    });
}

#[test]
fn a_load_balancer_speaks_before_the_handshake() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let secure = Secure::with(driver, &engine, |options, _| options.proxy_protocol = true);
        let mut stream = tcp(secure.addr());
        stream.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 443\r\n").unwrap();
        let mut client = over(stream, &secure.config);
        client.send(chat("hello"));
        assert_eq!(client.answer().status, 200);
        assert_eq!(engine.seen()[0].header("x-forwarded-for"), ["192.0.2.7"]);
    });
}

#[test]
fn a_drain_ends_idle_connections_with_a_notice() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let secure = Secure::new(driver, &engine);
        let mut idle = secure.client();
        idle.send(chat("hello"));
        assert_eq!(idle.answer().status, 200);
        let silent = tcp(secure.addr());
        eventually("both are there", || secure.rig.gateway.shared().connections.used() == 2);
        secure.rig.gateway.begin_drain();
        assert_eq!(idle.stream.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!((&silent).read(&mut [0; 8]).unwrap(), 0);
        eventually("the shard ends", || secure.rig.gateway.shared().shards_running() == 0);
    });
}

#[test]
fn records_that_hold_nothing_do_not_go_on_for_ever() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let secure = Secure::new(driver, &engine);
        let mut client = secure.client();
        client.send(chat("hello"));
        assert_eq!(client.answer().status, 200);
        // Each asks for new keys; whoever serves has an end of patience.
        for _ in 0..5000 {
            if client.stream.conn.refresh_traffic_keys().is_err() || client.stream.flush().is_err() {
                break;
            }
        }
        eventually("it is closed", || secure.rig.gateway.shared().connections.used() == 0);
        assert_eq!(secure.ask(chat("hello")).status, 200);
    });
}

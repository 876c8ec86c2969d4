//! WebSockets at the end of a gateway, and engines whose bytes the test writes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

mod common;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::*;

const OPENING: &str = "GET /v1/realtime?model=m HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An engine that switches, sends `sent` and stays until the gateway leaves.
fn engine(sent: &'static [u8]) -> Engine {
    Engine::start(move |conn, _| {
        conn.send(SWITCH);
        conn.send(sent);
        conn.wait_closed();
        Then::Close
    })
}

#[test]
fn a_drain_says_farewell_when_its_time_is_over() {
    on_each_driver(|driver| {
        for (sent, farewell) in [
            (&b"\x81\x02hi"[..], &b"\x88\x1e\x03\xe9the gateway is shutting down"[..]),
            (b"\x01\x02hi", b"\x88\x1e\x03\xe9the gateway is shutting down"),
            // In the middle of a frame nothing can be said.
            (b"\x81\x03hi", b""),
            // The engine has said it.
            (b"\x88\x02\x03\xe8", b""),
        ] {
            let engine = engine(sent);
            let rig = Rig::new(driver, &[&engine]);
            let mut client = rig.client();
            client.send(OPENING);
            assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 101 "));
            assert_eq!(client.until_bytes(sent), sent);
            let began = Instant::now();
            let Rig { gateway, .. } = rig;
            assert!(!gateway.drain(Duration::from_millis(100)), "it had to be cut off");
            assert!(began.elapsed() < Duration::from_secs(10));
            assert_eq!(client.rest(), farewell, "{sent:?}");
            engine.await_closed(1);
        }
    });
}

#[test]
fn a_farewell_does_not_wait_for_a_client_that_takes_nothing() {
    on_each_driver(|driver| {
        let (sent, filled) = channel();
        let engine = Engine::start(move |conn, _| {
            conn.send(SWITCH);
            conn.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let piece = vec![0u8; 60_000];
            let mut frame = vec![0x82, 126, (piece.len() >> 8) as u8, piece.len() as u8];
            frame.extend(piece);
            while std::io::Write::write_all(&mut conn.stream, &frame).is_ok() {}
            sent.send(()).unwrap();
            conn.wait_closed();
            Then::Close
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        client.send(OPENING);
        assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 101 "));
        filled.recv_timeout(PATIENCE).unwrap();
        let Rig { gateway, .. } = rig;
        let shared = gateway.shared().clone();
        assert!(!gateway.drain(Duration::from_millis(50)));
        eventually("the shard has ended", || shared.shards_running() == 0);
        engine.await_closed(1);
    });
}

#[test]
fn sessions_outlive_the_beginning_of_a_drain() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.send(SWITCH);
            let mut byte = [0; 64];
            while let Ok(count @ 1..) = std::io::Read::read(&mut conn.stream, &mut byte) {
                conn.send(&byte[..count]);
            }
            Then::Close
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        client.send(OPENING);
        client.until("\r\n\r\n");
        rig.gateway.begin_drain();
        client.send(b"\x81\x82\0\0\0\0ok");
        assert_eq!(client.until_bytes("ok"), b"\x81\x82\0\0\0\0ok");
        drop(client);
        rig.assert_settled();
    });
}

#[test]
fn frames_that_come_with_the_handshake_are_not_lost() {
    on_each_driver(|driver| {
        let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
        let engine = Engine::start({
            let heard = heard.clone();
            move |conn, _| {
                conn.send([SWITCH.as_bytes(), b"\x81\x05first"].concat());
                let mut byte = [0; 64];
                while let Ok(count @ 1..) = std::io::Read::read(&mut conn.stream, &mut byte) {
                    heard.lock().unwrap().extend_from_slice(&byte[..count]);
                }
                Then::Close
            }
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        // A client must not, but this one does not wait.
        client.send(format!("{OPENING}impatient"));
        client.until_bytes("first");
        client.send("patient");
        eventually("the engine has it all", || {
            // What came with the head was read with it by this engine.
            let raw = engine.raw();
            let raw = String::from_utf8_lossy(&raw).into_owned();
            let heard = String::from_utf8_lossy(&heard.lock().unwrap()).into_owned();
            format!("{raw}{heard}").ends_with("impatientpatient")
        });
        drop(client);
        rig.assert_settled();
    });
}

#[test]
fn a_switch_that_nobody_asked_for_is_no_answer() {
    on_each_driver(|driver| {
        let engine = engine(b"");
        let rig = Rig::new(driver, &[&engine]);
        assert_eq!(rig.ask(chat("hi")).status, 502);
        let other = Engine::start(|conn, _| {
            conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n");
            conn.wait_closed();
            Then::Close
        });
        let rig = Rig::new(driver, &[&other]);
        assert_eq!(rig.ask(OPENING).status, 502);
        rig.assert_settled();
    });
}

/// A handshake by the first message: the engine's own answer is checked.
#[test]
fn an_engine_must_answer_the_handshake_that_it_got() {
    on_each_driver(|driver| {
        for (answer, code) in [
            (SWITCH.to_owned(), None),
            (SWITCH.replace("s3pP", "xxxx"), Some(1011u16)),
            (
                SWITCH.replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
                Some(1011),
            ),
            (SWITCH.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: other\r\n\r\n"), Some(1011)),
            (SWITCH.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: mine\r\n\r\n"), None),
        ] {
            let engine = Engine::start({
                let answer = answer.clone();
                move |conn, _| {
                    conn.send(&answer);
                    conn.send(b"\x81\x02ok");
                    conn.wait_closed();
                    Then::Close
                }
            });
            let rig = Rig::new(driver, &[&engine]);
            let mut client = rig.client();
            let opening = OPENING.replace("?model=m", "");
            client.send(opening.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: mine\r\n\r\n"));
            let head = client.until("\r\n\r\n");
            assert!(
                head.starts_with("HTTP/1.1 101 ") && head.contains("Sec-WebSocket-Protocol: mine"),
                "{head}"
            );
            client.send(b"\x81\x8d\0\0\0\0{\"model\":\"m\"}");
            match code {
                None => assert_eq!(client.until_bytes("ok"), b"\x81\x02ok"),
                Some(code) => {
                    let rest = client.rest();
                    assert_eq!(rest.get(..1), Some(&b"\x88"[..]), "{answer}: {rest:?}");
                    assert_eq!(rest.get(2..4), Some(&code.to_be_bytes()[..]), "{answer}");
                }
            }
            drop(client);
            rig.assert_settled();
        }
    });
}

//! What a stream holds once its answer has begun. A file of its own, because it measures the whole process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

mod common;

use std::sync::{Arc, Condvar, Mutex};

use common::*;

/// Resident bytes of this process.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_body_is_freed_at_the_first_byte_of_its_answer() {
    const BODY: usize = 48 << 20;
    on_each_driver(|driver| {
        let gate = Arc::new((Mutex::new(0), Condvar::new()));
        let step = gate.clone();
        let engine = Engine::start(move |conn, _| {
            conn.sse_head();
            conn.chunk("data: 1\n\n");
            let mut open = step.0.lock().unwrap();
            while *open == 0 {
                open = step.1.wait(open).unwrap();
            }
            conn.chunk("data: [DONE]\n\n");
            conn.last_chunk();
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        let mut client = rig.client();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{{\"model\":\"m\",\"prompt\":\"",
            BODY + 25
        );
        client.send(head);
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..(BODY >> 20) {
            client.send(&piece);
        }
        let before = resident();
        client.send("\"}");
        client.until("data: 1\n\n");
        assert_eq!(rig.gateway.shared().body_bytes.used(), 0);
        engine.forget();
        // The gateway held the body while it waited for the rest; now neither it nor the engine does.
        eventually("the body's memory goes back", || resident() + BODY / 2 < before);
        *gate.0.lock().unwrap() = 1;
        gate.1.notify_all();
        client.until("[DONE]");
        rig.assert_settled();
    });
}

//! Requests that one engine prefills and another decodes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

#[path = "../common/mod.rs"]
mod common;
mod failures;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::*;
use fairlead_dataplane::GatewayOptions;
use fairlead_dataplane::runtime::Driver;
use fairlead_wire::msg::{Handoff, InstanceInfo, ServingRole};

const PARAMS: &str = r#"{"do_remote_prefill" : true, "remote_block_ids":[[1,2]], "x":[1.50, "\"}"]}"#;

/// A door that opens once.
#[derive(Clone, Default)]
struct Door(Arc<(Mutex<bool>, Condvar)>);

impl Door {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let mut open = self.0.0.lock().unwrap();
        while !*open {
            let (back, timed) = self.0.1.wait_timeout(open, PATIENCE).unwrap();
            open = back;
            assert!(!timed.timed_out(), "a door stayed shut");
        }
    }
}

fn prefilled(cached: u32) -> String {
    format!(
        r#"{{"choices":[],"usage":{{"prompt_tokens":40,"completion_tokens":1,"prompt_tokens_details":{{"cached_tokens":{cached}}}}},"kv_transfer_params":{PARAMS}}}"#
    )
}

/// A prefill engine that does what it should.
fn prefiller() -> Engine {
    Engine::start(|conn, _| {
        conn.ok(&prefilled(16));
        Then::Keep
    })
}

/// A decode engine that does: three events, or a document.
fn decoder() -> Engine {
    Engine::start(|conn, request| {
        answer(conn, request);
        Then::Keep
    })
}

const USAGE: &str =
    r#""usage":{"prompt_tokens":40,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":40}}"#;

fn answer(conn: &mut Conn, request: &Request) {
    if String::from_utf8_lossy(&request.body).contains("\"stream\":true") {
        conn.sse_head();
        conn.chunk("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n");
        conn.chunk(&format!("data: {{{USAGE}}}\n\n"));
        conn.chunk("data: [DONE]\n\n");
        conn.last_chunk();
    } else {
        conn.ok(&format!("{{\"choices\":[1],{USAGE}}}"));
    }
}

fn fails(how: &'static str) -> Engine {
    Engine::start(move |conn, _| match how {
        "reset" => Then::Reset,
        "close" => Then::Close,
        "head" => {
            conn.send("HTTP/1.1 200 OK\r\nContent-Le");
            Then::Close
        }
        "body" => {
            conn.send(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{\"a\":",
            );
            Then::Reset
        }
        other => panic!("{other}"),
    })
}

fn p(name: &str, engine: &Engine, handoff: Handoff) -> InstanceInfo {
    side(name, engine, ServingRole::Prefill, handoff)
}

fn d(name: &str, engine: &Engine, handoff: Handoff) -> InstanceInfo {
    side(name, engine, ServingRole::Decode, handoff)
}

fn rig(driver: Driver, instances: Vec<InstanceInfo>) -> Rig {
    Rig::of(driver, instances, |_| {})
}

fn patient(prefill: Duration) -> impl FnOnce(&mut GatewayOptions) {
    move |options| options.timeouts.prefill = prefill
}

fn body(request: &Request) -> String {
    String::from_utf8(request.body.clone()).unwrap()
}

fn ask() -> String {
    stream("/v1/chat/completions")
}

/// The text that [`ask`] sends.
const BODY: &str =
    r#"{"model":"m","stream":true,"max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#;

fn outcomes(rig: &Rig, outcome: &str) -> f64 {
    rig.metric("fairlead_handoffs_total", &[&format!("outcome=\"{outcome}\"")])
}

#[track_caller]
fn await_outcome(rig: &Rig, outcome: &str, count: f64) {
    eventually(outcome, || outcomes(rig, outcome) == count);
}

#[test]
fn one_leg_follows_the_other_and_the_client_sees_one_answer() {
    on_each_driver(|driver| {
        let (prefill, decode) = (prefiller(), decoder());
        let rig = rig(driver, vec![p("p", &prefill, Handoff::NixlPull), d("d", &decode, Handoff::NixlPull)]);
        let mut client = rig.client();
        for round in 1..=3 {
            client.send(ask().replace("Host: t", "Host: t\r\nX-Request-Id: mine\r\nAccept-Encoding: gzip"));
            let answer = client.answer();
            assert_eq!((answer.status, answer.complete), (200, true));
            assert_eq!(answer.header("x-fairlead-instance"), Some("d"));
            assert_eq!(answer.header("x-fairlead-prefill-instance"), Some("p"));
            assert_eq!(answer.header("x-request-id"), Some("mine"));
            // What the prefill side had cached, in the place of what came from there.
            let text = answer.text();
            assert!(text.contains(r#""cached_tokens":16}"#) && text.ends_with("[DONE]\n\n"), "{text}");
            assert_eq!((prefill.requests(), decode.requests()), (round, round));
        }
        let (first, second) = (&prefill.seen()[0], &decode.seen()[0]);
        assert!(body(first).contains(r#""stream":false,"max_tokens":1"#), "{}", body(first));
        assert!(body(first).contains(r#""do_remote_decode":true"#));
        assert_eq!(
            body(second),
            BODY.replacen('{', &format!("{{\"kv_transfer_params\":{PARAMS},"), 1),
            "as they came"
        );
        let ids = [first, second].map(|request| request.header("x-request-id").join(","));
        assert_eq!(ids[0], ids[1]);
        assert_ne!(ids[0], "mine");
        assert_ne!(prefill.seen()[1].header("x-request-id").join(","), ids[0], "another one for each");
        assert_eq!(first.header("content-length"), [first.body.len().to_string().as_str()]);
        assert!(first.header("accept-encoding").is_empty());
        assert_eq!(second.header("accept-encoding"), ["gzip"]);
        assert_eq!((prefill.connections(), decode.connections()), (1, 1), "both are kept");
        await_outcome(&rig, "ok", 3.0);
        assert_eq!(rig.metric("fairlead_handoff_seconds_count", &[]), 3.0);
        // A document.
        client.send(chat("hi"));
        let answer = client.answer();
        assert!(answer.text().contains(r#""cached_tokens":16}"#), "{}", answer.text());
        await_outcome(&rig, "ok", 4.0);
        rig.assert_settled();
    });
}

#[test]
fn the_prefill_side_is_released_at_the_hand_off() {
    on_each_driver(|driver| {
        let (computed, decoded) = (Door::default(), Door::default());
        let (first, second) = (computed.clone(), decoded.clone());
        let prefill = Engine::start(move |conn, _| {
            first.pass();
            conn.ok(&prefilled(0));
            Then::Keep
        });
        let decode = Engine::start(move |conn, request| {
            second.pass();
            answer(conn, request);
            Then::Keep
        });
        let rig = rig(driver, vec![p("p", &prefill, Handoff::NixlPull), d("d", &decode, Handoff::NixlPull)]);
        let in_flight = || {
            let table = rig.gateway.shared().fleet.table_full();
            [0, 1]
                .map(|slot: usize| table.entries[slot].as_ref().unwrap().cells.counters.in_flight().requests)
        };
        let mut client = rig.client();
        client.send(ask());
        prefill.await_requests(1);
        assert_eq!(in_flight(), [1, 1], "both are reserved from the start");
        assert_eq!(decode.requests(), 0);
        computed.open();
        decode.await_requests(1);
        assert_eq!(in_flight(), [0, 1]);
        decoded.open();
        assert_eq!(client.answer().status, 200);
        rig.assert_settled();
    });
}

#[test]
fn concurrent_legs_wait_for_each_other() {
    on_each_driver(|driver| {
        // Neither answers before both have come.
        let both = Arc::new(std::sync::Barrier::new(2));
        let (first, second) = (both.clone(), both);
        let prefill = Engine::start(move |conn, _| {
            first.wait();
            conn.ok(&prefilled(16));
            Then::Keep
        });
        let decode = Engine::start(move |conn, request| {
            second.wait();
            std::thread::sleep(Duration::from_millis(5));
            answer(conn, request);
            Then::Keep
        });
        let mut instances = vec![p("p", &prefill, Handoff::Sglang), d("d", &decode, Handoff::Sglang)];
        instances[0].engine_version = "0.5.23".into();
        let rig = rig(driver, instances);
        for round in 1..=2 {
            let answer = rig.ask(ask());
            assert_eq!((answer.status, answer.complete), (200, true));
            await_outcome(&rig, "ok", f64::from(round));
        }
        let (first, second) = (&prefill.seen()[0], &decode.seen()[0]);
        assert_eq!((body(first).as_str(), body(second).as_str()), (BODY, BODY));
        let room = first.header("x-override-bootstrap-room").join("");
        assert!(room.parse::<u64>().unwrap() < 1 << 63);
        assert_eq!(second.header("x-override-bootstrap-room").join(""), room);
        assert_ne!(prefill.seen()[1].header("x-override-bootstrap-room").join(""), room);
        rig.assert_settled();
    });
}

#[test]
fn a_client_that_leaves_ends_both_legs() {
    on_each_driver(|driver| {
        let wait = || {
            Engine::start(|conn, _| {
                conn.wait_closed();
                Then::Close
            })
        };
        // While the prompt is computed; the decode side never hears of it.
        let (prefill, decode) = (wait(), decoder());
        let rig1 = rig(driver, vec![p("p", &prefill, Handoff::NixlPull), d("d", &decode, Handoff::NixlPull)]);
        let mut client = rig1.client();
        client.send(ask());
        prefill.await_requests(1);
        client.reset();
        prefill.await_closed(1);
        rig1.assert_settled();
        assert_eq!(decode.requests(), 0);
        await_outcome(&rig1, "cancelled", 1.0);

        // Between the legs.
        let (prefill, decode) = (prefiller(), wait());
        let rig2 = rig(driver, vec![p("p", &prefill, Handoff::NixlPull), d("d", &decode, Handoff::NixlPull)]);
        let mut client = rig2.client();
        client.send(ask());
        decode.await_requests(1);
        client.reset();
        decode.await_closed(1);
        rig2.assert_settled();
        await_outcome(&rig2, "cancelled", 1.0);

        // While both wait.
        let (prefill, decode) = (wait(), wait());
        let rig3 = rig(driver, vec![p("p", &prefill, Handoff::Sglang), d("d", &decode, Handoff::Sglang)]);
        let mut client = rig3.client();
        client.send(ask());
        prefill.await_requests(1);
        decode.await_requests(1);
        client.reset();
        prefill.await_closed(1);
        decode.await_closed(1);
        rig3.assert_settled();

        // In the middle of the answer, the prefill side still not done.
        let prefill = wait();
        let decode = Engine::start(|conn, _| {
            conn.sse_head();
            conn.chunk("data: {\"a\":1}\n\n");
            conn.wait_closed();
            Then::Close
        });
        let rig4 = rig(driver, vec![p("p", &prefill, Handoff::Sglang), d("d", &decode, Handoff::Sglang)]);
        let mut client = rig4.client();
        client.send(ask());
        client.until("data: {\"a\":1}\n\n");
        prefill.await_requests(1);
        client.reset();
        prefill.await_closed(1);
        decode.await_closed(1);
        rig4.assert_settled();
    });
}

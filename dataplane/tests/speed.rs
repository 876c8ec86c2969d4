//! What answers show of their engines' speed, and when their prompts stop counting as queued prefill.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use fairlead_dataplane::SpeedNote;

const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":50,\"completion_tokens\":30,\"prompt_tokens_details\":{\"cached_tokens\":20}}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// The next note, if there is one once everything has settled.
fn note(rig: &Rig) -> Option<SpeedNote> {
    rig.assert_settled();
    let shared = rig.gateway.shared();
    let note = shared.next_speed();
    assert!(shared.next_speed().is_none(), "one answer, one note");
    note
}

/// A body that an engine sends, and how.
enum Answer {
    Events(Vec<&'static str>),
    /// Its last chunk never comes.
    Broken(Vec<&'static str>),
    /// Status, content type and further fields, body.
    Document(&'static str, &'static str, &'static str),
}

/// Asks once; what the answer showed: tokens not cached and cached, tokens after the first.
fn shown(path: &str, body: &str, answer: Answer) -> (Option<(u32, u32)>, Option<u32>) {
    let answer = Arc::new(answer);
    let engine = Engine::start(move |conn, _| match &*answer {
        Answer::Events(events) => {
            conn.sse_head();
            events.iter().for_each(|event| conn.chunk(event));
            conn.last_chunk();
            Then::Keep
        }
        Answer::Broken(events) => {
            conn.sse_head();
            events.iter().for_each(|event| conn.chunk(event));
            Then::Close
        }
        Answer::Document(status, fields, body) => {
            conn.send(format!(
                "HTTP/1.1 {status}\r\nContent-Type: {fields}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            Then::Keep
        }
    });
    let rig = Rig::new(drivers()[0], &[&engine]);
    let mut client = rig.client();
    client.send(post(path, body).replace("HTTP/1.1\r\n", "HTTP/1.1\r\nConnection: close\r\n"));
    client.rest();
    let note = note(&rig);
    let prefill = note.and_then(|note| note.prefill);
    assert!(prefill.is_none_or(|seen| seen.alone));
    (
        prefill.map(|seen| (seen.tokens, seen.cached)),
        note.and_then(|note| note.decode).map(|seen| seen.tokens),
    )
}

#[test]
fn each_kind_of_answer_shows_what_can_be_seen_of_it() {
    use Answer::{Broken, Document, Events};
    const CHAT: &str = "/v1/chat/completions";
    let body =
        |more: &str| format!(r#"{{"model":"m",{more}"messages":[{{"role":"user","content":"hello you"}}]}}"#);
    let (plain, stream) = (body(""), body(r#""stream":true,"#));
    let counted = Some((30, 20));
    let json = "application/json";
    let whole = r#"{"choices":[],"usage":{"prompt_tokens":50,"completion_tokens":1}}"#;
    // Whether prefill is seen, with which tokens if they are counted, and tokens after the first.
    type Shown = (bool, Option<(u32, u32)>, Option<u32>);
    let table: Vec<(&str, &str, String, Answer, Shown)> = vec![
        ("counted", CHAT, stream.clone(), Events(vec![TOKEN, TOKEN, USAGE, DONE]), (true, counted, Some(29))),
        ("not counted", CHAT, stream.clone(), Events(vec![TOKEN, TOKEN, TOKEN, DONE]), (true, None, Some(2))),
        ("one token", CHAT, stream.clone(), Events(vec![TOKEN, DONE]), (true, None, None)),
        (
            "two answers",
            CHAT,
            body(r#""stream":true,"n":2,"#),
            Events(vec![TOKEN, TOKEN, USAGE, DONE]),
            (true, counted, None),
        ),
        ("no token", CHAT, stream.clone(), Events(vec![DONE]), (false, None, None)),
        (
            "a failure told",
            CHAT,
            stream.clone(),
            Events(vec![TOKEN, TOKEN, "data: {\"error\":{\"message\":\"no\"}}\n\n", DONE]),
            (false, None, None),
        ),
        ("broken off", CHAT, stream.clone(), Broken(vec![TOKEN, TOKEN, TOKEN]), (false, None, None)),
        (
            "an error",
            CHAT,
            stream.clone(),
            Document("500 Oh", "text/event-stream", "data: {\"error\":{}}\n\n"),
            (false, None, None),
        ),
        ("an error document", CHAT, plain.clone(), Document("404 No", json, "{}"), (false, None, None)),
        (
            "sealed",
            CHAT,
            stream.clone(),
            Document("200 OK", "text/event-stream\r\nContent-Encoding: gzip", "..."),
            (true, None, None),
        ),
        ("whole", CHAT, plain.clone(), Document("200 OK", json, whole), (false, None, None)),
        (
            "whole, of one token",
            CHAT,
            body(r#""max_tokens":1,"#),
            Document("200 OK", json, whole),
            (true, Some((50, 0)), None),
        ),
        (
            "embeddings",
            "/v1/embeddings",
            r#"{"model":"m","input":"some text to embed"}"#.into(),
            Document("200 OK", json, r#"{"data":[],"usage":{"prompt_tokens":7,"total_tokens":7}}"#),
            (true, Some((7, 0)), None),
        ),
        (
            "no work of the model",
            "/tokenize",
            r#"{"model":"m","prompt":"some text"}"#.into(),
            Document("200 OK", json, "{}"),
            (false, None, None),
        ),
    ];
    for (what, path, body, answer, (prefill, tokens, after)) in table {
        let (seen, decoded) = shown(path, &body, answer);
        assert_eq!((seen.is_some(), decoded), (prefill, after), "{what}");
        assert!(tokens.is_none() || seen == tokens, "{what}: {seen:?} is not {tokens:?}");
    }
}

#[test]
fn a_client_that_leaves_teaches_nothing() {
    let engine = Engine::start(|conn, _| {
        conn.sse_head();
        conn.chunk(TOKEN);
        conn.wait_closed();
        Then::Close
    });
    let rig = Rig::new(drivers()[0], &[&engine]);
    let mut client = rig.client();
    client.send(stream("/v1/chat/completions"));
    client.until("content");
    drop(client);
    assert!(note(&rig).is_none());
}

fn prefilling(rig: &Rig) -> u64 {
    let table = rig.gateway.shared().fleet.table_full();
    table.entries.iter().flatten().map(|entry| entry.cells.counters.in_flight().prefilling).sum()
}

#[test]
fn an_announcement_is_no_token() {
    let go_on = Arc::new(AtomicBool::new(false));
    let engine = Engine::start({
        let go_on = go_on.clone();
        move |conn, _| {
            conn.sse_head();
            conn.chunk("event: response.created\ndata: {\"type\":\"response.created\"}\n\n");
            eventually("the test goes on", || go_on.load(Ordering::SeqCst));
            conn.chunk(
                "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\"}\n\n",
            );
            eventually("the test ends", || !go_on.load(Ordering::SeqCst));
            conn.chunk("event: response.completed\ndata: {\"type\":\"response.completed\"}\n\n");
            conn.last_chunk();
            Then::Keep
        }
    });
    let rig = Rig::new(drivers()[0], &[&engine]);
    let mut client = rig.client();
    client.send(post("/v1/responses", r#"{"model":"m","stream":true,"input":"hello"}"#));
    client.until("response.created");
    assert_eq!(prefilling(&rig), 1);
    go_on.store(true, Ordering::SeqCst);
    client.until("delta");
    assert_eq!(prefilling(&rig), 0);
    assert_eq!(rig.in_flight(), 1);
    go_on.store(false, Ordering::SeqCst);
    client.until("response.completed");
    assert!(note(&rig).unwrap().prefill.is_some());
}

#[test]
fn an_answer_that_comes_whole_is_not_queued_until_its_end() {
    let done = Arc::new(AtomicBool::new(false));
    let engine = Engine::start({
        let done = done.clone();
        move |conn, _| {
            eventually("the test ends", || done.load(Ordering::SeqCst));
            conn.ok(r#"{"choices":[]}"#);
            Then::Keep
        }
    });
    let rig = Rig::new(drivers()[0], &[&engine]);
    let mut client = rig.client();
    client.send(chat("how long will this take"));
    eventually("the prompt was sent", || rig.in_flight() == 1);
    eventually("the time that was predicted is over", || prefilling(&rig) == 0);
    assert_eq!(rig.in_flight(), 1);
    done.store(true, Ordering::SeqCst);
    assert_eq!(client.answer().status, 200);
    assert!(note(&rig).is_none());
}

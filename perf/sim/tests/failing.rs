//! Engines that fail, and clients that leave.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

mod common;
use common::*;
use fairlead_sim::{Control, Faults, Garbage, SimOptions, State};
use http_body_util::BodyExt;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;

/// Waits until the state satisfies `ok`.
async fn until(control: &Control, what: &str, ok: impl Fn(&State) -> bool) -> State {
    for _ in 0..2000 {
        let s = control.state();
        if ok(&s) {
            return s;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("never {what}: {:?}", control.state());
}

fn fault(f: Faults) -> (fairlead_sim::Handle, Control) {
    let sim = start(quick());
    let control = sim.control();
    control.set_faults(f).unwrap();
    (sim, control)
}

/// Reads a stream to its end or its break; returns the text and whether it ended well.
async fn read(sim: &fairlead_sim::Handle, body: &Value) -> (String, bool) {
    let mut body = try_post(sim.addr(), "/v1/chat/completions", body).await.unwrap().into_body();
    let mut text = Vec::new();
    loop {
        match body.frame().await {
            None => return (String::from_utf8_lossy(&text).into_owned(), true),
            Some(Err(_)) => return (String::from_utf8_lossy(&text).into_owned(), false),
            Some(Ok(f)) => text.extend_from_slice(f.data_ref().unwrap()),
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_mid_stream_ends_the_work() {
    let sim = start(SimOptions::default());
    let control = sim.control();
    let r = try_post(sim.addr(), "/v1/chat/completions", &chat("x", 100_000, true)).await.unwrap();
    let mut body = r.into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(control.state().running, 1);
    drop(body);
    let s = until(&control, "aborted", |s| s.aborted == 1).await;
    assert_eq!((s.in_flight, s.running, s.kv_used, s.orphaned, s.aborted_sequences), (0, 0, 0, 0, 1));
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_ends_the_work() {
    let sim = start(SimOptions::default());
    let control = sim.control();
    let at = sim.addr();
    let asking = tokio::spawn(async move {
        try_post(at, "/v1/chat/completions", &chat("x", 100_000, false)).await.is_ok()
    });
    until(&control, "running", |s| s.running == 1).await;
    asking.abort();
    let s = until(&control, "aborted", |s| s.aborted == 1).await;
    assert_eq!((s.in_flight, s.running, s.kv_used), (0, 0, 0));
}

#[tokio::test]
async fn statuses_on_demand_and_for_so_many_times() {
    let (sim, control) =
        fault(Faults { status: Some(429), retry_after: Some(7), times: Some(2), ..Faults::default() });
    for _ in 0..2 {
        let r = try_post(sim.addr(), "/v1/chat/completions", &chat("x", 1, false)).await.unwrap();
        assert_eq!(
            (r.status(), r.headers()["retry-after"].to_str().unwrap()),
            (StatusCode::TOO_MANY_REQUESTS, "7")
        );
    }
    assert_eq!(post(sim.addr(), "/v1/chat/completions", &chat("x", 1, false)).await.0, StatusCode::OK);
    assert_eq!(control.state().faults, Faults::default());
    let mut r = request("POST", "/v1/chat/completions", &chat("x", 1, false));
    r.headers_mut().insert("x-return-error", "500".parse().unwrap());
    assert_eq!(connect(sim.addr()).await.send_request(r).await.unwrap().status(), 500);
}

#[tokio::test]
async fn dying_cutting_and_hanging_streams() {
    let (sim, control) = fault(Faults { die_after: Some(5), ..Faults::default() });
    let (text, whole) = read(&sim, &chat("x", 50, true)).await;
    assert!(!whole);
    // The role chunk and five tokens.
    assert_eq!(events(&text).len(), 6);
    until(&control, "idle", |s| s.in_flight == 0 && s.running == 0).await;

    control.set_faults(Faults { cut_after: Some(3), ..Faults::default() }).unwrap();
    let (text, whole) = read(&sim, &chat("x", 50, true)).await;
    assert_eq!((whole, events(&text).len()), (false, 4));
    let (_, whole) = read(&sim, &chat("x", 50, false)).await;
    assert!(!whole);

    control.set_faults(Faults { die_after: Some(0), ..Faults::default() }).unwrap();
    assert!(try_post(sim.addr(), "/v1/chat/completions", &chat("x", 50, true)).await.is_err());

    control.set_faults(Faults { hang_after: Some(2), ..Faults::default() }).unwrap();
    let mut body =
        try_post(sim.addr(), "/v1/chat/completions", &chat("x", 50, true)).await.unwrap().into_body();
    let mut text = String::new();
    while events(&text).len() < 3 {
        let frame = body.frame().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    assert_eq!(control.state().in_flight, 1);
    drop(body);
    until(&control, "idle", |s| s.in_flight == 0 && s.running == 0).await;
}

#[tokio::test]
async fn garbage_of_three_kinds() {
    let (sim, control) = fault(Faults { garbage: Some(Garbage::Head), ..Faults::default() });
    assert!(try_post(sim.addr(), "/v1/chat/completions", &chat("x", 5, true)).await.is_err());
    control.set_faults(Faults { garbage: Some(Garbage::Body), ..Faults::default() }).unwrap();
    let r = try_post(sim.addr(), "/v1/chat/completions", &chat("x", 5, false)).await.unwrap();
    assert_eq!(r.status(), StatusCode::OK);
    let bytes = r.into_body().collect().await.unwrap().to_bytes();
    assert!(serde_json::from_slice::<Value>(&bytes).is_err());
    control.set_faults(Faults { garbage: Some(Garbage::Event), ..Faults::default() }).unwrap();
    let (text, whole) = read(&sim, &chat("x", 5, true)).await;
    assert!(whole && text.contains('\u{fffd}') && text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_refusing_engine_is_gone_and_comes_back() {
    let sim = start(SimOptions::default());
    let control = sim.control();
    let mut body =
        try_post(sim.addr(), "/v1/chat/completions", &chat("x", 100_000, true)).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    control.set_faults(Faults { refuse: true, ..Faults::default() }).unwrap();
    while let Some(Ok(_)) = body.frame().await {}
    let s = until(&control, "without connections", |s| s.connections == 0).await;
    assert_eq!((s.in_flight, s.running), (0, 0));
    let mut tries = 0;
    while TcpStream::connect(sim.addr()).await.is_ok() {
        tries += 1;
        assert!(tries < 1000, "still accepts");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    control.heal();
    let mut tries = 0;
    while TcpStream::connect(sim.addr()).await.is_err() {
        tries += 1;
        assert!(tries < 1000, "never accepts again");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(get(sim.addr(), "/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn faults_by_http_end_by_themselves() {
    let sim = start(quick());
    let (status, _) = post(sim.addr(), "/sim/control", &json!({"unready": true, "for_ms": 30})).await;
    assert_eq!(status, StatusCode::OK);
    assert!(!sim.control().state().ready);
    until(&sim.control(), "ready again", |s| s.ready).await;
    let (status, v) = post(sim.addr(), "/sim/control", &json!({"status": 99})).await;
    assert_eq!(
        (status, v["error"].as_str().unwrap()),
        (StatusCode::BAD_REQUEST, "status: 99 is outside 400..=599")
    );
    let (status, _) = post(sim.addr(), "/sim/control", &json!({"refuse": true, "for_ms": 50})).await;
    assert_eq!(status, StatusCode::OK);
    until(&sim.control(), "gone", |s| s.faults.refuse).await;
    until(&sim.control(), "back", |s| !s.faults.refuse).await;
    assert_eq!(get(sim.addr(), "/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_hanging_engine_answers_nothing_but_control() {
    let (sim, control) = fault(Faults { hang: true, everywhere: true, ..Faults::default() });
    let at = sim.addr();
    let waiting =
        tokio::spawn(async move { try_post(at, "/v1/chat/completions", &chat("x", 1, false)).await.is_ok() });
    let health = tokio::spawn(async move { get(at, "/health").await.0 });
    until(&control, "hanging", |s| s.in_flight == 1 && s.connections == 2).await;
    assert_eq!(get(at, "/sim/state").await.0, StatusCode::OK);
    assert!(!waiting.is_finished() && !health.is_finished());
    waiting.abort();
    health.abort();
    until(&control, "idle", |s| s.in_flight == 0 && s.connections == 0).await;
}

#[tokio::test]
async fn idle_connections_are_closed_like_uvicorn_s() {
    let sim = start(SimOptions { keep_alive: Some(Duration::from_millis(50)), ..quick() });
    let mut c = connect(sim.addr()).await;
    let r = c.send_request(request("GET", "/health", &Value::Null)).await.unwrap();
    r.into_body().collect().await.unwrap();
    until(&sim.control(), "closed", |s| s.connections == 0).await;
    // The engine has closed; the client's own task may not have read so yet.
    let noticed = async {
        while c.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), noticed).await.expect("the client notices the close");
}

#[tokio::test]
async fn shutdown_resets_and_drain_waits() {
    let sim = start(SimOptions::default());
    let at = sim.addr();
    let mut body = try_post(at, "/v1/chat/completions", &chat("x", 100_000, true)).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    assert!(!sim.drain(Duration::from_millis(30)).await);
    while let Some(Ok(_)) = body.frame().await {}
    let control = sim.control();
    until(&control, "gone", |s| s.connections == 0).await;
    assert_eq!(control.state().in_flight, 0);
}

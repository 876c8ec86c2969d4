//! Hand-offs of vLLM whose legs are sent at once: NIXL push, Mooncake and MoRI-IO's write mode.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

mod common;
#[path = "common/handoff.rs"]
mod handoff;
use common::*;
use fairlead_sim::{Faults, Handle, HandoffOptions, SimOptions};
use fairlead_wire::msg::{Handoff, ServingRole};
use handoff::*;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

/// The hand-offs here, each with the place of its address and of what matches the legs.
const WAYS: [Handoff; 3] = [Handoff::NixlPush, Handoff::Mooncake, Handoff::MoriWrite];

/// Bodies and request id of both legs of the request with that number.
fn legs(way: Handoff, p: &Handle, d: &Handle, content: &str, number: u32) -> [(Value, String); 2] {
    let engine = p.control().state().handoff.engine_id;
    let (host, port) = ("127.0.0.1", p.addr().port());
    let tx = format!("tx-{number}");
    let mut first = prefill_leg(content);
    let mut second = chat(content, 12, false);
    let id = match way {
        Handoff::NixlPush => {
            let id = format!("push-{number}");
            second["kv_transfer_params"] = json!({"do_remote_prefill": true, "do_remote_decode": false,
                "remote_engine_id": engine, "remote_host": host, "remote_port": port, "tp_size": 1, "pp_size": 1,
                "remote_request_id": id});
            id
        }
        Handoff::Mooncake => {
            first["kv_transfer_params"] =
                json!({"do_remote_decode": true, "do_remote_prefill": false, "transfer_id": tx});
            second["kv_transfer_params"] = json!({"do_remote_decode": false, "do_remote_prefill": true,
                "remote_bootstrap_addr": format!("http://{host}:{port}"), "remote_engine_id": engine,
                "transfer_id": tx});
            "any".to_owned()
        }
        _ => {
            first["kv_transfer_params"]["transfer_id"] = json!(tx);
            second["kv_transfer_params"] = json!({"do_remote_decode": false, "do_remote_prefill": true,
                "transfer_id": tx, "remote_dp_size": 1, "remote_tp_size": 1, "remote_dp_rank": 0});
            format!(
                "___prefill_addr_host:{host},handshake:{port},notify:{port}___decode_addr_host:{host},\
                 handshake:{dp},notify:{dp}_{number:032x}",
                dp = d.addr().port()
            )
        }
    };
    [(first, id.clone()), (second, id)]
}

async fn leg(sim: &Handle, (body, id): &(Value, String)) -> Said {
    ask_with(sim.addr(), CHAT, &body.to_string(), &[("x-request-id", id)]).await
}

/// In the background.
fn going(sim: &Handle, (body, id): &(Value, String)) -> tokio::task::JoinHandle<Said> {
    let (addr, body, id) = (sim.addr(), body.to_string(), id.clone());
    tokio::spawn(async move { ask_with(addr, CHAT, &body, &[("x-request-id", &id)]).await })
}

#[tokio::test]
async fn legs_may_come_in_either_order() {
    for way in WAYS {
        let (p, d) = pair(way);
        let content = prompt("order");
        let want = alone(&chat(&content, 12, false)).await;
        for (number, decode_first) in [(1, false), (2, true)] {
            let [first, second] = legs(way, &p, &d, &content, number);
            let (a, b) = if decode_first {
                let b = going(&d, &second);
                until(&p.control(), "awaited", |s| s.handoff.awaited == 1).await;
                (leg(&p, &first).await, b.await.unwrap())
            } else {
                let a = leg(&p, &first).await;
                until(&p.control(), "ready", |s| s.handoff.ready == 1).await;
                (a, leg(&d, &second).await)
            };
            assert_eq!(
                (a.status, b.status),
                (StatusCode::OK, StatusCode::OK),
                "{way:?} {} {}",
                a.text,
                b.text
            );
            assert_eq!((b.content(), b.cached()), (want.content(), want.prompt() - 1), "{way:?}");
            if way == Handoff::NixlPush {
                let told: Value = serde_json::from_str(params(&a.text)).unwrap();
                assert_eq!(told["transfer_mode"], "push");
                assert!(told["remote_request_id"].as_str().unwrap().starts_with("push-"));
            }
        }
        assert_eq!(idle(&p.control()).await.taken, 2);
        assert_eq!(idle(&d.control()).await.decode_legs, 2);
    }
}

#[tokio::test]
async fn wrong_legs_fail() {
    type Edit = fn(&mut [(Value, String); 2]);
    let set = |name: &'static str, to: Value| (name, to);
    for way in WAYS {
        let (p, d) = pair(way);
        let mut edits: Vec<(&str, &str, Value)> = Vec::new();
        let (name, to) = match way {
            Handoff::NixlPush => set("remote_request_id", json!("another")),
            Handoff::Mooncake => set("remote_bootstrap_addr", json!("127.0.0.1:8998")),
            _ => set("transfer_id", Value::Null),
        };
        edits.push(("told wrong", name, to));
        if way != Handoff::MoriWrite {
            edits.push(("another engine id", "remote_engine_id", json!("another")));
        }
        for (number, (what, name, to)) in edits.into_iter().enumerate() {
            let mut both = legs(way, &p, &d, "wrong", number as u32);
            both[1].0["kv_transfer_params"][name] = to;
            _ = leg(&p, &both[0]).await;
            let said = leg(&d, &both[1]).await;
            assert_eq!(said.status, StatusCode::INTERNAL_SERVER_ERROR, "{way:?} {what}: {}", said.text);
        }
        let more: [(&str, Edit); 2] = [
            ("n", |legs| legs.iter_mut().for_each(|(body, _)| body["n"] = json!(2))),
            ("no id", |legs| {
                for (body, id) in legs {
                    *id = "unmatched".into();
                    body["kv_transfer_params"]["transfer_id"] = json!("");
                }
            }),
        ];
        for (number, (what, edit)) in more.into_iter().enumerate() {
            let mut both = legs(way, &p, &d, "wrong", 10 + number as u32);
            edit(&mut both);
            let said = leg(&d, &both[1]).await;
            assert!(said.status.as_u16() >= 400, "{way:?} {what}: {}", said.text);
            // A prefill leg of NIXL needs no name.
            let said = leg(&p, &both[0]).await;
            assert_eq!(
                said.status.as_u16() >= 400,
                what == "n" || way != Handoff::NixlPush,
                "{way:?} {what}"
            );
        }
        // Nobody is left waiting.
        idle(&p.control()).await;
        idle(&d.control()).await;
    }
    // Addresses in the id are checked on both sides, roles by Mooncake.
    let (p, d) = pair(Handoff::MoriWrite);
    let [first, second] = legs(Handoff::MoriWrite, &p, &d, "swapped", 1);
    for (sim, leg_of) in [(&d, &first), (&p, &second)] {
        let said = leg(sim, leg_of).await;
        assert!(said.text.contains("not this engine's address"), "{}", said.text);
    }
    let (p, d) = pair(Handoff::Mooncake);
    let [first, second] = legs(Handoff::Mooncake, &p, &d, "swapped", 1);
    for (sim, leg_of) in [(&d, &first), (&p, &second)] {
        assert_eq!(leg(sim, leg_of).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}

#[tokio::test]
async fn a_decode_leg_without_its_prefill_leg_waits_for_so_long() {
    for way in WAYS {
        let options = options(way, ServingRole::Decode);
        let short = Duration::from_secs(10);
        let transfer =
            options.transfer.clone().map(|t| HandoffOptions { lease: short, abort_timeout: short, ..t });
        let (p, _) = pair(way);
        let d = start(SimOptions { transfer, ..options });
        let said = leg(&d, &legs(way, &p, &d, "late", 1)[1]).await;
        assert_eq!(said.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(said.text.contains("within 10 s"), "{}", said.text);
        idle(&p.control()).await;
        idle(&d.control()).await;
    }
}

#[tokio::test]
async fn the_other_leg_must_be_ended_by_the_router() {
    for way in WAYS {
        let (p, d) = pair(way);
        p.control().set_faults(Faults { slow: 1e5, ..Faults::default() }).unwrap();
        let [first, second] = legs(way, &p, &d, &prompt("ended"), 1);
        let (a, b) = (going(&p, &first), going(&d, &second));
        until(&p.control(), "computing", |s| s.running == 1 && s.handoff.awaited == 0).await;
        until(&d.control(), "waiting", |s| s.handoff.waiting_for_kv == 1).await;
        a.abort();
        // The decode side is not told.
        until(&p.control(), "awaited", |s| s.handoff.awaited == 1 && s.in_flight == 0).await;
        assert_eq!(d.control().state().handoff.waiting_for_kv, 1);
        b.abort();
        idle(&p.control()).await;
        idle(&d.control()).await;

        // The prefill side goes on, and keeps what it has for as long as the lease lasts.
        p.control().heal();
        let [first, second] = legs(way, &p, &d, &prompt("goes on"), 2);
        let b = going(&d, &second);
        until(&p.control(), "awaited", |s| s.handoff.awaited == 1).await;
        b.abort();
        until(&p.control(), "alone", |s| s.handoff.awaited == 0).await;
        assert_eq!(leg(&p, &first).await.status, StatusCode::OK);
        assert_eq!(idle(&p.control()).await.ready, 1);
    }
}

#[tokio::test]
async fn mooncake_s_bootstrap_server_tells_the_engines() {
    let (p, d) = pair(Handoff::Mooncake);
    let (status, text) = get(p.addr(), "/query").await;
    let said: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(said["0"]["engine_id"], p.control().state().handoff.engine_id);
    assert_eq!(said["0"]["worker_addr"]["0"]["0"], format!("tcp://{}", p.addr()));
    assert_eq!(get(d.addr(), "/query").await.0, StatusCode::NOT_FOUND);
}

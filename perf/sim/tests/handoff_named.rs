//! Hand-offs whose request ids name the engines, prefill first: P2pNccl and MoRI-IO's read mode.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

mod common;
#[path = "common/handoff.rs"]
mod handoff;
use common::*;
use fairlead_sim::{Faults, Handle};
use fairlead_wire::msg::{Handoff, ServingRole};
use handoff::*;
use hyper::StatusCode;
use serde_json::json;

fn id(p: &Handle, d: &Handle, number: u32) -> String {
    format!("___prefill_addr_{}___decode_addr_{}_{number:032x}", p.addr(), d.addr())
}

async fn leg(sim: &Handle, body: &str, id: &str) -> Said {
    ask_with(sim.addr(), CHAT, body, &[("x-request-id", id)]).await
}

#[tokio::test]
async fn p2p_needs_nothing_but_the_id() {
    let (p, d) = pair(Handoff::P2pNccl);
    let content = prompt("p2p");
    let (first, second) = (chat(&content, 1, false).to_string(), chat(&content, 12, true).to_string());
    let id = id(&p, &d, 1);
    assert_eq!(leg(&p, &first, &id).await.status, StatusCode::OK);
    let said = leg(&d, &second, &id).await;
    assert_eq!(said.content(), alone(&chat(&content, 12, true)).await.content());
    assert_eq!((idle(&p.control()).await.taken, idle(&d.control()).await.decode_legs), (1, 1));
    // An id that names nobody is served where it comes.
    assert_eq!(leg(&d, &second, "mine").await.status, StatusCode::OK);
    assert_eq!(idle(&d.control()).await.plain, 1);
}

#[tokio::test]
async fn p2p_with_a_wrong_id_fails() {
    let (p, d) = pair(Handoff::P2pNccl);
    let other = start(options(Handoff::P2pNccl, ServingRole::Prefill));
    let body = chat("wrong", 3, false).to_string();
    let right = id(&p, &d, 1);
    let uuid = "0".repeat(32);
    for (what, sim, id) in [
        ("no prefill leg", &d, right.clone()),
        ("another decode engine", &d, id(&p, &other, 2)),
        ("another prefill engine", &p, id(&other, &d, 3)),
        ("prefilled elsewhere", &d, id(&other, &d, 4)),
        ("no port", &p, format!("___prefill_addr_127.0.0.1___decode_addr_{}_{uuid}", d.addr())),
        ("one address", &d, format!("___decode_addr_{}_{uuid}", d.addr())),
    ] {
        let said = leg(sim, &body, &id).await;
        assert_eq!(said.status, StatusCode::INTERNAL_SERVER_ERROR, "{what}: {}", said.text);
    }
    // Once is enough.
    leg(&p, &body, &right).await;
    assert_eq!(leg(&d, &body, &right).await.status, StatusCode::OK);
    assert_eq!(leg(&d, &body, &right).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let several = body.replacen('{', "{\"n\":2,", 1);
    assert_eq!(leg(&p, &several, &right).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn mori_reads_what_the_prefill_side_told() {
    let (p, d) = pair(Handoff::MoriRead);
    let content = prompt("mori");
    let mut first = prefill_leg(&content);
    first["kv_transfer_params"]["transfer_id"] = json!("tx-1");
    let id = id(&p, &d, 1);
    let told = leg(&p, &first.to_string(), &id).await;
    assert_eq!(told.status, StatusCode::OK, "{}", told.text);
    let right = with_text(&chat(&content, 12, false), "kv_transfer_params", params(&told.text));
    for (what, body, id) in [
        ("no transfer id", right.replace("\"transfer_id\"", "\"id\""), &id),
        ("another transfer id", right.replace("tx-1", "tx-2"), &id),
        ("another engine", right.replace("\"remote_engine_id\": \"", "\"remote_engine_id\": \"x"), &id),
        ("no blocks", right.replace("\"remote_block_ids\"", "\"blocks\""), &id),
        ("no addresses", right.clone(), &"plain".to_owned()),
    ] {
        let said = leg(&d, &body, id).await;
        assert_eq!(said.status, StatusCode::INTERNAL_SERVER_ERROR, "{what}: {}", said.text);
    }
    let said = leg(&d, &right, &id).await;
    assert_eq!(said.content(), alone(&chat(&content, 12, false)).await.content(), "{}", said.text);
    assert_eq!(said.cached(), said.prompt() - 1);

    let told = leg(&p, &first.to_string(), &id).await;
    let body = with_text(&chat(&content, 12, false), "kv_transfer_params", params(&told.text));
    let said = leg(&d, &body.replace("1.50, 2e+3", "1.5, 2000.0"), &id).await;
    assert!(said.text.contains("as they were given"), "{}", said.text);
}

#[tokio::test]
async fn a_client_that_leaves_frees_everything() {
    let (p, d) = pair(Handoff::P2pNccl);
    p.control().set_faults(Faults { slow_transfer: 1e6, ..Faults::default() }).unwrap();
    let (id, body) = (id(&p, &d, 1), chat(&prompt("leaves"), 3, true).to_string());
    leg(&p, &body, &id).await;
    let at = d.addr();
    let going = tokio::spawn(async move { ask_with(at, CHAT, &body, &[("x-request-id", &id)]).await });
    until(&p.control(), "sending", |s| s.handoff.sending == 1).await;
    going.abort();
    assert_eq!(idle(&p.control()).await.failed, 1);
    idle(&d.control()).await;
}

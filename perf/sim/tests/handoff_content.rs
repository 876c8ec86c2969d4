//! Hand-offs by content: a store that engines share.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

mod common;
#[path = "common/handoff.rs"]
mod handoff;
use common::*;
use fairlead_sim::{Faults, HandoffOptions, SimOptions};
use fairlead_wire::msg::{Handoff, ServingRole};
use handoff::*;
use serde_json::json;
use std::path::PathBuf;

/// An engine whose store has that name, or is in that folder.
fn shared(role: ServingRole, name: &str, store: Option<PathBuf>) -> fairlead_sim::Handle {
    let options = options(Handoff::SharedStore, role);
    let transfer = options.transfer.clone();
    let transfer = transfer.map(|t| HandoffOptions { domain: name.into(), store, ..t });
    start(SimOptions { transfer, ..options })
}

#[tokio::test]
async fn prompts_are_found_by_their_blocks() {
    let dir = std::env::temp_dir().join(format!("fairlead-handoff-{}", std::process::id()));
    for store in [None, Some(dir.clone())] {
        let p = shared(ServingRole::Prefill, "found", store.clone());
        let d = shared(ServingRole::Decode, "found", store.clone());
        let content = prompt("store");
        assert_eq!(ask(p.addr(), &chat(&content, 1, false)).await.cached(), 0);
        let said = ask(d.addr(), &chat(&content, 12, false)).await;
        assert_eq!(said.content(), alone(&chat(&content, 12, false)).await.content());
        assert_eq!(said.cached(), said.prompt() / 16 * 16);
        let (sent, received) = (idle(&p.control()).await, idle(&d.control()).await);
        assert_eq!((sent.prefill_legs, received.decode_legs), (1, 1));
        assert_eq!(received.tokens_received, said.cached());
        // A decode engine puts nothing in.
        let other = prompt("other");
        ask(d.addr(), &chat(&other, 1, false)).await;
        let third = shared(ServingRole::Decode, "found", store.clone());
        assert_eq!(ask(third.addr(), &chat(&other, 1, false)).await.cached(), 0);
        // One that does both does, and its own cache comes first.
        let both = shared(ServingRole::Both, "found", store.clone());
        ask(both.addr(), &chat(&other, 1, false)).await;
        assert_eq!(idle(&both.control()).await.plain, 1);
        let mut several = chat(&other, 4, false);
        several["n"] = json!(2);
        let said = ask(third.addr(), &several).await;
        assert_eq!(said.cached(), (said.prompt() - 1) / 16 * 16);
        assert_eq!(idle(&third.control()).await.tokens_received, 0);
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn what_is_lost_or_elsewhere_is_computed() {
    let p = shared(ServingRole::Prefill, "lost", None);
    let d = shared(ServingRole::Decode, "lost", None);
    let elsewhere = shared(ServingRole::Decode, "elsewhere", None);
    let content = prompt("lost");
    p.control().set_faults(Faults { lose_kv: true, ..Faults::default() }).unwrap();
    ask(p.addr(), &chat(&content, 1, false)).await;
    assert_eq!(ask(d.addr(), &chat(&content, 3, false)).await.cached(), 0);
    p.control().heal();
    ask(p.addr(), &chat(&content, 1, false)).await;
    assert_eq!(ask(elsewhere.addr(), &chat(&content, 3, false)).await.cached(), 0);
    d.control().set_faults(Faults { refuse_kv: true, ..Faults::default() }).unwrap();
    d.control().clear_cache();
    assert_eq!(ask(d.addr(), &chat(&content, 3, false)).await.cached(), 0);
    // The client leaves while its blocks are on their way.
    d.control().set_faults(Faults { slow_transfer: 1e6, ..Faults::default() }).unwrap();
    d.control().clear_cache();
    let leg = asking(d.addr(), chat(&content, 3, false));
    until(&d.control(), "waiting", |s| s.handoff.waiting_for_kv == 1).await;
    leg.abort();
    idle(&d.control()).await;
}

//! Peers that lie about themselves, on real links: each is refused with a reason and counted, and nobody else is harmed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Cluster, Peer, get, instance, links, page_when, soon};
use fairlead_scheduler::Handle;
use fairlead_transport::{ConnectError, Lane, LinkError};
use fairlead_wire::msg::{
    CacheEvents, CacheOp, Hello, InstanceInfo, RankLoad, RefuseCode, Register, Report, Role,
};
use fairlead_wire::{Body, Frame, Header, Kind, PROTOCOL, PROTOCOL_MIN, Stamp};

/// A frame as it would travel if its sender checked nothing.
fn unchecked<T: Body>(body: &T) -> bytes::Bytes {
    let payload = body.archive().unwrap();
    let stamp = Stamp::default();
    let header = Header {
        kind: T::KIND,
        length: payload.len() as u32,
        flags: 0,
        epoch: stamp.epoch,
        base_seq: 0,
        new_seq: 0,
        created_us: 0,
    };
    Frame::new(header, payload).unwrap().to_bytes().into()
}

async fn refused(peer: &mut Peer) -> (RefuseCode, String) {
    match peer.end().await {
        LinkError::Refused(refuse) => (refuse.code, refuse.reason.clone()),
        other => panic!("not refused: {other}"),
    }
}

/// Refusals of a code, as `/metrics` tells them.
async fn count(scheduler: &Handle, code: &str) -> u64 {
    let (_, text) = get(scheduler.admin_addr().unwrap(), "GET /metrics").await;
    let name = format!("fairlead_scheduler_refusals_total{{code=\"{code}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("{text}"));
    value.parse::<f64>().unwrap() as u64
}

/// Returns when the scheduler has counted so many.
async fn counted(scheduler: &Handle, code: &str, wanted: u64) {
    soon(async {
        while count(scheduler, code).await < wanted {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(count(scheduler, code).await, wanted, "{code}");
}

#[tokio::test]
async fn a_name_that_is_not_the_certificates_is_refused() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let identity = cluster.authority.issue(Role::Agent, "honest").unwrap();
    let hello = |role, name: &str| Hello {
        role,
        name: name.into(),
        incarnation: 1,
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL,
        software: "test".into(),
        have: None,
    };
    let address = scheduler.addr().to_string();
    for (hello, part) in [(hello(Role::Agent, "other"), "other"), (hello(Role::Gateway, "honest"), "gateway")]
    {
        match soon(fairlead_transport::connect(&address, &identity, &hello, &links())).await {
            Err(ConnectError::Refused(refuse)) => {
                assert_eq!(refuse.code, RefuseCode::Identity);
                assert!(refuse.reason.contains(part), "{}", refuse.reason);
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("welcomed"),
        }
    }
    counted(&scheduler, "identity", 2).await;
    // An instance under another's name, by an agent whose own name is in order.
    let mut agent = cluster.connect(scheduler.addr(), Role::Agent, "a", 1).await;
    agent.register("b", 1).await;
    let (code, reason) = refused(&mut agent).await;
    assert_eq!(code, RefuseCode::Identity);
    assert!(reason.contains("\"b\"") && reason.contains("\"a\""), "{reason}");
    counted(&scheduler, "identity", 3).await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn figures_beyond_all_bounds_are_refused_by_name() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let good = cluster.connect(scheduler.addr(), Role::Agent, "good", 1).await;
    good.register("good", 1).await;
    let lie = |change: fn(&mut InstanceInfo)| {
        let mut info = instance("liar", 1);
        change(&mut info);
        unchecked(&Register { instance: info })
    };
    let load = |change: fn(&mut RankLoad)| {
        let mut load = RankLoad::default();
        change(&mut load);
        unchecked(&Report { incarnation: 1, ready: true, reason: None, ranks: vec![load] })
    };
    let events =
        |rank, ops| unchecked(&CacheEvents { incarnation: 1, rank, partial: false, replace: true, ops });
    let store = |above: &[u64], blocks: &[u64]| {
        vec![CacheOp::Store { above: above.to_vec(), blocks: blocks.to_vec() }]
    };
    let lies = [
        (lie(|info| info.block_size = Some(0)), "instance.block_size: 0"),
        (lie(|info| info.dp_ranks = 0), "instance.dp_ranks: 0"),
        (lie(|info| info.dp_ranks = u16::MAX), "instance.dp_ranks: 65535"),
        (lie(|info| info.kv_blocks = Some(u64::MAX)), "instance.kv_blocks"),
        (lie(|info| info.address = "nowhere".into()), "instance.address"),
        (lie(|info| info.name = "x".repeat(5_000)), "instance.name"),
        (load(|load| load.kv_usage = Some(f32::NAN)), "load.kv_usage: NaN"),
        (load(|load| load.prompt_tokens_per_s = Some(f32::INFINITY)), "load.prompt_tokens_per_s: inf"),
        (load(|load| load.running = Some(u32::MAX)), "load.running"),
        (load(|load| load.rank = u16::MAX), "load.rank"),
        (events(u16::MAX, Vec::new()), "cache_events.rank"),
        (events(0, store(&[], &[7, 0])), "hash 0"),
        (events(0, store(&[0], &[7])), "hash 0"),
        (events(0, store(&[], &[])), "cache_events.blocks"),
        (events(0, store(&vec![1; 2_000], &[7])), "cache_events.above"),
    ];
    let told = lies.len() as u64;
    for (bytes, part) in lies {
        let mut liar = cluster.connect(scheduler.addr(), Role::Agent, "liar", 1).await;
        liar.register("liar", 1).await;
        soon(liar.sender.send(Lane::Control, bytes)).await.unwrap();
        let (code, reason) = refused(&mut liar).await;
        assert_eq!(code, RefuseCode::Malformed, "{part}: {reason}");
        assert!(reason.contains(part), "{part}: {reason}");
    }
    counted(&scheduler, "malformed", told).await;
    // What is well formed and yet not true of this peer.
    let mut liar = cluster.connect(scheduler.addr(), Role::Agent, "liar", 2).await;
    liar.register("liar", 1).await;
    let beyond = CacheEvents { incarnation: 1, rank: 3, partial: false, replace: true, ops: Vec::new() };
    liar.say(Lane::Control, &beyond).await;
    let (code, reason) = refused(&mut liar).await;
    assert_eq!(
        (code, reason.as_str()),
        (RefuseCode::Invalid, "cache_events.rank: 3 is not below the instance's 1")
    );
    counted(&scheduler, "invalid", 1).await;
    // Everybody else is served on.
    good.report(1, 5).await;
    page_when(scheduler.admin_addr().unwrap(), "/debug/targets", |page| {
        page["targets"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["instance"] == "good" && one["load"]["running"] == 5))
    })
    .await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_only_their_own_link() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let mut good = cluster.connect(scheduler.addr(), Role::Gateway, "good", 1).await;
    let mut told = 0;
    for (number, bytes) in
        [vec![0; 64], vec![0xff; 4096], b"GET / HTTP/1.1\r\n\r\n".repeat(10)].into_iter().enumerate()
    {
        let mut bad = cluster.connect(scheduler.addr(), Role::Agent, &format!("bad{number}"), 1).await;
        soon(bad.sender.send(Lane::Control, bytes.into())).await.unwrap();
        assert_eq!(refused(&mut bad).await.0, RefuseCode::Malformed);
        told += 1;
    }
    // Every kind with nothing in it, from somebody who may send none of them.
    for &kind in Kind::ALL {
        let header = Header { kind, length: 0, flags: 0, epoch: 0, base_seq: 0, new_seq: 0, created_us: 0 };
        let mut bad = cluster.connect(scheduler.addr(), Role::Agent, "empty", u64::from(kind as u16)).await;
        soon(bad.sender.send(Lane::Control, header.encode().to_vec().into())).await.unwrap();
        if kind == Kind::Refuse {
            // Its own words end a link, whatever they are.
            bad.end().await;
            told += 1;
            continue;
        }
        assert_eq!(refused(&mut bad).await.0, RefuseCode::Malformed, "{kind:?}");
        told += 1;
    }
    counted(&scheduler, "malformed", told).await;
    good.say(Lane::Control, &fairlead_wire::msg::Resume { epoch: 1, sequence: 1 }).await;
    good.hear_until(|message| matches!(message, fairlead_wire::Message::Snapshot(_)).then_some(())).await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_target_of_events_is_shown_and_cannot_take_the_index() {
    let cluster = Cluster::new();
    let mut options = cluster.options();
    options.index_bytes = 1 << 20;
    let scheduler = fairlead_scheduler::Scheduler::start(options).await.unwrap();
    let greedy = cluster.connect(scheduler.addr(), Role::Agent, "greedy", 1).await;
    let modest = cluster.connect(scheduler.addr(), Role::Agent, "modest", 1).await;
    for (agent, name) in [(&greedy, "greedy"), (&modest, "modest")] {
        agent.register(name, 1).await;
    }
    let say = async |agent: &Peer, replace, from: u64, count: u64| {
        let blocks = (0..count).map(|at| (from + at).wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1)).collect();
        let ops = vec![CacheOp::Store { above: Vec::new(), blocks }];
        agent
            .say(Lane::Control, &CacheEvents { incarnation: 1, rank: 0, partial: false, replace, ops })
            .await;
    };
    say(&modest, true, 1, 50).await;
    for round in 0..100 {
        say(&greedy, round == 0, 1_000 + round * 1_000, 1_000).await;
    }
    let admin = scheduler.admin_addr().unwrap();
    let of = |page: &serde_json::Value, name: &str| {
        page["targets"].as_array().and_then(|all| all.iter().find(|one| one["instance"] == name).cloned())
    };
    // A quarter of a megabyte at 16 bytes a block.
    let page = page_when(admin, "/debug/targets", |page| {
        of(page, "greedy").is_some_and(|one| one["cache"] == "events, partial")
            && of(page, "modest").is_some_and(|one| one["cache"] == "events")
    })
    .await;
    assert!(of(&page, "greedy").unwrap()["held_blocks"].as_u64().unwrap() <= 16_384, "{page}");
    let page = page_when(admin, "/debug/targets", |page| {
        of(page, "modest").is_some_and(|one| one["held_blocks"] == 50)
    })
    .await;
    assert_eq!(of(&page, "modest").unwrap()["capacity_factor"], 1.0);
    let (_, metrics) = get(admin, "GET /metrics").await;
    assert!(metrics.contains("fairlead_scheduler_cache_sources{source=\"partial\"} 1"), "{metrics}");
    scheduler.shutdown().await;
}

//! A real scheduler, with agents and gateways on real links.

mod common;

use common::{Cluster, get, local, page_when, soon};
use fairlead_scheduler::{Scheduler, StartError};
use fairlead_transport::{Lane, LinkError, LinkOptions};
use fairlead_wire::msg::{
    GatewayLoad, HashSpace, InFlight, IndexOp, Op, Placement, Placements, RefuseCode, Role,
};
use fairlead_wire::{Message, TargetId};

/// The packed id of an instance's target, from whatever a gateway is told.
fn target_of(message: &Message, name: &str, ready: bool) -> Option<u32> {
    match message {
        Message::Snapshot(chunk) => chunk
            .targets
            .iter()
            .find(|target| target.instance.name == name && target.ready == ready)
            .map(|target| target.target),
        Message::Delta(delta) => delta.ops.iter().find_map(|op| match op {
            Op::Target(target) if target.instance.name == name && target.ready == ready => {
                Some(target.target)
            }
            _ => None,
        }),
        _ => None,
    }
}

#[tokio::test]
async fn a_registered_engine_reaches_gateways_and_the_debug_page() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let mut early = cluster.connect(scheduler.addr(), Role::Gateway, "early", 1).await;
    let agent = cluster.connect(scheduler.addr(), Role::Agent, "engine", 1).await;
    assert_eq!(agent.welcome.epoch, scheduler.epoch());
    agent.register("engine", 5).await;
    agent.report(5, 3).await;
    // Lanes overtake one another: the load may come before the target it speaks of.
    let (mut id, mut loads) = (None, Vec::new());
    let running = early
        .hear_until(|message| {
            id = id.or_else(|| target_of(message, "engine", true));
            if let Message::LoadUpdate(update) = message {
                loads.extend(update.engines.iter().copied());
            }
            loads.iter().find(|engine| Some(engine.target) == id)?.load.running
        })
        .await;
    assert_eq!(running, 3);
    let id = id.unwrap();

    let mut late = cluster.connect(scheduler.addr(), Role::Gateway, "late", 1).await;
    let seen = late.hear_until(|message| target_of(message, "engine", true)).await;
    assert_eq!(seen, id);

    let page = page_when(scheduler.admin_addr().unwrap(), "/debug/targets", |page| {
        page["targets"][0]["load"]["running"] == 3
    })
    .await;
    let target = &page["targets"][0];
    assert_eq!((&target["instance"], &target["ready"]), (&"engine".into(), &true.into()));
    assert_eq!(target["load"]["kv_usage"], serde_json::Value::Null, "unknown is not zero");
    assert_eq!(target["target"], TargetId::unpack(id).to_string());
    scheduler.shutdown().await;
}

#[tokio::test]
async fn placements_and_reservations_of_one_gateway_reach_the_other() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let agent = cluster.connect(scheduler.addr(), Role::Agent, "engine", 1).await;
    agent.register("engine", 5).await;
    let mut one = cluster.connect(scheduler.addr(), Role::Gateway, "one", 1).await;
    let mut two = cluster.connect(scheduler.addr(), Role::Gateway, "two", 1).await;
    let id = one.hear_until(|message| target_of(message, "engine", true)).await;
    two.hear_until(|message| target_of(message, "engine", true)).await;

    let placement = Placement { target: id, path: vec![11, 12, 13], keep: None, space: HashSpace::Bytes };
    one.say(Lane::Delta, &Placements { items: vec![placement] }).await;
    let blocks = two
        .hear_until(|message| match message {
            Message::Delta(delta) => delta.ops.iter().find_map(|op| match op {
                Op::Index(IndexOp::Place { target, blocks, .. }) if *target == id => Some(blocks.clone()),
                _ => None,
            }),
            _ => None,
        })
        .await;
    assert_eq!(blocks, [11, 12, 13]);

    let mine =
        InFlight { target: id, requests: 4, prefill_tokens: 100, context_tokens: 7, ..InFlight::default() };
    one.say(Lane::Load, &GatewayLoad { version: 1, full: true, targets: vec![mine] }).await;
    let theirs = two
        .hear_until(|message| match message {
            Message::LoadUpdate(update) => update
                .gateways
                .iter()
                .flat_map(|peer| &peer.targets)
                .find(|entry| entry.target == id)
                .copied(),
            _ => None,
        })
        .await;
    assert_eq!(theirs, mine);

    // With the gateway go its reservations.
    one.sender.close("done");
    soon(one.sender.closed()).await;
    two.hear_until(|message| match message {
        Message::LoadUpdate(update) => (!update.gone.is_empty()).then_some(()),
        _ => None,
    })
    .await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn an_agent_that_leaves_takes_its_target_out_at_once() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let agent = cluster.connect(scheduler.addr(), Role::Agent, "engine", 1).await;
    agent.register("engine", 5).await;
    let mut gateway = cluster.connect(scheduler.addr(), Role::Gateway, "g", 1).await;
    let id = gateway.hear_until(|message| target_of(message, "engine", true)).await;
    agent.sender.close("stopping");
    assert_eq!(gateway.hear_until(|message| target_of(message, "engine", false)).await, id);
    let again = cluster.connect(scheduler.addr(), Role::Agent, "engine", 2).await;
    again.register("engine", 5).await;
    assert_eq!(gateway.hear_until(|message| target_of(message, "engine", true)).await, id, "the same engine");
    scheduler.shutdown().await;
}

/// A link may time out because this process was starved. Its target stays in the routing for as long as heartbeats
/// are waited for, and an agent that links up again meanwhile causes no gap.
#[tokio::test]
async fn a_link_that_times_out_removes_no_target_by_itself() {
    let cluster = Cluster::new();
    let mut options = cluster.options();
    options.links.idle_timeout = std::time::Duration::from_secs(2);
    options.links.keep_alive = common::PATIENCE;
    let scheduler = Scheduler::start(options).await.unwrap();
    let mut gateway = cluster.connect(scheduler.addr(), Role::Gateway, "g", 1).await;
    let silent = LinkOptions { keep_alive: common::PATIENCE, ..common::links() };
    let mut agent = cluster.connect_with(scheduler.addr(), Role::Agent, "engine", 1, &silent).await;
    agent.register("engine", 5).await;
    gateway.hear_until(|message| target_of(message, "engine", true)).await;
    assert!(matches!(agent.end().await, LinkError::TimedOut));
    page_when(scheduler.admin_addr().unwrap(), "/debug/sessions", |page| {
        page["sessions"].as_array().is_some_and(|all| all.iter().any(|one| one["link_lost"] == true))
    })
    .await;
    let again = cluster.connect(scheduler.addr(), Role::Agent, "engine", 1).await;
    again.register("engine", 5).await;
    again.report(5, 9).await;
    gateway
        .hear_until(|message| {
            assert_eq!(target_of(message, "engine", false), None, "the target was taken out");
            match message {
                Message::LoadUpdate(update) => {
                    update.engines.iter().any(|engine| engine.load.running == Some(9)).then_some(())
                }
                _ => None,
            }
        })
        .await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn the_newer_of_two_sessions_of_one_name_stays() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let mut old = cluster.connect(scheduler.addr(), Role::Agent, "a", 1).await;
    let _new = cluster.connect(scheduler.addr(), Role::Agent, "a", 2).await;
    match old.end().await {
        LinkError::Refused(refuse) => assert_eq!(refuse.code, RefuseCode::Superseded),
        other => panic!("{other}"),
    }
    let page = page_when(scheduler.admin_addr().unwrap(), "/debug/sessions", |page| {
        page["sessions"].as_array().is_some_and(|sessions| sessions.len() == 1)
    })
    .await;
    assert_eq!(page["sessions"][0]["incarnation"], "2");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_broken_message_is_refused_with_the_reason_and_harms_nobody_else() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let mut good = cluster.connect(scheduler.addr(), Role::Agent, "good", 1).await;
    let mut bad = cluster.connect(scheduler.addr(), Role::Agent, "bad", 1).await;
    let report = fairlead_wire::msg::Report { incarnation: 1, ready: true, reason: None, ranks: Vec::new() };
    let frame = fairlead_wire::encode(&report, fairlead_wire::Stamp::default()).unwrap();
    let mut bytes = frame.to_bytes();
    bytes[fairlead_wire::Header::LEN..].fill(0xff);
    bad.sender.send(Lane::Control, bytes.into()).await.unwrap();
    match bad.end().await {
        LinkError::Refused(refuse) => {
            assert_eq!(refuse.code, RefuseCode::Malformed);
            assert!(refuse.reason.contains("Report"), "{}", refuse.reason);
        }
        other => panic!("{other}"),
    }
    // What is no agent's business is refused as well.
    let mut meddler = cluster.connect(scheduler.addr(), Role::Agent, "meddler", 1).await;
    meddler.say(Lane::Control, &GatewayLoad { version: 1, full: true, targets: Vec::new() }).await;
    assert!(matches!(meddler.end().await, LinkError::Refused(_)));

    good.say(Lane::Control, &fairlead_wire::msg::Ping { id: 77, sent_us: 1 }).await;
    loop {
        let (_, frame) = soon(good.receiver.recv()).await.unwrap();
        if let Ok(Message::Pong(pong)) = frame.message() {
            assert_eq!(pong.id, 77);
            break;
        }
    }
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_gateway_that_does_not_read_delays_nobody_and_catches_up() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let agent = cluster.connect(scheduler.addr(), Role::Agent, "engine", 1).await;
    agent.register("engine", 5).await;
    let mut writer = cluster.connect(scheduler.addr(), Role::Gateway, "writer", 1).await;
    let mut lazy = cluster.connect(scheduler.addr(), Role::Gateway, "lazy", 1).await;
    let mut brisk = cluster.connect(scheduler.addr(), Role::Gateway, "brisk", 1).await;
    let id = writer.hear_until(|message| target_of(message, "engine", true)).await;
    // About 16 MB of operations: far beyond the lazy gateway's windows and queues.
    for path in 0..200u64 {
        let blocks = (1..=10_000).map(|block| path * 10_000 + block).collect();
        writer
            .say(
                Lane::Delta,
                &Placements {
                    items: vec![Placement { target: id, path: blocks, keep: None, space: HashSpace::Bytes }],
                },
            )
            .await;
    }
    let last = 200 * 10_000;
    let reached = |message: &Message| match message {
        Message::Delta(delta) => delta
            .ops
            .iter()
            .any(|op| matches!(op, Op::Index(IndexOp::Place { blocks, .. }) if blocks.last() == Some(&last))),
        Message::Snapshot(chunk) => chunk.runs.iter().any(|run| run.blocks.last() == Some(&last)),
        _ => false,
    };
    brisk.hear_until(|message| reached(message).then_some(())).await;
    lazy.hear_until(|message| reached(message).then_some(())).await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn admin_pages() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let admin = scheduler.admin_addr().unwrap();
    let _agent = cluster.connect(scheduler.addr(), Role::Agent, "a", 1).await;
    page_when(admin, "/debug/sessions", |page| page["sessions"][0]["name"] == "a").await;
    let table: [(&str, u16, &str); 8] = [
        ("GET /healthz", 200, "ok"),
        ("GET /readyz", 200, "ok"),
        ("GET /metrics", 200, "fairlead_scheduler_sessions{role=\"agent\"} 1"),
        ("GET /metrics", 200, "fairlead_index_bytes "),
        ("GET /debug/targets", 200, "\"targets\":[]"),
        ("GET /debug/sessions", 200, "\"role\":\"agent\""),
        ("GET /", 404, "/debug/targets"),
        ("POST /metrics", 405, "GET"),
    ];
    for (request, status, part) in table {
        let (code, body) = get(admin, request).await;
        assert_eq!(code, status, "{request}");
        assert!(body.contains(part), "{request}: {body}");
    }
    for line in get(admin, "GET /metrics").await.1.lines() {
        let sample = line.split_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok());
        assert!(line.starts_with("# ") || sample, "{line}");
    }
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_is_told_and_frees_the_ports() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let (addr, admin) = (scheduler.addr(), scheduler.admin_addr().unwrap());
    let mut agent = cluster.connect(addr, Role::Agent, "a", 1).await;
    soon(scheduler.shutdown()).await;
    match agent.end().await {
        LinkError::Closed(why) => assert!(why.contains("shutting down"), "{why}"),
        other => panic!("{other}"),
    }
    let mut options = cluster.options();
    (options.listen, options.admin) = (addr, Some(admin));
    Scheduler::start(options).await.expect("the same ports").shutdown().await;
}

/// Another start on the same port is another epoch of the same cluster: peers notice at once and come back.
#[tokio::test]
async fn a_scheduler_that_was_killed_is_replaced_on_its_port() {
    let cluster = Cluster::new();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (tell, told) = tokio::sync::oneshot::channel();
    let options = cluster.options();
    // A runtime of its own stands for the process: when it stops, its sockets close and nothing is said.
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let scheduler = Scheduler::start(options).await.unwrap();
            tell.send((scheduler.addr(), scheduler.epoch())).unwrap();
            let _ = stopped.await;
        });
    });
    let (addr, epoch) = soon(told).await.unwrap();
    let mut agent = cluster.connect(addr, Role::Agent, "a", 1).await;
    stop.send(()).unwrap();
    process.join().unwrap();

    let mut options = cluster.options();
    options.listen = addr;
    let second = Scheduler::start(options).await.expect("the port is free at once");
    assert!(matches!(agent.end().await, LinkError::Restarted));
    let again = cluster.connect(addr, Role::Agent, "a", 1).await;
    assert_ne!(again.welcome.epoch, epoch);
    assert_eq!(again.welcome.cluster_seed, agent.welcome.cluster_seed);
    second.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_bound_is_named() {
    let cluster = Cluster::new();
    let scheduler = cluster.start().await;
    let mut options = cluster.options();
    options.listen = scheduler.addr();
    let error = Scheduler::start(options).await.err().unwrap();
    assert!(
        matches!(error, StartError::Listen(_)) && error.to_string().contains(&scheduler.addr().to_string())
    );
    let mut options = cluster.options();
    options.admin = scheduler.admin_addr();
    let error = Scheduler::start(options).await.err().unwrap();
    assert!(matches!(error, StartError::Admin { .. }), "{error}");
    let mut options = cluster.options();
    options.identity = cluster.authority.issue(Role::Gateway, "g").unwrap();
    assert!(Scheduler::start(options).await.is_err());
    let _ = local();
    scheduler.shutdown().await;
}

//! Whole agents between an engine and a scheduler of the test's own.

mod support;

use fairlead_agent::{Agent, AgentError, AgentOptions, AgentState, Handle};
use fairlead_transport::LinkError;
use fairlead_wire::Message;
use fairlead_wire::msg::{EngineKind, ModelInfo, Ping, Role, ServingRole};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{Engine, Scheduler, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const VLLM: &str = include_str!("pages/vllm-new.txt");

fn page(started: &str, running: u32) -> String {
    format!(
        "process_start_time_seconds {started}\nvllm:num_requests_running{{engine=\"0\"}} {running}\n\
         vllm:num_requests_waiting{{engine=\"0\"}} 0\nvllm:prompt_tokens_total{{engine=\"0\"}} 10\n"
    )
}

async fn state(agent: &Handle, what: &str, good: impl Fn(&AgentState) -> bool) -> AgentState {
    let mut watch = agent.state();
    let state = soon(what, watch.wait_for(|state| good(state))).await.expect("the agent runs");
    state.clone()
}

#[tokio::test]
async fn an_engine_is_waited_for_and_then_described() {
    let engine = Engine::start().await;
    let mut scheduler = Scheduler::start();
    engine.answer("/health", 503, "");
    let mut options = scheduler.options(&engine);
    options.labels = vec![("pool".into(), "a".into())];
    options.advertise = Some("engine-7.pool:8000".into());
    let agent = Agent::start(options).expect("starts");
    let mut session = scheduler.accept(9).await;
    let name = session.hello.name.clone();
    assert_eq!(session.hello.role, Role::Agent);
    assert!(!name.contains("engine-7.pool") && !name.contains(':'), "clients are told {name}");
    let waiting =
        state(&agent, "503 is reported", |s| s.reason.as_deref().is_some_and(|r| r.contains("503"))).await;
    assert!(!waiting.ready && waiting.instance.is_none());
    engine.answer("/health", 200, "");
    engine.answer("/v1/models", 200, r#"{"data":[]}"#);
    state(&agent, "no model is served", |s| s.reason.as_deref().is_some_and(|r| r.contains("no model")))
        .await;
    engine.answer("/metrics", 200, VLLM);
    engine.answer("/version", 200, r#"{"version":"0.32.0"}"#);
    let models = r#"{"object":"list","data":[{"id":"chat","max_model_len":4096,"parent":null,"owned_by":"vllm","x":1},
        {"id":"lora","max_model_len":null,"parent":"chat"},{"id":""}]}"#;
    engine.answer("/v1/models", 200, models);

    let instance = session.register().await.instance;
    assert_eq!(
        instance.models,
        [
            ModelInfo { name: "chat".into(), max_model_len: Some(4096), parent: None },
            ModelInfo { name: "lora".into(), max_model_len: None, parent: Some("chat".into()) },
        ]
    );
    assert_eq!((instance.name.as_str(), instance.host.as_str()), (name.as_str(), "engine-7.pool"));
    assert_eq!((instance.engine, instance.engine_version.as_str()), (EngineKind::Vllm, "0.32.0"));
    assert_eq!((instance.dp_ranks, instance.role), (2, ServingRole::Both));
    assert_eq!((instance.block_size, instance.kv_blocks), (Some(16), Some(4096)));
    assert_eq!(instance.labels, [("pool".into(), "a".into())]);
    assert_ne!(instance.incarnation, 0);

    let report = session.report("figures", |report| report.ranks.len() == 2).await;
    assert!(report.ready && report.reason.is_none());
    assert_eq!(report.incarnation, instance.incarnation);
    let (first, second) = (&report.ranks[0], &report.ranks[1]);
    assert_eq!((first.running, first.waiting, first.kv_usage), (Some(3), Some(2), Some(0.125)));
    assert_eq!((first.prompt_tokens_total, first.generation_tokens_total), (Some(4000), Some(512)));
    assert_eq!((first.kv_total_tokens, second.kv_total_tokens), (Some(65600), Some(65536)));
    assert_eq!((second.running, second.prompt_tokens_total), (Some(0), None), "absent is unknown");
    let done = state(&agent, "registration is known", |s| s.registered).await;
    assert_eq!((done.epoch, done.ready, done.reason), (Some(9), true, None));
    agent.shutdown().await;
}

#[tokio::test]
async fn an_engine_that_closes_after_each_answer_is_not_probed_without_end() {
    let engine = Engine::vllm(&page("1", 0)).await;
    engine.close_after_answers();
    let mut scheduler = Scheduler::start();
    let mut options = scheduler.options(&engine);
    options.intervals.probe = Duration::from_secs(600);
    let agent = Agent::start(options).expect("starts");
    let mut session = scheduler.accept(1).await;
    session.register().await;
    let (probes, scrapes) = (engine.asked("/health"), engine.asked("/metrics"));
    soon("scrapes", async {
        while engine.asked("/metrics") < scrapes + 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(engine.asked("/health") <= probes + 2, "{} probes", engine.asked("/health") - probes);
    agent.shutdown().await;
}

#[tokio::test]
async fn each_engine_is_recognised() {
    let bootstrap = Engine::start().await;
    bootstrap.answer("/route", 200, "{}");
    let sglang = format!(
        r#"{{"model_path":"/m","version":"0.5.20","dp_size":1,"page_size":64,"max_running_requests":48,
        "max_total_num_tokens":65536,"disaggregation_mode":"prefill","disaggregation_bootstrap_port":{},
        "internal_states":[{{}}]}}"#,
        bootstrap.addr.port()
    );
    let sglang_page = include_str!("pages/sglang-colon.txt");
    let ours = |owner: &str| format!(r#"{{"data":[{{"id":"m","owned_by":"{owner}"}}]}}"#);
    let two_ranks = sglang.replace(r#""dp_size":1"#, r#""dp_size":2"#);
    type Case<'a> = (&'a str, Vec<(&'static str, String)>, EngineKind, &'a str, usize);
    let cases: Vec<Case> = vec![
        (
            "SGLang without metrics",
            vec![("/v1/models", ours("sglang")), ("/server_info", sglang.clone())],
            EngineKind::Sglang,
            "0.5.20",
            0,
        ),
        (
            "SGLang of the older generation",
            vec![
                ("/v1/models", ours("x")),
                ("/get_server_info", sglang.clone()),
                ("/metrics", sglang_page.into()),
            ],
            EngineKind::Sglang,
            "0.5.20",
            1,
        ),
        (
            "SGLang whose ranks share one figure",
            vec![
                ("/v1/models", ours("sglang")),
                ("/server_info", two_ranks),
                ("/metrics", sglang_page.into()),
            ],
            EngineKind::Sglang,
            "0.5.20",
            0,
        ),
        (
            "vLLM without figures",
            vec![("/v1/models", ours("vllm")), ("/version", r#"{"version":"0.9.2"}"#.into())],
            EngineKind::Vllm,
            "0.9.2",
            0,
        ),
        (
            "vLLM with names up to 0.11",
            vec![("/v1/models", ours("vllm")), ("/metrics", include_str!("pages/vllm-old.txt").into())],
            EngineKind::Vllm,
            "",
            1,
        ),
        (
            "something else, with a page of another kind",
            vec![("/v1/models", ours("me")), ("/metrics", "up 1\n".into()), ("/version", "garbage".into())],
            EngineKind::Generic,
            "",
            0,
        ),
        (
            "a page beyond all bounds",
            vec![("/v1/models", ours("vllm")), ("/metrics", "x".repeat(9 << 20))],
            EngineKind::Vllm,
            "",
            0,
        ),
    ];
    for (name, answers, kind, version, ranks) in cases {
        let engine = Engine::start().await;
        let mut scheduler = Scheduler::start();
        // None of these has a health endpoint: the list of models stands for it.
        for (path, body) in answers {
            engine.answer(path, 200, &body);
        }
        let agent = Agent::start(scheduler.options(&engine)).expect("starts");
        let mut session = scheduler.accept(1).await;
        let instance = session.register().await.instance;
        assert_eq!((instance.engine, instance.engine_version.as_str()), (kind, version), "{name}");
        let report = session.report("a report", |_| true).await;
        assert_eq!(report.ranks.len(), ranks, "{name}");
        if name == "SGLang without metrics" {
            assert_eq!((instance.block_size, instance.kv_blocks), (Some(64), Some(1024)));
            assert_eq!((instance.max_num_seqs, instance.role), (Some(48), ServingRole::Prefill));
        }
        agent.shutdown().await;
    }
}

#[tokio::test]
async fn what_changes_is_reported_over_one_connection() {
    let engine = Engine::vllm(&page("100.5", 0)).await;
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    let incarnation = session.register().await.instance.incarnation;
    for running in [1, 5, 0, 17] {
        engine.answer("/metrics", 200, &page("100.5", running));
        session.report("the new figure", |report| report.ranks[0].running == Some(running)).await;
    }
    // A figure that goes away is unknown, not what it was and not zero.
    engine.answer("/metrics", 200, "vllm:num_requests_running NaN\nvllm:num_requests_waiting 2\n");
    let report = session.report("an unknown figure", |report| report.ranks[0].running.is_none()).await;
    assert_eq!((report.ranks[0].waiting, report.ranks[0].prompt_tokens_total), (Some(2), None));
    assert_eq!(report.incarnation, incarnation);
    // Figures that cannot be had are no figures.
    engine.answer("/metrics", 500, "");
    session.report("no figures", |report| report.ranks.is_empty() && report.ready).await;
    assert_eq!(engine.connections(), 1, "the connection is kept");
    assert!(engine.requests() > 10);
    agent.shutdown().await;
}

#[tokio::test]
async fn other_models_are_registered_in_the_same_life() {
    let engine = Engine::vllm(&page("1", 0)).await;
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    let before = session.register().await.instance;
    engine.answer("/v1/models", 200, r#"{"data":[{"id":"chat"},{"id":"lora","parent":"chat"}]}"#);
    let after = session.register().await.instance;
    assert_eq!(after.models.len(), 2);
    assert_eq!(after.incarnation, before.incarnation);
    agent.shutdown().await;
}

#[tokio::test]
async fn a_killed_engine_is_reported_at_once_and_its_next_life_is_another() {
    let mut engine = Engine::vllm(&page("100", 1)).await;
    let mut scheduler = Scheduler::start();
    let mut options = scheduler.options(&engine);
    // Neither probe nor scrape is what notices it.
    options.intervals.probe = Duration::from_secs(3600);
    options.intervals.scrape_busy = Duration::from_secs(3600);
    options.intervals.scrape_idle = Duration::from_secs(3600);
    options.intervals.models = Duration::from_secs(3600);
    let agent = Agent::start(options).expect("starts");
    let mut session = scheduler.accept(1).await;
    let first = session.register().await.instance.incarnation;
    session.report("ready", |report| report.ready).await;

    engine.kill().await;
    let gone = session.report("not ready", |report| !report.ready).await;
    assert_eq!(gone.incarnation, first);
    assert!(gone.ranks.is_empty());
    assert!(gone.reason.as_deref().is_some_and(|reason| reason.contains("cannot connect")), "{gone:?}");
    assert!(!agent.state().borrow().ready);

    engine.answer("/metrics", 200, &page("200", 0));
    engine.revive().await;
    let second = session.register().await.instance.incarnation;
    assert_ne!(second, first, "another start is another life");
    session.report("ready again", |report| report.ready && report.incarnation == second).await;

    // The same process behind a broken connection: the cache is still there.
    engine.kill().await;
    session.report("not ready", |report| !report.ready).await;
    engine.revive().await;
    assert_eq!(session.register().await.instance.incarnation, second);

    // An engine that does not say when it started is believed to have restarted.
    engine.kill().await;
    session.report("not ready", |report| !report.ready).await;
    engine.answer("/metrics", 200, "vllm:num_requests_running 0\n");
    engine.revive().await;
    let third = session.register().await.instance.incarnation;
    assert!(third != second && third != first);
    agent.shutdown().await;
}

#[tokio::test]
async fn a_restart_between_two_probes_is_noticed_on_the_page() {
    let engine = Engine::vllm(&page("100", 1)).await;
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    let first = session.register().await.instance.incarnation;
    engine.answer("/metrics", 200, &page("101", 1));
    let second = session.register().await.instance.incarnation;
    assert_ne!(second, first);
    // Without a start time the counters tell.
    engine.answer("/metrics", 200, "vllm:prompt_tokens_total 100\n");
    session
        .report("counters without a start", |report| report.ranks[0].prompt_tokens_total == Some(100))
        .await;
    engine.answer("/metrics", 200, "vllm:prompt_tokens_total 7\n");
    let third = session.register().await.instance.incarnation;
    assert!(third != second && third != first);
    agent.shutdown().await;
}

#[tokio::test]
async fn an_unhealthy_engine_returns_as_itself() {
    let engine = Engine::vllm(&page("100", 1)).await;
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    let first = session.register().await.instance.incarnation;
    engine.answer("/health", 503, "");
    let sick = session.report("not ready", |report| !report.ready).await;
    assert!(sick.reason.as_deref().is_some_and(|reason| reason.contains("/health: status 503")), "{sick:?}");
    engine.answer("/health", 200, "");
    assert_eq!(session.register().await.instance.incarnation, first);
    session.report("ready", |report| report.ready).await;
    agent.shutdown().await;
}

#[tokio::test]
async fn a_hanging_engine_is_given_up_after_several_probes() {
    let engine = Engine::vllm(&page("100", 1)).await;
    let mut scheduler = Scheduler::start();
    let mut options = scheduler.options(&engine);
    options.intervals.probe_timeout = Duration::from_millis(300);
    let agent = Agent::start(options).expect("starts");
    let mut session = scheduler.accept(1).await;
    let first = session.register().await.instance.incarnation;
    engine.hang(true);
    let hung = session.report("not ready", |report| !report.ready).await;
    assert!(
        hung.reason.as_deref().is_some_and(|reason| reason.contains("no answer within 300 ms")),
        "{hung:?}"
    );
    engine.hang(false);
    assert_eq!(session.register().await.instance.incarnation, first);
    agent.shutdown().await;
}

#[tokio::test]
async fn a_scheduler_that_comes_back_is_told_everything() {
    let engine = Engine::vllm(&page("100", 2)).await;
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    let before = session.register().await.instance;
    assert_eq!(state(&agent, "registered", |s| s.registered).await.epoch, Some(1));
    drop(session);
    scheduler.restart().await;
    let mut session = scheduler.accept(2).await;
    assert_eq!(session.register().await.instance, before);
    session.report("figures", |report| report.ranks[0].running == Some(2)).await;
    assert_eq!(state(&agent, "registered again", |s| s.registered).await.epoch, Some(2));
    // A refusal ends the link; the next attempt starts over.
    session.refuse("go away");
    let mut session = scheduler.accept(2).await;
    assert_eq!(session.register().await.instance, before);
    agent.shutdown().await;
}

#[tokio::test]
async fn a_silent_scheduler_is_left() {
    let engine = Engine::vllm(&page("100", 0)).await;
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    // Holds the link and says nothing after the welcome: the agent comes again by itself.
    let silent = scheduler.accept_with(1, false).await;
    let mut session = scheduler.accept(1).await;
    session.register().await;
    drop(silent);
    agent.shutdown().await;
}

#[tokio::test]
async fn heartbeats_go_both_ways_and_the_end_is_announced() {
    let engine = Engine::vllm(&page("100", 0)).await;
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    session.send(&Ping { id: 77, sent_us: 5 });
    let pong = soon("a pong", async {
        loop {
            if let Message::Pong(pong) = session.next().await.expect("link") {
                return pong;
            }
        }
    })
    .await;
    assert_eq!((pong.id, pong.ping_sent_us), (77, 5));
    // Nothing changes, and reports still come, with the figures' new times.
    let first = session.report("a report", |report| !report.ranks.is_empty()).await;
    let taken = first.ranks[0].taken_us;
    session.report("a later report", |report| report.ranks[0].taken_us > taken).await;
    let pings = session.pings.clone();
    session.report("a heartbeat", |_| pings.load(Ordering::Relaxed) > 1).await;
    agent.shutdown().await;
    match session.end().await {
        LinkError::Closed(reason) => assert!(reason.contains("stopping"), "{reason}"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn the_admin_page_tells_the_state() {
    let engine = Engine::vllm(&page("100", 0)).await;
    let mut scheduler = Scheduler::start();
    let mut options = scheduler.options(&engine);
    options.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let agent = Agent::start(options).expect("starts");
    let admin = agent.admin_addr().expect("it listens");
    assert!(get(admin, "/healthz").await.starts_with("HTTP/1.1 200"));
    let mut session = scheduler.accept(1).await;
    session.register().await;
    state(&agent, "registered", |s| s.registered && s.ready).await;
    assert!(get(admin, "/readyz").await.starts_with("HTTP/1.1 200"));
    session.report("a report", |report| !report.ranks.is_empty()).await;
    let page = get(admin, "/metrics").await;
    for line in [
        "fairlead_agent_engine_ready 1",
        "fairlead_agent_connected 1",
        "fairlead_agent_registrations_total 1",
        "fairlead_agent_metric_unknown{engine=\"vllm\",metric=\"vllm:num_requests_running\"} 0",
        "fairlead_agent_metric_unknown{engine=\"vllm\",metric=\"vllm:kv_cache_usage_perc\"} 1",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    engine.answer("/health", 500, "");
    state(&agent, "not ready", |s| !s.ready).await;
    let sick = get(admin, "/readyz").await;
    assert!(sick.starts_with("HTTP/1.1 503") && sick.contains("status 500"), "{sick}");
    assert!(get(admin, "/other").await.starts_with("HTTP/1.1 404"));
    agent.shutdown().await;
}

async fn get(addr: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    soon("an answer of the admin page", async {
        let mut stream = tokio::net::TcpStream::connect(addr).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        answer
    })
    .await
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_the_start() {
    let engine = Engine::start().await;
    let scheduler = Scheduler::start();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let occupied = taken.local_addr().expect("bound");
    let gateway = scheduler.authority().issue(Role::Gateway, "g").expect("an identity");
    let named = scheduler.authority().issue(Role::Agent, "a7").expect("an identity");
    type Change = Box<dyn FnOnce(&mut AgentOptions)>;
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|o| o.engine_url = "localhost:8000".into()), "http://"),
        (Box::new(|o| o.engine_url = "https://localhost".into()), "only http"),
        (Box::new(|o| o.advertise = Some("nowhere".into())), "advertise \"nowhere\""),
        (Box::new(|o| o.advertise = Some("a b:1".into())), "advertise"),
        (Box::new(|o| o.name = Some(String::new())), "name \"\""),
        (Box::new(|o| o.name = Some("n".repeat(200))), "bytes are possible"),
        (Box::new(|o| o.labels = vec![(String::new(), "x".into())]), "labels"),
        (Box::new(|o| o.intervals.probe = Duration::ZERO), "interval probe"),
        (Box::new(move |o| o.identity = gateway), "an agent's certificate"),
        (
            Box::new(move |o| {
                o.identity = named;
                o.name = Some("other".into());
            }),
            "the certificate is for \"a7\"",
        ),
        (Box::new(move |o| o.listen = Some(occupied)), "listen"),
    ];
    for (change, says) in cases {
        let mut options = scheduler.options(&engine);
        change(&mut options);
        match Agent::start(options) {
            Ok(_) => panic!("started: {says}"),
            Err(error) => assert!(error.to_string().contains(says), "{error} lacks {says}"),
        }
    }
}

#[test]
fn an_agent_needs_a_runtime() {
    let authority = fairlead_transport::Authority::new("test").expect("an authority");
    let identity = authority.issue(Role::Agent, "a").expect("an identity");
    let options = AgentOptions::new("http://127.0.0.1:1", "127.0.0.1:2", identity);
    assert!(matches!(Agent::start(options), Err(AgentError::NoRuntime)));
}

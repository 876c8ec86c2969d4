//! What agents tell of their engine's part in hand-offs.

mod support;

use fairlead_agent::{Agent, AgentError, AgentState, HandoffChoice, TransferOptions};
use fairlead_wire::msg::{EngineKind, Handoff, InstanceInfo, ServingRole, Transfer};
use support::{Engine, Scheduler, soon};

const PAGE: &str = "process_start_time_seconds 1\nvllm:num_requests_running{engine=\"0\"} 0\n\
    vllm:num_requests_waiting{engine=\"0\"} 0\n";

fn server_info(mode: &str, bootstrap: &Engine) -> String {
    format!(
        r#"{{"model_path":"/m","version":"0.5.23","disaggregation_mode":"{mode}",
        "disaggregation_bootstrap_port":{},"disaggregation_transfer_backend":"nixl"}}"#,
        bootstrap.addr.port()
    )
}

async fn sglang(mode: &str, bootstrap: &Engine) -> Engine {
    let engine = Engine::start().await;
    engine.answer("/health", 200, "");
    engine.answer("/v1/models", 200, r#"{"data":[{"id":"m","owned_by":"sglang"}]}"#);
    engine.answer("/server_info", 200, &server_info(mode, bootstrap));
    engine
}

async fn vllm(connector: &str) -> Engine {
    let engine = Engine::vllm(PAGE).await;
    engine.answer("/server_info", 200, &format!(r#"{{"vllm_config":{{"kv_transfer_config":{connector}}}}}"#));
    engine
}

/// What is registered of an engine by an agent with these options.
async fn told(engine: &Engine, options: TransferOptions, advertise: Option<&str>) -> InstanceInfo {
    let mut scheduler = Scheduler::start();
    let mut all = scheduler.options(engine);
    all.transfer = options;
    all.advertise = advertise.map(str::to_owned);
    let agent = Agent::start(all).expect("starts");
    let instance = scheduler.accept(1).await.register().await.instance;
    agent.shutdown().await;
    instance
}

async fn waits(agent: &fairlead_agent::Handle, says: &str) {
    let good = |state: &AgentState| state.reason.as_deref().is_some_and(|reason| reason.contains(says));
    let state = soon(says, agent.state().wait_for(good)).await.expect("the agent runs").clone();
    assert!(!state.ready && !state.registered, "{state:?}");
}

#[tokio::test]
async fn a_prefill_instance_is_ready_when_its_bootstrap_server_is() {
    let mut bootstrap = Engine::start().await;
    let engine = sglang("prefill", &bootstrap).await;
    bootstrap.kill().await;
    let mut scheduler = Scheduler::start();
    let mut options = scheduler.options(&engine);
    options.advertise = Some("prefill-3.pool:30000".into());
    let agent = Agent::start(options).expect("starts");
    let mut session = scheduler.accept(1).await;
    waits(&agent, "cannot connect").await;
    bootstrap.answer("/route", 503, "not all ranks");
    bootstrap.revive().await;
    waits(&agent, "GET /route: status 503").await;
    bootstrap.answer("/route", 200, r#"{"attn_tp_size":1}"#);
    let instance = session.register().await.instance;
    assert_eq!((instance.engine, instance.role), (EngineKind::Sglang, ServingRole::Prefill));
    let place = format!("prefill-3.pool:{}", bootstrap.addr.port());
    let want = Transfer { domain: "nixl".into(), bootstrap: Some(place), ..Transfer::new(Handoff::Sglang) };
    assert_eq!(instance.transfer, Some(want), "the address is one that engines reach");
    agent.shutdown().await;
}

#[tokio::test]
async fn a_decode_instance_has_no_bootstrap_server() {
    let mut bootstrap = Engine::start().await;
    let engine = sglang("decode", &bootstrap).await;
    bootstrap.kill().await;
    let instance = told(&engine, TransferOptions::default(), None).await;
    assert_eq!(instance.role, ServingRole::Decode);
    let want = Transfer { domain: "nixl".into(), ..Transfer::new(Handoff::Sglang) };
    assert_eq!(instance.transfer, Some(want));
    let whole = sglang("null", &bootstrap).await;
    let instance = told(&whole, TransferOptions::default(), None).await;
    assert_eq!((instance.role, instance.transfer), (ServingRole::Both, None));
}

#[tokio::test]
async fn vllm_tells_its_connector_in_development_mode() {
    let advertise = Some("10.9.8.7:8000");
    let transfer = |handoff, domain: &str| Transfer { domain: domain.into(), ..Transfer::new(handoff) };
    for (connector, role, want) in [
        (
            r#"{"kv_connector":"NixlConnector","kv_role":"kv_both"}"#,
            ServingRole::Both,
            Some(transfer(Handoff::NixlPull, "NixlConnector/0.32.0")),
        ),
        (
            r#"{"kv_connector":"NixlPushConnector","kv_role":"kv_producer"}"#,
            ServingRole::Prefill,
            Some(transfer(Handoff::NixlPush, "NixlPushConnector/0.32.0")),
        ),
        (
            r#"{"kv_connector":"P2pNcclConnector","kv_role":"kv_consumer","kv_ip":"127.0.0.1","kv_port":22001}"#,
            ServingRole::Decode,
            Some(Transfer {
                peer: Some("10.9.8.7:22001".into()),
                ..transfer(Handoff::P2pNccl, "P2pNcclConnector/0.32.0")
            }),
        ),
        (
            r#"{"kv_connector":"MoRIIOConnector","kv_role":"kv_consumer","kv_connector_extra_config":{"read_mode":true}}"#,
            ServingRole::Decode,
            Some(Transfer {
                peer: Some("10.9.8.7:6301".into()),
                peer_port: Some(61005),
                ..transfer(Handoff::MoriRead, "MoRIIOConnector/0.32.0")
            }),
        ),
        (r#"{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}"#, ServingRole::Both, None),
        (
            r#"{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_producer"}"#,
            ServingRole::Prefill,
            Some(transfer(Handoff::SharedStore, "LMCacheConnectorV1/0.32.0")),
        ),
        ("null", ServingRole::Both, None),
    ] {
        let engine = vllm(connector).await;
        let instance = told(&engine, TransferOptions::default(), advertise).await;
        assert_eq!(instance.engine, EngineKind::Vllm);
        assert_eq!((instance.role, instance.transfer), (role, want), "{connector}");
    }
}

#[tokio::test]
async fn figures_of_nixl_transfers_tell_of_the_connector() {
    let page = format!("{PAGE}vllm:nixl_num_failed_transfers_total{{engine=\"0\"}} 0\n");
    let engine = Engine::vllm(&page).await;
    let instance = told(&engine, TransferOptions::default(), None).await;
    let want = Transfer { domain: "NixlConnector/0.32.0".into(), ..Transfer::new(Handoff::NixlPull) };
    assert_eq!((instance.role, instance.transfer), (ServingRole::Both, Some(want)));
}

#[tokio::test]
async fn mooncake_names_its_ranks_anew_in_each_life() {
    let bootstrap = Engine::start().await;
    bootstrap.answer("/query", 200, "{}");
    let mut engine = Engine::vllm(PAGE).await;
    let port = bootstrap.addr.port();
    let info = format!(
        r#"{{"vllm_config":{{"kv_transfer_config":{{"kv_connector":"MooncakeConnector","kv_role":"kv_producer"}}}},
        "vllm_env":{{"VLLM_MOONCAKE_BOOTSTRAP_PORT":{port}}}}}"#
    );
    engine.answer("/server_info", 200, &info);
    let mut scheduler = Scheduler::start();
    let mut options = scheduler.options(&engine);
    options.advertise = Some("p.pool:8000".into());
    let agent = Agent::start(options).expect("starts");
    let mut session = scheduler.accept(1).await;
    waits(&agent, "0 of 1 ranks").await;
    bootstrap.answer("/query", 200, r#"{"0":{"engine_id":"first","worker_addr":{}}}"#);
    let transfer = session.register().await.instance.transfer.expect("a hand-off");
    assert_eq!((transfer.handoff, &transfer.engine_ids[..]), (Handoff::Mooncake, &["first".to_owned()][..]));
    assert_eq!(transfer.bootstrap, Some(format!("p.pool:{port}")));
    bootstrap.answer("/query", 200, r#"{"0":{"engine_id":"second"}}"#);
    engine.kill().await;
    session.report("not ready", |report| !report.ready).await;
    engine.answer("/metrics", 200, &PAGE.replace("seconds 1", "seconds 2"));
    engine.revive().await;
    let transfer = session.register().await.instance.transfer.expect("a hand-off");
    assert_eq!(transfer.engine_ids, ["second"]);
    agent.shutdown().await;
}

#[tokio::test]
async fn a_restart_with_another_connector_is_registered_anew() {
    let engine = vllm(r#"{"kv_connector":"NixlConnector","kv_role":"kv_producer"}"#).await;
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    let first = session.register().await.instance;
    assert_eq!(first.role, ServingRole::Prefill);
    engine.answer("/server_info", 404, "");
    engine.answer("/metrics", 200, &PAGE.replace("seconds 1", "seconds 2"));
    let second = session.register().await.instance;
    assert_eq!((second.role, second.transfer), (ServingRole::Both, None));
    assert_ne!(second.incarnation, first.incarnation);
    agent.shutdown().await;
}

#[tokio::test]
async fn options_come_before_what_the_engine_says() {
    let bootstrap = Engine::start().await;
    bootstrap.answer("/route", 200, "{}");
    let unreachable = Engine::start().await;
    let engine = sglang("prefill", &unreachable).await;
    let options = TransferOptions {
        bootstrap: Some(bootstrap.addr.to_string()),
        domain: Some("rack-2".into()),
        bytes_per_token: Some(131_072),
        ..TransferOptions::default()
    };
    let transfer = told(&engine, options, None).await.transfer.expect("a hand-off");
    assert_eq!(transfer.bootstrap, Some(bootstrap.addr.to_string()));
    assert_eq!((transfer.domain.as_str(), transfer.bytes_per_token), ("rack-2", Some(131_072)));
    assert_eq!((bootstrap.asked("/route"), unreachable.asked("/route")), (1, 0));

    let engine = vllm(r#"{"kv_connector":"NixlConnector","kv_role":"kv_both"}"#).await;
    let options = TransferOptions {
        role: Some(ServingRole::Prefill),
        handoff: HandoffChoice::None,
        ..TransferOptions::default()
    };
    let instance = told(&engine, options, None).await;
    assert_eq!((instance.role, instance.transfer), (ServingRole::Prefill, None));

    let options = TransferOptions {
        role: Some(ServingRole::Decode),
        handoff: HandoffChoice::Is(Handoff::LmcachePd),
        peer: Some("d:7300".into()),
        peer_port: Some(7400),
        ..TransferOptions::default()
    };
    let transfer = told(&engine, options, None).await.transfer.expect("a hand-off");
    assert_eq!((transfer.handoff, transfer.peer.as_deref()), (Handoff::LmcachePd, Some("d:7300")));
    assert_eq!(transfer.peer_port, Some(7400));
}

#[tokio::test]
async fn nonsense_is_refused_at_the_start() {
    let scheduler = Scheduler::start();
    let engine = Engine::start().await;
    for (transfer, says) in [
        (
            TransferOptions { handoff: HandoffChoice::None, peer: Some("h:1".into()), ..Default::default() },
            "peer: means nothing",
        ),
        (TransferOptions { bootstrap: Some("h$:1".into()), ..Default::default() }, "bootstrap"),
        (TransferOptions { bytes_per_token: Some(0), ..Default::default() }, "kv_bytes_per_token"),
    ] {
        let mut options = scheduler.options(&engine);
        options.transfer = transfer;
        let error = Agent::start(options).expect_err("refused");
        assert!(matches!(error, AgentError::Transfer { .. } | AgentError::Instance(_)), "{error:?}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

//! What a file may say, and how it is refused.

use fairlead_config::{Config, ConfigError, Driver, HandoffSetting, LogFormat, Part, Shards, Size};
use fairlead_wire::msg::{Handoff, ServingRole};
use proptest::prelude::*;
use std::time::Duration;

fn refused(yaml: &str) -> ConfigError {
    match Config::from_yaml(yaml) {
        Ok(_) => panic!("accepted: {yaml}"),
        Err(error) => error,
    }
}

#[test]
fn nothing_means_the_defaults() {
    for text in ["", "{}", "gateway:", "gateway: {}\nlog:\n", "gateway:\n  policy:\n", "# only a comment\n"] {
        assert_eq!(Config::from_yaml(text).expect(text), Config::default(), "{text:?}");
    }
}

#[test]
fn every_kind_of_value_is_read() {
    let config = Config::from_yaml(
        r#"
identity: /etc/fairlead/all
gateway:
  listen: "[::1]:80"
  admin: off
  shards: 3
  driver: epoll
  base_path: /api/predict/chat
  scheduler: scheduler.internal:7400
  policy: round-robin
  instances:
    - {name: a, url: "http://10.0.0.1:8000", models: [m1, m2]}
    - {url: http://engine-b, models: [m1]}
    - {url: "unix:/run/engine.sock", models: [m1]}
    - {url: "https://engine-c", models: [m1]}
  proxy_protocol: true
  max_body: 1MiB
  max_head: 8192
  retry_count: 0
  retry: {backoff: 20, budget: 1}
  timeouts: {head: 1.5s, idle: 2m}
  stale_after: 200ms
  allow_steering: true
scheduler:
  identity: /etc/fairlead/scheduler
  index_bytes: 2GiB
log: {level: "warn,fairlead_agent=debug", format: json}
"#,
    )
    .expect("valid");
    let gateway = &config.gateway;
    assert_eq!(gateway.listen.to_string(), "[::1]:80");
    assert_eq!(gateway.admin, None);
    assert_eq!((gateway.shards, gateway.driver), (Shards::Exactly(3), Driver::Epoll));
    assert_eq!(gateway.base_path.as_str(), "/api/predict/chat");
    assert_eq!(gateway.scheduler.as_ref().map(|s| s.as_str()), Some("scheduler.internal:7400"));
    assert_eq!(gateway.policy.as_ref().map(|policy| policy.as_str()), Some("round-robin"));
    let names: Vec<_> = (0..).zip(&gateway.instances).map(|(at, instance)| instance.name(at)).collect();
    assert_eq!(names, ["a", "instance-2", "instance-3", "instance-4"], "never an address");
    let places: Vec<_> = gateway.instances.iter().map(|i| i.url.as_ref().map(|url| url.address())).collect();
    let wanted = ["10.0.0.1:8000", "engine-b:80", "unix:/run/engine.sock", "https://engine-c:443"];
    assert_eq!(places, wanted.map(|place| Some(place.to_owned())));
    assert!(gateway.proxy_protocol);
    assert_eq!(gateway.instances[0].models, ["m1", "m2"]);
    assert_eq!((gateway.max_body, gateway.max_head.bytes()), (Size::mib(1), 8192));
    assert_eq!((gateway.retry_count, gateway.retry.backoff), (0, Duration::from_millis(20)));
    assert_eq!(gateway.retry.budget, 1.0);
    assert_eq!(gateway.timeouts.head, Duration::from_millis(1500));
    assert_eq!(gateway.timeouts.idle, Duration::from_secs(120));
    assert_eq!(gateway.timeouts.body, Duration::from_secs(30), "keys not given keep their defaults");
    assert!(gateway.allow_steering);
    assert_eq!(config.gateway_identity().map(|p| p.to_str()), Some(Some("/etc/fairlead/all")));
    assert_eq!(config.scheduler_identity().map(|p| p.to_str()), Some(Some("/etc/fairlead/scheduler")));
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn parts_in_hand_offs_are_read() {
    let config = Config::from_yaml(
        r#"
gateway:
  instances:
    - {url: "http://10.0.0.1:30000", models: [m], role: prefill, handoff: sglang}
    - {url: "http://[::1]:30000", models: [m], role: prefill, handoff: sglang, bootstrap: "p:9001"}
    - {url: "http://10.0.0.2:30000", models: [m], role: decode, handoff: sglang, transfer_domain: rack-1}
    - {url: "http://10.0.0.3:8000", models: [m], handoff: nixl-pull, kv_bytes_per_token: 131072}
    - {url: "http://10.0.0.4:8000", models: [m], role: prefill, handoff: lmcache-pd}
    - {url: "http://10.0.0.5:8000", models: [m], role: decode, handoff: mooncake}
    - {url: "http://10.0.0.6:8000", models: [m], handoff: mori-write, peer: "10.0.0.6:6301", peer_port: 61005}
    - {url: "http://10.0.0.7:8000", models: [m], role: decode}
agent:
  role: decode
  handoff: none
  labels: ["pool=a", "x=y=z", "empty="]
"#,
    )
    .expect("valid");
    let bootstraps: Vec<_> = config.gateway.instances.iter().map(|instance| instance.bootstrap()).collect();
    assert_eq!(bootstraps[0].as_deref(), Some("10.0.0.1:8998"));
    assert_eq!(bootstraps[1].as_deref(), Some("p:9001"));
    assert!(bootstraps[2..].iter().all(Option::is_none), "{bootstraps:?}");
    assert_eq!(config.gateway.instances[3].handoff, HandoffSetting::Is(Handoff::NixlPull));
    assert_eq!(config.gateway.instances[3].role.role(), None);
    assert_eq!((config.agent.role, config.agent.handoff), (Part::Decode, HandoffSetting::None));
    assert_eq!(config.agent.role.role(), Some(ServingRole::Decode));
    let labels: Vec<_> = config.agent.labels.iter().map(|label| (&label.key[..], &label.value[..])).collect();
    assert_eq!(labels, [("pool", "a"), ("x", "y=z"), ("empty", "")]);
    let auto = Config::from_yaml("agent: {bootstrap: 'a:1', peer: 'a:2', peer_port: 3, transfer_domain: x}");
    assert!(auto.is_ok(), "an agent asks for the rest: {auto:?}");
}

#[test]
fn json_and_merge_keys_are_yaml() {
    let config =
        Config::from_yaml(r#"{"gateway": {"retry_count": 5}, "log": {"format": "json"}}"#).expect("JSON");
    assert_eq!(config.gateway.retry_count, 5);
    let merged = "gateway:\n  timeouts: &t {head: 1s}\n  retry: {}\nlog: &l {level: debug}\n";
    assert_eq!(Config::from_yaml(merged).expect("anchors").gateway.timeouts.head, Duration::from_secs(1));
}

/// Each wrong file with what its message must name: the path, the value, something of what is allowed.
#[test]
fn refusals_name_key_value_and_what_is_allowed() {
    for (yaml, names) in [
        ("gatway: {}", &["gatway: no such key", "did you mean gateway?", "scheduler"][..]),
        ("gateway: {listn: 1}", &["gateway.listn", "did you mean listen?", "base_path"]),
        ("gateway: {max_queue_siz: 1}", &["gateway.max_queue_siz", "no such key", "retry_count"]),
        ("gateway: {retry: {count: 1}}", &["gateway.retry.count", "backoff"]),
        ("gateway: {instances: [{url: 'http://a', nmae: x}]}", &["gateway.instances[0].nmae", "name"]),
        ("gateway: {policy: bestest}", &["gateway.policy", "\"bestest\"", "`prefix-cache`", "`round-robin`"]),
        ("gateway: {listen: 8080}", &["gateway.listen", "8080", "IP:PORT"]),
        ("gateway: {listen: 'localhost:80'}", &["gateway.listen", "localhost:80", "IP:PORT"]),
        ("gateway: {admin: nope}", &["gateway.admin", "\"nope\"", "or `off`"]),
        ("gateway: {shards: 0}", &["gateway.shards", "0", "1 to 1024"]),
        ("gateway: {shards: many}", &["gateway.shards", "\"many\"", "`auto`"]),
        ("gateway: {runtime: tokio}", &["gateway.runtime", "\"tokio\"", "`monoio`, `glommio`"]),
        ("gateway: {driver: kqueue}", &["gateway.driver", "\"kqueue\"", "`uring`"]),
        ("gateway: {tls: {certificate: /c}}", &["gateway.tls.key", "missing", "path"]),
        ("gateway: {tls: {key: /k}}", &["gateway.tls.certificate", "missing"]),
        ("gateway: {tls: {require_client_certificate: true}}", &["gateway.tls.client_ca"]),
        (
            "gateway: {admin: '1.2.3.4:5', tls: {listen: '1.2.3.4:5', certificate: /c, key: /k}}",
            &["gateway.tls.listen", "1.2.3.4:5", "admin"],
        ),
        (
            "gateway: {upstream: {tls: {ca: /c, insecure_skip_verify: true}}}",
            &["gateway.upstream.tls.insecure_skip_verify", "ca"],
        ),
        ("agent: {advertise: 'https://a'}", &["agent.advertise", "https://HOST:PORT"]),
        (
            "gateway: {instances: [{url: 'https://a/path', models: [m]}]}",
            &["gateway.instances[0].url", "path"],
        ),
        ("gateway: {base_path: 'api/'}", &["gateway.base_path", "\"api/\"", "without a slash"]),
        ("gateway: {base_path: '/a/../b'}", &["gateway.base_path", "/a/../b"]),
        ("gateway: {max_body: 64 Moo}", &["gateway.max_body", "64 Moo", "`64MiB`"]),
        ("gateway: {max_body: -1}", &["gateway.max_body", "-1", "size"]),
        ("gateway: {max_body: 1}", &["gateway.max_body", "1", "from 1KiB to 16GiB"]),
        ("gateway: {retry_count: 17}", &["gateway.retry_count", "17", "from 0 to 16"]),
        ("gateway: {retry_count: 1.5}", &["gateway.retry_count", "1.5", "whole number"]),
        ("gateway: {retry_count: two}", &["gateway.retry_count", "\"two\"", "whole number"]),
        ("gateway: {retry: {budget: .nan}}", &["gateway.retry.budget", "number"]),
        ("gateway: {timeouts: {head: soon}}", &["gateway.timeouts.head", "\"soon\"", "`10s`"]),
        ("gateway: {timeouts: {head: 1ms}}", &["gateway.timeouts.head", "1ms", "from 10ms to 1h"]),
        ("gateway: {timeouts: 5}", &["gateway.timeouts", "5", "section"]),
        ("gateway: {blind_after: 1s}", &["gateway.blind_after", "1s", "stale_after", "10s"]),
        ("gateway: {instances: {url: x}}", &["gateway.instances", "list"]),
        ("gateway: {instances: [{name: a}]}", &["gateway.instances[0].url", "missing", "http://"]),
        ("gateway: {instances: [{url: 'http://a'}]}", &["gateway.instances[0].models", "missing", "names"]),
        ("gateway: {instances: [{url: 'ftp://a'}]}", &["gateway.instances[0].url", "ftp://a", "http://"]),
        (
            "gateway: {instances: [{url: 'http://a/v1'}]}",
            &["gateway.instances[0].url", "http://a:80/v1", "path"],
        ),
        (
            "gateway: {instances: [{url: 'http://a', models: [m], name: instance-2}, {url: 'http://b', models: [m]}]}",
            &["gateway.instances", "instance-2", "twice"],
        ),
        (
            "gateway: {instances: [{url: 'http://a', models: [m]}, {url: 'http://a:80', models: [m]}]}",
            &["gateway.instances", "a:80", "twice"],
        ),
        ("gateway: {scheduler: 'a'}", &["gateway.scheduler", "\"a\"", "HOST:PORT"]),
        ("gateway: {admin: '0.0.0.0:8080'}", &["gateway.admin", "0.0.0.0:8080", "another address"]),
        ("gateway: {allow_steering: yes please}", &["gateway.allow_steering", "`true`"]),
        ("agent: {kv_events: on}", &["agent.kv_events", "`auto`", "tcp://"]),
        ("agent: {kv_events: 'ipc:///x'}", &["agent.kv_events", "ipc:///x"]),
        ("agent: {kv_replay: 'tcp://a:1'}", &["agent.kv_replay", "kv_events"]),
        ("agent: {kv_bytes: 1}", &["agent.kv_bytes", "from 1MiB"]),
        ("agent: {role: prefiller}", &["agent.role", "\"prefiller\"", "`prefill`"]),
        ("agent: {handoff: nixl}", &["agent.handoff", "\"nixl\"", "`nixl-pull`", "`none`"]),
        ("agent: {handoff: none, peer: 'a:1'}", &["agent.peer", "a:1", "`none`"]),
        ("agent: {handoff: nixl-pull, bootstrap: 'a:1'}", &["agent.bootstrap", "a:1", "`nixl-pull`"]),
        ("agent: {handoff: p2p-nccl, peer_port: 7}", &["agent.peer_port", "7", "`p2p-nccl`"]),
        ("agent: {peer_port: 0}", &["agent.peer_port", "0", "from 1 to 65535"]),
        ("agent: {bootstrap: a}", &["agent.bootstrap", "\"a\"", "HOST:PORT"]),
        ("agent: {kv_bytes_per_token: 0}", &["agent.kv_bytes_per_token", "0", "from 1"]),
        ("agent: {labels: [pool]}", &["agent.labels[0]", "\"pool\"", "KEY=VALUE"]),
        ("agent: {labels: {pool: a}}", &["agent.labels", "list"]),
        (
            "gateway: {instances: [{url: 'http://a', models: [m], bootstrap: 'a:1'}]}",
            &["gateway.instances[0].bootstrap", "a:1", "`auto`"],
        ),
        (
            "gateway: {instances: [{url: 'http://a', models: [m], handoff: p2p-nccl}]}",
            &["gateway.instances[0].peer", "missing", "`p2p-nccl`"],
        ),
        (
            "gateway: {instances: [{url: 'http://a', models: [m], handoff: mori-read, peer: 'a:1'}]}",
            &["gateway.instances[0].peer_port", "missing", "`mori-read`"],
        ),
        (
            "gateway: {instances: [{url: 'http://a', models: [m], handoff: mooncake, role: prefill}]}",
            &["gateway.instances[0].handoff", "mooncake", "agent"],
        ),
        ("agent: {scrape_idle: 100ms}", &["agent.scrape_idle", "100ms", "scrape_busy"]),
        ("agent: {engine: 'ftp://x'}", &["agent.engine", "ftp://x", "http://"]),
        ("agent: {name: ''}", &["agent.name", "\"\"", "1 to 256"]),
        ("log: {level: loud}", &["log.level", "\"loud\"", "`info`"]),
        ("log: {format: [text]}", &["log.format", "list", "`json`"]),
        ("identity: 5", &["identity", "5", "path"]),
        ("- a list", &["the file", "list", "gateway"]),
        ("gateway: {1: 2}", &["gateway", "1", "keys"]),
        ("gateway: {listen: 'a", &["not YAML", "line"]),
        ("gateway: {policy: random, policy: random}", &["not YAML", "policy"]),
    ] {
        let message = refused(yaml).to_string();
        for name in names {
            assert!(message.contains(name), "{yaml}\n  says: {message}\n  lacks: {name}");
        }
    }
}

#[test]
fn errors_are_typed() {
    assert_eq!(refused("gateway: {listn: 1}").path().as_deref(), Some("gateway.listn"));
    match refused("gateway: {retry_count: 99}") {
        ConfigError::Value { path, value, allowed } => {
            assert_eq!((path.as_str(), value.as_str()), ("gateway.retry_count", "99"));
            assert_eq!(allowed, "a whole number, from 0 to 16");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(Config::load("/nonexistent/x.yaml"), Err(ConfigError::File { .. })));
}

#[test]
fn a_long_wrong_value_is_not_repeated_whole() {
    let message = refused(&format!("gateway: {{policy: {}}}", "ä".repeat(5000))).to_string();
    // The names of all policies are in it.
    assert!(message.len() < 3_000, "{}", message.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_panics(text in "(gateway|scheduler|log|agent)?[:{} ,\\[\\]a-z0-9&*<'\"\\n-]{0,60}") {
        let _ = Config::from_yaml(&text);
    }

    #[test]
    fn times_survive_being_shown(millis in 10u64..3_600_000) {
        use fairlead_config::Setting;
        let time = Duration::from_millis(millis);
        let config = Config::from_yaml(&format!("gateway: {{timeouts: {{head: {}}}}}", time.show())).expect("valid");
        prop_assert_eq!(config.gateway.timeouts.head, time);
    }

    #[test]
    fn sizes_survive_being_shown(bytes in 1024u64..(16 << 30)) {
        use fairlead_config::Setting;
        let config = Config::from_yaml(&format!("gateway: {{max_body: {}}}", Size(bytes).show())).expect("valid");
        prop_assert_eq!(config.gateway.max_body, Size(bytes));
    }
}

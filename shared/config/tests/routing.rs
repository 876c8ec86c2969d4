//! What may be said about routing decisions, and how it is refused.

use fairlead_config::Config;
use fairlead_routing::Settings;
use std::time::Duration;

fn gateway(yaml: &str) -> fairlead_config::Gateway {
    Config::from_yaml(&format!("gateway:\n{yaml}")).expect(yaml).gateway
}

#[test]
fn policies_profiles_and_limits_are_read() {
    let gateway = gateway(
        r#"
  policy: least-request
  policy_locked: true
  policies:
    prefix-cache: {hit_rate: 0.25, waiting: 7}
  slo: {ttft: 2s}
  default_profile: chat
  profiles:
    chat: {policy: round-robin, slo: {ttft: 500ms, tpot: 30}}
    long: {prompt_tokens_gte: 8192, policy: random}
  explain: {header: false, sample: 1}
  models:
    - {name: a, policy: random, policy_locked: true}
    - {slo: {tpot: 1s}}
"#,
    );
    assert_eq!(gateway.policy.as_ref().map(|policy| policy.as_str()), Some("least-request"));
    assert!(gateway.policy_locked && !gateway.explain.header && gateway.explain.sample == 1.0);
    let settings = gateway.policies.0;
    assert_eq!((settings.prefix_cache.hit_rate, settings.prefix_cache.waiting), (0.25, 7));
    assert_eq!(settings.prefix_cache.tolerance, Settings::default().prefix_cache.tolerance);
    assert_eq!(gateway.slo.ttft, Some(Duration::from_secs(2)));
    let names: Vec<_> = gateway.profiles.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["chat", "long"]);
    let (chat, long) = (&gateway.profiles.0[0].1, &gateway.profiles.0[1].1);
    assert_eq!(chat.slo.tpot, Some(Duration::from_millis(30)));
    assert_eq!(
        (long.prompt_tokens_gte, long.policy.as_ref().map(|p| p.as_str())),
        (Some(8192), Some("random"))
    );
    assert!(gateway.models[0].policy_locked && gateway.models[1].tokenizer.is_none());
}

#[test]
fn every_setting_of_every_policy_has_its_key_with_its_default_and_bounds() {
    for key in Settings::keys() {
        let read = |value: f64| {
            Config::from_yaml(&format!("gateway: {{policies: {{{}: {{{}: {value}}}}}}}", key.policy, key.key))
        };
        let of = |config: Config| key.get(&config.gateway.policies.0);
        assert_eq!(of(Config::default()), key.get(&Settings::default()), "{}.{}", key.policy, key.key);
        assert_eq!(of(read(key.high).expect("the greatest value")), key.high);
        let error = read(key.high + 1.0).expect_err("beyond the greatest").to_string();
        assert!(error.contains(&format!("gateway.policies.{}.{}", key.policy, key.key)), "{error}");
    }
}

/// Each wrong section with what its message must name.
#[test]
fn refusals_name_key_value_and_what_is_allowed() {
    for (yaml, names) in [
        ("policy: ''", &["gateway.policy", "\"\"", "`prefix-cache`", "`round-robin`"][..]),
        ("policy: 5", &["gateway.policy", "5", "`prefix-cache`"]),
        ("policy: 'prefix-cache:x'", &["gateway.policy", "prefix-cache:x", "`prefix-cache`"]),
        ("policy: 'prefix-cache:2,nope:1'", &["gateway.policy", "nope", "`prefix-cache`"]),
        ("policies: 5", &["gateway.policies", "5", "prefix-cache"]),
        ("policies: {prefix-cash: {}}", &["gateway.policies.prefix-cash", "did you mean prefix-cache?"]),
        ("policies: {prefix-cache: {hit: 1}}", &["gateway.policies.prefix-cache.hit", "hit_rate"]),
        (
            "policies: {prefix-cache: {hit_rate: 1.5}}",
            &["gateway.policies.prefix-cache.hit_rate", "1.5", "0 to 1"],
        ),
        ("policies: {prefix-cache: {hit_rate: half}}", &["prefix-cache.hit_rate", "\"half\"", "a number"]),
        ("policies: {prefix-cache: {hit_rate: .nan}}", &["prefix-cache.hit_rate", "a number"]),
        ("policies: {prefix-cache: {waiting: 1.5}}", &["prefix-cache.waiting", "1.5", "whole number"]),
        ("profiles: [a]", &["gateway.profiles", "list", "by name"]),
        ("profiles: {'a b': {}}", &["gateway.profiles", "\"a b\"", "letters"]),
        ("profiles: {auto: {}}", &["gateway.profiles", "auto", "another name"]),
        ("profiles: {a: {policy: nope}}", &["gateway.profiles.a.policy", "\"nope\"", "`prefix-cache`"]),
        ("profiles: {a: {polcy: random}}", &["gateway.profiles.a.polcy", "did you mean policy?"]),
        ("profiles: {a: {slo: {ttft: 0}}}", &["gateway.profiles.a.slo.ttft", "0ms", "1ms to 1h"]),
        ("default_profile: a", &["gateway.default_profile", "\"a\"", "no profiles"]),
        ("{default_profile: a, profiles: {b: {}, c: {}}}", &["gateway.default_profile", "\"a\"", "b, c"]),
        ("slo: {tpot: 2h}", &["gateway.slo.tpot", "2h", "1ms to 1h"]),
        ("explain: {sample: 2}", &["gateway.explain.sample", "2", "from 0 to 1"]),
        ("models: [{name: a}]", &["gateway.models[0]", "missing", "policy"]),
        ("models: [{chat_template: a}]", &["gateway.models[0].tokenizer", "missing"]),
        ("models: [{policy: random}, {policy: random}]", &["gateway.models", "\"*\" twice"]),
    ] {
        let file =
            if yaml.starts_with('{') { format!("gateway: {yaml}") } else { format!("gateway: {{{yaml}}}") };
        let message = Config::from_yaml(&file).expect_err(yaml).to_string();
        for name in names {
            assert!(message.contains(name), "{yaml}\n  says: {message}\n  lacks: {name}");
        }
    }
}

//! How requests are routed, from configuration and environment.

use std::time::Duration;

use fairlead_config::{Gateway, PolicyText, Slo};
use fairlead_dataplane::{ModelRouting, ProfileRouting, RoutingOptions};
use fairlead_routing::{PolicyName, Sides};

/// The environment's variables that name a policy, the first that is set counts. The second is AIBrix's.
const VARIABLES: [&str; 2] = ["FAIRLEAD_POLICY", "ROUTING_ALGORITHM"];

/// The gateway's own policy: the configuration's, else the environment's, else the default one.
pub fn policy(section: &Gateway) -> anyhow::Result<String> {
    choose(section.policy.as_ref(), |name| std::env::var_os(name))
}

fn choose(
    configured: Option<&PolicyText>,
    variable: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> anyhow::Result<String> {
    if let Some(policy) = configured {
        return Ok(policy.as_str().to_owned());
    }
    for name in VARIABLES {
        let Some(text) = variable(name).filter(|text| !text.is_empty()) else { continue };
        let parsed = PolicyText::parse(&text.to_string_lossy());
        return match parsed {
            Ok(policy) => Ok(policy.as_str().to_owned()),
            Err(why) => Err(anyhow::anyhow!("{name}: {why}")),
        };
    }
    Ok(PolicyName::default().as_str().to_owned())
}

/// Everything about routing.
pub fn options(section: &Gateway) -> anyhow::Result<RoutingOptions> {
    let text = |policy: &Option<PolicyText>| policy.as_ref().map(|policy| policy.as_str().to_owned());
    let models = section.models.iter().map(|model| ModelRouting {
        name: model.name.clone(),
        policy: text(&model.policy),
        locked: model.policy_locked,
        slo: slo(&model.slo),
    });
    let profiles = section.profiles.0.iter().map(|(name, profile)| ProfileRouting {
        name: name.clone(),
        policy: text(&profile.policy),
        slo: slo(&profile.slo),
        prompt_tokens_gte: profile.prompt_tokens_gte,
        prompt_tokens_lt: profile.prompt_tokens_lt,
        max_tokens_gte: profile.max_tokens_gte,
        max_tokens_lt: profile.max_tokens_lt,
    });
    let mut settings = section.policies.0;
    settings.sides = Sides { prefill: section.prefill_policy.0, decode: section.decode_policy.0 };
    Ok(RoutingOptions {
        policy: policy(section)?,
        locked: section.policy_locked,
        settings,
        slo: slo(&section.slo),
        models: models.collect(),
        profiles: profiles.collect(),
        default_profile: section.default_profile.clone(),
        explain: section.explain.header,
        explain_sample: section.explain.sample,
    })
}

fn slo(limits: &Slo) -> fairlead_routing::Slo {
    let micros = |limit: Option<Duration>| {
        limit.map_or(0, |limit| u32::try_from(limit.as_micros()).unwrap_or(u32::MAX))
    };
    fairlead_routing::Slo { ttft_us: micros(limits.ttft), tpot_us: micros(limits.tpot) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sides_of_a_pair_have_policies_of_their_own() {
        let of = |yaml: &str| {
            let config = fairlead_config::Config::from_yaml(yaml).map_err(|error| error.to_string())?;
            options(&config.gateway).map(|options| options.settings.sides).map_err(|error| error.to_string())
        };
        assert_eq!(of("gateway: {}").unwrap(), Sides::default());
        let sides = of("gateway:\n  prefill_policy: prefix-cache\n  decode_policy: least-token\n").unwrap();
        assert_eq!(sides, Sides { prefill: PolicyName::PrefixCache, decode: PolicyName::LeastToken });
        for wrong in ["pd-split", "nope", "prefix-cache:2"] {
            let error = of(&format!("gateway:\n  decode_policy: {wrong}\n")).unwrap_err();
            assert!(error.contains("gateway.decode_policy") && error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn the_configuration_comes_before_the_environment_and_our_name_before_theirs() {
        let given = |ours: &'static str, theirs: &'static str| {
            move |name: &str| {
                let text = if name == "FAIRLEAD_POLICY" { ours } else { theirs };
                (text != "unset").then(|| text.into())
            }
        };
        let configured = PolicyText::parse("round-robin").unwrap();
        for (configured, ours, theirs, want) in [
            (None, "unset", "unset", "cost"),
            (None, "unset", "random", "random"),
            (None, "", "random", "random"),
            (None, "least-request", "random", "least-request"),
            (Some(&configured), "least-request", "nonsense", "round-robin"),
        ] {
            assert_eq!(choose(configured, given(ours, theirs)).unwrap(), want);
        }
        let error = choose(None, given("unset", "nope")).unwrap_err().to_string();
        assert!(error.contains("ROUTING_ALGORITHM") && error.contains("prefix-cache"), "{error}");
    }
}

//! By which strategy a request is routed, and within which limits.
//!
//! Precedence, from the strongest: a locked model's (or gateway's) policy, the request's `routing-strategy`, its
//! profile's, its model's, the gateway's. Strategies are built once and shared by all shards; only weighted sums that a
//! request itself spells out are built by the shard that is asked for them, and kept there within a bound.

use std::ops::Deref;
use std::rc::Rc;
use std::sync::OnceLock;

use ahash::AHashMap;
use fairlead_routing::{Fleet, LabelFilter, PolicyName, Settings, Slo, Strategy, StrategyError};

use crate::options::{ProfileRouting, RoutingOptions};

/// Strategies spelt out by requests that a shard keeps. At the bound the one not asked for longest goes; who asks for it
/// again has it built again, and requests under way keep theirs.
const KEPT: usize = 32;

/// A configuration of routing that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// A policy that does not exist.
    #[error("{place}: {source}")]
    Policy {
        /// Where it stands.
        place: String,
        /// What is wrong.
        source: StrategyError,
    },
    /// A profile that does not exist.
    #[error("default_profile: there is no profile {0:?}")]
    Profile(String),
}

/// Where a configured strategy is found.
#[derive(Clone, Copy, Debug)]
enum Known {
    Named(PolicyName),
    Spelt(usize),
}

/// What holds for a model.
#[derive(Clone, Copy, Debug, Default)]
struct Rule {
    policy: Option<Known>,
    locked: bool,
    slo: Slo,
}

/// A profile made ready.
#[derive(Debug)]
struct Profile {
    options: ProfileRouting,
    policy: Option<Known>,
}

/// Everything that is configured about routing.
#[derive(Debug)]
pub struct Routing {
    settings: Settings,
    /// By policy name; built when first asked for.
    named: Vec<OnceLock<Strategy>>,
    /// Configured ones that are more than a name.
    spelt: Vec<(String, Strategy)>,
    gateway: Rule,
    policy: Known,
    models: AHashMap<String, Rule>,
    others: Option<Rule>,
    profiles: Vec<Profile>,
    default_profile: Option<usize>,
}

/// What a request asks for by headers and body, as far as it decides how the request is routed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'h> {
    /// `routing-strategy`
    pub strategy: Option<&'h str>,
    /// `config-profile`
    pub profile: Option<&'h str>,
    /// `external-filter`
    pub filter: Option<&'h str>,
    /// Time to the first token, microseconds; 0 is none.
    pub ttft_us: Option<u32>,
    /// Time per further token, microseconds; 0 is none.
    pub tpot_us: Option<u32>,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Most tokens that it lets be generated.
    pub max_output: Option<u32>,
}

/// How a request is routed.
#[derive(Debug)]
pub struct Routed<'r> {
    /// By which strategy.
    pub strategy: Chosen<'r>,
    /// Within which limits.
    pub slo: Slo,
    /// Among the targets with which labels.
    pub labels: Option<LabelFilter>,
}

/// A strategy, and whose it is.
#[derive(Clone, Debug)]
pub enum Chosen<'r> {
    /// The process's.
    Ours(&'r Strategy),
    /// The shard's.
    Spelt(Rc<Strategy>),
}

impl Deref for Chosen<'_> {
    type Target = Strategy;

    fn deref(&self) -> &Strategy {
        match self {
            Self::Ours(strategy) => strategy,
            Self::Spelt(strategy) => strategy,
        }
    }
}

/// What a request may not ask for.
#[derive(Debug, PartialEq)]
pub enum BadAsk {
    /// A strategy that does not exist, and why.
    Strategy(String),
    /// A profile that does not exist, and those that do.
    Profile(String),
    /// A label selector that makes no sense, and why.
    Filter(String),
}

/// Strategies that requests have spelt out, of one shard. The one asked for last stands last.
#[derive(Debug, Default)]
pub struct SpeltOut(Vec<(Box<str>, Rc<Strategy>)>);

impl SpeltOut {
    fn get(&mut self, text: &str, settings: &Settings) -> Result<Rc<Strategy>, StrategyError> {
        let kept = match self.0.iter().position(|(known, _)| **known == *text) {
            Some(at) => self.0.remove(at),
            None => {
                let built = Rc::new(Strategy::parse(text, settings)?);
                if self.0.len() >= KEPT {
                    self.0.remove(0);
                }
                (text.into(), built)
            }
        };
        let strategy = kept.1.clone();
        self.0.push(kept);
        Ok(strategy)
    }
}

impl Routing {
    /// Builds what is configured.
    ///
    /// # Errors
    /// A policy or profile that does not exist.
    pub fn new(options: &RoutingOptions) -> Result<Self, RoutingError> {
        let mut spelt = Vec::new();
        let settings = options.settings;
        let mut known = |text: &str, place: String| {
            if let Ok(name) = text.trim().parse() {
                return Ok(Known::Named(name));
            }
            let strategy =
                Strategy::parse(text, &settings).map_err(|source| RoutingError::Policy { place, source })?;
            spelt.push((text.trim().to_owned(), strategy));
            Ok(Known::Spelt(spelt.len() - 1))
        };
        let policy = known(&options.policy, "policy".into())?;
        let mut models = AHashMap::new();
        let mut others = None;
        for model in &options.models {
            let name = model.name.as_deref().unwrap_or("*");
            let policy = model.policy.as_deref().map(|text| known(text, format!("models: {name}: policy")));
            let rule = Rule { policy: policy.transpose()?, locked: model.locked, slo: model.slo };
            match &model.name {
                Some(name) => drop(models.insert(name.clone(), rule)),
                None => others = Some(rule),
            }
        }
        let mut profiles = Vec::new();
        for profile in &options.profiles {
            let policy = profile.policy.as_deref();
            let policy = policy.map(|text| known(text, format!("profiles: {}: policy", profile.name)));
            profiles.push(Profile { options: profile.clone(), policy: policy.transpose()? });
        }
        let named = |name: &str| profiles.iter().position(|profile| profile.options.name == name);
        let default_profile = match &options.default_profile {
            Some(name) => Some(named(name).ok_or_else(|| RoutingError::Profile(name.clone()))?),
            None => named("default"),
        };
        Ok(Self {
            settings,
            named: PolicyName::ALL.iter().map(|_| OnceLock::new()).collect(),
            spelt,
            gateway: Rule { policy: None, locked: options.locked, slo: options.slo },
            policy,
            models,
            others,
            profiles,
            default_profile,
        })
    }

    /// The gateway's own strategy.
    pub fn default_strategy(&self) -> &Strategy {
        self.strategy(self.policy)
    }

    /// How a request for `model` is routed.
    ///
    /// # Errors
    /// It asks for a strategy or a profile that does not exist, or by a selector that makes no sense.
    pub fn of<'r>(
        &'r self,
        asked: &Asked<'_>,
        model: &str,
        fleet: &Fleet,
        spelt: &mut SpeltOut,
    ) -> Result<Routed<'r>, BadAsk> {
        let rule = self.rule(model, fleet);
        let profile = self.profile(asked)?;
        let locked = rule.locked || self.gateway.locked;
        let strategy = match (asked.strategy, profile.and_then(|profile| profile.policy)) {
            (Some(text), _) if !locked => self.spelt_out(text, spelt)?,
            (None, Some(known)) if !locked => Chosen::Ours(self.strategy(known)),
            _ => Chosen::Ours(self.strategy(rule.policy.unwrap_or(self.policy))),
        };
        let configured = [profile.map(|profile| profile.options.slo), Some(rule.slo), Some(self.gateway.slo)];
        let limit = |own: Option<u32>, of: fn(&Slo) -> u32| {
            let first = || configured.iter().flatten().map(of).find(|limit| *limit != 0);
            own.or_else(first).unwrap_or(0)
        };
        let slo = Slo {
            ttft_us: limit(asked.ttft_us, |slo| slo.ttft_us),
            tpot_us: limit(asked.tpot_us, |slo| slo.tpot_us),
        };
        let labels = asked.filter.map(LabelFilter::parse).transpose();
        let labels = labels.map_err(|error| BadAsk::Filter(error.to_string()))?;
        Ok(Routed { strategy, slo, labels })
    }

    /// What holds for a model; an adapter has its base model's rule unless it has its own.
    fn rule(&self, model: &str, fleet: &Fleet) -> Rule {
        if self.models.is_empty() {
            return self.others.unwrap_or_default();
        }
        let base = || {
            let table = fleet.table();
            self.models.get(&*table.model(model)?.hash_names.0).copied()
        };
        self.models.get(model).copied().or_else(base).or(self.others).unwrap_or_default()
    }

    fn profile(&self, asked: &Asked<'_>) -> Result<Option<&Profile>, BadAsk> {
        // Where there are no profiles, a header that speaks of one was meant for somebody else.
        if self.profiles.is_empty() {
            return Ok(None);
        }
        let default = self.default_profile.and_then(|at| self.profiles.get(at));
        match asked.profile {
            None => Ok(default),
            Some("auto") => {
                let found = self.profiles.iter().find(|profile| profile.options.meets(asked));
                Ok(found.or(default))
            }
            Some(name) => {
                let found = self.profiles.iter().find(|profile| profile.options.name == name);
                found.map(Some).ok_or_else(|| {
                    let names: Vec<_> = self.profiles.iter().map(|p| p.options.name.as_str()).collect();
                    BadAsk::Profile(format!("unknown profile {name:?}; known: {}, auto", names.join(", ")))
                })
            }
        }
    }

    fn spelt_out(&self, text: &str, spelt: &mut SpeltOut) -> Result<Chosen<'_>, BadAsk> {
        if let Ok(name) = text.parse() {
            return Ok(Chosen::Ours(self.strategy(Known::Named(name))));
        }
        if let Some((_, strategy)) = self.spelt.iter().find(|(known, _)| known == text) {
            return Ok(Chosen::Ours(strategy));
        }
        spelt
            .get(text, &self.settings)
            .map(Chosen::Spelt)
            .map_err(|error| BadAsk::Strategy(error.to_string()))
    }

    fn strategy(&self, known: Known) -> &Strategy {
        let name = match known {
            Known::Spelt(at) if at < self.spelt.len() => return &self.spelt[at].1,
            Known::Spelt(_) => PolicyName::default(),
            Known::Named(name) => name,
        };
        // Names are numbered in the order of the list; what is beyond it is never parsed.
        let at = if (name as usize) < self.named.len() { name as usize } else { 0 };
        self.named[at].get_or_init(|| Strategy::new(name, &self.settings))
    }
}

impl ProfileRouting {
    /// Whether a request meets all of the profile's conditions, of which there must be one.
    fn meets(&self, asked: &Asked<'_>) -> bool {
        let conditions = [
            (self.prompt_tokens_gte, Some(asked.prompt_tokens), true),
            (self.prompt_tokens_lt, Some(asked.prompt_tokens), false),
            (self.max_tokens_gte, asked.max_output, true),
            (self.max_tokens_lt, asked.max_output, false),
        ];
        conditions.iter().any(|(bound, ..)| bound.is_some())
            && conditions.iter().all(|(bound, value, from)| match (bound, value) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(bound), Some(value)) => (value >= bound) == *from,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::ModelRouting;

    fn slo(ttft_us: u32, tpot_us: u32) -> Slo {
        Slo { ttft_us, tpot_us }
    }

    fn routing() -> Routing {
        let model = |name: Option<&str>, policy: Option<&str>, locked| ModelRouting {
            name: name.map(Into::into),
            policy: policy.map(Into::into),
            locked,
            slo: slo(0, 40),
        };
        let profile = |name: &str, policy: Option<&str>| ProfileRouting {
            name: name.into(),
            policy: policy.map(Into::into),
            ..ProfileRouting::default()
        };
        Routing::new(&RoutingOptions {
            policy: "least-request".into(),
            slo: slo(9, 9),
            models: vec![
                model(Some("locked"), Some("random"), true),
                model(Some("own"), Some("round-robin"), false),
                model(Some("bare-lock"), None, true),
            ],
            profiles: vec![
                profile("plain", None),
                profile("chat", Some("prefix-cache")),
                ProfileRouting { prompt_tokens_gte: Some(100), ..profile("long", Some("random")) },
                ProfileRouting {
                    max_tokens_gte: Some(10),
                    max_tokens_lt: Some(20),
                    slo: slo(7, 0),
                    ..profile("some", Some("marginal"))
                },
            ],
            ..RoutingOptions::default()
        })
        .unwrap()
    }

    fn label(routing: &Routing, model: &str, asked: Asked<'_>) -> String {
        let fleet = Fleet::new([]);
        match routing.of(&asked, model, &fleet, &mut SpeltOut::default()) {
            Ok(routed) => routed.strategy.label().to_owned(),
            Err(bad) => format!("{bad:?}"),
        }
    }

    #[test]
    fn lock_then_header_then_profile_then_model_then_gateway() {
        let routing = routing();
        for (model, strategy, profile, want) in [
            ("any", None, None, "least-request"),
            ("own", None, None, "round-robin"),
            ("own", None, Some("plain"), "round-robin"),
            ("own", None, Some("chat"), "prefix-cache"),
            ("own", Some("marginal"), Some("chat"), "marginal"),
            ("any", Some("marginal"), None, "marginal"),
            ("locked", Some("marginal"), Some("chat"), "random"),
            ("locked", Some("nonsense"), None, "random"),
            ("bare-lock", Some("marginal"), Some("chat"), "least-request"),
        ] {
            let asked = Asked { strategy, profile, ..Asked::default() };
            assert_eq!(label(&routing, model, asked), want, "{model} {strategy:?} {profile:?}");
        }
        let locked = Routing::new(&RoutingOptions {
            locked: true,
            policy: "random".into(),
            ..RoutingOptions::default()
        });
        let asked = Asked { strategy: Some("marginal"), ..Asked::default() };
        assert_eq!(label(&locked.unwrap(), "any", asked), "random");
    }

    #[test]
    fn what_does_not_exist_is_named_with_what_does() {
        let routing = routing();
        let bad = label(&routing, "any", Asked { filter: Some("=x"), ..Asked::default() });
        assert!(bad.contains("Filter") && bad.contains("=x"), "{bad}");
        let bad = label(&routing, "any", Asked { strategy: Some("nope"), ..Asked::default() });
        assert!(bad.contains("nope") && bad.contains("round-robin"), "{bad}");
        let bad = label(&routing, "locked", Asked { profile: Some("nope"), ..Asked::default() });
        assert!(bad.contains("nope") && bad.contains("plain, chat, long, some, auto"), "{bad}");
        let without = Routing::new(&RoutingOptions::default()).unwrap();
        assert_eq!(label(&without, "m", Asked { profile: Some("x"), ..Asked::default() }), "cost");
        let wrong = |options: RoutingOptions| Routing::new(&options).unwrap_err().to_string();
        let options = RoutingOptions { policy: "nope".into(), ..RoutingOptions::default() };
        assert!(wrong(options).starts_with("policy: "));
        let options = RoutingOptions { default_profile: Some("x".into()), ..RoutingOptions::default() };
        assert!(wrong(options).contains("\"x\""));
    }

    #[test]
    fn auto_takes_the_first_profile_whose_conditions_hold() {
        let routing = routing();
        for (prompt_tokens, max_output, want) in [
            (99, None, "least-request"),
            (100, None, "random"),
            (100, Some(15), "random"),
            (0, Some(9), "least-request"),
            (0, Some(10), "marginal"),
            (0, Some(20), "least-request"),
        ] {
            let asked = Asked { profile: Some("auto"), prompt_tokens, max_output, ..Asked::default() };
            assert_eq!(label(&routing, "any", asked), want, "{prompt_tokens} {max_output:?}");
        }
    }

    #[test]
    fn limits_are_the_request_s_then_its_profile_s_its_model_s_the_gateway_s() {
        let routing = routing();
        let fleet = Fleet::new([]);
        for (model, profile, own, want) in [
            ("any", None, (None, None), slo(9, 9)),
            ("own", None, (None, None), slo(9, 40)),
            ("own", Some("some"), (None, None), slo(7, 40)),
            ("own", Some("some"), (Some(1), None), slo(1, 40)),
            ("own", Some("some"), (Some(0), Some(0)), slo(0, 0)),
            ("locked", Some("some"), (None, None), slo(7, 40)),
        ] {
            let asked = Asked { profile, ttft_us: own.0, tpot_us: own.1, ..Asked::default() };
            let routed = routing.of(&asked, model, &fleet, &mut SpeltOut::default()).unwrap();
            assert_eq!(routed.slo, want, "{model} {profile:?} {own:?}");
        }
    }

    #[test]
    fn every_name_gives_its_own_strategy_and_always_the_same() {
        let routing = routing();
        for name in PolicyName::ALL {
            let first = routing.strategy(Known::Named(*name));
            assert_eq!(first.name(), *name);
            assert!(std::ptr::eq(first, routing.strategy(Known::Named(*name))));
        }
    }

    #[test]
    fn strategies_that_are_spelt_out_are_kept_within_a_bound() {
        let (mut spelt, settings) = (SpeltOut::default(), Settings::default());
        // Blanks make another text of the same name.
        let text = |n: usize| format!("{}random", " ".repeat(n));
        let first = spelt.get(&text(0), &settings).unwrap();
        let second = spelt.get(&text(1), &settings).unwrap();
        for n in 2..KEPT {
            spelt.get(&text(n), &settings).unwrap();
        }
        assert!(Rc::ptr_eq(&first, &spelt.get(&text(0), &settings).unwrap()));
        for n in KEPT..KEPT + 5 {
            spelt.get(&text(n), &settings).unwrap();
            assert_eq!(spelt.0.len(), KEPT);
        }
        assert!(Rc::ptr_eq(&first, &spelt.get(&text(0), &settings).unwrap()), "asked for not long ago");
        assert!(!Rc::ptr_eq(&second, &spelt.get(&text(1), &settings).unwrap()), "gone");
        assert!(spelt.get("nope", &settings).is_err());
        assert_eq!(spelt.0.len(), KEPT);
    }
}

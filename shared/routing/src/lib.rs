//! The routing decision: which target serves a request.
//!
//! Pure: no I/O, no thread, no clock of its own (times come in as microseconds), and deterministic for a seed. The
//! gateway, trace replay and programs that embed the router call the same [`plan`].
//!
//! ```text
//! prefix lookup ─▶ filter (ready, labels, tried, room, circuit) ─▶ policy picks among what is left ─▶ reserve
//! ```
//!
//! Reading is lock-free: the target table is one pointer load, figures are relaxed atomics, the prefix index is read
//! under an epoch pin that ends with the decision. Picking and counting are one step, so that a burst sees itself.

mod candidates;
mod cost;
mod explain;
mod filter;
mod fleet;
mod pd;
mod plan;
mod policy;
mod registry;
mod request;
mod rng;
mod score;
mod settings;
mod strategy;

pub use cost::{Constants, CostCell, DecodeSeen, Estimate, Learner, PrefillSeen, pool};
pub use explain::{Explain, Explained};
pub use filter::{LabelError, LabelFilter};
pub use fleet::{
    Counters, EngineFigures, Fleet, InFlightSums, Leg, LoadCell, Mode, ModelCells, ModelEntry, Pace, Parts,
    Pressure, Reservation, TargetCells, TargetEntry, TargetTable, name_key, rendezvous, text_key,
};
pub use pd::{Pair, PairChoice, Pairing, TransferCell};
pub use plan::{NoPlan, Plan, PrefillPlan, Scratch, plan, plan_explained};
pub use policy::{Candidate, Choice, Decision, Missing, Policy, Predicted, Reason, Scope, least, least_f64};
pub use registry::{PolicyName, UnknownPolicy};
pub use request::{PlanRequest, Slo};
pub use rng::Rng;
pub use score::ScorerName;
pub use settings::{
    ActiveRequestScorerSettings, BadSetting, ConsistentHashSettings, CostSettings, DynamoSettings,
    LlmDSettings, LlmMetricBasedSettings, LoadAwareScorerSettings, PrefixCacheScorerSettings,
    PrefixCacheSettings, SettingKey, Settings, SglangCacheAwareSettings, Sides, TokenLoadScorerSettings,
};
pub use strategy::{Picked, Strategy, StrategyError};

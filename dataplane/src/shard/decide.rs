//! From a request body to a target: the seam between the relay and the routing crates.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fairlead_openai::{Api, Scan};
use fairlead_replication::CacheAnswer;
use fairlead_routing::{
    Explain, NoPlan, Plan, PlanRequest, Scratch, TargetEntry, TargetTable, plan, plan_explained, text_key,
};
use fairlead_tokens::BlockHasher;
use fairlead_wire::TargetId;
use fairlead_wire::msg::{Handoff, HashSpace};

use super::answer::{Refusal, shown};
use super::tokenise::{self, Draft};
use crate::options::GatewayOptions;
use crate::routing::Routed;
use crate::shared::Shared;
use crate::token_mode::TokenMode;

/// What the shard told the control thread about one pick.
#[derive(Debug, Clone)]
pub struct PlacementNote {
    /// Target picked.
    pub target: TargetId,
    /// Chained block hashes of the prompt, from its first block.
    pub path: Arc<Vec<u64>>,
    /// What the path's blocks are made of.
    pub space: HashSpace,
    /// `Some(n)` withdraws the placement: the request never got to the target, which keeps `n` blocks of it.
    pub keep: Option<u32>,
}

/// What a shard tells the control thread about one answer.
#[derive(Debug, Clone, Copy)]
pub struct AnswerNote {
    /// Target that answered.
    pub target: TargetId,
    /// What the answer showed of its cache.
    pub answer: CacheAnswer,
}

/// What a decision needs to know of a request, read from its body once.
#[derive(Debug)]
pub struct Prompt {
    /// The API it speaks.
    pub api: Api,
    /// Model asked for, as the fleet spells it.
    pub model: Arc<str>,
    /// The answer is to come as a stream of events.
    pub stream: bool,
    /// What its body says of itself.
    pub said: Said,
    /// Chained hashes of the prompt's whole blocks: of its token ids, or of its canonical bytes.
    pub path: Arc<Vec<u64>>,
    /// Bytes of the canonical prompt; 0 where it was hashed by token ids.
    pub bytes: u64,
    /// Tokens of the prompt: exact where it was tokenised, else estimated.
    pub tokens: u32,
    /// Set where `path` is of token ids.
    pub tokenised: Option<Tokenised>,
    /// Where the prompt was tokenised, or why it was not; `None` for a model without a tokenizer.
    pub how: Option<&'static str>,
}

/// How a prompt was tokenised.
#[derive(Debug, Clone)]
pub struct Tokenised {
    /// The model's tokenizer.
    pub mode: Arc<TokenMode>,
    /// Tokens in a block of the path.
    pub block: u32,
}

/// What a body says of its request, beside the prompt.
#[derive(Debug, Clone, Copy, Default)]
pub struct Said {
    /// Most tokens that may be generated.
    pub max_output: Option<u32>,
    /// More than one answer is asked for, or answers to more than one prompt.
    pub several: bool,
    /// Part of the prompt lies with the instance that gave an earlier answer.
    pub goes_on: bool,
    /// Key of the session it names.
    pub session: Option<u64>,
    /// Key of the user it names.
    pub user: Option<u64>,
}

impl Said {
    /// From a scan of `body`.
    pub fn of(scan: &Scan<'_>, body: &[u8]) -> Self {
        let key = |text: &Option<std::borrow::Cow<'_, str>>| {
            text.as_deref().filter(|text| !text.is_empty()).map(|text| text_key(text.as_bytes()))
        };
        Self {
            max_output: scan.max_tokens.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
            several: scan.n.is_some_and(|n| n > 1)
                || scan.prompt.text.is_some_and(|text| holds_prompts(text.of(body))),
            goes_on: scan.previous_response.is_some(),
            session: key(&scan.session),
            user: key(&scan.user),
        }
    }
}

/// Whether a value is an array of texts or of arrays of token ids. An array of token ids is one prompt, and so are the
/// items of a conversation.
fn holds_prompts(value: &[u8]) -> bool {
    let mut bytes = value.iter().filter(|byte| !byte.is_ascii_whitespace());
    bytes.next() == Some(&b'[') && matches!(bytes.next(), Some(b'"' | b'['))
}

impl Prompt {
    /// Of a request whose prompt is not seen.
    pub fn unseen(api: Api, model: Arc<str>) -> Self {
        Self {
            api,
            model,
            stream: true,
            said: Said::default(),
            path: Arc::default(),
            bytes: 0,
            tokens: 0,
            tokenised: None,
            how: None,
        }
    }

    /// What the path's blocks are made of.
    pub fn space(&self) -> HashSpace {
        if self.tokenised.is_some() { HashSpace::Tokens } else { HashSpace::Bytes }
    }
}

/// Where a body is read, and so how much work it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// On a shard: text that would take long to tokenise is left to the helper thread.
    Shard,
    /// On the helper thread, whatever it takes.
    Helper,
    /// Without tokenising, for this reason.
    BytesOnly(&'static str),
}

/// What came of reading a body.
pub enum Reading {
    /// All that a decision needs.
    Ready(Prompt),
    /// The prompt is rendered; parts of it are to be tokenised on the helper thread.
    Parts(Box<Draft>),
    /// The whole body is to be read on the helper thread.
    Whole,
}

/// Most model names listed in an error message.
const LISTED_MODELS: usize = 50;

/// Scans and hashes a body.
///
/// # Errors
/// The answer for a client whose body cannot be forwarded.
pub fn read_prompt(
    body: &[u8],
    api: Api,
    shared: &Shared,
    options: &GatewayOptions,
    effort: Effort,
) -> Result<Reading, Refusal> {
    let scan = fairlead_openai::scan(body, api).map_err(|error| {
        Refusal::new(400, error.to_string()).code("invalid_json").param_from(&error.place)
    })?;
    if let Some(member) = scan.steering
        && !options.allow_steering
    {
        return Err(Refusal::new(400, format!("`{member}` is set by the router and may not be sent"))
            .code("unsupported_parameter")
            .param(member));
    }
    let table = shared.fleet.table();
    let entry = match &scan.model {
        Some(name) => table.model(name).ok_or_else(|| unknown_model(name, &table, shared))?,
        None => table.sole_model().ok_or_else(|| {
            if !shared.is_fleet_known() {
                return fleet_unknown();
            }
            Refusal::new(400, format!("`model` is required. {}", existing(&table.model_names())))
                .code("missing_required_parameter")
                .param("model")
        })?,
    };
    let mut how = None;
    if !shared.token_models.is_empty() {
        match tokenise::read(body, &scan, api, entry, shared, options, effort) {
            Ok(reading) => return Ok(reading),
            Err(why) => how = why,
        }
    }
    let mut path = Vec::new();
    let bytes = hash(body, &scan, api, shared, options, &entry.name, &mut path);
    let tokens = (bytes as f32 / entry.cells.bytes_per_token()).ceil() as u32;
    let (model, path) = (entry.name.clone(), Arc::new(path));
    let (stream, said) = (scan.stream, Said::of(&scan, body));
    Ok(Reading::Ready(Prompt { api, model, stream, said, path, bytes, tokens, tokenised: None, how }))
}

fn hash(
    body: &[u8],
    scan: &Scan<'_>,
    api: Api,
    shared: &Shared,
    options: &GatewayOptions,
    model: &str,
    path: &mut Vec<u64>,
) -> u64 {
    let seed = shared.cluster_seed.load(Ordering::Relaxed);
    let salt = scan.cache_salt.as_deref().unwrap_or("");
    // One allocation of about the right size: a canonical prompt is hardly ever longer than its JSON.
    path.reserve((body.len() / options.block_bytes.max(1) as usize).min(options.max_blocks as usize));
    let mut hasher =
        BlockHasher::new(seed, model, "", salt, options.block_bytes, path).max_blocks(options.max_blocks);
    fairlead_openai::canonical(body, scan, api, &mut |piece| hasher.update(piece));
    hasher.finish().bytes
}

/// What a decision is asked for.
fn asked<'a>(prompt: &'a Prompt, routed: &'a Routed<'_>) -> PlanRequest<'a> {
    PlanRequest {
        path: &prompt.path,
        prompt_tokens: prompt.tokens,
        block_tokens: prompt.tokenised.as_ref().map_or(0, |tokenised| tokenised.block),
        max_output: prompt.said.max_output,
        session: prompt.said.session,
        user: prompt.said.user,
        slo: routed.slo,
        labels: routed.labels.as_ref(),
        ..PlanRequest::new(&prompt.model, &routed.strategy)
    }
}

/// Prompt tokens to compute where `blocks` leading blocks are cached.
pub fn uncached(prompt: &Prompt, routed: &Routed<'_>, blocks: u32) -> u32 {
    asked(prompt, routed).uncached(blocks)
}

/// Whether prefill and decode may be placed apart.
pub fn splits(prompt: &Prompt, shared: &Shared) -> bool {
    let said = &prompt.said;
    if !matches!(prompt.api, Api::Chat | Api::Completions | Api::Responses | Api::Messages)
        || said.max_output == Some(0)
        || said.goes_on
    {
        return false;
    }
    // Which target prefills is not decided yet: several answers need a hand-off everywhere that bears them.
    !said.several
        || shared.fleet.table().model(&prompt.model).is_some_and(|model| {
            model.targets.iter().filter_map(|target| target.handoff()).all(Handoff::hands_several)
        })
}

/// Picks and reserves; fills `explain` where there is one.
///
/// # Errors
/// Why there is no target.
pub fn pick(
    prompt: &Prompt,
    routed: &Routed<'_>,
    tried: &[Arc<TargetEntry>],
    shared: &Shared,
    scratch: &mut Scratch,
    explain: Option<&mut Explain>,
    now_us: u64,
) -> Result<Plan, NoPlan> {
    let splits = splits(prompt, shared);
    let request = PlanRequest { tried, splits, now_us, ..asked(prompt, routed) };
    let Some(explain) = explain else { return plan(&request, &shared.fleet, scratch) };
    let plan = plan_explained(&request, &shared.fleet, scratch, explain)?;
    explain.state_age_us = shared.state_age_us(now_us);
    Ok(plan)
}

/// The answer for a model that nobody serves.
pub fn unknown_model(name: &str, table: &TargetTable, shared: &Shared) -> Refusal {
    if !shared.is_fleet_known() {
        return fleet_unknown();
    }
    let existing = existing(&table.model_names());
    Refusal::new(404, format!("The model `{}` does not exist. {existing}", shown(name)))
        .code("model_not_found")
        .param("model")
}

/// The answer while nobody can say which models there are: to be asked again, where a 404 would be final.
pub fn fleet_unknown() -> Refusal {
    Refusal::new(503, "the models of the fleet are not all known yet").retry_after(1)
}

fn existing(models: &[Arc<str>]) -> String {
    if models.is_empty() {
        return "No models are available.".to_owned();
    }
    let listed: Vec<&str> = models.iter().take(LISTED_MODELS).map(|name| &**name).collect();
    let more = models.len().saturating_sub(LISTED_MODELS);
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("Models that exist: {}{tail}.", listed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_texts_and_of_ids_are_several_prompts() {
        for (value, several) in [
            ("\"a\"", false),
            ("\"[\"", false),
            ("[1, 2]", false),
            ("[]", false),
            ("[{\"role\":\"user\"}]", false),
            ("[\"a\"]", true),
            (" [ [1], [2]]", true),
        ] {
            assert_eq!(holds_prompts(value.as_bytes()), several, "{value}");
        }
    }
}

//! Routes that carry prompts.

use super::body::{AnswerBody, Break, Breaker, Source, TokenStream, cached_of};
use super::conn::ConnControl;
use super::forms::{EventWriter, Form, Meta, SeqMeta, Usage};
use super::route::{error, reply_json, stream_error};
use crate::engine::{Engine, Prepared, SeqState, Visit};
use crate::faults::Faults;
use crate::handoff::{Entered, Entry, Leg, LegError};
use crate::model::SeqSpec;
use crate::options::EngineKind;
use crate::prompt::{self, Api, Ask};
use crate::text;
use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

/// Embedding size where the request names none.
const DIMENSIONS: u32 = 64;

/// A request on a prompt route.
pub(crate) struct Call {
    pub api: Api,
    pub path: String,
    pub body: Bytes,
    pub request_id: Option<String>,
    /// Its part in a hand-off.
    pub leg: Result<Leg, LegError>,
}

/// Answers a request whose body is complete.
pub(crate) async fn answer(
    engine: &Arc<Engine>,
    conn: &Arc<ConnControl>,
    call: Call,
    mut visit: Visit,
    faults: Option<&Faults>,
) -> Response<AnswerBody> {
    let api = call.api;
    let refuse = |mut visit: Visit, status: StatusCode, param: Option<&str>, message: &str| {
        visit.complete();
        // What broke on the way is no refusal.
        engine.core().traffic.refused += u64::from(status != StatusCode::INTERNAL_SERVER_ERROR);
        error(engine, Some(api), status, param, message)
    };
    let mut ask = match prompt::parse_with(api, &call.body, engine.tokeniser.as_ref()) {
        Ok(a) => a,
        Err(e) => return refuse(visit, StatusCode::BAD_REQUEST, e.param, &e.message),
    };
    let model = match &ask.model {
        None => engine.options.models[0].clone(),
        Some(m) if engine.options.models.contains(m) || engine.options.loras.contains(m) => m.clone(),
        Some(m) => {
            let message = format!("The model `{m}` does not exist.");
            return refuse(visit, StatusCode::NOT_FOUND, Some("model"), &message);
        }
    };
    match api {
        Api::Tokenize | Api::Detokenize | Api::CountTokens => {
            visit.complete();
            return reply_json(StatusCode::OK, &count(engine, api, &ask));
        }
        _ => {}
    }
    let failed = |visit: Visit, e: LegError| {
        let param = (e.status == StatusCode::BAD_REQUEST).then_some("messages");
        let mut r = refuse(visit, e.status, param, &e.message);
        if e.status == StatusCode::SERVICE_UNAVAILABLE {
            r.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        r
    };
    let leg = match call.leg {
        Ok(leg) => leg,
        Err(e) => return refuse(visit, e.status, None, &e.message),
    };
    let sglang = engine.options.engine == EngineKind::Sglang;
    if sglang && matches!(leg, Leg::Prefill(_)) {
        // The engine ends a prefill leg after its first token, whatever was asked.
        ask.max_tokens = Some(1);
    }
    let mut work = match Work::new(engine, api, &ask, &model, leg.continued().map(|goods| goods.seed)) {
        Ok(w) => w,
        Err(message) => return refuse(visit, StatusCode::BAD_REQUEST, Some("messages"), &message),
    };
    let entry = Entry {
        specs: std::mem::take(&mut work.specs),
        seeds: work.metas.iter().map(|m| m.seed).collect(),
        body: call.body,
        path: call.path,
        request_id: call.request_id,
    };
    let (streams, waits, late) = (api.generates() && ask.stream, leg.waits(), leg.answers_late(engine));
    let entering = leg.enter(Arc::clone(engine), entry);
    // vLLM sends the head of a stream at once, SGLang with its first event.
    let source = if streams && waits && !sglang {
        let engine = Arc::clone(engine);
        let told = move |e: LegError| stream_error(&engine, api, e.status, &e.message);
        Source::Coming(Box::pin(async move { entering.await.map_err(told) }))
    } else {
        match entering.await {
            Ok(entered) => Source::Here(Box::new(entered)),
            Err(e) if streams && waits => {
                let error = stream_error(engine, api, e.status, &e.message);
                Source::Coming(Box::pin(std::future::ready(Err(error))))
            }
            Err(e) => return failed(visit, e),
        }
    };
    let answer = Answer { engine, conn, visit, faults, api, ask: &ask, model: &model, work };
    match source {
        Source::Here(mut entered) if !streams || late => {
            let state = match ended(&mut entered, late).await {
                Ok(state) => state,
                Err(e) => return failed(answer.visit, e),
            };
            let params = entered.after.finished();
            if late {
                let after = std::mem::take(&mut entered.after);
                if let Err(e) = after.handed().await {
                    return failed(answer.visit, e);
                }
            }
            match (streams, api.generates()) {
                (true, _) => answer.stream(Source::Here(entered), Some(state)),
                (false, true) => answer.complete(&state, params.as_deref()),
                (false, false) => answer.ranked(&state),
            }
        }
        source => answer.stream(source, None),
    }
}

/// Waits for the end of all sequences; with `watch`, gives up when what they are computed for is gone.
async fn ended(entered: &mut Entered, watch: bool) -> Result<Vec<SeqState>, LegError> {
    tokio::select! {
        state = entered.ticket.finished() => Ok(state),
        broken = entered.after.broken(), if watch => Err(broken),
    }
}

/// The sequences of one request.
struct Work {
    specs: Vec<SeqSpec>,
    metas: Vec<SeqMeta>,
    prompt_tokens: u32,
}

impl Work {
    /// `continued` is what the answer is made from where the prompt ends in its first token.
    fn new(
        engine: &Engine,
        api: Api,
        ask: &Ask,
        model: &str,
        continued: Option<u64>,
    ) -> Result<Self, String> {
        let skip = u32::from(continued.is_some());
        let n = if api.generates() { ask.n.max(1) } else { 1 };
        let mut work = Self { specs: Vec::new(), metas: Vec::new(), prompt_tokens: 0 };
        let longest = engine.options.max_model_len;
        for p in &ask.prompts {
            let Prepared { path, tokens, seed, origin } = engine.prepare(model, &ask.salt, p);
            let room = longest.saturating_sub(tokens);
            if tokens > longest || (api.generates() && ask.max_tokens.unwrap_or(1).max(1) > room) {
                return Err(format!(
                    "This model's maximum context length is {longest} tokens. However, you requested {} output \
                     tokens and your prompt contains {tokens} input tokens. Please reduce the length of the input \
                     prompt or the number of requested output tokens.",
                    ask.max_tokens.unwrap_or(0)
                ));
            }
            work.prompt_tokens = work.prompt_tokens.saturating_add(tokens);
            let seed = continued.unwrap_or(seed);
            for j in 0..n {
                let seed = if j == 0 { seed } else { text::mix(seed ^ u64::from(j)) };
                let output = match (api.generates(), ask.max_tokens) {
                    (false, _) => 0,
                    (true, Some(m)) => m,
                    (true, None) => (text::natural_length(seed) - skip).min(room),
                };
                let index = work.metas.len() as u32;
                let limited = ask.max_tokens.is_some();
                let (path, origin) = (Arc::clone(&path), origin.clone());
                work.metas.push(SeqMeta { index, seed, skip, output, limited });
                work.specs.push(SeqSpec {
                    path,
                    prompt_tokens: tokens,
                    output_tokens: output,
                    limited,
                    origin,
                    remote: 0,
                });
            }
        }
        let mut core = engine.core();
        let stats = core.model.stats_mut();
        stats.request_n.observe(f64::from(n));
        for m in &work.metas {
            stats.request_max_tokens.observe(f64::from(m.output));
        }
        Ok(work)
    }
}

/// All that one answer is made of.
struct Answer<'a> {
    engine: &'a Arc<Engine>,
    conn: &'a Arc<ConnControl>,
    visit: Visit,
    faults: Option<&'a Faults>,
    api: Api,
    ask: &'a Ask,
    model: &'a str,
    work: Work,
}

impl Answer<'_> {
    fn writer(&mut self) -> EventWriter {
        EventWriter::new(Meta {
            form: match self.api {
                Api::Completions => Form::Completions,
                Api::Responses => Form::Responses,
                Api::Messages => Form::Messages,
                _ => Form::Chat,
            },
            id: self.engine.new_id(),
            created: self.engine.unix_now(),
            model_json: Value::from(self.model).to_string(),
            model: self.model.to_owned(),
            seqs: std::mem::take(&mut self.work.metas),
            include_usage: self.ask.include_usage,
            continuous_usage: self.ask.continuous_usage,
            max_tokens: self.ask.max_tokens,
        })
    }

    fn per_prompt(&self) -> usize {
        self.ask.n.max(1) as usize
    }

    /// As a stream, which begins at `state` where there is one.
    fn stream(mut self, source: Source, state: Option<Vec<SeqState>>) -> Response<AnswerBody> {
        let (writer, per_prompt) = (self.writer(), self.per_prompt());
        let conn = Arc::clone(self.conn);
        let prompt = self.work.prompt_tokens;
        let mut stream = TokenStream::new(writer, source, self.visit, conn, prompt, per_prompt, self.faults);
        if let Some(state) = state {
            stream = stream.from(state);
        }
        let mut r = Response::new(AnswerBody::Stream(Box::new(stream)));
        r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        r.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        r
    }

    /// In one piece, with `kv_transfer_params` if there are any.
    fn complete(mut self, state: &[SeqState], params: Option<&str>) -> Response<AnswerBody> {
        let usage = Usage {
            prompt: self.work.prompt_tokens,
            cached: cached_of(state, self.per_prompt()),
            completion: state.iter().map(|s| s.emitted).sum(),
        };
        let bytes = self.writer().full(usage, params);
        whole(Bytes::from(bytes), self.conn, self.visit, self.faults)
    }

    /// Of the routes that only read.
    fn ranked(self, state: &[SeqState]) -> Response<AnswerBody> {
        let usage = Usage { prompt: self.work.prompt_tokens, cached: cached_of(state, 1), completion: 0 };
        let said = ranked(self.engine, self.api, self.ask, self.model, &self.work, usage);
        whole(Bytes::from(said.to_string()), self.conn, self.visit, self.faults)
    }
}

/// A body in one piece, or the first half of it where the request met a fault.
fn whole(
    bytes: Bytes,
    conn: &Arc<ConnControl>,
    visit: Visit,
    faults: Option<&Faults>,
) -> Response<AnswerBody> {
    let how = faults.and_then(|f| match (f.die_after, f.cut_after, f.hang_after) {
        (Some(_), _, _) => Some(Break::Reset),
        (_, Some(_), _) => Some(Break::Close),
        (_, _, Some(_)) => Some(Break::Hang),
        _ => None,
    });
    let body = match how {
        None => AnswerBody::Whole { bytes: Some(bytes), visit: Some(visit) },
        Some(how) => AnswerBody::Broken {
            announced: bytes.len() as u64,
            bytes: Some(bytes.slice(..bytes.len() / 2)),
            breaker: Breaker::new(how, Arc::clone(conn)),
            visit,
        },
    };
    let mut r = Response::new(body);
    r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    r
}

fn count(engine: &Engine, api: Api, ask: &Ask) -> Value {
    let prompt = ask.prompts.first().map_or(&[][..], Vec::as_slice);
    match api {
        Api::Detokenize => json!({"prompt": prompt::detokenize(&ask.tokens)}),
        Api::CountTokens => json!({"input_tokens": prompt::count_tokens(prompt)}),
        _ => {
            let tokens = prompt::token_ids(prompt);
            json!({"count": tokens.len(), "max_model_len": engine.options.max_model_len, "tokens": tokens,
                "token_strs": null})
        }
    }
}

/// A number in -1..1 that depends on a seed and a place.
fn pseudo(seed: u64, at: u32) -> f32 {
    (text::mix(seed ^ u64::from(at)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
}

/// Answers of the routes that only read: embeddings, rerank, score.
fn ranked(engine: &Engine, api: Api, ask: &Ask, model: &str, work: &Work, usage: Usage) -> Value {
    let id = engine.new_id();
    let total = json!({"prompt_tokens": usage.prompt, "total_tokens": usage.prompt, "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": usage.cached}});
    let score = |m: &SeqMeta| f64::from(pseudo(m.seed, 0)).mul_add(0.5, 0.5);
    match api {
        Api::Embeddings => {
            let size = ask.dimensions.unwrap_or(DIMENSIONS);
            let data: Vec<Value> = work
                .metas
                .iter()
                .map(|m| {
                    let raw: Vec<f32> = (0..size).map(|i| pseudo(m.seed, i)).collect();
                    let norm = raw.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
                    let unit = raw.iter().map(|v| v / norm);
                    let embedding = if ask.base64 {
                        Value::from(base64(&unit.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()))
                    } else {
                        Value::from(unit.map(f64::from).collect::<Vec<f64>>())
                    };
                    json!({"index": m.index, "object": "embedding", "embedding": embedding})
                })
                .collect();
            json!({"id": format!("embd-{id}"), "object": "list", "created": engine.unix_now(), "model": model,
                "data": data, "usage": total})
        }
        Api::Rerank => {
            let mut results: Vec<(f64, u32)> = work.metas.iter().map(|m| (score(m), m.index)).collect();
            results.sort_by(|a, b| b.0.total_cmp(&a.0));
            results.truncate(ask.top_n.unwrap_or(usize::MAX));
            let results: Vec<Value> = results
                .into_iter()
                .map(|(s, i)| {
                    let text = ask.documents.get(i as usize).map_or("", String::as_str);
                    json!({"index": i, "document": {"text": text, "multi_modal": null}, "relevance_score": s})
                })
                .collect();
            json!({"id": format!("rerank-{id}"), "model": model, "usage": {"prompt_tokens": usage.prompt,
                "total_tokens": usage.prompt}, "results": results})
        }
        _ => {
            let data: Vec<Value> = work
                .metas
                .iter()
                .map(|m| json!({"index": m.index, "object": "score", "score": score(m)}))
                .collect();
            json!({"id": format!("score-{id}"), "object": "list", "created": engine.unix_now(), "model": model,
                "data": data, "usage": total})
        }
    }
}

/// Standard base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for c in bytes.chunks(3) {
        let n = c.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - c.len()));
        for i in 0..4 {
            let digit = DIGITS[(n >> (18 - 6 * i)) as usize & 63] as char;
            out.push(if i > c.len() { '=' } else { digit });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_known_vectors() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}

//! What is behind the URL: probes, models, the metrics page, and which engine it is.

use crate::http::{Client, HttpError, Limits};
use crate::kv::endpoints::{self, Source};
use crate::metrics::{Field, Reader, Sample};
use crate::options::Settings;
use crate::tracker::{REQUESTS_MAX, kv_tokens};
use crate::transfer::{self, NoBootstrap, Said, Settled};
use fairlead_wire::limits;
use fairlead_wire::msg::{EngineKind, Handoff, ModelInfo, ServingRole};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// Longest answer of a health probe or version that is read, bytes.
const SMALL_BODY: usize = 64 * 1024;
/// Longest list of models or server description that is read, bytes.
const DESCRIPTION_BODY: usize = 4 << 20;
/// Longest metrics page that is read, bytes.
const PAGE_BODY: usize = 8 << 20;
/// Most models of one instance that are told to the scheduler.
const MODELS_MAX: usize = limits::MAX_MODELS;
/// Longest version kept, bytes.
const VERSION_MAX: usize = 128;

/// Why an engine is not ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotReady {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("GET {path}: status {status}")]
    Status { path: &'static str, status: u16 },
    #[error("GET /v1/models: {why}")]
    Models { why: String },
    #[error("GET /v1/models: no model is served yet")]
    NoModels,
    #[error(transparent)]
    Bootstrap(#[from] NoBootstrap),
}

impl NotReady {
    /// The engine was too slow to answer, which a busy one may be; everything else is an answer.
    pub fn is_timeout(&self) -> bool {
        matches!(self, NotReady::Http(HttpError::Timeout { .. }))
    }
}

/// A page was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScrapeError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("GET /metrics: status {0}")]
    Status(u16),
}

/// What a ready engine says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Description {
    pub kind: EngineKind,
    pub version: String,
    pub models: Vec<ModelInfo>,
    /// Its part in hand-offs between engines.
    pub part: Settled,
    pub dp_ranks: u16,
    pub block_size: Option<u32>,
    pub kv_blocks: Option<u64>,
    pub max_num_seqs: Option<u32>,
    /// KV room of a rank that only the description tells.
    pub kv_tokens: Option<u64>,
    /// When it started, where it says.
    pub started: Option<f64>,
    /// Why there are no figures, when there are none.
    pub no_page: Option<ScrapeError>,
    /// Where its KV-cache events are to be had, as it says itself; why that cannot be used.
    pub streams: Result<Vec<Source>, String>,
}

pub(crate) struct Engine {
    settings: Arc<Settings>,
    client: Client,
    reader: Reader,
    /// The engine has no `/health`: its list of models tells whether it lives.
    probe_models: bool,
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<ModelCard>,
}

#[derive(Deserialize)]
struct ModelCard {
    id: String,
    #[serde(default)]
    owned_by: Option<String>,
    #[serde(default)]
    max_model_len: Option<u64>,
    #[serde(default)]
    parent: Option<String>,
}

struct Models {
    list: Vec<ModelInfo>,
    owner: Option<String>,
}

impl Engine {
    pub fn new(settings: Arc<Settings>) -> Self {
        let client = Client::new(settings.origin.clone());
        Self { settings, client, reader: Reader::new(), probe_models: false }
    }

    /// Resolves when the engine closes the kept connection.
    pub async fn closed(&mut self) {
        self.client.closed().await;
    }

    fn limits(&self, body: usize) -> Limits {
        Limits { time: self.settings.intervals.probe_timeout, body }
    }

    /// Whether the engine answers its health probe.
    pub async fn probe(&mut self) -> Result<(), NotReady> {
        if self.probe_models {
            return self.models().await.map(drop);
        }
        match self.client.get("/health", self.limits(SMALL_BODY), &mut |_| ()).await? {
            200 => Ok(()),
            status => Err(NotReady::Status { path: "/health", status }),
        }
    }

    /// The models served; never empty.
    pub async fn models(&mut self) -> Result<Vec<ModelInfo>, NotReady> {
        Ok(self.read_models().await?.list)
    }

    async fn read_models(&mut self) -> Result<Models, NotReady> {
        let (status, body) = self.client.get_body("/v1/models", self.limits(DESCRIPTION_BODY)).await?;
        if status != 200 {
            return Err(NotReady::Status { path: "/v1/models", status });
        }
        let cards: ModelList =
            serde_json::from_slice(&body).map_err(|e| NotReady::Models { why: e.to_string() })?;
        let owner = cards.data.iter().find_map(|card| card.owned_by.clone());
        let fits =
            |name: &str| (1..=limits::MAX_NAME).contains(&name.len()) && !name.contains(char::is_control);
        let list: Vec<_> = cards
            .data
            .into_iter()
            .filter(|card| fits(&card.id))
            .take(MODELS_MAX)
            .map(|card| ModelInfo {
                name: card.id,
                max_model_len: card
                    .max_model_len
                    .and_then(|len| u32::try_from(len).ok())
                    .filter(|len| *len > 0),
                parent: card.parent.filter(|parent| fits(parent)),
            })
            .collect();
        if list.is_empty() { Err(NotReady::NoModels) } else { Ok(Models { list, owner }) }
    }

    /// Reads the metrics page.
    pub async fn scrape(&mut self) -> Result<&Sample, ScrapeError> {
        self.reader.reset();
        let limits = self.limits(PAGE_BODY);
        let reader = &mut self.reader;
        match self.client.get("/metrics", limits, &mut |chunk| reader.feed(chunk)).await? {
            200 => Ok(self.reader.finish()),
            status => Err(ScrapeError::Status(status)),
        }
    }

    /// The page of the last scrape.
    pub fn sample(&mut self) -> &Sample {
        self.reader.finish()
    }

    /// Asks a starting engine for everything: ready only when each answer is there.
    pub async fn describe(&mut self) -> Result<Description, NotReady> {
        self.probe_models = false;
        match self.probe().await {
            Ok(()) => {}
            // Some servers of OpenAI's routes have no health endpoint.
            Err(NotReady::Status { status: 404 | 405, .. }) => self.probe_models = true,
            Err(other) => return Err(other),
        }
        let models = self.read_models().await?;
        let no_page = match self.scrape().await {
            Ok(_) => None,
            Err(ScrapeError::Http(error @ (HttpError::Connect { .. } | HttpError::Broken { .. }))) => {
                return Err(error.into());
            }
            // An engine without figures can serve.
            Err(error) => {
                self.reader.reset();
                Some(error)
            }
        };
        let said = self.reader.finish().kind();
        let owner = models.owner.as_deref().unwrap_or("");
        let mut kind = match said {
            EngineKind::Generic if owner.eq_ignore_ascii_case("vllm") => EngineKind::Vllm,
            EngineKind::Generic if owner.eq_ignore_ascii_case("sglang") => EngineKind::Sglang,
            said => said,
        };
        let server = if kind == EngineKind::Vllm { None } else { self.server_info().await? };
        if server.is_some() {
            kind = EngineKind::Sglang;
        }
        let version = match server.as_ref().and_then(|server| server.get("version")?.as_str()) {
            Some(version) => version.to_owned(),
            None => self.version().await?,
        };
        let number =
            |key: &str| server.as_ref().and_then(|server| server.get(key)?.as_u64()).filter(|n| *n > 0);
        let said = match &server {
            Some(server) => transfer::sglang(server),
            None if kind == EngineKind::Vllm => self.connector().await?,
            None => Said::default(),
        };
        let streams = match (kind, &server) {
            (EngineKind::Vllm, _) => self.streams().await?,
            (_, Some(server)) => match server.get("kv_events") {
                Some(said) if said.is_object() => endpoints::sglang(said, self.client.host()),
                _ => Ok(Vec::new()),
            },
            _ => Ok(Vec::new()),
        };
        let page_ranks = self.reader.finish().ranks() as u64;
        let ranks = page_ranks.max(number("dp_size").unwrap_or(1)).clamp(1, crate::metrics::MAX_RANKS as u64);
        let version = cleaned(&version, VERSION_MAX);
        let part = self.part(&said, kind, &version, ranks as u16).await?;
        let sample = self.reader.finish();
        let whole = |field| sample.get(0, field).map(|value| value as u64).filter(|n| *n > 0);
        let block_size = whole(Field::BlockSize).or_else(|| number("page_size"));
        let kv_tokens = kv_tokens(sample, 0).or_else(|| number("max_total_num_tokens"));
        let kv_blocks = whole(Field::KvBlocks).or_else(|| Some(kv_tokens? / block_size?)).filter(|n| *n > 0);
        Ok(Description {
            kind,
            version,
            models: models.list,
            part,
            dp_ranks: ranks as u16,
            block_size: block_size
                .and_then(|size| u32::try_from(size).ok())
                .filter(|size| *size <= limits::MAX_BLOCK_SIZE),
            kv_blocks: kv_blocks.filter(|blocks| *blocks <= limits::MAX_COUNT),
            max_num_seqs: number("max_running_requests")
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| *n <= REQUESTS_MAX),
            kv_tokens: kv_tokens.filter(|tokens| *tokens <= limits::MAX_COUNT),
            started: sample.started(),
            no_page,
            streams,
        })
    }

    /// vLLM's `/version`; empty when there is none.
    async fn version(&mut self) -> Result<String, NotReady> {
        let (status, body) = self.client.get_body("/version", self.limits(SMALL_BODY)).await?;
        if status != 200 {
            return Ok(String::new());
        }
        let said: Option<Value> = serde_json::from_slice(&body).ok();
        Ok(said.and_then(|said| Some(said.get("version")?.as_str()?.to_owned())).unwrap_or_default())
    }

    /// vLLM's list of event streams; versions that have none do not say where theirs are.
    async fn streams(&mut self) -> Result<Result<Vec<Source>, String>, NotReady> {
        let (status, body) = self.client.get_body("/kv_event_sources", self.limits(DESCRIPTION_BODY)).await?;
        if status != 200 {
            return Ok(Ok(Vec::new()));
        }
        let said = serde_json::from_slice::<Value>(&body).map_err(|e| e.to_string());
        Ok(said.and_then(|said| endpoints::vllm(&said, self.client.host())))
    }

    /// vLLM's connector: from its configuration, which only its development mode shows, else from what is on the page.
    async fn connector(&mut self) -> Result<Said, NotReady> {
        let path = "/server_info?config_format=json";
        let (status, body) = self.client.get_body(path, self.limits(DESCRIPTION_BODY)).await?;
        let info = serde_json::from_slice::<Value>(&body).ok().filter(|_| status == 200);
        let said = info.as_ref().map(transfer::vllm).unwrap_or_default();
        let page = said.handoff.is_none() && self.reader.finish().has_nixl();
        Ok(if page { Said { role: said.role, ..Said::nixl() } } else { said })
    }

    /// The engine's part in hand-offs. One that prefills is ready only when its bootstrap server is: until then decode
    /// instances that are sent to it wait in vain.
    async fn part(
        &self,
        said: &Said,
        kind: EngineKind,
        version: &str,
        ranks: u16,
    ) -> Result<Settled, NotReady> {
        let told = &self.settings.transfer;
        let mut part = transfer::settle(told, said, &self.settings.host, kind, version);
        let Some(transfer) = &mut part.transfer else { return Ok(part) };
        let Some((_, port)) = transfer.bootstrap.as_deref().and_then(|place| place.rsplit_once(':')) else {
            return Ok(part);
        };
        // An address that was given is believed; else the server is where this agent reaches its engine.
        let own = || self.settings.origin.beside(port);
        let address = told.bootstrap.clone().unwrap_or_else(own);
        match (transfer.handoff, part.role) {
            (Handoff::Sglang, ServingRole::Prefill) => {
                transfer::route(&address, self.limits(DESCRIPTION_BODY)).await?;
            }
            (Handoff::Mooncake, ServingRole::Prefill | ServingRole::Both) => {
                let limits = self.limits(DESCRIPTION_BODY);
                transfer.engine_ids = transfer::engine_ids(&address, ranks, limits).await?;
            }
            _ => {}
        }
        Ok(part)
    }

    /// SGLang's description of itself, under the name of either generation.
    async fn server_info(&mut self) -> Result<Option<Value>, NotReady> {
        for path in ["/server_info", "/get_server_info"] {
            let (status, body) = self.client.get_body(path, self.limits(DESCRIPTION_BODY)).await?;
            if status != 200 {
                continue;
            }
            let Ok(said) = serde_json::from_slice::<Value>(&body) else { continue };
            // vLLM in development mode has a page of the same name with another content.
            if said.get("model_path").is_some() || said.get("tp_size").is_some() {
                return Ok(Some(said));
            }
        }
        Ok(None)
    }
}

/// A text from outside, fit for a message: no control characters, at most `max` bytes.
pub(crate) fn cleaned(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}

//! One engine: its model behind a lock, the task that runs its steps in real time, and the requests that wait for
//! them.
//!
//! Everything that changes happens under one mutex, held for a step's bookkeeping and never across an await; on the
//! simulator's single thread it is uncontended. An idle engine has no timer: the step task sleeps on a notification.

use crate::events::{EventLog, Origin};
use crate::faults::{BadFaults, Faults};
use crate::handoff::Handover;
use crate::model::{Model, ModelOptions, Progress, Refused, SeqId, SeqSpec};
use crate::options::SimOptions;
use crate::prompt;
use crate::text;
use crate::tokenise::Tokeniser;
use ahash::RandomState;
use bytes::Bytes;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Method, Uri};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, watch};

/// A step that ends later than this is not caught up with: the engine is slower than its profile instead.
const MAX_LAG: Duration = Duration::from_millis(50);
/// Window of the generation rate.
const RATE_WINDOW: f64 = 1.0;

/// Locks, whatever a panicking holder left: the data are counters and queues that stay usable.
pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the listener and the connections obey.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gate {
    /// No listener, no connections.
    pub refuse: bool,
    /// For good.
    pub stop: bool,
    /// Counts the times that all connections were reset.
    pub resets: u64,
}

/// The request that came last, as it arrived.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastRequest {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl LastRequest {
    pub fn of(method: &Method, target: &Uri, headers: &HeaderMap, body: Bytes) -> Self {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Self {
            method: method.to_string(),
            target: target.to_string(),
            headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            body,
        }
    }
}

/// Counts of what came over HTTP.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    pub requests: u64,
    pub completed: u64,
    pub aborted: u64,
    pub refused: u64,
    pub in_flight: u64,
    pub connections: u64,
    pub connections_total: u64,
    pub broken_bodies: u64,
    pub by_route: BTreeMap<&'static str, u64>,
    pub last: Option<LastRequest>,
}

pub(crate) struct Core {
    pub model: Model,
    pub faults: Faults,
    pub faults_version: u64,
    pub traffic: Traffic,
    pub behind: f64,
    jobs: HashMap<SeqId, (Arc<Job>, usize), RandomState>,
    rate_from: f64,
    rate_tokens: u64,
    pub rate: f64,
}

impl Core {
    /// Sequences that the engine works on though nobody waits for them.
    pub fn orphaned(&self) -> usize {
        self.jobs.values().filter(|(job, _)| job.listeners() == 0).count()
    }
}

pub(crate) struct Engine {
    pub options: SimOptions,
    pub core: Mutex<Core>,
    pub gate: watch::Sender<Gate>,
    work: Notify,
    started: Instant,
    pub started_unix: f64,
    ids: AtomicU64,
    id_base: u64,
    pub events: Option<Arc<EventLog>>,
    pub tokeniser: Option<Tokeniser>,
    pub handover: Option<Arc<Handover>>,
}

/// A prompt as the model takes it.
pub(crate) struct Prepared {
    pub path: Arc<[u64]>,
    pub tokens: u32,
    /// Seed of its answer.
    pub seed: u64,
    pub origin: Option<Arc<Origin>>,
}

impl Engine {
    pub fn new(
        options: SimOptions,
        events: Option<Arc<EventLog>>,
        handover: Option<Arc<Handover>>,
    ) -> Arc<Self> {
        let model = Model::new(ModelOptions {
            profile: options.profile.clone(),
            block_tokens: options.block_tokens,
            kv_blocks: options.blocks(),
            max_waiting: options.max_waiting,
            prefix_caching: options.prefix_caching,
            track: events.is_some(),
            tell_reused: options.kv_events.as_ref().is_some_and(|e| e.tell_reused),
            sparse: false,
        });
        let started_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let faults = options.faults.clone();
        let gate = watch::Sender::new(Gate { refuse: faults.refuse, ..Gate::default() });
        let id_base = text::mix(started_unix.to_bits() ^ xxhash_rust::xxh3::xxh3_64(options.name.as_bytes()));
        Arc::new(Self {
            core: Mutex::new(Core {
                model,
                faults,
                faults_version: 0,
                traffic: Traffic::default(),
                behind: 0.0,
                jobs: HashMap::default(),
                rate_from: 0.0,
                rate_tokens: 0,
                rate: 0.0,
            }),
            gate,
            work: Notify::new(),
            started: Instant::now(),
            started_unix,
            ids: AtomicU64::new(0),
            id_base,
            events,
            tokeniser: options.tokenizer.clone().map(Tokeniser::new),
            handover,
            options,
        })
    }

    pub fn core(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    /// Seconds since the start.
    pub fn now(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Unix time in whole seconds.
    pub fn unix_now(&self) -> u64 {
        (self.started_unix + self.now()) as u64
    }

    pub fn ready(&self) -> bool {
        self.started.elapsed() >= self.options.startup && !self.core().faults.unready
    }

    /// A name for an answer, different in every engine.
    pub fn new_id(&self) -> String {
        let n = self.ids.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{:016x}", self.id_base, text::mix(self.id_base ^ n))
    }

    /// Changes what goes wrong. Returns the version of this setting, for a later [`Self::end_faults`].
    pub fn set_faults(&self, faults: Faults) -> Result<u64, BadFaults> {
        faults.validate()?;
        let refuse = faults.refuse;
        let version = {
            let mut core = self.core();
            core.faults = faults;
            core.faults_version += 1;
            core.faults_version
        };
        self.gate.send_if_modified(|g| {
            let changed = g.refuse != refuse;
            if refuse && !g.refuse {
                g.resets += 1;
            }
            g.refuse = refuse;
            changed
        });
        Ok(version)
    }

    /// Ends the faults unless they were set anew since.
    pub fn end_faults(&self, version: u64) {
        if self.core().faults_version == version {
            _ = self.set_faults(Faults::default());
        }
    }

    /// Closes the listener and resets all connections, for good.
    pub fn stop(&self) {
        self.gate.send_modify(|g| {
            g.stop = true;
            g.resets += 1;
        });
        self.work.notify_one();
    }

    pub fn stopped(&self) -> bool {
        self.gate.borrow().stop
    }

    /// Enters all sequences of a request, or none.
    pub fn submit(self: &Arc<Self>, specs: &[SeqSpec]) -> Result<Ticket, Refused> {
        let now = self.now();
        let job = Arc::new(Job::new(specs.len()));
        let mut ids = Vec::with_capacity(specs.len());
        {
            let mut core = self.core();
            for spec in specs {
                if let Err(e) = core.model.check(spec, specs.len()) {
                    core.model.stats_mut().rejected += 1;
                    return Err(e);
                }
            }
            for (at, spec) in specs.iter().enumerate() {
                let id = core.model.submit(spec.clone(), now)?;
                core.jobs.insert(id, (Arc::clone(&job), at));
                ids.push(id);
            }
        }
        self.work.notify_one();
        Ok(Ticket { engine: Arc::clone(self), job, ids })
    }

    /// Prepares a prompt. Served names of one model share its blocks, adapters do not.
    pub fn prepare(&self, model: &str, salt: &str, prompt: &[u8]) -> Prepared {
        let lora = self.options.loras.iter().find(|n| *n == model);
        let name = lora.unwrap_or(&self.options.models[0]);
        let origin = self.events.is_some().then(|| {
            let (salt, lora) = (salt.to_owned(), lora.cloned().unwrap_or_default());
            Arc::new(Origin { tokens: prompt::token_ids(prompt), salt, lora })
        });
        Prepared {
            path: prompt::block_hashes(prompt, name, salt, self.options.block_tokens),
            tokens: prompt::count_tokens(prompt),
            seed: prompt::seed(prompt),
            origin,
        }
    }

    /// Leading tokens of a prompt that the cache has now.
    pub fn cached_tokens(&self, spec: &SeqSpec) -> u32 {
        self.core().model.cached_blocks(&spec.path, spec.prompt_tokens) * self.options.block_tokens
    }

    /// Whether an address that a request names is this engine's.
    pub fn is_at(&self, host: &str, port: u16) -> bool {
        let own = self.options.listen;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let same = host == own.ip().to_string() || (host == "localhost" && own.ip().is_loopback());
        port == own.port() && (own.ip().is_unspecified() || same)
    }

    /// Forgets every cached prefix that no running sequence holds.
    pub fn clear_cache(&self) {
        let now = self.now();
        let mut core = self.core();
        core.model.clear_cache();
        self.tell(&mut core, now);
    }

    /// Publishes what became of the cache.
    fn tell(&self, core: &mut Core, now: f64) {
        if let Some(events) = &self.events {
            let changes = core.model.take_changes();
            events.batch(self.started_unix + now, &changes, &mut core.faults);
        }
    }

    /// Runs steps for as long as there is work, each ending when its profile says.
    pub async fn run(self: Arc<Self>) {
        let mut progress = Vec::new();
        let mut at = Instant::now();
        let mut idle = true;
        while !self.stopped() {
            let step = {
                let mut core = self.core();
                let slow = core.faults.slowness();
                let now = self.now();
                let step = core.model.begin_step(now);
                step.map(|s| s * slow / self.options.speed)
            };
            let Some(seconds) = step else {
                idle = true;
                self.work.notified().await;
                continue;
            };
            let now = Instant::now();
            if idle {
                (at, idle) = (now, false);
            } else if let Some(lag) = now.checked_duration_since(at).filter(|l| *l > MAX_LAG) {
                self.core().behind += lag.as_secs_f64();
                at = now;
            }
            at += Duration::from_secs_f64(seconds.min(3600.0));
            if at > now {
                tokio::time::sleep_until(at.into()).await;
            } else {
                tokio::task::yield_now().await;
            }
            self.end_step(&mut progress);
        }
    }

    fn end_step(&self, progress: &mut Vec<Progress>) {
        let now = self.now();
        let mut core = self.core();
        let before = core.model.stats().generation_tokens;
        core.model.end_step(now, progress);
        self.tell(&mut core, now);
        core.rate_tokens += core.model.stats().generation_tokens - before;
        if now - core.rate_from >= RATE_WINDOW {
            core.rate = core.rate_tokens as f64 / (now - core.rate_from);
            (core.rate_from, core.rate_tokens) = (now, 0);
        }
        for p in progress.drain(..) {
            if p.finished {
                if let Some((job, at)) = core.jobs.remove(&p.id) {
                    job.advance(at, p);
                }
            } else if let Some((job, at)) = core.jobs.get(&p.id) {
                job.advance(*at, p);
            }
        }
    }
}

/// How far a sequence has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SeqState {
    pub emitted: u32,
    pub cached: u32,
    pub done: bool,
}

/// The meeting place of the engine, which counts tokens, and the answer, which writes them. Tokens are a function
/// of the prompt, so a count is all that is kept for a slow reader.
pub(crate) struct Job {
    inner: Mutex<JobInner>,
}

struct JobInner {
    seqs: Vec<SeqState>,
    waker: Option<Waker>,
    changed: bool,
    listening: bool,
}

impl Job {
    fn new(seqs: usize) -> Self {
        let inner =
            JobInner { seqs: vec![SeqState::default(); seqs], waker: None, changed: false, listening: true };
        Self { inner: Mutex::new(inner) }
    }

    fn listeners(&self) -> usize {
        usize::from(lock(&self.inner).listening)
    }

    fn advance(&self, at: usize, p: Progress) {
        let mut inner = lock(&self.inner);
        if let Some(s) = inner.seqs.get_mut(at) {
            *s = SeqState { emitted: p.emitted, cached: p.cached, done: p.finished };
        }
        inner.changed = true;
        if let Some(w) = inner.waker.take() {
            w.wake();
        }
    }
}

/// A claim on sequences in the engine. Dropped before they end, it aborts them.
pub(crate) struct Ticket {
    engine: Arc<Engine>,
    job: Arc<Job>,
    ids: Vec<SeqId>,
}

impl Ticket {
    /// Copies the state of all sequences into `into` once something has changed.
    pub fn poll_change(&self, cx: &mut Context<'_>, into: &mut Vec<SeqState>) -> Poll<()> {
        let mut inner = lock(&self.job.inner);
        if !inner.changed {
            inner.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        inner.changed = false;
        into.clear();
        into.extend_from_slice(&inner.seqs);
        Poll::Ready(())
    }

    /// Waits for the end of all sequences.
    pub async fn finished(&self) -> Vec<SeqState> {
        let mut state = Vec::new();
        loop {
            std::future::poll_fn(|cx| self.poll_change(cx, &mut state)).await;
            if state.iter().all(|s| s.done) {
                return state;
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock(&self.job.inner).listening = false;
        let mut core = self.engine.core();
        for id in &self.ids {
            if core.jobs.remove(id).is_some() {
                core.model.abort(*id);
            }
        }
    }
}

/// One request on a prompt route, from its head to the last byte of its answer.
pub(crate) struct Visit {
    engine: Arc<Engine>,
    completed: bool,
}

impl Visit {
    pub fn new(engine: &Arc<Engine>) -> Self {
        let mut core = engine.core();
        core.traffic.requests += 1;
        core.traffic.in_flight += 1;
        drop(core);
        Self { engine: Arc::clone(engine), completed: false }
    }

    /// The whole answer was handed to the connection.
    pub fn complete(&mut self) {
        self.completed = true;
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut core = self.engine.core();
        core.traffic.in_flight -= 1;
        if self.completed {
            core.traffic.completed += 1;
        } else {
            core.traffic.aborted += 1;
        }
    }
}

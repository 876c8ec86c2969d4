//! The engine's side: waits until it is ready, probes it, reads its figures.

use crate::clock::now_us;
use crate::engine::{Description, Engine, ScrapeError, cleaned};
use crate::http::HttpError;
use crate::incarnation::Incarnation;
use crate::kv;
use crate::kv::endpoints::{self, Source};
use crate::metrics::expected;
use crate::options::{KvEvents, Settings};
use crate::state::{AgentState, Published, Stats};
use crate::tracker::{Seen, Tracker, same_figures};
use crate::transfer::needs_peer;
use fairlead_wire::msg::{EngineKind, InstanceInfo, RankLoad, ServingRole};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// Probes in a row without an answer in time after which the engine counts as gone. A busy engine may miss one; a
/// refused connection or an error status needs no second.
const SILENT_PROBES: u32 = 3;
/// Scrapes in a row that fail before the last figures count as unknown.
const FAILED_SCRAPES: u32 = 3;
/// First pause of the wait for an engine.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// A wait is mentioned again in the log after this long.
const REMIND: Duration = Duration::from_secs(30);
/// Longest reason sent to the scheduler, bytes.
const REASON_MAX: usize = 200;

pub(crate) struct Monitor {
    settings: Arc<Settings>,
    engine: Engine,
    published: watch::Sender<Published>,
    streams: watch::Sender<Option<Arc<kv::Engine>>>,
    state: watch::Sender<AgentState>,
    stats: Arc<Stats>,
    tracker: Tracker,
    incarnation: Incarnation,
    /// Figures of the last scrape; its memory is used again for the next.
    loads: Vec<RankLoad>,
    /// Expected figures whose absence the log has mentioned.
    said: u32,
    said_no_page: bool,
}

/// What comes next for a ready engine.
struct Schedule {
    probe: Instant,
    /// When a closed connection may next bring the probe forward.
    early: Instant,
    scrape: Instant,
    models: Instant,
    /// Pause between scrapes: `scrape_busy` while there is work, doubling to `scrape_idle` without.
    pause: Duration,
    silent: u32,
    failed_scrapes: u32,
}

/// Why the engine is described anew.
enum Ended {
    /// It is gone. `suspect`: it may come back as another process.
    Lost { why: String, suspect: bool },
    /// It is another life than the one described.
    Restarted,
}

impl Monitor {
    pub fn new(
        settings: Arc<Settings>,
        published: watch::Sender<Published>,
        streams: watch::Sender<Option<Arc<kv::Engine>>>,
        state: watch::Sender<AgentState>,
        stats: Arc<Stats>,
    ) -> Self {
        let engine = Engine::new(settings.clone());
        Self {
            settings,
            engine,
            published,
            streams,
            state,
            stats,
            tracker: Tracker::default(),
            incarnation: Incarnation::default(),
            loads: Vec::new(),
            said: 0,
            said_no_page: false,
        }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut suspect = false;
        loop {
            let description = self.wait_until_ready().await;
            self.became_ready(&description, suspect);
            match self.watch(description).await {
                Ended::Lost { why, suspect: lost } => {
                    tracing::warn!(instance = self.settings.name, "engine is not ready: {why}");
                    self.set_not_ready(&why);
                    suspect = lost;
                }
                // Its new life is already named.
                Ended::Restarted => suspect = false,
            }
        }
    }

    /// Asks until the engine has described itself.
    async fn wait_until_ready(&mut self) -> Description {
        let mut pause = FIRST_WAIT.min(self.settings.intervals.wait);
        let mut mentioned: Option<(String, Instant)> = None;
        loop {
            let why = match self.engine.describe().await {
                Ok(description) => return description,
                Err(why) => why.to_string(),
            };
            let news = mentioned.as_ref().is_none_or(|(before, at)| *before != why || at.elapsed() >= REMIND);
            if news {
                tracing::info!(
                    instance = self.settings.name,
                    engine = self.settings.origin.authority(),
                    "waiting for the engine: {why}"
                );
                mentioned = Some((why.clone(), Instant::now()));
            }
            self.set_not_ready(&why);
            sleep(pause).await;
            pause = (pause * 2).min(self.settings.intervals.wait);
        }
    }

    fn became_ready(&mut self, description: &Description, suspect: bool) {
        let taken_us = now_us();
        let mut seen = Seen::default();
        let figures = description.no_page.is_none();
        if figures {
            seen = self.tracker.fold(self.engine.sample(), description.kind, taken_us, &mut self.loads);
        } else {
            self.loads.clear();
        }
        if self.incarnation.seen(description.started, suspect || seen.went_back) {
            self.restarted();
            if figures {
                self.tracker.fold(self.engine.sample(), description.kind, taken_us, &mut self.loads);
            }
        }
        adjust(&mut self.loads, description, self.engine.sample().is_ranked());
        self.mention_unknown(description);
        let instance = Arc::new(self.instance(description));
        tracing::info!(
            instance = instance.name,
            engine = ?instance.engine,
            version = instance.engine_version,
            models = ?instance.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(),
            ranks = instance.dp_ranks,
            role = ?instance.role,
            handoff = instance.transfer.as_ref().map(|transfer| transfer.handoff.as_str()),
            "engine is ready"
        );
        if let Some(lack) = lack(&instance) {
            tracing::warn!(instance = instance.name, "{lack}");
        }
        self.stats.ready.store(true, Relaxed);
        self.stats.engine.store(description.kind as u32, Relaxed);
        self.publish_streams(description, &instance);
        self.publish_instance(instance);
    }

    /// Forgets the old life's counters.
    fn restarted(&mut self) {
        tracing::info!(instance = self.settings.name, "engine was restarted: its cache counts as empty");
        self.stats.engine_restarts.fetch_add(1, Relaxed);
        self.said = 0;
        self.tracker.reset();
    }

    /// Stays with a ready engine until it is lost or restarted.
    async fn watch(&mut self, mut description: Description) -> Ended {
        let intervals = self.settings.intervals;
        let now = Instant::now();
        let mut next = Schedule {
            probe: now + self.settings.phase(intervals.probe),
            early: now,
            scrape: now + self.settings.phase(intervals.scrape_busy),
            models: now + self.settings.phase(intervals.models),
            pause: intervals.scrape_busy,
            silent: 0,
            failed_scrapes: 0,
        };
        loop {
            let due = next.probe.min(next.scrape).min(next.models);
            tokio::select! {
                () = sleep_until(due) => {}
                // A closed connection is how a killed engine looks before anybody asks it. Once an interval at most: there
                // are servers that close after every answer, the probe's own included.
                () = self.engine.closed() => if next.early <= Instant::now() {
                    next.probe = Instant::now();
                    next.early = next.probe + intervals.probe;
                },
            }
            if next.probe <= Instant::now()
                && let Some(ended) = self.probe(&mut next).await
            {
                return ended;
            }
            if next.silent > 0 {
                // Nothing else is asked of an engine that may hang: each question would delay the verdict.
                continue;
            }
            if next.scrape <= Instant::now()
                && let Some(ended) = self.scrape(&description, &mut next).await
            {
                return ended;
            }
            if next.models <= Instant::now() {
                next.models = Instant::now() + intervals.models;
                // A failure here is the next probe's business.
                if let Ok(models) = self.engine.models().await
                    && models != description.models
                {
                    tracing::info!(
                        instance = self.settings.name,
                        ?models,
                        "the engine's models have changed"
                    );
                    description.models = models;
                    let instance = Arc::new(self.instance(&description));
                    self.publish_streams(&description, &instance);
                    self.publish_instance(instance);
                }
            }
        }
    }

    async fn probe(&mut self, next: &mut Schedule) -> Option<Ended> {
        self.stats.probes.fetch_add(1, Relaxed);
        let result = self.engine.probe().await;
        next.probe = Instant::now() + self.settings.intervals.probe;
        let Err(why) = result else {
            next.silent = 0;
            return None;
        };
        self.stats.probe_failures.fetch_add(1, Relaxed);
        let silent = why.is_timeout();
        if silent {
            next.silent += 1;
            if next.silent < SILENT_PROBES {
                // Asked again at once: the time for an answer has already been waited.
                next.probe = Instant::now();
                return None;
            }
        }
        // A hung engine that answers again is judged by its counters; any other may have died.
        Some(Ended::Lost { why: why.to_string(), suspect: !silent })
    }

    async fn scrape(&mut self, description: &Description, next: &mut Schedule) -> Option<Ended> {
        let intervals = self.settings.intervals;
        self.stats.scrapes.fetch_add(1, Relaxed);
        let result = self.engine.scrape().await.map(drop);
        let taken_us = now_us();
        if let Err(error) = result {
            self.stats.scrape_failures.fetch_add(1, Relaxed);
            next.failed_scrapes += 1;
            next.scrape = Instant::now() + intervals.scrape_idle;
            match error {
                ScrapeError::Http(HttpError::Connect { .. } | HttpError::Broken { .. }) => {
                    next.probe = Instant::now();
                }
                // No such page: it will hardly appear.
                ScrapeError::Status(_) => next.scrape = Instant::now() + intervals.models,
                ScrapeError::Http(_) => {}
            }
            if next.failed_scrapes >= FAILED_SCRAPES && !self.loads.is_empty() {
                tracing::warn!(instance = self.settings.name, "the engine's load is unknown: {error}");
                self.loads.clear();
                self.publish_loads();
            }
            return None;
        }
        next.failed_scrapes = 0;
        let seen = self.tracker.fold(self.engine.sample(), description.kind, taken_us, &mut self.loads);
        let started = self.engine.sample().started();
        if self.incarnation.seen(started, seen.went_back) {
            self.restarted();
            // Described again, because a new process may serve other models.
            return Some(Ended::Restarted);
        }
        adjust(&mut self.loads, description, self.engine.sample().is_ranked());
        self.mention_unknown(description);
        next.pause =
            if seen.busy { intervals.scrape_busy } else { (next.pause * 2).min(intervals.scrape_idle) };
        next.scrape = Instant::now() + next.pause;
        self.publish_loads();
        None
    }

    fn instance(&self, description: &Description) -> InstanceInfo {
        InstanceInfo {
            incarnation: self.incarnation.current(),
            engine: description.kind,
            engine_version: description.version.clone(),
            models: description.models.clone(),
            role: description.part.role,
            transfer: description.part.transfer.clone(),
            dp_ranks: description.dp_ranks,
            block_size: description.block_size,
            kv_blocks: description.kv_blocks,
            max_num_seqs: description.max_num_seqs,
            ..self.settings.instance()
        }
    }

    /// Says once in each life what the engine does not report.
    fn mention_unknown(&mut self, description: &Description) {
        if let Some(error) = &description.no_page {
            if !self.said_no_page {
                tracing::warn!(instance = self.settings.name, "the engine's load is unknown: {error}");
                self.said_no_page = true;
            }
            return;
        }
        let expected = expected(description.kind);
        if expected.is_empty() && !self.said_no_page {
            tracing::warn!(
                instance = self.settings.name,
                "the engine's load is unknown: no known names on /metrics"
            );
            self.said_no_page = true;
        }
        let known = self.engine.sample().known();
        let mut unknown = 0;
        for (at, (fields, name)) in expected.iter().enumerate() {
            if known & fields == 0 {
                unknown |= 1 << at;
                if self.said & 1 << at == 0 {
                    self.said |= 1 << at;
                    tracing::warn!(
                        instance = self.settings.name,
                        metric = name,
                        "not reported by the engine: unknown"
                    );
                }
            }
        }
        self.stats.unknown.store(unknown, Relaxed);
    }

    fn publish_instance(&self, instance: Arc<InstanceInfo>) {
        let ranks = self.loads.clone();
        self.state.send_modify(|state| {
            state.ready = true;
            state.reason = None;
            state.registered = false;
            state.instance = Some(instance.clone());
        });
        self.published.send_replace(Published { instance: Some(instance), ready: true, reason: None, ranks });
    }

    /// Says what streams of KV-cache events there are.
    fn publish_streams(&self, description: &Description, instance: &InstanceInfo) {
        let sources = self.sources(description);
        let base = instance.models.iter().find(|model| model.parent.is_none()).or(instance.models.first());
        let engine = kv::Engine {
            incarnation: instance.incarnation,
            ranks: instance.dp_ranks,
            model: base.map(|model| model.name.clone()).unwrap_or_default(),
            // SGLang's tree holds each page once.
            copies: instance.kv_blocks.filter(|_| instance.engine == EngineKind::Vllm),
            sources,
        };
        self.streams.send_if_modified(|known| {
            let news = known.as_ref().is_none_or(|known| **known != engine);
            if news {
                if known.as_ref().is_none_or(|known| known.sources != engine.sources) {
                    tracing::info!(
                        instance = self.settings.name,
                        streams = engine.sources.len(),
                        "streams of KV-cache events"
                    );
                }
                *known = Some(Arc::new(engine));
            }
            news
        });
    }

    fn sources(&self, description: &Description) -> Vec<Source> {
        match (&self.settings.kv_events, &description.streams) {
            (KvEvents::Off, _) => Vec::new(),
            (KvEvents::At { events, replay }, _) => {
                endpoints::given(events, replay, self.settings.origin.host(), description.dp_ranks)
            }
            (KvEvents::Auto, Ok(sources)) => sources.clone(),
            (KvEvents::Auto, Err(why)) => {
                tracing::warn!(
                    instance = self.settings.name,
                    "the engine's KV-cache events cannot be followed: {why}"
                );
                Vec::new()
            }
        }
    }

    fn publish_loads(&self) {
        self.published.send_if_modified(|published| {
            let news = !same_figures(&published.ranks, &self.loads);
            // The time of taking goes out with the next heartbeat in any case.
            published.ranks.clone_from(&self.loads);
            news
        });
    }

    fn set_not_ready(&mut self, why: &str) {
        let why = cleaned(why, REASON_MAX);
        self.stats.ready.store(false, Relaxed);
        self.loads.clear();
        self.state.send_if_modified(|state| {
            let news = state.ready || state.reason.as_deref() != Some(&why);
            state.ready = false;
            state.reason = Some(why.clone());
            news
        });
        self.published.send_if_modified(|published| {
            let news = published.ready || published.reason.as_deref() != Some(&why);
            published.ready = false;
            published.ranks.clear();
            published.reason = Some(why);
            news
        });
    }
}

/// What an instance that has a part to play in hand-offs lacks for it.
fn lack(instance: &InstanceInfo) -> Option<String> {
    match &instance.transfer {
        None if instance.role != ServingRole::Both => Some(format!(
            "the engine's role is {:?}, but how it hands KV over is not known: give --handoff NAME",
            instance.role
        )),
        Some(transfer) if transfer.peer.is_none() && needs_peer(transfer.handoff, instance.role) => {
            Some(format!(
                "where the connector's socket is is not known: give --peer HOST:PORT for {}",
                transfer.handoff.as_str()
            ))
        }
        _ => None,
    }
}

/// Brings the page's figures in line with what the engine said of itself.
fn adjust(loads: &mut Vec<RankLoad>, description: &Description, ranked: bool) {
    if description.dp_ranks > 1 && !ranked {
        // One figure for several ranks is nobody's.
        loads.clear();
    }
    loads.truncate(usize::from(description.dp_ranks));
    for load in loads {
        load.utilization = utilization(load, description.max_num_seqs);
        if description.kind != EngineKind::Generic {
            load.kv_total_tokens = load.kv_total_tokens.or(description.kv_tokens);
        }
    }
}

/// Share of what a rank can take that is in use: as the engine computes it, else the fuller of its KV room and its
/// batch. SGLang has the metric but leaves it at zero unless told of a limit, so its zero tells nothing.
fn utilization(load: &RankLoad, max_num_seqs: Option<u32>) -> Option<f32> {
    let batch = || Some((load.running? as f32 / max_num_seqs.filter(|most| *most > 0)? as f32).min(1.0));
    let reckoned = match (load.kv_usage, batch()) {
        (Some(kv), Some(batch)) => Some(kv.max(batch)),
        (kv, batch) => kv.or(batch),
    };
    load.utilization.filter(|share| *share > 0.0).or(reckoned).or(load.utilization)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utilization_is_the_engine_s_own_or_the_fuller_of_room_and_batch() {
        for (own, kv, running, most, want) in [
            (Some(0.25), Some(0.5), Some(8), Some(10), Some(0.25)),
            (Some(0.0), Some(0.5), Some(8), Some(10), Some(0.8)),
            (None, Some(0.5), Some(8), Some(10), Some(0.8)),
            (None, Some(0.5), Some(8), None, Some(0.5)),
            (None, Some(0.5), None, Some(10), Some(0.5)),
            (None, None, Some(20), Some(10), Some(1.0)),
            (None, None, Some(20), Some(0), None),
            (Some(0.0), None, None, None, Some(0.0)),
            (None, None, None, None, None),
        ] {
            let load = RankLoad { utilization: own, kv_usage: kv, running, ..RankLoad::default() };
            assert_eq!(utilization(&load, most), want, "{own:?} {kv:?} {running:?} {most:?}");
        }
    }
}

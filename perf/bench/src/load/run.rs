//! Runs a load.

use super::args::{Arrivals, BadArgs, LoadArgs, Plan};
use super::bound::InfiniteCache;
use super::client::{BadTarget, Client};
use super::report::{Recorder, Report};
use super::workload::{Player, Script, Source};
use crate::machine;
use crate::rng::Rng;
use bytes::Bytes;
use fairlead_sim::trace::{Trace, TraceError};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Why a load could not run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An option is out of range.
    #[error(transparent)]
    Args(#[from] BadArgs),
    /// The trace cannot be played.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The endpoint cannot be named.
    #[error(transparent)]
    Target(#[from] BadTarget),
    /// No model was given and the endpoint names none.
    #[error("cannot learn the model from {url}/v1/models: {reason}; give --model")]
    Model {
        /// Endpoint.
        url: String,
        /// Why.
        reason: String,
    },
    /// The result could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The histograms could not be made.
    #[error("cannot record times: {0}")]
    Record(#[from] hdrhistogram::CreationError),
}

/// Longest think time.
const MOST_THINK: Duration = Duration::from_secs(86_400);
/// Pause of a closed loop after a failure.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

struct Shared {
    clients: Vec<Client>,
    source: Source,
    model: String,
    args: LoadArgs,
    recorder: Mutex<Recorder>,
    bound: Mutex<InfiniteCache>,
    end: Option<Instant>,
    stopping: AtomicBool,
    stop: Notify,
    /// Requests that may still start.
    requests_left: AtomicU64,
    /// Requests started.
    started: AtomicU64,
    /// Of these, the first so many are warm-up.
    warm_up: u64,
    next_session: AtomicU64,
    sessions: u64,
    in_flight: AtomicUsize,
    active: AtomicUsize,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn over(&self) -> bool {
        self.stopping.load(Relaxed) || self.end.is_some_and(|e| Instant::now() >= e)
    }

    /// Waits until `due`; false if the run is over first.
    async fn wait(&self, due: Instant) -> bool {
        let until = self.end.map_or(due, |e| e.min(due));
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => {}
            () = self.stop.notified() => {}
        }
        !self.over()
    }

    fn may_start_request(&self) -> bool {
        self.requests_left.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok()
    }

    /// Runs one conversation from its first turn, due at `due`. False if a request failed.
    async fn session(&self, number: u64, mut due: Instant) -> bool {
        let mut dialogue = self.source.open(number);
        let limit = Duration::from_secs_f64(self.args.timeout);
        let mut first = true;
        while let Some(think) = dialogue.think() {
            if !std::mem::take(&mut first) {
                due = Instant::now() + think.min(MOST_THINK);
                if !think.is_zero() && !self.wait(due).await {
                    return true;
                }
            }
            if self.over() || !self.may_start_request() {
                return true;
            }
            let request = self.started.fetch_add(1, Relaxed);
            let warm_up = request < self.warm_up;
            let body = {
                let mut bound = lock(&self.bound);
                bound.count(!warm_up);
                dialogue.ask(&self.model, &mut bound)
            };
            let client = &self.clients[request as usize % self.clients.len()];
            let counted = Count::new(&self.in_flight);
            let sent = Instant::now();
            let asked = client.chat(Bytes::from(body), self.args.stream);
            let outcome = match tokio::time::timeout(limit, asked).await {
                Ok(o) => o,
                Err(_) => super::client::Outcome::timed_out(limit),
            };
            drop(counted);
            lock(&self.recorder).record(due, sent, warm_up, &outcome);
            if outcome.error.is_some() {
                return false;
            }
            dialogue.answered(&outcome.text);
        }
        lock(&self.recorder).report.sessions += 1;
        true
    }

    fn take_session(&self) -> Option<u64> {
        let n = self.next_session.fetch_add(1, Relaxed);
        (n < self.sessions).then_some(n)
    }
}

/// One more for as long as it lives.
struct Count<'a>(&'a AtomicUsize);

impl<'a> Count<'a> {
    fn new(of: &'a AtomicUsize) -> Self {
        of.fetch_add(1, Relaxed);
        Self(of)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

async fn first_model(client: &Client, url: &str) -> Result<String, LoadError> {
    let failed = |reason: String| LoadError::Model { url: url.to_owned(), reason };
    let body = client.get("/v1/models").await.map_err(failed)?;
    let list: serde_json::Value = serde_json::from_slice(&body).map_err(|e| failed(e.to_string()))?;
    match list["data"][0]["id"].as_str() {
        Some(m) => Ok(m.to_owned()),
        None => Err(failed("it lists none".into())),
    }
}

fn describe(args: &LoadArgs, plan: &Plan) -> String {
    let arrivals = match plan.arrivals {
        Arrivals::Closed(c) => format!("concurrency {c}"),
        Arrivals::Open(r) if plan.turns > 1 => format!("{r:.3} conversations/s"),
        Arrivals::Open(r) => format!("{r:.1} requests/s"),
        Arrivals::Recorded => format!("speed {}", args.speed),
    };
    if let Some(path) = &args.trace {
        let name = path.file_name().map_or_else(|| path.to_string_lossy(), |n| n.to_string_lossy());
        let scaled =
            if args.out_scale == 1.0 { String::new() } else { format!(", answers × {}", args.out_scale) };
        return format!("{name}, {arrivals}{scaled}");
    }
    let what = match plan.turns {
        1 => "single requests".to_owned(),
        k => format!("conversations of {k} turns, think time {} s", args.think),
    };
    format!("{what}, {arrivals}, {}+{}+{} tokens", args.system_tokens, args.user_tokens, args.output_tokens)
}

/// Runs the load that `args` describe, on the runtime it is called on, and writes the JSON file if one is asked for.
/// Ctrl-C ends it early: no further request starts; a second one cuts off what is under way.
pub async fn run(args: &LoadArgs) -> Result<Report, LoadError> {
    let trace = args.trace.as_deref().map(|path| Trace::load(path, args.take())).transpose()?;
    let plan = match &trace {
        Some(trace) => args.plan_trace(trace)?,
        None => args.plan()?,
    };
    let mut clients = Vec::with_capacity(args.url.len());
    for url in &args.url {
        clients.push(Client::new(url, &args.headers).await?);
    }
    let (Some(client), Some(url)) = (clients.first(), args.url.first()) else {
        return Err(BadArgs { option: "url", reason: "give at least one".into() }.into());
    };
    let model = match &args.model {
        Some(m) => m.clone(),
        None => first_model(client, url).await?,
    };
    let mut left_out = 0;
    let mut warm_up = 0;
    let source = match trace {
        Some(trace) => {
            left_out = trace.left_out;
            warm_up = (trace.requests() as f64 * args.warm_up) as u64;
            Source::Trace(Arc::new(Player::new(trace, &model, args)))
        }
        None => {
            let tokens = [args.system_tokens, args.user_tokens, args.output_tokens];
            let script = Arc::new(Script::new(&model, args.seed, tokens, args.stream));
            Source::Script { script, turns: plan.turns, think: args.think, seed: args.seed }
        }
    };
    let start = Instant::now();
    let mut recorder = Recorder::new(start)?;
    recorder.report.url = args.url.join(", ");
    recorder.report.model = model.clone();
    recorder.report.load = describe(args, &plan);
    if left_out > 0 {
        recorder.report.warnings.push(format!("{left_out} requests with longer prompts were left out"));
    }
    recorder.report.started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    let shared = Arc::new(Shared {
        clients,
        source,
        model,
        args: args.clone(),
        recorder: Mutex::new(recorder),
        bound: Mutex::new(InfiniteCache::new(args.block_tokens)),
        end: args.duration.map(|d| start + Duration::from_secs_f64(d)),
        stopping: AtomicBool::new(false),
        stop: Notify::new(),
        requests_left: AtomicU64::new(args.requests.unwrap_or(u64::MAX)),
        started: AtomicU64::new(0),
        warm_up,
        next_session: AtomicU64::new(0),
        sessions: plan.sessions.unwrap_or(u64::MAX),
        in_flight: AtomicUsize::new(0),
        active: AtomicUsize::new(0),
    });
    let progress =
        std::io::stderr().is_terminal().then(|| tokio::spawn(show_progress(Arc::clone(&shared), start)));
    let mut tasks = JoinSet::new();
    match plan.arrivals {
        Arrivals::Closed(workers) => {
            for _ in 0..workers {
                let shared = Arc::clone(&shared);
                tasks.spawn(async move {
                    while !shared.over()
                        && let Some(n) = shared.take_session()
                    {
                        // A server that fails at once is not hammered in a busy loop.
                        if !shared.session(n, Instant::now()).await {
                            tokio::time::sleep(AFTER_FAILURE).await;
                        }
                    }
                });
            }
            finish(&shared, &mut tasks, None).await;
        }
        Arrivals::Open(rate) => {
            let mut rng = Rng::new(args.seed ^ 0x6172_7269_7665);
            let mut due = start;
            let poisson = move |_| {
                due += Duration::from_secs_f64(rng.exponential(rate).min(86_400.0));
                Some(due)
            };
            let spawner = open_loop(Arc::clone(&shared), poisson);
            finish(&shared, &mut tasks, Some(spawner)).await;
        }
        Arrivals::Recorded => {
            let played = Arc::clone(&shared);
            let recorded = move |n| match &played.source {
                Source::Trace(p) => start.checked_add(p.trace.arrival(n, p.speed)?),
                Source::Script { .. } => None,
            };
            let spawner = open_loop(Arc::clone(&shared), recorded);
            finish(&shared, &mut tasks, Some(spawner)).await;
        }
    }
    if let Some(p) = progress {
        p.abort();
        _ = p.await;
        _ = writeln!(std::io::stderr());
    }
    let unfinished = shared.in_flight.load(Relaxed) as u64;
    drop(tasks);
    let bound = lock(&shared.bound).ratio();
    let mut recorder = {
        let mut held = lock(&shared.recorder);
        std::mem::replace(&mut *held, Recorder::new(start)?)
    };
    recorder.report.unfinished = unfinished;
    let report = recorder.finish(bound);
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", report.to_json(&machine::describe()));
        std::fs::write(path, text)
            .map_err(|source| LoadError::Write { path: path.display().to_string(), source })?;
    }
    Ok(report)
}

type Started = tokio::sync::mpsc::Receiver<(u64, Instant)>;

/// Plans arrivals, of which `when` tells the times; what it sends is to be started at once.
fn open_loop(shared: Arc<Shared>, mut when: impl FnMut(u64) -> Option<Instant> + Send + 'static) -> Started {
    let (tx, rx) = tokio::sync::mpsc::channel(1024);
    tokio::spawn(async move {
        while let Some(n) = shared.take_session() {
            let Some(due) = when(n) else { return };
            if (due > Instant::now() && !shared.wait(due).await) || shared.over() {
                return;
            }
            if tx.send((n, due)).await.is_err() {
                return;
            }
        }
    });
    rx
}

/// Starts what arrives, then waits for everything under way: for ever before the end of the run, for the drain time
/// after it.
async fn finish(shared: &Arc<Shared>, tasks: &mut JoinSet<()>, mut arrivals: Option<Started>) {
    let drain = Duration::from_secs_f64(shared.args.drain);
    let mut give_up = shared.end.map(|e| e + drain);
    let (interrupted, mut interrupts) = tokio::sync::mpsc::channel(1);
    let listener = tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() && interrupted.send(()).await.is_ok() {}
    });
    let _listener = AbortOnDrop(listener);
    loop {
        let limit = async {
            match give_up {
                Some(t) => tokio::time::sleep_until(t.into()).await,
                None => std::future::pending().await,
            }
        };
        let next = async {
            match &mut arrivals {
                Some(a) => a.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            arrived = next => match arrived {
                Some((n, due)) => {
                    if shared.active.load(Relaxed) >= shared.args.max_in_flight {
                        lock(&shared.recorder).report.not_sent += 1;
                    } else {
                        shared.active.fetch_add(1, Relaxed);
                        let shared = Arc::clone(shared);
                        tasks.spawn(async move {
                            shared.session(n, due).await;
                            shared.active.fetch_sub(1, Relaxed);
                        });
                    }
                }
                None => arrivals = None,
            },
            joined = tasks.join_next(), if !tasks.is_empty() => {
                if let Some(Err(e)) = joined {
                    tracing::error!(error = %e, "a session ended abnormally");
                }
            }
            () = limit => return,
            Some(()) = interrupts.recv() => {
                if shared.stopping.swap(true, Relaxed) {
                    return;
                }
                shared.stop.notify_waiters();
                give_up = Some(Instant::now() + drain);
            }
        }
        if tasks.is_empty() && arrivals.is_none() {
            return;
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn show_progress(shared: Arc<Shared>, start: Instant) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.tick().await;
    let mut before = 0;
    let all = match &shared.source {
        Source::Trace(p) => format!(" of {}", p.trace.requests()),
        Source::Script { .. } => String::new(),
    };
    loop {
        tick.tick().await;
        let (ok, failed, cached, prompt, (p50, p99)) = {
            let r = lock(&shared.recorder);
            (r.report.ok, r.report.failed(), r.report.cached_tokens, r.report.prompt_tokens, r.ttft_now())
        };
        let hit = if prompt > 0 { cached as f64 / prompt as f64 } else { 0.0 };
        _ = write!(
            std::io::stderr(),
            "\r{:>4} s  {:>6}/s  {ok}{all} ok  {failed} failed  {} in flight  TTFT p50 {p50:.3} p99 {p99:.3} s  hit {hit:.3}   ",
            start.elapsed().as_secs(),
            ok - before,
            shared.in_flight.load(Relaxed),
        );
        before = ok;
    }
}

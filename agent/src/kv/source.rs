//! One stream followed: connected, caught up with, applied, told.

use super::endpoints::Source;
use super::follower::{Follower, Proof, Verdict};
use super::mirror::MirrorConfig;
use super::sockets::{Replay, SocketError, Subscription};
use super::stats::{Connected, Gauges, KvStats};
use super::teller::Teller;
use super::{Engine, Told, Upstream};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

/// Pauses between attempts to connect: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// The same complaint is repeated in the log after this long.
const REMIND: Duration = Duration::from_secs(30);
/// A restart that the stream showed and the engine's probes show this much later is one and the same.
const SAME_RESTART: Duration = Duration::from_secs(60);

/// Why a stream is begun again.
enum Again {
    /// The connection was lost.
    Connect(SocketError),
    /// What the mirror was made for has changed.
    Anew,
    /// Nobody is there any more to tell.
    End,
}

/// What came of one step beside the sockets.
enum Turn {
    Done,
    Anew,
    End,
}

/// What came first.
enum Step {
    Turn(Turn),
    Batch(Result<(u64, Bytes), SocketError>),
}

/// What it takes to follow a stream.
pub(crate) struct Follow {
    pub source: Source,
    pub engine: watch::Receiver<Option<Arc<Engine>>>,
    pub upstream: watch::Receiver<Upstream>,
    pub told: mpsc::Sender<Told>,
    pub stats: Arc<KvStats>,
    pub max_bytes: usize,
}

/// A stream and what has been made of it.
struct State {
    follow: Follow,
    follower: Follower,
    teller: Teller,
    gauges: Gauges,
    /// The engine's life that the mirror is of.
    incarnation: u64,
    /// The mirror says what the engine holds, as far as can be known.
    started: bool,
    connected: Option<Connected>,
    /// When the stream last showed that the engine was restarted.
    restart_seen: Option<Instant>,
    /// Session that the teller speaks to.
    session: Option<u64>,
}

impl Follow {
    /// Runs until nobody is left to tell.
    pub async fn run(mut self) {
        loop {
            let Some((config, incarnation)) = self.config().await else { return };
            let gauges = Gauges::new(self.stats.clone());
            let mut state = State {
                follower: Follower::new(config.clone()),
                follow: self,
                teller: Teller::default(),
                gauges,
                incarnation,
                started: false,
                connected: None,
                restart_seen: None,
                session: None,
            };
            let again = state.run(&config).await;
            self = state.follow;
            if !again {
                return;
            }
        }
    }

    /// Waits until it is known how blocks are named, and of which engine.
    async fn config(&mut self) -> Option<(MirrorConfig, u64)> {
        loop {
            let known = {
                let upstream = self.upstream.borrow_and_update();
                let engine = self.engine.borrow_and_update();
                upstream.naming.zip(engine.clone())
            };
            if let Some(((seed, block_tokens), engine)) = known {
                return Some((
                    MirrorConfig {
                        seed,
                        block_tokens,
                        model: engine.model.clone(),
                        max_bytes: self.max_bytes,
                        copies: engine.copies,
                    },
                    engine.incarnation,
                ));
            }
            tokio::select! {
                changed = self.upstream.changed() => changed.ok()?,
                changed = self.engine.changed() => changed.ok()?,
            }
        }
    }
}

impl State {
    /// Follows until the mirror has to be made anew (true) or nobody is left (false).
    async fn run(&mut self, config: &MirrorConfig) -> bool {
        let mut pause = PAUSES.0;
        let mut complaint: Option<(String, Instant)> = None;
        self.listen();
        loop {
            let again = match self.stay(config, &mut complaint).await {
                Ok(never) => match never {},
                Err(again) => again,
            };
            if self.connected.take().is_some() {
                pause = PAUSES.0;
            }
            let why = match again {
                Again::Connect(why) => why.to_string(),
                Again::Anew => return true,
                Again::End => return false,
            };
            let news = complaint.as_ref().is_none_or(|(old, at)| *old != why || at.elapsed() >= REMIND);
            if news {
                tracing::warn!(rank = self.follow.source.rank, "no KV-cache events: {why}");
                complaint = Some((why, Instant::now()));
            }
            let wait = sleep(pause);
            tokio::pin!(wait);
            loop {
                tokio::select! {
                    biased;
                    turn = self.turn(config) => match turn {
                        Turn::Done => {}
                        Turn::Anew => return true,
                        Turn::End => return false,
                    },
                    () = &mut wait => break,
                }
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Connects, catches up, and stays.
    async fn stay(
        &mut self,
        config: &MirrorConfig,
        complaint: &mut Option<(String, Instant)>,
    ) -> Result<std::convert::Infallible, Again> {
        let endpoint = self.follow.source.events.clone();
        let connecting = Subscription::connect(&endpoint);
        let mut subscription = self.meanwhile(config, connecting).await?.map_err(Again::Connect)?;
        tracing::info!(rank = self.follow.source.rank, endpoint, "following KV-cache events");
        *complaint = None;
        self.connected = Some(Connected::new(self.follow.stats.clone()));
        self.follower.connected();
        if self.follow.source.replay.is_some() {
            self.catch_up(config).await?;
        } else if self.follower.has_past() {
            // What happened while there was no connection cannot be asked for.
            self.lose("the connection was lost and the engine replays nothing");
        }
        self.started = true;
        let mut odd = 0;
        loop {
            // Changes that come together are told together, but for what fills a message.
            let step = if self.teller.is_full() {
                tokio::select! {
                    biased;
                    turn = self.turn(config) => Step::Turn(turn),
                    batch = subscription.next(&mut odd) => Step::Batch(batch),
                }
            } else {
                tokio::select! {
                    biased;
                    batch = subscription.next(&mut odd) => Step::Batch(batch),
                    turn = self.turn(config) => Step::Turn(turn),
                }
            };
            match step {
                Step::Turn(turn) => self.after(turn)?,
                Step::Batch(batch) => {
                    let (sequence, payload) = batch.map_err(Again::Connect)?;
                    self.follow.stats.malformed.fetch_add(std::mem::take(&mut odd), Relaxed);
                    self.batch(config, sequence, &payload).await?;
                }
            }
        }
    }

    /// A batch that came by itself.
    async fn batch(&mut self, config: &MirrorConfig, sequence: u64, payload: &Bytes) -> Result<(), Again> {
        let verdict = self.follower.live(sequence, payload, &mut self.teller.ops);
        if std::mem::take(&mut self.follower.went_back) {
            self.restarted();
        }
        if verdict == Verdict::Missing {
            if self.follower.has_past() {
                self.follow.stats.gaps.fetch_add(1, Relaxed);
            }
            self.applied();
            self.catch_up(config).await?;
            if self.follower.place(sequence, payload, &mut self.teller.ops) == Verdict::Missing {
                if self.follower.has_past() {
                    self.lose("batches were lost and cannot be had again");
                }
                self.follower.skip_to(sequence, payload, &mut self.teller.ops);
            }
        }
        self.applied();
        Ok(())
    }

    fn after(&self, turn: Turn) -> Result<(), Again> {
        match turn {
            Turn::Done => Ok(()),
            Turn::Anew => Err(Again::Anew),
            Turn::End => Err(Again::End),
        }
    }

    /// Waits for something while the scheduler is told what there is to tell.
    async fn meanwhile<T>(
        &mut self,
        config: &MirrorConfig,
        future: impl Future<Output = T>,
    ) -> Result<T, Again> {
        tokio::pin!(future);
        loop {
            tokio::select! {
                biased;
                done = &mut future => return Ok(done),
                turn = self.turn(config) => self.after(turn)?,
            }
        }
    }

    /// Asks the engine's buffer for what is missing. Where it has none, nothing happens.
    async fn catch_up(&mut self, config: &MirrorConfig) -> Result<(), Again> {
        let Some(endpoint) = self.follow.source.replay.clone() else { return Ok(()) };
        // At most twice: from what is known on, and if that is void from the beginning.
        for _ in 0..2 {
            self.follow.stats.replays.fetch_add(1, Relaxed);
            match self.replay(config, &endpoint).await? {
                Ok(Proof::Same) => return Ok(()),
                Ok(Proof::Restarted) => {
                    self.restarted();
                    self.lose("the engine was restarted");
                }
                Ok(Proof::TooOld) => self.lose("the engine's buffer does not reach back far enough"),
                Err(why) => {
                    self.follow.stats.replay_failures.fetch_add(1, Relaxed);
                    tracing::warn!(rank = self.follow.source.rank, "no replay of KV-cache events: {why}");
                    self.follower.mirror.set_partial();
                    self.applied();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn replay(
        &mut self,
        config: &MirrorConfig,
        endpoint: &str,
    ) -> Result<Result<Proof, SocketError>, Again> {
        let asking = Replay::ask(endpoint, self.follower.replay_from());
        let mut replay = match self.meanwhile(config, asking).await? {
            Ok(replay) => replay,
            Err(why) => return Ok(Err(why)),
        };
        let mut first = true;
        loop {
            let batch = match self.meanwhile(config, replay.next()).await? {
                Ok(batch) => batch,
                Err(why) => return Ok(Err(why)),
            };
            if std::mem::take(&mut first) {
                if self.follower.has_past() {
                    let said = batch.as_ref().map(|(sequence, payload)| (*sequence, payload));
                    match self.follower.prove(said) {
                        Proof::Same => {}
                        other => return Ok(Ok(other)),
                    }
                } else if batch.is_none() {
                    // Nothing has happened yet.
                    self.follower.mirror.set_whole();
                }
            }
            let Some((sequence, payload)) = batch else { return Ok(Ok(Proof::Same)) };
            self.follower.replayed(sequence, &payload, &mut self.teller.ops);
            self.applied();
        }
    }

    fn restarted(&mut self) {
        self.follow.stats.restarts.fetch_add(1, Relaxed);
        self.restart_seen = Some(Instant::now());
    }

    /// What is known is void.
    fn lose(&mut self, why: &str) {
        tracing::warn!(rank = self.follow.source.rank, "what the engine's cache holds is not known: {why}");
        self.follow.stats.losses.fetch_add(1, Relaxed);
        self.follower.reset(&mut self.teller.ops);
        self.applied();
    }

    /// The mirror has changed.
    fn applied(&mut self) {
        self.teller.changed();
        self.gauges.show(&self.follower);
    }

    /// Whether the engine may hold more than what is told.
    fn is_partial(&self) -> bool {
        self.follower.mirror.is_partial() || self.connected.is_none()
    }

    /// One step that has nothing to do with the engine's sockets. Cancel-safe.
    async fn turn(&mut self, config: &MirrorConfig) -> Turn {
        let partial = self.is_partial();
        let rank = self.rank();
        // The permit must not borrow what the other branches change.
        let told = self.follow.told.clone();
        let speaks = self.started && rank.is_some() && self.teller.has_news(partial);
        tokio::select! {
            biased;
            changed = self.follow.upstream.changed() => {
                if changed.is_err() {
                    return Turn::End;
                }
                if self.follow.upstream.borrow().naming != Some((config.seed, config.block_tokens)) {
                    return Turn::Anew;
                }
                self.listen();
                Turn::Done
            }
            changed = self.follow.engine.changed() => {
                if changed.is_err() {
                    return Turn::End;
                }
                self.engine_changed(config)
            }
            room = told.reserve(), if speaks => {
                let (Ok(room), Some(session), Some(rank)) = (room, self.session, rank) else {
                    return Turn::End;
                };
                let events = self.teller.next(&mut self.follower.mirror, self.incarnation, rank, partial);
                self.follow.stats.messages.fetch_add(1, Relaxed);
                self.follow.stats.accounts.fetch_add(u64::from(events.replace), Relaxed);
                room.send(Told { session, events });
                Turn::Done
            }
        }
    }

    /// The rank by which the scheduler knows the target; `None` when there is no such target.
    fn rank(&self) -> Option<u16> {
        let ranks = self.follow.engine.borrow().as_ref().map_or(0, |engine| engine.ranks);
        if ranks <= 1 {
            return Some(0);
        }
        let own = self.follower.rank.and_then(|rank| u16::try_from(rank).ok());
        [own, Some(self.follow.source.rank)].into_iter().flatten().find(|rank| *rank < ranks)
    }

    /// Follows the uplink: to another session, or to one that now knows the engine's life.
    fn listen(&mut self) {
        let session = {
            let upstream = self.follow.upstream.borrow();
            upstream.session.filter(|session| session.incarnation == self.incarnation)
        };
        let number = session.map(|session| session.number);
        if number != self.session {
            self.session = number;
            self.teller.restart(number.is_some());
        }
    }

    fn engine_changed(&mut self, config: &MirrorConfig) -> Turn {
        let Some(engine) = self.follow.engine.borrow_and_update().clone() else { return Turn::Done };
        if engine.model != config.model || engine.copies != config.copies {
            return Turn::Anew;
        }
        if engine.incarnation != self.incarnation {
            // The stream may have shown the same restart before; then the mirror is of the new life already.
            if self.restart_seen.take().is_none_or(|at| at.elapsed() > SAME_RESTART) {
                return Turn::Anew;
            }
            self.incarnation = engine.incarnation;
            self.listen();
        }
        Turn::Done
    }
}

//! The scheduler's side: one link, kept or made anew for ever; registration, heartbeats, reports.
//!
//! Each connection starts from nothing: the instance is registered when it is ready, then reported on. So a scheduler
//! that was restarted learns all it needs from the reconnect, whatever its epoch.

use crate::clock::now_us;
use crate::kv;
use crate::options::Settings;
use crate::reporter::{Heard, Post, Reporter};
use crate::state::{AgentState, Published, Stats};
use fairlead_transport::{Backoff, ConnectError, Lane, Link, LinkOptions, LinkSender, SendError, connect};
use fairlead_wire::frame::{Body, FrameError, Stamp, encode};
use fairlead_wire::msg::{Hello, Role, Welcome};
use fairlead_wire::{PROTOCOL, PROTOCOL_MIN};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

/// A link that lived this long starts the pauses between attempts over.
const STABLE: Duration = Duration::from_secs(3);
/// Longest wait for the link's orderly end.
const FAREWELL: Duration = Duration::from_secs(1);
/// The same complaint is repeated in the log after this long.
const REMIND: Duration = Duration::from_secs(30);

/// Bytes that wait to be sent.
const SEND_BYTES: usize = 1 << 20;

pub(crate) struct Uplink {
    settings: Arc<Settings>,
    published: watch::Receiver<Published>,
    state: watch::Sender<AgentState>,
    stats: Arc<Stats>,
    incarnation: u64,
    /// What the streams of KV-cache events are to know of the link, and what they have for it.
    upstream: watch::Sender<kv::Upstream>,
    told: mpsc::Receiver<kv::Told>,
    /// Sessions of streams so far.
    numbers: u64,
}

/// What the connected scheduler has been told.
struct Session {
    mailbox: Mailbox,
    reporter: Reporter,
}

/// Puts messages into the link's queue.
struct Mailbox {
    sender: LinkSender,
    /// Epoch that stands in the frames.
    epoch: u64,
    stats: Arc<Stats>,
    settings: Arc<Settings>,
}

impl Post for Mailbox {
    fn send<T: Body>(&mut self, body: &T) -> bool {
        let stamp = Stamp { epoch: self.epoch, created_us: now_us(), ..Stamp::default() };
        let sent = encode(body, stamp).map_err(|error: FrameError| error.to_string()).and_then(|frame| {
            self.sender.try_send(Lane::Control, frame.to_bytes().into()).map_err(|e: SendError| e.to_string())
        });
        if let Err(why) = &sent {
            // Every heartbeat repeats it; the counter tells how often, the log that it happens.
            if self.stats.send_failures.fetch_add(1, Relaxed).is_multiple_of(60) {
                tracing::warn!(instance = self.settings.name, "not sent to the scheduler: {why}");
            }
        }
        sent.is_ok()
    }
}

impl Uplink {
    pub fn new(
        settings: Arc<Settings>,
        published: watch::Receiver<Published>,
        state: watch::Sender<AgentState>,
        stats: Arc<Stats>,
        upstream: watch::Sender<kv::Upstream>,
        told: mpsc::Receiver<kv::Told>,
    ) -> Self {
        Self { settings, published, state, stats, incarnation: now_us(), upstream, told, numbers: 0 }
    }

    /// Runs until `stop` is set or its sender is gone; then the link is closed in order.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut backoff = Backoff::default();
        let mut complaint: Option<(String, Instant)> = None;
        loop {
            let attempt = tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                attempt = self.connect() => attempt,
            };
            match attempt {
                Ok((link, welcome)) => {
                    complaint = None;
                    let since = Instant::now();
                    let end = self.session(link, welcome, &mut stop).await;
                    self.upstream.send_modify(|upstream| upstream.session = None);
                    self.stats.connected.store(false, Relaxed);
                    let Some(why) = end else { return };
                    tracing::warn!(instance = self.settings.name, "link to the scheduler ended: {why}");
                    self.set_link(None, Some(why));
                    if since.elapsed() >= STABLE {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    self.stats.connect_failures.fetch_add(1, Relaxed);
                    let why = error.to_string();
                    let news =
                        complaint.as_ref().is_none_or(|(old, at)| *old != why || at.elapsed() >= REMIND);
                    if news {
                        if error.is_permanent() {
                            tracing::error!(instance = self.settings.name, "no link to the scheduler: {why}");
                        } else {
                            tracing::warn!(instance = self.settings.name, "no link to the scheduler: {why}");
                        }
                        complaint = Some((why.clone(), Instant::now()));
                    }
                    self.set_link(None, Some(why));
                }
            }
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                () = backoff.wait() => {}
            }
        }
    }

    async fn connect(&self) -> Result<(Link, Welcome), ConnectError> {
        let hello = Hello {
            role: Role::Agent,
            name: self.settings.name.clone(),
            incarnation: self.incarnation,
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL,
            software: concat!("fairlead ", env!("CARGO_PKG_VERSION")).to_owned(),
            have: None,
        };
        // A heartbeat must not wait long behind the events.
        let options = LinkOptions { send_bytes: SEND_BYTES, ..LinkOptions::default() };
        connect(&self.settings.scheduler, &self.settings.identity, &hello, &options).await
    }

    /// Speaks with a scheduler until the link ends; gives the reason, `None` when the agent is to stop.
    async fn session(
        &mut self,
        link: Link,
        welcome: Welcome,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<String> {
        let (sender, mut receiver) = link.split();
        tracing::info!(
            instance = self.settings.name,
            scheduler = self.settings.scheduler,
            epoch = welcome.epoch,
            "connected to the scheduler"
        );
        self.stats.connects.fetch_add(1, Relaxed);
        self.stats.connected.store(true, Relaxed);
        self.set_link(Some(welcome.epoch), None);
        let naming = Some((welcome.cluster_seed, welcome.block_tokens));
        self.upstream.send_modify(|upstream| upstream.naming = naming);
        let room = Arc::new(Notify::new());
        sender.signal_room(room.clone());
        let mailbox = Mailbox {
            sender,
            epoch: welcome.epoch,
            stats: self.stats.clone(),
            settings: self.settings.clone(),
        };
        let mut session = Session { mailbox, reporter: Reporter::default() };
        self.tell(&mut session);
        let period = Duration::from_millis(u64::from(welcome.heartbeat_ms.max(10)));
        let mut heartbeat = interval_at(Instant::now() + self.settings.phase(period), period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let has_room = session.mailbox.sender.has_room(Lane::Control);
            tokio::select! {
                biased;
                () = stopped(stop) => {
                    session.mailbox.sender.close("the agent is stopping");
                    // Told now, the scheduler need not wait for a timeout.
                    let _ = timeout(FAREWELL, session.mailbox.sender.closed()).await;
                    return None;
                }
                received = receiver.recv() => {
                    match received.map_err(|e| e.to_string()).and_then(|(_, frame)| {
                        frame.message().map_err(|e| format!("the scheduler sent a bad frame: {e}"))
                    }) {
                        Ok(message) => {
                            match session.reporter.heard(&message, now_us(), &mut session.mailbox) {
                                Heard::Nothing => {}
                                Heard::RoundTrip(us) => self.stats.rtt_us.store(us, Relaxed),
                                Heard::End(why) => return Some(why),
                            }
                        }
                        Err(why) => return Some(why),
                    }
                }
                changed = self.published.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                    self.tell(&mut session);
                }
                _ = heartbeat.tick() => {
                    if let Err(why) = session.reporter.beat(now_us(), &mut session.mailbox) {
                        return Some(why);
                    }
                    self.tell(&mut session);
                }
                told = self.told.recv(), if has_room => if let Some(told) = told {
                    self.forward(&told, &mut session.mailbox);
                },
                () = room.notified(), if !has_room => {}
            }
        }
    }

    /// Sends what the scheduler should know now.
    fn tell(&mut self, session: &mut Session) {
        let told = session.reporter.tell(&self.published.borrow_and_update(), &mut session.mailbox);
        if told.registered {
            self.stats.registrations.fetch_add(1, Relaxed);
            self.state.send_modify(|state| state.registered = true);
            if let Some(instance) = &self.published.borrow().instance {
                self.numbers += 1;
                let session = kv::Session { number: self.numbers, incarnation: instance.incarnation };
                self.upstream.send_modify(|upstream| upstream.session = Some(session));
            }
        }
        if told.reported {
            self.stats.reports.fetch_add(1, Relaxed);
        }
    }

    /// Sends what a stream of KV-cache events has to tell.
    fn forward(&mut self, told: &kv::Told, mailbox: &mut Mailbox) {
        let current = self.upstream.borrow().session;
        let Some(current) = current.filter(|session| session.number == told.session) else {
            // Meant for a session that has ended.
            return;
        };
        if !mailbox.send(&told.events) {
            // Changes after it would make no sense: all begin anew.
            self.numbers += 1;
            let session = kv::Session { number: self.numbers, ..current };
            self.upstream.send_modify(|upstream| upstream.session = Some(session));
        }
    }

    fn set_link(&self, epoch: Option<u64>, error: Option<String>) {
        self.state.send_if_modified(|state| {
            let news = state.epoch != epoch || state.link_error != error;
            state.epoch = epoch;
            state.link_error = error;
            state.registered = false;
            news
        });
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same as a request to stop.
    let _ = stop.wait_for(|stop| *stop).await;
}

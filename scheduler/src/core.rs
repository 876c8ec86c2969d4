//! The task that owns the truth. Links and admin pages reach it through one bounded channel; it reaches links through
//! their lanes' bounded queues, and what finds no room there stays in the truth, where it is coalesced.

use std::net::SocketAddr;
use std::sync::Arc;

use ahash::AHashMap;
use bytes::Bytes;
use fairlead_replication::{Lane as TruthLane, Output, SessionId, Truth};
use fairlead_telemetry::admin::Page;
use fairlead_transport::{Lane, LinkError, LinkSender, LinkStats, Refusals, SendError};
use fairlead_wire::Message;
use fairlead_wire::msg::{Hello, RefuseCode, Role};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::view::{self, Traffic, View};

/// Events taken in one step. What has come meanwhile goes into the same frames.
const BATCH: usize = 256;

/// What the core needs of a link, so that a test can drive it without one.
pub trait Outlet {
    /// Whether a lane takes another frame now. After a `false`, the signal tells when to ask again.
    fn has_room(&self, lane: Lane) -> bool;
    /// Queues a frame; `last` is the last one of a snapshot.
    ///
    /// # Errors
    /// The lane is full, or the link has ended.
    fn try_send(&self, lane: Lane, bytes: Bytes, last: bool) -> Result<(), SendError>;
    /// Ends the link with a reason that the peer is told past everything queued.
    fn refuse(&self, code: RefuseCode, reason: &str);
    /// Ends the link.
    fn close(&self, reason: &str);
    /// Notifies `signal` when a lane that was found full has room again.
    fn signal_room(&self, signal: Arc<Notify>);
    /// What the link has carried.
    fn stats(&self) -> LinkStats;
    /// Address of the other end.
    fn remote_address(&self) -> SocketAddr;
}

impl Outlet for LinkSender {
    fn has_room(&self, lane: Lane) -> bool {
        LinkSender::has_room(self, lane)
    }

    fn try_send(&self, lane: Lane, bytes: Bytes, last: bool) -> Result<(), SendError> {
        if last { self.try_send_last(lane, bytes) } else { LinkSender::try_send(self, lane, bytes) }
    }

    fn refuse(&self, code: RefuseCode, reason: &str) {
        LinkSender::refuse(self, code, reason);
    }

    fn close(&self, reason: &str) {
        LinkSender::close(self, reason);
    }

    fn signal_room(&self, signal: Arc<Notify>) {
        LinkSender::signal_room(self, signal);
    }

    fn stats(&self) -> LinkStats {
        LinkSender::stats(self)
    }

    fn remote_address(&self) -> SocketAddr {
        LinkSender::remote_address(self)
    }
}

/// What happens to the truth.
#[allow(clippy::large_enum_variant, reason = "few wait at a time: the inbox is bounded")]
pub enum Event<O> {
    /// A peer is there.
    Connected {
        /// Its number.
        session: SessionId,
        /// What it has said of itself.
        hello: Hello,
        /// Protocol to speak.
        protocol: u16,
        /// The way to it.
        sender: O,
    },
    /// It has said something.
    Said {
        /// Who.
        session: SessionId,
        /// What.
        message: Message,
        /// Its share of the inbox, given back when it is handled.
        room: Option<OwnedSemaphorePermit>,
    },
    /// Its link has ended.
    Ended {
        /// Whose.
        session: SessionId,
        /// How.
        why: LinkError,
    },
    /// Somebody wants to see a page.
    Show {
        /// Which.
        view: View,
        /// To whom.
        reply: oneshot::Sender<Page>,
    },
}

/// A peer as the driver sees it.
pub(crate) struct Session<O> {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) software: String,
    pub(crate) incarnation: u64,
    pub(crate) protocol: u16,
    pub(crate) since_us: u64,
    pub(crate) messages: u64,
    pub(crate) sender: O,
    /// Its link is lost, and the truth has not given it up yet.
    pub(crate) lost: bool,
}

/// The truth and the links that it speaks through.
pub struct Core<O> {
    truth: Truth,
    sessions: AHashMap<SessionId, Session<O>>,
    /// Some lane that was full has room.
    room: Arc<Notify>,
    traffic: Traffic,
}

impl Core<LinkSender> {
    /// Runs until `stop` says so or nobody can send events any more.
    pub(crate) async fn run(
        mut self,
        clock: Clock,
        mut events: mpsc::Receiver<Event<LinkSender>>,
        mut stop: watch::Receiver<bool>,
    ) {
        let room = self.room.clone();
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let deadline = clock.instant(self.due());
            tokio::select! {
                biased;
                () = crate::told(&mut stop) => return,
                taken = events.recv_many(&mut batch, BATCH) => if taken == 0 { return },
                () = room.notified() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
            self.handle(batch.drain(..), clock.now_us());
            // Links that have received get their turn, so that what came together leaves together.
            tokio::task::yield_now().await;
            while let Ok(event) = events.try_recv() {
                batch.push(event);
                if batch.len() == BATCH {
                    break;
                }
            }
            let now_us = clock.now_us();
            self.handle(batch.drain(..), now_us);
            self.step(events.is_empty(), now_us);
        }
    }
}

impl<O: Outlet> Core<O> {
    /// A core around a truth.
    pub fn new(truth: Truth, turned_away: Arc<Refusals>) -> Self {
        Self {
            truth,
            sessions: AHashMap::new(),
            room: Arc::new(Notify::new()),
            traffic: Traffic { turned_away, ..Traffic::default() },
        }
    }

    /// The truth.
    #[cfg(feature = "sim")]
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// Rung when a lane that was full has room again.
    #[cfg(feature = "sim")]
    pub fn room(&self) -> Arc<Notify> {
        self.room.clone()
    }

    /// When [`Core::step`] has something to do at the latest, on the truth's clock.
    pub fn due(&self) -> u64 {
        self.truth.next_deadline()
    }

    /// Takes what has happened.
    pub fn handle(&mut self, events: impl Iterator<Item = Event<O>>, now_us: u64) {
        for event in events {
            self.take(event, now_us);
        }
    }

    /// Does what is due and sends what there is to say; at once if there is no more to hear for now.
    pub fn step(&mut self, nothing_waits: bool, now_us: u64) {
        self.truth.tick(now_us);
        if nothing_waits {
            self.truth.flush(now_us);
        }
        self.act();
    }

    fn take(&mut self, event: Event<O>, now_us: u64) {
        match event {
            Event::Connected { session, hello, protocol, sender } => {
                tracing::info!(role = ?hello.role, name = %hello.name, remote = %sender.remote_address(), "peer connected");
                sender.signal_room(self.room.clone());
                self.traffic.connected += 1;
                let entry = Session {
                    role: hello.role,
                    name: hello.name.clone(),
                    software: hello.software.clone(),
                    incarnation: hello.incarnation,
                    protocol,
                    since_us: now_us,
                    messages: 0,
                    sender,
                    lost: false,
                };
                self.sessions.insert(session, entry);
                self.truth.connected(session, &hello, protocol, now_us);
            }
            Event::Said { session, message, room } => {
                if let Some(entry) = self.sessions.get_mut(&session) {
                    entry.messages += 1;
                    self.traffic.messages += 1;
                    self.truth.message(session, message, now_us);
                }
                drop(room);
            }
            Event::Ended { session, why } => self.ended(session, &why, now_us),
            Event::Show { view, reply } => {
                let scene = view::Scene {
                    truth: &self.truth,
                    sessions: &self.sessions,
                    traffic: &self.traffic,
                    now_us,
                };
                // A reader that has gone away needs no answer.
                let _ = reply.send(view::render(view, &scene));
            }
        }
    }

    fn ended(&mut self, session: SessionId, why: &LinkError, now_us: u64) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        tracing::info!(role = ?entry.role, name = %entry.name, %why, "link ended");
        if why.is_peers_fault() {
            self.traffic.malformed += 1;
        }
        if matches!(why, LinkError::TimedOut) {
            // Silence may be this process's own: after a stall every link times out at once. The truth judges silence
            // by its own progress, and a peer that links up again takes its place over without a gap.
            entry.lost = true;
            self.traffic.timed_out += 1;
            return;
        }
        self.sessions.remove(&session);
        self.truth.gone(session, now_us);
    }

    /// Sends what the truth has to say, as far as there is room.
    fn act(&mut self) {
        loop {
            let sessions = &self.sessions;
            let output = self.truth.poll(|session, lane| {
                sessions
                    .get(&session)
                    .is_some_and(|entry| !entry.lost && entry.sender.has_room(lane_of(lane)))
            });
            match output {
                None => return,
                Some(Output::Send { session, lane, bytes, last }) => {
                    let Some(entry) = self.sessions.get(&session) else { continue };
                    self.traffic.frames += 1;
                    self.traffic.bytes += bytes.len() as u64;
                    match entry.sender.try_send(lane_of(lane), bytes, last) {
                        Ok(()) => {}
                        // The link's end is on its way here as an event.
                        Err(SendError::Closed(_)) => {}
                        Err(SendError::Full(_)) => {
                            // Cannot happen to the only sender after `has_room`. A frame less is a gap that the peer
                            // notices; a link less is one that it mends.
                            tracing::error!(name = %entry.name, "a lane with room was full");
                            entry.sender.close("a frame was lost");
                        }
                    }
                }
                Some(Output::Close { session, refuse }) => {
                    if let Some(entry) = self.sessions.remove(&session) {
                        tracing::warn!(role = ?entry.role, name = %entry.name, why = %refuse.reason, "peer refused");
                        entry.sender.refuse(refuse.code, &refuse.reason);
                    }
                }
            }
        }
    }
}

const fn lane_of(lane: TruthLane) -> Lane {
    match lane {
        TruthLane::Control => Lane::Control,
        TruthLane::Load => Lane::Load,
        TruthLane::Delta => Lane::Delta,
        TruthLane::Snapshot => Lane::Snapshot,
    }
}

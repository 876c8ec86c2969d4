//! The task that owns the truth. Links and admin pages reach it through one bounded channel; it reaches links through
//! their lanes' bounded queues, and what finds no room there stays in the truth, where it is coalesced.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ahash::AHashMap;
use fairlead_replication::{Lane as TruthLane, Output, SessionId, Truth};
use fairlead_telemetry::admin::Page;
use fairlead_transport::{Lane, LinkError, LinkSender, SendError};
use fairlead_wire::Message;
use fairlead_wire::msg::{Hello, Role};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::view::{self, Traffic, View};

/// Events taken in one step. What has come meanwhile goes into the same frames.
const BATCH: usize = 256;

/// What happens to the truth.
pub(crate) enum Event {
    /// A peer is there.
    Connected { session: SessionId, hello: Hello, protocol: u16, sender: LinkSender },
    /// It has said something.
    Said { session: SessionId, message: Message, room: OwnedSemaphorePermit },
    /// Its link has ended.
    Ended { session: SessionId, why: LinkError },
    /// Somebody wants to see a page.
    Show { view: View, reply: oneshot::Sender<Page> },
}

/// A peer as the driver sees it.
pub(crate) struct Session {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) software: String,
    pub(crate) incarnation: u64,
    pub(crate) protocol: u16,
    pub(crate) since_us: u64,
    pub(crate) messages: u64,
    pub(crate) sender: LinkSender,
    /// Its link is lost, and the truth has not given it up yet.
    pub(crate) lost: bool,
}

pub(crate) struct Core {
    truth: Truth,
    clock: Clock,
    sessions: AHashMap<SessionId, Session>,
    /// Some lane that was full has room.
    room: Arc<Notify>,
    traffic: Traffic,
}

impl Core {
    pub(crate) fn new(truth: Truth, clock: Clock, turned_away: Arc<AtomicUsize>) -> Self {
        Self {
            truth,
            clock,
            sessions: AHashMap::new(),
            room: Arc::new(Notify::new()),
            traffic: Traffic { turned_away, ..Traffic::default() },
        }
    }

    /// Runs until `stop` says so or nobody can send events any more.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>, mut stop: watch::Receiver<bool>) {
        let room = self.room.clone();
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let deadline = self.clock.instant(self.truth.next_deadline());
            tokio::select! {
                biased;
                () = crate::told(&mut stop) => return,
                taken = events.recv_many(&mut batch, BATCH) => if taken == 0 { return },
                () = room.notified() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
            let now_us = self.clock.now_us();
            for event in batch.drain(..) {
                self.take(event, now_us);
            }
            // Links that have received get their turn, so that what came together leaves together.
            tokio::task::yield_now().await;
            while let Ok(event) = events.try_recv() {
                batch.push(event);
                if batch.len() == BATCH {
                    break;
                }
            }
            let now_us = self.clock.now_us();
            for event in batch.drain(..) {
                self.take(event, now_us);
            }
            self.truth.tick(now_us);
            if events.is_empty() {
                self.truth.flush(now_us);
            }
            self.act();
        }
    }

    fn take(&mut self, event: Event, now_us: u64) {
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
                    let sent = if last {
                        entry.sender.try_send_last(lane_of(lane), bytes)
                    } else {
                        entry.sender.try_send(lane_of(lane), bytes)
                    };
                    match sent {
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

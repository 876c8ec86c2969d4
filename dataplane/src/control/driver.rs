//! The loop of the control thread: replica, link, placements.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use fairlead_replication::Lane as ReplicaLane;
use fairlead_routing::Fleet;
use fairlead_transport::{Backoff, ConnectError, Lane, Link, LinkError, LinkReceiver, LinkSender, connect};
use fairlead_wire::Frame;
use fairlead_wire::msg::Welcome;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::desk::{Desk, DeskOptions};
use super::metrics::Published;
use super::wake::{BellWait, Timer};
use super::{ControlOptions, admin, metrics};
use crate::gateway::StartError;
use crate::runtime::now_us;
use crate::shared::Shared;

/// Frames taken in one go before placements get their turn.
const FRAME_BATCH: usize = 64;
/// Time after which no further frame is taken in one go: pieces of a snapshot are large.
const FRAMES_US: u64 = 500;
/// A link that lived this long starts the pauses between attempts over.
const STABLE: Duration = Duration::from_secs(3);
/// Interval at which the replica's status is shown to scrapes.
const STATUS_US: u64 = 100_000;
/// Interval at which files are looked at that may be changed while the gateway runs.
const FILES_US: u64 = 3_000_000;

type Connecting = Pin<Box<dyn Future<Output = Result<(Link, Welcome), ConnectError>> + Send>>;

/// Where the link to the scheduler stands.
enum Uplink {
    /// No scheduler is configured.
    None,
    /// Waiting before the next attempt.
    Pausing(Instant),
    /// An attempt is under way.
    Connecting(Connecting),
    /// Linked.
    Linked(LinkSender, LinkReceiver),
}

/// What ended a sleep.
enum Woken {
    Frame(Result<(Lane, Frame), LinkError>),
    Connected(Result<(Link, Welcome), ConnectError>),
    Retry,
    Rung,
    Due,
    Stop,
}

/// The control thread's state.
pub(super) struct Driver {
    options: ControlOptions,
    desk: Desk,
    shared: Arc<Shared>,
    status: Published,
    bell: BellWait,
    timer: Timer,
    room: Arc<Notify>,
    backoff: Backoff,
    uplink: Uplink,
    linked_at: Instant,
    next_status_us: u64,
    /// When files are looked at next; never where there are none.
    next_files_us: u64,
    /// The last complaint about the scheduler, not to be repeated at every attempt.
    complaint: String,
    admin: Option<tokio::task::JoinHandle<()>>,
}

impl Driver {
    /// Builds replica and shared state on the current runtime, and opens the admin port. Answers are late beyond
    /// `tpot_us` per token.
    pub fn start(
        options: ControlOptions,
        tpot_us: f32,
        make_shared: impl FnOnce(Arc<Fleet>) -> io::Result<Arc<Shared>>,
    ) -> Result<(Self, Option<SocketAddr>), StartError> {
        let now = now_us();
        let desk = DeskOptions {
            name: options.name.clone(),
            incarnation: incarnation(),
            instances: options.instances.clone(),
            snapshot_wait: options.scheduler.is_some().then_some(options.snapshot_wait),
            replica: options.replica.clone(),
            tpot_us,
        };
        let desk = Desk::new(desk, make_shared, now)?;
        let shared = desk.shared().clone();
        let bell = BellWait::new(shared.bell())?;
        let status: Published = Arc::new(ArcSwapOption::empty());
        metrics::register(shared.registry(), &shared, &status);

        let mut admin_addr = None;
        let mut admin = None;
        if let Some(addr) = options.admin {
            let failed = |source| StartError::Listen { addr, source };
            let listener = std::net::TcpListener::bind(addr).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            admin_addr = Some(listener.local_addr().map_err(failed)?);
            let listener = TcpListener::from_std(listener).map_err(failed)?;
            admin = Some(tokio::spawn(admin::serve(listener, shared.clone(), status.clone())));
        }
        let next_files_us = if shared.edge.is_some() { now } else { u64::MAX };
        let uplink = if options.scheduler.is_some() { Uplink::Pausing(Instant::now()) } else { Uplink::None };
        let driver = Self {
            desk,
            shared,
            status,
            bell,
            timer: Timer::new()?,
            room: Arc::new(Notify::new()),
            backoff: Backoff::default(),
            uplink,
            linked_at: Instant::now(),
            next_status_us: now,
            next_files_us,
            complaint: String::new(),
            options,
            admin,
        };
        Ok((driver, admin_addr))
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Runs until told to stop, then takes leave of the scheduler.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let now = now_us();
            if !self.desk.step(now) {
                self.lost("no heartbeat for three intervals");
            }
            self.send();
            self.show(now);
            self.check_files(now);
            match self.sleep(&mut stop).await {
                Woken::Frame(received) => self.received(received),
                Woken::Connected(outcome) => self.connected(outcome),
                Woken::Retry => self.attempt(),
                Woken::Rung | Woken::Due => {}
                Woken::Stop => break,
            }
        }
        if let Uplink::Linked(sender, _) = &self.uplink {
            sender.close("the gateway is shutting down");
            // The farewell is sent by the link's own tasks; a lost one is noticed by its silence.
            let _ = tokio::time::timeout(Duration::from_millis(200), sender.closed()).await;
        }
        if let Some(admin) = self.admin {
            admin.abort();
        }
    }

    fn send(&mut self) {
        let Uplink::Linked(sender, _) = &self.uplink else { return };
        while let Some(out) = self.desk.poll(|lane| sender.has_room(transport_lane(lane))) {
            // The lane had room, so only a link that has ended refuses; its receiver will say why.
            if sender.try_send(transport_lane(out.lane), out.bytes).is_err() {
                return;
            }
        }
    }

    fn show(&mut self, now: u64) {
        if let Some(at) = self.desk.heard_us() {
            self.shared.set_heard(at);
        }
        if now >= self.next_status_us {
            self.next_status_us = now + STATUS_US;
            self.status.store(Some(Arc::new((self.desk.status(), now))));
        }
    }

    /// Certificate and key are looked at now and then, and when that was asked for.
    fn check_files(&mut self, now: u64) {
        if let Some(edge) = &self.shared.edge
            && (now >= self.next_files_us || edge.is_asked())
        {
            self.next_files_us = now + FILES_US;
            self.shared.check_tls();
        }
    }

    async fn sleep(&mut self, stop: &mut watch::Receiver<bool>) -> Woken {
        let now = now_us();
        let due = self.desk.due(now).min(self.next_files_us);
        self.shared.bell().arm();
        let waiting = self.shared.has_placements() || due <= now;
        if waiting {
            self.shared.bell().disarm();
            // Under load more placements are there whenever one looks. The link's own tasks and the admin port get
            // their turn here, and what they have brought is looked at below before the placements are.
            tokio::task::yield_now().await;
        }
        let uplink = async {
            match &mut self.uplink {
                Uplink::None => std::future::pending().await,
                Uplink::Pausing(until) => {
                    sleep_until(*until).await;
                    Woken::Retry
                }
                Uplink::Connecting(attempt) => Woken::Connected(attempt.await),
                Uplink::Linked(_, receiver) => Woken::Frame(receiver.recv().await),
            }
        };
        let woken = tokio::select! {
            biased;
            // The starter has gone: so does this thread.
            _ = stop.changed() => Woken::Stop,
            woken = uplink => woken,
            () = std::future::ready(()), if waiting => Woken::Rung,
            () = self.bell.rung() => Woken::Rung,
            () = self.room.notified() => Woken::Due,
            () = self.timer.run_out(due, now) => Woken::Due,
        };
        self.shared.bell().disarm();
        woken
    }

    fn attempt(&mut self) {
        let Some((address, identity)) = self.options.scheduler.clone() else { return };
        let hello = self.desk.hello();
        let link = self.options.link.clone();
        self.uplink =
            Uplink::Connecting(Box::pin(async move { connect(&address, &identity, &hello, &link).await }));
    }

    fn connected(&mut self, outcome: Result<(Link, Welcome), ConnectError>) {
        match outcome {
            Ok((link, welcome)) => {
                tracing::info!(epoch = welcome.epoch, "linked to the scheduler");
                self.complaint.clear();
                self.linked_at = Instant::now();
                self.desk.connected(&welcome, now_us());
                let (sender, receiver) = link.split();
                sender.signal_room(self.room.clone());
                self.uplink = Uplink::Linked(sender, receiver);
            }
            Err(error) => self.pause(&error.to_string()),
        }
    }

    fn received(&mut self, first: Result<(Lane, Frame), LinkError>) {
        let began = now_us();
        let mut next = Some(first);
        for _ in 0..FRAME_BATCH {
            let now = now_us();
            let outcome = match next.take() {
                Some(Ok((_, frame))) => self.desk.frame(&frame, now).map_err(|error| error.to_string()),
                Some(Err(error)) => Err(error.to_string()),
                None => return,
            };
            if let Err(why) = outcome {
                return self.lost(&why);
            }
            if now.saturating_sub(began) > FRAMES_US {
                return;
            }
            let Uplink::Linked(_, receiver) = &mut self.uplink else { return };
            next = receiver.try_recv().map(Ok);
        }
        if let Some(Ok((_, frame))) = next
            && let Err(error) = self.desk.frame(&frame, now_us())
        {
            self.lost(&error.to_string());
        }
    }

    /// The link has ended, or has to.
    fn lost(&mut self, why: &str) {
        if let Uplink::Linked(sender, _) = &self.uplink {
            sender.close(why);
            // A scheduler that welcomes and ends the link at once must not be asked again at once for ever.
            if self.linked_at.elapsed() >= STABLE {
                self.backoff.reset();
            }
        }
        self.desk.disconnected(now_us());
        self.pause(why);
    }

    fn pause(&mut self, why: &str) {
        if self.complaint != why {
            tracing::warn!(reason = why, "no link to the scheduler; serving on from what is known");
            why.clone_into(&mut self.complaint);
        }
        self.uplink = Uplink::Pausing(Instant::now() + self.backoff.next_pause());
    }
}

/// The two crates name the lanes each for itself: the state machine knows nothing of QUIC.
fn transport_lane(lane: ReplicaLane) -> Lane {
    match lane {
        ReplicaLane::Control => Lane::Control,
        ReplicaLane::Load => Lane::Load,
        ReplicaLane::Delta => Lane::Delta,
        ReplicaLane::Snapshot => Lane::Snapshot,
    }
}

/// Differs from start to start.
fn incarnation() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |since| since.as_micros() as u64)
}

//! A link: one authenticated connection, its lanes, and the tasks that move frames between them and the caller.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use fairlead_wire::frame::{Frame, Stamp, encode};
use fairlead_wire::limits::MAX_TEXT;
use fairlead_wire::msg::{Refuse, RefuseCode};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, watch};

use crate::codec::Budget;
use crate::error::{LinkError, SendError, close_code};
use crate::identity::Peer;
use crate::tls::LinkOptions;
use crate::{inbound, outbound};

/// An ordered sequence of frames within a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Hello, heartbeats, registrations, requests: both directions.
    Control,
    /// Load: never queued behind deltas.
    Load,
    /// Sequenced deltas.
    Delta,
    /// Snapshots.
    Snapshot,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Self; 4] = [Self::Control, Self::Load, Self::Delta, Self::Snapshot];

    pub(crate) const fn priority(self) -> i32 {
        match self {
            Self::Control => 3,
            Self::Load => 2,
            Self::Delta => 1,
            Self::Snapshot => 0,
        }
    }

    pub(crate) const fn tag(self) -> u8 {
        match self {
            Self::Control => 0,
            Self::Load => 1,
            Self::Delta => 2,
            Self::Snapshot => 3,
        }
    }

    pub(crate) fn of_stream(tag: u8) -> Option<Self> {
        [Self::Load, Self::Delta, Self::Snapshot].into_iter().find(|lane| lane.tag() == tag)
    }
}

/// What a link has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Frames handed to the transport.
    pub frames_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Packets that QUIC had to send again.
    pub packets_lost: u64,
    /// Round-trip time, microseconds.
    pub rtt_us: u64,
}

#[derive(Default)]
struct Counters {
    frames_sent: AtomicU64,
    bytes_sent: AtomicU64,
    frames_received: AtomicU64,
    bytes_received: AtomicU64,
}

/// What the tasks of a link have in common.
pub(crate) struct Shared {
    pub(crate) connection: Connection,
    /// Keeps a client's endpoint alive as long as its link.
    _endpoint: Option<quinn::Endpoint>,
    peer: Peer,
    counters: Counters,
    /// The first cause wins; what follows from it is noise.
    end: OnceLock<LinkError>,
    /// Tells the control lane's writer to end the link.
    farewell: watch::Sender<Option<Farewell>>,
    /// Lanes whose sender waits for room.
    wanted: [AtomicBool; 4],
    room: OnceLock<Arc<Notify>>,
}

/// How a link is to be ended.
#[derive(Clone)]
pub(crate) struct Farewell {
    /// A last frame that overtakes what is queued.
    pub(crate) refuse: Option<Bytes>,
    pub(crate) code: VarInt,
    pub(crate) reason: Arc<str>,
}

impl Shared {
    pub(crate) fn sent(&self, bytes: usize) {
        self.counters.frames_sent.fetch_add(1, Relaxed);
        self.counters.bytes_sent.fetch_add(bytes as u64, Relaxed);
    }

    /// A frame has left a lane's queue.
    pub(crate) fn made_room(&self, lane: Lane) {
        if self.wanted[lane.tag() as usize].swap(false, SeqCst)
            && let Some(room) = self.room.get()
        {
            room.notify_one();
        }
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.counters.frames_received.fetch_add(1, Relaxed);
        self.counters.bytes_received.fetch_add(bytes as u64, Relaxed);
    }

    /// Ends the link for `error`, telling the peer when it is the peer's fault.
    pub(crate) fn fail(&self, error: LinkError) {
        let refusal = error.refusal();
        if self.end.set(error).is_err() {
            return;
        }
        match refusal {
            Some(refuse) => self.refuse(&refuse),
            None => self.connection.close(VarInt::from_u32(0), b""),
        }
    }

    fn refuse(&self, refuse: &Refuse) {
        self.part(Farewell {
            refuse: encode_refuse(refuse),
            code: close_code(refuse.code),
            reason: refuse.reason.as_str().into(),
        });
    }

    fn part(&self, farewell: Farewell) {
        if let Err(watch::error::SendError(Some(unheard))) = self.farewell.send(Some(farewell)) {
            self.connection.close(unheard.code, short(&unheard.reason));
        }
    }

    fn cause(&self) -> LinkError {
        match self.end.get() {
            Some(error) => error.clone(),
            None => self.connection.close_reason().map_or(LinkError::Local, LinkError::from),
        }
    }
}

pub(crate) fn encode_refuse(refuse: &Refuse) -> Option<Bytes> {
    let mut refuse = refuse.clone();
    refuse.reason = refuse.reason.chars().take(MAX_TEXT / 4).collect();
    Some(encode(&refuse, Stamp::default()).ok()?.to_bytes().into())
}

/// A close frame must fit one packet.
pub(crate) fn short(reason: &str) -> &[u8] {
    &reason.as_bytes()[..reason.len().min(512)]
}

pub(crate) struct Queued {
    pub(crate) bytes: Bytes,
    /// End the lane's stream after this; the next frame opens another.
    pub(crate) end: bool,
    pub(crate) room: OwnedSemaphorePermit,
}

struct Queue {
    frames: mpsc::Sender<Queued>,
    room: Budget,
}

impl Queue {
    fn has_room(&self) -> bool {
        self.frames.capacity() > 0 && self.room.has_room()
    }
}

/// Sends frames; cheap to clone. The link outlives its senders and ends with its [`LinkReceiver`].
#[derive(Clone)]
pub struct LinkSender {
    shared: Arc<Shared>,
    lanes: Arc<[Queue; 4]>,
}

impl LinkSender {
    /// The other end.
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }

    /// Queues an encoded frame, or says why not at once.
    pub fn try_send(&self, lane: Lane, bytes: Bytes) -> Result<(), SendError> {
        self.try_queue(lane, bytes, false)
    }

    /// Like [`LinkSender::try_send`] for the last frame of a snapshot: the snapshot's stream ends with it.
    pub fn try_send_last(&self, lane: Lane, bytes: Bytes) -> Result<(), SendError> {
        self.try_queue(lane, bytes, true)
    }

    fn try_queue(&self, lane: Lane, bytes: Bytes, end: bool) -> Result<(), SendError> {
        let queue = &self.lanes[lane.tag() as usize];
        let Some(room) = queue.room.try_take(bytes.len()) else {
            return Err(if self.is_closed() { SendError::Closed(bytes) } else { SendError::Full(bytes) });
        };
        queue.frames.try_send(Queued { bytes, end, room }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(back) => SendError::Full(back.bytes),
            mpsc::error::TrySendError::Closed(back) => SendError::Closed(back.bytes),
        })
    }

    /// Queues an encoded frame, waiting for room.
    pub async fn send(&self, lane: Lane, bytes: Bytes) -> Result<(), LinkError> {
        let queue = &self.lanes[lane.tag() as usize];
        let ended = self.shared.connection.closed();
        let queued = async {
            let room = queue.room.take(bytes.len()).await?;
            queue.frames.send(Queued { bytes, end: false, room }).await.ok()
        };
        tokio::select! {
            biased;
            sent = queued => sent.ok_or_else(|| self.shared.cause()),
            _ = ended => Err(self.shared.cause()),
        }
    }

    /// Whether a lane takes another frame now: the next [`LinkSender::try_send`] of a single sender then succeeds on
    /// a link that has not ended. After a `false`, the signal given to [`LinkSender::signal_room`] tells when to ask
    /// again.
    pub fn has_room(&self, lane: Lane) -> bool {
        let queue = &self.lanes[lane.tag() as usize];
        if queue.has_room() {
            return true;
        }
        // Marked before the second look: a writer that makes room after it sees the mark.
        self.shared.wanted[lane.tag() as usize].store(true, SeqCst);
        queue.has_room()
    }

    /// Notifies `signal` whenever a lane that [`LinkSender::has_room`] found full has room again. One signal serves
    /// any number of links; the first one set for a link stays.
    pub fn signal_room(&self, signal: Arc<Notify>) {
        let _ = self.shared.room.set(signal);
    }

    /// Whether the link has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.end.get().is_some() || self.shared.connection.close_reason().is_some()
    }

    /// Refuses the peer: sends the reason past everything queued, then closes.
    pub fn refuse(&self, code: RefuseCode, reason: &str) {
        if self.shared.end.set(LinkError::Local).is_ok() {
            self.shared.refuse(&Refuse { code, reason: reason.to_owned() });
        }
    }

    /// Ends the link in order: what is queued on the control lane still goes out.
    pub fn close(&self, reason: &str) {
        if self.shared.end.set(LinkError::Local).is_ok() {
            self.shared.part(Farewell { refuse: None, code: VarInt::from_u32(0), reason: reason.into() });
        }
    }

    /// Returns when the link has ended.
    pub async fn closed(&self) -> LinkError {
        let error = self.shared.connection.closed().await;
        self.shared.end.get().cloned().unwrap_or_else(|| error.into())
    }

    /// What the link has carried so far.
    pub fn stats(&self) -> LinkStats {
        let counters = &self.shared.counters;
        let quic = self.shared.connection.stats();
        LinkStats {
            frames_sent: counters.frames_sent.load(Relaxed),
            bytes_sent: counters.bytes_sent.load(Relaxed),
            frames_received: counters.frames_received.load(Relaxed),
            bytes_received: counters.bytes_received.load(Relaxed),
            packets_lost: quic.path.lost_packets,
            rtt_us: u64::try_from(quic.path.rtt.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// Address of the other end.
    pub fn remote_address(&self) -> std::net::SocketAddr {
        self.shared.connection.remote_address()
    }
}

pub(crate) struct Received {
    pub(crate) lane: Lane,
    pub(crate) frame: Frame,
    pub(crate) _room: Option<OwnedSemaphorePermit>,
}

/// Where the readers of a link's streams put what they read.
#[derive(Clone)]
pub(crate) struct Inbox {
    pub(crate) shared: Arc<Shared>,
    pub(crate) frames: mpsc::Sender<Received>,
    /// The snapshot lane's: they are many and large, and nothing else may wait behind them.
    pub(crate) bulk: mpsc::Sender<Received>,
    pub(crate) room: Budget,
    pub(crate) bulk_room: Budget,
}

impl Inbox {
    /// The bound in bytes of what a lane has received.
    pub(crate) fn room_of(&self, lane: Lane) -> &Budget {
        if lane == Lane::Snapshot { &self.bulk_room } else { &self.room }
    }
}

/// Takes what arrived, lane by lane in order. Dropping it ends the link.
pub struct LinkReceiver {
    shared: Arc<Shared>,
    frames: mpsc::Receiver<Received>,
    bulk: mpsc::Receiver<Received>,
}

impl LinkReceiver {
    /// The next frame of any lane. May be dropped and called again without loss. After an error the link has ended
    /// and every further call gives the same error. Frames of the snapshot lane wait for those of all others.
    pub async fn recv(&mut self) -> Result<(Lane, Frame), LinkError> {
        let received = tokio::select! {
            biased;
            Some(received) = self.frames.recv() => Some(received),
            Some(received) = self.bulk.recv() => Some(received),
            else => None,
        };
        received.map(|received| (received.lane, received.frame)).ok_or_else(|| self.shared.cause())
    }

    /// A frame that is there already.
    pub fn try_recv(&mut self) -> Option<(Lane, Frame)> {
        let received = self.frames.try_recv().or_else(|_| self.bulk.try_recv());
        received.ok().map(|received| (received.lane, received.frame))
    }
}

impl Drop for LinkReceiver {
    fn drop(&mut self) {
        if self.shared.end.set(LinkError::Local).is_ok() {
            self.shared.connection.close(VarInt::from_u32(0), b"");
        }
    }
}

/// A connection whose hello is done.
pub struct Link {
    sender: LinkSender,
    receiver: LinkReceiver,
}

impl Link {
    /// Starts the tasks that move frames. `endpoint` is a client's own, kept for as long as the link.
    pub(crate) fn start(
        connection: Connection,
        endpoint: Option<quinn::Endpoint>,
        peer: Peer,
        control: (SendStream, RecvStream),
        options: &LinkOptions,
    ) -> Self {
        let (farewell, farewells) = watch::channel(None);
        let shared = Arc::new(Shared {
            connection,
            _endpoint: endpoint,
            peer,
            counters: Counters::default(),
            end: OnceLock::new(),
            farewell,
            wanted: Default::default(),
            room: OnceLock::new(),
        });
        let queue = || {
            let (frames, queued) = mpsc::channel(options.send_frames.max(1));
            (Queue { frames, room: Budget::new(options.send_bytes) }, queued)
        };
        let [
            (control_queue, control_queued),
            (load_queue, load_queued),
            (delta_queue, delta_queued),
            (snapshot_queue, snapshot_queued),
        ] = [queue(), queue(), queue(), queue()];
        tokio::spawn(outbound::control(shared.clone(), control.0, control_queued, farewells));
        if options.load_datagrams {
            tokio::spawn(outbound::datagrams(shared.clone(), load_queued));
        } else {
            tokio::spawn(outbound::lane(shared.clone(), Lane::Load, load_queued));
        }
        tokio::spawn(outbound::lane(shared.clone(), Lane::Delta, delta_queued));
        tokio::spawn(outbound::lane(shared.clone(), Lane::Snapshot, snapshot_queued));

        let (received, frames) = mpsc::channel(options.receive_frames.max(1));
        let (bulk_received, bulk) = mpsc::channel(options.receive_frames.max(1));
        let inbox = Inbox {
            shared: shared.clone(),
            frames: received,
            bulk: bulk_received,
            room: Budget::new(options.receive_bytes),
            bulk_room: Budget::new(options.receive_bytes),
        };
        tokio::spawn(inbound::control(inbox.clone(), control.1));
        tokio::spawn(inbound::streams(inbox.clone()));
        tokio::spawn(inbound::datagrams(inbox));

        let lanes = Arc::new([control_queue, load_queue, delta_queue, snapshot_queue]);
        Self {
            sender: LinkSender { shared: shared.clone(), lanes },
            receiver: LinkReceiver { shared, frames, bulk },
        }
    }

    /// The other end.
    pub fn peer(&self) -> &Peer {
        self.sender.peer()
    }

    /// The sending half.
    pub fn sender(&self) -> LinkSender {
        self.sender.clone()
    }

    #[cfg(test)]
    pub(crate) fn connection(&self) -> &Connection {
        &self.sender.shared.connection
    }

    /// See [`LinkReceiver::recv`].
    pub async fn recv(&mut self) -> Result<(Lane, Frame), LinkError> {
        self.receiver.recv().await
    }

    /// Both halves.
    pub fn split(self) -> (LinkSender, LinkReceiver) {
        (self.sender, self.receiver)
    }
}

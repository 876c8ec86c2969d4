//! A shard: one thread, one runtime, one listener, and all that its connections share.

mod answer;
mod attempt;
mod budget;
mod carry;
mod conn;
mod deadlines;
mod decide;
mod failure;
mod form;
mod forward;
mod http2;
mod intake;
mod observe;
mod offload;
mod pool;
mod probe;
mod relay;
mod routes;
mod secure;
mod speed;
mod split;
mod tokenise;
mod upstream;
mod watch;
mod websocket;
mod wishes;

pub use budget::{Gauge, Share};
pub use decide::{AnswerNote, PlacementNote};
pub(crate) use offload::Offload;
pub use routes::readiness;
pub use speed::SpeedNote;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fairlead_routing::Scratch;

use crate::http::{RequestIds, ResponseHead};
use crate::options::GatewayOptions;
use crate::routing::SpeltOut;
use crate::runtime::{Acceptor, Either, Notify, Runtime, Stream, either};
use crate::shared::Shared;
use crate::tls::Trust;

use budget::RetryBudget;
use deadlines::Deadlines;
use observe::Metrics;
use pool::Pool;

/// Connections taken in one go before other tasks get their turn.
const ACCEPT_BATCH: usize = 64;
/// Pause after an accept that failed because descriptors or memory are exhausted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Pause between two complaints about instances.
const COMPLAINTS_US: u64 = 10_000_000;
/// Parsed answer heads kept for reuse.
const KEPT_HEADS: usize = 64;

/// How others reach a shard.
#[derive(Debug, Clone, Default)]
pub struct Inbox {
    notify: Arc<Notify>,
}

impl Inbox {
    /// Makes the shard look at the shared state (draining).
    pub fn wake(&self) {
        self.notify.notify();
    }
}

/// What the connections of a shard share.
pub(crate) struct Shard<R: Runtime> {
    pub options: Arc<GatewayOptions>,
    pub shared: Arc<Shared>,
    pub runtime: R,
    pub deadlines: Rc<Deadlines<R>>,
    pub pool: Pool<R>,
    /// How instances are reached over TLS.
    pub trust: Option<Trust>,
    pub retries: RetryBudget,
    pub probes: probe::Probes,
    pub metrics: Metrics,
    pub scratch: RefCell<Scratch>,
    pub spelt: RefCell<SpeltOut>,
    pub request_ids: RefCell<RequestIds>,
    pub answers: RefCell<Vec<ResponseHead>>,
    pub push_peers: split::PushPeers,
    pub farewells: websocket::Farewells,
    /// Connections of HTTP/2, which say so before they go.
    pub goaways: websocket::Farewells,
    connections: Cell<usize>,
    complained_us: Cell<u64>,
    random: Cell<u64>,
}

impl<R: Runtime> Shard<R> {
    fn new(options: Arc<GatewayOptions>, shared: Arc<Shared>, runtime: R, seed: u64) -> Rc<Self> {
        let id_seed = u128::from(mix(seed)) << 64 | u128::from(mix(seed ^ 1));
        Rc::new(Self {
            runtime,
            deadlines: Rc::default(),
            pool: Pool::new(options.timeouts.pool_idle, options.limits.pool_per_target),
            trust: shared.trust.as_ref().map(Trust::of_shard),
            retries: RetryBudget::new(&options.retry),
            probes: probe::Probes::default(),
            metrics: Metrics::new(shared.registry()),
            scratch: RefCell::new(Scratch::new(mix(seed ^ 2))),
            spelt: RefCell::default(),
            request_ids: RefCell::new(RequestIds::new(id_seed)),
            answers: RefCell::default(),
            push_peers: split::PushPeers::default(),
            farewells: websocket::Farewells::default(),
            goaways: websocket::Farewells::default(),
            connections: Cell::new(0),
            complained_us: Cell::new(0),
            random: Cell::new(mix(seed ^ 3)),
            options,
            shared,
        })
    }

    /// A random number, for jitter.
    pub fn draw(&self) -> u64 {
        let next = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(next);
        mix(next)
    }

    /// Whether a complaint about instances may be logged now: one in some seconds is enough.
    pub fn may_complain(&self) -> bool {
        let now = R::now_us();
        let may = now >= self.complained_us.get();
        if may {
            self.complained_us.set(now + COMPLAINTS_US);
        }
        may
    }

    /// Keeps a parsed head's memory for the next answer.
    pub fn keep_answer_head(&self, head: ResponseHead) {
        let mut kept = self.answers.borrow_mut();
        if kept.len() < KEPT_HEADS {
            kept.push(head);
        }
    }
}

/// Spreads the bits of a counter (the finaliser of SplitMix64).
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Runs a shard until it is told to drain and its connections have ended; those left are ended when it is told to cut
/// them off.
pub(crate) async fn run<R: Runtime>(
    runtime: R,
    doors: Vec<Door<R::Listener>>,
    options: Arc<GatewayOptions>,
    shared: Arc<Shared>,
    inbox: Inbox,
    seed: u64,
) {
    let shard = Shard::new(options, shared, runtime, seed);
    R::spawn(sweep(shard.clone()));
    accept_until_drain(&shard, &doors, &inbox).await;
    drop(doors);
    shard.goaways.say();
    // Connections that wait for a request end at once; those that serve one end with their answer.
    while shard.connections.get() > 0 {
        shard.deadlines.end_idle();
        if shard.shared.is_cut_off() {
            shard.farewells.say();
            shard.deadlines.end_all();
        }
        R::within(Duration::from_millis(20), inbox.notify.notified()).await;
    }
}

/// Ends what is overdue, and closes pooled connections that are too old.
async fn sweep<R: Runtime>(shard: Rc<Shard<R>>) {
    loop {
        let pause = shard.deadlines.sweep(R::now_us());
        shard.pool.purge();
        R::sleep(pause).await;
    }
}

/// Where connections come in.
pub(crate) struct Door<L> {
    /// Takes them.
    pub listener: L,
    /// They begin with a TLS handshake.
    pub secure: bool,
}

async fn accept_until_drain<R: Runtime>(shard: &Rc<Shard<R>>, doors: &[Door<R::Listener>], inbox: &Inbox) {
    let mut last_complaint_us = 0;
    loop {
        if shard.shared.is_draining() {
            // What the kernel has already accepted for us is served; then the door is shut.
            accept_waiting(shard, doors, usize::MAX).ok();
            return;
        }
        match accept_waiting(shard, doors, ACCEPT_BATCH) {
            Ok(Accepted::All) => {
                if let Either::First(Err(error)) =
                    either(any_ready::<R>(doors), inbox.notify.notified()).await
                {
                    tracing::warn!(%error, "waiting for connections failed");
                    R::sleep(ACCEPT_PAUSE).await;
                }
            }
            // More may wait; the tasks just started run first.
            Ok(Accepted::Batch) => R::sleep(Duration::from_millis(1)).await,
            Err(error) => {
                let now = R::now_us();
                if now.saturating_sub(last_complaint_us) >= 1_000_000 {
                    last_complaint_us = now;
                    tracing::warn!(%error, "cannot accept connections");
                }
                R::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits until a connection may be waiting at one of the doors.
async fn any_ready<R: Runtime>(doors: &[Door<R::Listener>]) -> std::io::Result<()> {
    match doors {
        [one] => one.listener.ready().await,
        [one, other, ..] => match either(one.listener.ready(), other.listener.ready()).await {
            Either::First(result) | Either::Second(result) => result,
        },
        [] => std::future::pending().await,
    }
}

enum Accepted {
    All,
    Batch,
}

fn accept_waiting<R: Runtime>(
    shard: &Rc<Shard<R>>,
    doors: &[Door<R::Listener>],
    most: usize,
) -> std::io::Result<Accepted> {
    let mut all = Accepted::All;
    for door in doors {
        if let Accepted::Batch = accept_at(shard, door, most)? {
            all = Accepted::Batch;
        }
    }
    Ok(all)
}

fn accept_at<R: Runtime>(
    shard: &Rc<Shard<R>>,
    door: &Door<R::Listener>,
    most: usize,
) -> std::io::Result<Accepted> {
    for _ in 0..most {
        let Some(socket) = door.listener.take()? else { return Ok(Accepted::All) };
        let Some(slot) = shard.shared.connections.take(1) else {
            // A last word that fits any socket buffer; whoever does not get to read it sees a reset, which is true.
            if !door.secure {
                let _ = socket.send_now(FULL);
            }
            continue;
        };
        let (counted, shard, secure) = (Counted::new(shard), shard.clone(), door.secure);
        R::spawn(async move {
            conn::serve(shard, socket, secure, slot).await;
            drop(counted);
        });
    }
    Ok(Accepted::Batch)
}

/// One connection in the shard's count, or one stream of a connection.
struct Counted<R: Runtime>(Rc<Shard<R>>);

impl<R: Runtime> Counted<R> {
    fn new(shard: &Rc<Shard<R>>) -> Self {
        shard.connections.set(shard.connections.get() + 1);
        Self(shard.clone())
    }
}

impl<R: Runtime> Drop for Counted<R> {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
Content-Length: 106\r\nRetry-After: 1\r\nConnection: close\r\n\r\n\
{\"error\":{\"message\":\"too many connections\",\"type\":\"overloaded_error\",\"param\":null,\"code\":\"overloaded\"}}   ";

#[cfg(test)]
mod tests {
    use super::FULL;

    #[test]
    fn the_last_word_is_well_formed() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }
}

//! A scheduler's process: the real core over simulated links.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fairlead_dataplane::runtime::sim::{ProcessId, Sim, World, below};
use fairlead_dataplane::runtime::{Either, Notify, Runtime, either};
use fairlead_replication::{SessionId, Truth, TruthConfig};
use fairlead_scheduler::sim::{Core, Event};

use super::link::{End, Exchange};

/// Secret of the cluster.
pub const CLUSTER_SEED: u64 = 42;
/// Interval of heartbeats.
pub const HEARTBEAT_US: u64 = 100_000;
/// Events taken in one go.
const BATCH: usize = 256;

/// Short terms and small buffers, so that little time and little traffic meet every bound.
pub fn truth_config() -> TruthConfig {
    TruthConfig {
        heartbeat_us: HEARTBEAT_US,
        batch_bytes: 2 << 10,
        ring_bytes: 32 << 10,
        lag_bytes: 24 << 10,
        chunk_bytes: 4 << 10,
        max_targets: 32,
        index_bytes: 8 << 20,
        linger_us: 1_000_000,
        slot_grace_us: 300_000,
        recollect_us: 5_000_000,
        recollect_bytes: 1 << 20,
        ..TruthConfig::default()
    }
}

/// A running scheduler.
pub struct Scheduler {
    pub process: ProcessId,
    pub core: Rc<RefCell<Core<End>>>,
}

#[derive(Default)]
struct Inbox {
    events: RefCell<VecDeque<Event<End>>>,
    rung: Notify,
}

impl Inbox {
    fn put(&self, event: Event<End>) {
        self.events.borrow_mut().push_back(event);
        self.rung.notify();
    }
}

/// Starts a scheduler's process.
pub fn start(world: &World, exchange: &Rc<Exchange>, config: TruthConfig, offset_us: u64) -> Scheduler {
    let process = world.process_with(offset_us);
    let now = world.now_us() + offset_us;
    let truth = Truth::new(config, now, CLUSTER_SEED, now);
    let core = Rc::new(RefCell::new(Core::new(truth, Arc::default())));
    let inbox = Rc::<Inbox>::default();
    let (door, into) = (exchange.clone(), inbox.clone());
    world.spawn(process, async move {
        let _open = door.open();
        let mut next = 0;
        loop {
            let (hello, protocol, end) = door.accept().await;
            next += 1;
            let session = SessionId(next);
            into.put(Event::Connected { session, hello, protocol, sender: end.clone() });
            Sim::spawn(read(session, end, into.clone()));
        }
    });
    let run = core.clone();
    world.spawn(process, async move {
        let room = run.borrow().room();
        loop {
            let now = Sim::now_us();
            let due = run.borrow().due().saturating_sub(now);
            if inbox.events.borrow().is_empty() {
                let heard = either(inbox.rung.notified(), room.notified());
                if let Either::Second(()) = either(heard, Sim::sleep(Duration::from_micros(due))).await {}
            }
            for _ in 0..2 {
                let batch: Vec<_> = {
                    let mut events = inbox.events.borrow_mut();
                    let count = events.len().min(BATCH);
                    events.drain(..count).collect()
                };
                run.borrow_mut().handle(batch.into_iter(), Sim::now_us());
                if below(2) == 0 {
                    Sim::sleep(Duration::ZERO).await;
                }
            }
            let nothing_waits = inbox.events.borrow().is_empty();
            run.borrow_mut().step(nothing_waits, Sim::now_us());
        }
    });
    Scheduler { process, core }
}

async fn read(session: SessionId, end: End, into: Rc<Inbox>) {
    let why = loop {
        match end.recv().await {
            Ok((_, frame)) => {
                let message = frame.message().expect("well-formed frames");
                into.put(Event::Said { session, message, room: None });
            }
            Err(why) => break why,
        }
    };
    into.put(Event::Ended { session, why });
}

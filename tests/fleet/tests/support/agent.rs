//! An agent's process: the real reporter over a simulated link, beside a simulated engine.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fairlead_agent::sim::{Heard, Post, Published, Reporter};
use fairlead_dataplane::runtime::sim::{ProcessId, Sim, World, below, chance};
use fairlead_dataplane::runtime::{Either, Notify, Runtime, either};
use fairlead_scheduler::sim::Outlet;
use fairlead_transport::Lane;
use fairlead_wire::msg::{
    CacheEvents, CacheOp, EngineKind, Hello, InstanceInfo, ModelInfo, RankLoad, Role, ServingRole,
};
use fairlead_wire::{Body, PROTOCOL, PROTOCOL_MIN, Stamp, encode};

use super::engine::Engine;
use super::link::{End, Exchange};

/// Pause between looks at the engine.
const LOOK: Duration = Duration::from_millis(80);

/// What the two halves of an agent share, as in the agent itself: the newest state.
#[derive(Default)]
struct News {
    published: RefCell<Published>,
    changed: Notify,
}

/// Starts an agent's process. `exact`: it tells KV-cache events.
pub fn start(
    world: &World,
    exchange: &Rc<Exchange>,
    name: &str,
    engine: &Engine,
    exact: bool,
    offset_us: u64,
) -> ProcessId {
    let process = world.process_with(offset_us);
    let incarnation = world.now_us() + offset_us;
    let news = Rc::<News>::default();
    let agent = Agent {
        name: name.to_owned(),
        incarnation,
        engine: engine.clone(),
        exchange: exchange.clone(),
        news: news.clone(),
        exact,
    };
    world.spawn(process, monitor(name.to_owned(), engine.clone(), news));
    world.spawn(process, agent.run());
    process
}

fn instance(name: &str, engine: &Engine) -> InstanceInfo {
    InstanceInfo {
        name: name.to_owned(),
        address: engine.addr.to_string(),
        host: engine.addr.ip().to_string(),
        incarnation: engine.life.get(),
        engine: EngineKind::Vllm,
        engine_version: String::new(),
        models: vec![ModelInfo { name: "m".into(), max_model_len: None, parent: None }],
        role: ServingRole::Both,
        transfer: None,
        dp_ranks: 1,
        block_size: Some(16),
        kv_blocks: None,
        max_num_seqs: None,
        labels: Vec::new(),
    }
}

/// Looks at the engine now and then: whether it takes connections, which life it is in, what it has in hand.
async fn monitor(name: String, engine: Engine, news: Rc<News>) {
    loop {
        let alive = Sim.connect(engine.addr, Duration::from_millis(150)).await.is_ok();
        {
            let mut published = news.published.borrow_mut();
            if alive {
                let life = engine.life.get();
                if published.instance.as_ref().is_none_or(|known| known.incarnation != life) {
                    published.instance = Some(Arc::new(instance(&name, &engine)));
                }
                published.ready = true;
                published.reason = None;
                published.ranks = vec![RankLoad {
                    rank: 0,
                    taken_us: Sim::now_us(),
                    running: Some(engine.figures.borrow().running),
                    waiting: Some(0),
                    ..RankLoad::default()
                }];
            } else {
                published.ready = false;
                published.reason = Some("connection refused".into());
                published.ranks.clear();
            }
        }
        news.changed.notify();
        Sim::sleep(LOOK).await;
    }
}

struct Agent {
    name: String,
    incarnation: u64,
    engine: Engine,
    exchange: Rc<Exchange>,
    news: Rc<News>,
    exact: bool,
}

struct Mailbox<'a> {
    end: &'a End,
    epoch: u64,
}

impl Post for Mailbox<'_> {
    fn send<T: Body>(&mut self, body: &T) -> bool {
        let stamp = Stamp { epoch: self.epoch, created_us: Sim::now_us(), ..Stamp::default() };
        let frame = encode(body, stamp).expect("valid messages");
        self.end.try_send(Lane::Control, Bytes::from(frame.to_bytes()), false).is_ok()
    }
}

impl Agent {
    async fn run(self) {
        loop {
            let hello = Hello {
                role: Role::Agent,
                name: self.name.clone(),
                incarnation: self.incarnation,
                protocol_min: PROTOCOL_MIN,
                protocol_max: PROTOCOL,
                software: "test".into(),
                have: None,
            };
            if let Ok((end, welcome)) = self.exchange.connect(hello).await {
                self.session(&end, welcome.epoch, u64::from(welcome.heartbeat_ms) * 1_000).await;
                end.close("the session is over");
            }
            Sim::sleep(Duration::from_millis(10 + below(150))).await;
        }
    }

    async fn session(&self, end: &End, epoch: u64, heartbeat_us: u64) {
        let mut mailbox = Mailbox { end, epoch };
        let mut reporter = Reporter::default();
        // Engine life whose cache the scheduler has been told of from its beginning.
        let mut dumped = 0;
        self.tell(&mut reporter, &mut mailbox, &mut dumped);
        let mut beat = Box::pin(Sim::sleep(Duration::from_micros(below(heartbeat_us))));
        loop {
            let events = Box::pin(self.engine.events.notified());
            let news = either(self.news.changed.notified(), events);
            match either(end.recv(), either(news, beat.as_mut())).await {
                Either::First(Ok((_, frame))) => {
                    let message = frame.message().expect("well-formed frames");
                    if let Heard::End(_) = reporter.heard(&message, Sim::now_us(), &mut mailbox) {
                        return;
                    }
                }
                Either::First(Err(_)) => return,
                Either::Second(Either::First(_)) => self.tell(&mut reporter, &mut mailbox, &mut dumped),
                Either::Second(Either::Second(())) => {
                    beat = Box::pin(Sim::sleep(Duration::from_micros(heartbeat_us)));
                    if reporter.beat(Sim::now_us(), &mut mailbox).is_err() {
                        return;
                    }
                    self.tell(&mut reporter, &mut mailbox, &mut dumped);
                }
            }
        }
    }

    fn tell(&self, reporter: &mut Reporter, mailbox: &mut Mailbox<'_>, dumped: &mut u64) {
        let published = self.news.published.borrow().clone();
        let told = reporter.tell(&published, mailbox);
        if !self.exact || !(told.registered || told.reported) || !published.ready {
            return;
        }
        let Some(life) = published.instance.map(|instance| instance.incarnation) else { return };
        if life != self.engine.life.get() {
            // Of another life than the one that was described; the next look at the engine tells.
            return;
        }
        let replace = *dumped != life;
        let ops: Vec<CacheOp> = if replace {
            self.engine.changes.borrow_mut().clear();
            self.engine.cache.borrow().dump()
        } else {
            self.engine.changes.borrow_mut().drain(..).collect()
        };
        if ops.is_empty() && !replace {
            return;
        }
        let events = CacheEvents { incarnation: life, rank: 0, partial: false, replace, ops };
        // What does not fit is made up for by a new account.
        *dumped = if mailbox.send(&events) && !chance(200) { life } else { 0 };
    }
}

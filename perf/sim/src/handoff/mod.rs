//! Hand-offs: prompts that one engine computes and another decodes, as the engines' connectors speak of them.
//!
//! - [`leg`] reads what part of a hand-off a request is; one file for each way says what belongs to it.
//! - [`outbox`] holds what a prefill engine has for others, [`kv`] moves it, [`store`] is what engines may share.
//! - [`Leg::enter`] brings a leg's sequences into the engine: a prefill leg with a shipment, a decode leg once its KV has
//!   come. What is done when they have ended is [`After`].

mod client;
pub(crate) mod info;
pub(crate) mod kv;
pub(crate) mod leg;
pub(crate) mod lmcache;
mod mooncake;
mod mori;
mod options;
mod outbox;
mod p2p;
mod pull;
mod push;
mod raw;
mod sglang;
mod sidecar;
mod state;
mod store;

pub use leg::LegKind;
pub(crate) use leg::{Leg, LegError};
pub use options::{HandoffOptions, OnKvFailure};
pub use state::HandoffState;

use crate::engine::{Engine, Ticket};
use crate::model::SeqSpec;
use crate::options::EngineKind;
use crate::text;
use bytes::Bytes;
use fairlead_wire::msg::{Handoff, ServingRole};
use leg::{Prefill, Reply, Source};
use lmcache::{Inbox, Receiver};
use outbox::{Goods, Outbox, Producer};
use state::{Gauge, Tally};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use store::Store;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// An engine's side of hand-offs.
pub(crate) struct Handover {
    pub options: HandoffOptions,
    pub role: ServingRole,
    /// Its name in transfers, another at every start.
    pub engine_id: String,
    pub outbox: Arc<Outbox>,
    pub tally: Tally,
    /// What other engines have pushed here.
    pub inbox: Inbox,
    /// Where notices for the router go.
    notices: Option<mpsc::Sender<Vec<u8>>>,
    store: Option<Store>,
    listen: SocketAddr,
    speed: f64,
}

impl Handover {
    pub fn new(
        options: HandoffOptions,
        role: ServingRole,
        engine_id: String,
        listen: SocketAddr,
        speed: f64,
    ) -> std::io::Result<Self> {
        let store = match options.handoff {
            Handoff::SharedStore => Some(Store::open(options.store.as_deref(), &options.domain, &engine_id)?),
            _ => None,
        };
        let outbox = Arc::new(Outbox::new(options.handoff == Handoff::Sglang));
        Ok(Self {
            options,
            role,
            engine_id,
            outbox,
            tally: Tally::default(),
            inbox: Inbox::default(),
            notices: None,
            store,
            listen,
            speed,
        })
    }

    /// Opens the way on which a router is told of transfers, where there is one: its address, and what to send there.
    pub fn notices(&mut self) -> Option<(SocketAddr, mpsc::Receiver<Vec<u8>>)> {
        let proxy = self.options.lmcache_proxy?;
        let (sender, receiver) = lmcache::notices();
        self.notices = Some(sender);
        Some((proxy, receiver))
    }

    /// Whether other engines push KV here.
    pub fn receives(&self) -> bool {
        self.options.handoff == Handoff::LmcachePd && self.role != ServingRole::Prefill
    }

    /// The leg that this engine alone has, if it has a fixed role.
    pub fn role_kind(&self) -> Option<LegKind> {
        match self.role {
            ServingRole::Both => None,
            ServingRole::Prefill => Some(LegKind::Prefill),
            ServingRole::Decode => Some(LegKind::Decode),
        }
    }

    /// A time of the card in this engine's time.
    pub fn scaled(&self, time: Duration) -> Duration {
        time.div_f64(self.speed)
    }

    /// Where other engines reach this one: host and port.
    pub fn side_channel(&self) -> (String, u16) {
        let ip = self.listen.ip();
        let host = if ip.is_unspecified() { "127.0.0.1".to_owned() } else { ip.to_string() };
        (host, self.listen.port())
    }

    /// A transfer has ended that this engine's connector counts; `time` is the card's.
    pub fn moved(&self, time: Duration, tokens: u32) {
        self.tally.moved(time, u64::from(tokens) * u64::from(self.options.bytes_per_token));
    }
}

/// A request on its way into the engine.
pub(crate) struct Entry {
    pub specs: Vec<SeqSpec>,
    /// Hash of each sequence's prompt.
    pub seeds: Vec<u64>,
    pub body: Bytes,
    /// The route, which a sidecar's prefill leg takes too.
    pub path: String,
    pub request_id: Option<String>,
}

/// A request inside the engine.
pub(crate) struct Entered {
    pub ticket: Ticket,
    pub after: After,
}

/// What is done once a leg's sequences have ended. Dropped before, it gives up what the leg had promised.
#[derive(Default)]
pub(crate) struct After {
    engine: Option<Arc<Engine>>,
    shipments: Vec<Producer>,
    reply: Option<(Reply, Goods)>,
    push: Option<(Receiver, Goods)>,
    paths: Vec<Arc<[u64]>>,
}

impl After {
    /// All sequences have ended: their KV can be fetched. Returns the answer's `kv_transfer_params`, if it has any.
    pub fn finished(&mut self) -> Option<String> {
        let engine = self.engine.clone()?;
        let handover = engine.handover.as_ref()?;
        let (lose, now) = (engine.core().faults.lose_kv, Instant::now());
        if let Some(store) = handover.store.as_ref().filter(|_| !lose) {
            self.paths.drain(..).for_each(|path| store.put(&path));
        }
        let kept = handover.scaled(handover.options.kept());
        let until = (handover.options.handoff != Handoff::Sglang).then_some(now + kept);
        for shipment in &mut self.shipments {
            shipment.ready(until, lose);
        }
        let (reply, goods) = self.reply.take()?;
        let key = self.shipments.first().map_or("", Producer::key);
        let blocks = goods.tokens.div_ceil(engine.options.block_tokens);
        match reply {
            Reply::Nothing => None,
            Reply::Push(receiver) => {
                let first = lmcache::token_id(goods.seed, 0);
                let told = receiver.tell_first.then(|| format!("{{\"first_tok\": {first}}}"));
                self.push = Some((receiver, goods));
                told
            }
            Reply::Nixl(mode) => {
                let until = engine.now() + kept.as_secs_f64();
                Some(pull::reply(handover, mode, key, goods.tokens, blocks, until))
            }
            Reply::Mori => Some(mori::reply(handover, key, blocks)),
        }
    }

    /// Returns once what was promised can no longer be handed over.
    pub async fn broken(&self) -> LegError {
        let mut each: Vec<_> = self.shipments.iter().map(|s| Box::pin(s.broken())).collect();
        let first = std::future::poll_fn(|cx| {
            match each.iter_mut().position(|broken| broken.as_mut().poll(cx).is_ready()) {
                Some(at) => Poll::Ready(at),
                None => Poll::Pending,
            }
        });
        let key = self.shipments.get(first.await).map_or("", Producer::key);
        gone(key)
    }

    /// Waits until the other side has what was handed over, where the answer comes only then.
    pub async fn handed(self) -> Result<(), LegError> {
        if let (Some((receiver, goods)), Some(engine)) = (self.push, &self.engine)
            && let Some(handover) = &engine.handover
        {
            lmcache::push(engine, handover, &receiver, goods).await?;
        }
        for shipment in self.shipments {
            let key = shipment.key().to_owned();
            shipment.taken().await.map_err(|_| gone(&key))?;
        }
        Ok(())
    }
}

/// What the prefill leg in that room says when the other side has left.
fn gone(room: &str) -> LegError {
    LegError::internal(format!("KVTransferError(bootstrap_room={room}): the decode side is gone"))
}

impl Leg {
    /// Whether the request waits for another engine before it can be entered.
    pub fn waits(&self) -> bool {
        matches!(self, Self::Decode(_))
    }

    /// Whether its answer comes when what was computed has been handed over, and not before.
    pub fn answers_late(&self, engine: &Engine) -> bool {
        match self {
            Self::Prefill(prefill) => {
                engine.options.engine == EngineKind::Sglang || matches!(prefill.reply, Reply::Push(_))
            }
            _ => false,
        }
    }

    /// What another engine has pushed of the prompt that this request goes on with, after the first token.
    pub fn continued(&self) -> Option<&Goods> {
        match self {
            Self::Decode(Source::Inbox(goods)) => Some(goods),
            _ => None,
        }
    }

    /// Brings a request's sequences into the engine, once it may come in.
    pub async fn enter(self, engine: Arc<Engine>, mut entry: Entry) -> Result<Entered, LegError> {
        let Some(handover) = engine.handover.clone() else {
            let ticket = engine.submit(&entry.specs)?;
            return Ok(Entered { ticket, after: After::default() });
        };
        handover.tally.leg(self.kind());
        let mut after = After { engine: Some(Arc::clone(&engine)), ..After::default() };
        if let Some(store) = &handover.store {
            let missing = found_in(store, &engine, &handover, &mut entry.specs);
            if missing > 0 {
                let _waiting = Gauge::raise(&handover, LegKind::Decode);
                let time = handover.options.transfer(missing).mul_f64(engine.core().faults.slow_transfers());
                tokio::time::sleep(handover.scaled(time)).await;
                handover.moved(time, missing);
            }
            if handover.role != ServingRole::Decode {
                after.paths = entry.specs.iter().map(|s| Arc::clone(&s.path)).collect();
            }
        }
        match self {
            Self::Plain | Self::Decode(Source::Store) => {}
            Self::Decode(Source::Inbox(goods)) => {
                if let Some(spec) = entry.specs.first_mut() {
                    lmcache::found(&engine, &handover, &goods, spec);
                }
            }
            Self::Prefill(prefill) => prefill.begin(&handover, &entry, &mut after).await?,
            Self::Decode(source) => {
                let _waiting = Gauge::raise(&handover, LegKind::Decode);
                if let Err(e) = receive(&engine, &handover, source, &mut entry).await {
                    handover.tally.failed_load();
                    let fails = handover.options.on_failure == OnKvFailure::Fail;
                    if fails || handover.options.handoff == Handoff::Sglang || e.status.is_client_error() {
                        return Err(e);
                    }
                    entry.specs.iter_mut().for_each(|s| s.remote = 0);
                }
            }
        }
        let ticket = engine.submit(&entry.specs)?;
        Ok(Entered { ticket, after })
    }
}

/// Marks what the shared store has, and says how many tokens of it are not here already.
fn found_in(store: &Store, engine: &Engine, handover: &Handover, specs: &mut [SeqSpec]) -> u32 {
    if engine.core().faults.refuse_kv {
        return 0;
    }
    let mut missing = 0;
    for spec in specs {
        let found = store.leading(&spec.path) as u32 * engine.options.block_tokens;
        let have = engine.cached_tokens(spec);
        if found > have {
            spec.remote = found;
            missing += found - have;
            handover.tally.received(u64::from(found - have));
        }
    }
    missing
}

impl Prefill {
    /// Announces the shipments; where the other side must be there first, waits for it.
    async fn begin(self, handover: &Arc<Handover>, entry: &Entry, after: &mut After) -> Result<(), LegError> {
        if handover.store.is_some() {
            return Ok(());
        }
        for (at, (spec, seed)) in entry.specs.iter().zip(&entry.seeds).enumerate() {
            let mut goods = kv::goods(spec, *seed);
            let key = match self.names.get(at) {
                Some(name) => name.clone(),
                None => handover.request_name(entry, *seed),
            };
            match &self.reply {
                Reply::Push(_) => {
                    after.reply = Some((self.reply, goods));
                    return Ok(());
                }
                Reply::Nixl("pull") => goods.opaque = pull::opaque(&key),
                Reply::Mori if handover.options.handoff == Handoff::MoriRead => {
                    goods.opaque = pull::opaque("mori");
                }
                _ => {}
            }
            after.reply = Some((self.reply.clone(), goods.clone()));
            let shipment = handover.outbox.begin(&key, goods);
            after.shipments.push(shipment.map_err(|e| LegError::internal(e.to_string()))?);
        }
        if handover.options.handoff == Handoff::Sglang {
            let _waiting = Gauge::raise(handover, LegKind::Prefill);
            let limit = handover.options.bootstrap_timeout;
            let meeting = async {
                for shipment in &after.shipments {
                    if shipment.met().await.is_err() {
                        return Err(shipment.key());
                    }
                }
                Ok(())
            };
            match tokio::time::timeout(handover.scaled(limit), meeting).await {
                Ok(Ok(())) => {}
                Ok(Err(key)) => return Err(gone(key)),
                Err(_) => {
                    let message = format!("bootstrapping took more than {} s", limit.as_secs_f64());
                    return Err(LegError::internal(message));
                }
            }
        }
        Ok(())
    }
}

impl Handover {
    /// A request's name inside the engine, as vLLM makes it: the client's id between the route's mark and a random end.
    fn request_name(&self, entry: &Entry, seed: u64) -> String {
        let mark = match entry.path.as_str() {
            "/v1/completions" => "cmpl",
            "/v1/responses" => "resp",
            "/v1/messages" => "msg",
            _ => "chatcmpl",
        };
        let random = text::mix(self.tally.number() ^ xxhash_rust::xxh3::xxh3_64(self.engine_id.as_bytes()));
        // What is no plain text would have to be escaped in the answer.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        let own = format!("{:016x}", text::mix(random ^ seed));
        let id = entry.request_id.as_ref().filter(|id| id.chars().all(plain)).unwrap_or(&own);
        format!("{mark}-{id}-{:08x}", random as u32)
    }
}

/// Fetches the KV of all sequences and notes what came.
async fn receive(
    engine: &Arc<Engine>,
    handover: &Arc<Handover>,
    source: Source,
    entry: &mut Entry,
) -> Result<(), LegError> {
    let (peers, told) = match source {
        Source::Store | Source::Inbox(_) => return Ok(()),
        Source::Peers(peers) => {
            (peers, raw::member(&entry.body, "kv_transfer_params").map(|t| entry.body.slice_ref(t)))
        }
        Source::Prefiller(addr) => {
            let seed = entry.seeds.first().copied().unwrap_or(0);
            let id = entry.request_id.clone().unwrap_or_else(|| format!("{:032x}", text::mix(seed)));
            match sidecar::prefill(&addr, &entry.path, &id, &entry.body).await? {
                sidecar::Prefilled::Handed(peer, told) => (vec![peer], Some(told)),
                sidecar::Prefilled::Alone => {
                    handover.tally.failed_load();
                    return Ok(());
                }
            }
        }
    };
    let mut fetches = JoinSet::new();
    for (at, peer) in peers.into_iter().enumerate() {
        let (Some(spec), Some(seed)) = (entry.specs.get(at), entry.seeds.get(at)) else { break };
        let (goods, have) = (kv::goods(spec, *seed), engine.cached_tokens(spec));
        let (engine, handover) = (Arc::clone(engine), Arc::clone(handover));
        fetches.spawn(async move { (at, have, kv::fetch(&engine, &handover, &peer, goods, have).await) });
    }
    while let Some(done) = fetches.join_next().await {
        let (at, have, shipped) = done.map_err(|e| LegError::internal(e.to_string()))?;
        let shipped = shipped.map_err(|e| LegError::internal(format!("KV load failed: {e}")))?;
        let back = told.as_deref().unwrap_or_default();
        if !shipped.opaque.is_empty() && place_of(back, shipped.opaque.as_bytes()).is_none() {
            let message = "KV load failed: kv_transfer_params did not come back as they were given";
            return Err(LegError::internal(message));
        }
        entry.specs[at].remote = shipped.tokens;
        handover.tally.received(u64::from(shipped.tokens.saturating_sub(have)));
    }
    Ok(())
}

/// Where `needle` begins in `text`.
fn place_of(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len()).position(|w| w == needle)
}

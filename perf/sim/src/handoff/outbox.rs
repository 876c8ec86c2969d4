//! What a prefill engine has computed for others, each under the name that its hand-off gives it, until its one consumer
//! has it or time is up.
//!
//! Producer and consumer may come in either order. Each holds a guard: dropped before its part is done, it undoes what
//! it began, so that a client that leaves frees everything at once. Expired shipments are counted when somebody looks.

use crate::engine::lock;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::Notify;

/// Names that are remembered after their end, so that a second use can be told from a first.
const REMEMBERED: usize = 65_536;

/// What is handed over: the KV of one prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Goods {
    /// Prompt tokens.
    pub tokens: u32,
    /// Hash of the whole prompt.
    pub seed: u64,
    /// Name of its last full block, which model, adapter and salt are part of.
    pub block: Option<u64>,
    /// What must come back as it was given.
    pub opaque: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Only the consumer is here.
    Awaited,
    /// The prefill leg is here.
    Computing,
    /// There until it expires, if it does.
    Ready(Option<Instant>),
    /// On its way.
    Sending,
}

/// How a shipment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Taken,
    Expired,
    Lost,
    Failed,
}

impl End {
    fn says(self) -> &'static str {
        match self {
            Self::Taken => "was taken already",
            Self::Expired => "has expired",
            Self::Lost => "is lost",
            Self::Failed => "failed on the other side",
        }
    }
}

struct Shipment {
    stage: Stage,
    goods: Goods,
    producer: bool,
    consumer: bool,
    changed: Arc<Notify>,
}

/// Shipments now, and how those before ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Consumers without a prefill leg.
    pub awaited: u64,
    /// Being computed.
    pub computing: u64,
    /// Computed, without a consumer.
    pub ready: u64,
    /// On their way.
    pub sending: u64,
    /// Fetched.
    pub taken: u64,
    /// Not fetched in time.
    pub expired: u64,
    /// Dropped on demand.
    pub lost: u64,
    /// Broken off by either side.
    pub failed: u64,
    /// Shipments that nobody looks after: always 0 unless something is wrong.
    pub unowned: u64,
}

#[derive(Default)]
struct Inner {
    live: HashMap<String, Shipment>,
    over: HashMap<String, End>,
    order: VecDeque<String>,
    counts: Counts,
}

impl Inner {
    fn end(&mut self, key: &str, end: End) {
        let Some(gone) = self.live.remove(key) else { return };
        gone.changed.notify_waiters();
        match end {
            End::Taken => self.counts.taken += 1,
            End::Expired => self.counts.expired += 1,
            End::Lost => self.counts.lost += 1,
            End::Failed => self.counts.failed += 1,
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.over.remove(&oldest);
        }
        if self.over.insert(key.to_owned(), end).is_none() {
            self.order.push_back(key.to_owned());
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let late = |s: &Shipment| matches!(s.stage, Stage::Ready(Some(until)) if until <= now);
        let late: Vec<String> =
            self.live.iter().filter(|(_, s)| late(s)).map(|(key, _)| key.clone()).collect();
        for key in late {
            self.end(&key, End::Expired);
        }
    }

    fn set(&mut self, key: &str, stage: Stage) {
        if let Some(s) = self.live.get_mut(key) {
            s.stage = stage;
            s.changed.notify_waiters();
        }
    }
}

/// A name was used before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key:?} is in use or {}", End::Taken.says())]
pub(crate) struct Used {
    key: String,
}

/// The shipments of one engine.
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    /// Whether names are drawn for one use, and each side learns at once that the other has left: SGLang's rooms. Where
    /// not, a consumer waits on, as the engine's does.
    tells: bool,
}

impl Outbox {
    pub fn new(tells: bool) -> Self {
        Self { inner: Mutex::default(), tells }
    }

    pub fn counts(&self) -> Counts {
        let mut inner = lock(&self.inner);
        inner.expire();
        let mut counts = inner.counts;
        for s in inner.live.values() {
            match s.stage {
                Stage::Awaited => counts.awaited += 1,
                Stage::Computing => counts.computing += 1,
                Stage::Ready(_) => counts.ready += 1,
                Stage::Sending => counts.sending += 1,
            }
            let owned = match s.stage {
                Stage::Awaited | Stage::Sending => s.consumer,
                Stage::Computing => s.producer,
                Stage::Ready(until) => s.producer || s.consumer || until.is_some(),
            };
            counts.unowned += u64::from(!owned);
        }
        counts
    }

    /// The prefill leg of that name has come.
    pub fn begin(self: &Arc<Self>, key: &str, goods: Goods) -> Result<Producer, Used> {
        let used = || Used { key: key.to_owned() };
        let mut inner = lock(&self.inner);
        inner.expire();
        // Only where names are drawn for one use is a second one wrong; a retry may come under the same request id.
        if self.tells && inner.over.contains_key(key) {
            return Err(used());
        }
        inner.over.remove(key);
        match inner.live.get_mut(key) {
            Some(s) if s.producer || s.stage != Stage::Awaited => return Err(used()),
            Some(s) => (s.stage, s.goods, s.producer) = (Stage::Computing, goods, true),
            None => {
                let changed = Arc::default();
                let (stage, producer, consumer) = (Stage::Computing, true, false);
                inner.live.insert(key.to_owned(), Shipment { stage, goods, producer, consumer, changed });
            }
        }
        inner.set(key, Stage::Computing);
        Ok(Producer { outbox: Arc::clone(self), key: key.to_owned(), done: false })
    }

    /// A consumer asks for that name. Where the prefill leg may come later, it is waited for.
    pub fn claim(self: &Arc<Self>, key: &str, may_come: bool) -> Result<Consumer, String> {
        let mut inner = lock(&self.inner);
        inner.expire();
        if let Some(end) = inner.over.get(key).filter(|_| self.tells || !may_come) {
            return Err(format!("{key:?} {}", end.says()));
        }
        match inner.live.get_mut(key) {
            Some(s) if s.consumer => return Err(format!("{key:?} has a consumer already")),
            Some(s) => s.consumer = true,
            None if may_come => {
                let (stage, producer, consumer) = (Stage::Awaited, false, true);
                let goods = Goods::default();
                let changed = Arc::default();
                inner.live.insert(key.to_owned(), Shipment { stage, goods, producer, consumer, changed });
            }
            None => return Err(format!("{key:?} is not known here")),
        }
        if let Some(s) = inner.live.get(key) {
            s.changed.notify_waiters();
        }
        Ok(Consumer { outbox: Arc::clone(self), key: key.to_owned(), done: false })
    }

    /// Waits until `look` has an answer; it is asked again after each change. `None`: the shipment is gone.
    async fn until<T>(&self, key: &str, look: impl Fn(&mut Inner) -> Option<T>) -> Result<T, End> {
        loop {
            let changed = {
                let mut inner = lock(&self.inner);
                if let Some(found) = look(&mut inner) {
                    return Ok(found);
                }
                let Some(s) = inner.live.get(key) else {
                    return Err(inner.over.get(key).copied().unwrap_or(End::Failed));
                };
                // Registered before the lock is let go, so that no change is missed.
                let mut changed = Box::pin(Arc::clone(&s.changed).notified_owned());
                changed.as_mut().enable();
                changed
            };
            changed.await;
        }
    }
}

/// The prefill leg's hold on its shipment. Dropped before the KV is there, it breaks off.
pub(crate) struct Producer {
    outbox: Arc<Outbox>,
    key: String,
    done: bool,
}

impl Producer {
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Waits for the consumer.
    pub async fn met(&self) -> Result<(), End> {
        let here = |inner: &mut Inner| inner.live.get(&self.key)?.consumer.then_some(());
        self.outbox.until(&self.key, here).await
    }

    /// The KV is there, until `until` if nobody has asked by then. With `lose`, it is gone at once.
    pub fn ready(&mut self, until: Option<Instant>, lose: bool) {
        let mut inner = lock(&self.outbox.inner);
        if lose {
            inner.end(&self.key, End::Lost);
        } else {
            inner.set(&self.key, Stage::Ready(until));
        }
        // Where the producer is told, it stays until the shipment is taken.
        self.done = !self.outbox.tells;
        if self.done
            && let Some(s) = inner.live.get_mut(&self.key)
        {
            s.producer = false;
        }
    }

    /// Returns once the shipment is gone.
    pub async fn broken(&self) -> End {
        self.outbox.until::<()>(&self.key, |_| None).await.err().unwrap_or(End::Failed)
    }

    /// Waits until the consumer has it.
    pub async fn taken(mut self) -> Result<(), End> {
        let ended = self.broken().await;
        self.done = true;
        if ended == End::Taken { Ok(()) } else { Err(ended) }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut inner = lock(&self.outbox.inner);
        let Some(s) = inner.live.get_mut(&self.key) else { return };
        s.producer = false;
        if s.consumer && !self.outbox.tells {
            inner.set(&self.key, Stage::Awaited);
        } else {
            inner.end(&self.key, End::Failed);
        }
    }
}

/// The consumer's hold on a shipment. Dropped before it was sent, it breaks off.
pub(crate) struct Consumer {
    outbox: Arc<Outbox>,
    key: String,
    done: bool,
}

impl Consumer {
    /// Waits until the KV is there; from then on it is on its way.
    pub async fn ready(&self) -> Result<Goods, String> {
        let there = |inner: &mut Inner| match inner.live.get_mut(&self.key) {
            Some(s) if matches!(s.stage, Stage::Ready(_)) => {
                s.stage = Stage::Sending;
                Some(s.goods.clone())
            }
            _ => None,
        };
        self.outbox.until(&self.key, there).await.map_err(|end| format!("{:?} {}", self.key, end.says()))
    }

    /// Returns once the shipment is gone, and says why.
    pub async fn broken(&self) -> String {
        let end = self.outbox.until::<()>(&self.key, |_| None).await.err().unwrap_or(End::Failed);
        format!("{:?} {}", self.key, end.says())
    }

    /// It has arrived.
    pub fn sent(mut self) {
        self.done = true;
        lock(&self.outbox.inner).end(&self.key, End::Taken);
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut inner = lock(&self.outbox.inner);
        let Some(s) = inner.live.get_mut(&self.key) else { return };
        s.consumer = false;
        match s.stage {
            // Nobody has begun anything: the name stays free.
            Stage::Awaited => _ = inner.live.remove(&self.key),
            Stage::Computing | Stage::Ready(_) if !self.outbox.tells => s.changed.notify_waiters(),
            _ => inner.end(&self.key, End::Failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn goods(tokens: u32) -> Goods {
        Goods { tokens, ..Goods::default() }
    }

    fn later() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(3600))
    }

    #[tokio::test]
    async fn in_either_order_the_one_consumer_gets_it() {
        for consumer_first in [false, true] {
            let outbox = Arc::new(Outbox::new(false));
            let early = consumer_first.then(|| outbox.claim("a", true).unwrap());
            let mut p = outbox.begin("a", goods(7)).unwrap();
            p.ready(later(), false);
            drop(p);
            let c = early.unwrap_or_else(|| outbox.claim("a", false).unwrap());
            assert!(outbox.claim("a", true).is_err(), "a second consumer");
            assert_eq!(c.ready().await.unwrap().tokens, 7);
            assert_eq!(outbox.counts().sending, 1);
            c.sent();
            assert_eq!(outbox.counts(), Counts { taken: 1, ..Counts::default() });
            assert!(outbox.claim("a", false).err().unwrap().contains("taken"));
            assert!(outbox.begin("a", goods(7)).is_ok(), "a retry");
        }
    }

    #[tokio::test]
    async fn what_nobody_fetches_expires_or_is_lost() {
        let outbox = Arc::new(Outbox::new(false));
        assert!(outbox.claim("a", false).err().unwrap().contains("not known"));
        outbox.begin("a", goods(1)).unwrap().ready(Some(Instant::now()), false);
        assert_eq!(outbox.counts(), Counts { expired: 1, ..Counts::default() });
        assert!(outbox.claim("a", false).err().unwrap().contains("expired"));
        outbox.begin("b", goods(1)).unwrap().ready(later(), true);
        assert!(outbox.claim("b", false).err().unwrap().contains("lost"));
    }

    #[tokio::test]
    async fn who_leaves_is_noticed_where_the_engine_notices() {
        for tells in [false, true] {
            let outbox = Arc::new(Outbox::new(tells));
            let p = outbox.begin("a", goods(1)).unwrap();
            let c = outbox.claim("a", true).unwrap();
            p.met().await.unwrap();
            drop(p);
            let waits = tokio::time::timeout(Duration::from_millis(1), c.ready()).await.is_err();
            assert_eq!(waits, !tells);
            drop(c);
            let counts = outbox.counts();
            assert_eq!((counts.awaited, counts.failed, counts.unowned), (0, u64::from(tells), 0));

            let mut p = outbox.begin("b", goods(1)).unwrap();
            drop(outbox.claim("b", true).unwrap());
            p.ready(later(), false);
            let counts = outbox.counts();
            assert_eq!((counts.ready, counts.unowned), (u64::from(!tells), 0));
            if tells {
                assert!(outbox.begin("b", goods(1)).is_err() && outbox.claim("b", true).is_err(), "one use");
                assert_eq!(p.taken().await, Err(End::Failed));
            }
        }
    }
}

//! Kept connections to targets, one pool per shard.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use ahash::AHashMap;
use fairlead_wire::TargetId;

use crate::runtime::{Link, Runtime, Stream};

/// Time since its last answer in which a connection is reused without asking the kernel whether it is still quiet: under
/// load that would be a system call for each request. One that has died meanwhile ends without a byte, and the request
/// goes out anew.
const FRESH_US: u64 = 1_000;

struct Kept<S> {
    socket: S,
    since_us: u64,
}

type Idle<S> = AHashMap<TargetId, VecDeque<Kept<Link<S>>>>;

/// Idle connections by target, the youngest reused first. Bounded per target: the oldest makes room.
pub struct Pool<R: Runtime> {
    idle: RefCell<Idle<R::Socket>>,
    max_idle_us: u64,
    per_target: usize,
}

impl<R: Runtime> Pool<R> {
    /// An empty pool.
    pub fn new(max_idle: Duration, per_target: usize) -> Self {
        Self { idle: RefCell::default(), max_idle_us: max_idle.as_micros() as u64, per_target }
    }

    /// Takes a connection that is young enough and that the target has not closed.
    pub fn take(&self, target: TargetId) -> Option<Link<R::Socket>> {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(&target)?;
        let now_us = R::now_us();
        let oldest = now_us.saturating_sub(self.max_idle_us);
        while let Some(Kept { socket, since_us }) = kept.pop_back() {
            if since_us < oldest {
                // All that are left are older still.
                kept.clear();
                return None;
            }
            if now_us.saturating_sub(since_us) < FRESH_US || socket.is_quiet() {
                return Some(socket);
            }
        }
        None
    }

    /// Keeps a connection whose last answer has ended.
    pub fn put(&self, target: TargetId, socket: Link<R::Socket>) {
        if self.per_target == 0 {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let kept = idle.entry(target).or_default();
        if kept.len() >= self.per_target {
            kept.pop_front();
        }
        kept.push_back(Kept { socket, since_us: R::now_us() });
    }

    /// Closes what is too old and forgets targets without connections.
    pub fn purge(&self) {
        let oldest = R::now_us().saturating_sub(self.max_idle_us);
        self.idle.borrow_mut().retain(|_, kept| {
            while kept.front().is_some_and(|first| first.since_us < oldest) {
                kept.pop_front();
            }
            !kept.is_empty()
        });
    }
}

//! Telling connections that do not end by themselves that the shard is about to.

use std::cell::{Cell, RefCell};
use std::task::{Context, Waker};

use ahash::AHashMap;

/// Whoever is to be told, of one shard.
#[derive(Debug, Default)]
pub struct Farewells {
    said: Cell<bool>,
    waiting: RefCell<AHashMap<u64, Waker>>,
    next: Cell<u64>,
}

impl Farewells {
    /// Tells all that wait now or later.
    pub fn say(&self) {
        if !self.said.replace(true) {
            std::mem::take(&mut *self.waiting.borrow_mut()).into_values().for_each(Waker::wake);
        }
    }

    /// A place among those that are told.
    pub fn wait(&self) -> Farewell<'_> {
        let key = self.next.get();
        self.next.set(key.wrapping_add(1));
        Farewell { all: self, key }
    }
}

/// One that is told.
#[derive(Debug)]
pub struct Farewell<'a> {
    all: &'a Farewells,
    key: u64,
}

impl Farewell<'_> {
    /// Whether it was said; if not, the task is woken when it is.
    pub fn is_said(&self, cx: &Context<'_>) -> bool {
        if self.all.said.get() {
            return true;
        }
        let mut waiting = self.all.waiting.borrow_mut();
        match waiting.get_mut(&self.key) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => drop(waiting.insert(self.key, cx.waker().clone())),
        }
        false
    }
}

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        self.all.waiting.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn all_that_are_left_are_told_once() {
        let farewells = Farewells::default();
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let cx = Context::from_waker(&waker);
        let (here, gone) = (farewells.wait(), farewells.wait());
        assert!(!here.is_said(&cx) && !gone.is_said(&cx) && !here.is_said(&cx));
        drop(gone);
        farewells.say();
        farewells.say();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(here.is_said(&cx) && farewells.wait().is_said(&cx));
    }
}

//! Deadlines of a shard's connections.
//!
//! A read or write that is under way must not be dropped, so a deadline does not race it: the sweeper shuts the
//! socket's direction down when the time is over, and the operation ends by itself. Arming is two stores; the sweep
//! passes over a flat table a few times a second, which bounds how late a deadline fires.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::runtime::{Direction, Link, LinkHandle, Runtime, Stream};

/// Names a connection of the runtime.
type Handle<R> = LinkHandle<<R as Runtime>::Socket>;

/// Longest pause between sweeps.
const MAX_TICK_US: u64 = 200_000;
/// Shortest pause between sweeps: how late a deadline may fire when it is near.
const MIN_TICK_US: u64 = 10_000;

struct Entry<R: Runtime> {
    at_us: u64,
    /// `None` where the place is free.
    handle: Option<Handle<R>>,
    direction: Direction,
    fired: bool,
    idle: bool,
    /// It ends by itself when all are ended, with a last word.
    parts: bool,
    live: bool,
}

/// The table of one shard.
pub struct Deadlines<R: Runtime> {
    entries: RefCell<Vec<Entry<R>>>,
    free: RefCell<Vec<usize>>,
}

impl<R: Runtime> Default for Deadlines<R> {
    fn default() -> Self {
        Self { entries: RefCell::default(), free: RefCell::default() }
    }
}

impl<R: Runtime> Deadlines<R> {
    /// Registers a connection without a deadline. The guard must not outlive it.
    pub fn register(self: &Rc<Self>, handle: Handle<R>) -> Guard<R> {
        let entry = Entry {
            at_us: u64::MAX,
            handle: Some(handle),
            direction: Direction::Read,
            fired: false,
            idle: false,
            parts: false,
            live: true,
        };
        let mut entries = self.entries.borrow_mut();
        let index = match self.free.borrow_mut().pop() {
            Some(index) => {
                entries[index] = entry;
                index
            }
            None => {
                entries.push(entry);
                entries.len() - 1
            }
        };
        Guard { table: self.clone(), index }
    }

    /// Ends what is overdue and returns how long to sleep until the next sweep.
    pub fn sweep(&self, now_us: u64) -> Duration {
        let mut next = MAX_TICK_US;
        for entry in self.entries.borrow_mut().iter_mut().filter(|entry| entry.live) {
            if entry.at_us <= now_us {
                fire(entry);
            } else {
                next = next.min(entry.at_us - now_us);
            }
        }
        Duration::from_micros(next.max(MIN_TICK_US))
    }

    /// Ends every connection that waits for a request.
    pub fn end_idle(&self) {
        self.entries.borrow_mut().iter_mut().filter(|entry| entry.live && entry.idle).for_each(fire);
    }

    /// Ends every connection in both directions, except those that end by themselves.
    pub fn end_all(&self) {
        for entry in self.entries.borrow_mut().iter_mut().filter(|entry| entry.live && !entry.parts) {
            entry.direction = Direction::Both;
            fire(entry);
        }
    }
}

fn fire<R: Runtime>(entry: &mut Entry<R>) {
    entry.at_us = u64::MAX;
    entry.fired = true;
    if let Some(handle) = &entry.handle {
        Link::<R::Socket>::shutdown_by(handle, entry.direction);
    }
}

/// One connection's place in the table.
pub struct Guard<R: Runtime> {
    table: Rc<Deadlines<R>>,
    index: usize,
}

impl<R: Runtime> Guard<R> {
    /// Ends reading `after` from now.
    pub fn arm_read(&self, after: Duration) {
        self.set(R::now_us().saturating_add(after.as_micros() as u64), Direction::Read, false);
    }

    /// Ends reading at a point in time.
    pub fn arm_read_at(&self, at_us: u64) {
        self.set(at_us, Direction::Read, false);
    }

    /// Like [`arm_read`](Self::arm_read), and marks the connection as waiting for a request: a drain may end it.
    pub fn arm_idle(&self, after: Duration) {
        self.set(R::now_us().saturating_add(after.as_micros() as u64), Direction::Read, true);
    }

    /// Ends both directions `after` from now.
    pub fn arm_write(&self, after: Duration) {
        self.set(R::now_us().saturating_add(after.as_micros() as u64), Direction::Both, false);
    }

    /// No deadline.
    pub fn clear(&self) {
        self.set(u64::MAX, Direction::Read, false);
    }

    /// Whether the connection ends by itself when all are ended.
    pub fn set_parting(&self, parts: bool) {
        self.table.entries.borrow_mut()[self.index].parts = parts;
    }

    /// Whether a deadline (or a drain) has ended the connection.
    pub fn fired(&self) -> bool {
        self.table.entries.borrow()[self.index].fired
    }

    fn set(&self, at_us: u64, direction: Direction, idle: bool) {
        let mut entries = self.table.entries.borrow_mut();
        let entry = &mut entries[self.index];
        entry.at_us = at_us;
        entry.direction = direction;
        entry.idle = idle;
    }
}

impl<R: Runtime> Drop for Guard<R> {
    fn drop(&mut self) {
        let entry = &mut self.table.entries.borrow_mut()[self.index];
        (entry.live, entry.handle) = (false, None);
        self.table.free.borrow_mut().push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Monoio;
    use std::io::Read;
    use std::os::fd::AsRawFd;

    fn pair() -> (std::net::TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn overdue_entries_are_ended_once_and_places_are_reused() {
        let table = Rc::new(Deadlines::<Monoio>::default());
        let (_client, mut server) = pair();
        let guard = table.register(LinkHandle::Plain(server.as_raw_fd()));
        assert_eq!(table.sweep(0), Duration::from_micros(MAX_TICK_US));
        guard.arm_read_at(50_000);
        assert_eq!(table.sweep(0), Duration::from_micros(50_000));
        assert_eq!(table.sweep(49_999), Duration::from_micros(MIN_TICK_US));
        assert!(!guard.fired());
        table.sweep(50_000);
        assert!(guard.fired());
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
        drop(guard);
        let again = table.register(LinkHandle::Plain(server.as_raw_fd()));
        assert_eq!((again.index, again.fired()), (0, false));
    }

    #[test]
    fn a_drain_ends_idle_connections_only() {
        let table = Rc::new(Deadlines::<Monoio>::default());
        let (pair_a, pair_b) = (pair(), pair());
        let idle = table.register(LinkHandle::Plain(pair_a.1.as_raw_fd()));
        let busy = table.register(LinkHandle::Plain(pair_b.1.as_raw_fd()));
        idle.arm_idle(Duration::from_secs(60));
        busy.arm_read(Duration::from_secs(60));
        table.end_idle();
        assert!(idle.fired() && !busy.fired());
        busy.set_parting(true);
        table.end_all();
        assert!(!busy.fired());
        busy.set_parting(false);
        table.end_all();
        assert!(busy.fired());
    }
}

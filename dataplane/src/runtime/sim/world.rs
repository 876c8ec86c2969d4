//! Tasks, time and chance.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::net::Net;

/// Virtual time at which a world begins: an hour, so that "some time ago" can be computed without saturating.
const START_US: u64 = 3_600_000_000;
/// Polls without any progress of time by a timer after which a world counts as stuck.
const STUCK: u64 = 20_000_000;

/// A simulated process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u32);

/// The world's owner: tasks spawned outside of any process, which nobody kills.
const OUTSIDE: ProcessId = ProcessId(0);

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct WorldOptions {
    /// Decides everything that is decided by chance.
    pub seed: u64,
    /// Longest time that one poll of a task takes, microseconds.
    pub poll_us: u64,
    /// Latest that a timer fires behind its time, microseconds.
    pub late_us: u64,
    /// Shortest and longest time that bytes are on their way, microseconds.
    pub wire_us: (u64, u64),
    /// Bytes that one direction of a connection holds before writers wait.
    pub socket_bytes: usize,
    /// Is told everything that enters the trace: the time, the process and what it was.
    pub log: Option<fn(u64, ProcessId, u64)>,
}

impl WorldOptions {
    /// A quick network and bounded buffers.
    pub fn seeded(seed: u64) -> Self {
        Self { seed, poll_us: 5, late_us: 1_000, wire_us: (20, 300), socket_bytes: 16 * 1024, log: None }
    }
}

type BoxedFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    owner: ProcessId,
    /// `None` while it is being polled.
    future: Option<BoxedFuture>,
    waker: Arc<TaskWaker>,
}

/// See [`World::chances`].
#[derive(Debug)]
pub struct Chances(Cell<u64>);

impl Chances {
    /// A number below `bound` (0 for 0).
    pub fn below(&self, bound: u64) -> u64 {
        let next = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(next);
        if bound == 0 { 0 } else { mix(next) % bound }
    }

    /// True once in `of` times.
    pub fn chance(&self, of: u64) -> bool {
        self.below(of) == 0
    }
}

/// Tasks that were woken. The only part that a waker may touch, hence the lock that nobody ever waits for.
type Ready = Arc<Mutex<Vec<u64>>>;

struct TaskWaker {
    id: u64,
    queued: AtomicBool,
    ready: Ready,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        }
    }
}

#[derive(Default)]
struct Process {
    /// What its clock shows beyond the world's.
    offset_us: u64,
    /// It runs nothing before this.
    paused_until_us: u64,
}

struct Timer {
    at_us: u64,
    order: u64,
    waker: Waker,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.order) == (other.at_us, other.order)
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

/// See the module's documentation. Cheap to clone: all clones are the same world.
#[derive(Clone)]
pub struct World(Rc<Inner>);

struct Inner {
    options: WorldOptions,
    random: Cell<u64>,
    trace: Cell<u64>,
    events: Cell<u64>,
    now_us: Cell<u64>,
    running: Cell<ProcessId>,
    next: Cell<u64>,
    timers_made: Cell<u64>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    ready: Ready,
    timers: RefCell<BinaryHeap<Reverse<Timer>>>,
    processes: RefCell<Vec<Process>>,
    net: RefCell<Net>,
}

thread_local! {
    static CURRENT: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// The world that runs on this thread.
///
/// # Panics
/// There is none.
pub(super) fn current<T>(with: impl FnOnce(&World) -> T) -> T {
    let world = CURRENT.with_borrow(Clone::clone).expect("a world runs on this thread");
    with(&world)
}

/// Like [`current`]; nothing happens without a world, which is so while a world is dropped.
pub(super) fn try_current(with: impl FnOnce(&World)) {
    if let Ok(Some(world)) = CURRENT.try_with(|current| current.borrow().clone()) {
        with(&world);
    }
}

/// See [`World::chances`], of the world on this thread.
pub fn chances(of: u64) -> Chances {
    current(|world| world.chances(of))
}

/// A number below `bound` (0 for 0), from the seed of the world on this thread.
pub fn below(bound: u64) -> u64 {
    current(|world| world.below(bound))
}

/// True once in `of` times.
pub fn chance(of: u64) -> bool {
    below(of) == 0
}

/// Adds something that happened to the trace of the world on this thread.
pub fn note(what: u64) {
    current(|world| world.note(what));
}

/// Virtual time of the world on this thread, microseconds; every process's clock differs from it by an offset.
pub fn now() -> u64 {
    current(World::now_us)
}

/// Whether a world runs on this thread: not so while one is dropped.
pub fn is_running() -> bool {
    CURRENT.try_with(|current| current.borrow().is_some()).unwrap_or(false)
}

/// Wakes a task at a virtual time of the world on this thread.
pub fn wake_at(at_us: u64, waker: &Waker) {
    current(|world| world.timer(at_us, waker));
}

/// The process whose task runs.
pub fn process() -> ProcessId {
    current(World::process)
}

/// Waits, and then up to [`WorldOptions::late_us`] longer.
pub(super) fn sleep(duration: Duration) -> impl Future<Output = ()> + 'static {
    let at_us = current(|world| {
        let late = world.below(world.0.options.late_us + 1);
        world.now_us().saturating_add(duration.as_micros() as u64).saturating_add(late)
    });
    std::future::poll_fn(move |cx| {
        current(|world| {
            if world.now_us() >= at_us {
                return Poll::Ready(());
            }
            world.timer(at_us, cx.waker());
            Poll::Pending
        })
    })
}

impl World {
    /// An empty world at its beginning.
    pub fn new(options: WorldOptions) -> Self {
        Self(Rc::new(Inner {
            random: Cell::new(options.seed),
            trace: Cell::new(0),
            events: Cell::new(0),
            now_us: Cell::new(START_US),
            running: Cell::new(OUTSIDE),
            next: Cell::new(1),
            timers_made: Cell::new(0),
            tasks: RefCell::default(),
            ready: Ready::default(),
            timers: RefCell::default(),
            processes: RefCell::new(vec![Process::default()]),
            net: RefCell::default(),
            options,
        }))
    }

    /// A new process whose clock is ahead of the world's by `offset_us`.
    pub fn process_with(&self, offset_us: u64) -> ProcessId {
        let mut processes = self.0.processes.borrow_mut();
        processes.push(Process { offset_us, paused_until_us: 0 });
        ProcessId(processes.len() as u32 - 1)
    }

    /// Starts a task of a process.
    pub fn spawn(&self, owner: ProcessId, future: impl Future<Output = ()> + 'static) {
        let id = self.number();
        let waker = Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready: self.0.ready.clone() });
        waker.wake_by_ref();
        self.0.tasks.borrow_mut().insert(id, Task { owner, future: Some(Box::pin(future)), waker });
    }

    /// Ends a process: its tasks are dropped, and with them its connections and listeners. From within one of its own
    /// tasks, that task is dropped when it next waits.
    pub fn kill(&self, process: ProcessId) {
        let mut dead = Vec::new();
        self.0.tasks.borrow_mut().retain(|_, task| {
            if task.owner != process {
                return true;
            }
            dead.push(task.future.take());
            false
        });
        self.as_process(process, || drop(dead));
    }

    /// Ends everything: a world whose tasks hold it would otherwise live for ever.
    pub fn end(&self) {
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        self.as_process(OUTSIDE, || drop(tasks));
        self.0.timers.borrow_mut().clear();
    }

    /// A process runs nothing for a while, as if its machine had no time for it.
    pub fn pause(&self, process: ProcessId, for_us: u64) {
        let until = self.now_us() + for_us;
        if let Some(entry) = self.0.processes.borrow_mut().get_mut(process.0 as usize) {
            entry.paused_until_us = entry.paused_until_us.max(until);
        }
        // Something must be due at its end, or time would pass it by.
        self.wake_at(until);
    }

    /// Connects to `addr` hang, and bytes on its connections wait, until the silence is lifted.
    pub fn silence(&self, addr: std::net::SocketAddr, silent: bool) {
        self.0.net.borrow_mut().silence(addr, silent);
    }

    /// Runs `body` as if a task of `process` did.
    pub fn as_process<T>(&self, process: ProcessId, body: impl FnOnce() -> T) -> T {
        let before = CURRENT.replace(Some(self.clone()));
        let running = self.0.running.replace(process);
        let result = body();
        self.0.running.set(running);
        CURRENT.set(before);
        result
    }

    /// Makes sure that time does not pass by a point at which somebody wants to look.
    pub fn wake_at(&self, at_us: u64) {
        self.timer(at_us, Waker::noop());
    }

    /// Runs the world for some time.
    ///
    /// # Panics
    /// Tasks wake each other without end and without time passing.
    pub fn run_for(&self, us: u64) {
        let end = self.now_us() + us;
        self.wake_at(end);
        self.run_until(|| self.now_us() >= end);
    }

    /// Runs the world until `done`, which is asked between two polls. Gives up, with false, when nothing is left to
    /// happen.
    ///
    /// # Panics
    /// As for [`World::run_for`].
    pub fn run_until(&self, mut done: impl FnMut() -> bool) -> bool {
        let before = CURRENT.replace(Some(self.clone()));
        let mut polls = 0;
        let ended = loop {
            if done() {
                break true;
            }
            self.due();
            if let Some(id) = self.choose() {
                self.poll(id);
                polls += 1;
                assert!(polls < STUCK, "tasks wake each other for ever");
            } else if self.advance() {
                polls = 0;
            } else {
                break false;
            }
        };
        CURRENT.set(before);
        ended
    }

    /// Virtual time, microseconds.
    pub fn now_us(&self) -> u64 {
        self.0.now_us.get()
    }

    /// The clock of the process whose task runs.
    pub fn process_now(&self) -> u64 {
        let offset = self.0.processes.borrow()[self.process().0 as usize].offset_us;
        self.now_us() + offset
    }

    /// The process whose task runs.
    pub fn process(&self) -> ProcessId {
        self.0.running.get()
    }

    /// Hash of all that has happened, in order.
    pub fn trace(&self) -> u64 {
        self.0.trace.get()
    }

    /// How much of it.
    pub fn events(&self) -> u64 {
        self.0.events.get()
    }

    /// Adds something that happened.
    pub fn note(&self, what: u64) {
        self.0.trace.set(mix(self.0.trace.get().rotate_left(5) ^ what));
        self.0.events.set(self.0.events.get() + 1);
        if let Some(log) = &self.0.options.log {
            log(self.now_us(), self.process(), what);
        }
    }

    /// A number below `bound` (0 for 0).
    pub fn below(&self, bound: u64) -> u64 {
        let next = self.0.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.random.set(next);
        if bound == 0 { 0 } else { mix(next) % bound }
    }

    /// A source of chance of its own for one thing that is used in an order which nobody has decided: hash maps are
    /// walked in another order in every process.
    pub fn chances(&self, of: u64) -> Chances {
        Chances(Cell::new(mix(self.0.options.seed ^ mix(of))))
    }

    pub(super) fn options(&self) -> &WorldOptions {
        &self.0.options
    }

    pub(super) fn net(&self) -> &RefCell<Net> {
        &self.0.net
    }

    /// A number never given before.
    pub(super) fn number(&self) -> u64 {
        let id = self.0.next.get();
        self.0.next.set(id + 1);
        id
    }

    /// Wakes a task at a time.
    pub(super) fn timer(&self, at_us: u64, waker: &Waker) {
        let order = self.0.timers_made.get();
        self.0.timers_made.set(order + 1);
        self.0.timers.borrow_mut().push(Reverse(Timer { at_us, order, waker: waker.clone() }));
    }

    /// Wakes whoever waited for a time that has come.
    fn due(&self) {
        let now = self.now_us();
        let mut timers = self.0.timers.borrow_mut();
        while timers.peek().is_some_and(|Reverse(timer)| timer.at_us <= now) {
            if let Some(Reverse(timer)) = timers.pop() {
                timer.waker.wake();
            }
        }
    }

    /// Jumps to the next time at which something is due.
    fn advance(&self) -> bool {
        let Some(at) = self.0.timers.borrow().peek().map(|Reverse(timer)| timer.at_us) else { return false };
        self.0.now_us.set(at.max(self.now_us()));
        true
    }

    /// Takes one of the tasks that may run.
    fn choose(&self) -> Option<u64> {
        let mut ready = self.0.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let tasks = self.0.tasks.borrow();
        ready.retain(|id| tasks.contains_key(id));
        let processes = self.0.processes.borrow();
        let now = self.now_us();
        let may = |id: &u64| {
            tasks.get(id).is_some_and(|task| processes[task.owner.0 as usize].paused_until_us <= now)
        };
        let count = ready.iter().filter(|id| may(id)).count();
        if count == 0 {
            return None;
        }
        let nth = self.below(count as u64) as usize;
        // By number, because they may have been woken in an order that nobody has decided.
        ready.sort_unstable();
        let at = ready.iter().enumerate().filter(|(_, id)| may(id)).nth(nth)?.0;
        Some(ready.remove(at))
    }

    fn poll(&self, id: u64) {
        let (owner, future, waker) = {
            let mut tasks = self.0.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(&id) else { return };
            task.waker.queued.store(false, Ordering::Relaxed);
            (task.owner, task.future.take(), task.waker.clone())
        };
        let Some(mut future) = future else { return };
        self.0.running.set(owner);
        self.note(id ^ self.now_us() << 20);
        let polled = future.as_mut().poll(&mut Context::from_waker(&Waker::from(waker)));
        let mut over = None;
        {
            let mut tasks = self.0.tasks.borrow_mut();
            match tasks.get_mut(&id) {
                Some(task) if polled.is_pending() => task.future = Some(future),
                // It has ended, or was killed while it ran.
                _ => {
                    tasks.remove(&id);
                    over = Some(future);
                }
            }
        }
        drop(over);
        self.0.running.set(OUTSIDE);
        self.0.now_us.set(self.now_us() + self.below(self.0.options.poll_us + 1));
    }
}

/// Spreads the bits of a counter (the finaliser of SplitMix64).
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

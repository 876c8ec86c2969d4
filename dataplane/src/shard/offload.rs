//! Work that would hold a shard for too long runs on one helper thread of the process.
//!
//! The thread starts with the first such work and lives as long as the process. Its queue is bounded; at the bound the
//! shard does the work itself, which is slow for its other connections and loses nothing.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::runtime::Notify;

/// Work waiting for the helper.
const QUEUE: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// The way to the helper thread.
#[derive(Default)]
pub struct Offload {
    jobs: OnceLock<Option<SyncSender<Job>>>,
}

impl Offload {
    /// Runs everything at once on the calling thread: simulated processes have no other.
    #[cfg(feature = "sim")]
    pub fn in_line() -> Self {
        Self { jobs: OnceLock::from(None) }
    }

    /// Runs `work` on the helper and waits for its result; `None` if it panicked. May be dropped: the work is then
    /// done in vain.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let outcome = Arc::new(Outcome { value: Mutex::new(None), done: Notify::default() });
        let promise = Promise(outcome.clone());
        self.put(Box::new(move || {
            let value = work();
            *promise.0.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        }));
        outcome.done.notified().await;
        outcome.value.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Like [`run`](Self::run), but where the queue is full the work is not done at all: `None` at once.
    pub async fn run_if_room<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let outcome = Arc::new(Outcome { value: Mutex::new(None), done: Notify::default() });
        let promise = Promise(outcome.clone());
        let job: Job = Box::new(move || {
            let value = work();
            *promise.0.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        });
        match self.jobs.get_or_init(start) {
            // A job that is dropped keeps its promise all the same.
            Some(jobs) => drop(jobs.try_send(job)),
            None => job(),
        }
        outcome.done.notified().await;
        outcome.value.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, job: Job) {
        let jobs = self.jobs.get_or_init(start);
        let refused = match jobs {
            Some(jobs) => jobs.try_send(job).err(),
            None => Some(TrySendError::Full(job)),
        };
        if let Some(TrySendError::Full(job) | TrySendError::Disconnected(job)) = refused {
            job();
        }
    }
}

/// Starts the helper; `None` when threads are exhausted.
fn start() -> Option<SyncSender<Job>> {
    let (jobs, queue) = sync_channel(QUEUE);
    match std::thread::Builder::new().name("helper".into()).spawn(move || work(&queue)) {
        Ok(_) => Some(jobs),
        Err(error) => {
            tracing::warn!(%error, "no helper thread: large bodies are read on the shards");
            None
        }
    }
}

fn work(queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        // A panic has been reported by its hook; the next job is none the worse.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    }
}

struct Outcome<T> {
    value: Mutex<Option<T>>,
    done: Notify,
}

/// Tells the waiting side when the work has ended, also by a panic.
struct Promise<T>(Arc<Outcome<T>>);

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        self.0.done.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::mpsc::channel;
    use std::task::{Context, Poll, Wake, Waker};

    use super::*;

    struct Unpark(std::thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(value) => return value,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    #[test]
    fn results_come_back_from_the_helper() {
        let offload = Offload::default();
        let here = std::thread::current().id();
        let (sum, there) = wait(offload.run(move || (1 + 1, std::thread::current().id()))).unwrap();
        assert_eq!(sum, 2);
        assert_ne!(there, here);
    }

    #[test]
    fn a_panic_ends_its_own_work_only() {
        let offload = Offload::default();
        assert_eq!(wait(offload.run(|| -> u32 { panic!("for the test") })), None);
        assert_eq!(wait(offload.run(|| 7)), Some(7));
    }

    #[test]
    fn at_the_bound_work_may_be_left_undone() {
        let offload = Offload::default();
        let (release, held) = channel::<()>();
        offload.put(Box::new(move || {
            let _ = held.recv();
        }));
        for _ in 0..=QUEUE {
            offload.put(Box::new(|| {}));
        }
        assert_eq!(wait(offload.run_if_room(|| 7)), None);
        drop(release);
    }

    #[test]
    fn at_the_bound_the_caller_works_itself() {
        let offload = Offload::default();
        let (release, held) = channel::<()>();
        offload.put(Box::new(move || {
            let _ = held.recv();
        }));
        // The first may have left the queue for the helper's hands or not.
        for _ in 0..=QUEUE {
            offload.put(Box::new(|| {}));
        }
        let here = std::thread::current().id();
        assert_eq!(wait(offload.run(move || std::thread::current().id())), Some(here));
        drop(release);
    }
}

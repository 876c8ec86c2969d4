//! Atomics and grace periods, with loom's stand-ins under `cfg(loom)` and shuttle's under the feature of that name.
//!
//! [`Pins`] is what a reader takes before it follows a pointer; [`Grace`] tells the writer when all readers that
//! could have seen something unlinked are gone. Outside loom both rest on crossbeam-epoch's default collector. The
//! closure handed to the collector only raises a counter: crossbeam runs closures on whichever thread happens to
//! pin, and a reader must never pay for freeing memory.

pub(crate) use imp::{AtomicPtr, AtomicU32, AtomicU64, Grace, Guard, Ordering, Pins};

#[cfg(not(any(loom, feature = "shuttle")))]
mod imp {
    pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

    use std::sync::Arc;

    /// Proof that the current thread is pinned in the default collector.
    pub(crate) struct Guard(#[expect(dead_code, reason = "held for its destructor")] crossbeam_epoch::Guard);

    /// Access to pinning.
    #[derive(Clone)]
    pub(crate) struct Pins;

    impl Pins {
        pub(crate) fn new() -> Self {
            Self
        }

        /// Pins the current thread: nothing retired from here on is freed before the guard is dropped.
        #[inline]
        pub(crate) fn pin(&self) -> Guard {
            Guard(crossbeam_epoch::pin())
        }
    }

    /// The writer's view of grace periods: a sealed ticket has passed once every guard of its time is gone.
    pub(crate) struct Grace {
        passed: Arc<AtomicU64>,
        sealed: u64,
    }

    impl Grace {
        pub(crate) fn new(_pins: &Pins) -> Self {
            Self { passed: Arc::default(), sealed: 0 }
        }

        /// Starts a grace period for everything unlinked so far.
        pub(crate) fn seal(&mut self) -> u64 {
            self.sealed += 1;
            let ticket = self.sealed;
            let passed = Arc::clone(&self.passed);
            let guard = crossbeam_epoch::pin();
            guard.defer(move || passed.fetch_max(ticket, Ordering::Release));
            guard.flush();
            ticket
        }

        /// The newest ticket that has passed. It speaks for all before it: a guard of an earlier ticket's time that
        /// is still held is of the later one's time too.
        pub(crate) fn passed(&self) -> u64 {
            self.passed.load(Ordering::Acquire)
        }

        /// Asks the collector to look whether an epoch has ended.
        pub(crate) fn nudge(&self) {
            crossbeam_epoch::pin().flush();
        }

        /// Hands garbage over for good when the writer ends before its readers do.
        pub(crate) fn abandon<T: Send + 'static>(&mut self, garbage: T) {
            crossbeam_epoch::pin().defer(move || drop(garbage));
        }
    }
}

#[cfg(any(loom, feature = "shuttle"))]
mod imp {
    #[cfg(loom)]
    use loom as model;
    #[cfg(not(loom))]
    use shuttle as model;

    pub(crate) use model::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

    use model::sync::Arc;
    use model::sync::atomic::AtomicUsize;

    /// Counts as one active reader while it lives.
    pub(crate) struct Guard(Arc<AtomicUsize>);

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Model of an epoch collector: the number of active readers.
    #[derive(Clone)]
    pub(crate) struct Pins(Arc<AtomicUsize>);

    impl Pins {
        pub(crate) fn new() -> Self {
            Self(Arc::new(AtomicUsize::new(0)))
        }

        pub(crate) fn pin(&self) -> Guard {
            self.0.fetch_add(1, Ordering::AcqRel);
            Guard(self.0.clone())
        }
    }

    /// Grace has passed when no reader was active at one moment after the sealing. Reading the counter by a
    /// read-modify-write orders it before every later pin, as the fence in crossbeam's pin does.
    pub(crate) struct Grace {
        pins: Pins,
        sealed: u64,
    }

    impl Grace {
        pub(crate) fn new(pins: &Pins) -> Self {
            Self { pins: pins.clone(), sealed: 0 }
        }

        pub(crate) fn seal(&mut self) -> u64 {
            self.sealed += 1;
            self.sealed
        }

        pub(crate) fn passed(&self) -> u64 {
            if self.pins.0.fetch_add(0, Ordering::AcqRel) == 0 { self.sealed } else { 0 }
        }

        pub(crate) fn nudge(&self) {}

        pub(crate) fn abandon<T: Send + 'static>(&mut self, garbage: T) {
            while self.pins.0.fetch_add(0, Ordering::AcqRel) != 0 {
                model::thread::yield_now();
            }
            drop(garbage);
        }
    }
}

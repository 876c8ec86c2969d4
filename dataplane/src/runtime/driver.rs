//! Which driver a shard's runtime stands on, and how it is built.

use std::fmt;
use std::future::Future;
use std::io;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};

/// Entries of a shard's submission ring. The ring is flushed when full, so this bounds a batch, not the number of
/// connections.
const RING_ENTRIES: u32 = 1024;

/// Driver asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// io_uring where its ring can be built, epoll otherwise.
    #[default]
    Auto,
    /// io_uring; starting fails where the kernel or a limit of the container refuses the ring.
    Uring,
    /// epoll.
    Epoll,
}

impl std::str::FromStr for Driver {
    type Err = UnknownDriver;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            "uring" | "io_uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            _ => Err(UnknownDriver(name.to_owned())),
        }
    }
}

/// A driver name that is not known.
#[derive(Debug, thiserror::Error)]
#[error("unknown driver {0:?}: allowed are auto, uring, epoll")]
pub struct UnknownDriver(String);

/// Driver in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActiveDriver {
    /// io_uring with `SINGLE_ISSUER | COOP_TASKRUN | DEFER_TASKRUN`.
    Uring,
    /// epoll.
    Epoll,
}

impl fmt::Display for ActiveDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

/// A runtime built on the calling thread, ready to run.
///
/// It is never dropped: tearing down a ring with operations in flight lets the kernel write into freed memory.
/// [`Executor::run`] therefore leaks it when the future ends; the process's exit takes it away.
pub struct Executor {
    runtime: Flavor,
}

enum Flavor {
    Uring(Box<Runtime<TimeDriver<IoUringDriver>>>),
    Epoll(Box<Runtime<TimeDriver<LegacyDriver>>>),
}

/// Ring flags of a thread-per-core server: one submitter, completions delivered when it asks for them.
fn ring_builder() -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    builder.setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun();
    builder
}

impl Executor {
    /// Builds the runtime that [`run`](Self::run) will use. With [`Driver::Auto`] the very ring is built and any
    /// error leads to epoll: limits on locked memory and system call filters refuse rings in ways that a smaller
    /// probe does not see. The reason for a fallback is returned beside the executor, to be logged.
    ///
    /// # Errors
    /// The forced driver cannot be built, or epoll cannot.
    pub fn build(driver: Driver) -> io::Result<(Self, Option<io::Error>)> {
        let uring = || {
            RuntimeBuilder::<IoUringDriver>::new()
                .with_entries(RING_ENTRIES)
                .uring_builder(ring_builder())
                .enable_timer()
                .build()
                .map(|runtime| Self { runtime: Flavor::Uring(Box::new(runtime)) })
        };
        let epoll = || {
            RuntimeBuilder::<LegacyDriver>::new()
                .with_entries(RING_ENTRIES)
                .enable_timer()
                .build()
                .map(|runtime| Self { runtime: Flavor::Epoll(Box::new(runtime)) })
        };
        match driver {
            Driver::Uring => Ok((uring()?, None)),
            Driver::Epoll => Ok((epoll()?, None)),
            Driver::Auto => match uring() {
                Ok(executor) => Ok((executor, None)),
                Err(reason) => Ok((epoll()?, Some(reason))),
            },
        }
    }

    /// The driver this executor stands on.
    pub fn active(&self) -> ActiveDriver {
        match self.runtime {
            Flavor::Uring(_) => ActiveDriver::Uring,
            Flavor::Epoll(_) => ActiveDriver::Epoll,
        }
    }

    /// Runs `future` to its end on this thread.
    pub fn run<F: Future>(self, future: F) -> F::Output {
        match self.runtime {
            Flavor::Uring(runtime) => Box::leak(runtime).block_on(future),
            Flavor::Epoll(runtime) => Box::leak(runtime).block_on(future),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!("uring".parse::<Driver>().unwrap(), Driver::Uring);
        assert_eq!("epoll".parse::<Driver>().unwrap(), Driver::Epoll);
        assert_eq!("auto".parse::<Driver>().unwrap(), Driver::Auto);
        assert!("kqueue".parse::<Driver>().unwrap_err().to_string().contains("kqueue"));
    }

    #[test]
    fn auto_always_builds() {
        let (executor, fallback) = Executor::build(Driver::Auto).unwrap();
        assert_eq!(fallback.is_some(), executor.active() == ActiveDriver::Epoll);
        assert_eq!(executor.run(async { 7 }), 7);
    }
}

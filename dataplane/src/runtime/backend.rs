//! Which runtimes there are, and how a shard's thread starts one: chosen once, by type, before the shard runs.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::TcpListener;

use super::seam::Runtime;
use super::{ActiveDriver, Driver, Executor, Listener, Monoio};

/// The runtime asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// monoio, on io_uring or epoll.
    #[default]
    Monoio,
    /// glommio, on io_uring alone: to compare with. Only in programs built with the feature `glommio`.
    Glommio,
}

impl Kind {
    /// Whether this program can start it.
    ///
    /// # Errors
    /// It was built without.
    pub fn check(self) -> Result<(), NotBuilt> {
        if self == Self::Glommio && !cfg!(feature = "glommio") { Err(NotBuilt) } else { Ok(()) }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Monoio => "monoio",
            Self::Glommio => "glommio",
        })
    }
}

impl std::str::FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "monoio" => Ok(Self::Monoio),
            "glommio" => Ok(Self::Glommio),
            _ => Err(UnknownKind(name.to_owned())),
        }
    }
}

/// A runtime's name that is not known.
#[derive(Debug, thiserror::Error)]
#[error("unknown runtime {0:?}: allowed are monoio, glommio")]
pub struct UnknownKind(String);

/// A runtime that this program was built without.
#[derive(Debug, thiserror::Error)]
#[error(
    "this program was built without the runtime glommio: build it with `cargo build --release --features glommio`, or \
     take the runtime monoio"
)]
pub struct NotBuilt;

/// A runtime as a thread starts it: built where a failure can still be told, then run to the end of the process.
pub trait Backend: Sized {
    /// What runs on it.
    type Runtime: Runtime;

    /// Builds it on the calling thread. The reason why another driver was taken than the best is returned beside it, to
    /// be logged.
    ///
    /// # Errors
    /// It cannot be built here. Nothing else is taken in its place.
    fn build(driver: Driver) -> io::Result<(Self, Option<io::Error>)>;

    /// The driver it stands on.
    fn active(&self) -> ActiveDriver;

    /// What its tasks connect with.
    fn runtime(&self) -> Self::Runtime;

    /// Registers a listener with the runtime that this thread runs.
    ///
    /// # Errors
    /// The runtime refuses the descriptor.
    fn listen(
        runtime: Self::Runtime,
        listener: TcpListener,
    ) -> io::Result<<Self::Runtime as Runtime>::Listener>;

    /// Runs `future` to its end on this thread.
    fn run<F: Future>(self, future: F) -> F::Output;
}

impl Backend for Executor {
    type Runtime = Monoio;

    fn build(driver: Driver) -> io::Result<(Self, Option<io::Error>)> {
        Executor::build(driver)
    }

    fn active(&self) -> ActiveDriver {
        Executor::active(self)
    }

    fn runtime(&self) -> Monoio {
        Monoio(Executor::active(self))
    }

    fn listen(runtime: Monoio, listener: TcpListener) -> io::Result<Listener> {
        Listener::from_std(listener, runtime.0)
    }

    fn run<F: Future>(self, future: F) -> F::Output {
        Executor::run(self, future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for kind in [Kind::Monoio, Kind::Glommio] {
            assert_eq!(kind.to_string().parse::<Kind>().unwrap(), kind);
        }
        assert!("tokio".parse::<Kind>().unwrap_err().to_string().contains("monoio, glommio"));
    }

    #[test]
    fn what_was_not_built_says_how_to_build_it() {
        assert!(Kind::Monoio.check().is_ok());
        let checked = Kind::Glommio.check();
        assert_eq!(checked.is_ok(), cfg!(feature = "glommio"));
        assert!(checked.err().is_none_or(|error| error.to_string().contains("--features glommio")));
    }
}

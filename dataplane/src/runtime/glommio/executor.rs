//! A thread's glommio executor.

use std::future::Future;
use std::io;
use std::net::TcpListener;

use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use io_uring::{IoUring, Probe, opcode};

use super::{Glommio, GlommioListener};
use crate::runtime::{ActiveDriver, Backend, Driver, sys};

/// Entries of each of an executor's three rings, glommio's own choice. More of them wait in its queue.
const RING_ENTRIES: u32 = 128;
/// Memory for files, which a shard does not read: the least that glommio takes.
const FILE_MEMORY: usize = 64 << 10;
/// Locked memory that glommio wants to be allowed, bytes.
const LOCKED_MEMORY: u64 = 512 << 10;

/// What helps when glommio cannot start.
const ADVICE: &str = "glommio runs on nothing else: allow io_uring here, or take `--runtime monoio`";

/// An executor built on the calling thread, ready to run. Like [`Executor`](crate::runtime::Executor) it lives until
/// the process exits.
pub struct GlommioExecutor {
    inner: Box<LocalExecutor>,
}

impl Backend for GlommioExecutor {
    type Runtime = Glommio;

    fn build(driver: Driver) -> io::Result<(Self, Option<io::Error>)> {
        if driver == Driver::Epoll {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "glommio cannot wait by epoll: leave the driver out, or take `--runtime monoio`",
            ));
        }
        // glommio itself would panic, or end the process.
        probe()?;
        let inner = LocalExecutorBuilder::new(Placement::Unbound)
            .name("shard")
            .ring_depth(RING_ENTRIES as usize)
            .io_memory(FILE_MEMORY)
            .make()
            .map_err(|error| refused(&error))?;
        Ok((Self { inner: Box::new(inner) }, None))
    }

    fn active(&self) -> ActiveDriver {
        ActiveDriver::Uring
    }

    fn runtime(&self) -> Glommio {
        Glommio
    }

    fn listen(_: Glommio, listener: TcpListener) -> io::Result<GlommioListener> {
        GlommioListener::from_std(listener)
    }

    fn run<F: Future>(self, future: F) -> F::Output {
        Box::leak(self.inner).run(future)
    }
}

fn refused(reason: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{reason}; {ADVICE}"))
}

/// Builds rings as glommio will, and asks the kernel for the operations that it insists on.
fn probe() -> io::Result<()> {
    let allowed = sys::locked_memory_limit()?;
    if allowed < LOCKED_MEMORY {
        return Err(io::Error::other(format!(
            "glommio wants {LOCKED_MEMORY} bytes of locked memory to be allowed and the limit here is {allowed}: raise it \
             (LimitMEMLOCK= of systemd, `ulimit -l`), or take `--runtime monoio`"
        )));
    }
    let ring = |polled: bool| {
        let mut builder = IoUring::builder();
        if polled {
            builder.setup_iopoll();
        }
        builder
            .build(RING_ENTRIES)
            .map_err(|error| refused(&format_args!("the kernel refuses a ring: {error}")))
    };
    let rings: [IoUring; 3] = [ring(false)?, ring(false)?, ring(true)?];
    let mut known = Probe::new();
    rings[0]
        .submitter()
        .register_probe(&mut known)
        .map_err(|error| refused(&format_args!("the kernel does not say what its rings can do: {error}")))?;
    let wanted = [
        opcode::PollAdd::CODE,
        opcode::Timeout::CODE,
        opcode::Accept::CODE,
        opcode::Fallocate::CODE,
        opcode::Statx::CODE,
        opcode::Recv::CODE,
    ];
    if wanted.iter().any(|&code| !known.is_supported(code)) {
        return Err(refused(&"the kernel's rings lack operations that glommio needs (Linux 5.8 has them)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoll_is_refused_with_what_helps() {
        let error = GlommioExecutor::build(Driver::Epoll).err().unwrap();
        assert!(error.to_string().contains("--runtime monoio"), "{error}");
    }

    #[test]
    fn a_refusal_says_what_helps() {
        let error = refused(&"no ring").to_string();
        assert!(error.starts_with("no ring; ") && error.contains("--runtime monoio"), "{error}");
    }
}

//! The floor: the least that a relay on our runtime can do. It stands on the same seam and driver as the gateway's
//! shards, reads a request to its end, sends it on, and passes the answer back as it comes.
//!
//! It leaves out nearly everything: heads are passed on as they are (no header is added or removed), nothing is scanned,
//! hashed or decided, each client's connection has a connection of its own to an engine (no pool), nobody watches for
//! clients that leave, there are no deadlines, no limits, no metrics, no ids, no retry. What a gateway costs above it is
//! the price of all that.
//!
//! Without engines it answers by itself, always the same (*echo*): what is left is the runtime.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
#[cfg(feature = "glommio")]
use fairlead_dataplane::runtime::GlommioExecutor;
use fairlead_dataplane::runtime::{
    Acceptor as _, Backend, Driver, Executor, Runtime, Stream as _, bind_shared,
};

use super::process::Process;
use super::reply::{Reply, Seen};

const VARIABLE: &str = "FAIRLEAD_FLOOR";
/// Room for a read.
const ROOM: usize = 16 << 10;
/// What echo answers.
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nserver: null\r\ncontent-length: 64\r\ncontent-type: application/json\r\n\r\n\
    {\"object\":\"chat.completion\",\"model\":\"m\",\"choices\":[],\"usage\":{}}";

/// What it stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// monoio on what the gateway would choose.
    Chosen,
    /// monoio on io_uring.
    Uring,
    /// monoio on epoll.
    Epoll,
    /// glommio.
    Glommio,
}

impl Base {
    const ALL: [Self; 4] = [Self::Chosen, Self::Uring, Self::Epoll, Self::Glommio];

    /// How tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chosen => "monoio",
            Self::Uring => "monoio io_uring",
            Self::Epoll => "monoio epoll",
            Self::Glommio => "glommio",
        }
    }
}

/// Starts it as a process of its own. Without engines it answers by itself.
///
/// # Errors
/// It cannot be started.
pub fn start(
    base: Base,
    listen: SocketAddr,
    engines: &[SocketAddr],
    cores: &[usize],
    core: usize,
    log: &Path,
) -> anyhow::Result<Process> {
    let engines: Vec<_> = engines.iter().map(ToString::to_string).collect();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("relay").env(VARIABLE, format!("{}/{listen}/{}", base.name(), engines.join(",")));
    Process::start(command, cores, core, log)
}

/// Serves where the environment says that this process is the floor; `None` where it does not.
pub fn played() -> Option<anyhow::Result<()>> {
    let told = std::env::var(VARIABLE).ok()?;
    Some(serve(&told))
}

fn serve(told: &str) -> anyhow::Result<()> {
    let mut parts = told.split('/');
    let mut part = || parts.next().context("BASE/LISTEN/ENGINE,...");
    let (base, listen, engines) = (part()?, part()?.parse()?, part()?);
    let base = Base::ALL.into_iter().find(|known| known.name() == base).context("no such runtime")?;
    let engines: Vec<SocketAddr> =
        engines.split(',').filter(|one| !one.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
    match base {
        Base::Chosen => serve_on::<Executor>(Driver::Auto, listen, engines),
        Base::Uring => serve_on::<Executor>(Driver::Uring, listen, engines),
        Base::Epoll => serve_on::<Executor>(Driver::Epoll, listen, engines),
        #[cfg(feature = "glommio")]
        Base::Glommio => serve_on::<GlommioExecutor>(Driver::Auto, listen, engines),
        #[cfg(not(feature = "glommio"))]
        Base::Glommio => {
            anyhow::bail!("built without it: `perf/run runtime` builds with `--features glommio`")
        }
    }
}

type SocketOf<R> = <R as Runtime>::Socket;

fn serve_on<B: Backend>(driver: Driver, listen: SocketAddr, engines: Vec<SocketAddr>) -> anyhow::Result<()> {
    let listener = bind_shared(listen, 1)?.pop().context("a listener")?;
    let (executor, _) = B::build(driver)?;
    let runtime = executor.runtime();
    executor.run(async move {
        let listener = B::listen(runtime, listener)?;
        let mut next = 0;
        loop {
            listener.ready().await?;
            while let Some(client) = listener.take()? {
                next += 1;
                let engine = engines.get(next % engines.len().max(1)).copied();
                // A connection that breaks ends alone.
                B::Runtime::spawn(async move {
                    match engine {
                        Some(engine) => relay(runtime, client, engine).await.unwrap_or_default(),
                        None => echo::<B::Runtime>(client).await.unwrap_or_default(),
                    }
                });
            }
        }
    })
}

/// Reads a request to its end; `None` when there is none.
async fn request<R: Runtime>(client: &SocketOf<R>, reply: &mut Reply) -> std::io::Result<Option<Bytes>> {
    client.readable().await?;
    let mut whole = BytesMut::with_capacity(ROOM);
    let mut seen = Seen::More;
    while seen == Seen::More {
        let known = whole.len();
        if whole.capacity() - known < ROOM / 2 {
            whole.reserve(known.max(ROOM));
        }
        let (count, buf) = client.read(whole).await;
        whole = buf;
        if count? == 0 {
            return Ok(None);
        }
        seen = reply.feed_if(&whole[known..], |_| true);
    }
    Ok(Some(whole.freeze()))
}

async fn echo<R: Runtime>(client: SocketOf<R>) -> std::io::Result<()> {
    let mut reply = Reply::default();
    while request::<R>(&client, &mut reply).await?.is_some() {
        client.write_all(Bytes::from_static(ANSWER)).await.0?;
    }
    Ok(())
}

async fn relay<R: Runtime>(runtime: R, client: SocketOf<R>, engine: SocketAddr) -> std::io::Result<()> {
    let engine = runtime.connect(engine, Duration::from_secs(2)).await?;
    let (mut reply, mut answer) = (Reply::default(), Reply::default());
    while let Some(whole) = request::<R>(&client, &mut reply).await? {
        engine.write_all(whole).await.0?;
        let mut buf = BytesMut::with_capacity(ROOM);
        loop {
            let (count, read) = engine.read(buf).await;
            if count? == 0 {
                return Ok(());
            }
            let seen = answer.feed(&read);
            let (result, written) = client.write_all(read).await;
            result?;
            if seen != Seen::More {
                break;
            }
            buf = written;
            buf.clear();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_is_one_whole_answer() {
        assert_eq!(Reply::default().feed(ANSWER), Seen::Complete);
    }

    #[test]
    fn names_tell_bases_apart() {
        for (n, base) in Base::ALL.into_iter().enumerate() {
            assert!(Base::ALL.into_iter().skip(n + 1).all(|other| other.name() != base.name()));
            assert!(!base.name().contains('/'));
        }
    }
}

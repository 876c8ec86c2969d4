//! The floor: the least that a relay on our runtime can do. It stands on the same seam and driver as the gateway's
//! shards, reads a request to its end, sends it on, and passes the answer back as it comes.
//!
//! It leaves out nearly everything: heads are passed on as they are (no header is added or removed), nothing is scanned,
//! hashed or decided, each client's connection has a connection of its own to an engine (no pool), nobody watches for
//! clients that leave, there are no deadlines, no limits, no metrics, no ids, no retry. What a gateway costs above it is
//! the price of all that.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use bytes::BytesMut;
use fairlead_dataplane::runtime::{
    Driver, Executor, Listener, Monoio, Runtime as _, Socket, bind_shared, spawn,
};

use super::process::Process;
use super::reply::{Reply, Seen};

const VARIABLE: &str = "FAIRLEAD_FLOOR";
/// Room for a read.
const ROOM: usize = 16 << 10;

/// Starts it as a process of its own.
///
/// # Errors
/// It cannot be started.
pub fn start(
    listen: SocketAddr,
    engines: &[SocketAddr],
    cores: &[usize],
    core: usize,
    log: &Path,
) -> anyhow::Result<Process> {
    let engines: Vec<_> = engines.iter().map(ToString::to_string).collect();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("relay").env(VARIABLE, format!("{listen} {}", engines.join(",")));
    Process::start(command, cores, core, log)
}

/// Serves where the environment says that this process is the floor; `None` where it does not.
pub fn played() -> Option<anyhow::Result<()>> {
    let told = std::env::var(VARIABLE).ok()?;
    Some(serve(&told))
}

fn serve(told: &str) -> anyhow::Result<()> {
    let (listen, engines) = told.split_once(' ').context("LISTEN ENGINE,...")?;
    let engines = engines.split(',').map(str::parse).collect::<Result<Vec<SocketAddr>, _>>()?;
    let listener = bind_shared(listen.parse()?, 1)?.pop().context("a listener")?;
    let (executor, _) = Executor::build(Driver::Auto)?;
    let runtime = Monoio(executor.active());
    executor.run(async move {
        let listener = Listener::from_std(listener, runtime.0)?;
        let mut next = 0;
        loop {
            listener.ready().await?;
            while let Some(client) = listener.take()? {
                next = (next + 1) % engines.len();
                let engine = engines[next];
                // A connection that breaks ends alone.
                spawn(async move { relay(runtime, client, engine).await.unwrap_or_default() });
            }
        }
    })
}

async fn relay(runtime: Monoio, client: Socket, engine: SocketAddr) -> std::io::Result<()> {
    let engine = runtime.connect(engine, Duration::from_secs(2)).await?;
    let (mut request, mut answer) = (Reply::default(), Reply::default());
    loop {
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
                return Ok(());
            }
            seen = request.feed_if(&whole[known..], |_| true);
        }
        engine.write_all(whole.freeze()).await.0?;
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
}

//! Load in HTTP/2: connections with several requests under way on each, every one of which is followed by the next.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use hyper::Request;
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use super::body::Template;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Window for answers.
const WINDOW: u32 = 1 << 20;

/// How many at a time.
#[derive(Clone, Copy, Debug)]
pub struct Width {
    /// Connections.
    pub connections: usize,
    /// Requests under way on each.
    pub streams: usize,
}

/// What a window saw.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Requests answered in it.
    pub requests: u64,
    /// What the probe grew by.
    pub used: f64,
}

/// Keeps all streams busy: after `warm` a window of length `over`. `probe` is asked at both of its ends. Numbers of
/// requests begin at `seed`.
///
/// # Errors
/// A request fails.
pub fn closed(
    template: &Template,
    to: SocketAddr,
    width: Width,
    seed: u64,
    (warm, over): (Duration, Duration),
    mut probe: impl FnMut() -> f64,
) -> anyhow::Result<Window> {
    on_this_thread(async {
        let state = Rc::new(State { number: Cell::new(seed << 32), ..State::default() });
        let mut under_way = Vec::new();
        for _ in 0..width.connections {
            let requests = connect(to).await?;
            for _ in 0..width.streams {
                let (requests, template, state) = (requests.clone(), template.clone(), state.clone());
                under_way.push(spawn_local(async move {
                    while !state.ended.get() {
                        ask(&requests, &template, state.next()).await?;
                        state.answered.set(state.answered.get() + 1);
                    }
                    anyhow::Ok(())
                }));
            }
        }
        sleep(warm).await;
        let (before, began) = (state.answered.get(), probe());
        sleep(over).await;
        let window = Window { requests: state.answered.get() - before, used: probe() - began };
        state.ended.set(true);
        for task in under_way {
            task.await.context("a task of the load")??;
        }
        Ok(window)
    })
}

/// Asks once.
///
/// # Errors
/// It is not answered with 200.
pub fn once(template: &Template, to: SocketAddr) -> anyhow::Result<()> {
    on_this_thread(async { ask(&connect(to).await?, template, 0xff_ffff).await })
}

#[derive(Default)]
struct State {
    number: Cell<u64>,
    answered: Cell<u64>,
    ended: Cell<bool>,
}

impl State {
    fn next(&self) -> u64 {
        self.number.set(self.number.get() + 1);
        self.number.get()
    }
}

fn on_this_thread<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}

async fn connect(to: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let socket = TcpStream::connect(to).await?;
    socket.set_nodelay(true)?;
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(socket)
        .await?;
    spawn_local(async move { drop(connection.await) });
    Ok(requests)
}

async fn ask(requests: &SendRequest<Bytes>, template: &Template, number: u64) -> anyhow::Result<()> {
    let mut template = template.clone();
    template.number(number);
    let (head, rest) = template.parts();
    let body_at = memchr::memmem::find(head, b"\r\n\r\n").context("a template without a head")? + 4;
    let mut body = BytesMut::from(&head[body_at..]);
    body.extend_from_slice(rest);
    let request = Request::post("http://localhost/v1/chat/completions")
        .header("user-agent", "OpenAI/Python 1.60.0")
        .header("accept", "application/json")
        .header("authorization", "Bearer sk-0123456789abcdef")
        .header("content-type", "application/json")
        .header("content-length", body.len())
        .body(())?;
    let mut requests = requests.clone().ready().await?;
    let (answer, mut stream) = requests.send_request(request, false)?;
    drop(requests);
    stream.send_data(body.freeze(), true)?;
    let answer = timeout(PATIENCE, answer).await.context("no answer in time")??;
    ensure!(answer.status() == 200, "answered with {}", answer.status());
    let mut answer = answer.into_body();
    while let Some(piece) = answer.data().await {
        answer.flow_control().release_capacity(piece?.len())?;
    }
    Ok(())
}

//! Bytes between a client and an engine, both ways, as they come.
//!
//! Each direction reads once and writes what it read before it reads again: one buffer, so whoever does not take its
//! bytes stops the other side. The heads of frames are followed, for the one place where the gateway may say something
//! itself: between two frames.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::farewell::Farewells;
use crate::http::websocket::Frames;
use crate::runtime::{Link, Runtime, Stream as _};
use crate::shard::deadlines::Guard;
use crate::shard::watch::{Probe, Watch};

/// Buffer of a direction: most connections are silent most of the time, and wait with it.
const SMALL: usize = 4 * 1024;
/// Buffer of a direction whose small one was filled.
const LARGE: usize = 64 * 1024;
/// How long a client may take for its last bytes when the shard ends.
pub const PARTING: Duration = Duration::from_millis(250);

/// Both ends.
pub struct Duplex<'a, R: Runtime> {
    /// The client's connection.
    pub client: &'a Link<R::Socket>,
    /// Its deadline.
    pub guard: &'a Guard<R>,
    /// Its watch.
    pub watch: &'a mut Watch<R>,
    /// The engine's connection.
    pub engine: &'a Link<R::Socket>,
    /// Tells when the shard ends.
    pub farewells: &'a Farewells,
    /// Longest time that the client may refuse its bytes.
    pub stall: Duration,
}

/// Who ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client left or did not take its bytes.
    Client,
    /// The engine closed its connection or died.
    Engine,
    /// The shard ends.
    Shard,
}

/// How it ended.
#[derive(Debug)]
pub struct Over {
    /// Who ended it.
    pub end: End,
    /// Frames of the client that reached the engine.
    pub up: Frames,
    /// Frames of the engine that reached the client.
    pub down: Frames,
}

impl<R: Runtime> Duplex<'_, R> {
    /// Relays until one of the three ends it. `early` has come from the client already; `greeting` goes to it first,
    /// frames from `frames_at` on.
    pub async fn run(self, early: Bytes, greeting: Vec<u8>, frames_at: usize) -> Over {
        let Self { client, guard, watch, engine, farewells, stall } = self;
        let (mut up, mut down) = (Frames::default(), Frames::default());
        let (to_engine, to_client, parting) = (Cell::new(false), Cell::new(false), Cell::new(false));
        guard.set_parting(true);
        let end = {
            let mut upwards = pin!(upwards::<R>(client, engine, &mut up, &to_engine, early));
            let mut downwards = pin!(async {
                let mut bytes = Written::Greeting(greeting, frames_at);
                let mut read = BytesMut::new();
                loop {
                    down.track(bytes.frames());
                    to_client.set(true);
                    guard.arm_write(stall);
                    let written = match bytes {
                        Written::Greeting(greeting, _) => client.write_all(greeting).await.0,
                        Written::Read(bytes) => {
                            let (result, back) = client.write_all(bytes).await;
                            read = back;
                            result
                        }
                    };
                    guard.clear();
                    to_client.set(false);
                    if written.is_err() {
                        return End::Client;
                    }
                    if parting.get() {
                        return End::Shard;
                    }
                    let (result, back) = engine.read(room(read)).await;
                    match result {
                        Ok(count) if count > 0 => bytes = Written::Read(back),
                        _ => return End::Engine,
                    }
                    read = BytesMut::new();
                }
            });
            let farewell = farewells.wait();
            let mut deaf = false;
            poll_fn(|cx| {
                if let Poll::Ready(end) = downwards.as_mut().poll(cx) {
                    return Poll::Ready(end);
                }
                if !deaf && let Poll::Ready(up) = upwards.as_mut().poll(cx) {
                    match up {
                        Up::ClientEnded => return Poll::Ready(End::Client),
                        // What the engine has said before it stopped listening is still passed on.
                        Up::EngineDeaf => deaf = true,
                    }
                }
                // While the client is not read, its departure shows elsewhere.
                if (deaf || to_engine.get()) && watch.poll_gone(cx, Probe::None).is_ready() {
                    return Poll::Ready(End::Client);
                }
                if farewell.is_said(cx) {
                    if !to_client.get() {
                        return Poll::Ready(End::Shard);
                    }
                    if !parting.replace(true) {
                        guard.arm_write(PARTING);
                    }
                }
                Poll::Pending
            })
            .await
        };
        guard.clear();
        Over { end, up, down }
    }
}

/// What goes to the client.
enum Written {
    /// The gateway's own, and frames of the engine from that place on.
    Greeting(Vec<u8>, usize),
    /// What the engine sent.
    Read(BytesMut),
}

impl Written {
    fn frames(&self) -> &[u8] {
        match self {
            Self::Greeting(bytes, at) => bytes.get(*at..).unwrap_or_default(),
            Self::Read(bytes) => bytes,
        }
    }
}

/// Why nothing more goes to the engine.
enum Up {
    ClientEnded,
    EngineDeaf,
}

async fn upwards<R: Runtime>(
    client: &Link<R::Socket>,
    engine: &Link<R::Socket>,
    frames: &mut Frames,
    writing: &Cell<bool>,
    early: Bytes,
) -> Up {
    frames.track(&early);
    writing.set(true);
    let (result, early) = engine.write_all(early).await;
    drop(early);
    writing.set(false);
    if result.is_err() {
        return Up::EngineDeaf;
    }
    let mut buf = BytesMut::new();
    loop {
        let (result, back) = client.read(room(buf)).await;
        match result {
            Ok(count) if count > 0 => frames.track(&back),
            _ => return Up::ClientEnded,
        }
        writing.set(true);
        let (result, back) = engine.write_all(back).await;
        writing.set(false);
        if result.is_err() {
            return Up::EngineDeaf;
        }
        buf = back;
    }
}

/// The emptied buffer, or a larger one where it was filled, or a small one where a large one was not.
fn room(mut buf: BytesMut) -> BytesMut {
    let (held, capacity) = (buf.len(), buf.capacity());
    if held > 0 && held == capacity && capacity < LARGE {
        return BytesMut::with_capacity(LARGE);
    }
    if capacity > SMALL && held < SMALL {
        return BytesMut::with_capacity(SMALL);
    }
    buf.clear();
    buf.reserve(SMALL);
    buf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_grow_with_what_comes_and_shrink_again() {
        let small = room(BytesMut::new());
        assert_eq!((small.len(), small.capacity()), (0, SMALL));
        let filled = |mut buf: BytesMut, bytes: usize| {
            buf.resize(bytes, 0);
            buf
        };
        assert_eq!(room(filled(room(BytesMut::new()), 100)).capacity(), SMALL);
        let large = room(filled(small, SMALL));
        assert_eq!(large.capacity(), LARGE);
        let large = room(filled(large, LARGE));
        assert_eq!((large.len(), large.capacity()), (0, LARGE));
        assert_eq!(room(filled(large, 100)).capacity(), SMALL);
    }
}

//! The sockets of an engine's events.

use super::{EventLog, Record};
use crate::engine::Engine;
use bytes::Bytes;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

/// Batches taken from the log at once.
const AT_ONCE: usize = 256;
/// The number of a record that ends a replay.
const END: u64 = u64::MAX;

/// Addresses taken at the start, so that a taken one is told at once.
#[derive(Debug)]
pub(crate) struct Sockets {
    events: TcpListener,
    replay: Option<TcpListener>,
}

impl Sockets {
    /// Binds both; port 0 takes a free one.
    pub fn bind(events: SocketAddr, replay: Option<SocketAddr>) -> Result<Self, (SocketAddr, io::Error)> {
        let bind = |addr| TcpListener::bind(addr).map_err(|e| (addr, e));
        Ok(Self { events: bind(events)?, replay: replay.map(bind).transpose()? })
    }

    pub fn addrs(&self) -> io::Result<(SocketAddr, Option<SocketAddr>)> {
        Ok((self.events.local_addr()?, self.replay.as_ref().map(TcpListener::local_addr).transpose()?))
    }
}

/// Publishes and answers until the engine stops.
pub(crate) async fn run(engine: Arc<Engine>, log: Arc<EventLog>, sockets: Sockets) {
    let mut gate = engine.gate.subscribe();
    let served = async {
        let replays = async {
            match sockets.replay {
                Some(listener) => replay(&log, listener).await,
                None => std::future::pending().await,
            }
        };
        tokio::try_join!(publish(&log, sockets.events), replays)
    };
    tokio::select! {
        ended = served => {
            if let Err(e) = ended {
                tracing::error!(error = %e, "KV events are no longer published");
            }
        }
        _ = gate.wait_for(|g| g.stop) => {}
    }
}

async fn publish(log: &EventLog, listener: TcpListener) -> zeromq::ZmqResult<()> {
    let mut socket = PubSocket::new();
    socket.bind_listener(listener).await?;
    let topic = Bytes::copy_from_slice(log.told.topic.as_bytes());
    let mut next = 0;
    loop {
        let (records, after) = log.since(next, AT_ONCE);
        next = after;
        if records.is_empty() {
            log.changed().await;
            continue;
        }
        for Record { seq, payload, withheld } in records {
            if !withheld {
                socket.send(message([topic.clone(), number(seq), payload])?).await?;
            }
        }
    }
}

/// Answers `["", first number]` with every kept batch from there on and an end mark.
async fn replay(log: &EventLog, listener: TcpListener) -> zeromq::ZmqResult<()> {
    let mut socket = RouterSocket::new();
    socket.bind_listener(listener).await?;
    let topic = Bytes::copy_from_slice(log.told.topic.as_bytes());
    let frames = |who: &Bytes, seq: u64, payload: Bytes| {
        let mut frames = vec![who.clone(), Bytes::new()];
        if !log.old_framing() {
            frames.push(if seq == END { Bytes::new() } else { topic.clone() });
        }
        frames.extend([number(seq), payload]);
        message(frames)
    };
    loop {
        let asked = socket.recv().await?.into_vec();
        let first = match asked.as_slice() {
            [_, empty, seq] if empty.is_empty() => <[u8; 8]>::try_from(&seq[..]).ok(),
            _ => None,
        };
        let (Some(first), Some(who)) = (first, asked.first()) else {
            tracing::warn!("a request for KV events is not what it should be");
            continue;
        };
        let mut next = u64::from_be_bytes(first);
        let answered = async {
            loop {
                let (records, after) = log.since(next, AT_ONCE);
                next = after;
                if records.is_empty() {
                    break;
                }
                for r in records {
                    socket.send(frames(who, r.seq, r.payload)?).await?;
                }
            }
            socket.send(frames(who, END, Bytes::new())?).await
        };
        if let Err(e) = answered.await {
            tracing::debug!(error = %e, "a subscriber left before its batches came");
        }
    }
}

fn number(seq: u64) -> Bytes {
    Bytes::copy_from_slice(&seq.to_be_bytes())
}

fn message(frames: impl Into<Vec<Bytes>>) -> zeromq::ZmqResult<ZmqMessage> {
    ZmqMessage::try_from(frames.into()).map_err(|_| zeromq::ZmqError::NoMessage)
}

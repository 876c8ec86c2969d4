//! The two sockets of an engine: batches as they come, and those of its buffer.

use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::timeout;
use zeromq::{
    DealerSocket, Socket, SocketEvent, SocketOptions, SocketRecv, SocketSend, SubSocket, ZmqMessage,
};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// Longest wait for the next answer of a replay. Engines serve replays between their publications and look for them ten
/// times a second when idle.
const ANSWER: Duration = Duration::from_secs(5);
/// The number that ends a replay: -1.
const END: u64 = u64::MAX;

/// Why a socket is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("{endpoint}: {why}")]
    Failed { endpoint: String, why: String },
    #[error("{endpoint}: connection lost")]
    Lost { endpoint: String },
    #[error("{endpoint}: no answer within {} s", ANSWER.as_secs())]
    Silent { endpoint: String },
    #[error("{endpoint}: a message of {frames} parts")]
    Framing { endpoint: String, frames: usize },
}

fn options() -> SocketOptions {
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT);
    options
}

fn number(frame: &Bytes) -> Option<u64> {
    Some(u64::from_be_bytes(frame.as_ref().try_into().ok()?))
}

/// What comes by itself.
pub(crate) struct Subscription {
    socket: SubSocket,
    endpoint: String,
    /// Ends when the connection is lost.
    lost: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Subscription {
    pub async fn connect(endpoint: &str) -> Result<Self, SocketError> {
        let failed = |why: String| SocketError::Failed { endpoint: endpoint.to_owned(), why };
        let mut socket = SubSocket::with_options(options());
        let mut events = socket.monitor();
        let lost = Box::pin(async move {
            loop {
                match events.recv().await {
                    Ok(SocketEvent::Disconnected(_)) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        });
        socket.connect(endpoint).await.map_err(|error| failed(error.to_string()))?;
        socket.subscribe("").await.map_err(|error| failed(error.to_string()))?;
        Ok(Self { socket, endpoint: endpoint.to_owned(), lost })
    }

    /// The next batch: its number and payload. Cancel-safe. Messages of another form are passed over and counted.
    pub async fn next(&mut self, odd: &mut u64) -> Result<(u64, Bytes), SocketError> {
        loop {
            // A socket that has lost its connection makes another by itself; we want to know, because the engine behind it
            // may be another then.
            let message = tokio::select! {
                biased;
                message = self.socket.recv() => message,
                () = &mut self.lost => {
                    return Err(SocketError::Lost { endpoint: self.endpoint.clone() });
                }
            };
            let message = message.map_err(|error| SocketError::Failed {
                endpoint: self.endpoint.clone(),
                why: error.to_string(),
            })?;
            // Topic, number, payload.
            match (message.len(), message.get(1).and_then(number), message.get(2)) {
                (3, Some(sequence), Some(payload)) => return Ok((sequence, payload.clone())),
                _ => *odd += 1,
            }
        }
    }
}

/// An engine's buffer, being read.
pub(crate) struct Replay {
    socket: DealerSocket,
    endpoint: String,
}

impl Replay {
    /// Asks for all batches from number `from` on.
    pub async fn ask(endpoint: &str, from: u64) -> Result<Self, SocketError> {
        let failed = |why: String| SocketError::Failed { endpoint: endpoint.to_owned(), why };
        let mut socket = DealerSocket::with_options(options());
        socket.connect(endpoint).await.map_err(|error| failed(error.to_string()))?;
        let mut question = ZmqMessage::from(Bytes::new());
        question.push_back(Bytes::copy_from_slice(&from.to_be_bytes()));
        socket.send(question).await.map_err(|error| failed(error.to_string()))?;
        Ok(Self { socket, endpoint: endpoint.to_owned() })
    }

    /// The next batch, or `None` after the last. Cancel-safe but for the time waited.
    pub async fn next(&mut self) -> Result<Option<(u64, Bytes)>, SocketError> {
        let message = timeout(ANSWER, self.socket.recv())
            .await
            .map_err(|_| SocketError::Silent { endpoint: self.endpoint.clone() })?
            .map_err(|error| SocketError::Failed {
                endpoint: self.endpoint.clone(),
                why: error.to_string(),
            })?;
        // An empty part, the topic in newer versions, number, payload.
        let frames = message.len();
        let at = match frames {
            3 => 1,
            4 => 2,
            _ => return Err(SocketError::Framing { endpoint: self.endpoint.clone(), frames }),
        };
        match (message.get(at).and_then(number), message.get(at + 1)) {
            (Some(END), _) => Ok(None),
            (Some(sequence), Some(payload)) => Ok(Some((sequence, payload.clone()))),
            _ => Err(SocketError::Framing { endpoint: self.endpoint.clone(), frames }),
        }
    }
}

//! Readers: one task per stream takes frames from it to the link's inbox.

use std::sync::Arc;

use fairlead_wire::frame::{Frame, Kind, Message};
use quinn::{ReadExactError, RecvStream};
use tokio::sync::OwnedSemaphorePermit;

use crate::codec::{read_frame, stream_error};
use crate::error::LinkError;
use crate::link::{Inbox, Lane, Received};

/// Reads the control stream. A `Refuse` on it ends the link.
pub(crate) async fn control(inbox: Inbox, mut stream: RecvStream) {
    loop {
        match read_frame(&mut stream, &inbox.room).await {
            Ok(Some((frame, _))) if frame.header.kind == Kind::Refuse => {
                let error = match frame.message() {
                    Ok(Message::Refuse(refuse)) => LinkError::Refused(Arc::new(refuse)),
                    Ok(_) => LinkError::Protocol("a refusal that is none".into()),
                    Err(error) => error.into(),
                };
                return inbox.shared.fail(error);
            }
            Ok(Some((frame, room))) => {
                if !inbox.put(Lane::Control, frame, room).await {
                    return;
                }
            }
            Ok(None) => {
                // The peer has said its last; the close with its reason follows.
                let error = inbox.shared.connection.closed().await;
                return inbox.shared.fail(error.into());
            }
            Err(error) => return inbox.shared.fail(error),
        }
    }
}

/// Accepts unidirectional streams; QUIC's stream limit bounds their number.
pub(crate) async fn streams(inbox: Inbox) {
    loop {
        match inbox.shared.connection.accept_uni().await {
            Ok(stream) => {
                tokio::spawn(unidirectional(inbox.clone(), stream));
            }
            Err(error) => return inbox.shared.fail(error.into()),
        }
    }
}

async fn unidirectional(inbox: Inbox, mut stream: RecvStream) {
    if let Err(error) = read_stream(&inbox, &mut stream).await {
        inbox.shared.fail(error);
    }
}

async fn read_stream(inbox: &Inbox, stream: &mut RecvStream) -> Result<(), LinkError> {
    let mut tag = [0];
    match stream.read_exact(&mut tag).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(_)) => return Ok(()),
        Err(ReadExactError::ReadError(error)) => return Err(stream_error(error)),
    }
    let Some(lane) = Lane::of_stream(tag[0]) else {
        return Err(LinkError::Protocol(format!("a stream for unknown lane {}", tag[0]).into()));
    };
    while let Some((frame, room)) = read_frame(stream, inbox.room_of(lane)).await? {
        if !inbox.put(lane, frame, room).await {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads datagrams. With the inbox full they are dropped: each is superseded by the next.
pub(crate) async fn datagrams(inbox: Inbox) {
    while let Ok(bytes) = inbox.shared.connection.read_datagram().await {
        match Frame::from_bytes(&bytes) {
            Ok(frame) => {
                inbox.shared.received(bytes.len());
                if let Some(room) = inbox.room.try_take(bytes.len()) {
                    let received = Received { lane: Lane::Load, frame, _room: Some(room) };
                    let _ = inbox.frames.try_send(received);
                }
            }
            Err(error) => return inbox.shared.fail(error.into()),
        }
    }
}

impl Inbox {
    /// Whether anybody still listens.
    async fn put(&self, lane: Lane, frame: Frame, room: Option<OwnedSemaphorePermit>) -> bool {
        self.shared.received(frame.wire_len());
        let queue = if lane == Lane::Snapshot { &self.bulk } else { &self.frames };
        queue.send(Received { lane, frame, _room: room }).await.is_ok()
    }
}

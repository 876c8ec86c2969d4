//! Writers: one task per lane takes frames from the lane's queue to its stream.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use quinn::{SendStream, WriteError};
use tokio::sync::{mpsc, watch};

use crate::error::LinkError;
use crate::link::{Farewell, Lane, Queued, Shared, short};

/// How long a closing side waits for its last frames to be acknowledged.
const FAREWELL: Duration = Duration::from_millis(500);

/// Writes the control stream, and ends the link when told to.
pub(crate) async fn control(
    shared: Arc<Shared>,
    mut stream: SendStream,
    mut queue: mpsc::Receiver<Queued>,
    mut farewells: watch::Receiver<Option<Farewell>>,
) {
    let _ = stream.set_priority(Lane::Control.priority());
    let mut closed = pin!(shared.connection.closed());
    let farewell = loop {
        tokio::select! {
            biased;
            farewell = next_farewell(&mut farewells) => break farewell,
            _ = &mut closed => return,
            queued = queue.recv() => {
                let Some(queued) = queued else {
                    // Nobody sends any more, but the link may still be received from.
                    tokio::select! {
                        farewell = next_farewell(&mut farewells) => break farewell,
                        _ = &mut closed => return,
                    }
                };
                let mut written = pin!(write(&shared, Lane::Control, &mut stream, queued));
                let farewell = tokio::select! {
                    biased;
                    written = &mut written => if written { None } else { return },
                    farewell = next_farewell(&mut farewells) => Some(farewell),
                };
                if let Some(farewell) = farewell {
                    // Half a frame is out: nothing readable can follow before its other half.
                    if tokio::time::timeout(FAREWELL, written).await != Ok(true) {
                        shared.connection.close(farewell.code, short(&farewell.reason));
                        return;
                    }
                    break farewell;
                }
            }
        }
    };
    let last_words = async {
        match &farewell.refuse {
            Some(refuse) => {
                let _ = stream.write_chunk(refuse.clone()).await;
            }
            None => {
                while let Ok(queued) = queue.try_recv() {
                    if !write(&shared, Lane::Control, &mut stream, queued).await {
                        return;
                    }
                }
            }
        }
        let _ = stream.finish();
        let _ = stream.stopped().await;
    };
    let _ = tokio::time::timeout(FAREWELL, last_words).await;
    shared.connection.close(farewell.code, short(&farewell.reason));
}

async fn next_farewell(farewells: &mut watch::Receiver<Option<Farewell>>) -> Farewell {
    match farewells.wait_for(Option::is_some).await.map(|farewell| farewell.clone()) {
        Ok(Some(farewell)) => farewell,
        // The sending end lives in `Shared`, which this task keeps alive.
        _ => std::future::pending().await,
    }
}

/// Writes a unidirectional lane. Its stream opens with the first frame.
pub(crate) async fn lane(shared: Arc<Shared>, lane: Lane, mut queue: mpsc::Receiver<Queued>) {
    let mut stream = None;
    let mut closed = pin!(shared.connection.closed());
    loop {
        let queued = tokio::select! {
            biased;
            _ = &mut closed => return,
            queued = queue.recv() => queued,
        };
        let Some(queued) = queued else { return };
        let end = queued.end;
        let out = match &mut stream {
            Some(stream) => stream,
            none => match open(&shared, lane).await {
                Some(opened) => none.insert(opened),
                None => return,
            },
        };
        if !write(&shared, lane, out, queued).await {
            return;
        }
        if end && let Some(mut stream) = stream.take() {
            let _ = stream.finish();
        }
    }
}

async fn open(shared: &Shared, lane: Lane) -> Option<SendStream> {
    let mut stream = shared.connection.open_uni().await.ok()?;
    let _ = stream.set_priority(lane.priority());
    stream.write_all(&[lane.tag()]).await.ok()?;
    Some(stream)
}

/// Whether the stream can go on.
async fn write(shared: &Shared, lane: Lane, stream: &mut SendStream, queued: Queued) -> bool {
    let length = queued.bytes.len();
    let written = stream.write_chunk(queued.bytes).await;
    drop(queued.room);
    shared.made_room(lane);
    match written {
        Ok(()) => {
            shared.sent(length);
            true
        }
        // The readers learn of a lost connection by themselves.
        Err(WriteError::ConnectionLost(_)) => false,
        Err(error) => {
            shared.fail(LinkError::Transport(error.to_string().into()));
            false
        }
    }
}

/// Sends the load lane as datagrams; what does not fit into one goes by stream.
pub(crate) async fn datagrams(shared: Arc<Shared>, mut queue: mpsc::Receiver<Queued>) {
    let mut stream = None;
    let mut closed = pin!(shared.connection.closed());
    loop {
        let queued = tokio::select! {
            biased;
            _ = &mut closed => return,
            queued = queue.recv() => queued,
        };
        let Some(queued) = queued else { return };
        if shared.connection.max_datagram_size().is_some_and(|max| queued.bytes.len() <= max) {
            let length = queued.bytes.len();
            if shared.connection.send_datagram(queued.bytes).is_ok() {
                shared.sent(length);
            }
            drop(queued.room);
            shared.made_room(Lane::Load);
            continue;
        }
        let out = match &mut stream {
            Some(stream) => stream,
            none => match open(&shared, Lane::Load).await {
                Some(opened) => none.insert(opened),
                None => return,
            },
        };
        if !write(&shared, Lane::Load, out, queued).await {
            return;
        }
    }
}

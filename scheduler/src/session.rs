//! From links to the task that owns the truth.

use std::sync::Arc;

use fairlead_replication::SessionId;
use fairlead_transport::{Accepted, LinkReceiver, LinkSender, Listener};
use fairlead_wire::msg::RefuseCode;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::core::Event;

/// What every reader needs.
#[derive(Clone)]
pub(crate) struct Inbox {
    events: mpsc::Sender<Event<LinkSender>>,
    /// Bytes of messages that wait.
    room: Arc<Semaphore>,
    bytes: u32,
}

impl Inbox {
    pub(crate) fn new(events: mpsc::Sender<Event<LinkSender>>, bytes: usize) -> Self {
        // A semaphore counts in u32 per claim.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, 1 << 30);
        Self { events, room: Arc::new(Semaphore::new(bytes as usize)), bytes }
    }
}

/// Accepts peers until told to stop, then closes the listener.
pub(crate) async fn accept(mut listener: Listener, inbox: Inbox, mut stop: watch::Receiver<bool>) {
    let mut next = 0;
    loop {
        tokio::select! {
            biased;
            () = crate::told(&mut stop) => break,
            accepted = listener.accept() => {
                let Some(Accepted { link, hello, protocol }) = accepted else { break };
                next += 1;
                let session = SessionId(next);
                let (sender, receiver) = link.split();
                let connected = Event::Connected { session, hello, protocol, sender: sender.clone() };
                if inbox.events.send(connected).await.is_err() {
                    break;
                }
                tokio::spawn(read(session, sender, receiver, inbox.clone()));
            }
        }
    }
    listener.close("the scheduler is shutting down").await;
}

/// Decodes what a peer says, beside the task that acts on it.
async fn read(session: SessionId, sender: LinkSender, mut receiver: LinkReceiver, inbox: Inbox) {
    let why = loop {
        let frame = match receiver.recv().await {
            Ok((_, frame)) => frame,
            Err(why) => break why,
        };
        let message = match frame.message() {
            Ok(message) => message,
            Err(error) => {
                sender.refuse(RefuseCode::Malformed, &error.to_string());
                break error.into();
            }
        };
        let claim = u32::try_from(frame.wire_len()).unwrap_or(u32::MAX).min(inbox.bytes);
        let Ok(room) = inbox.room.clone().acquire_many_owned(claim).await else { return };
        if inbox.events.send(Event::Said { session, message, room: Some(room) }).await.is_err() {
            return;
        }
    };
    // Fails when the scheduler is ending, which ends the session too.
    let _ = inbox.events.send(Event::Ended { session, why }).await;
}

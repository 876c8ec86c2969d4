//! What the scheduler is told, and when: the uplink without its link, so that a test drives the same code in virtual
//! time.

use crate::state::Published;
use fairlead_wire::frame::{Body, Message};
use fairlead_wire::msg::{InstanceInfo, Ping, Pong, Register, Report};
use std::sync::Arc;

/// Heartbeats without a word from the scheduler after which the link counts as dead although the transport holds it.
/// Counted in own ticks, so that a stalled agent blames nobody.
const SILENT_TICKS: u32 = 4;

/// Takes what is to be sent.
pub trait Post {
    /// Queues a message; false when it does not fit and was dropped: the next heartbeat says the same, newer.
    fn send<T: Body>(&mut self, body: &T) -> bool;
}

/// What one connected scheduler has been told, and heard of it.
#[derive(Debug, Default)]
pub struct Reporter {
    registered: Option<Arc<InstanceInfo>>,
    silence: u32,
    ping: u64,
}

/// What [`Reporter::tell`] got sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The instance.
    pub registered: bool,
    /// A report.
    pub reported: bool,
}

/// What a message from the scheduler means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing further.
    Nothing,
    /// The round trip took so long, microseconds.
    RoundTrip(u64),
    /// The session is over, for this reason.
    End(String),
}

impl Reporter {
    /// Sends what the scheduler should know now: the instance when it is ready and not known as it is, then a report.
    pub fn tell(&mut self, published: &Published, post: &mut impl Post) -> Told {
        let mut told = Told::default();
        let Some(instance) = &published.instance else { return told };
        let mut report = Report {
            incarnation: instance.incarnation,
            ready: published.ready,
            reason: published.reason.clone(),
            ranks: published.ranks.clone(),
        };
        let known = self.registered.as_ref().is_some_and(|known| Arc::ptr_eq(known, instance));
        if !known && report.ready {
            if !post.send(&Register { instance: (**instance).clone() }) {
                return told;
            }
            told.registered = true;
            self.registered = Some(instance.clone());
        } else if !known {
            // Ready and gone again before this was told: the scheduler knows of an earlier life, or of none.
            match &self.registered {
                Some(earlier) => report.incarnation = earlier.incarnation,
                None => return told,
            }
        }
        told.reported = post.send(&report);
        told
    }

    /// Reacts to a message.
    pub fn heard(&mut self, message: &Message, now_us: u64, post: &mut impl Post) -> Heard {
        self.silence = 0;
        match message {
            Message::Ping(ping) => {
                post.send(&Pong { id: ping.id, ping_sent_us: ping.sent_us, received_us: now_us });
                Heard::Nothing
            }
            Message::Pong(pong) => Heard::RoundTrip(now_us.saturating_sub(pong.ping_sent_us)),
            Message::Refuse(refuse) => Heard::End(format!("refused ({:?}): {}", refuse.code, refuse.reason)),
            other => {
                tracing::debug!(kind = ?other.kind(), "message without meaning here");
                Heard::Nothing
            }
        }
    }

    /// A heartbeat is due.
    ///
    /// # Errors
    /// Nothing was heard for too long: the session is over, for this reason.
    pub fn beat(&mut self, now_us: u64, post: &mut impl Post) -> Result<(), String> {
        self.silence += 1;
        if self.silence > SILENT_TICKS {
            return Err(format!("nothing heard for {SILENT_TICKS} heartbeats"));
        }
        self.ping += 1;
        post.send(&Ping { id: self.ping, sent_us: now_us });
        Ok(())
    }
}

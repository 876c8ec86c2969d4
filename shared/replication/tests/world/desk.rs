//! A truth driven by hand.

use fairlead_replication::{Output, SessionId, Truth, TruthConfig};
use fairlead_wire::msg::*;
use fairlead_wire::{Frame, Message};

use super::MS;

/// A truth driven by hand.
pub struct Desk {
    pub truth: Truth,
    pub now: u64,
    pub closed: Vec<(SessionId, Refuse)>,
    pub sent: Vec<(SessionId, Message)>,
}

impl Desk {
    pub fn new(config: TruthConfig) -> Self {
        Self {
            truth: Truth::new(config, 9, 1, 1_000_000),
            now: 1_000_000,
            closed: Vec::new(),
            sent: Vec::new(),
        }
    }

    pub fn hello(&mut self, session: u64, role: Role, name: &str, incarnation: u64) {
        let hello = Hello {
            role,
            name: name.into(),
            incarnation,
            protocol_min: 1,
            protocol_max: 1,
            software: String::new(),
            have: None,
        };
        self.truth.connected(SessionId(session), &hello, 1, self.now);
        self.drain();
    }

    pub fn says(&mut self, session: u64, message: impl Into<Message>) {
        self.truth.message(SessionId(session), message.into(), self.now);
        self.drain();
    }

    pub fn register(&mut self, session: u64, info: InstanceInfo) {
        self.says(session, Register { instance: info });
    }

    /// Passes time in ticks of 10 ms, with a heartbeat from everybody in `alive`.
    pub fn pass(&mut self, us: u64, alive: &[u64]) {
        let end = self.now + us;
        while self.now < end {
            self.now += 10 * MS;
            for &session in alive {
                self.says(session, Ping { id: 1, sent_us: 0 });
            }
            self.truth.tick(self.now);
            self.drain();
        }
    }

    pub fn drain(&mut self) {
        while let Some(output) = self.truth.poll(|_, _| true) {
            match output {
                Output::Close { session, refuse } => self.closed.push((session, refuse)),
                Output::Send { session, bytes, .. } => {
                    self.sent.push((
                        session,
                        Frame::from_bytes(&bytes).and_then(|frame| frame.message()).expect("valid"),
                    ));
                }
            }
        }
    }

    pub fn last_refusal(&self) -> (u64, RefuseCode, &str) {
        let (session, refuse) = self.closed.last().expect("refused");
        (session.0, refuse.code, &refuse.reason)
    }
}

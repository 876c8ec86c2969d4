//! What a scheduler is told of one rank: a full account first, then the changes.

use super::mirror::Mirror;
use super::ops::Ops;
use fairlead_wire::msg::CacheEvents;

/// Bytes of one message, about.
const MESSAGE_BYTES: usize = 32 << 10;
/// Changes that wait for room on the link, bytes; beyond, a new account is cheaper than the list.
const WAITING_BYTES: usize = 1 << 20;

/// Changes on their way to the scheduler.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    /// Where the mirror's changes go.
    pub ops: Ops,
    /// Nobody listens: changes are forgotten, for whoever comes next gets an account.
    listening: bool,
    /// An account is due.
    due: bool,
    /// The next message voids what was told before.
    replace: bool,
    /// What of `ops` the account made up.
    account: usize,
    /// What the last message said.
    partial: Option<bool>,
}

impl Teller {
    /// Somebody listens who knows nothing, or nobody does.
    pub fn restart(&mut self, listening: bool) {
        self.listening = listening;
        self.due = listening;
        self.ops.discard();
    }

    /// Changes were added to `ops`.
    pub fn changed(&mut self) {
        if !self.listening || self.due {
            self.ops.discard();
        } else if self.ops.bytes() > self.account + WAITING_BYTES {
            self.due = true;
            self.ops.discard();
        }
    }

    /// Whether there is something to say.
    pub fn has_news(&self, partial: bool) -> bool {
        self.listening && (self.due || self.replace || !self.ops.is_empty() || self.partial != Some(partial))
    }

    /// Enough for a message, which need not wait for more.
    pub fn is_full(&self) -> bool {
        self.due || self.ops.bytes() >= MESSAGE_BYTES
    }

    /// The next message.
    pub fn next(&mut self, mirror: &mut Mirror, incarnation: u64, rank: u16, partial: bool) -> CacheEvents {
        if std::mem::take(&mut self.due) {
            self.ops.discard();
            mirror.account(&mut self.ops);
            self.account = self.ops.bytes();
            self.replace = true;
        }
        let ops = self.ops.take_some(MESSAGE_BYTES);
        if self.ops.is_empty() {
            self.account = 0;
        }
        self.partial = Some(partial);
        CacheEvents { incarnation, rank, partial, replace: std::mem::take(&mut self.replace), ops }
    }
}

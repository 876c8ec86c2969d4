//! One stream of batches, followed without a hole or with the hole known.
//!
//! Batches are numbered from 0 in each life of the engine. What is missing is asked for from the engine's buffer, from the
//! last batch *that was applied* on: if the first answer is that very batch, the engine is still the same and nothing is
//! lost; otherwise it was restarted, or its buffer does not reach back that far, and the mirror begins anew.

use super::event::Batch;
use super::mirror::{Counters, Mirror, MirrorConfig};
use super::ops::Ops;
use bytes::Bytes;

/// What is to be done about a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was applied, or had been before.
    Done,
    /// Others before it are missing.
    Missing,
}

/// What a replay showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The engine is the one that is known.
    Same,
    /// It was restarted.
    Restarted,
    /// Its buffer does not reach back far enough to tell.
    TooOld,
}

#[derive(Debug)]
pub(crate) struct Follower {
    config: MirrorConfig,
    pub mirror: Mirror,
    /// The last batch applied.
    last: Option<(u64, Bytes)>,
    /// Number of the last one that came by itself.
    live: Option<u64>,
    /// The rank that the batches name.
    pub rank: Option<u64>,
    /// Counters of mirrors before this one.
    before: Counters,
    pub batches: u64,
    pub malformed: u64,
    /// Numbers went back: the engine was restarted.
    pub went_back: bool,
}

impl Follower {
    pub fn new(config: MirrorConfig) -> Self {
        Self {
            mirror: Mirror::new(config.clone(), true),
            config,
            last: None,
            live: None,
            rank: None,
            before: Counters::default(),
            batches: 0,
            malformed: 0,
            went_back: false,
        }
    }

    /// Begins anew: nothing is known of what the engine holds.
    pub fn reset(&mut self, out: &mut Ops) {
        self.before = self.counters();
        self.mirror = Mirror::new(self.config.clone(), true);
        self.last = None;
        out.clear();
    }

    /// Everything since the start.
    pub fn counters(&self) -> Counters {
        let (mut sum, now) = (self.before, self.mirror.counters());
        for (sum, now) in [
            (&mut sum.stored, now.stored),
            (&mut sum.removed, now.removed),
            (&mut sum.cleared, now.cleared),
            (&mut sum.ignored, now.ignored),
            (&mut sum.orphans, now.orphans),
            (&mut sum.conflicts, now.conflicts),
            (&mut sum.dropped, now.dropped),
            (&mut sum.untold, now.untold),
            (&mut sum.retold, now.retold),
        ] {
            *sum += now;
        }
        sum
    }

    /// Where a replay has to begin.
    pub fn replay_from(&self) -> u64 {
        self.last.as_ref().map_or(0, |(sequence, _)| *sequence)
    }

    /// Whether anything has been applied in this life.
    pub fn has_past(&self) -> bool {
        self.last.is_some()
    }

    /// The connection is new: numbers may have moved in any way meanwhile.
    pub fn connected(&mut self) {
        self.live = None;
    }

    /// A batch that came by itself.
    pub fn live(&mut self, sequence: u64, payload: &Bytes, out: &mut Ops) -> Verdict {
        if self.live.is_some_and(|before| sequence <= before) {
            self.went_back = true;
            self.reset(out);
        }
        self.live = Some(sequence);
        self.place(sequence, payload, out)
    }

    /// A batch that came by itself, after what was missing before it has been asked for.
    pub fn place(&mut self, sequence: u64, payload: &Bytes, out: &mut Ops) -> Verdict {
        let expected = self.last.as_ref().map_or(0, |(last, _)| last.saturating_add(1));
        match sequence.cmp(&expected) {
            // Came with a replay already.
            std::cmp::Ordering::Less => Verdict::Done,
            std::cmp::Ordering::Equal => {
                if sequence == 0 {
                    self.mirror.set_whole();
                }
                self.apply(sequence, payload, out);
                Verdict::Done
            }
            std::cmp::Ordering::Greater => Verdict::Missing,
        }
    }

    /// The first answer of a replay that began with the last batch applied; `None` when there was none.
    pub fn prove(&self, first: Option<(u64, &Bytes)>) -> Proof {
        match (&self.last, first) {
            (Some((last, payload)), Some((sequence, answer))) if *last == sequence && payload == answer => {
                Proof::Same
            }
            (Some((last, _)), Some((sequence, _))) if sequence > *last => Proof::TooOld,
            _ => Proof::Restarted,
        }
    }

    /// A batch of a replay. Numbers only rise within one.
    pub fn replayed(&mut self, sequence: u64, payload: &Bytes, out: &mut Ops) {
        let expected = self.last.as_ref().map_or(0, |(last, _)| last.saturating_add(1));
        if sequence < expected {
            return;
        }
        if sequence == 0 {
            self.mirror.set_whole();
        } else if sequence > expected {
            self.mirror.set_partial();
        }
        self.apply(sequence, payload, out);
    }

    /// What lies between cannot be had.
    pub fn skip_to(&mut self, sequence: u64, payload: &Bytes, out: &mut Ops) {
        self.mirror.set_partial();
        self.apply(sequence, payload, out);
    }

    fn apply(&mut self, sequence: u64, payload: &Bytes, out: &mut Ops) {
        self.batches += 1;
        self.last = Some((sequence, payload.clone()));
        let Ok(batch) = Batch::decode(payload) else {
            self.malformed += 1;
            self.mirror.set_partial();
            return;
        };
        if let Some(rank) = batch.rank
            && *self.rank.get_or_insert(rank) != rank
        {
            // One stream is one rank's: what another says cannot be told apart later.
            self.malformed += 1;
            self.mirror.set_partial();
            return;
        }
        for event in batch.events() {
            match event {
                Ok(event) => self.mirror.apply(&event, out),
                Err(_) => {
                    self.malformed += 1;
                    self.mirror.set_partial();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Follower, Proof, Verdict};
    use crate::kv::{MirrorConfig, Ops};
    use bytes::Bytes;

    /// `[1.0, [["BlockStored", [hash], parent, [1], 1]], nil]`.
    fn batch(hash: u8, parent: Option<u8>) -> Bytes {
        let mut payload = vec![0x93, 0xcb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0, 0x91, 0x95, 0xab];
        payload.extend_from_slice(b"BlockStored");
        payload.extend_from_slice(&[0x91, hash, parent.unwrap_or(0xc0), 0x91, 1, 1, 0xc0]);
        payload.into()
    }

    fn follower() -> (Follower, Ops) {
        let config =
            MirrorConfig { seed: 1, block_tokens: 1, model: "m".into(), max_bytes: 1 << 20, copies: None };
        (Follower::new(config), Ops::default())
    }

    #[test]
    fn batches_in_order_leave_no_doubt() {
        let (mut follower, mut ops) = follower();
        assert!(follower.mirror.is_partial(), "nothing is known yet");
        assert_eq!(follower.live(0, &batch(1, None), &mut ops), Verdict::Done);
        assert_eq!(follower.live(1, &batch(2, Some(1)), &mut ops), Verdict::Done);
        assert_eq!((follower.mirror.blocks(), follower.mirror.is_partial()), (2, false));
        assert_eq!(follower.live(3, &batch(4, Some(3)), &mut ops), Verdict::Missing);
        assert_eq!(follower.mirror.blocks(), 2);
    }

    #[test]
    fn a_replay_must_begin_with_what_is_known() {
        let (mut follower, mut ops) = follower();
        assert_eq!((follower.has_past(), follower.replay_from()), (false, 0));
        let (one, two) = (batch(1, None), batch(2, Some(1)));
        follower.live(0, &one, &mut ops);
        assert_eq!((follower.has_past(), follower.replay_from()), (true, 0));
        assert_eq!(follower.prove(Some((0, &one))), Proof::Same);
        assert_eq!(follower.prove(Some((0, &two))), Proof::Restarted, "another engine's first batch");
        assert_eq!(follower.prove(Some((1, &two))), Proof::TooOld);
        assert_eq!(follower.prove(None), Proof::Restarted);
        follower.replayed(0, &one, &mut ops);
        follower.replayed(1, &two, &mut ops);
        assert_eq!((follower.mirror.blocks(), follower.batches), (2, 2));
        // The same come by themselves a little later.
        assert_eq!(follower.live(1, &two, &mut ops), Verdict::Done);
        assert_eq!((follower.batches, follower.went_back), (2, false));
    }

    #[test]
    fn numbers_that_go_back_are_a_new_life() {
        let (mut follower, mut ops) = follower();
        follower.live(0, &batch(1, None), &mut ops);
        follower.live(1, &batch(2, Some(1)), &mut ops);
        assert_eq!(follower.live(0, &batch(9, None), &mut ops), Verdict::Done);
        assert_eq!(
            (follower.mirror.blocks(), follower.mirror.is_partial(), follower.went_back),
            (1, false, true)
        );
        assert_eq!(follower.counters().stored, 3);
    }

    #[test]
    fn what_cannot_be_had_leaves_the_rank_partial() {
        let (mut follower, mut ops) = follower();
        follower.live(0, &batch(1, None), &mut ops);
        assert_eq!(follower.place(7, &batch(3, None), &mut ops), Verdict::Missing);
        follower.reset(&mut ops);
        follower.skip_to(7, &batch(3, None), &mut ops);
        assert_eq!((follower.mirror.blocks(), follower.mirror.is_partial()), (1, true));
        // A buffer that reaches back to its fifth batch only.
        follower.reset(&mut ops);
        follower.replayed(5, &batch(5, None), &mut ops);
        assert!(follower.mirror.is_partial());
        follower.reset(&mut ops);
        follower.replayed(0, &batch(5, None), &mut ops);
        follower.replayed(1, &Bytes::from_static(b"\xff"), &mut ops);
        assert_eq!((follower.malformed, follower.mirror.is_partial()), (1, true));
    }
}

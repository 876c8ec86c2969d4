//! The figures of a target that change while the table stays: counters, engine load, peers, circuit.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::decoding::Decoding;
use super::pace::Pace;
use super::pressure::Pressure;
use super::reservation::{Counters, Disturbance};
use crate::cost::CostCell;
use crate::filter::Room;
use crate::pd::TransferCell;

/// How far the replicated state may be trusted (DESIGN section 8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Linked to the scheduler, or cut off so recently that its figures still count.
    #[default]
    Fresh = 0,
    /// Cut off for longer than `stale_after`: prefixes count, other parties' load does not.
    Stale = 1,
    /// Even the target list is older than `blind_after`: round robin.
    Blind = 2,
}

impl Mode {
    /// Its name in explain records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Blind => "blind",
        }
    }

    pub(super) fn from_u8(raw: u8) -> Self {
        match raw {
            0 => Self::Fresh,
            1 => Self::Stale,
            _ => Self::Blind,
        }
    }
}

/// What an engine reported of one target. `None` is unknown, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct EngineFigures {
    /// Requests running.
    pub running: Option<u32>,
    /// Requests waiting.
    pub waiting: Option<u32>,
    /// Share of KV room in use.
    pub kv_usage: Option<f32>,
    /// Share of the KV room outside of the accelerator in use.
    pub host_kv_usage: Option<f32>,
    /// KV room, tokens.
    pub kv_total_tokens: Option<u64>,
    /// Prompt tokens per second.
    pub prompt_tokens_per_s: Option<f32>,
    /// Generated tokens per second.
    pub generation_tokens_per_s: Option<f32>,
    /// Mean time before prefill of the requests that ended lately, seconds. This mean and the four below are 0 where no
    /// request ended lately.
    pub queue_time_s: Option<f32>,
    /// Their mean time from there to the first token, seconds.
    pub prefill_time_s: Option<f32>,
    /// Their mean time from the first token to the end, seconds.
    pub decode_time_s: Option<f32>,
    /// Their mean prompt tokens.
    pub request_prompt_tokens: Option<f32>,
    /// Their mean generated tokens.
    pub request_generation_tokens: Option<f32>,
    /// Share of the time lately in which requests were running.
    pub busy: Option<f32>,
    /// Share of what the engine can take that is in use.
    pub utilization: Option<f32>,
    /// Requests that the report showed beyond what all gateways had in flight at its time: foreign traffic.
    pub foreign_requests: Option<u32>,
    /// When the figures were taken, this process's clock, microseconds.
    pub taken_us: u64,
}

const RUNNING: u64 = 1;
const WAITING: u64 = 2;
const KV_USAGE: u64 = 4;
const KV_TOTAL: u64 = 8;
const PROMPT_RATE: u64 = 16;
const GENERATION_RATE: u64 = 32;
const FOREIGN: u64 = 64;
const HOST_KV_USAGE: u64 = 128;
const QUEUE_TIME: u64 = 256;
const PREFILL_TIME: u64 = 512;
const DECODE_TIME: u64 = 1_024;
const REQUEST_PROMPT: u64 = 2_048;
const REQUEST_GENERATION: u64 = 4_096;
const BUSY: u64 = 8_192;
const UTILIZATION: u64 = 16_384;

/// Words of a record.
const WORDS: usize = 10;

/// A seqlock record of [`EngineFigures`]: one writer (the control thread), readers that retry while a write is under
/// way. Every word is an atomic, so a torn read is seen as such and never undefined.
#[derive(Debug, Default)]
#[repr(C)]
pub struct LoadCell {
    /// What is known, and the foreign requests: first, so that it shares a cache line with what stands before the
    /// record in [`TargetCells`].
    words: [AtomicU64; WORDS],
    sequence: AtomicU64,
}

impl LoadCell {
    /// Replaces the record. Only the control thread may call this.
    pub(crate) fn store(&self, figures: &EngineFigures) {
        let words = encode(figures);
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (cell, word) in self.words.iter().zip(words) {
            cell.store(word, Ordering::Relaxed);
        }
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// A consistent copy. A reader that meets a writer eight times in a row (the writer was descheduled in the
    /// middle) answers "nothing known", which is safe, instead of waiting.
    pub fn read(&self) -> EngineFigures {
        for _ in 0..8 {
            let before = self.sequence.load(Ordering::Acquire);
            if before & 1 == 1 {
                std::hint::spin_loop();
                continue;
            }
            let words: [u64; WORDS] = std::array::from_fn(|i| self.words[i].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if self.sequence.load(Ordering::Relaxed) == before {
                return decode(&words);
            }
        }
        EngineFigures::default()
    }

    /// `foreign_requests` alone: one load, for decisions that look at every target.
    #[inline]
    pub fn foreign_requests(&self) -> Option<u32> {
        let word = self.words[0].load(Ordering::Relaxed);
        (word & FOREIGN != 0).then_some((word >> 32) as u32)
    }
}

fn encode(f: &EngineFigures) -> [u64; WORDS] {
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let bits = |figure: Option<f32>| figure.unwrap_or(0.0).to_bits();
    let mut known = 0;
    let mut flag = |bit, is_known: bool| known |= if is_known { bit } else { 0 };
    flag(RUNNING, f.running.is_some());
    flag(WAITING, f.waiting.is_some());
    flag(KV_USAGE, f.kv_usage.is_some());
    flag(KV_TOTAL, f.kv_total_tokens.is_some());
    flag(PROMPT_RATE, f.prompt_tokens_per_s.is_some());
    flag(GENERATION_RATE, f.generation_tokens_per_s.is_some());
    flag(FOREIGN, f.foreign_requests.is_some());
    flag(HOST_KV_USAGE, f.host_kv_usage.is_some());
    flag(QUEUE_TIME, f.queue_time_s.is_some());
    flag(PREFILL_TIME, f.prefill_time_s.is_some());
    flag(DECODE_TIME, f.decode_time_s.is_some());
    flag(REQUEST_PROMPT, f.request_prompt_tokens.is_some());
    flag(REQUEST_GENERATION, f.request_generation_tokens.is_some());
    flag(BUSY, f.busy.is_some());
    flag(UTILIZATION, f.utilization.is_some());
    [
        known | u64::from(f.foreign_requests.unwrap_or(0)) << 32,
        pair(f.running.unwrap_or(0), f.waiting.unwrap_or(0)),
        pair(bits(f.kv_usage), bits(f.host_kv_usage)),
        f.kv_total_tokens.unwrap_or(0),
        pair(bits(f.prompt_tokens_per_s), bits(f.generation_tokens_per_s)),
        f.taken_us,
        pair(bits(f.queue_time_s), bits(f.prefill_time_s)),
        pair(bits(f.decode_time_s), bits(f.request_prompt_tokens)),
        pair(bits(f.request_generation_tokens), bits(f.busy)),
        u64::from(bits(f.utilization)),
    ]
}

fn decode(w: &[u64; WORDS]) -> EngineFigures {
    let low = |word: u64| word as u32;
    let high = |word: u64| (word >> 32) as u32;
    let has = |bit| w[0] & bit != 0;
    let float = |bit, bits: u32| has(bit).then(|| f32::from_bits(bits));
    EngineFigures {
        running: has(RUNNING).then(|| low(w[1])),
        waiting: has(WAITING).then(|| high(w[1])),
        kv_usage: float(KV_USAGE, low(w[2])),
        host_kv_usage: float(HOST_KV_USAGE, high(w[2])),
        kv_total_tokens: has(KV_TOTAL).then_some(w[3]),
        prompt_tokens_per_s: float(PROMPT_RATE, low(w[4])),
        generation_tokens_per_s: float(GENERATION_RATE, high(w[4])),
        queue_time_s: float(QUEUE_TIME, low(w[6])),
        prefill_time_s: float(PREFILL_TIME, high(w[6])),
        decode_time_s: float(DECODE_TIME, low(w[7])),
        request_prompt_tokens: float(REQUEST_PROMPT, high(w[7])),
        request_generation_tokens: float(REQUEST_GENERATION, low(w[8])),
        busy: float(BUSY, high(w[8])),
        utilization: float(UTILIZATION, low(w[9])),
        foreign_requests: has(FOREIGN).then(|| high(w[0])),
        taken_us: w[5],
    }
}

/// Requests and tokens in flight, summed over some set of gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct InFlightSums {
    /// Requests picked and not ended.
    pub requests: u64,
    /// Those of them without a first token yet.
    pub prefilling: u64,
    /// Uncached prompt tokens not yet prefilled.
    pub prefill_tokens: u64,
    /// The same as predicted work of the target, microseconds.
    pub prefill_us: u64,
    /// Prompt tokens of requests past their first token.
    pub context_tokens: u64,
}

impl InFlightSums {
    /// Adds others'.
    #[inline]
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.prefilling = self.prefilling.saturating_add(other.prefilling);
        self.prefill_tokens = self.prefill_tokens.saturating_add(other.prefill_tokens);
        self.prefill_us = self.prefill_us.saturating_add(other.prefill_us);
        self.context_tokens = self.context_tokens.saturating_add(other.context_tokens);
    }
}

/// Sums of the other gateways, written by the control thread.
#[derive(Debug, Default)]
struct PeerCell {
    requests: AtomicU64,
    prefilling: AtomicU64,
    prefill_tokens: AtomicU64,
    prefill_us: AtomicU64,
    context_tokens: AtomicU64,
}

/// Everything that changes about a target while its description stays. Shared by all table versions that hold the
/// target and by the guards of its requests, so a late release can only ever reach the target it was made for.
///
/// Laid out for decisions that look at every target: two cache lines hold all that they read. The first is what the
/// shards write at every request, the second what the control thread writes now and then.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct TargetCells {
    /// This process's reservations.
    pub counters: Counters,
    peers: PeerCell,
    /// Excluded by this gateway's own experience until this time, microseconds; 0 is never.
    open_until_us: AtomicU64,
    /// Consecutive failed connects, for the length of the exclusion.
    failures: AtomicU32,
    /// Free KV room by the engine's report.
    pub(crate) room: Room,
    /// The engine's report.
    pub load: LoadCell,
    /// Round-robin ticket of the last pick.
    pub(crate) ticket: AtomicU64,
    /// The fleet's count of cold prompts when it was given the last one; 0 is never.
    pub(crate) cold: AtomicU64,
    /// What its work costs, as learnt.
    pub costs: CostCell,
    pub(crate) disturbance: Disturbance,
    pub(crate) decoding: Decoding,
    /// This process's decode legs whose first token has not come: their context counts as decoding from the pick on,
    /// but takes no part in steps yet.
    pub(crate) incoming: Incoming,
}

/// Decode legs on their way to a target.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    pub(crate) requests: AtomicU64,
    pub(crate) tokens: AtomicU64,
}

const _: () = assert!(std::mem::offset_of!(TargetCells, peers) == 64);
const _: () = assert!(std::mem::offset_of!(TargetCells, load) + size_of::<u64>() <= 128);

impl TargetCells {
    /// Fresh cells: nothing in flight, nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the engine's report. Only the control thread may call this.
    pub fn report(&self, figures: &EngineFigures) {
        self.load.store(figures);
        self.room.report(figures);
    }

    /// Replaces the sums of the other gateways, as they became known at `now_us`.
    pub fn set_peers(&self, sums: InFlightSums, now_us: u64) {
        // Fewer before their first token: the target has just come that far. The first there: it begins with it now,
        // and what it had time for before was nothing.
        let before = self.peers.prefilling.load(Ordering::Relaxed);
        let idle = before == 0 && self.counters.in_flight().prefilling == 0;
        if sums.prefilling < before || (idle && sums.prefilling > 0) {
            self.counters.progressed(now_us);
        }
        if before > 0 || sums.prefilling > 0 {
            self.disturbance.note();
        }
        let (own, old) = (self.counters.in_flight(), self.peers());
        let decoding = |sums: &InFlightSums| sums.requests.saturating_sub(sums.prefilling);
        let context = own.context_tokens.saturating_add(old.context_tokens);
        self.decoding.look(now_us, decoding(&own) + decoding(&old), context);
        // What is no longer queued was prefilled; what came at the same time hides some of it.
        self.decoding.prefilled(old.prefill_tokens.saturating_sub(sums.prefill_tokens), now_us);
        self.peers.requests.store(sums.requests, Ordering::Relaxed);
        self.peers.prefilling.store(sums.prefilling, Ordering::Relaxed);
        self.peers.prefill_tokens.store(sums.prefill_tokens, Ordering::Relaxed);
        self.peers.prefill_us.store(sums.prefill_us, Ordering::Relaxed);
        self.peers.context_tokens.store(sums.context_tokens, Ordering::Relaxed);
    }

    /// The count of disturbances, if a prompt's prefill could be told from others' now.
    pub(crate) fn undisturbed(&self) -> Option<u64> {
        let alone = self.peers.prefilling.load(Ordering::Relaxed) == 0;
        self.disturbance.count_if_none_unseen().filter(|_| alone)
    }

    /// Sums of the other gateways.
    #[inline]
    pub fn peers(&self) -> InFlightSums {
        InFlightSums {
            requests: self.peers.requests.load(Ordering::Relaxed),
            prefilling: self.peers.prefilling.load(Ordering::Relaxed),
            prefill_tokens: self.peers.prefill_tokens.load(Ordering::Relaxed),
            prefill_us: self.peers.prefill_us.load(Ordering::Relaxed),
            context_tokens: self.peers.context_tokens.load(Ordering::Relaxed),
        }
    }

    /// Notes that the target refused a connection or could not be reached: it is not picked by this gateway for
    /// 1 s, doubled with each further failure up to 8 s. Overload answers (429, 503) do not belong here.
    pub fn connect_failed(&self, now_us: u64) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(3);
        self.open_until_us.store(now_us + (1_000_000 << failures), Ordering::Relaxed);
    }

    /// Notes that the target took a request: its circuit closes.
    pub fn connected(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.open_until_us.store(0, Ordering::Relaxed);
        }
    }

    /// Whether this gateway's own experience lets the target be picked.
    #[inline]
    pub fn circuit_closed(&self, now_us: u64) -> bool {
        self.open_until_us.load(Ordering::Relaxed) <= now_us
    }
}

/// What a gateway learns about a model from its own traffic.
#[derive(Debug)]
pub struct ModelCells {
    /// Bits of an f32: canonical prompt bytes per prompt token.
    bytes_per_token: AtomicU32,
    /// Whether the caches of its targets miss room.
    pub pressure: Pressure,
    /// How busy its targets are.
    pub pace: Pace,
    /// What transfers of its KV take.
    pub transfer: TransferCell,
}

impl Default for ModelCells {
    fn default() -> Self {
        Self {
            bytes_per_token: AtomicU32::new(4.0f32.to_bits()),
            pressure: Pressure::new(),
            pace: Pace::default(),
            transfer: TransferCell::default(),
        }
    }
}

impl ModelCells {
    /// Canonical prompt bytes per prompt token: 4 until engines have reported otherwise.
    pub fn bytes_per_token(&self) -> f32 {
        f32::from_bits(self.bytes_per_token.load(Ordering::Relaxed))
    }

    /// Learns from one answer's `usage`: an exponential mean with weight 1/32, clamped to 0.25..=64 so that one odd
    /// answer cannot spoil it. A lost race between shards loses one sample, which does not matter.
    pub fn learn(&self, prompt_bytes: u64, prompt_tokens: u64) {
        if prompt_tokens == 0 || prompt_bytes == 0 {
            return;
        }
        let sample = (prompt_bytes as f32 / prompt_tokens as f32).clamp(0.25, 64.0);
        let mean = self.bytes_per_token();
        self.bytes_per_token.store((mean + (sample - mean) / 32.0).to_bits(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_cell_keeps_unknown_apart_from_zero() {
        let cell = LoadCell::default();
        assert_eq!(cell.read(), EngineFigures::default());
        let some = EngineFigures {
            running: Some(0),
            waiting: None,
            kv_usage: Some(0.5),
            host_kv_usage: None,
            kv_total_tokens: Some(1 << 40),
            prompt_tokens_per_s: None,
            generation_tokens_per_s: Some(1.25),
            queue_time_s: Some(0.0),
            prefill_time_s: None,
            decode_time_s: Some(2.5),
            request_prompt_tokens: None,
            request_generation_tokens: Some(7.0),
            busy: None,
            utilization: Some(0.125),
            foreign_requests: Some(3),
            taken_us: 99,
        };
        let others = EngineFigures {
            host_kv_usage: Some(0.25),
            prefill_time_s: Some(0.5),
            request_prompt_tokens: Some(11.0),
            busy: Some(0.75),
            ..EngineFigures::default()
        };
        assert_eq!(cell.foreign_requests(), None);
        cell.store(&some);
        assert_eq!(cell.read(), some);
        assert_eq!(cell.foreign_requests(), Some(3));
        cell.store(&others);
        assert_eq!(cell.read(), others);
    }

    #[test]
    fn readers_never_see_a_mixed_record() {
        let cell = std::sync::Arc::new(LoadCell::default());
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let reader = {
            let (cell, stop) = (cell.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let f = cell.read();
                    if let Some(running) = f.running {
                        assert_eq!(Some(running), f.waiting);
                        assert_eq!(u64::from(running), f.taken_us);
                    }
                }
            })
        };
        for i in 0..200_000u32 {
            let f = EngineFigures {
                running: Some(i),
                waiting: Some(i),
                taken_us: u64::from(i),
                ..Default::default()
            };
            cell.store(&f);
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    }

    #[test]
    fn the_others_prompts_move_the_time_of_progress_at_their_first_and_with_each_that_is_done() {
        let cells = TargetCells::new();
        let peers = |prefilling| InFlightSums { prefilling, ..InFlightSums::default() };
        for (now, prefilling, progress) in [(10, 1, 10), (20, 2, 10), (30, 1, 30), (40, 0, 40), (90, 1, 90)] {
            cells.set_peers(peers(prefilling), now);
            assert_eq!(cells.counters.progress_us(), progress, "at {now}");
        }
    }

    #[test]
    fn circuit_opens_longer_with_each_failure_and_closes_on_success() {
        let cells = TargetCells::new();
        assert!(cells.circuit_closed(0));
        cells.connect_failed(0);
        assert!(!cells.circuit_closed(999_999));
        assert!(cells.circuit_closed(1_000_000));
        cells.connect_failed(1_000_000);
        assert!(!cells.circuit_closed(2_999_999));
        cells.connected();
        assert!(cells.circuit_closed(1_000_001));
    }

    #[test]
    fn bytes_per_token_follows_usage_within_bounds() {
        let cells = ModelCells::default();
        for _ in 0..500 {
            cells.learn(300, 100);
        }
        assert!((cells.bytes_per_token() - 3.0).abs() < 0.05);
        cells.learn(u64::MAX, 1);
        assert!(cells.bytes_per_token() < 6.0);
        cells.learn(0, 0);
    }
}

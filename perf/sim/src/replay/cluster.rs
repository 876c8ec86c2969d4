//! The engines in virtual time, and what happens next. No gateway, no policy: whoever decides takes arrivals from
//! [`World::next`] and sends them with [`World::send`]. Everything can be cloned, so a decision may be tried out.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use super::Failure;
use super::workload::{Arrivals, RequestId, Workload};
use crate::events::Origin;
use crate::model::{CacheChange, Model, ModelOptions, Progress, Refused, SeqId, SeqSpec};
use crate::profile::Profile;

/// What an instance is.
#[derive(Clone, Debug)]
pub struct InstanceSpec {
    /// Step costs, token budget, running limit.
    pub profile: Profile,
    /// KV blocks.
    pub kv_blocks: u32,
}

/// Something that has happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A request has come and is to be sent.
    Arrival(RequestId),
    /// An instance has made a request's first token.
    FirstToken {
        /// The request.
        request: RequestId,
        /// Where.
        instance: usize,
        /// Prompt tokens found in the cache.
        cached: u32,
    },
    /// An instance has computed a prompt that another one decodes; its KV is on the way there.
    Prefilled {
        /// The request.
        request: RequestId,
        /// Where.
        instance: usize,
        /// Prompt tokens found in the cache.
        cached: u32,
    },
    /// An instance has made a request's last token.
    Finished {
        /// The request.
        request: RequestId,
        /// Where.
        instance: usize,
    },
    /// A request was at an instance that has died.
    Lost {
        /// The request.
        request: RequestId,
        /// Where.
        instance: usize,
        /// Whether the first token was made before.
        begun: bool,
    },
    /// An instance has ended a step: its figures and cache are as they will be until the end of its next one.
    Stepped(usize),
    /// An instance has died.
    Down(usize),
    /// An instance has come back, empty.
    Up(usize),
}

/// Why an instance did not take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// It is dead.
    #[error("the instance is down")]
    Down,
    /// The engine refuses it.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// One engine.
#[derive(Debug)]
pub struct Engine {
    /// Its scheduler and cache.
    pub model: Model,
    /// Whether it answers.
    pub up: bool,
    /// Seconds spent in steps that have ended.
    pub busy_s: f64,
    began: f64,
    stepping: bool,
    /// Requests by the place of their sequence.
    requests: Vec<RequestId>,
    /// Requests that are here without a first token or with one.
    begun: Vec<bool>,
    /// Requests of which this is the prefill leg: where they are decoded.
    leg: Vec<Option<u32>>,
}

impl Engine {
    fn new(spec: &InstanceSpec, block_tokens: u32, track: bool) -> Self {
        let options = ModelOptions {
            profile: spec.profile.clone(),
            block_tokens,
            kv_blocks: spec.kv_blocks,
            max_waiting: u32::MAX,
            prefix_caching: true,
            track,
            tell_reused: false,
            sparse: true,
        };
        let (requests, begun, leg) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            model: Model::new(options),
            up: true,
            busy_s: 0.0,
            began: 0.0,
            stepping: false,
            requests,
            begun,
            leg,
        }
    }

    /// Enters a request at the end of the queue. Whoever keeps the clock begins a step where none is under way.
    ///
    /// # Errors
    /// The engine is down or refuses; nothing has changed.
    pub fn submit(&mut self, request: RequestId, spec: SeqSpec, now: f64) -> Result<(), NotTaken> {
        if !self.up {
            return Err(NotTaken::Down);
        }
        let at = place(self.model.submit(spec, now)?);
        if at >= self.requests.len() {
            self.requests.resize(at + 1, 0);
            self.begun.resize(at + 1, false);
            self.leg.resize(at + 1, None);
        }
        self.requests[at] = request;
        self.begun[at] = false;
        self.leg[at] = None;
        Ok(())
    }

    /// Enters the prefill leg of a request that is decoded elsewhere.
    fn submit_leg(
        &mut self,
        request: RequestId,
        spec: SeqSpec,
        decode: usize,
        now: f64,
    ) -> Result<(), NotTaken> {
        self.submit(request, SeqSpec { output_tokens: 1, ..spec }, now)?;
        if let Some(id) = self.model.ids().last() {
            self.leg[place(id)] = Some(decode as u32);
        }
        Ok(())
    }

    /// Requests that wait or run.
    pub fn in_flight(&self) -> usize {
        self.model.waiting() + self.model.running()
    }

    /// The request that a sequence of the model is for.
    pub fn request(&self, id: SeqId) -> RequestId {
        self.requests[place(id)]
    }
}

#[inline]
fn place(id: SeqId) -> usize {
    (id & 0xffff_ffff) as usize
}

impl Clone for Engine {
    fn clone(&self) -> Self {
        let (model, requests, begun) = (self.model.clone(), self.requests.clone(), self.begun.clone());
        Self { model, requests, begun, leg: self.leg.clone(), ..*self }
    }

    fn clone_from(&mut self, from: &Self) {
        let Self { model, up, busy_s, began, stepping, requests, begun, leg } = from;
        self.model.clone_from(model);
        self.requests.clone_from(requests);
        self.begun.clone_from(begun);
        self.leg.clone_from(leg);
        (self.up, self.busy_s, self.began, self.stepping) = (*up, *busy_s, *began, *stepping);
    }
}

/// What it takes to hand KV over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransferSpec {
    /// Besides the bytes, seconds.
    pub base_s: f64,
    /// Bytes of a token.
    pub bytes_per_token: u32,
    /// Gigabytes per second.
    pub gbps: f64,
}

impl Default for TransferSpec {
    /// An 8B-class model over a fast network.
    fn default() -> Self {
        Self { base_s: 0.002, bytes_per_token: 131_072, gbps: 25.0 }
    }
}

impl TransferSpec {
    /// Seconds for so many tokens.
    pub fn seconds(&self, tokens: u32) -> f64 {
        self.base_s + f64::from(tokens) * f64::from(self.bytes_per_token) / (self.gbps * 1e9)
    }
}

/// Engines, arrivals and the clock.
pub struct World {
    /// Seconds since the start.
    pub now: f64,
    /// The instances.
    pub engines: Vec<Engine>,
    /// Who is still to come.
    pub arrivals: Arrivals,
    workload: Arc<Workload>,
    specs: Arc<[InstanceSpec]>,
    /// Ends of steps: time and instance. At most one an instance; times are not negative, so their bits are in their
    /// order.
    steps: BinaryHeap<Reverse<(u64, u32)>>,
    /// KV on its way: when it is there, the request, and where to.
    transfers: BinaryHeap<Reverse<(u64, RequestId, u32)>>,
    transfer: TransferSpec,
    /// Deaths and returns: time, instance, whether it returns. The next one last.
    failures: Vec<(f64, usize, bool)>,
    ready: VecDeque<Event>,
    progress: Vec<Progress>,
    /// What the blocks are made of: nothing that anybody looks at. `None` in a branch.
    origin: Option<Arc<Origin>>,
}

impl World {
    /// Idle engines before the first arrival.
    pub fn new(workload: Arc<Workload>, specs: Arc<[InstanceSpec]>, failures: &[Failure], seed: u64) -> Self {
        let engines = specs.iter().map(|spec| Engine::new(spec, workload.block_tokens, true)).collect();
        let mut agenda: Vec<(f64, usize, bool)> = Vec::new();
        for failure in failures {
            agenda.push((failure.at, failure.instance, false));
            agenda.extend(failure.until.map(|until| (until, failure.instance, true)));
        }
        agenda.sort_by(|a, b| b.0.total_cmp(&a.0));
        Self {
            now: 0.0,
            engines,
            arrivals: workload.arrivals(seed),
            workload,
            steps: BinaryHeap::with_capacity(specs.len()),
            specs,
            transfers: BinaryHeap::new(),
            transfer: TransferSpec::default(),
            failures: agenda,
            ready: VecDeque::new(),
            progress: Vec::new(),
            origin: Some(Arc::default()),
        }
    }

    /// With another cost of transfers.
    pub fn with_transfer(self, transfer: TransferSpec) -> Self {
        Self { transfer, ..self }
    }

    /// The requests.
    pub fn workload(&self) -> &Arc<Workload> {
        &self.workload
    }

    /// When the steps under way end, and of which instances.
    pub fn step_ends(&self) -> impl Iterator<Item = (f64, usize)> {
        self.steps.iter().map(|Reverse((at, instance))| (f64::from_bits(*at), *instance as usize))
    }

    /// A copy for trying out what a decision leads to: its caches tell nobody of their changes, and the ends of steps
    /// are passed over.
    pub fn branch(&self) -> Self {
        let mut copy = self.clone();
        copy.be_branch();
        copy
    }

    /// The same into a copy made before, which costs no new memory.
    pub fn branch_into(&self, copy: &mut Self) {
        copy.clone_from(self);
        copy.be_branch();
    }

    fn be_branch(&mut self) {
        self.origin = None;
        for engine in &mut self.engines {
            engine.model.untrack();
        }
    }

    /// When something happens next.
    pub fn next_at(&self) -> Option<f64> {
        if !self.ready.is_empty() {
            return Some(self.now);
        }
        let step = self.steps.peek().map(|Reverse((at, _))| f64::from_bits(*at));
        let failure = self.failures.last().map(|(at, ..)| *at);
        let transfer = self.transfers.peek().map(|Reverse((at, ..))| f64::from_bits(*at));
        [step, transfer, failure, self.arrivals.peek()].into_iter().flatten().reduce(f64::min)
    }

    /// What happens next; `None` at the end. At equal times steps end first, then KV arrives, then instances die and
    /// return, then requests come.
    #[allow(
        clippy::should_implement_trait,
        reason = "the world is no sequence of events; they come of being told"
    )]
    pub fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let step = self.steps.peek().map_or(f64::INFINITY, |Reverse((at, _))| f64::from_bits(*at));
            let arrival = self.arrivals.peek().unwrap_or(f64::INFINITY);
            let failure = self.failures.last().map_or(f64::INFINITY, |(at, ..)| *at);
            let transfer =
                self.transfers.peek().map_or(f64::INFINITY, |Reverse((at, ..))| f64::from_bits(*at));
            if transfer < step && transfer <= failure && transfer <= arrival {
                let Reverse((_, request, instance)) = self.transfers.pop()?;
                self.now = transfer;
                self.handed_over(request, instance as usize);
            } else if step <= failure && step <= arrival {
                let Reverse((_, instance)) = self.steps.pop()?;
                self.now = step;
                self.end_step(instance as usize);
            } else if failure <= arrival {
                let (at, instance, returns) = self.failures.pop()?;
                if step == f64::INFINITY && arrival == f64::INFINITY {
                    // Nobody is left to see it.
                    return None;
                }
                self.now = at;
                if returns { self.revive(instance) } else { self.kill(instance) }
            } else {
                let (at, request) = self.arrivals.pop()?;
                self.now = at.max(self.now);
                return Some(Event::Arrival(request));
            }
        }
    }

    /// Hands a request to an instance.
    ///
    /// # Errors
    /// The instance is down or refuses; nothing has changed.
    pub fn send(&mut self, request: RequestId, instance: usize) -> Result<(), NotTaken> {
        let engine = &mut self.engines[instance];
        let asked = &self.workload.requests[request as usize];
        engine.submit(request, asked.spec(self.origin.clone()), self.now)?;
        if !engine.stepping {
            self.begin_step(instance);
        }
        Ok(())
    }

    /// Hands a request's prefill to one instance and its decoding to another, which gets the KV when it is computed.
    ///
    /// # Errors
    /// The instance that prefills is down or refuses; nothing has changed.
    pub fn send_apart(&mut self, request: RequestId, prefill: usize, decode: usize) -> Result<(), NotTaken> {
        let engine = &mut self.engines[prefill];
        let asked = &self.workload.requests[request as usize];
        engine.submit_leg(request, asked.spec(self.origin.clone()), decode, self.now)?;
        if !engine.stepping {
            self.begin_step(prefill);
        }
        Ok(())
    }

    /// A request's KV has arrived where it is decoded.
    fn handed_over(&mut self, request: RequestId, instance: usize) {
        let engine = &mut self.engines[instance];
        let asked = &self.workload.requests[request as usize];
        let spec = SeqSpec { remote: asked.prompt_tokens, ..asked.spec(self.origin.clone()) };
        match engine.submit(request, spec, self.now) {
            Ok(()) if engine.stepping => {}
            Ok(()) => self.begin_step(instance),
            Err(_) => self.ready.push_back(Event::Lost { request, instance, begun: false }),
        }
    }

    /// A request is over, in whatever way: the session's next one comes when it is due.
    pub fn over(&mut self, request: RequestId) {
        if let Some((next, think)) = self.workload.requests[request as usize].next {
            self.arrivals.push(self.now + think, next);
        }
    }

    /// What became of an instance's cache since it was asked last.
    pub fn take_changes(&mut self, instance: usize) -> Vec<CacheChange> {
        self.engines[instance].model.take_changes()
    }

    fn begin_step(&mut self, instance: usize) {
        let engine = &mut self.engines[instance];
        engine.stepping = false;
        if let Some(seconds) = engine.model.begin_step(self.now) {
            engine.stepping = true;
            engine.began = self.now;
            self.steps.push(Reverse(((self.now + seconds).to_bits(), instance as u32)));
        }
    }

    fn end_step(&mut self, instance: usize) {
        let engine = &mut self.engines[instance];
        let mut progress = std::mem::take(&mut self.progress);
        engine.model.end_step(self.now, &mut progress);
        engine.busy_s += self.now - engine.began;
        let mut handed: Vec<(RequestId, u32)> = Vec::new();
        for told in progress.drain(..) {
            let request = engine.request(told.id);
            if let Some(decode) = engine.leg[place(told.id)] {
                if told.finished {
                    self.ready.push_back(Event::Prefilled { request, instance, cached: told.cached });
                    handed.push((request, decode));
                }
                continue;
            }
            if told.emitted <= 1 {
                engine.begun[place(told.id)] = true;
                self.ready.push_back(Event::FirstToken { request, instance, cached: told.cached });
            }
            if told.finished {
                self.ready.push_back(Event::Finished { request, instance });
            }
        }
        self.progress = progress;
        for (request, decode) in handed {
            let asked = &self.workload.requests[request as usize];
            let held = self.engines[decode as usize].model.cached_blocks(&asked.path, asked.prompt_tokens);
            let tokens = asked.prompt_tokens.saturating_sub(held * self.workload.block_tokens);
            let at = self.now + self.transfer.seconds(tokens);
            self.transfers.push(Reverse((at.to_bits(), request, decode)));
        }
        if self.origin.is_some() {
            self.ready.push_back(Event::Stepped(instance));
        }
        self.begin_step(instance);
    }

    fn kill(&mut self, instance: usize) {
        if !std::mem::replace(&mut self.engines[instance].up, false) {
            return;
        }
        self.steps.retain(|Reverse((_, i))| *i as usize != instance);
        let engine = &mut self.engines[instance];
        let ids: Vec<SeqId> = engine.model.ids().collect();
        for id in ids {
            let (request, begun) = (engine.request(id), engine.begun[place(id)]);
            self.ready.push_back(Event::Lost { request, instance, begun });
        }
        let track = self.origin.is_some();
        *engine =
            Engine { up: false, ..Engine::new(&self.specs[instance], self.workload.block_tokens, track) };
        self.ready.push_front(Event::Down(instance));
    }

    fn revive(&mut self, instance: usize) {
        if !std::mem::replace(&mut self.engines[instance].up, true) {
            self.ready.push_back(Event::Up(instance));
        }
    }
}

impl Clone for World {
    fn clone(&self) -> Self {
        Self {
            now: self.now,
            engines: self.engines.clone(),
            arrivals: self.arrivals.clone(),
            workload: self.workload.clone(),
            specs: self.specs.clone(),
            steps: self.steps.clone(),
            transfers: self.transfers.clone(),
            transfer: self.transfer,
            failures: self.failures.clone(),
            ready: self.ready.clone(),
            progress: Vec::new(),
            origin: self.origin.clone(),
        }
    }

    fn clone_from(&mut self, from: &Self) {
        let Self {
            now,
            engines,
            arrivals,
            workload,
            specs,
            steps,
            transfers,
            transfer,
            failures,
            ready,
            progress: _,
            origin,
        } = from;
        self.now = *now;
        self.engines.clone_from(engines);
        self.arrivals.clone_from(arrivals);
        self.workload.clone_from(workload);
        self.specs.clone_from(specs);
        self.steps.clone_from(steps);
        self.transfers.clone_from(transfers);
        self.transfer = *transfer;
        self.failures.clone_from(failures);
        self.ready.clone_from(ready);
        self.origin.clone_from(origin);
    }
}

//! Simulated links between agents, gateways and the scheduler: four lanes in each direction, each in order, with delay;
//! load frames may be lost and overtake one another; a link may stall, break, or end in order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use fairlead_dataplane::runtime::Runtime;
use fairlead_dataplane::runtime::sim::{Chances, Sim, below, chances, now};
use fairlead_scheduler::sim::Outlet;
use fairlead_transport::{Lane, LinkError, LinkStats, SendError};
use fairlead_wire::msg::{Hello, RefuseCode, Welcome};
use fairlead_wire::{Frame, Message, PROTOCOL};
use tokio::sync::Notify;

/// Frames that a lane holds before its sender has to wait.
const LANE_FRAMES: usize = 16;
/// How long a link may stall before both ends count it as lost.
const IDLE_US: u64 = 400_000;

/// What happens to frames on all links of a world.
#[derive(Debug, Default)]
pub struct Weather {
    /// Longest delay of a frame, microseconds.
    pub delay_us: Cell<u64>,
    /// One load frame in so many is lost; 0 loses none.
    pub load_loss: Cell<u64>,
    /// One frame of operations or of a snapshot in so many towards a gateway is lost. A stream loses none; the protocol
    /// still promises to notice.
    pub delta_loss: Cell<u64>,
    /// Load frames overtake one another.
    pub reorder: Cell<bool>,
}

#[derive(Default)]
struct Pipe {
    lanes: [VecDeque<(u64, Bytes)>; 4],
    receiver: Option<Waker>,
    signal: Option<Arc<Notify>>,
    wanted: Cell<bool>,
}

struct State {
    /// `pipes[n]` leads away from end `n`; end 0 connected.
    pipes: [Pipe; 2],
    /// Why the link has ended, and when each end learns of it.
    end: Option<(LinkError, [u64; 2])>,
    /// Nothing arrives before this.
    stalled_until: u64,
    open_ends: usize,
}

/// One end of a link. Dropping the last clone of it breaks the link.
#[derive(Clone)]
pub struct End(Rc<Inner>);

struct Inner {
    state: Rc<RefCell<State>>,
    side: usize,
    weather: Rc<Weather>,
    chances: Chances,
}

fn index(lane: Lane) -> usize {
    match lane {
        Lane::Control => 0,
        Lane::Load => 1,
        Lane::Delta => 2,
        Lane::Snapshot => 3,
    }
}

const LANES: [Lane; 4] = [Lane::Control, Lane::Load, Lane::Delta, Lane::Snapshot];

fn pair(weather: &Rc<Weather>) -> (End, End) {
    let number = below(u64::MAX);
    let state =
        Rc::new(RefCell::new(State { pipes: Default::default(), end: None, stalled_until: 0, open_ends: 2 }));
    let end = |side| {
        let chances = chances(number ^ side as u64);
        End(Rc::new(Inner { state: state.clone(), side, weather: weather.clone(), chances }))
    };
    (end(0), end(1))
}

impl State {
    fn finish(&mut self, why: LinkError, at: [u64; 2]) {
        if self.end.is_none() {
            self.end = Some((why, at));
            for pipe in &mut self.pipes {
                pipe.receiver.take().into_iter().for_each(Waker::wake);
            }
        }
    }

    fn ended(&self, side: usize) -> Option<&LinkError> {
        self.end.as_ref().filter(|(_, at)| now() >= at[side]).map(|(why, _)| why)
    }
}

impl End {
    /// Another handle that does not keep the link alive, for whoever breaks it.
    pub fn breaker(&self) -> Breaker {
        Breaker(self.0.state.clone())
    }

    /// The next frame, of whichever lane has one.
    pub async fn recv(&self) -> Result<(Lane, Frame), LinkError> {
        self.recv_of(&LANES).await
    }

    /// The next frame of some lanes.
    async fn recv_of(&self, lanes: &[Lane]) -> Result<(Lane, Frame), LinkError> {
        poll_fn(|cx| {
            let state = &mut *self.0.state.borrow_mut();
            if let Some(got) = take(state, self.0.side, lanes) {
                return Poll::Ready(Ok(got));
            }
            if let Some(why) = state.ended(self.0.side) {
                return Poll::Ready(Err(why.clone()));
            }
            // Looked at again when something is due, or comes.
            let pipe = &mut state.pipes[1 - self.0.side];
            pipe.receiver = Some(cx.waker().clone());
            let fronts = lanes.iter().filter_map(|lane| pipe.lanes[index(*lane)].front());
            let next = fronts.map(|(at, _)| *at).min();
            let next = next.map(|at| at.max(state.stalled_until));
            let end = state.end.as_ref().map(|(_, at)| at[self.0.side]);
            if let Some(at) = next.into_iter().chain(end).min() {
                wake_at(at, cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// A frame that is there already.
    pub fn try_recv(&self) -> Option<(Lane, Frame)> {
        take(&mut self.0.state.borrow_mut(), self.0.side, &LANES)
    }
}

/// Wakes at a time; a task of nobody's process, because links are nobody's.
fn wake_at(at: u64, waker: Waker) {
    fairlead_dataplane::runtime::sim::wake_at(at, &waker);
}

fn take(state: &mut State, side: usize, lanes: &[Lane]) -> Option<(Lane, Frame)> {
    let now = now();
    if now < state.stalled_until {
        return None;
    }
    let pipe = &mut state.pipes[1 - side];
    let first = below(4) as usize;
    let lane = (0..4)
        .map(|n| (first + n) % 4)
        .filter(|lane| lanes.contains(&LANES[*lane]))
        .find(|lane| pipe.lanes[*lane].front().is_some_and(|(at, _)| *at <= now))?;
    let (_, bytes) = pipe.lanes[lane].pop_front()?;
    if pipe.wanted.take()
        && let Some(signal) = &pipe.signal
    {
        signal.notify_one();
    }
    Some((LANES[lane], Frame::from_bytes(&bytes).expect("whole frames")))
}

impl Outlet for End {
    fn has_room(&self, lane: Lane) -> bool {
        let state = self.0.state.borrow();
        let pipe = &state.pipes[self.0.side];
        let room = pipe.lanes[index(lane)].len() < LANE_FRAMES;
        pipe.wanted.set(pipe.wanted.get() || !room);
        room
    }

    fn try_send(&self, lane: Lane, bytes: Bytes, _last: bool) -> Result<(), SendError> {
        let (side, weather) = (self.0.side, &self.0.weather);
        let state = &mut *self.0.state.borrow_mut();
        if state.end.is_some() {
            return Err(SendError::Closed(bytes));
        }
        let pipe = &mut state.pipes[side];
        let queue = &mut pipe.lanes[index(lane)];
        if queue.len() >= LANE_FRAMES {
            return Err(SendError::Full(bytes));
        }
        let chances = &self.0.chances;
        let hits = |rate: u64| rate > 0 && chances.chance(rate);
        let lost = match lane {
            Lane::Control => false,
            Lane::Load => hits(weather.load_loss.get()),
            Lane::Delta | Lane::Snapshot => side == 1 && hits(weather.delta_loss.get()),
        };
        if lost {
            return Ok(());
        }
        let at = now() + 50 + chances.below(weather.delay_us.get() + 1);
        if lane == Lane::Load && weather.reorder.get() {
            let place = queue.partition_point(|(other, _)| *other <= at);
            queue.insert(place, (at, bytes));
        } else {
            let at = queue.back().map_or(at, |(last, _)| at.max(*last));
            queue.push_back((at, bytes));
        }
        pipe.receiver.take().into_iter().for_each(Waker::wake);
        Ok(())
    }

    fn refuse(&self, code: RefuseCode, reason: &str) {
        let refuse = fairlead_wire::msg::Refuse { code, reason: reason.to_owned() };
        self.close(&format!("{refuse:?}"));
    }

    fn close(&self, reason: &str) {
        let at = now();
        let mut times = [at, at];
        // The other end hears of it behind what is queued for it.
        times[1 - self.0.side] = at + 100 + self.0.chances.below(self.0.weather.delay_us.get() + 1);
        self.0.state.borrow_mut().finish(LinkError::Closed(reason.into()), times);
    }

    fn signal_room(&self, signal: Arc<Notify>) {
        self.0.state.borrow_mut().pipes[self.0.side].signal = Some(signal);
    }

    fn stats(&self) -> LinkStats {
        LinkStats::default()
    }

    fn remote_address(&self) -> SocketAddr {
        ([10, 0, 9, 9], 7400).into()
    }
}

impl Drop for Inner {
    /// The process is gone: its kernel says so, or nobody does and the other end finds out by the silence.
    fn drop(&mut self) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        state.open_ends -= 1;
        if state.end.is_none() && fairlead_dataplane::runtime::sim::is_running() {
            if self.chances.chance(2) {
                let at = now() + 200;
                state.finish(LinkError::Closed("the process has ended".into()), [at, at]);
            } else {
                let at = now() + IDLE_US;
                state.finish(LinkError::TimedOut, [at, at]);
            }
        }
    }
}

/// Does harm to a link.
pub struct Breaker(Rc<RefCell<State>>);

impl Breaker {
    /// Whether there is no more harm to do.
    pub fn is_over(&self) -> bool {
        let state = self.0.borrow();
        state.end.is_some() || state.open_ends == 0
    }

    /// Nothing arrives for a while. When it lasts, both ends lose the link.
    pub fn stall(&self, for_us: u64) {
        let mut state = self.0.borrow_mut();
        state.stalled_until = state.stalled_until.max(now() + for_us);
        if for_us > IDLE_US {
            let at = now() + IDLE_US;
            let late = at + below(50_000);
            state.finish(LinkError::TimedOut, [at, late]);
        }
        for pipe in &mut state.pipes {
            pipe.receiver.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Both ends learn that the connection is lost, not at the same time.
    pub fn cut(&self) {
        let at = now();
        let error = LinkError::Transport("reset".into());
        self.0.borrow_mut().finish(error, [at + below(20_000), at + below(20_000)]);
    }
}

/// Where the scheduler can be reached.
#[derive(Default)]
pub struct Exchange {
    pub weather: Rc<Weather>,
    arrivals: RefCell<VecDeque<(Hello, End)>>,
    acceptor: RefCell<Option<Waker>>,
    /// Whether a scheduler accepts.
    open: Cell<bool>,
    pub breakers: RefCell<Vec<Breaker>>,
}

/// Keeps the door open.
pub struct Door(Rc<Exchange>);

impl Drop for Door {
    fn drop(&mut self) {
        self.0.open.set(false);
        let arrivals = self.0.arrivals.take();
        drop(arrivals);
    }
}

impl Exchange {
    /// Opens the door for a scheduler.
    pub fn open(self: &Rc<Self>) -> Door {
        self.open.set(true);
        Door(self.clone())
    }

    /// Links to the scheduler; the welcome has been read when it returns.
    pub async fn connect(&self, hello: Hello) -> Result<(End, Welcome), String> {
        Sim::sleep(Duration::from_micros(200 + below(3_000))).await;
        if !self.open.get() {
            return Err("refused".to_owned());
        }
        let (ours, theirs) = pair(&self.weather);
        self.breakers.borrow_mut().retain(|breaker| !breaker.is_over());
        self.breakers.borrow_mut().push(ours.breaker());
        self.arrivals.borrow_mut().push_back((hello, theirs));
        self.acceptor.take().into_iter().for_each(Waker::wake);
        let welcomed = async {
            // A handshake reads the control lane; what overtakes the welcome on another waits.
            match ours.recv_of(&[Lane::Control]).await {
                Ok((_, frame)) => match frame.message() {
                    Ok(Message::Welcome(welcome)) => Ok(welcome),
                    Ok(Message::Refuse(refuse)) => Err(refuse.reason),
                    other => Err(format!("no welcome: {other:?}")),
                },
                Err(why) => Err(why.to_string()),
            }
        };
        match Sim::within(Duration::from_secs(2), welcomed).await {
            Some(Ok(welcome)) => Ok((ours, welcome)),
            Some(Err(why)) => Err(why),
            None => Err("no answer".to_owned()),
        }
    }

    /// The next peer.
    pub async fn accept(&self) -> (Hello, u16, End) {
        let (hello, end) = poll_fn(|cx| {
            if let Some(arrival) = self.arrivals.borrow_mut().pop_front() {
                return Poll::Ready(arrival);
            }
            *self.acceptor.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        (hello, PROTOCOL, end)
    }
}

//! The load generator: connections that are kept, one epoll loop, no allocation for a request.
//!
//! A *closed* loop has a request under way on every connection all the time. An *open* one sends at fixed times that do
//! not wait for answers, and counts from those times, so that a proxy that stalls is charged for what should have been
//! sent meanwhile (no coordinated omission).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hdrhistogram::Histogram;

use super::body::Template;
use super::poll::{Poll, READ, WRITE};
use super::reply::{Reply, Seen, Stamps};
use super::seal::{Line, Seal};
use crate::kit::clock::machine_ns;

/// Buffer of a read.
const READ_SIZE: usize = 256 << 10;
/// Longest time that is told apart, nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;
/// First requests sent in one go.
const BATCH: usize = 32;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Nanoseconds.
pub type Times = Histogram<u64>;

/// What was seen in a stretch of time.
pub struct Window {
    /// Answers that ended in it.
    pub requests: u64,
    /// Tokens that came in it.
    pub tokens: u64,
    /// Reads that they took.
    pub reads: u64,
    /// Its length, seconds.
    pub seconds: f64,
    /// What the probe said at its end, less what it said at its beginning.
    pub used: f64,
    /// From the time that a request was to be sent to the end of its answer.
    pub times: Times,
    /// From a token's write by the engine to its read here.
    pub paths: Times,
}

struct Conn {
    line: Line,
    template: Template,
    sent: usize,
    waiting: bool,
    began_ns: u64,
    reply: Reply,
    stamps: Stamps,
}

/// A number of connections to one address.
pub struct Load {
    to: SocketAddr,
    seal: Option<Seal>,
    poll: Poll,
    conns: Vec<Conn>,
    idle: Vec<usize>,
    buffer: Vec<u8>,
    number: u64,
    recording: bool,
    window: Window,
}

fn times() -> anyhow::Result<Times> {
    Ok(Histogram::new_with_bounds(1, LONGEST_NS, 3)?)
}

fn window() -> anyhow::Result<Window> {
    Ok(Window { requests: 0, tokens: 0, reads: 0, seconds: 0.0, used: 0.0, times: times()?, paths: times()? })
}

impl Load {
    /// Connects. `seed` sets requests apart from those of other loads.
    ///
    /// # Errors
    /// Refused, or out of ports or descriptors.
    pub fn connect(
        template: &Template,
        to: SocketAddr,
        connections: usize,
        seed: u64,
    ) -> anyhow::Result<Self> {
        Self::connect_with(template, to, connections, seed, None)
    }

    /// The same, with TLS where there is a seal.
    ///
    /// # Errors
    /// As above, or no handshake comes about.
    pub fn connect_with(
        template: &Template,
        to: SocketAddr,
        connections: usize,
        seed: u64,
        seal: Option<&Seal>,
    ) -> anyhow::Result<Self> {
        let mut load = Self {
            to,
            seal: seal.cloned(),
            poll: Poll::new()?,
            conns: Vec::with_capacity(connections),
            idle: Vec::with_capacity(connections),
            buffer: vec![0; READ_SIZE],
            number: seed << 40,
            recording: false,
            window: window()?,
        };
        for n in 0..connections {
            if n % BATCH == BATCH - 1 {
                // On loopback connecting never waits, so whoever accepts must be given the time to.
                std::thread::sleep(Duration::from_micros(500));
            }
            let line = Line::connect(to, seal).with_context(|| format!("connection {n} to {to}"))?;
            load.poll.add(&line.socket, n, READ)?;
            load.conns.push(Conn {
                line,
                template: template.clone(),
                sent: 0,
                waiting: false,
                began_ns: 0,
                reply: Reply::default(),
                stamps: Stamps::default(),
            });
            load.idle.push(n);
        }
        Ok(load)
    }

    /// Keeps every connection busy: after `warm` a window of length `over`. `probe` is asked at both of its ends.
    ///
    /// # Errors
    /// A request fails.
    pub fn closed(
        &mut self,
        warm: Duration,
        over: Duration,
        mut probe: impl FnMut() -> f64,
    ) -> anyhow::Result<Window> {
        let start = machine_ns();
        let (open_at, end_at) = (start + warm.as_nanos() as u64, start + (warm + over).as_nanos() as u64);
        let mut opened = (0, 0.0);
        loop {
            let now = machine_ns();
            if !self.recording && now >= open_at {
                opened = (now, probe());
                self.recording = true;
                self.window = window()?;
            }
            if now >= end_at {
                return self.close_window(opened, probe());
            }
            for _ in 0..BATCH {
                let Some(n) = self.idle.pop() else { break };
                self.send(n, machine_ns())?;
            }
            let until = if self.recording { end_at } else { open_at };
            let nap = if self.idle.is_empty() { until.saturating_sub(now) } else { 0 };
            self.turn(Duration::from_nanos(nap))?;
        }
    }

    /// Sends so many requests a second: after `warm` a window of length `over`, which ends with the last answer.
    ///
    /// # Errors
    /// A request fails, or takes longer than anybody would wait.
    pub fn open(
        &mut self,
        per_second: f64,
        warm: Duration,
        over: Duration,
        mut probe: impl FnMut() -> f64,
    ) -> anyhow::Result<Window> {
        let start = machine_ns();
        let gap = 1e9 / per_second;
        let open_at = start + warm.as_nanos() as u64;
        let count = ((warm + over).as_secs_f64() * per_second) as u64;
        let due = |n: u64| start + (n as f64 * gap) as u64;
        let mut queue: VecDeque<u64> = VecDeque::new();
        let (mut next, mut opened) = (0, (0, 0.0));
        loop {
            let now = machine_ns();
            while next < count && due(next) <= now {
                queue.push_back(due(next));
                next += 1;
            }
            if !self.recording && now >= open_at {
                opened = (now, probe());
                self.recording = true;
                self.window = window()?;
            }
            while let Some(&began) = queue.front() {
                let Some(n) = self.idle.pop() else { break };
                queue.pop_front();
                self.send(n, began)?;
            }
            let nap = match (next < count, self.under_way()) {
                (true, _) => Duration::from_nanos(due(next).saturating_sub(now)),
                (false, 0) if queue.is_empty() => return self.close_window(opened, probe()),
                (false, _) => PATIENCE,
            };
            let seen = self.turn(nap)?;
            ensure!(next < count || seen > 0, "no answer from {} in {} s", self.to, PATIENCE.as_secs());
        }
    }

    /// Sends `count` requests, as many at a time as there are connections.
    ///
    /// # Errors
    /// A request fails.
    pub fn count(&mut self, count: u64) -> anyhow::Result<Window> {
        let start = machine_ns();
        (self.recording, self.window) = (true, window()?);
        let mut sent = 0;
        loop {
            while sent < count
                && let Some(n) = self.idle.pop()
            {
                self.send(n, machine_ns())?;
                sent += 1;
            }
            if self.under_way() == 0 {
                return self.close_window((start, 0.0), 0.0);
            }
            let seen = self.turn(PATIENCE)?;
            ensure!(seen > 0, "no answer from {} in {} s", self.to, PATIENCE.as_secs());
        }
    }

    /// Sends one request on every connection, so many at a time.
    ///
    /// # Errors
    /// A request fails.
    pub fn each(&mut self, together: usize) -> anyhow::Result<()> {
        let mut unsent = std::mem::take(&mut self.idle);
        while !unsent.is_empty() {
            let next = unsent.split_off(unsent.len().saturating_sub(together));
            let answered = self.idle.len() + next.len();
            for n in next {
                self.send(n, machine_ns())?;
            }
            while self.idle.len() < answered {
                let seen = self.turn(PATIENCE)?;
                ensure!(seen > 0, "no answer from {} in {} s", self.to, PATIENCE.as_secs());
            }
        }
        Ok(())
    }

    /// Reads until so many tokens have come, or the time is over; whether they have. Sends what is not sent yet.
    ///
    /// # Errors
    /// A request fails.
    pub fn tokens(&mut self, tokens: u64, limit: Duration) -> anyhow::Result<bool> {
        let end_at = machine_ns() + limit.as_nanos() as u64;
        (self.recording, self.window) = (true, window()?);
        while self.window.tokens < tokens {
            let now = machine_ns();
            if now >= end_at {
                break;
            }
            for _ in 0..BATCH {
                let Some(n) = self.idle.pop() else { break };
                self.send(n, machine_ns())?;
            }
            let nap = if self.idle.is_empty() { end_at - now } else { 0 };
            self.turn(Duration::from_nanos(nap))?;
        }
        self.recording = false;
        Ok(self.window.tokens >= tokens)
    }

    /// Waits until no request is under way.
    ///
    /// # Errors
    /// A request fails, or takes longer than anybody would wait.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        while self.under_way() > 0 {
            let seen = self.turn(PATIENCE)?;
            ensure!(seen > 0, "no answer from {} in {} s", self.to, PATIENCE.as_secs());
        }
        Ok(())
    }

    fn under_way(&self) -> usize {
        self.conns.len() - self.idle.len()
    }

    fn close_window(&mut self, opened: (u64, f64), used: f64) -> anyhow::Result<Window> {
        self.recording = false;
        let mut done = std::mem::replace(&mut self.window, window()?);
        done.seconds = (machine_ns() - opened.0) as f64 * 1e-9;
        done.used = used - opened.1;
        Ok(done)
    }

    fn send(&mut self, n: usize, began_ns: u64) -> anyhow::Result<()> {
        self.number += 1;
        let conn = &mut self.conns[n];
        conn.template.number(self.number);
        (conn.sent, conn.began_ns) = (0, began_ns);
        self.write(n)
    }

    fn write(&mut self, n: usize) -> anyhow::Result<()> {
        let conn = &mut self.conns[n];
        let (first, second) = conn.template.parts();
        let whole = first.len() + second.len();
        let result = loop {
            if conn.sent == whole {
                break conn.line.flush();
            }
            let left = first.get(conn.sent..).unwrap_or_default();
            let behind = &second[conn.sent.saturating_sub(first.len())..];
            match conn.line.write(left, behind) {
                Ok(count) => conn.sent += count,
                Err(error) => break Err(error),
            }
        };
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                conn.waiting = true;
                return Ok(self.poll.change(&conn.line.socket, n, READ | WRITE)?);
            }
            Err(error) => return Err(error).context("sending a request"),
        }
        if std::mem::take(&mut conn.waiting) {
            self.poll.change(&conn.line.socket, n, READ)?;
        }
        Ok(())
    }

    /// One turn of the loop; the number of events.
    fn turn(&mut self, nap: Duration) -> anyhow::Result<usize> {
        let count = self.poll.wait(nap)?;
        for at in 0..count {
            let (n, readable, writable) = self.poll.event(at);
            if writable {
                self.write(n)?;
            }
            if readable {
                self.read(n)?;
            }
        }
        Ok(count)
    }

    fn read(&mut self, n: usize) -> anyhow::Result<()> {
        let Self { to, conns, idle, buffer, recording, window, .. } = self;
        let (conn, recording) = (&mut conns[n], *recording);
        let Conn { line, template, began_ns, reply, stamps, .. } = conn;
        let result = line.read(buffer, |bytes| {
            let now = machine_ns();
            if template.streamed() {
                window.reads += u64::from(recording);
                stamps.feed(bytes, |at| {
                    if recording {
                        window.tokens += 1;
                        window.paths.saturating_record(now.saturating_sub(at).max(1));
                    }
                });
            }
            match reply.feed(bytes) {
                Seen::More => {}
                Seen::Complete => {
                    if recording {
                        window.requests += 1;
                        window.times.saturating_record(now.saturating_sub(*began_ns).max(1));
                    }
                    idle.push(n);
                }
                Seen::Bad => {
                    let said = String::from_utf8_lossy(&bytes[..bytes.len().min(600)]);
                    bail!("{to} answers: {said}");
                }
            }
            Ok(())
        })?;
        match result {
            Ok(0) => self.closed_by_peer(n),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).with_context(|| format!("reading an answer of {to}")),
        }
    }

    /// A proxy may close a connection between two requests.
    fn closed_by_peer(&mut self, n: usize) -> anyhow::Result<()> {
        ensure!(self.idle.contains(&n), "{} closed a connection in the middle of an answer", self.to);
        let conn = &mut self.conns[n];
        conn.line = Line::connect(self.to, self.seal.as_ref())?;
        (conn.reply, conn.stamps) = Default::default();
        Ok(self.poll.add(&conn.line.socket, n, READ)?)
    }
}

//! One connection's state: two pipes, each from one end to the other.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};

use super::world::{Chances, World};

/// One direction.
#[derive(Default)]
pub(super) struct Pipe {
    /// What is on its way or has arrived, with the time of its arrival.
    segments: VecDeque<(u64, Bytes)>,
    /// Bytes in `segments`.
    bytes: usize,
    /// Nothing arrives before what was sent before it.
    last_at: u64,
    fin_at: Option<u64>,
    reset_at: Option<u64>,
    /// The reading end reads no more.
    read_shut: bool,
    /// The writing end writes no more.
    write_shut: bool,
    /// The reading end is closed: bytes are answered by a reset.
    reader_gone: bool,
    /// An operation was begun and dropped: bytes may be lost.
    pub read_lost: bool,
    pub write_lost: bool,
    readers: Vec<Waker>,
    writers: Vec<Waker>,
}

/// A connection. End 0 connected, end 1 was accepted; `pipes[n]` leads away from end `n`.
pub(super) struct Conn {
    pub id: u64,
    /// Where it was connected to.
    pub addr: SocketAddr,
    pub pipes: [Pipe; 2],
    pub reset_on_close: [bool; 2],
    /// Nothing arrives.
    pub silent: bool,
    chances: [Chances; 2],
}

/// What has arrived at a reader.
pub(super) struct Arrived {
    pub bytes: usize,
    pub fin: bool,
    pub reset: bool,
}

fn remember(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|known| known.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

impl Pipe {
    fn arrived(&self, now: u64, silent: bool) -> Arrived {
        if silent {
            return Arrived { bytes: 0, fin: false, reset: false };
        }
        let has_come = |at: Option<u64>| at.is_some_and(|at| at <= now);
        Arrived {
            bytes: self.segments.iter().take_while(|(at, _)| *at <= now).map(|(_, bytes)| bytes.len()).sum(),
            fin: has_come(self.fin_at),
            reset: has_come(self.reset_at),
        }
    }

    /// Wakes the reader when what comes at `at` is there, and the writer, who may look for a reset.
    fn announce(&mut self, at: u64, world: &World) {
        self.readers.drain(..).for_each(|waker| world.timer(at, &waker));
    }

    /// The next time at which something arrives.
    fn next_arrival(&self, now: u64) -> Option<u64> {
        let first = self.segments.front().map(|(at, _)| *at);
        [first, self.fin_at, self.reset_at].into_iter().flatten().filter(|at| *at > now).min()
    }

    fn wake_all(&mut self) {
        self.readers.drain(..).chain(self.writers.drain(..)).for_each(Waker::wake);
    }
}

impl Conn {
    pub fn new(id: u64, addr: SocketAddr, silent: bool, world: &World) -> Self {
        let chances = [world.chances(2 * id), world.chances(2 * id + 1)];
        Self { id, addr, pipes: Default::default(), reset_on_close: [false; 2], silent, chances }
    }

    pub fn arrived(&self, side: usize, now: u64) -> Arrived {
        self.pipes[1 - side].arrived(now, self.silent)
    }

    /// Whether reading at `side` was shut by its own process.
    pub fn read_shut(&self, side: usize) -> bool {
        self.pipes[1 - side].read_shut
    }

    pub fn write_shut(&self, side: usize) -> bool {
        self.pipes[side].write_shut
    }

    /// Whether a read at `side` would not wait.
    pub fn is_readable(&self, side: usize, now: u64) -> bool {
        let arrived = self.arrived(side, now);
        arrived.bytes > 0 || arrived.fin || arrived.reset || self.read_shut(side)
    }

    pub fn poll_readable(&mut self, side: usize, cx: &Context<'_>, world: &World) -> Poll<()> {
        let now = world.now_us();
        if self.is_readable(side, now) {
            return Poll::Ready(());
        }
        let pipe = &mut self.pipes[1 - side];
        remember(&mut pipe.readers, cx.waker());
        if let Some(at) = pipe.next_arrival(now) {
            world.timer(at, cx.waker());
        }
        Poll::Pending
    }

    /// Moves what a read with `room` gets.
    pub fn poll_read(
        &mut self,
        side: usize,
        room: usize,
        cx: &Context<'_>,
        world: &World,
    ) -> Poll<io::Result<Vec<u8>>> {
        if self.poll_readable(side, cx, world).is_pending() {
            return Poll::Pending;
        }
        let arrived = self.arrived(side, world.now_us());
        if arrived.bytes == 0 {
            return Poll::Ready(if arrived.reset {
                Err(io::Error::from(io::ErrorKind::ConnectionReset))
            } else {
                Ok(Vec::new())
            });
        }
        let most = arrived.bytes.min(room);
        let chances = &self.chances[side];
        let count = if chances.chance(4) { 1 + chances.below(most as u64) as usize } else { most };
        let pipe = &mut self.pipes[1 - side];
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let Some((_, first)) = pipe.segments.front_mut() else { break };
            let part = first.len().min(count - taken.len());
            taken.extend_from_slice(&first[..part]);
            first.advance(part);
            if first.is_empty() {
                pipe.segments.pop_front();
            }
        }
        pipe.bytes -= taken.len();
        pipe.writers.drain(..).for_each(Waker::wake);
        Poll::Ready(Ok(taken))
    }

    /// Takes some of `bytes`; 0 where there is no room now.
    pub fn write(&mut self, side: usize, bytes: &[u8], world: &World) -> io::Result<usize> {
        let now = world.now_us();
        if self.write_shut(side) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        if self.arrived(side, now).reset {
            return Err(io::Error::from(io::ErrorKind::ConnectionReset));
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let at = self.arrival(side, world);
        let pipe = &mut self.pipes[side];
        if pipe.reader_gone {
            self.send_reset(1 - side, at, world);
            return Ok(bytes.len());
        }
        let most = bytes.len().min(world.options().socket_bytes.saturating_sub(pipe.bytes));
        if most == 0 {
            return Ok(0);
        }
        let chances = &self.chances[side];
        let count = if chances.chance(4) { 1 + chances.below(most as u64) as usize } else { most };
        pipe.last_at = at;
        pipe.segments.push_back((at, Bytes::copy_from_slice(&bytes[..count])));
        pipe.bytes += count;
        pipe.announce(at, world);
        Ok(count)
    }

    pub fn poll_write(
        &mut self,
        side: usize,
        bytes: &[u8],
        cx: &Context<'_>,
        world: &World,
    ) -> Poll<io::Result<usize>> {
        match self.write(side, bytes, world) {
            Ok(0) if !bytes.is_empty() => {
                remember(&mut self.pipes[side].writers, cx.waker());
                Poll::Pending
            }
            result => Poll::Ready(result),
        }
    }

    /// Ends reading at `side`.
    pub fn shut_read(&mut self, side: usize) {
        let pipe = &mut self.pipes[1 - side];
        pipe.read_shut = true;
        pipe.readers.drain(..).for_each(Waker::wake);
    }

    /// Ends writing at `side`: the other end gets a FIN.
    pub fn shut_write(&mut self, side: usize, world: &World) {
        if self.write_shut(side) {
            return;
        }
        let at = self.arrival(side, world);
        let pipe = &mut self.pipes[side];
        pipe.write_shut = true;
        pipe.last_at = at;
        pipe.fin_at = Some(at);
        pipe.announce(at, world);
        pipe.writers.drain(..).for_each(Waker::wake);
    }

    /// Closes the end at `side`, as a kernel does: by a FIN, or by a reset where bytes were left unread.
    pub fn close(&mut self, side: usize, world: &World) {
        let unread = self.pipes[1 - side].bytes > 0;
        let incoming = &mut self.pipes[1 - side];
        incoming.reader_gone = true;
        incoming.segments.clear();
        incoming.bytes = 0;
        incoming.writers.drain(..).for_each(Waker::wake);
        if unread || self.reset_on_close[side] {
            let at = self.arrival(side, world);
            self.send_reset(side, at, world);
        } else {
            self.shut_write(side, world);
        }
    }

    /// A reset from `side` to the other end.
    fn send_reset(&mut self, side: usize, at: u64, world: &World) {
        let at = at.max(world.now_us() + 1);
        let pipe = &mut self.pipes[side];
        if pipe.reset_at.is_some_and(|before| before <= at) {
            return;
        }
        pipe.reset_at = Some(at);
        pipe.announce(at, world);
        // Whoever waits to write at the other end learns of it too.
        self.pipes[1 - side].writers.drain(..).for_each(|waker| world.timer(at, &waker));
    }

    /// When what is sent now arrives.
    fn arrival(&self, side: usize, world: &World) -> u64 {
        let (least, most) = world.options().wire_us;
        (world.now_us() + least + self.chances[side].below(most.saturating_sub(least) + 1))
            .max(self.pipes[side].last_at)
    }

    /// What waited for a silence to end looks again.
    pub fn wake_all(&mut self) {
        self.pipes.iter_mut().for_each(Pipe::wake_all);
    }
}

//! The null engine: prepared answers from one epoll loop on raw sockets, so that next to nothing of what is measured is
//! the engine's.
//!
//! It reads requests to their end and looks at nothing but their length and whether they end like those of ours that ask
//! for a stream. Such are answered as it was told by [`NullEngine::answer`], all others whole:
//!
//! - *whole*: a chat completion in one write;
//! - *unpaced*: a stream whose chunks go out one write each, turn by turn over all streams under way;
//! - *paced*: a stream with a fixed time between chunks. Streams start spread over that time, so that they do not beat
//!   in step.
//!
//! Each chunk carries the time just before its write, by the clock that all processes of the machine share: whoever
//! reads it knows how long it was under way, whatever the engine did before.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::poll::{Poll, READ, WRITE, listen};
use super::reply::{LAST, MARK, Reply, STAMP, Seen};
use crate::kit::clock::{machine_ns, sleep_exactly};
use crate::kit::pin::pin;

/// Longest sleep: how late a stop is seen.
const NAP: Duration = Duration::from_millis(100);
/// Buffer of a read.
const READ_SIZE: usize = 256 << 10;

/// How all requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// At once, in one piece.
    Whole,
    /// As a stream of so many chunks, as fast as it goes.
    Unpaced {
        /// Chunks with a token.
        tokens: u32,
    },
    /// As a stream of so many chunks with a time between them.
    Paced {
        /// Chunks with a token.
        tokens: u32,
        /// Time between them.
        every: Duration,
    },
}

#[derive(Debug, Default)]
struct Told {
    tokens: AtomicU64,
    every_ns: AtomicU64,
    stop: AtomicBool,
    accepted: AtomicU64,
    closed: AtomicU64,
    answered: AtomicU64,
    sent: AtomicU64,
}

/// What an engine has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Connections taken.
    pub accepted: u64,
    /// Requests whose answer was begun.
    pub answered: u64,
    /// Tokens written.
    pub tokens: u64,
}

/// An engine on a thread of its own; it ends with this.
#[derive(Debug)]
pub struct NullEngine {
    addrs: Vec<SocketAddr>,
    told: Arc<Told>,
    thread: Option<JoinHandle<()>>,
}

impl NullEngine {
    /// Starts one that listens at so many addresses, each a target, on the `core`-th of `cores`.
    ///
    /// # Errors
    /// Descriptors or ports are exhausted.
    pub fn start(targets: usize, cores: &[usize], core: usize) -> io::Result<Self> {
        let mut listeners = Vec::with_capacity(targets);
        let mut addrs = Vec::with_capacity(targets);
        for _ in 0..targets {
            let listener = listen()?;
            addrs.push(listener.local_addr()?);
            listeners.push(listener);
        }
        let told = Arc::new(Told::default());
        let (shared, cores) = (Arc::clone(&told), cores.to_vec());
        let mut engine = Loop::new(listeners, shared)?;
        let thread = std::thread::Builder::new().name("null-engine".to_owned()).spawn(move || {
            pin(&cores, core);
            sleep_exactly();
            engine.run();
        })?;
        Ok(Self { addrs, told, thread: Some(thread) })
    }

    /// Its targets.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Tells how requests that come from now on are answered.
    pub fn answer(&self, how: Answer) {
        let (tokens, every) = match how {
            Answer::Whole => (0, Duration::ZERO),
            Answer::Unpaced { tokens } => (tokens, Duration::ZERO),
            Answer::Paced { tokens, every } => (tokens, every),
        };
        self.told.tokens.store(tokens.into(), Ordering::Relaxed);
        self.told.every_ns.store(every.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Waits until all connections have been closed by whoever made them, or `limit` is over: what is left behind
    /// takes descriptors of the next measurement.
    pub fn settle(&self, limit: Duration) {
        let start = Instant::now();
        let open = || {
            self.told
                .accepted
                .load(Ordering::Relaxed)
                .saturating_sub(self.told.closed.load(Ordering::Relaxed))
        };
        while open() > 0 && start.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has done.
    pub fn done(&self) -> Done {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Done {
            accepted: read(&self.told.accepted),
            answered: read(&self.told.answered),
            tokens: read(&self.told.sent),
        }
    }
}

impl Drop for NullEngine {
    fn drop(&mut self) {
        self.told.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection.
struct Conn {
    socket: TcpStream,
    request: Reply,
    /// What the socket did not take yet.
    out: Vec<u8>,
    /// Tokens of the stream under way that are still to come.
    left: u32,
    every_ns: u64,
    begun: bool,
    /// Distinguishes a connection from an earlier one in the same place.
    life: u64,
}

/// Prepared bytes.
struct Prepared {
    whole: Vec<u8>,
    info: Vec<u8>,
    head: Vec<u8>,
    chunk: Vec<u8>,
    stamp_at: usize,
    end: Vec<u8>,
}

impl Prepared {
    fn new() -> Self {
        let message = |body: &str| {
            format!(
                "HTTP/1.1 200 OK\r\nserver: null\r\ncontent-length: {}\r\ncontent-type: \
                 application/json\r\n\r\n{body}",
                body.len()
            )
            .into_bytes()
        };
        let whole = "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1760000000,\
             \"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"It costs \
             as little as it can.\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":\
             256,\"total_tokens\":264,\"completion_tokens\":8}}";
        // What routers ask an engine at their start.
        let info = "{\"status\":\"ok\",\"model_path\":\"m\",\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\
             \"model\"}]}";
        let framed = |data: &str| format!("{:x}\r\n{data}\r\n", data.len()).into_bytes();
        let zeros = "0".repeat(STAMP);
        let mark = String::from_utf8_lossy(MARK);
        let chunk = framed(&format!(
            "data: {{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":\
             1760000000,\"model\":\"m\",{mark}{zeros}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" token\"\
             }},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
        ));
        let stamp_at = memchr::memmem::find(&chunk, MARK).unwrap_or(0) + MARK.len();
        let mut end = framed(
            "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":\
             1760000000,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":256,\"total_tokens\":512,\
             \"completion_tokens\":256}}\n\n",
        );
        end.extend_from_slice(&framed("data: [DONE]\n\n"));
        end.extend_from_slice(&LAST[2..]);
        let head = b"HTTP/1.1 200 OK\r\nserver: null\r\ncontent-type: text/event-stream; \
            charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
        Self { whole: message(whole), info: message(info), head, chunk, stamp_at, end }
    }

    /// The chunk with the time now.
    fn stamped(&mut self) -> &[u8] {
        let mut now = machine_ns();
        for digit in self.chunk[self.stamp_at..self.stamp_at + STAMP].iter_mut().rev() {
            *digit = b'0' + (now % 10) as u8;
            now /= 10;
        }
        &self.chunk
    }
}

/// A connection's place and life.
type Name = (usize, u64);

struct Loop {
    poll: Poll,
    listeners: Vec<TcpListener>,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    lives: u64,
    /// Streams whose next chunk is due at a time.
    due: BinaryHeap<Reverse<(u64, Name)>>,
    /// Streams whose next chunk may go at once.
    unpaced: VecDeque<Name>,
    told: Arc<Told>,
    prepared: Prepared,
    buffer: Vec<u8>,
    spread: u64,
}

impl Loop {
    fn new(listeners: Vec<TcpListener>, told: Arc<Told>) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (n, listener) in listeners.iter().enumerate() {
            poll.add(listener, n, READ)?;
        }
        Ok(Self {
            poll,
            listeners,
            conns: Vec::new(),
            free: Vec::new(),
            lives: 0,
            due: BinaryHeap::new(),
            unpaced: VecDeque::new(),
            told,
            prepared: Prepared::new(),
            buffer: vec![0; READ_SIZE],
            spread: 0,
        })
    }

    fn run(&mut self) {
        while !self.told.stop.load(Ordering::Relaxed) {
            let nap = if self.unpaced.is_empty() { self.until_due() } else { Duration::ZERO };
            let Ok(count) = self.poll.wait(nap) else { return };
            for n in 0..count {
                let (key, readable, writable) = self.poll.event(n);
                match key.checked_sub(self.listeners.len()) {
                    None => self.accept(key),
                    Some(place) => {
                        if writable {
                            self.flush(place);
                        }
                        if readable {
                            self.read(place);
                        }
                    }
                }
            }
            self.tick();
            // One chunk of each in turn: streams of different requests mix as they do in an engine's batch.
            for _ in 0..self.unpaced.len() {
                if let Some(name) = self.unpaced.pop_front()
                    && self.token(name)
                {
                    self.unpaced.push_back(name);
                }
            }
        }
    }

    fn until_due(&self) -> Duration {
        match self.due.peek() {
            Some(Reverse((at, _))) => Duration::from_nanos(at.saturating_sub(machine_ns())).min(NAP),
            None => NAP,
        }
    }

    fn accept(&mut self, listener: usize) {
        while let Ok((socket, _)) = self.listeners[listener].accept() {
            let ready = socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true));
            let place = self.free.pop().unwrap_or_else(|| {
                self.conns.push(None);
                self.conns.len() - 1
            });
            if ready.and_then(|()| self.poll.add(&socket, self.listeners.len() + place, READ)).is_err() {
                self.free.push(place);
                continue;
            }
            self.lives += 1;
            self.conns[place] = Some(Conn {
                socket,
                request: Reply::default(),
                out: Vec::new(),
                left: 0,
                every_ns: 0,
                begun: false,
                life: self.lives,
            });
            self.told.accepted.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn close(&mut self, place: usize) {
        if self.conns[place].take().is_some() {
            self.told.closed.fetch_add(1, Ordering::Relaxed);
            self.free.push(place);
        }
    }

    fn read(&mut self, place: usize) {
        let Some(conn) = self.conns.get_mut(place).and_then(Option::as_mut) else { return };
        let count = match conn.socket.read(&mut self.buffer) {
            Ok(count) if count > 0 => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            _ => return self.close(place),
        };
        let mut post = true;
        let seen = conn.request.feed_if(&self.buffer[..count], |head| {
            post = head.starts_with(b"POST ");
            post || head.starts_with(b"GET ")
        });
        match seen {
            Seen::More => {}
            Seen::Complete if post => {
                self.begin(place, self.buffer[..count].ends_with(super::body::STREAMED))
            }
            Seen::Complete => self.write(place, |prepared| &prepared.info),
            Seen::Bad => self.close(place),
        }
    }

    fn begin(&mut self, place: usize, streamed: bool) {
        let tokens = self.told.tokens.load(Ordering::Relaxed) as u32;
        let every_ns = self.told.every_ns.load(Ordering::Relaxed);
        self.told.answered.fetch_add(1, Ordering::Relaxed);
        let Some(conn) = self.conns[place].as_mut() else { return };
        if tokens == 0 || !streamed {
            return self.write(place, |prepared| &prepared.whole);
        }
        (conn.left, conn.every_ns, conn.begun) = (tokens, every_ns, false);
        let name = (place, conn.life);
        if every_ns == 0 {
            self.unpaced.push_back(name);
        } else {
            // Steps of the golden section fill the time evenly, however many streams there are.
            self.spread = self.spread.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let share = ((u128::from(self.spread) * u128::from(every_ns)) >> 64) as u64;
            self.due.push(Reverse((machine_ns() + share, name)));
        }
    }

    /// Writes the chunks that are due.
    fn tick(&mut self) {
        if self.due.is_empty() {
            return;
        }
        let now = machine_ns();
        while let Some(Reverse((at, name))) = self.due.peek().copied()
            && at <= now
        {
            self.due.pop();
            let every = self.conns[name.0].as_ref().map_or(0, |conn| conn.every_ns);
            if self.token(name) {
                self.due.push(Reverse((at + every, name)));
            }
        }
    }

    /// Writes the next chunk of a stream; whether more are to come.
    fn token(&mut self, (place, life): Name) -> bool {
        let Some(conn) = self.conns[place].as_mut().filter(|conn| conn.life == life) else { return false };
        if !conn.out.is_empty() {
            // The reader is behind. A token that waits here would count as under way.
            return true;
        }
        conn.left -= 1;
        let last = conn.left == 0;
        let chunk = self.prepared.stamped();
        let joined;
        let bytes = if conn.begun && !last {
            chunk
        } else {
            // With the first token goes the head, as engines do it, and with the last one the end.
            let head: &[u8] = if conn.begun { &[] } else { &self.prepared.head };
            let end: &[u8] = if last { &self.prepared.end } else { &[] };
            joined = [head, &self.prepared.chunk, end].concat();
            &joined
        };
        conn.begun = true;
        self.told.sent.fetch_add(1, Ordering::Relaxed);
        if !send(conn, bytes) {
            self.close(place);
            return false;
        }
        self.watch_writes(place);
        !last
    }

    fn write(&mut self, place: usize, what: impl Fn(&Prepared) -> &Vec<u8>) {
        let Some(conn) = self.conns[place].as_mut() else { return };
        if send(conn, what(&self.prepared)) {
            self.watch_writes(place);
        } else {
            self.close(place);
        }
    }

    fn watch_writes(&mut self, place: usize) {
        if let Some(conn) = &self.conns[place]
            && !conn.out.is_empty()
        {
            let _ = self.poll.change(&conn.socket, self.listeners.len() + place, READ | WRITE);
        }
    }

    fn flush(&mut self, place: usize) {
        let Some(conn) = self.conns.get_mut(place).and_then(Option::as_mut) else { return };
        let waiting = std::mem::take(&mut conn.out);
        if !send(conn, &waiting) {
            return self.close(place);
        }
        if conn.out.is_empty() {
            let _ = self.poll.change(&conn.socket, self.listeners.len() + place, READ);
        }
    }
}

/// Sends what fits and keeps the rest; false when the connection has ended.
fn send(conn: &mut Conn, bytes: &[u8]) -> bool {
    let sent = match conn.socket.write(bytes) {
        Ok(sent) => sent,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(_) => return false,
    };
    conn.out.extend_from_slice(&bytes[sent..]);
    true
}

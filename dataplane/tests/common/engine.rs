//! An engine made of threads, whose every answer is written by the test.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{PATIENCE, eventually};

/// A request as it reached the engine.
#[derive(Debug, Clone)]
pub struct Request {
    pub head: String,
    pub body: Vec<u8>,
    /// Number of this request on its connection, from 0.
    pub on_connection: usize,
}

impl Request {
    pub fn line(&self) -> &str {
        self.head.split("\r\n").next().unwrap()
    }

    /// Values of a field.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.head
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }
}

/// What to do after an answer.
pub enum Then {
    Keep,
    Close,
    Reset,
}

/// The engine's end of a connection.
pub struct Conn {
    pub stream: TcpStream,
    state: Arc<State>,
}

impl Conn {
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The gateway may be gone; tests that care look at what they got.
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// An answer with its length.
    pub fn ok(&mut self, body: &str) {
        self.status("200 OK", body);
    }

    pub fn status(&mut self, status: &str, body: &str) {
        self.send(format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
    }

    pub fn sse_head(&mut self) {
        self.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    }

    pub fn chunk(&mut self, data: &str) {
        self.send(format!("{:x}\r\n{data}\r\n", data.len()));
    }

    pub fn last_chunk(&mut self) {
        self.send("0\r\n\r\n");
    }

    /// Blocks until the gateway closes (or resets) the connection, and notes when.
    pub fn wait_closed(&mut self) {
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buf = [0; 4096];
        loop {
            match self.stream.read(&mut buf) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("the gateway never closed its connection")
                }
                Err(_) => break,
            }
        }
        *self.state.closed_at.lock().unwrap() = Some(Instant::now());
        self.state.closed.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct State {
    seen: Mutex<Vec<Request>>,
    raw: Mutex<Vec<u8>>,
    connections: AtomicUsize,
    closed: AtomicUsize,
    closed_at: Mutex<Option<Instant>>,
    stop: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

/// A running engine.
pub struct Engine {
    pub addr: SocketAddr,
    state: Arc<State>,
}

impl Engine {
    /// Answers every request with `serve`.
    pub fn start(serve: impl Fn(&mut Conn, &Request) -> Then + Send + Sync + 'static) -> Self {
        Self::on("127.0.0.1:0".parse().unwrap(), serve)
    }

    pub fn on(addr: SocketAddr, serve: impl Fn(&mut Conn, &Request) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let serve = Arc::new(serve);
        std::thread::spawn({
            let state = state.clone();
            move || {
                for stream in listener.incoming() {
                    if state.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    stream.set_nodelay(true).unwrap();
                    state.open.lock().unwrap().push(stream.try_clone().unwrap());
                    state.connections.fetch_add(1, Ordering::SeqCst);
                    let (state, serve) = (state.clone(), serve.clone());
                    std::thread::spawn(move || connection(stream, state, &*serve));
                }
            }
        });
        Self { addr, state }
    }

    /// Answers each chat with a small JSON document.
    pub fn simple() -> Self {
        Self::start(|conn, _| {
            conn.ok(r#"{"object":"chat.completion","usage":{"prompt_tokens":3,"completion_tokens":1}}"#);
            Then::Keep
        })
    }

    pub fn seen(&self) -> Vec<Request> {
        self.state.seen.lock().unwrap().clone()
    }

    pub fn requests(&self) -> usize {
        self.state.seen.lock().unwrap().len()
    }

    /// Every byte that reached the engine.
    pub fn raw(&self) -> Vec<u8> {
        self.state.raw.lock().unwrap().clone()
    }

    /// Throws away what was recorded.
    pub fn forget(&self) {
        *self.state.seen.lock().unwrap() = Vec::new();
        *self.state.raw.lock().unwrap() = Vec::new();
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Waits until `count` connections were seen to be closed by the gateway; when the last was.
    #[track_caller]
    pub fn await_closed(&self, count: usize) -> Instant {
        eventually("the gateway closes its connection to the engine", || {
            self.state.closed.load(Ordering::SeqCst) >= count
        });
        self.state.closed_at.lock().unwrap().unwrap()
    }

    #[track_caller]
    pub fn await_requests(&self, count: usize) {
        eventually("the engine gets the requests", || self.requests() >= count);
    }

    /// Stops listening and cuts every connection, as a killed process does.
    pub fn kill(&self) {
        self.state.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
        for stream in self.state.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn connection(stream: TcpStream, state: Arc<State>, serve: &dyn Fn(&mut Conn, &Request) -> Then) {
    let mut conn = Conn { stream, state: state.clone() };
    let mut buf = Vec::new();
    let mut count = 0;
    loop {
        let Some(request) = read_request(&mut conn.stream, &mut buf, &state, count) else { return };
        count += 1;
        let mut request = request;
        state.seen.lock().unwrap().push(request.clone());
        if request.body.len() > 1 << 24 {
            request.body = Vec::new();
        }
        match serve(&mut conn, &request) {
            Then::Keep => {}
            Then::Close => {
                let _ = conn.stream.shutdown(Shutdown::Both);
                return;
            }
            Then::Reset => {
                socket2::SockRef::from(&conn.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
                state.open.lock().unwrap().retain(|open| {
                    open.peer_addr().ok() != conn.stream.peer_addr().ok() || open.peer_addr().is_err()
                });
                return;
            }
        }
    }
}

fn fill(stream: &mut TcpStream, buf: &mut Vec<u8>, state: &State) -> bool {
    let mut piece = [0; 65536];
    match stream.read(&mut piece) {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            buf.extend_from_slice(&piece[..count]);
            state.raw.lock().unwrap().extend_from_slice(&piece[..count]);
            true
        }
    }
}

fn read_request(
    stream: &mut TcpStream,
    buf: &mut Vec<u8>,
    state: &State,
    on_connection: usize,
) -> Option<Request> {
    let end = loop {
        if let Some(at) = buf.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if !fill(stream, buf, state) {
            return None;
        }
    };
    let head = String::from_utf8(buf[..end].to_vec()).unwrap();
    buf.drain(..end);
    let mut request = Request { head, body: Vec::new(), on_connection };
    let length: usize = request.header("content-length").first().map_or(0, |text| text.parse().unwrap());
    while buf.len() < length {
        if !fill(stream, buf, state) {
            return None;
        }
    }
    request.body = buf.drain(..length).collect();
    buf.shrink_to(1 << 20);
    Some(request)
}

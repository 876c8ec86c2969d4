//! What holds of every runtime, on each that this machine has.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::*;

/// What the tests ask of a socket beyond the seam.
trait Options {
    fn has_nodelay(&self) -> bool;
}

impl Options for Socket {
    fn has_nodelay(&self) -> bool {
        self.nodelay().unwrap()
    }
}

#[cfg(feature = "glommio")]
impl Options for GlommioSocket {
    fn has_nodelay(&self) -> bool {
        self.nodelay().unwrap()
    }
}

trait Tested: Backend<Runtime: Runtime<Socket: Options>> {}

impl<B: Backend<Runtime: Runtime<Socket: Options>>> Tested for B {}

type SocketOf<B> = <<B as Backend>::Runtime as Runtime>::Socket;
type ListenerOf<B> = <<B as Backend>::Runtime as Runtime>::Listener;

/// Makes a test of each function on every runtime and driver; says so where the machine does not have one.
macro_rules! on_each_runtime {
    ($($name:ident),* $(,)?) => {
        on_each_runtime!(@ on_uring, Executor, Uring, $($name),*);
        on_each_runtime!(@ on_epoll, Executor, Epoll, $($name),*);
        #[cfg(feature = "glommio")]
        on_each_runtime!(@ on_glommio, GlommioExecutor, Auto, $($name),*);
    };
    (@ $module:ident, $backend:ident, $driver:ident, $($name:ident),*) => {
        mod $module {
            use crate::runtime::{Driver, $backend};
            $(
                #[test]
                fn $name() {
                    super::run::<$backend, _>(Driver::$driver, super::$name::<$backend>);
                }
            )*
        }
    };
}

on_each_runtime!(
    a_plain_link_costs_its_operations_a_word_at_most,
    accepted_and_connected_sockets_have_nodelay,
    waiting_for_connections_may_be_given_up,
    reads_append_and_writes_go_out_whole,
    pieces_go_out_whole,
    a_pending_read_ends_when_its_direction_is_shut,
    peer_states,
    a_reset_is_told_to_the_reader,
    readiness_takes_no_bytes,
    local_sockets_are_connected,
    connecting_reports_refusal,
    notifications_cross_threads,
    tasks_share_the_thread,
);

fn run<B: Backend, F: Future<Output = ()>>(
    driver: Driver,
    body: impl FnOnce(B::Runtime) -> F + Send + 'static,
) {
    std::thread::spawn(move || match B::build(driver) {
        Ok((backend, _)) => {
            let runtime = backend.runtime();
            backend.run(body(runtime));
        }
        Err(error) => eprintln!("skipped on {driver:?}: {error}"),
    })
    .join()
    .unwrap();
}

fn pair<B: Backend>(runtime: B::Runtime) -> (ListenerOf<B>, TcpStream) {
    let std_listener = bind_shared("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
    let addr = std_listener.local_addr().unwrap();
    let listener = B::listen(runtime, std_listener).unwrap();
    (listener, TcpStream::connect(addr).unwrap())
}

async fn accept<L: Acceptor>(listener: &L) -> L::Socket {
    loop {
        listener.ready().await.unwrap();
        if let Some(socket) = listener.take().unwrap() {
            return socket;
        }
    }
}

async fn accepted<B: Backend>(runtime: B::Runtime) -> (SocketOf<B>, TcpStream) {
    let (listener, peer) = pair::<B>(runtime);
    (accept(&listener).await, peer)
}

async fn accepted_and_connected_sockets_have_nodelay<B: Tested>(runtime: B::Runtime) {
    let std_listener = bind_shared("127.0.0.1:0".parse().unwrap(), 2).unwrap().remove(0);
    let addr = std_listener.local_addr().unwrap();
    let listener = B::listen(runtime, std_listener).unwrap();
    // Both listeners share the port, so some connections arrive at the other one.
    let mut connected = Vec::new();
    for _ in 0..32 {
        connected.push(runtime.connect(addr, Duration::from_secs(2)).await.unwrap());
    }
    assert!(connected.iter().all(Options::has_nodelay));
    let accepted = accept(&listener).await;
    assert!(accepted.has_nodelay());
}

async fn waiting_for_connections_may_be_given_up<B: Tested>(runtime: B::Runtime) {
    let std_listener = bind_shared("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
    let addr = std_listener.local_addr().unwrap();
    let listener = B::listen(runtime, std_listener).unwrap();
    for round in 0..3u8 {
        assert!(B::Runtime::within(Duration::from_millis(2), listener.ready()).await.is_none());
        assert!(listener.take().unwrap().is_none());
        let mut peer = TcpStream::connect(addr).unwrap();
        let socket = accept(&listener).await;
        peer.write_all(&[round]).unwrap();
        let (result, buf) = socket.read(BytesMut::with_capacity(8)).await;
        assert_eq!((result.unwrap(), &buf[..]), (1, &[round][..]));
    }
    drop(listener);
    assert!(TcpStream::connect(addr).is_err(), "nobody listens any more");
}

async fn reads_append_and_writes_go_out_whole<B: Tested>(runtime: B::Runtime) {
    let (socket, mut peer) = accepted::<B>(runtime).await;
    peer.write_all(b"hello").unwrap();
    let mut buf = BytesMut::with_capacity(64);
    buf.extend_from_slice(b"> ");
    socket.readable().await.unwrap();
    let (result, buf) = socket.read(buf).await;
    assert_eq!((result.unwrap(), &buf[..]), (5, &b"> hello"[..]));

    let full = BytesMut::new();
    assert!(socket.read(full).await.0.is_err(), "no room is not an end of stream");

    let big = Bytes::from(vec![7u8; 3 << 20]);
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 2 * (3 << 20) + 4];
        peer.read_exact(&mut got).unwrap();
        got
    });
    socket.write_all(big.clone()).await.0.unwrap();
    socket.write_both(Bytes::from_static(b"head"), big.clone()).await.unwrap();
    let got = reader.join().unwrap();
    assert_eq!(&got[big.len()..big.len() + 4], b"head");
    assert!(got[big.len() + 4..].iter().all(|&byte| byte == 7));
}

async fn pieces_go_out_whole<B: Tested>(runtime: B::Runtime) {
    let (socket, mut peer) = accepted::<B>(runtime).await;
    let pieces: Vec<_> = (0..200u8).map(|n| Bytes::from(vec![n; 20_000 * usize::from(n % 3)])).collect();
    let want = pieces.concat();
    let reader = std::thread::spawn({
        let size = want.len();
        move || {
            let mut got = vec![0; size];
            peer.read_exact(&mut got).unwrap();
            got
        }
    });
    socket.write_pieces(pieces).await.unwrap();
    assert!(reader.join().unwrap() == want);
    socket.write_pieces(Vec::new()).await.unwrap();
    let (result, buf) = socket.write_range(Bytes::from_static(b"abc"), 3, 3).await;
    assert!(result.is_ok() && buf == "abc");
}

async fn a_pending_read_ends_when_its_direction_is_shut<B: Tested>(runtime: B::Runtime) {
    let (socket, _peer) = accepted::<B>(runtime).await;
    let ender = socket.clone();
    B::Runtime::spawn(async move {
        B::Runtime::sleep(Duration::from_millis(5)).await;
        ender.shutdown(Direction::Read);
    });
    let (result, _) = socket.read(BytesMut::with_capacity(16)).await;
    assert_eq!(result.unwrap(), 0);
    // The other direction still works: a timed-out client can be told so.
    socket.write_all(Bytes::from_static(b"408")).await.0.unwrap();
}

async fn peer_states<B: Tested>(runtime: B::Runtime) {
    let (socket, peer) = accepted::<B>(runtime).await;
    assert_eq!(socket.peer(), Peer::Open);
    assert!(socket.is_quiet());
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    socket.readable().await.unwrap();
    assert_eq!(socket.peer(), Peer::HalfClosed);
    assert!(!socket.is_quiet());
    drop(peer);
    // A closed peer answers a byte with a reset; a half-closed one takes it.
    assert_eq!(socket.send_now(b"x").unwrap(), 1);
    while socket.peer() != Peer::Gone {
        B::Runtime::sleep(Duration::from_millis(1)).await;
    }
}

/// Also when somebody has waited for readiness before: a reset that reads as an end would make a cut answer whole.
async fn a_reset_is_told_to_the_reader<B: Tested>(runtime: B::Runtime) {
    for waits in [0, 1, 2] {
        let (socket, peer) = accepted::<B>(runtime).await;
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        for _ in 0..waits {
            socket.readable().await.unwrap();
        }
        let (result, _) = socket.read(BytesMut::with_capacity(16)).await;
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{waits} waits");
        assert_eq!(socket.peer(), Peer::Gone);
        assert!(!socket.is_quiet());
    }
}

async fn readiness_takes_no_bytes<B: Tested>(runtime: B::Runtime) {
    let (socket, mut peer) = accepted::<B>(runtime).await;
    // A wait that was given up leaves nothing behind that eats what comes.
    assert!(B::Runtime::within(Duration::from_millis(2), socket.readable()).await.is_none());
    assert!(!socket.has_unread());
    peer.write_all(b"abc").unwrap();
    for _ in 0..3 {
        socket.readable().await.unwrap();
    }
    assert!(socket.has_unread() && !socket.is_quiet());
    // Two bytes fit; the third is there at once.
    let (result, buf) = socket.read(BytesMut::with_capacity(2)).await;
    assert_eq!((result.unwrap(), &buf[..]), (2, &b"ab"[..]));
    socket.readable().await.unwrap();
    let (result, buf) = socket.read(BytesMut::with_capacity(2)).await;
    assert_eq!((result.unwrap(), &buf[..]), (1, &b"c"[..]));
    assert!(socket.is_quiet());
}

async fn local_sockets_are_connected<B: Tested>(runtime: B::Runtime) {
    let name = format!("fairlead-runtime-{}-{:?}.sock", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name.replace(['(', ')'], ""));
    let path = path.to_str().unwrap();
    assert!(runtime.connect_local(path).is_err());
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    let socket = runtime.connect_local(path).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    assert!(B::Runtime::within(Duration::from_millis(2), socket.readable()).await.is_none());
    peer.write_all(b"abc").unwrap();
    socket.readable().await.unwrap();
    let (result, buf) = socket.read(BytesMut::with_capacity(8)).await;
    assert_eq!((result.unwrap(), &buf[..]), (3, &b"abc"[..]));
    socket.write_both(Bytes::from_static(b"de"), Bytes::from_static(b"f")).await.unwrap();
    let mut got = [0; 3];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"def");
    drop(peer);
    socket.readable().await.unwrap();
    assert_eq!(socket.read(BytesMut::with_capacity(8)).await.0.unwrap(), 0);
    std::fs::remove_file(path).unwrap();
}

async fn connecting_reports_refusal<B: Tested>(runtime: B::Runtime) {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let error = runtime.connect(closed, Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

async fn notifications_cross_threads<B: Tested>(_: B::Runtime) {
    let notify = Arc::new(Notify::default());
    for _ in 0..100 {
        let ringer = notify.clone();
        let thread = std::thread::spawn(move || ringer.notify());
        notify.notified().await;
        thread.join().unwrap();
    }
    assert!(B::Runtime::within(Duration::from_millis(1), notify.notified()).await.is_none());
}

async fn tasks_share_the_thread<B: Tested>(_: B::Runtime) {
    let counter = Rc::new(std::cell::Cell::new(0));
    let inner = counter.clone();
    B::Runtime::spawn(async move { inner.set(1) });
    B::Runtime::sleep(Duration::from_millis(1)).await;
    assert_eq!(counter.get(), 1);
}

async fn a_plain_link_costs_its_operations_a_word_at_most<B: Tested>(runtime: B::Runtime) {
    let (socket, _client) = accepted::<B>(runtime).await;
    let link = Link::Plain(socket.clone());
    let word = size_of::<usize>();
    let sizes = |socket: usize, link: usize| assert!(link <= socket + word, "{socket} became {link}");
    let empty = Bytes::new;
    sizes(size_of_val(&socket.read(BytesMut::new())), size_of_val(&link.read(BytesMut::new())));
    sizes(size_of_val(&socket.readable()), size_of_val(&link.readable()));
    sizes(size_of_val(&socket.write_range(empty(), 0, 0)), size_of_val(&link.write_range(empty(), 0, 0)));
    sizes(size_of_val(&socket.write_both(empty(), empty())), size_of_val(&link.write_both(empty(), empty())));
}

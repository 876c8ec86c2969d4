use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::*;

/// Runs the same body on every driver the machine has.
fn on_each_driver(body: impl AsyncFn(ActiveDriver) + Send + Sync + Copy + 'static) {
    for driver in [Driver::Uring, Driver::Epoll] {
        std::thread::spawn(move || match Executor::build(driver) {
            Ok((executor, _)) => {
                let active = executor.active();
                executor.run(body(active));
            }
            Err(error) => eprintln!("skipped on {driver:?}: {error}"),
        })
        .join()
        .unwrap();
    }
}

fn pair(driver: ActiveDriver) -> (Listener, std::net::TcpStream) {
    let std_listener = bind_shared("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
    let addr = std_listener.local_addr().unwrap();
    let listener = Listener::from_std(std_listener, driver).unwrap();
    (listener, std::net::TcpStream::connect(addr).unwrap())
}

async fn accept(listener: &Listener) -> Socket {
    loop {
        listener.ready().await.unwrap();
        if let Some(socket) = listener.take().unwrap() {
            return socket;
        }
    }
}

#[test]
fn accepted_and_connected_sockets_have_nodelay() {
    on_each_driver(async |driver| {
        let std_listener = bind_shared("127.0.0.1:0".parse().unwrap(), 2).unwrap().remove(0);
        let addr = std_listener.local_addr().unwrap();
        let listener = Listener::from_std(std_listener, driver).unwrap();
        // Both listeners share the port, so some connections arrive at the other one.
        let mut connected = Vec::new();
        for _ in 0..32 {
            connected.push(connect(addr, Duration::from_secs(2), driver).await.unwrap());
        }
        assert!(connected.iter().all(|socket| socket.nodelay().unwrap()));
        let accepted = accept(&listener).await;
        assert!(accepted.nodelay().unwrap());
    });
}

#[test]
fn reads_append_and_writes_go_out_whole() {
    on_each_driver(async |driver| {
        let (listener, mut peer) = pair(driver);
        let socket = accept(&listener).await;
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
    });
}

#[test]
fn a_pending_read_ends_when_its_direction_is_shut() {
    on_each_driver(async |driver| {
        let (listener, _peer) = pair(driver);
        let socket = accept(&listener).await;
        let ender = socket.clone();
        spawn(async move {
            sleep(Duration::from_millis(5)).await;
            ender.shutdown(Direction::Read);
        });
        let (result, _) = socket.read(BytesMut::with_capacity(16)).await;
        assert_eq!(result.unwrap(), 0);
        // The other direction still works: a timed-out client can be told so.
        socket.write_all(Bytes::from_static(b"408")).await.0.unwrap();
    });
}

#[test]
fn peer_states() {
    on_each_driver(async |driver| {
        let (listener, peer) = pair(driver);
        let socket = accept(&listener).await;
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
            sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn connecting_reports_refusal() {
    on_each_driver(async |driver| {
        let closed = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let error = connect(closed, Duration::from_secs(2), driver).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn notifications_cross_threads() {
    on_each_driver(async |_| {
        let notify = Arc::new(Notify::default());
        let ringer = notify.clone();
        let thread = std::thread::spawn(move || ringer.notify());
        notify.notified().await;
        thread.join().unwrap();
        assert!(within(Duration::from_millis(1), notify.notified()).await.is_none());
    });
}

#[test]
fn tasks_share_the_thread() {
    on_each_driver(async |_| {
        let counter = Rc::new(std::cell::Cell::new(0));
        let inner = counter.clone();
        spawn(async move { inner.set(1) });
        sleep(Duration::from_millis(1)).await;
        assert_eq!(counter.get(), 1);
    });
}

#[test]
fn a_plain_link_costs_its_operations_a_word_at_most() {
    on_each_driver(async |driver| {
        let (listener, _client) = pair(driver);
        let socket = accept(&listener).await;
        let link = Link::Plain(socket.clone());
        let word = size_of::<usize>();
        let sizes = |socket: usize, link: usize| assert!(link <= socket + word, "{socket} became {link}");
        let empty = Bytes::new;
        sizes(size_of_val(&socket.read(BytesMut::new())), size_of_val(&link.read(BytesMut::new())));
        sizes(size_of_val(&socket.readable()), size_of_val(&link.readable()));
        sizes(size_of_val(&socket.write_range(empty(), 0, 0)), size_of_val(&link.write_range(empty(), 0, 0)));
        sizes(
            size_of_val(&socket.write_both(empty(), empty())),
            size_of_val(&link.write_both(empty(), empty())),
        );
    });
}

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::*;
use crate::runtime::{Acceptor, Direction, Peer, Stream};

const PATIENCE: Duration = Duration::from_secs(1);

fn addr() -> SocketAddr {
    "10.0.0.1:80".parse().unwrap()
}

/// Runs `body` on both ends of a connection, each in a process of its own, for some seeds.
fn ends(client: impl AsyncFn(SimSocket) + Copy + 'static, server: impl AsyncFn(SimSocket) + Copy + 'static) {
    for seed in 0..20 {
        let world = World::new(WorldOptions::seeded(seed));
        let ended = Rc::new(Cell::new(0));
        let count = ended.clone();
        world.spawn(world.process_with(0), async move {
            let listener = Sim::listen(addr()).unwrap();
            listener.ready().await.unwrap();
            server(listener.take().unwrap().unwrap()).await;
            count.set(count.get() + 1);
        });
        let count = ended.clone();
        world.spawn(world.process_with(5_000), async move {
            Sim::sleep(Duration::from_millis(1)).await;
            client(Sim.connect(addr(), PATIENCE).await.unwrap()).await;
            count.set(count.get() + 1);
        });
        assert!(world.run_until(|| ended.get() == 2), "seed {seed}");
        world.end();
    }
}

async fn read_all(socket: &SimSocket) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    loop {
        match socket.read(BytesMut::with_capacity(700)).await {
            (Ok(0), _) => return (got, true),
            (Ok(_), buf) => got.extend_from_slice(&buf),
            (Err(_), _) => return (got, false),
        }
    }
}

#[test]
fn bytes_arrive_in_order_through_small_buffers() {
    ends(
        async |socket| {
            let big: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
            socket.write_both(Bytes::from_static(b"head"), big.into()).await.unwrap();
        },
        async |socket| {
            let (got, ended) = read_all(&socket).await;
            assert!(ended && got.len() == 100_004 && &got[..4] == b"head");
            assert!(got[4..].iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
        },
    );
}

#[test]
fn ends_of_connections_look_as_they_do_in_a_kernel() {
    ends(
        async |socket| {
            socket.write_all(&b"x"[..]).await.0.unwrap();
            socket.shutdown(Direction::Write);
            assert!(socket.write_all(&b"x"[..]).await.0.is_err());
            // The other end answers what it got with a close that leaves a byte unread.
            let (got, ended) = read_all(&socket).await;
            assert!(got.is_empty() && !ended);
            assert_eq!(socket.peer(), Peer::Gone);
        },
        async |socket| {
            assert_eq!(socket.peer(), Peer::Open);
            socket.readable().await.unwrap();
            while socket.peer() == Peer::Open {
                Sim::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(socket.peer(), Peer::HalfClosed);
            assert!(socket.has_unread());
        },
    );
}

#[test]
fn a_closed_end_answers_bytes_with_a_reset() {
    ends(
        async |socket| drop(socket),
        async |socket| {
            socket.readable().await.unwrap();
            assert_eq!(socket.peer(), Peer::HalfClosed);
            socket.send_now(b"x").unwrap();
            while socket.peer() != Peer::Gone {
                Sim::sleep(Duration::from_millis(1)).await;
            }
        },
    );
}

#[test]
fn a_pending_read_ends_when_its_direction_is_shut() {
    ends(
        async |socket| assert!(read_all(&socket).await.1),
        async |socket| {
            let ender = socket.clone();
            Sim::spawn(async move {
                Sim::sleep(Duration::from_millis(3)).await;
                ender.shutdown(Direction::Read);
            });
            assert_eq!(socket.read(BytesMut::with_capacity(9)).await.0.unwrap(), 0);
        },
    );
}

#[test]
#[should_panic(expected = "dropped before its end")]
fn a_dropped_read_is_found_out() {
    ends(
        async |socket| {
            Sim::sleep(Duration::from_millis(50)).await;
            drop(socket);
        },
        async |socket| {
            let read = socket.read(BytesMut::with_capacity(9));
            assert!(Sim::within(Duration::from_millis(1), read).await.is_none());
            let _ = socket.read(BytesMut::with_capacity(9)).await;
        },
    );
}

#[test]
fn nobody_listens_and_nobody_answers() {
    let world = World::new(WorldOptions::seeded(1));
    world.silence("10.0.0.2:80".parse().unwrap(), true);
    let seen = Rc::<RefCell<Vec<io::ErrorKind>>>::default();
    let kinds = seen.clone();
    world.spawn(world.process_with(0), async move {
        for to in ["10.0.0.1:80", "10.0.0.2:80"] {
            let error = Sim.connect(to.parse().unwrap(), PATIENCE).await.unwrap_err();
            kinds.borrow_mut().push(error.kind());
        }
    });
    world.run_until(|| seen.borrow().len() == 2);
    assert_eq!(*seen.borrow(), [io::ErrorKind::ConnectionRefused, io::ErrorKind::TimedOut]);
}

#[test]
fn a_killed_process_leaves_nothing_and_a_paused_one_waits() {
    let world = World::new(WorldOptions::seeded(2));
    let count = Rc::new(Cell::new(0));
    let process = world.process_with(0);
    let ticks = count.clone();
    world.spawn(process, async move {
        let _listener = Sim::listen(addr()).unwrap();
        loop {
            Sim::sleep(Duration::from_millis(10)).await;
            ticks.set(ticks.get() + 1);
        }
    });
    world.run_for(100_000);
    let before = count.get();
    assert!(before > 5);
    world.pause(process, 100_000);
    world.run_for(99_000);
    assert!(count.get() <= before + 1);
    world.kill(process);
    let before = count.get();
    world.run_for(100_000);
    assert_eq!(count.get(), before);
    world.as_process(world.process_with(0), || Sim::listen(addr()).map(drop)).unwrap();
}

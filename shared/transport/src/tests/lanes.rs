//! Order, bounds and ends of lanes.

use bytes::Bytes;
use fairlead_wire::frame::Stamp;
use fairlead_wire::msg::{Delta, IndexOp, Op};

use super::{Cluster, bytes, options, ping, soon};
use crate::{Lane, LinkError, LinkOptions, SendError};

fn delta(sequence: u64, blocks: usize) -> Bytes {
    let blocks = (1..=blocks as u64).collect();
    let op = Op::Index(IndexOp::Place { target: 1, anchor: 0, skip: 0, blocks });
    bytes(&Delta { ops: vec![op] }, Stamp { base_seq: sequence, new_seq: sequence + 1, ..Stamp::default() })
}

#[tokio::test]
async fn each_lane_keeps_its_order() {
    let cluster = Cluster::new();
    let (_listener, mut far, near) = cluster.pair(&options(), &options()).await;
    let sender = near.sender();
    let writing = tokio::spawn(async move {
        for sequence in 0..500u64 {
            for lane in Lane::ALL {
                sender.send(lane, delta(sequence, (sequence % 40) as usize + 1)).await.unwrap();
            }
        }
        near
    });
    let mut next = std::collections::HashMap::new();
    for _ in 0..500 * Lane::ALL.len() {
        let (lane, frame) = soon(far.recv()).await.unwrap();
        let expected = next.entry(lane).or_insert(0u64);
        assert_eq!(frame.header.base_seq, *expected, "{lane:?}");
        *expected += 1;
        assert!(frame.message().is_ok());
    }
    assert_eq!(next.len(), Lane::ALL.len());
    let near = soon(writing).await.unwrap();
    assert_eq!(near.sender().stats().frames_sent, 2000);
    assert_eq!(far.sender().stats().frames_received, 2000);
}

#[tokio::test]
async fn every_snapshot_has_a_stream_of_its_own() {
    let cluster = Cluster::new();
    let (_listener, mut far, near) = cluster.pair(&options(), &options()).await;
    let sender = near.sender();
    // More snapshots than streams may be open at once: each stream must end with its snapshot.
    let writing = tokio::spawn(async move {
        for sequence in 0..12 {
            sender.send(Lane::Snapshot, delta(sequence, 100)).await.unwrap();
            loop {
                match sender.try_send_last(Lane::Snapshot, delta(sequence, 10)) {
                    Ok(()) => break,
                    Err(SendError::Full(_)) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    let mut seen = [0; 12];
    for _ in 0..24 {
        let (lane, frame) = soon(far.recv()).await.unwrap();
        assert_eq!(lane, Lane::Snapshot);
        seen[frame.header.base_seq as usize] += 1;
    }
    assert_eq!(seen, [2; 12]);
    soon(writing).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_the_sender_at_the_bounds() {
    let cluster = Cluster::new();
    let small = LinkOptions { receive_frames: 4, receive_bytes: 64 << 10, ..options() };
    let sending = LinkOptions { send_frames: 1000, send_bytes: 256 << 10, ..options() };
    let (_listener, mut far, near) = cluster.pair(&small, &sending).await;
    let sender = near.sender();
    let frame = delta(0, 1000);
    let mut sent = 0u64;
    // Full for good once the queue, both windows and the far inbox are.
    loop {
        match sender.try_send(Lane::Delta, frame.clone()) {
            Ok(()) => sent += 1,
            Err(SendError::Full(back)) => {
                assert_eq!(back, frame);
                let before = sender.stats();
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                if sender.stats() == before || sender.stats().bytes_sent == before.bytes_sent {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    let held = sent * frame.len() as u64;
    // Queue 256 KiB, send window 512 KiB, receive window 512 KiB, inbox 64 KiB, a frame in each hand.
    assert!(held <= (256 + 512 + 512 + 64 + 64) << 10, "{held} bytes are held for a peer that does not read");
    // The other lanes go on, as far as the windows of the connection allow; and reading starts everything again.
    for _ in 0..sent {
        soon(far.recv()).await.unwrap();
    }
    sender.send(Lane::Control, ping(1)).await.unwrap();
    let (lane, _) = soon(far.recv()).await.unwrap();
    assert_eq!(lane, Lane::Control);
}

#[tokio::test]
async fn a_frame_larger_than_a_bound_passes_alone() {
    let cluster = Cluster::new();
    let tiny = LinkOptions { receive_bytes: 1024, send_bytes: 1024, ..options() };
    let (_listener, mut far, near) = cluster.pair(&tiny, &tiny).await;
    let (sender, large) = (near.sender(), delta(0, 60_000));
    assert!(large.len() > 256 << 10);
    sender.try_send(Lane::Delta, large.clone()).unwrap();
    assert!(matches!(sender.try_send(Lane::Delta, large.clone()), Err(SendError::Full(_))));
    let (_, frame) = soon(far.recv()).await.unwrap();
    assert_eq!(frame.to_bytes(), large);
}

#[tokio::test]
async fn a_full_lane_tells_when_it_has_room() {
    let cluster = Cluster::new();
    let few = LinkOptions { receive_frames: 2, receive_bytes: 4 << 10, ..options() };
    let sending = LinkOptions { send_frames: 4, send_bytes: 64 << 10, ..options() };
    let (_listener, mut far, near) = cluster.pair(&few, &sending).await;
    let (sender, signal) = (near.sender(), std::sync::Arc::new(tokio::sync::Notify::new()));
    sender.signal_room(signal.clone());
    let (total, mut sent, mut taken) = (400, 0, 0);
    while taken < total {
        while sent < total && sender.has_room(Lane::Delta) {
            sender.try_send(Lane::Delta, delta(sent, 500)).expect("room was promised");
            sent += 1;
        }
        tokio::select! {
            () = signal.notified() => {}
            received = soon(far.recv()) => {
                assert_eq!(received.unwrap().1.header.base_seq, taken);
                taken += 1;
            }
        }
    }
    assert_eq!(sent, total);
}

#[tokio::test]
async fn an_orderly_end_delivers_the_control_lane_and_the_reason() {
    let cluster = Cluster::new();
    let (_listener, mut far, mut near) = cluster.pair(&options(), &options()).await;
    for id in 0..100 {
        near.sender().try_send(Lane::Control, ping(id)).unwrap();
    }
    near.sender().close("draining");
    for id in 0..100 {
        assert_eq!(soon(far.recv()).await.unwrap().1.header.new_seq, id);
    }
    match soon(far.recv()).await {
        Err(LinkError::Closed(why)) => assert_eq!(&*why, "draining"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(soon(near.recv()).await, Err(LinkError::Local)));
    assert!(matches!(near.sender().try_send(Lane::Control, ping(1)), Err(SendError::Closed(_))));
}

#[tokio::test]
async fn dropping_the_receiver_ends_the_link() {
    let cluster = Cluster::new();
    let (_listener, mut far, near) = cluster.pair(&options(), &options()).await;
    let (sender, receiver) = near.split();
    drop(receiver);
    assert!(matches!(soon(far.recv()).await, Err(LinkError::Closed(_))));
    assert!(soon(sender.send(Lane::Control, ping(1))).await.is_err());
    soon(sender.closed()).await;
}

#[tokio::test]
async fn a_closed_listener_ends_its_links() {
    let cluster = Cluster::new();
    let (mut listener, _far, mut near) = cluster.pair(&options(), &options()).await;
    soon(listener.close("shutting down")).await;
    match soon(near.recv()).await {
        Err(LinkError::Closed(why)) => assert_eq!(&*why, "shutting down"),
        other => panic!("{other:?}"),
    }
    assert!(soon(listener.accept()).await.is_none());
}

#[tokio::test]
async fn small_load_frames_go_as_datagrams_and_large_ones_by_stream() {
    let cluster = Cluster::new();
    let datagrams = LinkOptions { load_datagrams: true, ..options() };
    let (_listener, mut far, near) = cluster.pair(&options(), &datagrams).await;
    let sender = near.sender();
    let (small, large) = (ping(1), delta(2, 1000));
    sender.send(Lane::Load, small).await.unwrap();
    let (lane, frame) = soon(far.recv()).await.unwrap();
    assert_eq!((lane, frame.header.new_seq), (Lane::Load, 1));
    sender.send(Lane::Load, large).await.unwrap();
    let (lane, frame) = soon(far.recv()).await.unwrap();
    assert_eq!((lane, frame.header.base_seq), (Lane::Load, 2));
    assert_eq!(near.connection().stats().frame_tx.datagram, 1);
}

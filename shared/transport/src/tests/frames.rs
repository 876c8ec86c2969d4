//! Frames that are not: each ends the link with a typed error here and the reason there.

use bytes::Bytes;
use fairlead_wire::frame::{FrameError, Header, Kind, Stamp, max_len};
use fairlead_wire::msg::{RefuseCode, Role};

use super::{Cluster, bytes, hello, options, ping, soon};
use crate::{Lane, LinkError};

fn header(edit: impl FnOnce(&mut [u8; Header::LEN])) -> Bytes {
    let frame = ping(1);
    let mut head: [u8; Header::LEN] = frame[..Header::LEN].try_into().unwrap();
    edit(&mut head);
    Bytes::copy_from_slice(&head)
}

#[tokio::test]
async fn bad_headers_are_refused_before_their_payload_is_read() {
    let too_long = u32::try_from(max_len(Kind::Delta) + 1).unwrap();
    type Case = (&'static str, Bytes, fn(&FrameError) -> bool);
    let cases: [Case; 6] = [
        ("magic", header(|h| h[0] ^= 1), |e| matches!(e, FrameError::BadMagic(_))),
        ("version", header(|h| h[4] = 77), |e| matches!(e, FrameError::Version { theirs: 77, .. })),
        ("kind", header(|h| h[6] = 200), |e| matches!(e, FrameError::UnknownKind(200))),
        (
            "length",
            header(|h| {
                h[6..8].copy_from_slice(&(Kind::Delta as u16).to_le_bytes());
                h[8..12].copy_from_slice(&too_long.to_le_bytes());
            }),
            |e| matches!(e, FrameError::TooLong { kind: Kind::Delta, .. }),
        ),
        ("huge", header(|h| h[8..12].fill(0xff)), |e| matches!(e, FrameError::TooLong { .. })),
        ("flags", header(|h| h[12] = 1), |e| matches!(e, FrameError::Invalid { .. })),
    ];
    let cluster = Cluster::new();
    for lane in Lane::ALL {
        for (what, sent, expected) in &cases {
            let (_listener, mut far, mut near) = cluster.pair(&options(), &options()).await;
            near.sender().send(lane, sent.clone()).await.unwrap();
            match soon(far.recv()).await {
                Err(LinkError::Frame(error)) if expected(&error) => {}
                other => panic!("{what} on {lane:?}: {other:?}"),
            }
            match soon(near.recv()).await {
                Err(LinkError::Refused(refuse)) => {
                    assert_eq!(refuse.code, RefuseCode::Malformed);
                    assert!(refuse.reason.contains("bad frame"), "{}", refuse.reason);
                }
                other => panic!("{what} on {lane:?}: the sender was told {other:?}"),
            }
            assert!(matches!(soon(far.recv()).await, Err(LinkError::Frame(_))), "the error stays");
            assert!(near.sender().is_closed() && far.sender().is_closed());
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_refused() {
    let cluster = Cluster::new();
    let whole = bytes(&hello(Role::Agent, "a"), Stamp::default());
    for cut in [1, Header::LEN - 1, Header::LEN, whole.len() - 1] {
        let (_listener, mut far, mut near) = cluster.pair(&options(), &options()).await;
        near.sender().try_send_last(Lane::Snapshot, whole.slice(..cut)).unwrap();
        match soon(far.recv()).await {
            Err(LinkError::Frame(FrameError::Truncated { have, want })) => assert!(have < want),
            other => panic!("cut at {cut}: {other:?}"),
        }
        assert!(matches!(soon(near.recv()).await, Err(LinkError::Refused(_))), "cut at {cut}");
    }
}

/// A frame whose header is in order passes the transport; its reader finds out and refuses.
#[tokio::test]
async fn a_reader_refuses_a_payload_with_its_own_words() {
    let cluster = Cluster::new();
    let (_listener, mut far, mut near) = cluster.pair(&options(), &options()).await;
    let mut tampered = bytes(&hello(Role::Agent, "a"), Stamp::default()).to_vec();
    tampered[Header::LEN..].fill(0xff);
    near.sender().send(Lane::Control, tampered.into()).await.unwrap();
    let (lane, frame) = soon(far.recv()).await.unwrap();
    assert_eq!(lane, Lane::Control);
    let why = frame.message().unwrap_err();
    // However much is queued, the refusal overtakes it.
    for id in 0..200 {
        let _ = far.sender().try_send(Lane::Control, ping(id));
    }
    far.sender().refuse(RefuseCode::Malformed, &why.to_string());
    let refuse = loop {
        match soon(near.recv()).await {
            Ok(_) => {}
            Err(LinkError::Refused(refuse)) => break refuse,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!((refuse.code, refuse.reason.as_str()), (RefuseCode::Malformed, why.to_string().as_str()));
}

#[tokio::test]
async fn a_stream_of_no_known_lane_is_refused() {
    let cluster = Cluster::new();
    let (_listener, mut far, near) = cluster.pair(&options(), &options()).await;
    let mut stream = near.connection().open_uni().await.unwrap();
    stream.write_all(&[9]).await.unwrap();
    match soon(far.recv()).await {
        Err(LinkError::Protocol(why)) => assert!(why.contains("lane 9"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_long_reason_is_cut_not_lost() {
    let cluster = Cluster::new();
    let (_listener, far, mut near) = cluster.pair(&options(), &options()).await;
    far.sender().refuse(RefuseCode::Invalid, &"ä".repeat(5000));
    match soon(near.recv()).await {
        Err(LinkError::Refused(refuse)) => {
            assert_eq!(refuse.code, RefuseCode::Invalid);
            assert!(refuse.reason.starts_with('ä'), "{}", refuse.reason);
        }
        other => panic!("{other:?}"),
    }
}

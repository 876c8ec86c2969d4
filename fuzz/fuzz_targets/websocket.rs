//! WebSocket frames: no bytes make their readers panic, stand still or hold more than allowed; what is found does not
//! depend on the split.
#![no_main]

use bytes::BytesMut;
use fairlead_dataplane::http::websocket::{FirstMessage, Frames, Taken};
use libfuzzer_sys::fuzz_target;

const MAX: usize = 1000;

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    let step = usize::from(step) + 1;
    let whole = follow(bytes, bytes.len().max(1));
    assert_eq!(whole, follow(bytes, step));
    assert_eq!(first(bytes, bytes.len().max(1)), first(bytes, step));
});

fn follow(bytes: &[u8], step: usize) -> (bool, bool) {
    let mut frames = Frames::default();
    bytes.chunks(step).for_each(|piece| frames.track(piece));
    (frames.between(), frames.closed())
}

/// What the first message is, and what was answered meanwhile.
fn first(bytes: &[u8], step: usize) -> (Taken, Vec<u8>, Vec<u8>) {
    let (mut message, mut sent, mut buf) = (FirstMessage::new(MAX), Vec::new(), BytesMut::new());
    let mut pieces = bytes.chunks(step);
    let end = loop {
        match message.take(&mut buf) {
            Taken::Nothing => match pieces.next() {
                Some(piece) => buf.extend_from_slice(piece),
                None => break Taken::Nothing,
            },
            Taken::Reply(pong) => sent.extend(pong),
            end => break end,
        }
    };
    let payload = message.payload().to_vec();
    assert!(payload.len() <= MAX && message.into_frames().len() <= MAX);
    (end, sent, payload)
}

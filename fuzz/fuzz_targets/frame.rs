//! Frames from a peer: whatever the bytes, an error or a message that could be sent again, never a panic.
#![no_main]

use fairlead_wire::{Frame, Header, Kind, Stamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(frame) = Frame::from_bytes(data) {
        check(&frame);
    }
    // The same bytes as the payload of every kind, so that the fuzzer need not guess a header.
    for &kind in Kind::ALL {
        let header = Header {
            kind,
            length: data.len() as u32,
            flags: 0,
            epoch: 1,
            base_seq: 0,
            new_seq: 0,
            created_us: 0,
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(data);
        if let Ok(frame) = Frame::from_bytes(&bytes) {
            check(&frame);
        }
    }
});

fn check(frame: &Frame) {
    if let Ok(message) = frame.message() {
        let again = message.encode(Stamp::default()).expect("a message that was accepted can be sent");
        let back = again.message().expect("and accepted again");
        // Floats are checked to be numbers, so equality is reflexive.
        assert_eq!(back, message);
    }
}

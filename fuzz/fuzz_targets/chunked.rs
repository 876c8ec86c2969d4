//! Chunked bodies: no bytes make the decoder panic or stand still; payload, end and error do not depend on the split;
//! a stream broken off anywhere can be completed into a well-formed one.
#![no_main]

use fairlead_dataplane::http::{BodyError, BodyReader, Framing, LAST_CHUNK};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    let step = usize::from(step) + 1;
    let whole = decode(bytes, bytes.len().max(1));
    assert_eq!(whole, decode(bytes, step));

    let cut = step.min(bytes.len());
    let mut reader = BodyReader::new(Framing::Chunked);
    let Ok(used) = reader.track(&bytes[..cut]) else { return };
    let mut sent = bytes[..used].to_vec();
    let payload = b"data: error\n\n";
    if reader.chunked_mut().is_some_and(|decoder| decoder.inject(payload, b'\n', &mut sent)) {
        sent.extend_from_slice(LAST_CHUNK);
        let Ok((data, consumed, done)) = decode(&sent, sent.len()) else {
            panic!("completed stream is broken")
        };
        assert!(done && consumed == sent.len());
        assert!(data.windows(payload.len()).any(|w| w == payload));
    }
});

fn decode(bytes: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), BodyError> {
    let mut reader = BodyReader::new(Framing::Chunked);
    let (mut payload, mut pos) = (Vec::new(), 0);
    for piece in bytes.chunks(step) {
        let end = (pos + piece.len()).min(bytes.len());
        while pos < end && !reader.is_done() {
            let step = reader.step(&bytes[pos..end])?;
            assert!(step.consumed > 0 && step.payload.end <= step.consumed);
            payload.extend_from_slice(&bytes[pos..end][step.payload]);
            pos += step.consumed;
        }
    }
    Ok((payload, pos, reader.is_done()))
}

//! Chunked bodies, other framings, and completing a broken stream.

use super::super::*;

/// Payload, bytes that belong to the body, and whether it was complete.
pub(super) fn decode(framing: Framing, bytes: &[u8]) -> Result<(Vec<u8>, usize, bool), BodyError> {
    let mut reader = BodyReader::new(framing);
    let mut payload = Vec::new();
    let mut pos = 0;
    while pos < bytes.len() && !reader.is_done() {
        let rest = &bytes[pos..];
        let step = reader.step(rest)?;
        assert!(step.consumed > 0, "no progress");
        assert!(step.payload.end <= step.consumed);
        payload.extend_from_slice(&rest[step.payload]);
        pos += step.consumed;
    }
    Ok((payload, pos, reader.is_done()))
}

#[test]
fn bodies_end_where_they_should() {
    type Case = (Framing, &'static [u8], &'static [u8], usize, bool);
    let cases: &[Case] = &[
        (Framing::None, b"next", b"", 0, true),
        (Framing::Length(0), b"next", b"", 0, true),
        (Framing::Length(3), b"abcnext", b"abc", 3, true),
        (Framing::Length(9), b"abc", b"abc", 3, false),
        (Framing::UntilClose, b"abc", b"abc", 3, false),
        (Framing::Chunked, b"0\r\n\r\nnext", b"", 5, true),
        (Framing::Chunked, b"3\r\nabc\r\n0\r\n\r\nnext", b"abc", 13, true),
        (Framing::Chunked, b"1\r\na\r\n2\r\nbc\r\n000\r\n\r\n", b"abc", 20, true),
        (Framing::Chunked, b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", 20, true),
        (Framing::Chunked, b"a;n=v;q=\"x y\"\r\n0123456789\r\n0;last\r\n\r\n", b"0123456789", 37, true),
        (Framing::Chunked, b"1\r\na\r\n0\r\nT: v\r\nU:\r\n\r\nnext", b"a", 21, true),
        (Framing::Chunked, b"0000000000000001\r\na\r\n0\r\n\r\n", b"a", 26, true),
        (Framing::Chunked, b"3\r\nab", b"ab", 5, false),
    ];
    for (framing, bytes, payload, consumed, done) in cases {
        let wanted = Ok((payload.to_vec(), *consumed, *done));
        assert_eq!(decode(*framing, bytes), wanted, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn broken_chunks_are_refused() {
    use BodyError as E;
    let long_extension = format!("1;{}\r\n", "x".repeat(300));
    let long_trailer = format!("0\r\nT: {}\r\n", "x".repeat(9000));
    let many_trailers = format!("0\r\n{}", "T: v\r\n".repeat(2000));
    let cases: &[(&str, &[u8], E)] = &[
        ("empty size", b"\r\n", E::ChunkSize),
        ("no digits before extension", b";x\r\n", E::ChunkSize),
        ("not hexadecimal", b"g\r\n", E::ChunkSize),
        ("plus sign", b"+1\r\n", E::ChunkSize),
        ("minus sign", b"-1\r\n", E::ChunkSize),
        ("0x", b"0x1\r\na\r\n", E::ChunkSize),
        ("space before", b" 1\r\n", E::ChunkSize),
        ("space behind", b"1 \r\n", E::ChunkSize),
        ("underscore", b"1_0\r\n", E::ChunkSize),
        ("bare LF behind size", b"1\na\r\n", E::ChunkSize),
        ("bare CR behind size", b"1\ra\r\n", E::ChunkFraming),
        ("seventeen digits", b"00000000000000001\r\n", E::ChunkTooLarge),
        ("NUL in extension", b"1;a\0\r\n", E::ChunkFraming),
        ("bare LF in extension", b"1;a\nb\r\n", E::ChunkFraming),
        ("bare CR in extension", b"1;a\rb\r\n", E::ChunkFraming),
        ("long extension", long_extension.as_bytes(), E::ChunkLine),
        ("data longer than announced", b"1\r\nab\r\n", E::ChunkFraming),
        ("bare LF behind data", b"1\r\na\n0\r\n\r\n", E::ChunkFraming),
        ("bare CR behind data", b"1\r\na\r0", E::ChunkFraming),
        ("bare LF at the end", b"0\r\n\n", E::Trailer),
        ("bare CR at the end", b"0\r\n\rx", E::ChunkFraming),
        ("folded trailer", b"0\r\nT: v\r\n w\r\n\r\n", E::Trailer),
        ("trailer without colon", b"0\r\nabc\r\n\r\n", E::Trailer),
        ("trailer without name", b"0\r\n: v\r\n\r\n", E::Trailer),
        ("space before the trailer's colon", b"0\r\nT : v\r\n\r\n", E::Trailer),
        ("NUL in trailer", b"0\r\nT: \0\r\n\r\n", E::Trailer),
        ("bare LF in trailer", b"0\r\nT: v\n\r\n", E::Trailer),
        ("long trailer", long_trailer.as_bytes(), E::TrailersTooLong),
        ("many trailers", many_trailers.as_bytes(), E::TrailersTooLong),
    ];
    for (name, bytes, wanted) in cases {
        assert_eq!(decode(Framing::Chunked, bytes), Err(*wanted), "{name}");
    }
}

#[test]
fn framing_that_outweighs_the_data_is_refused() {
    let tiny = b"1\r\na\r\n".repeat(100_000);
    assert_eq!(decode(Framing::Chunked, &tiny).map(|d| d.0.len()), Ok(100_000));
    let bloated = format!("1;{}\r\na\r\n", "x".repeat(200)).into_bytes().repeat(1000);
    assert_eq!(decode(Framing::Chunked, &bloated), Err(BodyError::ChunkOverhead));
}

#[test]
fn the_end_of_the_connection_ends_some_bodies_only() {
    let ends = |framing, bytes: &[u8]| {
        let mut reader = BodyReader::new(framing);
        reader.track(bytes).unwrap();
        reader.end_of_input()
    };
    assert_eq!(ends(Framing::UntilClose, b"abc"), Ok(()));
    assert_eq!(ends(Framing::None, b""), Ok(()));
    assert_eq!(ends(Framing::Length(3), b"abc"), Ok(()));
    assert_eq!(ends(Framing::Length(4), b"abc"), Err(BodyError::Truncated));
    assert_eq!(ends(Framing::Chunked, b"0\r\n\r\n"), Ok(()));
    assert_eq!(ends(Framing::Chunked, b"0\r\n\r"), Err(BodyError::Truncated));
    assert_eq!(ends(Framing::Chunked, b""), Err(BodyError::Truncated));
}

#[test]
fn announced_is_what_a_chunk_still_owes() {
    for (bytes, announced) in [
        (&b"1"[..], 0),
        (b"10;a", 0),
        (b"10\r\n", 16),
        (b"10\r\nabc", 13),
        (b"3\r\nabc", 0),
        (b"3\r\nabc\r\n0\r\n", 0),
        (b"FFFFFFFFFFFFFFFF\r\n", u64::MAX),
    ] {
        let mut reader = BodyReader::new(Framing::Chunked);
        reader.track(bytes).unwrap();
        assert_eq!(reader.announced(), announced, "{bytes:?}");
    }
    let mut reader = BodyReader::new(Framing::Length(5));
    reader.track(b"abc").unwrap();
    assert_eq!(reader.announced(), 2);
}

#[test]
fn chunks_are_written() {
    let mut out = Vec::new();
    for data in [&b""[..], b"abc", &[b'x'; 31]] {
        write_chunk(data, &mut out);
    }
    out.extend_from_slice(LAST_CHUNK);
    assert!(out.starts_with(b"3\r\nabc\r\n1f\r\nxxx"));
    assert_eq!(decode(Framing::Chunked, &out).unwrap().0.len(), 34);
    let mut size = Vec::new();
    write_chunk_size(u64::MAX, &mut size);
    assert_eq!(size, b"ffffffffffffffff\r\n");
}

#[test]
fn a_stream_broken_anywhere_can_be_completed() {
    let stream = b"5\r\nhello\r\n1a;ext=1\r\nabcdefghijklmnopqrstuvwxyz\r\n003\r\nend\r\n0\r\nT: v\r\n\r\n";
    let last_chunk = stream.len() - b"\r\nT: v\r\n\r\n".len();
    for payload in [&b"E"[..], b"error event\n\n", &[b'e'; 300]] {
        for cut in 0..=stream.len() {
            let mut reader = BodyReader::new(Framing::Chunked);
            reader.track(&stream[..cut]).unwrap();
            let mut sent = stream[..cut].to_vec();
            let before = sent.len();
            let injected = reader.chunked_mut().is_some_and(|d| d.inject(payload, b'\n', &mut sent));
            assert_eq!(injected, cut <= last_chunk, "cut at {cut}");
            if !injected {
                assert_eq!(sent.len(), before);
                continue;
            }
            // The reader has to agree that it stands at a chunk border again.
            assert!(!reader.is_done());
            reader.track(LAST_CHUNK).unwrap();
            assert!(reader.is_done());
            sent.extend_from_slice(LAST_CHUNK);
            let (got, consumed, done) = decode(Framing::Chunked, &sent).unwrap();
            assert!(done && consumed == sent.len(), "cut at {cut}");
            let mut before = BodyReader::new(Framing::Chunked);
            let mut wanted = Vec::new();
            let mut pos = 0;
            while pos < cut {
                let step = before.step(&stream[pos..cut]).unwrap();
                wanted.extend_from_slice(&stream[pos..][step.payload]);
                pos += step.consumed;
            }
            wanted.extend_from_slice(payload);
            let (data, filler) = got.split_at(wanted.len());
            assert_eq!(data, wanted, "cut at {cut}");
            assert!(filler.iter().all(|b| *b == b'\n'));
        }
    }
}

#[test]
fn a_stream_that_turns_into_nonsense_can_be_completed() {
    let stream = b"5;a=b\r\nhello\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n003\r\nend\r\n";
    for at in 0..stream.len() {
        for wrong in [b'X', b'\n', b'\r', 0] {
            let mut broken = stream.to_vec();
            broken[at] = wrong;
            let mut reader = BodyReader::new(Framing::Chunked);
            // What the steps before the fault have consumed was forwarded.
            let mut sent = Vec::new();
            let failed = loop {
                match reader.step(&broken[sent.len()..]) {
                    Ok(step) => sent.extend_from_slice(&broken[sent.len()..][..step.consumed]),
                    Err(_) => break true,
                }
                if sent.len() == broken.len() {
                    break false;
                }
            };
            if failed && reader.chunked_mut().is_some_and(|d| d.inject(b"error", b'\n', &mut sent)) {
                sent.extend_from_slice(LAST_CHUNK);
                let (got, consumed, done) = decode(Framing::Chunked, &sent).unwrap();
                assert!(done && consumed == sent.len(), "{wrong} at {at}");
                assert!(got.windows(5).any(|part| part == b"error"), "{wrong} at {at}");
            }
        }
    }
}

#[test]
fn a_chunk_too_large_to_fill_is_given_up() {
    let mut decoder = ChunkedDecoder::new();
    decoder.step(b"ffffff\r\nabc").unwrap();
    decoder.step(b"abc").unwrap();
    let mut out = Vec::new();
    assert!(!decoder.inject(b"error", b'\n', &mut out));
    assert!(out.is_empty());
    let mut zeros = ChunkedDecoder::new();
    zeros.step(b"0000000000000000").unwrap();
    assert!(!zeros.inject(b"error", b'\n', &mut out));
    assert!(out.is_empty());
}

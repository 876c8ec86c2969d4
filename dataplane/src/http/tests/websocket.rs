//! WebSocket: handshakes, frames, the first message.

use bytes::BytesMut;

use crate::http::websocket::{
    Close, FirstMessage, FrameHead, Frames, Handshake, HandshakeError, Taken, accept_key, close_frame,
    switching,
};
use crate::http::{HeadLimits, Parsed, RequestHead};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn head(lines: &str, method: &str) -> (RequestHead, Vec<u8>) {
    let bytes = format!("{method} /v1/realtime HTTP/1.1\r\nHost: x\r\n{lines}\r\n").into_bytes();
    let mut head = RequestHead::new();
    assert_eq!(head.parse(&bytes, &HeadLimits::default()), Parsed::Done(bytes.len()), "{lines:?}");
    (head, bytes)
}

#[test]
fn the_key_of_the_standard() {
    // RFC 6455, 1.3.
    assert_eq!(accept_key(KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn who_asks_for_a_websocket() {
    let table = [
        ("GET", "Connection: Upgrade\r\nUpgrade: websocket\r\n", true),
        ("GET", "Connection: keep-alive, upgrade\r\nUpgrade: h2c, WebSocket\r\n", true),
        ("GET", "Connection: Upgrade\r\nUpgrade: h2c\r\n", false),
        ("GET", "Upgrade: websocket\r\n", false),
        ("GET", "Connection: Upgrade\r\n", false),
        ("POST", "Connection: Upgrade\r\nUpgrade: websocket\r\n", false),
    ];
    for (method, lines, want) in table {
        let (head, bytes) = head(lines, method);
        assert_eq!(head.asks_websocket(&bytes), want, "{method} {lines:?}");
    }
}

#[test]
fn handshakes() {
    let bad = |what| Err(HandshakeError::Bad(what));
    let one_key = "a WebSocket handshake has one Sec-WebSocket-Key";
    let (version, key) = ("Sec-WebSocket-Version: 13\r\n", format!("Sec-WebSocket-Key: {KEY}\r\n"));
    let table = [
        (format!("{version}{key}"), Ok(None)),
        (
            format!("{version}{key}Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.x\r\n"),
            Ok(Some("realtime")),
        ),
        (format!("{version}{key}Sec-WebSocket-Protocol: ,\r\n"), Ok(None)),
        (
            format!("{version}{key}Sec-WebSocket-Protocol: a b\r\n"),
            bad("Sec-WebSocket-Protocol is not a list of names"),
        ),
        (format!("{version}{key}Content-Length: 0\r\n"), Ok(None)),
        (format!("{version}{key}Content-Length: 1\r\n"), bad("a WebSocket handshake has no body")),
        (version.to_owned(), bad(one_key)),
        (format!("{version}{key}{key}"), bad(one_key)),
        (
            format!("{version}Sec-WebSocket-Key: short\r\n"),
            bad("Sec-WebSocket-Key is not 16 bytes in base64"),
        ),
        (key.clone(), Err(HandshakeError::Version)),
        (format!("{key}Sec-WebSocket-Version: 8\r\n"), Err(HandshakeError::Version)),
        (format!("{key}{version}Sec-WebSocket-Version: 8\r\n"), Err(HandshakeError::Version)),
    ];
    for (lines, want) in table {
        let (head, bytes) = head(&lines, "GET");
        assert_eq!(head.websocket(&bytes).map(|handshake| handshake.protocol), want, "{lines:?}");
    }
}

#[test]
fn our_own_answer() {
    let handshake = Handshake { key: KEY, protocol: Some("realtime") };
    let text = String::from_utf8(switching(&handshake, "r-1")).unwrap();
    assert!(text.starts_with("HTTP/1.1 101 Switching Protocols\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    for line in [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        "Sec-WebSocket-Protocol: realtime",
        "x-request-id: r-1",
    ] {
        assert!(text.split("\r\n").any(|have| have == line), "{line} is not in {text}");
    }
    assert!(
        !String::from_utf8(switching(&Handshake { protocol: None, ..handshake }, "r"))
            .unwrap()
            .contains("Protocol:")
    );
}

/// A frame with its payload.
fn frame(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let bit = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        short @ 0..126 => out.push(bit | short as u8),
        middle @ 126..65536 => {
            out.push(bit | 126);
            out.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            out.push(bit | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask.unwrap_or_default()[..if mask.is_some() { 4 } else { 0 }]);
    let mask = mask.unwrap_or_default();
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

const MASK: Option<[u8; 4]> = Some([1, 2, 3, 4]);

#[test]
fn heads_of_frames() {
    for (payload, mask, head) in
        [(0, None, 2), (125, None, 2), (126, None, 4), (65535, MASK, 8), (65536, None, 10), (65536, MASK, 14)]
    {
        let bytes = frame(0x81, mask, &vec![7; payload]);
        let want = FrameHead { fin: true, reserved: 0, opcode: 1, mask, length: payload as u64, head };
        assert_eq!(FrameHead::parse(&bytes), Some(want));
        for cut in 0..head {
            assert_eq!(FrameHead::parse(&bytes[..cut]), None, "{payload} cut at {cut}");
        }
    }
    let reserved = FrameHead::parse(&[0x4a, 0]).unwrap();
    assert_eq!(
        (reserved.fin, reserved.reserved, reserved.opcode, reserved.is_control()),
        (false, 4, 10, true)
    );
}

#[test]
fn frames_are_followed_however_they_are_cut() {
    let mut stream = Vec::new();
    let mut ends = vec![0];
    for (first, mask, payload) in
        [(0x01, MASK, 3), (0x89, None, 0), (0x80, MASK, 300), (0x82, None, 70_000), (0x88, None, 2)]
    {
        stream.extend(frame(first, mask, &vec![9; payload]));
        ends.push(stream.len());
    }
    let cuts = (0..400).chain((400..stream.len()).step_by(997)).chain(stream.len() - 5..=stream.len());
    for cut in cuts {
        let mut frames = Frames::default();
        frames.track(&stream[..cut]);
        assert_eq!(frames.between(), ends.contains(&cut), "cut at {cut}");
        assert_eq!(frames.closed(), cut == stream.len());
        frames.track(&stream[cut..]);
        assert!(frames.between() && frames.closed());
    }
    let mut frames = Frames::default();
    for byte in &stream {
        frames.track(std::slice::from_ref(byte));
    }
    assert!(frames.closed());
    // The longest length that can be written is no reason to fall over.
    let mut frames = Frames::default();
    frames.track(&[0x82, 127, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
    assert!(!frames.between() && !frames.closed());
}

#[test]
fn close_frames() {
    assert_eq!(close_frame(Close::GoingAway, "bye"), b"\x88\x05\x03\xe9bye");
    let long = close_frame(Close::Internal, &"\u{e9}".repeat(100));
    assert_eq!((long[1], long.len()), (2 + 122, 2 + 2 + 122), "cut between characters");
    assert!(std::str::from_utf8(&long[4..]).is_ok());
}

/// What a first message comes to, and what was sent to the client meanwhile; `cut` bytes come first.
fn first(stream: &[u8], cut: usize, max: usize) -> (Taken, Vec<u8>, FirstMessage, BytesMut) {
    let (mut message, mut sent) = (FirstMessage::new(max), Vec::new());
    let mut buf = BytesMut::from(&stream[..cut]);
    let mut rest = Some(&stream[cut..]);
    loop {
        match message.take(&mut buf) {
            Taken::Nothing => match rest.take() {
                Some(more) => buf.extend_from_slice(more),
                None => return (Taken::Nothing, sent, message, buf),
            },
            Taken::Reply(pong) => sent.extend(pong),
            taken => return (taken, sent, message, buf),
        }
    }
}

#[test]
fn a_first_message_is_put_together() {
    let mut stream = frame(0x8a, MASK, b"unasked");
    let (start, middle) = (frame(0x01, MASK, b"{\"model\""), frame(0x00, MASK, b": "));
    let end = frame(0x80, Some([9, 8, 7, 6]), b"\"m\"}");
    let ping = frame(0x89, MASK, b"?");
    let raw = [&start[..], &middle, &end].concat();
    for part in [&start, &ping, &middle, &ping, &end] {
        stream.extend_from_slice(part);
    }
    let whole = stream.len();
    stream.extend(frame(0x81, MASK, b"the second"));
    for cut in 0..=stream.len() {
        let (taken, sent, message, mut buf) = first(&stream, cut, 1000);
        assert_eq!((taken, &*sent), (Taken::Message(true), &b"\x8a\x01?\x8a\x01?"[..]), "cut at {cut}");
        assert_eq!(message.payload(), b"{\"model\": \"m\"}");
        assert_eq!(
            message.into_frames(),
            raw,
            "the engine gets them as they came, without what was answered"
        );
        // What followed stays.
        buf.extend_from_slice(&stream[cut.max(whole.min(cut))..]);
        assert!(buf.ends_with(&stream[whole..]) || cut < whole);
    }
}

#[test]
fn what_is_no_first_message() {
    let refused = |code, what| Taken::Refuse(code, what);
    let long = frame(0x81, MASK, &[b'x'; 200]);
    let table: [(Vec<u8>, Taken); 14] = [
        (frame(0x82, MASK, b"x"), Taken::Message(false)),
        (frame(0x88, MASK, b"\x03\xe8bye"), Taken::Closed(b"\x88\x02\x03\xe8".to_vec())),
        (frame(0x88, MASK, b""), Taken::Closed(b"\x88\x00".to_vec())),
        (frame(0x81, None, b"x"), refused(Close::Protocol, "a client's frames are masked")),
        (frame(0xc1, MASK, b"x"), refused(Close::Protocol, "a frame of an extension that was not agreed on")),
        (frame(0x83, MASK, b"x"), refused(Close::Protocol, "a frame of an unknown kind")),
        (frame(0x8b, MASK, b"x"), refused(Close::Protocol, "a frame of an unknown kind")),
        (frame(0x80, MASK, b"x"), refused(Close::Protocol, "the continuation of nothing")),
        (
            [frame(0x01, MASK, b"x"), frame(0x81, MASK, b"x")].concat(),
            refused(Close::Protocol, "a message within another"),
        ),
        (frame(0x09, MASK, b"x"), refused(Close::Protocol, "a control frame too long")),
        (frame(0x89, MASK, &[0; 126]), refused(Close::Protocol, "a control frame too long")),
        // Refused by what it announces.
        (long[..8].to_vec(), refused(Close::TooBig, "the first message is too big")),
        (frame(0x01, MASK, b"").repeat(40), refused(Close::Protocol, "a message within another")),
        (
            [frame(0x01, MASK, b""), frame(0x00, MASK, b"").repeat(40)].concat(),
            refused(Close::TooBig, "the first message is too big"),
        ),
    ];
    for (stream, want) in table {
        let (taken, ..) = first(&stream, 0, 150);
        assert_eq!(taken, want, "{stream:x?}");
    }
}

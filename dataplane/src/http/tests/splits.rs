//! Properties: however the bytes are split, the outcome is the same; and no bytes make the codec panic.

use proptest::prelude::*;

use super::super::*;

/// Feeds growing prefixes of `bytes`, cut at `cuts`, and gives the first answer that is not "more".
fn in_pieces(bytes: &[u8], cuts: &[usize], mut parse: impl FnMut(&[u8]) -> Parsed) -> Parsed {
    let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(bytes.len());
    for cut in cuts {
        match parse(&bytes[..cut]) {
            Parsed::NeedMore => {}
            answer => return answer,
        }
    }
    Parsed::NeedMore
}

/// Decodes `bytes` given in pieces. Errors lose what came before them.
fn decode_in_pieces(
    framing: Framing,
    bytes: &[u8],
    cuts: &[usize],
) -> Result<(Vec<u8>, usize, bool), BodyError> {
    let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(bytes.len());
    let mut reader = BodyReader::new(framing);
    let (mut payload, mut pos) = (Vec::new(), 0);
    for cut in cuts {
        while pos < cut && !reader.is_done() {
            let step = reader.step(&bytes[pos..cut])?;
            payload.extend_from_slice(&bytes[pos..cut][step.payload]);
            pos += step.consumed;
        }
    }
    Ok((payload, pos, reader.is_done()))
}

/// Pieces from which request heads, good and bad, are put together.
fn request_text() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /v1/chat/completions?a=b HTTP/1.1\r\n",
        "GET http://h/x HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "BREW / HTTP/1.1\r\n",
        "GET / HTTP/2.0\r\n",
        "GET / FTP/1.0\r\n",
        "\r\nGET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\n",
    ]);
    let field = prop::sample::select(vec![
        "Host: h\r\n",
        "Host: h\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 50\r\n",
        "Content-Length: x\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Connection: close, x-a\r\n",
        "X-A: b\r\n",
        "X-Override-Rid: b\r\n",
        "X-Request-Id: abc\r\n",
        "Expect: 100-continue\r\n",
        "X-B: c\n",
        " folded\r\n",
        "Bad : x\r\n",
        "X-C: \u{e9}\r\n",
        "X-D: \0\r\n",
    ]);
    let end = prop::sample::select(vec!["\r\n", "\r\n", "\r\nGET / HTTP/1.1\r\n", "\n", ""]);
    (line, prop::collection::vec(field, 0..8), end)
        .prop_map(|(line, fields, end)| [line, &fields.concat(), end].concat().into_bytes())
}

fn response_text() -> impl Strategy<Value = Vec<u8>> {
    let part = prop::sample::select(vec![
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 503\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Content-Type: text/event-stream\r\n",
        "Bad : x\r\n",
        "A: b\n",
        "\r\n",
        "\r\n",
    ]);
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat().into_bytes())
}

fn chunked_text() -> impl Strategy<Value = Vec<u8>> {
    let part = prop::sample::select(vec![
        "3\r\nabc\r\n",
        "1;x=y\r\nz\r\n",
        "0a\r\n0123456789\r\n",
        "0\r\n\r\n",
        "0\r\nT: v\r\n\r\n",
        "next",
        "3\r\nab",
        "\n",
        "g\r\n",
    ]);
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat().into_bytes())
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0usize..2000, 0..12)
}

fn plan() -> UpstreamHead<'static> {
    UpstreamHead {
        base_path: "/v1",
        host: "e",
        request_id: RequestIdRule::KeepOr("g"),
        body: OutgoingBody::Chunked,
        plain: false,
        add: &[],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn request_heads_do_not_depend_on_the_split(bytes in request_text(), cuts in cuts()) {
        let limits = HeadLimits::default();
        let mut whole = RequestHead::new();
        let wanted = whole.parse(&bytes, &limits);
        let mut split = RequestHead::new();
        prop_assert_eq!(in_pieces(&bytes, &cuts, |b| split.parse(b, &limits)), wanted);
        if let Parsed::Done(_) = wanted {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            whole.write_upstream(&bytes, &plan(), &mut a);
            split.write_upstream(&bytes, &plan(), &mut b);
            prop_assert_eq!(&a, &b);
            prop_assert_eq!(whole.framing(), split.framing());
            // What we send is itself acceptable, and says the same.
            let mut again = RequestHead::new();
            prop_assert_eq!(again.parse(&a, &limits), Parsed::Done(a.len()));
            prop_assert_eq!(again.framing(), Framing::Chunked);
            let mut c = Vec::new();
            again.write_upstream(&a, &plan(), &mut c);
            let mut d = RequestHead::new();
            prop_assert_eq!(d.parse(&c, &limits), Parsed::Done(c.len()));
        }
    }

    #[test]
    fn a_used_head_is_as_good_as_a_new_one(first in request_text(), second in request_text()) {
        let limits = HeadLimits::default();
        let mut used = RequestHead::new();
        used.parse(&first, &limits);
        used.reset();
        let mut fresh = RequestHead::new();
        prop_assert_eq!(used.parse(&second, &limits), fresh.parse(&second, &limits));
        prop_assert_eq!(used.framing(), fresh.framing());
        prop_assert_eq!(used.keep_alive(), fresh.keep_alive());
        prop_assert_eq!(used.request_id(&second), fresh.request_id(&second));
    }

    #[test]
    fn limits_do_not_depend_on_the_split(bytes in request_text(), cuts in cuts(), max_bytes in 1usize..200, max_fields in 0usize..6) {
        let limits = HeadLimits { max_bytes, max_fields };
        let wanted = RequestHead::new().parse(&bytes, &limits);
        let mut split = RequestHead::new();
        prop_assert_eq!(in_pieces(&bytes, &cuts, |b| split.parse(b, &limits)), wanted);
    }

    #[test]
    fn response_heads_do_not_depend_on_the_split(bytes in response_text(), cuts in cuts(), to_head: bool) {
        let limits = HeadLimits::default();
        let mut whole = ResponseHead::new();
        let wanted = whole.parse(&bytes, to_head, &limits);
        let mut split = ResponseHead::new();
        prop_assert_eq!(in_pieces(&bytes, &cuts, |b| split.parse(b, to_head, &limits)), wanted);
        if let Parsed::Done(_) = wanted {
            let client = ClientHead { version: Version::Http11, keep_alive: true, own_id: false, add: &[] };
            let (mut a, mut b) = (Vec::new(), Vec::new());
            prop_assert_eq!(whole.write_client(&bytes, &client, &mut a), split.write_client(&bytes, &client, &mut b));
            prop_assert_eq!(&a, &b);
            prop_assert!(matches!(ResponseHead::new().parse(&a, to_head, &limits), Parsed::Done(n) if n == a.len()));
        }
    }

    #[test]
    fn chunked_bodies_do_not_depend_on_the_split(bytes in chunked_text(), cuts in cuts()) {
        let whole = decode_in_pieces(Framing::Chunked, &bytes, &[]);
        prop_assert_eq!(decode_in_pieces(Framing::Chunked, &bytes, &cuts), whole);
    }

    #[test]
    fn lengths_do_not_depend_on_the_split(bytes in prop::collection::vec(any::<u8>(), 0..100), length in 0u64..120, cuts in cuts()) {
        let whole = decode_in_pieces(Framing::Length(length), &bytes, &[]);
        prop_assert_eq!(decode_in_pieces(Framing::Length(length), &bytes, &cuts), whole);
    }

    #[test]
    fn what_was_chunked_comes_back(data in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..10), cuts in cuts()) {
        let mut bytes = Vec::new();
        for piece in &data {
            write_chunk(piece, &mut bytes);
        }
        bytes.extend_from_slice(LAST_CHUNK);
        let len = bytes.len();
        bytes.extend_from_slice(b"GET /");
        prop_assert_eq!(decode_in_pieces(Framing::Chunked, &bytes, &cuts), Ok((data.concat(), len, true)));
    }

    #[test]
    fn no_bytes_make_the_codec_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in cuts()) {
        let limits = HeadLimits::default();
        let mut request = RequestHead::new();
        in_pieces(&bytes, &cuts, |b| request.parse(b, &limits));
        let mut response = ResponseHead::new();
        in_pieces(&bytes, &cuts, |b| response.parse(b, false, &limits));
        let _ = decode_in_pieces(Framing::Chunked, &bytes, &cuts);
    }

    #[test]
    fn a_stream_completed_after_any_bytes_is_well_formed(bytes in chunked_text(), cut in 0usize..100, payload in prop::collection::vec(any::<u8>(), 1..40)) {
        let bytes = &bytes[..cut.min(bytes.len())];
        let mut reader = BodyReader::new(Framing::Chunked);
        let Ok(used) = reader.track(bytes) else { return Ok(()) };
        let mut sent = bytes[..used].to_vec();
        let injected = reader.chunked_mut().is_some_and(|d| d.inject(&payload, b' ', &mut sent));
        if injected {
            sent.extend_from_slice(LAST_CHUNK);
            let (data, consumed, done) = decode_in_pieces(Framing::Chunked, &sent, &[]).unwrap();
            prop_assert!(done && consumed == sent.len());
            prop_assert!(data.windows(payload.len()).any(|w| w == payload.as_slice()));
        }
    }
}

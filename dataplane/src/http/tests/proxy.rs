//! The PROXY protocol.

use crate::http::proxy::{Proxied, parse};

/// A header of version 2.
fn v2(command: u8, family: u8, told: &[u8]) -> Vec<u8> {
    let mut out = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    out.extend([command, family]);
    out.extend((told.len() as u16).to_be_bytes());
    out.extend(told);
    out
}

#[test]
fn headers_of_both_versions() {
    let four = [1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x01, 0, 80];
    let mut six = [0u8; 36];
    six[15] = 1;
    six[33] = 9;
    let more = [&four[..], &[4, 0, 1, 0]].concat();
    let good: Vec<(Vec<u8>, Option<&str>)> = vec![
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 4097 80\r\n".to_vec(), Some("1.2.3.4:4097")),
        (b"PROXY TCP6 ::1 fe80::2 9 80\r\n".to_vec(), Some("[::1]:9")),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN ff ff 1 2\r\n".to_vec(), None),
        (v2(0x21, 0x11, &four), Some("1.2.3.4:4097")),
        (v2(0x21, 0x11, &more), Some("1.2.3.4:4097")),
        (v2(0x21, 0x21, &six), Some("[::1]:9")),
        (v2(0x20, 0x00, b""), None),
        (v2(0x20, 0x11, &four), None),
        (v2(0x21, 0x31, &[0; 216]), None),
        (v2(0x21, 0x00, b"whatever"), None),
    ];
    for (header, client) in good {
        let mut stream = header.clone();
        stream.extend(b"GET / HTTP/1.1\r\n");
        let want = Proxied::Done(header.len(), client.map(|text| text.parse().unwrap()));
        assert_eq!(parse(&stream), want, "{header:?}");
        for cut in 0..header.len() {
            assert_eq!(parse(&header[..cut]), Proxied::NeedMore, "{header:?} cut at {cut}");
        }
    }
}

#[test]
fn what_is_no_header() {
    let long = format!("PROXY TCP4 {}", "1".repeat(100));
    let bad: [&[u8]; 13] = [
        b"GET / HTTP/1.1\r\n",
        b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 70000 2\r\n",
        b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY \xff\r\n",
        long.as_bytes(),
        b"\r\n\r\nGET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
    ];
    for header in bad {
        assert_eq!(parse(header), Proxied::Bad, "{:?}", String::from_utf8_lossy(header));
    }
    for header in [
        v2(0x11, 0x11, &[0; 12]),
        v2(0x22, 0x11, &[0; 12]),
        v2(0x21, 0x11, &[0; 11]),
        v2(0x21, 0x21, &[0; 35]),
        v2(0x21, 0x11, &[0; 5000]),
    ] {
        assert_eq!(parse(&header), Proxied::Bad, "{:?}", &header[..16]);
    }
}

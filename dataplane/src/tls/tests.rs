//! Sessions by themselves, against rustls' own client, with every cut of the bytes between them.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

use super::files::provider;
use super::session::{Session, Sink};

fn configs(old: bool) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let version = if old { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
    let server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], der)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

/// Both ends, and what is between them.
struct Ends {
    client: ClientConnection,
    session: Session<UnbufferedServerConnection>,
    incoming: BytesMut,
    out: Vec<u8>,
}

impl Ends {
    fn new(old: bool) -> Self {
        let (server, client) = configs(old);
        let name = ServerName::try_from("localhost").unwrap();
        Self {
            client: ClientConnection::new(client, name).unwrap(),
            session: Session::new(UnbufferedServerConnection::new(server).unwrap()),
            incoming: BytesMut::new(),
            out: Vec::new(),
        }
    }

    fn client_takes(&mut self) {
        let out = std::mem::take(&mut self.out);
        let mut out = &out[..];
        while !out.is_empty() {
            self.client.read_tls(&mut out).unwrap();
            self.client.process_new_packets().unwrap();
        }
    }

    fn client_sends(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut sent).unwrap();
        }
        sent
    }

    fn shake_hands(&mut self) {
        while self.client.is_handshaking() || self.session.is_handshaking() {
            let sent = self.client_sends();
            self.incoming.extend_from_slice(&sent);
            self.session.advance(&mut self.incoming, &mut self.out, &mut Sink::Leave).unwrap();
            self.client_takes();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn what_one_end_writes_the_other_reads(
        old in any::<bool>(),
        writes in prop::collection::vec(0usize..40_000, 1..6),
        cuts in prop::collection::vec(1usize..20_000, 1..8),
        rooms in prop::collection::vec(1usize..30_000, 1..8),
        ways in prop::collection::vec(0u8..3, 1..8),
        answers in prop::collection::vec(1usize..50_000, 0..4),
    ) {
        let mut ends = Ends::new(old);
        ends.shake_hands();
        let text: Vec<u8> = (0..writes.iter().sum()).map(|at: usize| (at % 251) as u8).collect();
        let mut at = 0;
        ends.client.set_buffer_limit(None);
        for length in &writes {
            ends.client.writer().write_all(&text[at..at + length]).unwrap();
            if !old && length % 3 == 0 {
                ends.client.refresh_traffic_keys().unwrap();
            }
            at += length;
        }
        ends.client.send_close_notify();
        let sent = ends.client_sends();
        let (mut got, mut said) = (Vec::new(), Vec::new());
        let mut left = &sent[..];
        let mut answers = answers.iter();
        for turn in 0.. {
            if left.is_empty() && !ends.session.has_plain() && ends.incoming.is_empty() {
                break;
            }
            prop_assert!(turn < 10_000, "no progress");
            let cut = cuts[turn % cuts.len()].min(left.len());
            ends.incoming.extend_from_slice(&left[..cut]);
            left = &left[cut..];
            let mut buf = BytesMut::with_capacity(rooms[turn % rooms.len()]);
            ends.session.take_stored(&mut buf);
            if buf.is_empty() {
                let mut sink = match ways[turn % ways.len()] {
                    0 => Sink::Leave,
                    1 => Sink::Store,
                    _ => Sink::Into(&mut buf),
                };
                ends.session.advance(&mut ends.incoming, &mut ends.out, &mut sink).unwrap();
            }
            got.extend_from_slice(&buf);
            let mut buf = BytesMut::with_capacity(rooms[turn % rooms.len()]);
            ends.session.take_stored(&mut buf);
            if buf.is_empty() {
                ends.session.advance(&mut ends.incoming, &mut ends.out, &mut Sink::Into(&mut buf)).unwrap();
            }
            got.extend_from_slice(&buf);
            if let Some(&length) = answers.next() {
                let answer = vec![turn as u8; length];
                prop_assert!(ends.session.encrypt(&answer, &mut ends.incoming, &mut ends.out).unwrap());
                said.extend_from_slice(&answer);
            }
        }
        prop_assert!(got == text, "{} of {} bytes", got.len(), text.len());
        prop_assert!(ends.session.closed);
        ends.session.close(&mut ends.incoming, &mut ends.out).unwrap();
        let out = std::mem::take(&mut ends.out);
        let (mut out, mut heard) = (&out[..], Vec::new());
        while !out.is_empty() {
            ends.client.read_tls(&mut out).unwrap();
            let state = ends.client.process_new_packets().unwrap();
            let mut part = vec![0; state.plaintext_bytes_to_read()];
            ends.client.reader().read_exact(&mut part).unwrap();
            heard.extend_from_slice(&part);
        }
        prop_assert!(heard == said);
        prop_assert_eq!(ends.client.reader().read(&mut [0; 1]).unwrap(), 0, "the end was told");
    }

    /// Whatever comes instead of records, or of the rest of them, is an error at most.
    #[test]
    fn garbage_is_refused(
        shaken in any::<bool>(),
        old in any::<bool>(),
        head in prop::sample::select(vec![&[][..], &[0x16, 3, 1, 0, 60], &[0x17, 3, 3, 0, 40], &[0x15, 3, 3, 0, 2], &[0x14, 3, 3, 0, 1, 1]]),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut ends = Ends::new(old);
        if shaken {
            ends.shake_hands();
        }
        ends.incoming.extend_from_slice(head);
        ends.incoming.extend_from_slice(&bytes);
        let before = ends.incoming.len();
        if ends.session.advance(&mut ends.incoming, &mut ends.out, &mut Sink::Store).is_ok() {
            prop_assert!(ends.incoming.remaining() <= before);
        } else {
            prop_assert!(ends.out.len() < 200, "an alert at most");
        }
    }
}

//! Certificates: renewed while the gateway runs, and asked of clients.

use std::io::{Read, Write};
use std::sync::Arc;

use fairlead_dataplane::runtime::Driver;
use rustls::ClientConfig;

use super::common::{Client, Engine, chat, eventually, on_each_driver};
use super::kit::{Authority, Sealed, Secure, client};

fn shown(secure: &Secure) -> (Vec<u8>, u16) {
    // Without a ticket, so that a certificate is shown.
    let config = Arc::new(secure.authority.client(None));
    let mut client = client(secure.addr(), &config);
    client.send(chat("hello"));
    let status = client.answer().status;
    (client.stream.conn.peer_certificates().unwrap()[0].to_vec(), status)
}

#[test]
fn a_renewed_certificate_is_shown_and_a_bad_one_is_not() {
    let engine = Engine::simple();
    let secure = Secure::new(Driver::Auto, &engine);
    let shared = secure.rig.gateway.shared();
    let mut kept = secure.client();
    kept.send(chat("hello"));
    assert_eq!(kept.answer().status, 200);
    let (first, _) = shown(&secure);
    shared.check_tls();
    assert_eq!(shared.tls_reloads(), (0, 0), "nothing was changed");

    secure.authority.issue("gateway", "localhost");
    shared.check_tls();
    let (second, status) = shown(&secure);
    assert_eq!((shared.tls_reloads(), status), ((1, 0), 200));
    assert_ne!(first, second);
    // Connections and tickets from before go on.
    kept.send(chat("again"));
    assert_eq!(kept.answer().status, 200);
    let mut again = secure.client();
    again.send(chat("hello"));
    assert_eq!(again.answer().status, 200);
    assert_eq!(again.stream.conn.handshake_kind(), Some(rustls::HandshakeKind::Resumed));

    // A key of another certificate, half a file, and none.
    let key = secure.authority.file("gateway-key.pem");
    let good = std::fs::read(&key).unwrap();
    secure.authority.issue("other", "localhost");
    let bad = std::fs::read(secure.authority.file("other-key.pem")).unwrap();
    for (number, bytes) in [&bad[..], &good[..good.len() / 2]].into_iter().enumerate() {
        std::fs::write(&key, bytes).unwrap();
        shared.reload_tls();
        shared.check_tls();
        shared.check_tls();
        assert_eq!((shared.tls_reloads(), shown(&secure)), ((1, 1 + number as u64), (second.clone(), 200)));
    }
    std::fs::remove_file(&key).unwrap();
    shared.check_tls();
    assert_eq!(shared.tls_reloads(), (1, 3));
    std::fs::write(&key, good).unwrap();
    shared.check_tls();
    assert_eq!((shared.tls_reloads(), shown(&secure).1), ((2, 3), 200));
}

/// The status of an answer, or none where the handshake fails.
fn ask(secure: &Secure, config: ClientConfig) -> Option<u16> {
    let mut client: Client<Sealed> = client(secure.addr(), &Arc::new(config));
    client.stream.write_all(chat("hello").as_bytes()).ok()?;
    client.stream.flush().ok()?;
    let mut head = [0; 12];
    client.stream.read_exact(&mut head).ok()?;
    std::str::from_utf8(&head[9..]).unwrap().parse().ok()
}

#[test]
fn clients_certificates_are_asked_for_and_checked() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let stranger = Authority::new();
        stranger.issue("client", "client");
        for require in [false, true] {
            let secure = Secure::with(driver, &engine, |_, tls| {
                tls.client_ca = Some(tls.certificate.with_file_name("ca.pem"));
                tls.require_client_certificate = require;
            });
            secure.authority.issue("client", "client");
            assert_eq!(ask(&secure, secure.authority.client(Some("client"))), Some(200));
            assert_eq!(ask(&secure, secure.authority.client(None)).is_some(), !require);
            // Signed by somebody else: refused, whether one is required or not.
            std::fs::copy(stranger.file("client.pem"), secure.authority.file("client.pem")).unwrap();
            std::fs::copy(stranger.file("client-key.pem"), secure.authority.file("client-key.pem")).unwrap();
            assert_eq!(ask(&secure, secure.authority.client(Some("client"))), None);
            let refused = if require { 2.0 } else { 1.0 };
            eventually("they are counted", || secure.handshakes("certificate") == refused);
        }
    });
}

#[test]
fn one_port_may_speak_tls_only() {
    let engine = Engine::simple();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let secure = Secure::with(Driver::Auto, &engine, |options, tls| {
        (options.listen, tls.listen) = (port, port);
    });
    assert_eq!((secure.rig.gateway.addr(), secure.rig.gateway.tls_addr()), (port, Some(port)));
    assert_eq!(secure.ask(chat("hello")).status, 200);
    assert_eq!(secure.rig.ask(chat("hello")).status, 400);
}

//! Instances over TLS: a second gateway stands in front of the engine, so what one of them seals the other opens.

use std::sync::mpsc;

use fairlead_dataplane::UpstreamTls;
use fairlead_dataplane::runtime::Driver;

use super::common::{Engine, Rig, Then, chat, eventually, on_each_driver, stream};
use super::kit::{Authority, Secure};

/// A gateway that reaches `inner` over TLS.
fn outer(driver: Driver, inner: &Secure, trust: UpstreamTls) -> Rig {
    let address = format!("https://localhost:{}", inner.addr().port());
    Rig::at(driver, &[address], |options| {
        options.upstream_tls = Some(trust);
        options.retry.max_retries = 0;
    })
}

#[test]
fn requests_reach_an_instance_and_connections_are_kept() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let inner = Secure::new(driver, &engine);
        let outer = outer(driver, &inner, inner.authority.trust());
        let mut client = outer.client();
        for _ in 0..5 {
            client.send(chat("hello"));
            assert_eq!(client.answer().status, 200);
        }
        assert_eq!(inner.handshakes("full"), 1.0, "one connection serves all");
        // Side by side there must be more, and these resume the session of the first.
        let clients: Vec<_> = (0..3)
            .map(|_| {
                let mut client = outer.client();
                client.send(chat("hello"));
                client
            })
            .collect();
        for mut client in clients {
            assert_eq!(client.answer().status, 200);
        }
        assert_eq!(inner.handshakes("full"), 1.0);
        outer.assert_settled();
    });
}

#[test]
fn large_bodies_and_streams_pass() {
    on_each_driver(|driver| {
        let (go, gone) = mpsc::channel::<()>();
        let gone = std::sync::Mutex::new(gone);
        let text = "b".repeat(4 << 20);
        let engine = Engine::start(move |conn, request| {
            if request.body.len() > 1 << 20 {
                conn.ok(&text);
                return Then::Keep;
            }
            conn.sse_head();
            for number in 0..3 {
                conn.chunk(&format!("data: {{\"n\":{number}}}\n\n"));
                gone.lock().unwrap().recv().unwrap();
            }
            conn.last_chunk();
            Then::Keep
        });
        let inner = Secure::new(driver, &engine);
        let outer = outer(driver, &inner, inner.authority.trust());
        let mut client = outer.client();
        client.send(chat(&"x".repeat(2 << 20)));
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.len(), answer.complete), (200, 4 << 20, true));
        client.send(stream("/v1/chat/completions"));
        for number in 0..3 {
            client.until(&format!("\"n\":{number}"));
            go.send(()).unwrap();
        }
        client.rest_of_stream();
        outer.assert_settled();
    });
}

#[test]
fn a_client_that_leaves_cancels_through_both() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.sse_head();
            conn.chunk("data: {\"n\":1}\n\n");
            conn.wait_closed();
            Then::Close
        });
        let inner = Secure::new(driver, &engine);
        let outer = outer(driver, &inner, inner.authority.trust());
        let mut client = outer.client();
        client.send(stream("/v1/chat/completions"));
        client.until("\"n\":1");
        drop(client);
        engine.await_closed(1);
        outer.assert_settled();
        inner.rig.assert_settled();
    });
}

#[test]
fn an_answer_that_breaks_off_is_told_as_such() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nsome");
            Then::Close
        });
        let inner = Secure::new(driver, &engine);
        let outer = outer(driver, &inner, inner.authority.trust());
        let answer = outer.ask(chat("hello"));
        assert_eq!((answer.status, answer.complete, answer.text()), (200, false, "some"));
        outer.assert_settled();
    });
}

#[test]
fn only_trusted_instances_get_requests() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let inner = Secure::new(driver, &engine);
        let stranger = Authority::new();
        let named = |name: &str| UpstreamTls { server_name: Some(name.into()), ..inner.authority.trust() };
        let untrusted = [
            // Another authority; the machine's; another name.
            stranger.trust(),
            UpstreamTls::default(),
            named("elsewhere.example"),
        ];
        for trust in untrusted {
            let outer = outer(driver, &inner, trust);
            let answer = outer.ask(chat("hello"));
            assert_eq!(answer.status, 502, "{}", answer.text());
            assert!(answer.text().contains("upstream_untrusted"));
            outer.assert_settled();
        }
        assert_eq!(engine.requests(), 0);
        let anything = UpstreamTls { insecure: true, ..UpstreamTls::default() };
        for trust in [anything, named("localhost")] {
            assert_eq!(outer(driver, &inner, trust).ask(chat("hello")).status, 200);
        }
        // An instance that speaks no TLS, and one of which nobody has said how to reach it.
        let address = format!("https://{}", engine.addr);
        let plain = Rig::at(driver, &[address], |options| {
            options.upstream_tls = Some(stranger.trust());
            options.retry.max_retries = 0;
            options.timeouts.connect = std::time::Duration::from_millis(500);
        });
        assert!([502, 504].contains(&plain.ask(chat("hello")).status));
    });
}

#[test]
fn an_instance_that_ends_kept_connections_is_asked_again() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let inner = Secure::with(driver, &engine, |options, _| {
            options.timeouts.idle = std::time::Duration::from_millis(50);
        });
        let outer = outer(driver, &inner, inner.authority.trust());
        assert_eq!(outer.ask(chat("hello")).status, 200);
        eventually("it has ended", || inner.rig.gateway.shared().connections.used() == 0);
        assert_eq!(outer.ask(chat("hello")).status, 200);
        assert_eq!(inner.handshakes("full") + inner.handshakes("resumed"), 2.0);
        outer.assert_settled();
    });
}

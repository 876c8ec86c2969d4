//! The null engine and the load generator, one straight to the other.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

use std::time::Duration;

use fairlead_bench::proxy::body::Template;
use fairlead_bench::proxy::engine::{Answer, NullEngine};
use fairlead_bench::proxy::load::Load;

fn load(engine: &NullEngine, target: usize, connections: usize, streamed: bool) -> Load {
    let addr = engine.addrs()[target];
    Load::connect(&Template::new(addr, 10 << 10, streamed), addr, connections, 1).unwrap()
}

#[test]
fn requests_are_answered_once_each() {
    let engine = NullEngine::start(2, &[], 0).unwrap();
    let window = load(&engine, 0, 4, false).count(100).unwrap();
    assert_eq!((window.requests, window.times.len()), (100, 100));
    let mut other = load(&engine, 1, 3, false);
    other.each(2).unwrap();
    assert_eq!((engine.done().accepted, engine.done().answered), (7, 103));
    let window = other.open(1_000.0, Duration::ZERO, Duration::from_millis(50), || 0.0).unwrap();
    assert_eq!((window.requests, engine.done().answered), (50, 153));
}

#[test]
fn every_token_of_a_stream_comes_with_its_time() {
    let engine = NullEngine::start(1, &[], 0).unwrap();
    for how in [Answer::Unpaced { tokens: 20 }, Answer::Paced { tokens: 20, every: Duration::from_millis(1) }]
    {
        engine.answer(how);
        let before = engine.done().tokens;
        let window = load(&engine, 0, 8, true).count(8).unwrap();
        assert_eq!((window.requests, window.tokens, window.paths.len()), (8, 160, 160));
        assert_eq!(engine.done().tokens - before, 160);
    }
    // What does not ask for a stream gets none.
    let window = load(&engine, 0, 1, false).count(1).unwrap();
    assert_eq!((window.requests, window.tokens), (1, 0));
}

#[test]
fn a_window_is_of_what_ends_in_it() {
    let engine = NullEngine::start(1, &[], 0).unwrap();
    let mut asked = 0.0;
    let probe = || {
        asked += 1.0;
        asked
    };
    let mut load = load(&engine, 0, 2, false);
    let window = load.closed(Duration::from_millis(5), Duration::from_millis(20), probe).unwrap();
    load.settle().unwrap();
    assert!(window.requests > 0 && window.requests < engine.done().answered);
    assert_eq!(window.used, 1.0);
}

#[test]
fn an_answer_that_is_no_success_is_an_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut socket, _) = listener.accept().unwrap();
        let mut some = [0; 64];
        socket.read_exact(&mut some).unwrap();
        socket.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").unwrap();
        socket
    });
    let mut load = Load::connect(&Template::new(addr, 1 << 10, false), addr, 1, 1).unwrap();
    let error = load.count(1).map(|window| window.requests).unwrap_err();
    assert!(error.to_string().contains("503 Busy"), "{error}");
    server.join().unwrap();
}

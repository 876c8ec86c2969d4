//! How requests and connections end.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use h2::Reason;

use super::common::{Engine, Rig, Then, chat_body, eventually, on_each_driver};
use super::kit::{Client, meanwhile, piece, post, run, streaming, whole};

#[test]
fn a_client_that_withdraws_has_its_request_at_the_engine_cancelled() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, request| {
            if request.header("x-begin").is_empty() {
                conn.wait_closed();
                return Then::Close;
            }
            conn.sse_head();
            conn.chunk("data: {\"choices\":[]}\n\n");
            conn.wait_closed();
            Then::Close
        });
        let rig = Rig::new(driver, &[&engine]);
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            // Before anything of an answer.
            let body = streaming();
            let (answer, mut stream) =
                client.send(post("/v1/chat/completions", Some(body.len())), Some(body.as_bytes())).await;
            meanwhile(|| engine.await_requests(1)).await;
            stream.send_reset(Reason::CANCEL);
            drop(answer);
            meanwhile(|| engine.await_closed(1)).await;
            // In the middle of one.
            let mut request = post("/v1/chat/completions", Some(body.len()));
            request.headers_mut().insert("x-begin", "1".parse().unwrap());
            let (answer, mut stream) = client.send(request, Some(body.as_bytes())).await;
            let mut answer = answer.await.unwrap().into_body();
            piece(&mut answer).await.unwrap().unwrap();
            stream.send_reset(Reason::CANCEL);
            meanwhile(|| engine.await_closed(2)).await;
            // The connection goes on, and its end is the end of what is under way.
            let (_answer, _stream) =
                client.send(post("/v1/chat/completions", Some(body.len())), Some(body.as_bytes())).await;
            meanwhile(|| engine.await_requests(3)).await;
            client.ended.abort();
            meanwhile(|| engine.await_closed(3)).await;
        });
        rig.assert_settled();
    });
}

#[test]
fn an_answer_that_is_cut_is_reset_and_never_looks_whole() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, request| match request.header("x-how").first() {
            Some(&"length") => {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
                Then::Close
            }
            Some(&"chunks") => {
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
                Then::Close
            }
            Some(&"events") => {
                conn.sse_head();
                conn.chunk("data: {\"choices\":[]}\n\n");
                Then::Reset
            }
            _ => {
                conn.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
                Then::Close
            }
        });
        let rig = Rig::new(driver, &[&engine]);
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            let body = chat_body("x");
            for (how, ends, cut) in [
                ("length", "half", Some(Reason::INTERNAL_ERROR)),
                ("chunks", "half", Some(Reason::INTERNAL_ERROR)),
                ("events", "\n\n", None),
                ("close", "until the end", None),
            ] {
                let mut request = post("/v1/chat/completions", Some(body.len()));
                request.headers_mut().insert("x-how", how.parse().unwrap());
                let answer = client.ask(request, body.as_bytes()).await;
                let text = String::from_utf8(answer.body).unwrap();
                assert_eq!((answer.status.as_u16(), answer.cut), (200, cut), "{how}: {text}");
                assert!(text.ends_with(ends), "{how}: {text}");
                assert_eq!(text.contains("upstream_error"), how == "events", "{text}");
            }
        });
        rig.assert_settled();
    });
}

#[test]
fn a_client_that_does_not_read_stops_the_engine() {
    const WHOLE: u64 = 64 << 20;
    on_each_driver(|driver| {
        let (sent, blocked) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let engine = Engine::start({
            let (sent, blocked) = (sent.clone(), blocked.clone());
            move |conn, request| {
                if request.body.len() > 1000 {
                    conn.ok("{}");
                    return Then::Keep;
                }
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {WHOLE}\r\n\r\n"));
                conn.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
                let piece = vec![b'z'; 1 << 16];
                let mut left = WHOLE as usize;
                while left > 0 {
                    match conn.stream.write(&piece[..left.min(piece.len())]) {
                        Ok(count) => {
                            left -= count;
                            sent.fetch_add(count as u64, Ordering::SeqCst);
                        }
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                            blocked.store(true, Ordering::SeqCst);
                        }
                        Err(_) => return Then::Close,
                    }
                }
                Then::Keep
            }
        });
        let rig = Rig::new(driver, &[&engine]);
        run(async {
            // Its window for all streams together has room for more than one.
            let mut builder = h2::client::Builder::new();
            builder.initial_connection_window_size(1 << 20);
            let client = Client::with(rig.gateway.addr(), &builder).await;
            let body = chat_body("x");
            let (answer, _stream) =
                client.send(post("/v1/chat/completions", Some(body.len())), Some(body.as_bytes())).await;
            let mut answer = answer.await.unwrap().into_body();
            while !blocked.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let held = sent.load(Ordering::SeqCst);
            assert!(held < WHOLE / 4, "{held} bytes were taken from the engine");
            // The other streams do not wait for it.
            assert_eq!(client.chat(&"x".repeat(1000)).await.status, 200);
            let mut got = 0;
            while let Some(piece) = piece(&mut answer).await {
                got += piece.unwrap().len() as u64;
            }
            assert_eq!(got, WHOLE);
        });
        rig.assert_settled();
    });
}

#[test]
fn a_drain_says_goaway_and_serves_what_is_under_way() {
    on_each_driver(|driver| {
        let (go, gate) = mpsc::channel::<()>();
        let gate = std::sync::Mutex::new(gate);
        let engine = Engine::start(move |conn, _| {
            gate.lock().unwrap().recv().unwrap();
            conn.ok("{\"late\":1}");
            Then::Keep
        });
        let rig = Rig::new(driver, &[&engine]);
        run(async {
            let busy = Client::connect(rig.gateway.addr()).await;
            let idle = Client::connect(rig.gateway.addr()).await;
            let models = http::Request::get("http://t/v1/models").body(()).unwrap();
            assert_eq!(idle.ask(models, b"").await.status, 200);
            let body = chat_body("x");
            let (answer, _stream) =
                busy.send(post("/v1/chat/completions", Some(body.len())), Some(body.as_bytes())).await;
            meanwhile(|| engine.await_requests(1)).await;
            rig.gateway.begin_drain();
            // Whoever has nothing under way sees an end without an error.
            idle.ended.await.unwrap().unwrap();
            let refused = async {
                loop {
                    let Ok(mut requests) = busy.requests.clone().ready().await else { return };
                    let request = post("/v1/chat/completions", Some(0));
                    let Ok((answer, _)) = requests.send_request(request, true) else { return };
                    if answer.await.is_err() {
                        return;
                    }
                }
            };
            refused.await;
            go.send(()).unwrap();
            let answer = whole(answer).await;
            assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, &b"{\"late\":1}"[..]));
            busy.ended.await.unwrap().unwrap();
        });
        eventually("the gateway ends", || rig.gateway.shared().connections.used() == 0);
    });
}

#[test]
fn an_idle_connection_is_closed() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::with(driver, &[&engine], |options| options.timeouts.idle = Duration::from_millis(300));
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            assert_eq!(client.chat("x").await.status, 200);
            client.ended.await.unwrap().unwrap();
        });
    });
}

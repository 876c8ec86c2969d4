//! Bounds on what a client may do.

use std::time::Duration;

use h2::Reason;

use super::common::{Engine, Rig, Then, chat_body, on_each_driver};
use super::kit::{Client, meanwhile, post, run};

#[test]
fn clients_are_told_how_many_streams_they_may_have() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.wait_closed();
            Then::Close
        });
        let rig = Rig::with(driver, &[&engine], |options| options.http2.max_concurrent_streams = 3);
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            let body = chat_body("x");
            let mut held = Vec::new();
            for _ in 0..3 {
                held.push(
                    client.send(post("/v1/chat/completions", Some(body.len())), Some(body.as_bytes())).await,
                );
            }
            meanwhile(|| engine.await_requests(3)).await;
            assert_eq!(client.requests.current_max_send_streams(), 3);
            // The next one's turn comes when one has ended.
            let mut next = client.requests.clone().ready().await.unwrap();
            let (fourth, mut stream) =
                next.send_request(post("/v1/chat/completions", Some(body.len())), false).unwrap();
            stream.send_data(body.clone().into(), true).unwrap();
            drop(held.pop());
            meanwhile(|| engine.await_requests(4)).await;
            drop((held, next, fourth, stream));
            meanwhile(|| engine.await_closed(4)).await;
        });
        rig.assert_settled();
    });
}

#[test]
fn a_client_that_only_asks_to_withdraw_is_sent_away() {
    on_each_driver(|driver| {
        let engine = Engine::start(|conn, _| {
            conn.wait_closed();
            Then::Close
        });
        let rig = Rig::new(driver, &[&engine]);
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            let body = chat_body("x");
            let mut count = 0;
            loop {
                let Ok(mut requests) = client.requests.clone().ready().await else { break };
                let sent = requests.send_request(post("/v1/chat/completions", Some(body.len())), false);
                let Ok((answer, mut stream)) = sent else { break };
                if stream.send_data(body.clone().into(), true).is_err() {
                    break;
                }
                // Slowly enough to be looked at before it is withdrawn.
                tokio::time::sleep(Duration::from_millis(1)).await;
                stream.send_reset(Reason::CANCEL);
                drop(answer);
                count += 1;
                assert!(count < 2000, "never sent away");
            }
            let ended = client.ended.await.unwrap().unwrap_err();
            assert_eq!(ended.reason(), Some(Reason::ENHANCE_YOUR_CALM));
            assert!(count > 100, "{count}");
            // It may come again.
            let client = Client::connect(rig.gateway.addr()).await;
            let models = http::Request::get("http://t/v1/models").body(()).unwrap();
            assert_eq!(client.ask(models, b"").await.status, 200);
        });
        rig.assert_settled();
    });
}

#[test]
fn a_head_beyond_the_limit_is_answered_with_431() {
    on_each_driver(|driver| {
        let engine = Engine::simple();
        let rig = Rig::new(driver, &[&engine]);
        run(async {
            let client = Client::connect(rig.gateway.addr()).await;
            for (fields, length) in [(100, 1000), (300, 1)] {
                let mut request = post("/v1/chat/completions", Some(0));
                for field in 0..fields {
                    let name = http::HeaderName::try_from(format!("x-{field}")).unwrap();
                    request.headers_mut().insert(name, "v".repeat(length).parse().unwrap());
                }
                let answer = client.ask(request, b"").await;
                assert_eq!(answer.status, 431, "{fields} {:?}", answer.cut);
            }
            assert_eq!(client.chat("x").await.status, 200);
        });
        assert_eq!(engine.requests(), 1);
        rig.assert_settled();
    });
}

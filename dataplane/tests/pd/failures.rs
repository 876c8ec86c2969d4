//! What becomes of a request when a leg fails, refuses, hangs, or cannot be written.

use super::*;

#[test]
fn a_prefill_side_that_fails_is_replaced_and_its_sibling_cancelled_at_once() {
    on_each_driver(|driver| {
        for handoff in [Handoff::NixlPull, Handoff::Sglang] {
            for how in ["reset", "close", "head", "body"] {
                let (bad, good) = (fails(how), prefiller());
                // Waits for KV that does not come.
                let decode = Engine::start(move |conn, request| {
                    if body(request).contains(r#""bootstrap_host":"bad""#) {
                        conn.wait_closed();
                        return Then::Close;
                    }
                    answer(conn, request);
                    Then::Keep
                });
                let at = |mut info: InstanceInfo| {
                    let bootstrap = format!("{}:1", info.name);
                    info.transfer.as_mut().unwrap().bootstrap = Some(bootstrap);
                    info
                };
                let rig = rig(driver, vec![at(p("bad", &bad, handoff)), d("d", &decode, handoff)]);
                // With no other pair, and for SGLang nobody to serve it whole, the client hears of it.
                let began = Instant::now();
                let answer = rig.ask(ask());
                assert!(began.elapsed() < Duration::from_secs(5), "nobody waits for the sibling");
                let whole = handoff.decodes_alone();
                assert_eq!(answer.status, if whole { 200 } else { 502 }, "{handoff:?} {how}");
                await_outcome(&rig, "prefill_failed", 1.0);
                rig.assert_settled();
                drop(rig);

                let instances = vec![
                    at(p("bad", &bad, handoff)),
                    at(p("good", &good, handoff)),
                    d("d", &decode, handoff),
                ];
                let rig = Rig::of(driver, instances, |options| {
                    options.routing.policy = "round-robin".into();
                });
                for _ in 0..4 {
                    let answer = rig.ask(ask());
                    assert_eq!(answer.status, 200, "{handoff:?} {how}: {answer:?}");
                    assert_eq!(answer.header("x-fairlead-prefill-instance"), Some("good"));
                }
                assert!(outcomes(&rig, "prefill_failed") >= 1.0);
                rig.assert_settled();
            }
        }
    });
}

#[test]
fn a_decode_side_that_fails_is_replaced() {
    on_each_driver(|driver| {
        for handoff in [Handoff::NixlPull, Handoff::Sglang] {
            for how in ["reset", "close", "head"] {
                let (prefill, bad, good) = (prefiller(), fails(how), decoder());
                let instances =
                    vec![p("p", &prefill, handoff), d("bad", &bad, handoff), d("good", &good, handoff)];
                let rig = Rig::of(driver, instances, |options| {
                    options.routing.policy = "round-robin".into();
                });
                for _ in 0..4 {
                    let answer = rig.ask(ask());
                    assert_eq!(answer.status, 200, "{handoff:?} {how}: {answer:?}");
                    assert_eq!(answer.header("x-fairlead-instance"), Some("good"));
                }
                assert!(outcomes(&rig, "decode_failed") >= 1.0 && outcomes(&rig, "prefill_failed") == 0.0);
                rig.assert_settled();
            }
        }
    });
}

#[test]
fn a_dead_prefill_side_is_excluded_and_told() {
    on_each_driver(|driver| {
        let (prefill, decode) = (prefiller(), decoder());
        let rig = rig(driver, vec![p("p", &prefill, Handoff::NixlPull), d("d", &decode, Handoff::NixlPull)]);
        prefill.kill();
        eventually("it is gone", || std::net::TcpStream::connect(prefill.addr).is_err());
        for _ in 0..4 {
            let answer = rig.ask(ask());
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("x-fairlead-prefill-instance"), None);
        }
        let table = rig.gateway.shared().fleet.table_full();
        assert_eq!(table.entries[0].as_ref().unwrap().cells.counters.requests_total(), 1, "then excluded");
        assert!(rig.metric("fairlead_picks_total", &["prefill_down"]) >= 3.0);
        assert_eq!(body(&decode.seen()[0]), BODY, "the client's own request");
        rig.assert_settled();
    });
}

#[test]
fn what_the_prefill_side_says_of_a_request_is_passed_on() {
    on_each_driver(|driver| {
        for handoff in [Handoff::NixlPull, Handoff::Sglang, Handoff::SharedStore] {
            for status in ["400 Bad Request", "413 Too Large", "429 Too Many Requests", "500 Oops"] {
                let prefill = Engine::start(move |conn, _| {
                    conn.send(format!(
                        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nRetry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nits\r\n6\r\n words\r\n0\r\n\r\n"
                    ));
                    Then::Keep
                });
                let decode = Engine::start(|conn, _| {
                    conn.wait_closed();
                    Then::Close
                });
                let rig = rig(driver, vec![p("p", &prefill, handoff), d("d", &decode, handoff)]);
                let mut client = rig.client();
                for _ in 0..2 {
                    client.send(ask());
                    let answer = client.answer();
                    assert_eq!(
                        (answer.status.to_string().as_str(), answer.text()),
                        (&status[..3], "its words")
                    );
                    assert_eq!(answer.header("content-type"), Some("text/plain"));
                    assert_eq!(answer.header("retry-after"), Some("7"));
                    assert_eq!(answer.header("x-fairlead-prefill-instance"), Some("p"));
                }
                assert_eq!(prefill.requests(), 2, "not tried again");
                // A decode leg that goes out beside the other may not have got there before that was refused.
                let reached = decode.requests();
                if handoff == Handoff::Sglang && reached > 0 {
                    decode.await_closed(reached);
                } else {
                    assert_eq!(reached, 0);
                }
                rig.assert_settled();
            }
        }
    });
}

#[test]
fn a_busy_side_is_passed_over() {
    on_each_driver(|driver| {
        let busy = || {
            Engine::start(|conn, _| {
                conn.status("503 Service Unavailable", "busy");
                Then::Keep
            })
        };
        let handoff = Handoff::NixlPull;
        let (bad, good, decode) = (busy(), prefiller(), decoder());
        let round = |options: &mut GatewayOptions| options.routing.policy = "round-robin".into();
        let instances = vec![p("bad", &bad, handoff), p("good", &good, handoff), d("d", &decode, handoff)];
        let rig1 = Rig::of(driver, instances, round);
        for _ in 0..4 {
            assert_eq!(rig1.ask(ask()).header("x-fairlead-prefill-instance"), Some("good"));
        }
        assert!(bad.requests() > 0);
        rig1.assert_settled();
        let (prefill, bad, good) = (prefiller(), busy(), decoder());
        let instances = vec![p("p", &prefill, handoff), d("bad", &bad, handoff), d("good", &good, handoff)];
        let rig2 = Rig::of(driver, instances, round);
        for _ in 0..4 {
            assert_eq!(rig2.ask(ask()).header("x-fairlead-instance"), Some("good"));
        }
        assert!(bad.requests() > 0);
        rig2.assert_settled();
    });
}

#[test]
fn a_refused_hand_off_is_served_where_it_was_refused() {
    on_each_driver(|driver| {
        for (handoff, status) in [
            (Handoff::NixlPull, "500 Internal Server Error"),
            (Handoff::NixlPull, "400 Bad Request"),
            (Handoff::SharedStore, "502 Bad Gateway"),
            // A stream is an answer before it is known how it goes.
            (Handoff::NixlPull, "an event"),
        ] {
            let prefill = prefiller();
            let first = AtomicBool::new(true);
            let decode = Engine::start(move |conn, request| {
                if !first.swap(false, Ordering::SeqCst) {
                    answer(conn, request);
                } else if status == "an event" {
                    conn.sse_head();
                    conn.chunk("data: {\"error\":{\"message\":\"no such blocks\"}}\n\n");
                    conn.chunk("data: [DONE]\n\n");
                    conn.last_chunk();
                } else {
                    conn.status(status, "no such blocks");
                }
                Then::Keep
            });
            let rig = rig(driver, vec![p("p", &prefill, handoff), d("d", &decode, handoff)]);
            let answer = rig.ask(ask());
            assert_eq!((answer.status, answer.header("x-fairlead-instance")), (200, Some("d")));
            assert_eq!(answer.header("x-fairlead-prefill-instance"), None);
            assert!(answer.text().contains("\"cached_tokens\":40"), "its own: {}", answer.text());
            assert_eq!(body(&decode.seen()[1]), BODY);
            assert_eq!(prefill.requests(), 1);
            await_outcome(&rig, "refused_local", 1.0);
            rig.assert_settled();
        }
        // An engine that cannot decode alone: another pair.
        let (prefill, good) = (prefiller(), decoder());
        let bad = Engine::start(|conn, _| {
            conn.status("500 Internal Server Error", "tensor-parallel sizes differ");
            Then::Keep
        });
        let handoff = Handoff::Sglang;
        let instances = vec![p("p", &prefill, handoff), d("bad", &bad, handoff), d("good", &good, handoff)];
        let rig = Rig::of(driver, instances, |options| options.routing.policy = "round-robin".into());
        for _ in 0..4 {
            assert_eq!(rig.ask(ask()).header("x-fairlead-instance"), Some("good"));
        }
        assert!(bad.requests() > 0);
        rig.assert_settled();
    });
}

#[test]
fn prefill_answers_that_cannot_be_used_lead_elsewhere() {
    on_each_driver(|driver| {
        for what in ["garbage", "large", "compressed", "head", "chunks"] {
            let bad = Engine::start(move |conn, _| {
                match what {
                    "garbage" => conn.ok("<html>not json</html>"),
                    "large" => conn.ok(&format!("{{\"a\":\"{}\"}}", "x".repeat(5 << 20))),
                    "compressed" => conn.send(
                        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x1f",
                    ),
                    "head" => conn.send("SMTP 200 OK\r\n\r\n"),
                    _ => conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
                }
                Then::Close
            });
            let (good, decode) = (prefiller(), decoder());
            let handoff = Handoff::NixlPull;
            let instances =
                vec![p("bad", &bad, handoff), p("good", &good, handoff), d("d", &decode, handoff)];
            let rig = Rig::of(driver, instances, |options| options.routing.policy = "round-robin".into());
            for _ in 0..2 {
                let answer = rig.ask(ask());
                assert_eq!(answer.status, 200, "{what}: {answer:?}");
                assert_eq!(answer.header("x-fairlead-prefill-instance"), Some("good"), "{what}");
            }
            assert!(bad.requests() > 0);
            rig.assert_settled();
        }
        // An engine that hands nothing over: there is nothing to wait for.
        for nothing in [r#"{"usage":{"prompt_tokens":4}}"#, r#"{"kv_transfer_params":null}"#] {
            let prefill = Engine::start(move |conn, _| {
                conn.ok(nothing);
                Then::Keep
            });
            let decode = decoder();
            let rig =
                rig(driver, vec![p("p", &prefill, Handoff::NixlPull), d("d", &decode, Handoff::NixlPull)]);
            assert_eq!(rig.ask(ask()).status, 200);
            assert_eq!(body(&decode.seen()[0]), BODY);
            await_outcome(&rig, "refused_local", 1.0);
            rig.assert_settled();
        }
    });
}

#[test]
fn a_stale_connection_costs_another_connection_and_no_request() {
    on_each_driver(|driver| {
        for handoff in [Handoff::NixlPull, Handoff::Sglang] {
            // Each side closes a kept connection as soon as something comes on it again.
            let once = |first: fn(&mut Conn, &Request)| {
                Engine::start(move |conn, request| {
                    if request.on_connection > 0 {
                        return Then::Close;
                    }
                    first(conn, request);
                    Then::Keep
                })
            };
            let (prefill, decode) = (once(|conn, _| conn.ok(&prefilled(0))), once(answer));
            let rig = rig(driver, vec![p("p", &prefill, handoff), d("d", &decode, handoff)]);
            for round in 1..=4 {
                assert_eq!(rig.ask(ask()).status, 200, "{handoff:?}");
                await_outcome(&rig, "ok", f64::from(round));
            }
            assert_eq!(rig.metric("fairlead_retries_total", &[]), 0.0);
            rig.assert_settled();
        }
    });
}

#[test]
fn legs_that_hang_are_ended_by_the_deadline() {
    on_each_driver(|driver| {
        let hang = || {
            Engine::start(|conn, _| {
                conn.wait_closed();
                Then::Close
            })
        };
        for handoff in [Handoff::NixlPull, Handoff::Sglang] {
            let (bad, good) = (hang(), prefiller());
            let decode = Engine::start(move |conn, request| {
                if body(request).contains(r#""bootstrap_host":"bad""#) {
                    conn.wait_closed();
                    return Then::Close;
                }
                answer(conn, request);
                Then::Keep
            });
            let mut instances =
                vec![p("bad", &bad, handoff), p("good", &good, handoff), d("d", &decode, handoff)];
            instances[0].transfer.as_mut().unwrap().bootstrap = Some("bad:1".into());
            let rig = Rig::of(driver, instances, |options| {
                options.timeouts.prefill = Duration::from_millis(150);
                options.routing.policy = "round-robin".into();
            });
            let answers: Vec<_> = (0..3).map(|_| rig.ask(ask())).collect();
            assert!(answers.iter().all(|answer| answer.status == 200), "{handoff:?} {answers:?}");
            assert!(bad.requests() > 0);
            assert_eq!(outcomes(&rig, "prefill_failed"), bad.requests() as f64);
            assert!(rig.metric("fairlead_retries_total", &["prefill_timeout"]) >= 1.0);
            bad.await_closed(bad.requests());
            rig.assert_settled();
        }
        // The decode side hangs, having got all it needs.
        let (prefill, decode) = (prefiller(), hang());
        let instances = vec![p("p", &prefill, Handoff::NixlPull), d("d", &decode, Handoff::NixlPull)];
        let rig = Rig::of(driver, instances, patient(Duration::from_millis(150)));
        let answer = rig.ask(ask());
        assert_eq!(answer.status, 504, "{answer:?}");
        rig.assert_settled();
    });
}

#[test]
fn a_prefill_side_that_fails_late_harms_nobody() {
    on_each_driver(|driver| {
        let door = Door::default();
        let opens = door.clone();
        let prefill = Engine::start(move |_, _| {
            opens.pass();
            Then::Reset
        });
        let second = Door::default();
        let goes_on = second.clone();
        let decode = Engine::start(move |conn, _| {
            conn.sse_head();
            conn.chunk("data: {\"a\":1}\n\n");
            goes_on.pass();
            conn.chunk("data: [DONE]\n\n");
            conn.last_chunk();
            Then::Keep
        });
        let rig = rig(driver, vec![p("p", &prefill, Handoff::Sglang), d("d", &decode, Handoff::Sglang)]);
        let mut client = rig.client();
        client.send(ask());
        client.until("data: {\"a\":1}\n\n");
        door.open();
        std::thread::sleep(Duration::from_millis(30));
        second.open();
        client.until("data: [DONE]\n\n\r\n0\r\n\r\n");
        await_outcome(&rig, "ok", 1.0);
        rig.assert_settled();
    });
}

#[test]
fn a_push_waits_for_the_prefill_side_once() {
    on_each_driver(|driver| {
        const PUSH: &str = r#"{"kv_transfer_params":{"transfer_mode":"push","remote_engine_id":"e","remote_host":"h","remote_port":5600,"tp_size":1}}"#;
        let both = Arc::new(std::sync::Barrier::new(2));
        let (first, second) = (both.clone(), both);
        let turn = AtomicBool::new(true);
        let prefill = Engine::start(move |conn, _| {
            if !turn.swap(false, Ordering::SeqCst) {
                first.wait();
            }
            conn.ok(PUSH);
            Then::Keep
        });
        let turn = AtomicBool::new(true);
        let decode = Engine::start(move |conn, request| {
            if !turn.swap(false, Ordering::SeqCst) {
                second.wait();
            }
            answer(conn, request);
            Then::Keep
        });
        let handoff = Handoff::NixlPush;
        let rig = rig(driver, vec![p("p", &prefill, handoff), d("d", &decode, handoff)]);
        for round in 1..=3 {
            assert_eq!(rig.ask(ask()).status, 200);
            await_outcome(&rig, "ok", f64::from(round));
        }
        let (p, d) = (&prefill.seen()[2], &decode.seen()[2]);
        let id = p.header("x-request-id").join("");
        assert_eq!(d.header("x-request-id").join(""), id);
        assert!(body(d).contains(&format!(r#""tp_size":1,"remote_request_id":"{id}"}}"#)), "{}", body(d));
        rig.assert_settled();
    });
}

#[test]
fn requests_that_cannot_be_split_are_served_whole() {
    on_each_driver(|driver| {
        let (prefill, decode) = (prefiller(), decoder());
        let handoff = Handoff::NixlPull;
        let instances = || vec![p("p", &prefill, handoff), d("d", &decode, handoff)];
        let rig1 = rig(driver, instances());
        for (path, body) in [
            ("/v1/chat/completions", r#"{"model":"m","n":2,"messages":[{"role":"user","content":"x"}]}"#),
            ("/v1/completions", r#"{"model":"m","prompt":["a","b"]}"#),
            ("/v1/completions", r#"{"model":"m","prompt":[[1],[2]]}"#),
            ("/v1/completions", r#"{"model":"m","prompt":"a","max_tokens":0}"#),
            ("/v1/responses", r#"{"model":"m","input":"a","previous_response_id":"r"}"#),
            ("/v1/embeddings", r#"{"model":"m","input":"a"}"#),
        ] {
            let answer = rig1.ask(post(path, body));
            assert_eq!((answer.status, answer.header("x-fairlead-prefill-instance")), (200, None), "{body}");
        }
        assert_eq!(prefill.requests(), 0);
        for (path, body) in [
            ("/v1/completions", r#"{"model":"m","prompt":[1,2,3]}"#),
            ("/v1/completions", r#"{"model":"m","prompt":"[\"a\"]","n":1}"#),
            ("/v1/responses", r#"{"model":"m","input":[{"role":"user","content":"x"}]}"#),
            ("/v1/messages", r#"{"model":"m","max_tokens":4,"messages":[{"role":"user","content":"x"}]}"#),
        ] {
            let answer = rig1.ask(post(path, body));
            assert_eq!(answer.header("x-fairlead-prefill-instance"), Some("p"), "{body}");
        }
        rig1.assert_settled();
        // Where the hand-off bears several, they are.
        let several = ask().replace("\"max_tokens\"", "\"n\":3,\"max_tokens\"").replace(
            &format!("Content-Length: {}", BODY.len()),
            &format!("Content-Length: {}", BODY.len() + 6),
        );
        let (sg_p, sg_d) = (prefiller(), decoder());
        let rig2 = rig(driver, vec![p("p", &sg_p, Handoff::Sglang), d("d", &sg_d, Handoff::Sglang)]);
        assert_eq!(rig2.ask(several).header("x-fairlead-prefill-instance"), Some("p"));
        rig2.assert_settled();
    });
}

#[test]
fn a_sidecar_is_told_where_to_prefill() {
    on_each_driver(|driver| {
        let (prefill, decode) = (prefiller(), decoder());
        let rig = rig(driver, vec![p("p", &prefill, Handoff::Sidecar), d("d", &decode, Handoff::Sidecar)]);
        // A client's own is not passed on.
        let answer = rig.ask(ask().replace("Host: t", "Host: t\r\nX-Prefiller-Host-Port: evil:1"));
        assert_eq!((answer.status, prefill.requests()), (200, 0));
        let seen = &decode.seen()[0];
        assert_eq!(seen.header("x-prefiller-host-port"), [prefill.addr.to_string().as_str()]);
        assert_eq!(body(seen), BODY);
        await_outcome(&rig, "ok", 1.0);
        rig.assert_settled();
    });
}

#[test]
fn a_hand_off_that_cannot_be_spoken_is_served_whole() {
    on_each_driver(|driver| {
        for handoff in [Handoff::Mooncake, Handoff::P2pNccl, Handoff::MoriWrite, Handoff::LmcachePd] {
            // Nobody has told their addresses.
            let (prefill, decode) = (prefiller(), decoder());
            let rig = rig(driver, vec![p("p", &prefill, handoff), d("d", &decode, handoff)]);
            let answer = rig.ask(ask());
            assert_eq!((answer.status, prefill.requests()), (200, 0));
            await_outcome(&rig, "refused_local", 1.0);
            rig.assert_settled();
        }
    });
}

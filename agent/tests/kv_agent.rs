//! Agents that follow an engine's KV-cache events, from its sockets to the scheduler.

mod support;

use fairlead_agent::{Agent, KvEvents};
use fairlead_tokens::{hash_blocks, root};
use fairlead_wire::Message;
use fairlead_wire::msg::{CacheEvents, CacheOp};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::publisher::Publisher;
use support::{Engine, Scheduler, Session, soon};

/// Of the test scheduler's welcome.
const SEED: u64 = 1;
const BLOCK: u32 = 64;
const PAGE: u32 = 16;

fn page(started: &str) -> String {
    format!(
        "process_start_time_seconds {started}\nvllm:num_requests_running{{engine=\"0\"}} 0\n\
         vllm:num_requests_waiting{{engine=\"0\"}} 0\nvllm:prompt_tokens_total{{engine=\"0\"}} 10\n"
    )
}

/// Token ids of a prompt.
fn prompt(number: u32, blocks: u32) -> Vec<u32> {
    (0..blocks * BLOCK).map(|at| 100_000 * number + at).collect()
}

/// The engine's names of a prompt's pages.
fn pages(number: u32, blocks: u32) -> Vec<u64> {
    (0..blocks * BLOCK / PAGE).map(|at| u64::from(number) << 32 | u64::from(at)).collect()
}

fn stored(number: u32, blocks: u32) -> Value {
    json!({"type": "BlockStored", "block_hashes": pages(number, blocks), "parent_block_hash": null,
        "token_ids": prompt(number, blocks), "block_size": PAGE, "lora_id": null, "medium": "GPU"})
}

fn removed(pages: &[u64]) -> Value {
    json!({"type": "BlockRemoved", "block_hashes": pages, "medium": "GPU"})
}

/// Our names of a prompt's blocks.
fn blocks(number: u32, count: u32) -> BTreeSet<u64> {
    let bytes: Vec<u8> = prompt(number, count).iter().flat_map(|token| token.to_le_bytes()).collect();
    hash_blocks(SEED, root(SEED, "chat", "", "", 4 * BLOCK), 4 * BLOCK, &bytes).into_iter().collect()
}

/// What a scheduler has been told.
#[derive(Default)]
struct Known {
    rank: u16,
    held: BTreeSet<u64>,
    partial: bool,
    accounts: u32,
    incarnation: u64,
    messages: u32,
}

impl Known {
    fn hear(&mut self, events: CacheEvents) {
        assert!(events.replace || self.accounts > 0, "an account comes first");
        assert_eq!(events.rank, self.rank);
        if events.replace {
            self.held.clear();
            self.accounts += 1;
        }
        self.partial = events.partial;
        self.incarnation = events.incarnation;
        self.messages += 1;
        for op in events.ops {
            match op {
                CacheOp::Store { blocks, .. } => self.held.extend(blocks),
                CacheOp::Remove { blocks, .. } => blocks.iter().for_each(|block| {
                    self.held.remove(block);
                }),
                CacheOp::Clear => self.held.clear(),
            }
        }
    }

    /// Listens until it is known what is expected.
    async fn until(&mut self, session: &mut Session, what: &str, good: impl Fn(&Known) -> bool) {
        soon(what, async {
            while !good(self) {
                if let Message::CacheEvents(events) = session.next().await.expect("link") {
                    self.hear(events);
                }
            }
        })
        .await;
    }
}

fn union(sets: &[BTreeSet<u64>]) -> BTreeSet<u64> {
    sets.iter().flatten().copied().collect()
}

#[tokio::test]
async fn what_was_stored_before_and_what_is_stored_now_is_told() {
    for topics in [false, true] {
        let engine = Engine::vllm(&page("1")).await;
        let publisher = Publisher::start(topics).await;
        engine.answer("/kv_event_sources", 200, &publisher.sources(true));
        publisher.publish(json!([stored(1, 3)])).await;
        let mut scheduler = Scheduler::start();
        let agent = Agent::start(scheduler.options(&engine)).expect("starts");
        let mut session = scheduler.accept(1).await;
        let registered = session.register().await.instance;
        let mut known = Known::default();
        known.until(&mut session, "the past", |known| known.held == blocks(1, 3) && !known.partial).await;
        assert_eq!(known.incarnation, registered.incarnation);
        publisher.publish(json!([stored(2, 2)])).await;
        let both = union(&[blocks(1, 3), blocks(2, 2)]);
        known.until(&mut session, "a new prompt", |known| known.held == both).await;
        publisher.publish(json!([removed(&pages(1, 3)[4..])])).await;
        let fewer = union(&[blocks(1, 1), blocks(2, 2)]);
        known.until(&mut session, "an eviction", |known| known.held == fewer).await;
        publisher.publish(json!([{"type": "AllBlocksCleared"}, stored(3, 1)])).await;
        known.until(&mut session, "a reset", |known| known.held == blocks(3, 1)).await;
        assert_eq!((known.accounts, known.partial), (1, false));
        agent.shutdown().await;
    }
}

#[tokio::test]
async fn lost_batches_are_asked_for_again() {
    for topics in [false, true] {
        let engine = Engine::vllm(&page("1")).await;
        let publisher = Publisher::start(topics).await;
        engine.answer("/kv_event_sources", 200, &publisher.sources(true));
        let mut scheduler = Scheduler::start();
        let agent = Agent::start(scheduler.options(&engine)).expect("starts");
        let mut session = scheduler.accept(1).await;
        let mut known = Known::default();
        publisher.publish(json!([stored(1, 2)])).await;
        known.until(&mut session, "a prompt", |known| known.held == blocks(1, 2)).await;
        publisher.lose(json!([stored(2, 2)])).await;
        publisher.lose(json!([removed(&pages(1, 2))])).await;
        publisher.lose(json!([stored(3, 1)])).await;
        let left = union(&[blocks(2, 2), blocks(3, 1)]);
        known.until(&mut session, "what was lost", |known| known.held == left).await;
        assert_eq!((known.accounts, known.partial), (1, false));
        agent.shutdown().await;
    }
}

#[tokio::test]
async fn what_the_engine_has_forgotten_makes_the_rank_partial() {
    let engine = Engine::vllm(&page("1")).await;
    let publisher = Publisher::start(true).await;
    engine.answer("/kv_event_sources", 200, &publisher.sources(true));
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    let mut known = Known::default();
    publisher.publish(json!([stored(1, 2)])).await;
    known.until(&mut session, "a prompt", |known| known.held == blocks(1, 2) && !known.partial).await;
    publisher.lose(json!([stored(2, 2)])).await;
    publisher.forget_past();
    known.until(&mut session, "a loss", |known| known.held.is_empty() && known.partial).await;
    publisher.publish(json!([stored(4, 1)])).await;
    known.until(&mut session, "what came after", |known| known.held == blocks(4, 1)).await;
    assert!(known.partial, "there may be more");
    publisher.publish(json!([{"type": "AllBlocksCleared"}])).await;
    known.until(&mut session, "certainty", |known| known.held.is_empty() && !known.partial).await;
    agent.shutdown().await;
}

#[tokio::test]
async fn an_engine_that_repeats_nothing_is_partial_until_it_is_empty() {
    let engine = Engine::vllm(&page("1")).await;
    let publisher = Publisher::start(true).await;
    engine.answer("/kv_event_sources", 200, &publisher.sources(false));
    publisher.publish(json!([stored(1, 2)])).await;
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    let mut known = Known::default();
    known.until(&mut session, "an account", |known| known.accounts == 1).await;
    assert!(known.partial);
    // Subscribed in a moment.
    soon("a new prompt", async {
        let mut number = 10;
        while known.held.is_empty() {
            number += 1;
            publisher.publish(json!([stored(number, 1)])).await;
            let heard = tokio::time::timeout(std::time::Duration::from_millis(50), session.next()).await;
            if let Ok(Ok(Message::CacheEvents(events))) = heard {
                known.hear(events);
            }
        }
    })
    .await;
    assert!(known.partial);
    publisher.publish(json!([{"type": "AllBlocksCleared"}, stored(1, 2)])).await;
    known.until(&mut session, "certainty", |known| known.held == blocks(1, 2) && !known.partial).await;
    agent.shutdown().await;
}

#[tokio::test]
async fn a_restarted_engine_has_an_empty_cache() {
    let engine = Engine::vllm(&page("1")).await;
    let publisher = Publisher::start(true).await;
    engine.answer("/kv_event_sources", 200, &publisher.sources(true));
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    let first = session.register().await.instance.incarnation;
    let mut known = Known::default();
    publisher.publish(json!([stored(1, 2)])).await;
    known.until(&mut session, "a prompt", |known| known.held == blocks(1, 2)).await;
    let publisher = publisher.restart(true).await;
    publisher.publish(json!([stored(2, 1)])).await;
    known.until(&mut session, "the new life", |known| known.held == blocks(2, 1) && !known.partial).await;
    // Its probes show the same a little later.
    engine.answer("/metrics", 200, &page("2"));
    let after = known.accounts;
    known
        .until(&mut session, "an account of the new life", |known| {
            known.accounts > after && known.incarnation != first && known.held == blocks(2, 1)
        })
        .await;
    // And the other way round: noticed by its probes, without a word from the stream.
    let second = known.incarnation;
    publisher.publish(json!([stored(3, 1)])).await;
    let both = union(&[blocks(2, 1), blocks(3, 1)]);
    known.until(&mut session, "one more", |known| known.held == both).await;
    engine.answer("/metrics", 200, &page("3"));
    known
        .until(&mut session, "an account of the third life", |known| {
            known.incarnation != second && known.held == both && !known.partial
        })
        .await;
    agent.shutdown().await;
}

#[tokio::test]
async fn each_scheduler_gets_a_full_account() {
    let engine = Engine::vllm(&page("1")).await;
    let publisher = Publisher::start(false).await;
    engine.answer("/kv_event_sources", 200, &publisher.sources(true));
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    let mut known = Known::default();
    // A long one: the account takes many messages.
    let mut all = BTreeSet::new();
    for number in 1..60 {
        let count = if number == 1 { 300 } else { 90 };
        publisher.publish(json!([stored(number, count)])).await;
        all.extend(blocks(number, count));
        // The links of this test live on the same thread.
        tokio::task::yield_now().await;
    }
    known.until(&mut session, "everything", |known| known.held == all).await;
    drop(session);
    scheduler.restart().await;
    let mut session = scheduler.accept(2).await;
    let mut known = Known::default();
    known.until(&mut session, "an account", |known| known.held == all && !known.partial).await;
    assert_eq!(known.accounts, 1);
    assert!(known.messages > 1, "{} messages", known.messages);
    publisher.publish(json!([removed(&pages(1, 300))])).await;
    let less = all.difference(&blocks(1, 300)).copied().collect::<BTreeSet<_>>();
    known.until(&mut session, "a change after it", |known| known.held == less).await;
    agent.shutdown().await;
}

#[tokio::test]
async fn each_rank_is_told_of_by_itself() {
    let mut two = page("1");
    two.push_str("\nvllm:num_requests_running{engine=\"1\"} 0\n");
    let engine = Engine::vllm(&two).await;
    let publishers = [Publisher::start_rank(0, true).await, Publisher::start_rank(1, true).await];
    let sources: Value = json!({
        "0": {"publisher": "zmq", "endpoint": publishers[0].endpoint, "replay_endpoint": publishers[0].replay},
        "1": {"publisher": "zmq", "endpoint": publishers[1].endpoint, "replay_endpoint": publishers[1].replay},
        // The engine has no such rank.
        "7": {"publisher": "zmq", "endpoint": "tcp://127.0.0.1:1", "replay_endpoint": null},
    });
    engine.answer("/kv_event_sources", 200, &sources.to_string());
    let mut scheduler = Scheduler::start();
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    assert_eq!(session.register().await.instance.dp_ranks, 2);
    publishers[0].publish(json!([stored(1, 2)])).await;
    publishers[1].publish(json!([stored(2, 3)])).await;
    let mut ranks = [Known::default(), Known { rank: 1, ..Known::default() }];
    soon("both ranks", async {
        while ranks[0].held != blocks(1, 2) || ranks[1].held != blocks(2, 3) {
            if let Message::CacheEvents(events) = session.next().await.expect("link") {
                ranks[usize::from(events.rank)].hear(events);
            }
        }
    })
    .await;
    agent.shutdown().await;
}

#[tokio::test]
async fn streams_are_found_given_or_left_alone() {
    let publisher = Publisher::start(true).await;
    publisher.publish(json!([stored(1, 1)])).await;
    let port: u16 = publisher.endpoint.rsplit(':').next().expect("a port").parse().expect("a port");
    let replay: u16 = publisher.replay.rsplit(':').next().expect("a port").parse().expect("a port");
    let sglang = json!({"model_path": "/m", "version": "0.5.20", "dp_size": 1, "page_size": 16, "kv_events":
        {"publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": port, "topic": "", "block_size": 16,
        "dp_size": 1, "replay_endpoint_port_base": replay}});
    let mut scheduler = Scheduler::start();
    // SGLang says where.
    let engine = Engine::start().await;
    engine.answer("/health", 200, "");
    engine.answer("/v1/models", 200, r#"{"data":[{"id":"chat","owned_by":"sglang"}]}"#);
    engine.answer("/server_info", 200, &sglang.to_string());
    let agent = Agent::start(scheduler.options(&engine)).expect("starts");
    let mut session = scheduler.accept(1).await;
    let mut known = Known::default();
    known.until(&mut session, "SGLang's events", |known| known.held == blocks(1, 1) && !known.partial).await;
    agent.shutdown().await;
    // A vLLM that does not, and an operator who does.
    let engine = Engine::vllm(&page("1")).await;
    let mut options = scheduler.options(&engine);
    options.kv_events =
        KvEvents::parse(&format!("tcp://*:{port}"), Some(&publisher.replay)).expect("endpoints");
    let agent = Agent::start(options).expect("starts");
    let mut session = scheduler.accept(1).await;
    let mut known = Known::default();
    known.until(&mut session, "events", |known| known.held == blocks(1, 1) && !known.partial).await;
    agent.shutdown().await;
    // Turned off.
    engine.answer("/kv_event_sources", 200, &publisher.sources(true));
    let mut options = scheduler.options(&engine);
    options.kv_events = KvEvents::Off;
    let agent = Agent::start(options).expect("starts");
    let mut session = scheduler.accept(1).await;
    session.register().await;
    for _ in 0..10 {
        let message = soon("a report", session.next()).await.expect("link");
        assert!(matches!(message, Message::Report(_)), "{message:?}");
    }
    agent.shutdown().await;
}

#[test]
fn endpoints_are_read_or_refused() {
    assert_eq!(KvEvents::parse("auto", None), Ok(KvEvents::Auto));
    assert_eq!(KvEvents::parse(" off ", Some("")), Ok(KvEvents::Off));
    let at = KvEvents::At { events: vec!["tcp://a:1".into(), "tcp://[::1]:2".into()], replay: vec![] };
    assert_eq!(KvEvents::parse("tcp://a:1, tcp://[::1]:2", None), Ok(at));
    for (events, replay) in [
        ("", None),
        ("on", None),
        ("ipc:///tmp/x", None),
        ("tcp://a", None),
        ("tcp://a:0", None),
        ("tcp://a:1", Some("b:2")),
        ("auto", Some("tcp://a:1")),
    ] {
        assert!(KvEvents::parse(events, replay).is_err(), "{events} {replay:?}");
    }
}

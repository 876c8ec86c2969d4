//! An engine's KV-cache events: a PUB socket and a ROUTER socket that repeats, in either framing.

use bytes::Bytes;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

/// MessagePack of a JSON value; maps are written with the wide header that engines use.
pub fn pack(value: &Value) -> Vec<u8> {
    let wide = |marker: u8, len: usize| [&[marker][..], &(len as u32).to_be_bytes()].concat();
    match value {
        Value::Null => vec![0xc0],
        Value::Bool(value) => vec![0xc2 + u8::from(*value)],
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => [&[0xcf][..], &value.to_be_bytes()].concat(),
            (None, Some(value)) => [&[0xd3][..], &value.to_be_bytes()].concat(),
            _ => [&[0xcb][..], &number.as_f64().expect("a number").to_be_bytes()].concat(),
        },
        Value::String(text) => [wide(0xdb, text.len()).as_slice(), text.as_bytes()].concat(),
        Value::Array(values) => {
            let mut out = wide(0xdd, values.len());
            values.iter().for_each(|value| out.extend(pack(value)));
            out
        }
        Value::Object(entries) => {
            let mut out = wide(0xdf, entries.len());
            for (key, value) in entries {
                out.extend(pack(&Value::String(key.clone())));
                out.extend(pack(value));
            }
            out
        }
    }
}

#[derive(Default)]
struct Kept {
    next: u64,
    batches: VecDeque<(u64, Bytes)>,
}

struct Shared {
    rank: u16,
    kept: Mutex<Kept>,
    publisher: tokio::sync::Mutex<PubSocket>,
}

impl Shared {
    async fn publish(&self, events: Value, sent: bool) {
        let payload = Bytes::from(pack(&serde_json::json!([1.5, events, self.rank])));
        let mut publisher = self.publisher.lock().await;
        let sequence = {
            let mut kept = self.kept.lock().expect("no panic under it");
            let sequence = kept.next;
            kept.next += 1;
            kept.batches.push_back((sequence, payload.clone()));
            sequence
        };
        if sent {
            let mut message = ZmqMessage::from("topic");
            message.push_back(Bytes::copy_from_slice(&sequence.to_be_bytes()));
            message.push_back(payload);
            publisher.send(message).await.expect("published");
        }
    }
}

pub struct Publisher {
    shared: Arc<Shared>,
    pub endpoint: String,
    pub replay: String,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Publisher {
    /// `topics`: whether repeated batches bear their topic, as newer versions have it.
    pub async fn start(topics: bool) -> Self {
        Self::start_rank(0, topics).await
    }

    /// The stream of a data-parallel rank.
    pub async fn start_rank(rank: u16, topics: bool) -> Self {
        Self::start_at("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", rank, topics).await
    }

    async fn start_at(endpoint: &str, replay: &str, rank: u16, topics: bool) -> Self {
        // In this order: a subscriber that comes back at once asks for what it has missed, and once only.
        let mut router = RouterSocket::new();
        let replay = bind(&mut router, replay).await;
        let mut publisher = PubSocket::new();
        let endpoint = bind(&mut publisher, endpoint).await;
        let shared = Arc::new(Shared { rank, kept: Mutex::default(), publisher: publisher.into() });
        let answering = shared.clone();
        let answers = tokio::spawn(async move {
            while let Ok(question) = router.recv().await {
                let parts = question.into_vec();
                let [client, empty, from] = parts.as_slice() else {
                    panic!("a question of {} parts", parts.len())
                };
                assert!(empty.is_empty());
                let from = u64::from_be_bytes(from.as_ref().try_into().expect("eight bytes"));
                let mut answers: Vec<_> = {
                    let kept = answering.kept.lock().expect("no panic under it");
                    kept.batches.iter().filter(|(sequence, _)| *sequence >= from).cloned().collect()
                };
                answers.push((u64::MAX, Bytes::new()));
                for (sequence, payload) in answers {
                    let mut answer = ZmqMessage::from(client.clone());
                    answer.push_back(Bytes::new());
                    if topics {
                        let topic = if sequence == u64::MAX { "" } else { "topic" };
                        answer.push_back(Bytes::from_static(topic.as_bytes()));
                    }
                    answer.push_back(Bytes::copy_from_slice(&sequence.to_be_bytes()));
                    answer.push_back(payload);
                    // Whoever asked may be gone.
                    let _ = router.send(answer).await;
                }
            }
        });
        // Empty batches bring to light what a subscriber that came a moment too late has missed.
        let ticking = shared.clone();
        let ticks = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                ticking.publish(Value::Array(Vec::new()), true).await;
            }
        });
        Self { shared, endpoint, replay, tasks: vec![answers, ticks] }
    }

    /// What vLLM says at `/kv_event_sources`.
    pub fn sources(&self, replay: bool) -> String {
        let (endpoint, replay) = (self.endpoint.replace("127.0.0.1", "*"), replay.then_some(&self.replay));
        serde_json::json!({"0": {"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": endpoint,
            "replay_endpoint": replay, "topic": "topic"}})
        .to_string()
    }

    pub async fn publish(&self, events: Value) {
        self.shared.publish(events, true).await;
    }

    /// A batch that gets lost on its way.
    pub async fn lose(&self, events: Value) {
        self.shared.publish(events, false).await;
    }

    /// Forgets all batches but the last few.
    pub fn forget_past(&self) {
        let mut kept = self.shared.kept.lock().expect("no panic under it");
        kept.batches.clear();
    }

    /// The engine dies and comes back, on the same ports.
    pub async fn restart(mut self, topics: bool) -> Self {
        let (endpoint, replay, rank) = (self.endpoint.clone(), self.replay.clone(), self.shared.rank);
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
        drop(self);
        Self::start_at(&endpoint, &replay, rank, topics).await
    }
}

/// The port may be held for a moment by the socket's former owner.
async fn bind(socket: &mut impl Socket, endpoint: &str) -> String {
    let bound = async {
        loop {
            match socket.bind(endpoint).await {
                Ok(bound) => return bound.to_string(),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    super::soon("the port is free", bound).await
}

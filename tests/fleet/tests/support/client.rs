//! Clients of a gateway: some patient, some not, all of them checking what they get.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use fairlead_dataplane::runtime::sim::{Sim, below, chance, note, now};
use fairlead_dataplane::runtime::{Direction, Runtime, Stream};

use super::http::{End, Head, Messages};

/// What clients do beside asking and reading.
#[derive(Debug, Clone, Copy, Default)]
pub struct Habits {
    /// Once in so many requests the client leaves before the end; 0 is never.
    pub leave: u64,
    /// Once in so many requests it reads slowly.
    pub slow: u64,
    /// Once in so many requests it closes its sending side behind the request.
    pub half_close: u64,
    /// Once in so many requests the body comes in pieces with pauses.
    pub drip: u64,
}

/// What became of requests.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub sent: u64,
    /// Whole answers, every word checked.
    pub whole: u64,
    /// Refused by the gateway or the engine.
    pub refused: u64,
    /// Broken off, and the client could tell.
    pub cut: u64,
    /// The client left.
    pub left: u64,
    /// The gateway took no connection, or closed one without a word.
    pub unserved: u64,
    /// What refusals said, with the time of the last.
    pub said: BTreeMap<String, (u64, u64)>,
}

impl Tally {
    /// Both together.
    pub fn and(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.sent, other.sent),
            (&mut self.whole, other.whole),
            (&mut self.refused, other.refused),
            (&mut self.cut, other.cut),
            (&mut self.left, other.left),
            (&mut self.unserved, other.unserved),
        ] {
            *sum += more;
        }
        for (said, (count, _)) in &other.said {
            self.said.entry(said.clone()).or_default().0 += count;
        }
    }
}

fn hits(rate: u64) -> bool {
    rate > 0 && chance(rate)
}

/// One client: `requests` requests, on as many connections as it takes.
pub async fn client(addr: SocketAddr, number: u64, requests: u64, habits: Habits, tally: Rc<RefCell<Tally>>) {
    let mut kept: Option<Messages> = None;
    for turn in 0..requests {
        Sim::sleep(Duration::from_micros(below(60_000))).await;
        tally.borrow_mut().sent += 1;
        let mut messages = match kept.take() {
            Some(messages) if messages.socket.is_quiet() => messages,
            _ => match Sim.connect(addr, Duration::from_secs(1)).await {
                Ok(socket) => Messages::new(socket),
                Err(_) => {
                    tally.borrow_mut().unserved += 1;
                    continue;
                }
            },
        };
        let who = format!("r{number}.{turn}");
        let (fate, keep) = ask(&mut messages, &who, habits, &tally).await;
        note(fate as u64);
        let mut tally = tally.borrow_mut();
        match fate {
            Fate::Whole => tally.whole += 1,
            Fate::Refused => tally.refused += 1,
            Fate::Cut => tally.cut += 1,
            Fate::Left => tally.left += 1,
            Fate::Unserved => tally.unserved += 1,
        }
        if keep {
            kept = Some(messages);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Whole,
    Refused,
    Cut,
    Left,
    Unserved,
}

async fn ask(messages: &mut Messages, who: &str, habits: Habits, tally: &RefCell<Tally>) -> (Fate, bool) {
    let stream = !chance(3);
    let body = request(who, stream);
    let socket = messages.socket.clone();
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", body.len());
    let leaves_at = if hits(habits.leave) { Some(below(1500)) } else { None };
    let sent = if hits(habits.drip) {
        let whole = format!("{head}{body}").into_bytes();
        let mut ok = true;
        for piece in whole.chunks(1 + below(whole.len() as u64) as usize) {
            Sim::sleep(Duration::from_micros(below(3_000))).await;
            ok &= socket.write_all(piece.to_vec()).await.0.is_ok();
        }
        ok
    } else {
        socket.write_both(head.into(), body.into()).await.is_ok()
    };
    if !sent {
        return (Fate::Unserved, false);
    }
    if leaves_at == Some(0) || (leaves_at.is_some() && chance(3)) {
        Sim::sleep(Duration::from_micros(below(30_000))).await;
        return (Fate::Left, false);
    }
    let half_closed = hits(habits.half_close);
    if half_closed {
        socket.shutdown(Direction::Write);
    }
    let Some(head) = messages.head().await else {
        return (Fate::Unserved, false);
    };
    let slow = hits(habits.slow);
    let mut text = Vec::new();
    let mut left = false;
    let end = messages
        .body(&head, true, async |piece: &[u8]| {
            text.extend_from_slice(piece);
            if slow {
                Sim::sleep(Duration::from_micros(below(20_000))).await;
            }
            left = leaves_at.is_some_and(|at| text.len() as u64 > at);
            !left
        })
        .await;
    if left {
        return (Fate::Left, false);
    }
    let text = String::from_utf8(text).expect("text");
    if head.status() != 200 {
        let message = text.split("\"message\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let said = format!("{} {}", head.status(), message.unwrap_or_default());
        let mut tally = tally.borrow_mut();
        let (count, at) = tally.said.entry(said).or_default();
        (*count, *at) = (*count + 1, now());
    }
    let fate = judge(&head, &text, end, who, stream);
    let keep = end == End::Whole
        && !half_closed
        && !head.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    (fate, keep)
}

/// What an answer was; anything that a client could take for another answer than it is, fails the test.
fn judge(head: &Head, text: &str, end: End, who: &str, stream: bool) -> Fate {
    let status = head.status();
    if status != 200 {
        // The fleet's only model is gone when the scheduler has given up all of its instances.
        let no_model = status == 404 && text.contains("No models are available");
        assert!(no_model || [408, 429, 502, 503, 504].contains(&status), "{who}: {status}: {text}");
        if end == End::Whole {
            assert!(text.contains("\"error\""), "{who}: {status}: {text}");
        }
        return Fate::Refused;
    }
    let words = |text: &str| {
        let mut next = 0;
        let mut parts: Vec<&str> = text.split(who).skip(1).collect();
        if end == End::Cut {
            // The last word may itself be cut.
            parts.pop();
        }
        for part in parts {
            let number = part.strip_prefix('/').expect("a word of this request");
            let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
            assert_eq!(digits.parse::<u64>().expect("a number"), next, "{who}: words in order: {text}");
            next += 1;
        }
        next
    };
    if end == End::Cut && !stream {
        return Fate::Cut;
    }
    let count = words(text);
    if !stream {
        let answer: serde_json::Value = serde_json::from_str(text).expect("a whole document");
        assert_eq!(answer["usage"]["completion_tokens"], count, "{who}: {text}");
        return Fate::Whole;
    }
    let done = text.contains("data: [DONE]\n\n");
    let error = text.contains("\"error\"");
    if done {
        assert!(!error, "{who}: {text}");
        let (_, usage) = text.split_once("\"completion_tokens\":").expect("usage");
        let told: String = usage.chars().take_while(char::is_ascii_digit).collect();
        assert_eq!(told, count.to_string(), "{who}: {text}");
        return Fate::Whole;
    }
    // Without [DONE] the answer must not look whole: an error event, or a visible cut.
    assert!(error || end == End::Cut, "{who}: an answer without an end looks whole: {end:?} {text}");
    Fate::Cut
}

/// A request of one of a few conversations, so that prompts share prefixes.
fn request(who: &str, stream: bool) -> String {
    let conversation = below(6);
    let turns = 1 + below(4);
    let text = |turn: u64| format!("c{conversation} t{turn} ").repeat(60);
    let messages: Vec<_> = (0..turns)
        .map(|turn| {
            let role = if turn % 2 == 0 { "user" } else { "assistant" };
            serde_json::json!({"role": role, "content": text(turn)})
        })
        .collect();
    serde_json::json!({"model": "m", "user": who, "stream": stream, "messages": messages}).to_string()
}

//! A simulated engine: answers by a script that the seed writes, and may refuse, stall, break off or die.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use fairlead_dataplane::runtime::sim::{ProcessId, Sim, World, below, chance};
use fairlead_dataplane::runtime::{Acceptor, Notify, Runtime, Stream};
use fairlead_wire::msg::CacheOp;

use super::cache::Cache;
use super::http::{End, Messages};

/// How often things go wrong: once in so many requests; 0 is never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moods {
    /// The connection is closed without a byte of an answer.
    pub silent_close: u64,
    /// The answer breaks off.
    pub break_off: u64,
    /// 503.
    pub busy: u64,
    /// An idle kept connection is closed after a short while.
    pub short_keep: u64,
    /// A stream without framing, which ends with the connection. Not together with deaths: nobody can tell the close of
    /// a dead engine's connection from such an end.
    pub until_close: u64,
}

/// What an engine has in hand and has done.
#[derive(Debug, Default)]
pub struct Figures {
    pub running: u32,
    pub answered: u64,
    pub met: u64,
}

/// One engine. Its process can be killed and started anew.
#[derive(Clone)]
pub struct Engine {
    pub addr: SocketAddr,
    pub moods: Moods,
    pub figures: Rc<RefCell<Figures>>,
    /// Names its present life.
    pub life: Rc<Cell<u64>>,
    /// What it holds, as far as events tell.
    pub cache: Rc<RefCell<Cache>>,
    /// Changes of it that nobody was told.
    pub changes: Rc<RefCell<Vec<CacheOp>>>,
    /// Something has changed.
    pub events: Rc<Notify>,
}

fn hits(rate: u64) -> bool {
    rate > 0 && chance(rate)
}

/// A request counted for as long as it runs.
struct Running(Rc<RefCell<Figures>>);

impl Running {
    fn new(figures: &Rc<RefCell<Figures>>) -> Self {
        figures.borrow_mut().running += 1;
        figures.borrow_mut().met += 1;
        Self(figures.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.borrow_mut().running -= 1;
    }
}

impl Engine {
    pub fn new(addr: SocketAddr, moods: Moods) -> Self {
        Self {
            addr,
            moods,
            figures: Rc::default(),
            life: Rc::default(),
            cache: Rc::default(),
            changes: Rc::default(),
            events: Rc::default(),
        }
    }

    /// Starts a process of the engine.
    pub fn start(&self, world: &World) -> ProcessId {
        let process = world.process_with(0);
        self.life.set(world.now_us());
        self.cache.borrow_mut().clear();
        self.changes.borrow_mut().clear();
        let engine = self.clone();
        world.spawn(process, async move {
            let listener = Sim::listen(engine.addr).expect("a free address");
            loop {
                let _ = listener.ready().await;
                while let Ok(Some(socket)) = listener.take() {
                    let engine = engine.clone();
                    Sim::spawn(async move { engine.serve(Messages::new(socket)).await });
                }
            }
        });
        process
    }

    async fn serve(&self, mut messages: Messages) {
        loop {
            if hits(self.moods.short_keep)
                && Sim::within(Duration::from_millis(below(40)), messages.socket.readable()).await.is_none()
            {
                return;
            }
            let Some(head) = messages.head().await else { return };
            let mut body = Vec::new();
            let end = messages
                .body(&head, false, async |piece: &[u8]| {
                    body.extend_from_slice(piece);
                    true
                })
                .await;
            if end == End::Cut {
                return;
            }
            let running = Running::new(&self.figures);
            let served = self.answer(&messages, &body).await;
            drop(running);
            if !served {
                return;
            }
        }
    }

    /// Answers; whether the connection may be kept.
    async fn answer(&self, messages: &Messages, body: &[u8]) -> bool {
        let request: serde_json::Value = serde_json::from_slice(body).expect("a JSON body");
        let who = request["user"].as_str().expect("every request says whose it is").to_owned();
        let prompt = request["messages"].to_string().len() as u64 / 4;
        let socket = &messages.socket;
        if hits(self.moods.silent_close) {
            return false;
        }
        if hits(self.moods.busy) {
            let busy = "{\"error\":{\"message\":\"full\"}}";
            let text =
                format!("HTTP/1.1 503 Service Unavailable\r\ncontent-length: {}\r\n\r\n{busy}", busy.len());
            return socket.write_all(text.into_bytes()).await.0.is_ok();
        }
        let words = 1 + below(12);
        let stop_after = if hits(self.moods.break_off) { Some(below(words)) } else { None };
        let usage = format!(
            "{{\"prompt_tokens\":{prompt},\"completion_tokens\":{words},\"total_tokens\":{},\
             \"prompt_tokens_details\":{{\"cached_tokens\":{}}}}}",
            prompt + words,
            prompt / 2
        );
        Sim::sleep(Duration::from_micros(500 + below(20_000))).await;
        let changes = self.cache.borrow_mut().change();
        self.changes.borrow_mut().extend(changes);
        self.events.notify();
        if request["stream"] == true {
            self.stream(messages, &who, words, stop_after, &usage).await
        } else {
            let text: Vec<String> = (0..words).map(|n| format!("{who}/{n}")).collect();
            // As a connector answers a prefill leg.
            let hands_over = request["kv_transfer_params"]["do_remote_decode"] == true;
            let told = if hands_over { ",\"kv_transfer_params\":{\"do_remote_prefill\":true}" } else { "" };
            let answer = format!(
                "{{\"choices\":[{{\"message\":{{\"content\":\"{}\"}}}}],\"usage\":{usage}{told}}}",
                text.join(" ")
            );
            let mut out = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
                answer.len()
            )
            .into_bytes();
            if stop_after.is_some() {
                out.truncate(out.len() - 1 - below(answer.len() as u64 - 1) as usize);
            }
            self.figures.borrow_mut().answered += 1;
            socket.write_all(out).await.0.is_ok() && stop_after.is_none()
        }
    }

    async fn stream(
        &self,
        messages: &Messages,
        who: &str,
        words: u64,
        stop_after: Option<u64>,
        usage: &str,
    ) -> bool {
        let socket = &messages.socket;
        let until_close = hits(self.moods.until_close);
        let mut head = String::from("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n");
        head.push_str(if until_close {
            "connection: close\r\n\r\n"
        } else {
            "transfer-encoding: chunked\r\n\r\n"
        });
        if socket.write_all(head.into_bytes()).await.0.is_err() {
            return false;
        }
        let frame = |event: String| {
            if until_close { event } else { format!("{:x}\r\n{event}\r\n", event.len()) }.into_bytes()
        };
        for n in 0..words {
            if stop_after == Some(n) {
                if until_close {
                    // Without framing only a reset tells a cut answer from a whole one.
                    socket.reset_on_close();
                }
                return false;
            }
            Sim::sleep(Duration::from_micros(below(10_000))).await;
            let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{who}/{n} \"}}}}]}}\n\n");
            if socket.write_all(frame(event)).await.0.is_err() {
                return false;
            }
        }
        let mut last = frame(format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\ndata: [DONE]\n\n"));
        if !until_close {
            last.extend_from_slice(b"0\r\n\r\n");
        }
        self.figures.borrow_mut().answered += 1;
        socket.write_all(last).await.0.is_ok() && !until_close
    }
}

//! Host names of targets. Addresses are usually literal; a name is resolved by a thread of its own, because the
//! system's resolver blocks, and remembered for a while.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::wake::Notify;

/// How long an answer (also "unknown") is believed.
const BELIEVED: Duration = Duration::from_secs(10);
/// Names remembered; beyond, the memory starts anew.
const MAX_NAMES: usize = 4096;

struct Known {
    addr: Option<SocketAddr>,
    at: Instant,
}

fn memory() -> &'static Mutex<HashMap<String, Known>> {
    static MEMORY: OnceLock<Mutex<HashMap<String, Known>>> = OnceLock::new();
    MEMORY.get_or_init(Mutex::default)
}

fn recall(name: &str) -> Option<Option<SocketAddr>> {
    let memory = memory().lock().unwrap_or_else(PoisonError::into_inner);
    memory.get(name).filter(|known| known.at.elapsed() < BELIEVED).map(|known| known.addr)
}

/// The first address of `host:port`; `None` when it has none. May be dropped at any time.
pub async fn resolve(name: &str) -> Option<SocketAddr> {
    if let Some(known) = recall(name) {
        return known;
    }
    let done = Arc::new(Notify::default());
    let thread = std::thread::Builder::new().name("fairlead-resolve".to_owned()).spawn({
        let (name, done) = (name.to_owned(), done.clone());
        move || {
            let addr = name.to_socket_addrs().ok().and_then(|mut all| all.next());
            let mut memory = memory().lock().unwrap_or_else(PoisonError::into_inner);
            if memory.len() >= MAX_NAMES {
                memory.clear();
            }
            memory.insert(name, Known { addr, at: Instant::now() });
            drop(memory);
            done.notify();
        }
    });
    thread.ok()?;
    done.notified().await;
    recall(name).flatten()
}

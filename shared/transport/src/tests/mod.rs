//! Tests of the crate on real sockets of the loopback interface.

mod frames;
mod handshake;
mod identities;
mod lanes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fairlead_wire::frame::{Body, Stamp, encode};
use fairlead_wire::msg::{Hello, Ping, Role, Welcome};
use fairlead_wire::{PROTOCOL, PROTOCOL_MIN};

use crate::{Accepted, Authority, Identity, Lane, Link, LinkOptions, Listener, connect, listen};

/// Long enough for a starved machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

fn local() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn options() -> LinkOptions {
    LinkOptions { handshake_timeout: PATIENCE, idle_timeout: PATIENCE, ..LinkOptions::default() }
}

fn hello(role: Role, name: &str) -> Hello {
    Hello {
        role,
        name: name.into(),
        incarnation: 7,
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL,
        software: "test".into(),
        have: None,
    }
}

fn welcome() -> Welcome {
    Welcome { protocol: PROTOCOL, epoch: 11, cluster_seed: 12, heartbeat_ms: 1000, block_tokens: 64 }
}

fn bytes<T: Body>(body: &T, stamp: Stamp) -> Bytes {
    encode(body, stamp).expect("a valid body").to_bytes().into()
}

fn ping(id: u64) -> Bytes {
    bytes(&Ping { id, sent_us: 0 }, Stamp { new_seq: id, ..Stamp::default() })
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("nothing happened in time")
}

struct Cluster {
    authority: Authority,
    scheduler: Identity,
}

impl Cluster {
    fn new() -> Self {
        let authority = Authority::new("test").expect("an authority");
        let scheduler = authority.issue(Role::Scheduler, "s").expect("an identity");
        Self { authority, scheduler }
    }

    fn agent(&self, name: &str) -> Identity {
        self.authority.issue(Role::Agent, name).expect("an identity")
    }

    fn listen(&self, options: &LinkOptions) -> Listener {
        listen(local(), &self.scheduler, options).expect("a listener")
    }

    /// A linked pair: (scheduler's end, agent's end).
    async fn pair(&self, server: &LinkOptions, client: &LinkOptions) -> (Listener, Link, Link) {
        let mut listener = self.listen(server);
        let address = listener.local_addr().to_string();
        let agent = self.agent("a");
        let hello = hello(Role::Agent, "a");
        let (near, far) = soon(async {
            tokio::join!(connect(&address, &agent, &hello, client), async {
                let accepted = listener.accept().await.expect("a peer");
                greet(accepted).await
            })
        })
        .await;
        (listener, far, near.expect("a link").0)
    }
}

async fn greet(accepted: Accepted) -> Link {
    let sent = accepted.link.sender().send(Lane::Control, bytes(&welcome(), Stamp::default())).await;
    sent.expect("an open link");
    accepted.link
}

/// A folder of its own that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fairlead-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

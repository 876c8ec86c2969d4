//! In-test engines and raw clients over plain blocking sockets.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

pub mod client;
pub mod engine;

use std::sync::Arc;
use std::time::Duration;

use fairlead_dataplane::runtime::{Driver, Executor, Kind};
use fairlead_dataplane::{Gateway, GatewayOptions, StaticInstance, start, static_fleet};
use fairlead_routing::{Fleet, TargetEntry};
use fairlead_wire::TargetId;
use fairlead_wire::msg::{Handoff, InstanceInfo, ServingRole, Transfer};

pub use client::{Answer, Client};
pub use engine::{Conn, Engine, Request, Then};

/// Longest wait for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The runtime that all gateways here run on: what `FAIRLEAD_RUNTIME` names.
pub fn runtime() -> Kind {
    let named = std::env::var("FAIRLEAD_RUNTIME").ok();
    named.map_or_else(Kind::default, |name| name.parse().unwrap())
}

/// What all gateways here have in common.
pub fn options(driver: Driver) -> GatewayOptions {
    let runtime = runtime();
    // glommio has one driver, whatever the test would have.
    let driver = if runtime == Kind::Glommio { Driver::Auto } else { driver };
    GatewayOptions { shards: 1, pin: false, runtime, driver, seed: 7, ..GatewayOptions::default() }
}

/// The drivers that this machine has; says so when one is missing.
pub fn drivers() -> Vec<Driver> {
    if runtime() == Kind::Glommio {
        return vec![Driver::Auto];
    }
    let mut found = vec![Driver::Epoll];
    let probe = std::thread::spawn(|| Executor::build(Driver::Uring).map(|_| ()).map_err(|e| e.to_string()));
    match probe.join().unwrap() {
        Ok(()) => found.push(Driver::Uring),
        Err(why) => eprintln!("skipped on io_uring: the kernel refuses the ring ({why})"),
    }
    found
}

/// A gateway over some engines that all serve model `m`.
pub struct Rig {
    pub gateway: Gateway,
    pub driver: Driver,
}

impl Rig {
    pub fn new(driver: Driver, engines: &[&Engine]) -> Self {
        Self::with(driver, engines, |_| {})
    }

    pub fn with(driver: Driver, engines: &[&Engine], adjust: impl FnOnce(&mut GatewayOptions)) -> Self {
        let addresses: Vec<_> = engines.iter().map(|engine| engine.addr.to_string()).collect();
        Self::at(driver, &addresses, adjust)
    }

    pub fn at(driver: Driver, addresses: &[String], adjust: impl FnOnce(&mut GatewayOptions)) -> Self {
        let instances: Vec<_> = addresses
            .iter()
            .enumerate()
            .map(|(index, address)| StaticInstance {
                name: format!("engine-{index}"),
                address: address.clone(),
                models: vec!["m".into()],
            })
            .collect();
        let mut options = options(driver);
        adjust(&mut options);
        let gateway = start(options, static_fleet(&instances)).unwrap();
        assert_eq!(gateway.runtime(), runtime());
        Self { gateway, driver }
    }

    /// Over instances of any description, each one target.
    pub fn of(
        driver: Driver,
        instances: Vec<InstanceInfo>,
        adjust: impl FnOnce(&mut GatewayOptions),
    ) -> Self {
        let config = || fairlead_prefix::Config { max_bytes: 1 << 20, max_targets: 4096, locate: false };
        let (_, index) = fairlead_prefix::new(config());
        let fleet = Fleet::new([index]);
        let entry = |(slot, info)| {
            Some(Arc::new(TargetEntry::new(TargetId::new(slot, 1), Arc::new(info), 0, true, Arc::default())))
        };
        fleet.publish((0u16..).zip(instances).map(entry).collect());
        let mut options = options(driver);
        adjust(&mut options);
        Self { gateway: start(options, Arc::new(fleet)).unwrap(), driver }
    }

    /// The sum of a metric's samples whose line has all of `parts` in it.
    pub fn metric(&self, name: &str, parts: &[&str]) -> f64 {
        let text = self.gateway.shared().registry().encode();
        let lines = text.lines().filter(|line| line.starts_with(name));
        let wanted = lines.filter(|line| parts.iter().all(|part| line.contains(part)));
        wanted.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.gateway.addr())
    }

    /// Sends one request on a connection of its own.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut client = self.client();
        client.send(request);
        client.answer()
    }

    /// Requests in flight on all targets, by the routing counters.
    pub fn in_flight(&self) -> u64 {
        let table = self.gateway.shared().fleet.table_full();
        table.entries.iter().flatten().map(|entry| entry.cells.counters.in_flight().requests).sum()
    }

    /// Everything that requests took must have been given back.
    pub fn assert_settled(&self) {
        let shared = self.gateway.shared();
        eventually("counters back to zero", || {
            self.in_flight() == 0 && shared.in_flight.used() == 0 && shared.body_bytes.used() == 0
        });
    }
}

/// Runs `body` on every driver.
pub fn on_each_driver(body: impl Fn(Driver)) {
    for driver in drivers() {
        body(driver);
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A POST of JSON with its length.
pub fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A chat request of model `m`.
pub fn chat(text: &str) -> String {
    post("/v1/chat/completions", &chat_body(text))
}

pub fn chat_body(text: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#)
}

/// A streaming request on a path of the API.
pub fn stream(path: &str) -> String {
    post(path, r#"{"model":"m","stream":true,"max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#)
}

/// An instance that hands KV over, or takes it.
pub fn side(name: &str, engine: &Engine, role: ServingRole, handoff: Handoff) -> InstanceInfo {
    InstanceInfo {
        role,
        transfer: Some(Transfer::new(handoff)),
        ..InstanceInfo::new(name, &engine.addr.to_string(), ["m"])
    }
}

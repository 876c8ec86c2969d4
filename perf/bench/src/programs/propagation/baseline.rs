//! The baseline of the reports: the same two hops as lines of JSON over plain TCP.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::kit::clock::{machine_us, sleep_exactly};

/// Ages of reports when the reader saw them, microseconds.
pub(super) fn reports(time: Duration, per_second: u32) -> anyhow::Result<Vec<f64>> {
    let (to_relay, at_relay) = pair()?;
    let (to_reader, at_reader) = pair()?;
    let seen = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| relay(at_relay, to_reader));
        let cell = seen.clone();
        scope.spawn(move || store(at_reader, &cell));
        let cell = seen.clone();
        let looking = scope.spawn(move || look(&cell, time));
        send(to_relay, time, per_second)?;
        looking.join().map_err(|_| anyhow::anyhow!("the reader of the baseline"))
    })
}

fn pair() -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

fn send(mut to: TcpStream, time: Duration, per_second: u32) -> anyhow::Result<()> {
    let end = machine_us() + time.as_micros() as u64;
    while machine_us() < end {
        std::thread::sleep(Duration::from_secs(1) / per_second);
        let report = json!({
            "incarnation": 1, "ready": true,
            "ranks": [{"rank": 0, "taken_us": machine_us(), "running": 1, "waiting": 0}],
        });
        writeln!(to, "{report}")?;
    }
    Ok(())
}

/// The scheduler's place: reads what was said and says it on.
fn relay(from: TcpStream, mut to: TcpStream) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let Ok(report) = serde_json::from_str::<Value>(&line) else { return };
        if writeln!(to, "{report}").is_err() {
            return;
        }
    }
}

fn store(from: TcpStream, cell: &AtomicU64) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let Ok(report) = serde_json::from_str::<Value>(&line) else { return };
        cell.store(report["ranks"][0]["taken_us"].as_u64().unwrap_or(0), Ordering::Release);
    }
}

fn look(cell: &AtomicU64, time: Duration) -> Vec<f64> {
    sleep_exactly();
    let end = machine_us() + time.as_micros() as u64;
    let (mut last, mut ages) = (0, Vec::new());
    while machine_us() < end {
        let sent = cell.load(Ordering::Acquire);
        if sent != last {
            last = sent;
            ages.push(machine_us().saturating_sub(sent) as f64);
        }
        std::thread::sleep(Duration::from_micros(10));
    }
    ages
}

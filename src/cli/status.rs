//! `fairlead status`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{out, signals};

/// Largest answer that is read, bytes.
const ANSWER_MAX: u64 = 64 << 20;

/// Asks a scheduler's admin port which targets it knows and how loaded they are.
#[derive(Args)]
pub struct StatusArgs {
    /// Admin address of the scheduler
    #[arg(long, default_value = "http://127.0.0.1:7401", value_name = "URL")]
    scheduler: String,
    /// Print the scheduler's own JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let host = args.scheduler.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let runtime = signals::runtime(1)?;
    let body = runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), get(&host, "/debug/targets"))
            .await
            .with_context(|| format!("no answer from the scheduler at {host} within 5 s"))?
    })?;
    if args.json {
        out::line(body);
        return Ok(ExitCode::SUCCESS);
    }
    let value: serde_json::Value =
        serde_json::from_str(&body).context("the scheduler's answer is not JSON")?;
    let Some(targets) = value.get("targets").and_then(|t| t.as_array()) else {
        bail!("the scheduler's answer has no list of targets");
    };
    out::line(format_args!(
        "{:<24} {:<22} {:<7} {:<6} {:<8} {:>7} {:>7} {:>6}  models",
        "instance", "address", "engine", "ready", "part", "running", "waiting", "kv"
    ));
    for target in targets {
        let text = |key: &str| target.get(key).and_then(|v| v.as_str()).unwrap_or("-").to_owned();
        let number = |key: &str| target.get("load")?.get(key)?.as_f64();
        let count = |key: &str| number(key).map_or("?".to_owned(), |n| format!("{n:.0}"));
        let kv = number("kv_usage").map_or("?".to_owned(), |share| format!("{:.0} %", share * 100.0));
        let ready =
            target.get("ready").and_then(|v| v.as_bool()).map_or("?", |r| if r { "yes" } else { "no" });
        let models: Vec<_> = target
            .get("models")
            .and_then(|m| m.as_array())
            .into_iter()
            .flatten()
            .filter_map(|m| m.as_str())
            .collect();
        out::line(format_args!(
            "{:<24} {:<22} {:<7} {:<6} {:<8} {:>7} {:>7} {:>6}  {}",
            text("instance"),
            text("address"),
            text("engine"),
            ready,
            part(&text("role"), &text("leaning")),
            count("running"),
            count("waiting"),
            kv,
            models.join(", ")
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// What a target does of a request: its fixed part, or after a tilde the one that it leans to.
fn part(role: &str, leaning: &str) -> String {
    if role == "both" && !matches!(leaning, "both" | "-") { format!("~{leaning}") } else { role.to_owned() }
}

/// One GET over a connection of its own; enough for an admin port.
async fn get(host: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(host)
        .await
        .with_context(|| format!("cannot reach a scheduler's admin port at {host}"))?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer).context("the scheduler's answer is not text")?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("{host} did not answer in HTTP");
    };
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 200") {
        bail!("{host} answered {status:?}");
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn a_part_is_fixed_or_leant_to() {
        for (role, leaning, want) in [
            ("both", "both", "both"),
            ("both", "decode", "~decode"),
            ("prefill", "both", "prefill"),
            ("both", "-", "both"),
            ("-", "-", "-"),
        ] {
            assert_eq!(part(role, leaning), want);
        }
    }
}

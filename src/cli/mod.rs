//! Subcommands. Each file holds one: its arguments and what it does.

mod agent;
mod certs;
mod check;
mod config;
mod gateway;
mod identity;
mod load;
mod out;
mod replay;
mod routing;
mod scheduler;
mod signals;
mod sim;
mod status;
mod tokenizers;
mod up;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Routes LLM requests to the instance that will serve them best.
///
/// To try it with nothing installed:  fairlead up --sim 4
/// In front of engines that run:      fairlead up --engine http://127.0.0.1:8000 --engine http://127.0.0.1:8001
#[derive(Parser)]
#[command(name = "fairlead", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct LogArgs {
    /// Lowest level that is logged to standard error: error, warn, info, debug, trace, or a filter such as
    /// `info,fairlead_dataplane=debug`
    #[arg(long, global = true, env = "FAIRLEAD_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// Log lines as text or as JSON objects
    #[arg(long, global = true, env = "FAIRLEAD_LOG_FORMAT", default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything in one process: gateway, scheduler, and an agent for each engine
    Up(up::UpArgs),
    /// Run a gateway: takes client traffic and routes it
    Gateway(gateway::GatewayArgs),
    /// Run the scheduler: sums up the fleet and tells the gateways
    Scheduler(scheduler::SchedulerArgs),
    /// Run an agent beside an engine: registers it and reports its load
    Agent(agent::AgentArgs),
    /// Run a simulated engine that behaves like vLLM or SGLang
    Sim(sim::SimArgs),
    /// Send load to a gateway or engine and report latencies, errors and the cache hit ratio
    Load(load::LoadArgs),
    /// Play a recorded trace through simulated engines in virtual time, and compare policies
    Replay(replay::ReplayArgs),
    /// Check a configuration file and print what it means
    Check(check::CheckArgs),
    /// Make a certificate authority and identities for scheduler, gateways and agents
    Certs(certs::CertsArgs),
    /// Show the fleet as a running scheduler sees it
    Status(status::StatusArgs),
}

/// Parses the command line and runs the subcommand.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = fairlead_telemetry::init_logs(&cli.log.log, &cli.log.log_format) {
        return out::fail(&anyhow::anyhow!("--log: {error}"));
    }
    let result = match cli.command {
        Command::Up(args) => up::run(args),
        Command::Gateway(args) => gateway::run(args),
        Command::Scheduler(args) => scheduler::run(args),
        Command::Agent(args) => agent::run(args),
        Command::Sim(args) => sim::run(args),
        Command::Load(args) => load::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Check(args) => check::run(args),
        Command::Certs(args) => certs::run(args),
        Command::Status(args) => status::run(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => out::fail(&error),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    /// What clap finds wrong in a build with debug assertions only.
    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}

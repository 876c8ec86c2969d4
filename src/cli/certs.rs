//! `fairlead certs`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use fairlead_transport::Certs;

use super::out;

/// Every link between Fairlead's processes is mutual TLS. This makes the certificate authority of a cluster and an
/// identity for each role. Run again, it keeps what exists and adds what is asked for.
#[derive(Args)]
pub struct CertsArgs {
    /// Folder to write to; keep its `ca-key.pem` safe, processes need only their own sub-folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Name of the cluster, when the folder is new
    #[arg(long, default_value = "fairlead")]
    cluster: String,
    /// Names of gateways to make identities for; default is one identity that serves all gateways
    #[arg(long, value_name = "NAME")]
    gateway: Vec<String>,
    /// Names of agents to make identities for; default is one identity that serves all agents
    #[arg(long, value_name = "NAME")]
    agent: Vec<String>,
}

pub fn run(args: CertsArgs) -> anyhow::Result<ExitCode> {
    let mut certs = Certs { cluster: args.cluster, ..Certs::default() };
    if !args.gateway.is_empty() {
        certs.gateways = args.gateway;
    }
    if !args.agent.is_empty() {
        certs.agents = args.agent;
    }
    for written in fairlead_transport::write_certs(&args.out, &certs)? {
        let state = if written.new { "made" } else { "kept" };
        out::line(format_args!("{state} {}", written.dir.display()));
    }
    Ok(ExitCode::SUCCESS)
}

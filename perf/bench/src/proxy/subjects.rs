//! Who is measured: the gateway itself, what others run in its place, and the floor. Each is configured for one core and
//! for as little work as it allows: no log, connections kept without a limit.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::body::Template;
use super::floor::{self, Base};
use super::load::Load;
use super::multiplex;
use super::process::Process;
use super::seal::Seal;
use crate::programs::say;

/// Longest wait for a process to serve.
const START: Duration = Duration::from_secs(40);

/// A kind of process under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `fairlead gateway`.
    Ours,
    /// nginx, one worker.
    Nginx,
    /// HAProxy, one thread.
    Haproxy,
    /// sglang-router with `cache_aware`.
    Sglang,
    /// vllm-router with `cache_aware`.
    Vllm,
    /// The least that a relay can do.
    Floor,
}

impl Kind {
    /// How tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "fairlead",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Sglang => "sglang-router",
            Self::Vllm => "vllm-router",
            Self::Floor => "floor",
        }
    }
}

impl Kind {
    /// Whether it is to be measured: ours always, others where `FAIRLEAD_PEERS` names them or is not set.
    pub fn is_chosen(self) -> bool {
        let names = std::env::var("FAIRLEAD_PEERS");
        self == Self::Ours || names.map_or(true, |names| names.split(',').any(|name| name == self.name()))
    }
}

/// What all processes of a measurement have in common.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Targets.
    pub engines: Vec<SocketAddr>,
    /// Answers are streams: nothing is held back.
    pub streams: bool,
    /// Connections that come at most.
    pub connections: usize,
    /// Bytes of the prefix index of the gateway, as its configuration has them.
    pub index: &'static str,
    /// Clients speak TLS.
    pub seal: Option<Seal>,
    /// Clients speak HTTP/2, without asking first.
    pub http2: bool,
    /// All cores, the first for the process under test.
    pub cores: Vec<usize>,
}

/// A process that serves.
#[derive(Debug)]
pub struct Subject {
    /// What it is.
    pub kind: Kind,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its process.
    pub process: Process,
}

/// A folder for configurations and logs, removed with this.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// An empty folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("fairlead-perf-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Folder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The `fairlead` program: what `FAIRLEAD_BIN` names, or what stands beside this program.
///
/// # Errors
/// There is none.
pub fn binary() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("FAIRLEAD_BIN").map(PathBuf::from);
    let path = match named {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("fairlead"),
    };
    ensure!(
        path.is_file(),
        "the program under test is not at {}: build it with `cargo build --release --bin fairlead`, or name it with \
         FAIRLEAD_BIN",
        path.display()
    );
    Ok(path)
}

/// Starts all kinds that are there; with `FAIRLEAD_PEERS=nginx,floor`, ours and those. Of the others it is said what is
/// missing, and the measurement goes on without.
///
/// # Errors
/// Ours does not start.
pub fn start_all(
    kinds: &[Kind],
    setting: &Setting,
    folder: &Folder,
    missing: &mut Vec<String>,
) -> anyhow::Result<Vec<Subject>> {
    let mut all = Vec::new();
    for kind in kinds.iter().copied().filter(|kind| kind.is_chosen()) {
        match start(kind, setting, folder) {
            Ok(subject) => all.push(subject),
            Err(error) if kind == Kind::Ours => return Err(error),
            Err(error) => {
                let why = format!("missing: {}: {error:#}", kind.name());
                if !missing.contains(&why) {
                    say(&why);
                    missing.push(why);
                }
            }
        }
    }
    Ok(all)
}

/// Starts one and waits until it serves.
///
/// # Errors
/// It is not installed, or does not serve.
pub fn start(kind: Kind, setting: &Setting, folder: &Folder) -> anyhow::Result<Subject> {
    let addr = free_port()?;
    let home = folder.0.join(kind.name());
    std::fs::create_dir_all(&home)?;
    let log = home.join("log");
    let (cores, core) = (setting.cores.as_slice(), 0);
    let run = |command: Command| Process::start(command, cores, core, &log);
    let mut process = match kind {
        Kind::Ours => {
            let file = home.join("fairlead.yaml");
            std::fs::write(&file, ours(addr, setting))?;
            let mut command = Command::new(binary()?);
            command.arg("gateway").arg("--config").arg(&file);
            run(command)?
        }
        Kind::Nginx => {
            let file = home.join("nginx.conf");
            std::fs::write(&file, nginx(addr, setting, &home))?;
            let mut command = Command::new(installed("nginx")?);
            command.arg("-e").arg(&log).arg("-c").arg(&file);
            run(command)?
        }
        Kind::Haproxy => {
            let file = home.join("haproxy.cfg");
            std::fs::write(&file, haproxy(addr, setting))?;
            let mut command = Command::new(installed("haproxy")?);
            command.arg("-db").arg("-q").arg("-f").arg(&file);
            run(command)?
        }
        Kind::Sglang => run(python("sglang-router", "sglang_router.launch_router", addr, setting)?)?,
        Kind::Vllm => run(python("vllm-router", "vllm_router.launch_router", addr, setting)?)?,
        Kind::Floor => floor::start(Base::Chosen, addr, &setting.engines, cores, core, &log)?,
    };
    awaited(kind.name(), addr, setting, &mut process, &log)?;
    Ok(Subject { kind, addr, process })
}

/// Starts the floor on a runtime of choice and waits until it serves. Without engines it answers by itself.
///
/// # Errors
/// It does not serve: this machine, or this program, does not have that runtime.
pub fn start_on(
    base: Base,
    engines: &[SocketAddr],
    cores: &[usize],
    folder: &Folder,
) -> anyhow::Result<Subject> {
    let addr = free_port()?;
    let log = folder.0.join(format!("{}-{}", base.name(), addr.port()));
    let mut process = floor::start(base, addr, engines, cores, 0, &log)?;
    let setting = Setting {
        engines: engines.to_vec(),
        streams: false,
        connections: 1,
        index: "",
        seal: None,
        http2: false,
        cores: cores.to_vec(),
    };
    awaited(base.name(), addr, &setting, &mut process, &log)?;
    Ok(Subject { kind: Kind::Floor, addr, process })
}

fn awaited(
    name: &str,
    addr: SocketAddr,
    setting: &Setting,
    process: &mut Process,
    log: &Path,
) -> anyhow::Result<()> {
    serves(addr, setting, process).map_err(|error| {
        let said = std::fs::read_to_string(log).unwrap_or_default();
        let last: Vec<_> = said.lines().rev().take(3).collect();
        anyhow::anyhow!("{name} does not serve: {error:#}; it said: {}", last.join(" / "))
    })
}

/// Waits until a request is answered.
fn serves(addr: SocketAddr, setting: &Setting, process: &mut Process) -> anyhow::Result<()> {
    let start = Instant::now();
    let template = Template::new(addr, 512, false);
    loop {
        let answered = if setting.http2 {
            multiplex::once(&template, addr)
        } else {
            Load::connect_with(&template, addr, 1, 0xff_ffff, setting.seal.as_ref())
                .and_then(|mut load| load.count(1).map(|_| ()))
        };
        match answered {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > START || !process.runs() => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// An address that nobody listens at.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Where a program is that Debian installs.
fn installed(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    all.map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .context("not installed (perf/setup installs it)")
}

/// A Python peer in its environment beside the build's folders.
fn python(peer: &str, module: &str, addr: SocketAddr, setting: &Setting) -> anyhow::Result<Command> {
    let exe = std::env::current_exe()?;
    let python = exe
        .ancestors()
        .map(|folder| folder.join("peers").join(peer).join("bin/python"))
        .find(|python| python.is_file())
        .context("not installed (perf/setup installs it)")?;
    let metrics = free_port()?;
    let mut command = Command::new(python);
    command.args(["-m", module, "--host", "127.0.0.1", "--port", &addr.port().to_string()]);
    command.args(["--policy", "cache_aware", "--log-level", "error"]);
    command.args(["--prometheus-host", "127.0.0.1", "--prometheus-port", &metrics.port().to_string()]);
    command.args(["--max-concurrent-requests", "8192", "--worker-urls"]);
    command.args(setting.engines.iter().map(|engine| format!("http://{engine}")));
    Ok(command)
}

fn ours(addr: SocketAddr, setting: &Setting) -> String {
    let mut text = format!(
        "gateway:\n  listen: {addr}\n  admin: 127.0.0.1:0\n  shards: 1\n  policy: prefix-cache\n  index_bytes: {}\n",
        setting.index
    );
    if let Some(Seal { certificate, key, .. }) = &setting.seal {
        let (certificate, key) = (certificate.display(), key.display());
        let _ = writeln!(text, "  tls: {{listen: '{addr}', certificate: '{certificate}', key: '{key}'}}");
    }
    text.push_str("  instances:\n");
    for engine in &setting.engines {
        let _ = writeln!(text, "    - {{url: 'http://{engine}', models: [m]}}");
    }
    text.push_str("log:\n  level: warn\n");
    text
}

fn nginx(addr: SocketAddr, setting: &Setting, home: &Path) -> String {
    let home = home.display();
    let buffering = if setting.streams { "off" } else { "on" };
    // With less than a sixteenth of them free, it closes clients that have not sent anything yet.
    let connections = 3 * setting.connections + 512;
    let kept = setting.connections.max(64);
    let mut upstream = String::new();
    for engine in &setting.engines {
        let _ = writeln!(upstream, "    server {engine};");
    }
    let (mut ssl, mut files) = (if setting.http2 { " http2" } else { "" }, String::new());
    if let Some(Seal { certificate, key, .. }) = &setting.seal {
        let (certificate, key) = (certificate.display(), key.display());
        ssl = " ssl";
        files = format!(
            "    ssl_certificate {certificate};\n    ssl_certificate_key {key};\n    ssl_protocols TLSv1.3;\n"
        );
    }
    // Without a master process the one worker is the process itself.
    format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\npid {home}/pid;\nerror_log {home}/error warn;\n\
         events {{ worker_connections {connections}; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {home}/body;\n  proxy_temp_path {home}/proxy;\n  \
         fastcgi_temp_path {home}/fastcgi;\n  uwsgi_temp_path {home}/uwsgi;\n  scgi_temp_path {home}/scgi;\n  \
         client_max_body_size 64m;\n  client_body_buffer_size 256k;\n  upstream engines {{\n{upstream}    \
         keepalive {kept};\n    keepalive_requests 1000000000;\n    keepalive_timeout 600s;\n  }}\n  server {{\n    \
         listen {addr}{ssl} backlog=4096;\n{files}    keepalive_requests 1000000000;\n    keepalive_timeout 600s;\n    location / \
         {{\n      proxy_pass http://engines;\n      proxy_http_version 1.1;\n      proxy_set_header Connection \
         \"\";\n      proxy_buffering {buffering};\n      proxy_read_timeout 600s;\n      proxy_send_timeout \
         600s;\n    }}\n  }}\n}}\n"
    )
}

fn haproxy(addr: SocketAddr, setting: &Setting) -> String {
    // It closes idle connections to servers when a share of its descriptors is in use: there are enough.
    let connections = (setting.connections + 64).max(4_000);
    let delay = if setting.streams { "  option http-no-delay\n" } else { "" };
    let crt = setting.seal.as_ref().map(|seal| format!(" ssl crt {} alpn http/1.1", seal.both.display()));
    let crt = crt.unwrap_or(if setting.http2 { " proto h2".to_owned() } else { String::new() });
    let mut servers = String::new();
    for (n, engine) in setting.engines.iter().enumerate() {
        let _ = writeln!(servers, "  server s{n} {engine}");
    }
    format!(
        "global\n  nbthread 1\n  maxconn {connections}\n  tune.pool-high-fd-ratio 98\n  \
         tune.pool-low-fd-ratio 97\ndefaults\n  mode http\n  http-reuse always\n{delay}  timeout \
         connect 5s\n  timeout client 600s\n  timeout server 600s\n  timeout http-keep-alive 600s\nfrontend front\n  \
         bind {addr}{crt} backlog 4096\n  default_backend engines\nbackend engines\n  balance roundrobin\n{servers}"
    )
}

//! A process under test: on one core, watched from outside, ended with its owner.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::kit::clock::process_cpu;
use crate::kit::pin::pin;

/// How long a process may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(3);

/// A process and those that it started.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program with all of its threads on the `core`-th of `cores`. What it says goes to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command, cores: &[usize], core: usize, log: &Path) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let cores = cores.to_vec();
        // SAFETY: between fork and exec the child makes system calls and touches no memory that another thread may
        // hold locked; the cores were copied before.
        unsafe {
            command.pre_exec(move || {
                pin(&cores, core);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child })
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Processor time of all its threads so far, seconds.
    pub fn cpu(&self) -> f64 {
        process_cpu(self.id()).unwrap_or(f64::NAN)
    }

    /// Processor time by thread that still runs: its name and seconds, from the scheduler's own account.
    pub fn threads(&self) -> Vec<(String, f64)> {
        let read = |path: String| fs::read_to_string(path).unwrap_or_default();
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).into_iter().flatten().flatten();
        tasks
            .map(|task| {
                let path = task.path();
                let name = read(format!("{}/comm", path.display())).trim().to_owned();
                let account = read(format!("{}/schedstat", path.display()));
                let ns: f64 = account.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
                (name, ns * 1e-9)
            })
            .collect()
    }

    /// Resident memory that is its own, bytes.
    pub fn memory(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.id())).unwrap_or_default();
        let kib = |name: &str| {
            text.lines().find_map(|line| {
                line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()
            })
        };
        // The program's own text is shared with its other processes.
        let parts = kib("Private_Dirty:").zip(kib("Private_Clean:"));
        parts.map_or(f64::NAN, |(dirty, clean)| (dirty + clean) * 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = -(self.id() as libc::pid_t);
        // SAFETY: plain system call; the group is the child's own.
        unsafe { libc::kill(group, libc::SIGTERM) };
        let start = Instant::now();
        while self.runs() && start.elapsed() < GRACE {
            std::thread::sleep(Duration::from_millis(10));
        }
        // SAFETY: as above; whatever is left of the group ends.
        unsafe { libc::kill(group, libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

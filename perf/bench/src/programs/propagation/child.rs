//! Parts as processes: this program again, told its part by the environment, asked by lines.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context as _;

const VARIABLE: &str = "FAIRLEAD_PROPAGATION";

/// What a process is to play.
pub(super) struct Part {
    pub(super) role: String,
    pub(super) folder: PathBuf,
    pub(super) name: String,
    pub(super) scheduler: String,
}

/// The part that the environment names.
pub(super) fn part() -> Option<Part> {
    let told = std::env::var(VARIABLE).ok()?;
    let mut words = told.split('\t');
    let mut word = || words.next().map(str::to_owned);
    Some(Part { role: word()?, folder: word()?.into(), name: word()?, scheduler: word()? })
}

/// A question that has been asked and not been answered yet.
#[must_use]
pub(super) struct Asked(());

/// A process that plays a part; it ends with this.
pub(super) struct Child {
    process: std::process::Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Child {
    /// A scheduler, and its address.
    pub(super) fn scheduler(folder: &Path) -> anyhow::Result<(Self, String)> {
        let mut child = Self::spawn(folder, "scheduler", "s", "-")?;
        let address = child.line()?;
        Ok((child, address))
    }

    /// A gateway, and when it began to start.
    pub(super) fn gateway(folder: &Path, name: &str, scheduler: &str) -> anyhow::Result<(Self, u64)> {
        let mut child = Self::spawn(folder, "gateway", name, scheduler)?;
        let began = child.line()?.parse().context("a gateway's start")?;
        Ok((child, began))
    }

    fn spawn(folder: &Path, role: &str, name: &str, scheduler: &str) -> anyhow::Result<Self> {
        let part = format!("{role}\t{}\t{name}\t{scheduler}", folder.display());
        let mut process = Command::new(std::env::current_exe()?)
            .arg("propagation")
            .env(VARIABLE, part)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = process.stdin.take().context("a pipe")?;
        let from = BufReader::new(process.stdout.take().context("a pipe")?);
        Ok(Self { process, to, from })
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        anyhow::ensure!(line.ends_with('\n'), "a part of the benchmark has ended");
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    /// Asks, and waits until the child says that it has begun to answer.
    pub(super) fn begin(&mut self, question: &str) -> anyhow::Result<Asked> {
        writeln!(self.to, "{question}")?;
        let begun = self.line()?;
        anyhow::ensure!(begun == "begun", "{question}: {begun}");
        Ok(Asked(()))
    }

    /// The answer to what was asked.
    pub(super) fn end(&mut self, _asked: Asked) -> anyhow::Result<String> {
        self.line()
    }

    /// The answer as numbers.
    pub(super) fn numbers(&mut self, asked: Asked) -> anyhow::Result<Vec<f64>> {
        let line = self.end(asked)?;
        line.split_whitespace().map(|word| word.parse().with_context(|| format!("{word:?}"))).collect()
    }

    /// Asks and waits for the answer.
    pub(super) fn ask(&mut self, question: &str) -> anyhow::Result<String> {
        let asked = self.begin(question)?;
        self.end(asked)
    }

    /// Resident memory, bytes.
    pub(super) fn resident(&mut self) -> anyhow::Result<u64> {
        self.ask("resident")?.parse().context("resident memory")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

//! The programs of a run: each ends with it, however it ends.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{cpu::Cpu, memory, times::Ended};

/// A program that runs.
#[derive(Debug)]
pub(super) struct Process {
    child: Ended,
    log: PathBuf,
    pid: i32,
}

impl Process {
    /// Starts a program that says what it says to a file. Call it from the first thread, with which it ends.
    pub(super) fn start(log: &Path, program: &Path, arguments: &[String]) -> Result<Self> {
        let name = || program.display().to_string();
        let output = File::create(log).with_context(|| log.display().to_string())?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(name)?;
        let pid = i32::try_from(child.id())?;
        Ok(Self { child: Ended(child), log: log.to_owned(), pid })
    }

    /// Fails, with its last words, if it has ended.
    pub(super) fn alive(&mut self) -> Result<()> {
        let Some(status) = self.child.0.try_wait()? else { return Ok(()) };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let words: Vec<&str> = log.lines().rev().take(10).collect();
        let words: Vec<&str> = words.into_iter().rev().collect();
        anyhow::bail!("it ended ({status}):\n{}", words.join("\n"))
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) {
        self.child.end();
    }

    /// Seconds of processor time so far.
    pub(super) fn cpu(&self) -> Result<f64> {
        Ok(Cpu::of(&[self.pid])?.total())
    }

    /// Resident memory in MiB.
    pub(super) fn mebibytes(&self) -> Result<f64> {
        Ok(memory::resident(self.pid)? / 1024.0)
    }

    /// The most resident memory since its start or since [`Self::forget_peak`], in MiB.
    pub(super) fn peak(&self) -> Result<f64> {
        Ok(memory::peak(self.pid)? / 1024.0)
    }

    /// From now on peaks count anew.
    pub(super) fn forget_peak(&self) -> Result<()> {
        let file = format!("/proc/{}/clear_refs", self.pid);
        fs::write(&file, "5").context(file)
    }
}

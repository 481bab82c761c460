//! Programs of a lab: run to their end, or started and remembered.
//!
//! A remembered program is signalled by its process id only after its start time has been compared, so that a reused
//! id never costs a stranger its life.

use std::{
    fs,
    io::Read,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::wait::{uninterrupted, until};

/// How long a program may take to end after it was asked to, before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// What a program that ran to its end left.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended; none if it was stopped at its deadline.
    pub status: Option<ExitStatus>,
    /// What it printed.
    pub stdout: String,
    /// What it printed to standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Output {
    /// Whether it ended by itself and well.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// What it printed, if it ended well.
    ///
    /// # Errors
    /// How it ended and what it printed, if not.
    pub fn ok(self) -> Result<String> {
        if self.success() {
            return Ok(self.stdout);
        }
        let how = self.status.map_or_else(|| "did not end in time".to_owned(), |status| status.to_string());
        bail!("{how} after {:?}: {}{}", self.took, self.stdout, self.stderr)
    }
}

/// Runs a command that should take no noticeable time, and fails with what it printed.
pub(crate) fn checked(command: &mut Command) -> Result<()> {
    uninterrupted()?;
    let line = format!("{command:?}").replace('"', "");
    let output = command.output().with_context(|| format!("starting {line}"))?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs a command to its end, at most `timeout` long; then it and what it started are killed.
///
/// # Errors
/// If it cannot be started. How it ended is in the output.
pub fn run(mut command: Command, input: Option<Vec<u8>>, timeout: Duration) -> Result<Output> {
    let line = format!("{command:?}");
    let begun = Instant::now();
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("starting {line}"))?;
    let pid = pid_of(child.id())?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        // A program that does not read its input is no failure of the lab.
        scope
            .spawn(move || stdin.zip(input).map(|(mut pipe, bytes)| std::io::Write::write_all(&mut pipe, &bytes).ok()));
        let stdout = scope.spawn(move || stdout.map(read_all));
        let stderr = scope.spawn(move || stderr.map(read_all));
        let mut ended = None;
        let waited = until(timeout, "the program's end", || {
            ended = child.try_wait().ok().flatten();
            ended.is_some()
        });
        if waited.is_err() {
            // The group, as a shell's children would hold the pipes open; its leader is not reaped yet, so it is ours.
            killpg(pid, Signal::SIGKILL).ok();
            child.wait().ok();
        }
        let text =
            |reader: thread::ScopedJoinHandle<'_, Option<String>>| reader.join().ok().flatten().unwrap_or_default();
        Ok(Output { status: ended, stdout: text(stdout), stderr: text(stderr), took: begun.elapsed() })
    })
}

fn read_all(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What came before an error is still worth showing.
    pipe.read_to_end(&mut bytes).ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn pid_of(id: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(id)?))
}

/// A program that was started and remembered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// What the lab calls it: `place.name`.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// When it started, in the kernel's ticks since boot.
    pub(crate) started: u64,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Process {
    /// Starts `command` in a process group of its own, so that the terminal's Ctrl-C does not reach it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        uninterrupted()?;
        let open = || fs::OpenOptions::new().create(true).append(true).open(log);
        let file = open().with_context(|| format!("opening {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        let pid = pid_of(child.id())?.as_raw();
        let started = start_time(pid).with_context(|| format!("{name} ended at once"))?;
        Ok(Self { name: name.to_owned(), pid, started, log: log.to_owned() })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        reap(self.pid);
        start_time(self.pid).is_some_and(|started| started == self.started)
    }

    /// Sends a signal if it still runs.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.is_alive() {
            kill(Pid::from_raw(self.pid), signal).with_context(|| format!("signalling {}", self.name))?;
        }
        Ok(())
    }

    /// Ends it at once and waits until it is gone.
    ///
    /// # Errors
    /// If it does not go.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        until(GRACE, &format!("{} to be gone", self.name), || !self.is_alive())
    }

    /// Asks it to end, waits, and kills it if it does not.
    ///
    /// # Errors
    /// If it does not go.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        until(GRACE, &format!("{} to end", self.name), || !self.is_alive()).or_else(|_| self.kill())
    }

    /// How many descriptors it has open.
    ///
    /// # Errors
    /// If it is gone.
    pub fn descriptors(&self) -> Result<usize> {
        let directory = format!("/proc/{}/fd", self.pid);
        Ok(fs::read_dir(&directory).with_context(|| format!("reading {directory}"))?.count())
    }

    /// Its output so far.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until its output contains a text.
    ///
    /// # Errors
    /// After the deadline, or when it ends without having said so; with its output.
    pub fn wait_for_output(&self, text: &str, deadline: Duration) -> Result<()> {
        until(deadline, text, || self.output().contains(text) || !self.is_alive())?;
        if self.output().contains(text) {
            return Ok(());
        }
        bail!("{} ended before it printed {text:?}:\n{}", self.name, self.output())
    }
}

/// Ends processes by id after they were found in one of the lab's own namespaces: asks all, then kills the rest.
pub(crate) fn end_all(pids: &[i32]) {
    let known: Vec<(i32, u64)> = pids.iter().filter_map(|&pid| Some((pid, start_time(pid)?))).collect();
    let alive = |&&(pid, started): &&(i32, u64)| {
        reap(pid);
        start_time(pid) == Some(started)
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for (pid, _) in known.iter().filter(alive) {
            kill(Pid::from_raw(*pid), signal).ok();
        }
        let wait = if signal == Signal::SIGTERM { Duration::from_secs(1) } else { GRACE };
        if until(wait, "processes to end", || !known.iter().any(|one| alive(&one))).is_ok() {
            return;
        }
    }
}

/// Collects the exit of a child of ours; does nothing for others.
fn reap(pid: i32) {
    waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).ok();
}

/// Field 22 of `/proc/PID/stat`; none for a process that is gone or only waits to be collected.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_end_in_time_is_killed_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo begun; sleep 60; echo never"]);
        let output = run(command, None, Duration::from_millis(300)).unwrap();
        assert!(!output.success() && output.status.is_none(), "{output:?}");
        assert_eq!(output.stdout, "begun\n");
        assert!(output.took < Duration::from_secs(5), "{output:?}");
    }

    #[test]
    fn input_is_given_and_output_taken() {
        let output = run(Command::new("cat"), Some(b"hello".to_vec()), Duration::from_secs(5)).unwrap();
        assert_eq!(output.ok().unwrap(), "hello");
    }

    #[test]
    fn a_reused_process_id_is_not_signalled() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let process = Process::start("sleeper", command, &directory.path().join("log")).unwrap();
        let stranger = Process { started: process.started + 1, ..process.clone() };
        stranger.signal(Signal::SIGKILL).unwrap();
        assert!(process.is_alive());
        process.kill().unwrap();
        assert!(!process.is_alive());
    }
}

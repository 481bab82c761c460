//! Running programs anywhere in a lab.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    lab::Lab,
    netns,
    place::{Place, PodName, check_label},
    process::{self, Output, Process},
};

impl Lab {
    /// A command that runs at a place: in its network namespace, with its names. Nothing runs yet.
    #[must_use]
    pub fn exec(&self, place: impl Into<Place>, argv: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec"]).arg(self.paths().namespace(&place.into())).args(argv);
        command
    }

    /// Runs a program at a place to its end, at most `timeout` long.
    ///
    /// # Errors
    /// If it cannot be started. How it ended is in the output.
    pub fn run(&self, place: impl Into<Place>, argv: &[&str], timeout: Duration) -> Result<Output> {
        process::run(self.exec(place, argv), None, timeout)
    }

    /// Does something at a place, on a thread of its own; sockets made there stay there.
    ///
    /// # Errors
    /// If there is no such place, or what `work` says.
    pub fn inside<T: Send>(&self, place: impl Into<Place>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::inside(&self.paths().namespace(&place.into()), work)
    }

    /// Starts a program at a place in the background; its output goes to a log of that name.
    ///
    /// # Errors
    /// If it cannot be started, or one of that name runs there.
    pub fn spawn(&self, place: impl Into<Place>, name: &str, argv: &[&str]) -> Result<Process> {
        let place = place.into();
        let name = format!("{place}.{name}");
        self.start(&name, self.exec(place, argv))
    }

    pub(crate) fn start(&self, name: &str, command: Command) -> Result<Process> {
        check_label(&name.replace('.', "-").chars().take(63).collect::<String>(), false)?;
        ensure!(!self.process(name).is_ok_and(|process| process.is_alive()), "{name} runs already");
        let process = Process::start(name, command, &self.paths().logs().join(format!("{name}.log")))?;
        fs::write(self.record(name), serde_json::to_vec(&process)?)?;
        Ok(process)
    }

    /// A program that was started, by its full name `place.name`.
    ///
    /// # Errors
    /// If none of that name was started.
    pub fn process(&self, name: &str) -> Result<Process> {
        let record = fs::read(self.record(name)).with_context(|| format!("{name} was not started in this lab"))?;
        Ok(serde_json::from_slice(&record)?)
    }

    pub(crate) fn record(&self, name: &str) -> PathBuf {
        self.paths().pids().join(format!("{name}.json"))
    }

    /// Finds a pod by `namespace/name`, or by its name alone where only one pod is called so.
    ///
    /// # Errors
    /// If there is none or there are several.
    pub fn find_pod(&self, text: &str) -> Result<PodName> {
        if text.contains('/') {
            return Ok(self.pod(&text.parse()?)?.name);
        }
        let mut found: Vec<PodName> =
            self.pods()?.into_iter().map(|pod| pod.name).filter(|pod| pod.name == text).collect();
        let names = found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        ensure!(found.len() < 2, "several pods are called {text}: {names}");
        found.pop().with_context(|| format!("there is no pod called {text} in lab {}", self.options().name))
    }
}

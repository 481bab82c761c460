//! The commands that concern pods: asks the agent as long as [`decide`](crate::decide) wants, and does as it says.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use underpass_enrolment::plugin::{Command, EnrolledNamespaces, PluginRequest, VERSION};

use crate::{
    agent::{Agent, Deadline},
    config::Sandbox,
    decide::{Standing, Verdict, judge, must_ask, standing},
    error::{Failure, MeshError},
    log::Log,
    network::{NetworkConfig, Settings},
    result::addresses,
};

/// A pod starts; the answer is the result of the plugins before, as it came.
pub(crate) fn add(
    sandbox: &Sandbox,
    network: &NetworkConfig<'_>,
    settings: &Settings,
    log: &Log,
) -> Result<String, Failure> {
    let result = network.previous_result()?.get();
    inspect(Command::Add, sandbox, result, &Wait::new(settings, settings.timeout), log)?;
    Ok(result.to_owned())
}

/// Does the pod have what ADD gave it?
pub(crate) fn check(
    sandbox: &Sandbox,
    network: &NetworkConfig<'_>,
    settings: &Settings,
    log: &Log,
) -> Result<(), Failure> {
    let result = network.previous_result()?.get();
    inspect(Command::Check, sandbox, result, &Wait::new(settings, settings.timeout), log)
}

/// Asks the agent about a pod that has addresses, if it is to be asked.
fn inspect(command: Command, sandbox: &Sandbox, result: &str, wait: &Wait<'_>, log: &Log) -> Result<(), Failure> {
    let standing = standing_of(sandbox, wait.settings);
    if must_ask(command, standing) {
        let request = PluginRequest { addresses: addresses(result)?, ..request(command, sandbox) };
        settle(&request, standing, wait, log)?;
    }
    Ok(())
}

/// The agent bounds its farewell to two seconds; more than this is an agent that hangs.
const LONGEST_FAREWELL: Duration = Duration::from_secs(5);

/// A pod ends. Never fails: the agent finds out by itself, and a pod that cannot end helps nobody.
pub(crate) fn del(sandbox: &Sandbox, settings: &Settings, log: &Log) {
    let standing = standing_of(sandbox, settings);
    if must_ask(Command::Del, standing) {
        let wait = Wait::new(settings, settings.timeout.min(LONGEST_FAREWELL));
        if let Err(error) = settle(&request(Command::Del, sandbox), standing, &wait, log) {
            log.note(&format!("DEL passes all the same: {error}"));
        }
    }
}

/// Whatever is not named is gone.
pub(crate) fn collect(network: &NetworkConfig<'_>, settings: &Settings, log: &Log) -> Result<(), Failure> {
    let request = PluginRequest {
        version: VERSION,
        command: Command::Gc,
        container_id: String::new(),
        netns: String::new(),
        ifname: String::new(),
        pod: None,
        addresses: Vec::new(),
        valid_attachments: network.valid_attachments()?,
        deadline_ms: 0,
    };
    settle(&request, Standing::Perhaps, &Wait::new(settings, settings.timeout), log)?;
    Ok(())
}

/// Whom to ask, and how long.
struct Wait<'a> {
    settings: &'a Settings,
    deadline: Deadline,
}

impl<'a> Wait<'a> {
    fn new(settings: &'a Settings, allowed: Duration) -> Self {
        Self { settings, deadline: Deadline::after(allowed) }
    }
}

/// Between two attempts: a pod starts soon after the agent is back, and a waiting pod costs nothing worth measuring.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks until there is a verdict. Ends with the deadline, because no verdict after it is to ask again.
fn settle(request: &PluginRequest, standing: Standing, wait: &Wait<'_>, log: &Log) -> Result<(), MeshError> {
    let subject = subject(request);
    let agent = Agent { socket: wait.settings.agent_socket.clone() };
    loop {
        let attempt = agent.ask(request.clone(), wait.deadline);
        match judge(request.command, standing, attempt, wait.deadline.time_after(PAUSE)) {
            Verdict::Again => std::thread::sleep(PAUSE),
            Verdict::FailAway(cause) => {
                return Err(MeshError::AgentAway { subject, socket: agent.socket, cause });
            }
            Verdict::FailLink(failure) => return Err(MeshError::MissingLink { subject, failure }),
            Verdict::FailUnknown(failure) => return Err(MeshError::UnknownContainer { subject, failure }),
            Verdict::Pass { enrolled } => {
                log.record(&format!("{subject}: {}", if enrolled { "enrolled" } else { "not enrolled" }));
                return Ok(());
            }
            Verdict::PassAnyway(why) => {
                log.note(&format!("{subject}: {why}"));
                return Ok(());
            }
        }
    }
}

fn subject(request: &PluginRequest) -> String {
    let PluginRequest { command, pod, container_id, .. } = request;
    let command = match command {
        Command::Add => "ADD",
        Command::Check => "CHECK",
        Command::Del => "DEL",
        Command::Gc => "GC",
    };
    match pod {
        Some(pod) => format!("{command} pod {}/{} ({container_id})", pod.namespace, pod.name),
        None if container_id.is_empty() => command.to_owned(),
        None => format!("{command} ({container_id})"),
    }
}

fn request(command: Command, sandbox: &Sandbox) -> PluginRequest {
    let Sandbox { container_id, netns, ifname, pod } = sandbox.clone();
    let (addresses, valid_attachments) = (Vec::new(), Vec::new());
    PluginRequest {
        version: VERSION,
        command,
        container_id,
        netns,
        ifname,
        pod,
        addresses,
        valid_attachments,
        deadline_ms: 0,
    }
}

fn standing_of(sandbox: &Sandbox, settings: &Settings) -> Standing {
    let enrolled = read_namespaces(&settings.enrolled_namespaces);
    standing(sandbox.pod.as_ref(), &enrolled)
}

/// A cluster has thousands of namespaces at most.
const LIST_LIMIT: u64 = 1 << 20;

fn read_namespaces(path: &Path) -> io::Result<EnrolledNamespaces> {
    let mut text = String::new();
    let read = File::open(path)?.take(LIST_LIMIT).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read < LIST_LIMIT) {
        Ok(EnrolledNamespaces::from_text(&text))
    } else {
        Err(io::Error::new(io::ErrorKind::FileTooLarge, "the list of namespaces is too long"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_list_with_anything_in_it_names_the_namespaces_that_stand_on_lines_of_their_own(
            names in proptest::collection::btree_set("[a-z][a-z0-9-]{0,20}", 0..8),
            noise in "[^a-z]*",
        ) {
            let mut text = noise.replace('\n', "#");
            for name in &names {
                text.push_str(&format!("\n {name}\r"));
            }
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("list");
            std::fs::write(&path, &text).unwrap();
            let list = read_namespaces(&path).unwrap();
            for name in &names {
                prop_assert!(list.contains(name));
            }
            prop_assert_eq!(EnrolledNamespaces::from_text(&list.to_string()), list);
        }
    }

    #[test]
    fn a_list_without_end_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        std::fs::write(&path, "shop\n".repeat(1 << 18)).unwrap();
        assert_eq!(read_namespaces(&path).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}

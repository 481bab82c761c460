//! How the runtime calls: the `CNI_*` variables. The only place that reads the environment.

use std::collections::BTreeMap;

use underpass_enrolment::plugin::Pod;

use crate::error::{InvocationError, shorten};

/// The variables that the CNI specification names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    variables: BTreeMap<&'static str, String>,
}

/// What the runtime wants, and of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// A pod starts.
    Add(Sandbox),
    /// Does a pod have what ADD gave it?
    Check(Sandbox),
    /// A pod ends.
    Del(Sandbox),
    /// Forget what is gone.
    Gc,
    /// Can pods start?
    Status,
    /// Which versions of CNI are spoken here?
    Version,
}

/// One interface of one pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// The runtime's id.
    pub(crate) container_id: String,
    /// The path of its network namespace; may be empty for DEL.
    pub(crate) netns: String,
    /// The interface.
    pub(crate) ifname: String,
    /// The pod; none if no Kubernetes calls.
    pub(crate) pod: Option<Pod>,
}

const COMMAND: &str = "CNI_COMMAND";
const CONTAINER_ID: &str = "CNI_CONTAINERID";
const NETNS: &str = "CNI_NETNS";
const IFNAME: &str = "CNI_IFNAME";
const ARGS: &str = "CNI_ARGS";

impl Environment {
    /// That of this process. What is not UTF-8 counts as missing.
    #[expect(clippy::disallowed_methods, reason = "CNI passes its parameters in the environment; it is read only here")]
    pub(crate) fn of_process() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let names = [COMMAND, CONTAINER_ID, NETNS, IFNAME, ARGS];
        Self { variables: names.into_iter().filter_map(|name| Some((name, lookup(name)?))).collect() }
    }

    /// A variable's value; empty if it is not set, which the specification does not tell apart.
    fn value(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    fn required(&self, name: &'static str, allowed: fn(&str) -> bool) -> Result<String, InvocationError> {
        match self.value(name) {
            "" => Err(invalid(name, "is not set")),
            value if allowed(value) => Ok(value.to_owned()),
            value => Err(invalid(name, &format!("has no valid value: {:?}", shorten(value)))),
        }
    }
}

impl Command {
    /// Reads a call.
    pub(crate) fn parse(environment: &Environment) -> Result<Self, InvocationError> {
        match environment.value(COMMAND) {
            "ADD" => Ok(Self::Add(Sandbox::parse(environment)?)),
            "CHECK" => Ok(Self::Check(Sandbox::parse(environment)?)),
            "DEL" => Ok(Self::Del(Sandbox::parse_ending(environment)?)),
            "GC" => Ok(Self::Gc),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            "" => Err(invalid(COMMAND, "is not set; container runtimes call this program, people do not")),
            other => Err(invalid(COMMAND, &format!("has an unknown value: {:?}", shorten(other)))),
        }
    }

    /// The command's name in the specification.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Check(_) => "CHECK",
            Self::Del(_) => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

impl Sandbox {
    fn parse(environment: &Environment) -> Result<Self, InvocationError> {
        Ok(Self {
            container_id: environment.required(CONTAINER_ID, is_container_id)?,
            netns: environment.required(NETNS, |path| path.starts_with('/'))?,
            ifname: environment.required(IFNAME, is_interface)?,
            pod: pod(environment.value(ARGS))?,
        })
    }

    /// On DEL the namespace may be gone, and what is wrong with the arguments keeps no pod from ending.
    fn parse_ending(environment: &Environment) -> Result<Self, InvocationError> {
        Ok(Self {
            container_id: environment.required(CONTAINER_ID, is_container_id)?,
            netns: environment.value(NETNS).to_owned(),
            ifname: environment.required(IFNAME, is_interface)?,
            pod: pod(environment.value(ARGS)).unwrap_or_default(),
        })
    }
}

/// The pod that kubelet's arguments name: `IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=...`.
fn pod(arguments: &str) -> Result<Option<Pod>, InvocationError> {
    let mut named = BTreeMap::new();
    for pair in arguments.split(';').filter(|pair| !pair.is_empty()) {
        let parts = pair.split_once('=');
        let (key, value) =
            parts.ok_or_else(|| invalid(ARGS, &format!("has a part that is no KEY=VALUE: {:?}", shorten(pair))))?;
        named.insert(key, value);
    }
    let argument = |key| named.get(key).copied().filter(|value| !value.is_empty());
    match (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => Ok(Some(Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: argument("K8S_POD_UID").unwrap_or_default().to_owned(),
        })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(invalid(ARGS, "has K8S_POD_NAMESPACE without K8S_POD_NAME")),
        (None, Some(_)) => Err(invalid(ARGS, "has K8S_POD_NAME without K8S_POD_NAMESPACE")),
    }
}

fn invalid(name: &'static str, problem: &str) -> InvocationError {
    InvocationError::Environment { name, problem: problem.to_owned() }
}

/// Begins with a letter or digit, goes on with those and `_.-` (CNI specification, section 2).
fn is_container_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    id.len() <= 256 && id.bytes().all(allowed) && id.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

/// At most 15 bytes, none of them a slash, a colon or white space; not `.` or `..` (`dev_valid_name` of the kernel).
fn is_interface(name: &str) -> bool {
    let allowed = |c: char| !matches!(c, '/' | ':') && !c.is_whitespace();
    name.len() <= 15 && name != "." && name != ".." && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KUBELET: &str =
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u1";

    fn call(variables: &[(&str, &str)]) -> Result<Command, String> {
        let lookup = |name: &str| variables.iter().rev().find(|(key, _)| *key == name).map(|(_, v)| (*v).to_owned());
        Command::parse(&Environment::from_lookup(lookup)).map_err(|error| error.to_string())
    }

    fn with(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        let base = [(CONTAINER_ID, "c1"), (NETNS, "/run/netns/a"), (IFNAME, "eth0"), (ARGS, KUBELET)];
        base.iter().chain(more).copied().collect()
    }

    #[test]
    fn reads_what_kubelet_says() {
        let pod = Pod { namespace: "shop".to_owned(), name: "web-0".to_owned(), uid: "u1".to_owned() };
        let sandbox = Sandbox {
            container_id: "c1".to_owned(),
            netns: "/run/netns/a".to_owned(),
            ifname: "eth0".to_owned(),
            pod: Some(pod),
        };
        assert_eq!(call(&with(&[(COMMAND, "ADD")])), Ok(Command::Add(sandbox.clone())));
        assert_eq!(call(&with(&[(COMMAND, "CHECK")])), Ok(Command::Check(sandbox.clone())));
        assert_eq!(call(&with(&[(COMMAND, "DEL")])), Ok(Command::Del(sandbox.clone())));
        let stranger = Sandbox { pod: None, ..sandbox };
        assert_eq!(call(&with(&[(COMMAND, "ADD"), (ARGS, "")])), Ok(Command::Add(stranger.clone())));
        assert_eq!(call(&with(&[(COMMAND, "ADD"), (ARGS, "IgnoreUnknown=1;A=b")])), Ok(Command::Add(stranger.clone())));
        let ending = Sandbox { netns: String::new(), ..stranger };
        assert_eq!(call(&with(&[(COMMAND, "DEL"), (NETNS, ""), (ARGS, "nonsense")])), Ok(Command::Del(ending)));
        for (name, command) in [("GC", Command::Gc), ("STATUS", Command::Status), ("VERSION", Command::Version)] {
            assert_eq!(call(&[(COMMAND, name)]), Ok(command));
        }
    }

    #[test]
    fn names_the_variable_that_is_wrong() {
        for (more, expected) in [
            (&[][..], "CNI_COMMAND is not set"),
            (&[(COMMAND, "add")], "CNI_COMMAND has an unknown value: \"add\""),
            (&[(COMMAND, "ADD"), (CONTAINER_ID, "")], "CNI_CONTAINERID is not set"),
            (&[(COMMAND, "DEL"), (CONTAINER_ID, "-c")], "CNI_CONTAINERID has no valid value: \"-c\""),
            (&[(COMMAND, "ADD"), (CONTAINER_ID, "a/b")], "CNI_CONTAINERID has no valid value"),
            (&[(COMMAND, "ADD"), (NETNS, "")], "CNI_NETNS is not set"),
            (&[(COMMAND, "CHECK"), (NETNS, "netns/a")], "CNI_NETNS has no valid value"),
            (&[(COMMAND, "DEL"), (IFNAME, "")], "CNI_IFNAME is not set"),
            (&[(COMMAND, "ADD"), (IFNAME, "a-name-too-long0")], "CNI_IFNAME has no valid value"),
            (&[(COMMAND, "ADD"), (IFNAME, "..")], "CNI_IFNAME has no valid value"),
            (&[(COMMAND, "ADD"), (ARGS, "K8S_POD_NAME")], "CNI_ARGS has a part that is no KEY=VALUE"),
            (&[(COMMAND, "ADD"), (ARGS, "K8S_POD_NAME=a")], "CNI_ARGS has K8S_POD_NAME without K8S_POD_NAMESPACE"),
            (&[(COMMAND, "ADD"), (ARGS, "K8S_POD_NAMESPACE=a")], "CNI_ARGS has K8S_POD_NAMESPACE without K8S_POD_NAME"),
        ] {
            let error = call(&with(more)).unwrap_err();
            assert!(error.contains(expected), "{error} should say {expected}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_arguments_never_panic(arguments in ".*") {
            drop(pod(&arguments));
        }

        #[test]
        fn reads_the_pod_wherever_it_stands(namespace in "[a-z]{1,9}", name in "[a-z0-9.-]{1,9}", before in "([A-Z]=[a-z]*;){0,3}") {
            let found = pod(&format!("{before}K8S_POD_NAME={name};X=;K8S_POD_NAMESPACE={namespace}")).unwrap().unwrap();
            prop_assert_eq!((found.namespace, found.name, found.uid), (namespace, name, String::new()));
        }
    }
}

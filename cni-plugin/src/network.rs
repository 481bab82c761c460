//! The network configuration that the runtime writes to standard input: CNI's own keys, and ours among them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{json, value::RawValue};
use underpass_enrolment::plugin::Attachment;

use crate::error::{InvocationError, shorten};

/// The versions of CNI that are spoken here, oldest first.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const NEWEST: &str = "1.1.0";

/// The network configuration as it came.
#[derive(Debug)]
pub struct NetworkConfig<'a> {
    keys: BTreeMap<String, &'a RawValue>,
}

/// What of the network configuration is the plugin's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `agentSocket`: where the node agent listens. `/var/run/underpass/plugin.sock` unless set.
    pub agent_socket: PathBuf,
    /// `enrolledNamespaces`: the file in which the agent leaves the namespaces whose pods must not start without the
    /// mesh. `/var/lib/underpass/enrolled-namespaces` unless set: on a disk, because after a reboot pods start before
    /// the agent.
    pub enrolled_namespaces: PathBuf,
    /// `timeout`: how long a pod's start may wait for the mesh, in seconds, or as `"10s"` or `"500ms"`. 10 s unless
    /// set: kubelet tries again after a failure, and runtimes give plugins minutes.
    pub timeout: Duration,
    /// `logFile`: where to write what was done, besides standard error. Nowhere unless set.
    pub log_file: Option<PathBuf>,
}

/// CNI's own keys; the result of the plugins before, and what concerns other plugins, is let pass.
const STANDARD: [&str; 14] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
    "capabilities",
    "runtimeConfig",
    "args",
    "ipMasq",
    "ipam",
    "dns",
    "prevResult",
];
/// CNI keeps keys with this prefix for its own later use.
const STANDARD_PREFIX: &str = "cni.dev/";
const AGENT_SOCKET: &str = "agentSocket";
const ENROLLED_NAMESPACES: &str = "enrolledNamespaces";
const TIMEOUT: &str = "timeout";
const LOG_FILE: &str = "logFile";
const OURS: [&str; 4] = [AGENT_SOCKET, ENROLLED_NAMESPACES, TIMEOUT, LOG_FILE];

impl<'a> NetworkConfig<'a> {
    /// Reads a configuration of a version that is spoken here.
    ///
    /// # Errors
    /// If it is no JSON object, or of another version.
    pub fn parse(input: &'a [u8]) -> Result<Self, InvocationError> {
        let keys = serde_json::from_slice(input)
            .map_err(|error| InvocationError::Decode(format!("network configuration is no JSON object: {error}")))?;
        let network = Self { keys };
        let version: String = network.key("cniVersion")?.unwrap_or_default();
        if VERSIONS.contains(&version.as_str()) {
            Ok(network)
        } else {
            Err(InvocationError::Version(shorten(&version)))
        }
    }

    /// The result of the plugins before this one, as it came.
    ///
    /// # Errors
    /// If there is none.
    pub fn previous_result(&self) -> Result<&'a RawValue, InvocationError> {
        let result = self.keys.get("prevResult").copied().filter(|result| result.get().starts_with('{'));
        result.ok_or_else(|| {
            config(
                "prevResult",
                "is no result; this plugin stands behind one that makes the pod's interface, never alone",
            )
        })
    }

    /// The attachments that exist, which come with GC.
    ///
    /// # Errors
    /// If there is no such list.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, InvocationError> {
        #[derive(Deserialize)]
        struct Valid {
            #[serde(rename = "containerID")]
            container_id: String,
            ifname: String,
        }
        const KEY: &str = "cni.dev/valid-attachments";
        let valid: Option<Vec<Valid>> = self.key(KEY)?;
        // None given would mean that all are gone.
        let valid = valid.ok_or_else(|| config(KEY, "is missing"))?;
        Ok(valid.into_iter().map(|Valid { container_id, ifname }| Attachment { container_id, ifname }).collect())
    }

    /// A key's value; `null` counts as missing.
    fn key<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<Option<T>, InvocationError> {
        let Some(raw) = self.keys.get(key) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|error| config(key, &error.to_string()))
    }

    fn path(&self, key: &str) -> Result<Option<PathBuf>, InvocationError> {
        let path: Option<PathBuf> = self.key(key)?;
        match path {
            Some(path) if !path.is_absolute() => Err(config(key, "is no absolute path")),
            path => Ok(path),
        }
    }
}

impl Settings {
    /// Reads the plugin's own keys; a key that nobody knows is refused, because it may be one of ours with a slip.
    ///
    /// # Errors
    /// The first key that is not known or has a wrong value.
    pub fn parse(network: &NetworkConfig<'_>) -> Result<Self, InvocationError> {
        let known = |key: &str| STANDARD.contains(&key) || OURS.contains(&key) || key.starts_with(STANDARD_PREFIX);
        if let Some((key, value)) = network.keys.iter().find(|(key, _)| !known(key)) {
            return Err(InvocationError::UnsupportedField { key: shorten(key), value: shorten(value.get()) });
        }
        let path = |key, default| Ok(network.path(key)?.unwrap_or_else(|| Path::new(default).to_owned()));
        Ok(Self {
            agent_socket: path(AGENT_SOCKET, "/var/run/underpass/plugin.sock")?,
            enrolled_namespaces: path(ENROLLED_NAMESPACES, "/var/lib/underpass/enrolled-namespaces")?,
            timeout: network.key(TIMEOUT)?.map_or(Ok(DEFAULT_TIMEOUT), timeout)?,
            log_file: network.path(LOG_FILE)?,
        })
    }
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Runtimes give up after minutes; what waits longer is forgotten, not patient.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(120);

/// A duration as people write it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "neither seconds nor a text like \"10s\" or \"500ms\"")]
enum Written {
    Seconds(f64),
    Text(String),
}

fn timeout(written: Written) -> Result<Duration, InvocationError> {
    let number = |text: &str, unit: f64| text.parse().ok().map(|number: f64| number * unit);
    let seconds = match written {
        Written::Seconds(seconds) => Some(seconds),
        Written::Text(text) => match (text.strip_suffix("ms"), text.strip_suffix('s')) {
            (Some(milliseconds), _) => number(milliseconds, 0.001),
            (None, Some(seconds)) => number(seconds, 1.0),
            (None, None) => None,
        },
    };
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.filter(|duration| !duration.is_zero() && *duration <= LONGEST_TIMEOUT).ok_or_else(|| {
        config(TIMEOUT, "is neither seconds nor a text like \"10s\" or \"500ms\", more than 0 and at most 120 s")
    })
}

fn config(key: &str, problem: &str) -> InvocationError {
    InvocationError::Config { key: key.to_owned(), problem: problem.to_owned() }
}

/// The version that an input declares, for the error that answers it; the newest if it declares none.
#[must_use]
pub fn declared_version(input: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Declared {
        #[serde(rename = "cniVersion")]
        version: String,
    }
    serde_json::from_slice(input).map_or_else(|_| NEWEST.to_owned(), |declared: Declared| shorten(&declared.version))
}

/// The answer to VERSION, which asks in any version.
#[must_use]
pub fn version_answer(input: &[u8]) -> String {
    json!({ "cniVersion": declared_version(input), "supportedVersions": VERSIONS }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(keys: &str) -> Result<Settings, String> {
        let input = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"underpass-cni"{keys}}}"#);
        let network = NetworkConfig::parse(input.as_bytes()).map_err(|error| error.to_string())?;
        Settings::parse(&network).map_err(|error| error.to_string())
    }

    #[test]
    fn has_sensible_defaults() {
        let settings = settings(r#","runtimeConfig":{},"ipam":{},"cni.dev/later":1,"logFile":null"#).unwrap();
        assert_eq!(settings.agent_socket, Path::new("/var/run/underpass/plugin.sock"));
        assert_eq!(settings.enrolled_namespaces, Path::new("/var/lib/underpass/enrolled-namespaces"));
        assert_eq!(settings.timeout, Duration::from_secs(10));
        assert!(settings.log_file.is_none());
    }

    #[test]
    fn reads_every_key_of_ours() {
        let settings = settings(r#","agentSocket":"/a","enrolledNamespaces":"/b","timeout":2.5,"logFile":"/c""#);
        let settings = settings.unwrap();
        assert_eq!(settings.agent_socket, Path::new("/a"));
        assert_eq!(settings.enrolled_namespaces, Path::new("/b"));
        assert_eq!(settings.timeout, Duration::from_millis(2500));
        assert_eq!(settings.log_file, Some(PathBuf::from("/c")));
    }

    #[test]
    fn reads_durations_as_people_write_them() {
        for (written, expected) in [("10", 10_000), ("\"10s\"", 10_000), ("\"250ms\"", 250), ("\"1.5s\"", 1500)] {
            let settings = settings(&format!(r#","timeout":{written}"#)).unwrap();
            assert_eq!(settings.timeout, Duration::from_millis(expected), "{written}");
        }
        for wrong in ["0", "-1", "121", "1e300", "\"10\"", "\"10m\"", "\"s\"", "\"NaNs\"", "\"\"", "[]", "true"] {
            let error = settings(&format!(r#","timeout":{wrong}"#)).unwrap_err();
            assert!(error.contains("network configuration: timeout: "), "{wrong}: {error}");
        }
    }

    #[test]
    fn names_the_key_that_is_wrong() {
        for (keys, expected) in [
            (r#","agentSockt":"/a""#, r#"unsupported field agentSockt with value "/a""#),
            (r#","agentSocket":"run/a""#, "agentSocket: is no absolute path"),
            (r#","agentSocket":7"#, "agentSocket: invalid type"),
            (r#","excludedNamespaces":["x"]"#, "unsupported field excludedNamespaces"),
        ] {
            let error = settings(keys).unwrap_err();
            assert!(error.contains(expected), "{error} should say {expected}");
        }
    }

    #[test]
    fn speaks_four_versions_and_no_other() {
        let parse = |input: &str| NetworkConfig::parse(input.as_bytes()).map(drop);
        for version in VERSIONS {
            parse(&format!(r#"{{"cniVersion":"{version}"}}"#)).unwrap();
        }
        for other in [r#"{"cniVersion":"0.3.0"}"#, r#"{"cniVersion":"2.0.0"}"#, r#"{"cniVersion":""}"#, "{}"] {
            assert!(matches!(parse(other), Err(InvocationError::Version(_))), "{other}");
        }
        assert!(matches!(parse(r#"{"cniVersion":1}"#), Err(InvocationError::Config { .. })));
        for garbage in ["", "[]", "{", "null", r#"{"cniVersion":"1.0.0"} more"#] {
            assert!(matches!(parse(garbage), Err(InvocationError::Decode(_))), "{garbage}");
        }
    }

    #[test]
    fn never_takes_a_missing_list_of_attachments_for_an_empty_one() {
        let attachments = |input: &str| NetworkConfig::parse(input.as_bytes()).unwrap().valid_attachments();
        assert!(attachments(r#"{"cniVersion":"1.1.0"}"#).is_err());
        assert!(attachments(r#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":null}"#).is_err());
        assert_eq!(attachments(r#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":[]}"#).unwrap(), []);
        let one = r#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":[{"containerID":"c","ifname":"e"}]}"#;
        assert_eq!(attachments(one).unwrap(), [Attachment { container_id: "c".to_owned(), ifname: "e".to_owned() }]);
    }

    proptest! {
        #[test]
        fn arbitrary_input_never_panics(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(network) = NetworkConfig::parse(&input) {
                drop(Settings::parse(&network));
            }
            drop(version_answer(&input));
        }
    }
}

//! What the container runtime writes to the plugin's standard input.

use std::time::Duration;

use serde_json::Value;
use underpass_cni::{
    network::{NetworkConfig, Settings, declared_version, version_answer},
    result,
};

/// The network configuration of a pod's node.
pub(crate) fn network_configuration(input: &[u8]) {
    let answer: Value = serde_json::from_str(&version_answer(input)).expect("our own JSON");
    assert_eq!(answer.get("cniVersion").and_then(Value::as_str), Some(&*declared_version(input)));
    let network = match NetworkConfig::parse(input) {
        Ok(network) => network,
        Err(error) => return assert!(error.to_string().len() < 8 * 1024),
    };
    let text = std::str::from_utf8(input).expect("JSON is UTF-8");
    let spoken = answer.get("supportedVersions").and_then(Value::as_array).expect("a list");
    assert!(spoken.iter().any(|version| version.as_str() == Some(&*declared_version(input))), "{text}");
    match Settings::parse(&network) {
        Ok(settings) => {
            assert!(!settings.timeout.is_zero() && settings.timeout <= Duration::from_secs(120));
            let paths = [Some(&settings.agent_socket), Some(&settings.enrolled_namespaces), settings.log_file.as_ref()];
            assert!(paths.into_iter().flatten().all(|path| path.is_absolute()));
        }
        Err(error) => assert!(error.to_string().chars().count() < 1024, "{error}"),
    }
    if let Ok(previous) = network.previous_result() {
        // It is passed on to the next plugin byte by byte.
        assert!(text.contains(previous.get()));
        let addresses = result::addresses(previous.get());
        let written = previous.get().matches("address").count();
        assert!(addresses.is_err() || previous.get().contains('\\') || addresses.is_ok_and(|all| all.len() <= written));
    }
    if let Ok(attachments) = network.valid_attachments() {
        assert!(attachments.is_empty() || text.contains("ifname") || text.contains('\\'));
    }
}

//! What of the previous plugins' result the agent wants to know: the pod's addresses.

use std::net::IpAddr;

use serde::Deserialize;

use crate::error::{InvocationError, shorten};

#[derive(Deserialize)]
struct PreviousResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    /// The path of the namespace it is in; empty for the host's.
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    /// An index into the interfaces.
    interface: Option<usize>,
    /// With the length of its prefix.
    address: String,
}

/// The addresses that the pod has, in the result's order; those of the host's interfaces are left out.
///
/// # Errors
/// If it is no plugin's result.
pub fn addresses(result: &str) -> Result<Vec<IpAddr>, InvocationError> {
    let result: PreviousResult = serde_json::from_str(result)
        .map_err(|error| InvocationError::Decode(format!("prevResult is not the result of a plugin: {error}")))?;
    let on_host = |ip: &Ip| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_some_and(|interface| interface.sandbox.is_empty())
    };
    result.ips.iter().filter(|ip| !on_host(ip)).map(|ip| address(&ip.address)).collect()
}

fn address(text: &str) -> Result<IpAddr, InvocationError> {
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    address.parse().map_err(|_| InvocationError::Decode(format!("prevResult: ips: {:?} is no address", shorten(text))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_the_addresses_of_the_pod_and_not_of_the_host() {
        for (result, expected) in [
            (r#"{"ips":[{"address":"10.1.0.5/16"},{"address":"fd00::5/64"}]}"#, &["10.1.0.5", "fd00::5"][..]),
            (
                r#"{"interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/run/netns/a"}],
                   "ips":[{"version":"4","interface":0,"address":"10.1.0.1/16"},{"interface":1,"address":"10.1.0.5/16","gateway":"10.1.0.1"}]}"#,
                &["10.1.0.5"],
            ),
            (r#"{"interfaces":[],"ips":[{"interface":3,"address":"10.1.0.5"}]}"#, &["10.1.0.5"]),
            (r#"{"cniVersion":"1.0.0"}"#, &[]),
        ] {
            let expected: Vec<IpAddr> = expected.iter().map(|address| address.parse().unwrap()).collect();
            assert_eq!(addresses(result).unwrap(), expected);
        }
    }

    #[test]
    fn refuses_what_no_plugin_returns() {
        for result in ["7", r#"{"ips":7}"#, r#"{"ips":[{}]}"#, r#"{"ips":[{"address":"ten/8"}]}"#] {
            assert!(matches!(addresses(result), Err(InvocationError::Decode(_))), "{result}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_results_never_panic(result in ".*", address in ".*") {
            drop(addresses(&result));
            drop(super::address(&address));
        }
    }
}

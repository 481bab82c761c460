//! The one list of all reasons: every stable label that code gives out is in it, and nothing else, and
//! `docs/reference/reasons.md` is made of it. After a change of the list: `cargo test -p underpass-e2e --test reasons --
//! --ignored`.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// What belongs together: a title, what it is about, the files whose labels it has, and the labels.
struct Section {
    title: &'static str,
    about: &'static str,
    files: &'static [&'static str],
    labels: &'static [(&'static str, &'static str)],
}

const SECTIONS: [Section; 12] = [
    Section {
        title: "Connections: refused by decision",
        about: "Somebody may not. The access line names the policy, if it was one, and both identities.",
        files: &["lib/policy/src/decide.rs", "lib/policy/src/refusal.rs"],
        labels: &[
            ("foreign_trust_domain", "the peer's identity is of another trust domain"),
            (
                "loopback_destination",
                "the destination is a loopback address, which no connection from outside may reach",
            ),
            ("own_port", "the destination is one of the node proxy's own ports"),
            ("policy_denied", "a policy denies it"),
            ("policy_not_allowed", "policies allow some connections to the pod, and this is none of them"),
            ("policy_unknown", "the pod is under a policy that is not known (yet)"),
            ("policy_unreadable", "the pod is under a policy that was not understood"),
        ],
    },
    Section {
        title: "Connections: ended or not begun",
        about: "The node proxy ended the connection, or never began it.",
        files: &["nodeproxy/src/lanes.rs", "nodeproxy/src/connections.rs", "nodeproxy/src/capture/original_dst.rs"],
        labels: &[
            ("closed_early", "plaintext that policies refuse, closed before it could be told whether it was a probe"),
            ("no_original_destination", "the kernel does not tell where the connection was going"),
            ("own_port", "the connection was made to one of the node proxy's own ports, not redirected there"),
            ("own_workload_unknown", "discovery told nothing of this pod within 5 s, nor what it is under"),
            ("peer_gave_up", "the peer cancelled before it was answered"),
            ("pod_ends", "the pod was deleted or ends"),
            ("revoked", "the connection was allowed, and a change of policy forbids it now"),
            ("view_pending", "no complete answer of the operator within 5 s"),
        ],
    },
    Section {
        title: "Connections: no room",
        about: "The pod, or the node, has as much as it may have. Whoever comes waits at first and is reset, or answered 503 \
                in a tunnel, after a while.",
        files: &["nodeproxy/src/budget.rs"],
        labels: &[
            ("budget_connections", "the pod has as many connections as it may have"),
            ("budget_descriptors", "the node proxy has as many descriptors open for the pod as it may"),
            (
                "budget_handshakes",
                "as many peers shake hands with the pod as may at once, and this one took longer than others do",
            ),
            (
                "budget_node",
                "the node proxy's descriptors are scarce, and the pod has more than what every pod is sure of",
            ),
        ],
    },
    Section {
        title: "Connections: nowhere to go",
        about: "The destination is known to the mesh, and there is no way to it.",
        files: &["nodeproxy/src/resolve.rs", "nodeproxy/src/resolve/inbound.rs", "lib/discovery/src/store/mesh.rs"],
        labels: &[
            ("authority_not_this_pod", "a peer asked for another address than the one it connected to"),
            ("authority_unknown_port", "a peer asked for a port that the service does not have here"),
            ("authority_unknown_service", "a peer asked for a service that this pod does not back"),
            ("discovery_busy", "too many questions to the operator are open"),
            ("discovery_timeout", "the operator did not say who is at the address"),
            ("endpoint_identity", "the endpoint's names cannot stand in an identity"),
            ("no_endpoint", "the service has no healthy endpoint"),
            ("no_service_port", "the service has no such port"),
            ("no_waypoint", "the waypoint that the destination is bound to is not there"),
        ],
    },
    Section {
        title: "Connections: the way failed",
        about: "TCP, TLS or the tunnel failed between the two ends.",
        files: &[
            "nodeproxy/src/tunnel.rs",
            "lib/hbone/src/client.rs",
            "lib/hbone/src/server.rs",
            "lib/hbone/src/stream.rs",
            "lib/identity/src/store.rs",
        ],
        labels: &[
            ("bad_authority", "a peer's request names no target that can be understood"),
            ("certificate_missing", "this pod has no certificate yet"),
            ("connect_failed", "TCP failed in another way"),
            ("connect_refused", "nobody listens at the destination"),
            ("connect_timeout", "the destination did not answer"),
            ("connect_unreachable", "there is no route to the destination"),
            ("not_connect", "a peer's request is no CONNECT"),
            ("peer_certificate_revoked", "the peer's certificate was revoked, so the tunnel was cut"),
            ("stopping", "the node proxy stops"),
            ("stream_declined", "the peer refused the stream before anything of it was read"),
            ("stream_reset", "the peer reset the stream"),
            ("tunnel_bad_request", "our own request could not be written"),
            ("tunnel_dial_failed", "TCP to port 15008 failed"),
            ("tunnel_dial_timeout", "TCP to port 15008 was not answered; a NetworkPolicy may forbid it"),
            ("tunnel_handshake_timeout", "the TLS or HTTP/2 handshake was not finished in time"),
            ("tunnel_http2_failed", "the HTTP/2 handshake failed"),
            ("tunnel_lost", "the tunnel broke"),
            ("tunnel_no_answer", "the peer did not answer the CONNECT in time"),
            ("tunnel_refused", "the peer answered the CONNECT with another status than 200"),
            ("tunnel_reset", "the peer reset the CONNECT"),
            ("tunnel_silent", "nothing was heard from the peer after the CONNECT, not even an answer to a PING"),
            ("tunnel_tls_failed", "the TLS handshake failed"),
            ("tunnel_wrong_protocol", "the other end of TLS does not speak HTTP/2"),
        ],
    },
    Section {
        title: "Connections: the peer is not who it should be",
        about: "The certificate was valid TLS, but not what the mesh needs.",
        files: &["lib/identity/src/tls/peer.rs"],
        labels: &[
            ("peer_certificate_expired", "its certificate has expired"),
            ("peer_certificate_malformed", "its certificate cannot be read"),
            ("peer_certificate_not_yet_valid", "its certificate is not valid yet; clocks may differ"),
            ("peer_certificate_revoked", "one of the certificates that it showed is revoked"),
            ("peer_no_certificate", "it showed no certificate"),
            ("peer_no_identity", "its certificate has no SPIFFE id of a workload"),
            ("peer_wrong_identity", "it is somebody else than the one that was dialled"),
            ("peer_wrong_trust_domain", "it is of another trust domain"),
        ],
    },
    Section {
        title: "Connections: bytes under way",
        about: "An end broke; the other one was reset. Downstream connected to us, upstream is whom we connected to.",
        files: &["lib/hbone/src/copy.rs"],
        labels: &[
            ("downstream_failed", "the downstream end failed"),
            ("downstream_reset", "the downstream end reset"),
            (
                "peer_certificate_revoked",
                "the certificate by which the peer had proved itself was revoked, so its tunnel was cut",
            ),
            ("upstream_failed", "the upstream end failed"),
            ("upstream_reset", "the upstream end reset"),
        ],
    },
    Section {
        title: "Enrolment",
        about: "Why a pod is not enrolled, and what is wrong with a message between plugin, agent and node proxy.",
        files: &["lib/objects/src/enrolment.rs", "lib/enrolment/src/message.rs"],
        labels: &[
            ("disabled", "its label says so"),
            ("host_network", "it shares its node's network namespace"),
            ("message_descriptors", "a message came with another number of descriptors than it needs"),
            ("message_field", "a field of a message has a value that it cannot have"),
            ("message_field_missing", "a message lacks a field"),
            ("message_malformed", "a message cannot be read"),
            ("message_too_long", "a message is longer than the socket takes"),
            ("message_too_many_descriptors", "a message has more descriptors than the socket takes"),
            ("not_labelled", "neither it nor its namespace carries the label"),
            ("system_namespace", "its namespace is never enrolled"),
            ("terminal", "it has ended"),
            ("unknown_label_value", "its label has a value that means nothing"),
        ],
    },
    Section {
        title: "Objects and resources",
        about: "Why a manifest or a resource of discovery is not taken. The last good state stays in force.",
        files: &["lib/objects/src/directory.rs", "lib/objects/src/manifest.rs", "lib/discovery/src/wire/convert.rs"],
        labels: &[
            ("address_length", "an address has another length than 4 or 16 bytes"),
            ("duplicate", "the object stands somewhere else already"),
            ("empty", "a field is empty that must not be"),
            ("field", "a field has a value that it cannot have, or is missing"),
            ("form", "a name is not of the form that the field wants"),
            ("no_time", "a time is missing or cannot be read"),
            ("not_utf8", "the file is not UTF-8"),
            ("port", "a number is no port"),
            ("prefix_length", "a prefix is longer than its address"),
            ("syntax", "the file is not YAML"),
            ("unknown_extension", "something further is asked for that is not known"),
            ("unknown_value", "a number stands for nothing that is known"),
            ("unreadable", "the file cannot be read"),
        ],
    },
    Section {
        title: "Objects from an API server",
        about: "Why objects of a kind, or one object, cannot be followed. The last good state stays in force.",
        files: &["lib/objects/src/snapshot.rs"],
        labels: &[
            ("forbidden", "the API server refuses it: the message names the right that is missing"),
            ("not_listed", "the API server has not answered yet"),
            ("object", "an object of the mesh's own kinds says what this release does not understand"),
            ("refused", "the API server refuses for another cause, which the message tells"),
            ("unauthorized", "the API server does not accept the credentials"),
            ("unknown_kind", "the API server does not know the kind: its CustomResourceDefinition is not installed"),
            ("unreachable", "the API server does not answer"),
        ],
    },
    Section {
        title: "Plugin on a node",
        about: "Why the node agent cannot install its CNI plugin. Pods are captured a moment after their start then.",
        files: &[
            "cni-plugin/agent/src/install/apply.rs",
            "cni-plugin/agent/src/install/document.rs",
            "cni-plugin/agent/src/install/locate.rs",
            "cni-plugin/agent/src/install/plan.rs",
        ],
        labels: &[
            ("binaries_absent", "none of the directories in which the runtime looks for plugins exists"),
            ("configuration_absent", "there is no network configuration (yet); the cluster's CNI writes one"),
            ("configuration_incomplete", "the network configuration has no name, no plugin, or a plugin without type"),
            ("configuration_malformed", "no file is a network configuration in JSON"),
            ("configuration_name_taken", "the name for the chain that would be made is that of somebody else's file"),
            ("configuration_restless", "others write the configurations all the time"),
            ("configuration_version", "the network configuration's `cniVersion` has no chains that the plugin speaks"),
            ("files_failed", "the node's file system refuses"),
            ("runtime_ambiguous", "several container runtimes run, and the kubelet does not say which is its own"),
            ("runtime_configuration_malformed", "the container runtime's configuration is no TOML"),
            ("runtime_unknown", "neither containerd nor CRI-O is to be seen"),
        ],
    },
    Section {
        title: "Certificates",
        about: "Why the operator does not sign.",
        files: &["operator/src/ca/authority.rs", "operator/src/ca/attest.rs"],
        labels: &[
            ("bad_request", "the request cannot be read, or asks for what it may not"),
            ("internal", "the operator itself failed"),
            ("issuing_expired", "the certificate to sign with has expired"),
            ("not_on_node", "the node that asks runs no pod of that identity"),
            ("trust_domain", "the identity is of another trust domain"),
        ],
    },
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every source file of the programs and their libraries, tests apart.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> =
        ["cni-plugin", "lib", "nodeproxy", "operator"].iter().map(|name| root().join(name)).collect();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "tests" && name != "target" {
                directories.push(path);
            } else if name.ends_with(".rs") && name != "tests.rs" {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The labels that functions called `reason` (or `..._reason`) in a file give out: what stands to the right of an arrow.
fn labels(source: &str) -> Vec<String> {
    let mut labels = Vec::new();
    let mut indent = None;
    for line in source.lines() {
        let depth = line.len() - line.trim_start().len();
        let text = line.trim();
        match indent {
            None if text.contains("fn ") && text.contains("reason(") && text.contains("&'static str {") => {
                indent = Some(depth);
            }
            Some(start) if text == "}" && depth == start => indent = None,
            Some(_) => {
                let label = text.split_once("=> \"").and_then(|(_, rest)| rest.split_once('"'));
                labels.extend(label.map(|(label, _)| label.to_owned()));
            }
            None => {}
        }
    }
    labels
}

/// The page.
fn page() -> String {
    let mut page = String::from(
        "# Reasons\n\nEvery refusal, failure and end has a stable label: `reason` in access lines and metrics. `ok` is a connection that\n\
         both ends ended, `abandoned` one whose task was dropped.\n\nThis page is made of the list in `e2e/tests/reasons.rs`, \
         which a test compares with the code.\n",
    );
    for Section { title, about, labels, .. } in SECTIONS {
        write!(page, "\n## {title}\n\n{about}\n\n| label | means |\n|---|---|\n").unwrap();
        for (label, means) in labels {
            writeln!(page, "| `{label}` | {means} |").unwrap();
        }
    }
    page
}

fn page_file() -> PathBuf {
    root().join("docs/reference/reasons.md")
}

#[test]
fn every_label_of_the_code_is_in_the_list_and_no_other() {
    let mut wrong = Vec::new();
    let mut of_code = BTreeMap::<String, Vec<String>>::new();
    for path in sources() {
        let labels = labels(&fs::read_to_string(&path).unwrap());
        if !labels.is_empty() {
            of_code.insert(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), labels);
        }
    }
    for Section { title, files, labels, .. } in SECTIONS {
        let mut given: Vec<String> = files.iter().flat_map(|file| of_code.remove(*file).unwrap_or_default()).collect();
        given.sort();
        given.dedup();
        let listed: Vec<&str> = labels.iter().map(|(label, _)| *label).collect();
        if given != listed {
            wrong.push(format!("{title}: the code gives {given:?}, the list has {listed:?}"));
        }
    }
    wrong.extend(of_code.into_iter().map(|(file, labels)| format!("{file} is in no section: {labels:?}")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_page_is_what_the_list_says() {
    assert_eq!(fs::read_to_string(page_file()).unwrap_or_default(), page(), "write it anew, see above");
}

#[test]
#[ignore = "writes the page into the working copy"]
fn write_the_page() {
    fs::write(page_file(), page()).unwrap();
}

//! Every metric of the mesh. `docs/reference/metrics.md` is made of this file.

use super::{Counters, Description, Gauges, Histograms, Listed};

const DIRECTION: (&str, &str) = ("direction", "`inbound` into the pod, `outbound` out of it");
/// Bounds of what is told to a whole mesh.
const PUSHES: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];
/// Bounds of what takes one signature.
const SIGNING: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.02, 0.1];
const KIND: (&str, &str) = ("kind", "the objects' kind");
/// Few bounds: waits are either nothing, noticeable, or near a deadline.
const WAITS: &[f64] = &[0.001, 0.01, 0.1, 0.5, 1.0, 5.0];

/// Labels of what one connection says: those of Istio's standard metrics.
pub type Traffic = Counters<{ TRAFFIC.len() }>;

/// Labels of Istio's standard TCP metrics. A value that is not known is `unknown`.
pub const TRAFFIC: [(&str, &str); 27] = [
    ("reporter", "`source`: the proxy of who connects; `destination`: the proxy of who is reached"),
    ("source_workload", "what runs the client: the Deployment, StatefulSet …, or the pod itself"),
    ("source_workload_namespace", "its namespace"),
    ("source_principal", "the client's SPIFFE id, where it was proven"),
    ("source_canonical_service", "the name under which telemetry counts it"),
    ("source_canonical_revision", "its version"),
    ("source_app", "the same as the canonical service"),
    ("source_version", "the same as the canonical revision"),
    ("source_cluster", "its cluster"),
    ("source_region", "its region"),
    ("source_zone", "its zone"),
    ("destination_workload", "what runs the server"),
    ("destination_workload_namespace", "its namespace"),
    ("destination_principal", "the server's SPIFFE id, where it was proven"),
    ("destination_canonical_service", "the name under which telemetry counts it"),
    ("destination_canonical_revision", "its version"),
    ("destination_app", "the same as the canonical service"),
    ("destination_version", "the same as the canonical revision"),
    ("destination_cluster", "its cluster"),
    ("destination_region", "its region"),
    ("destination_zone", "its zone"),
    ("destination_service", "host name of the service that was dialled"),
    ("destination_service_name", "its short name"),
    ("destination_service_namespace", "its namespace"),
    ("request_protocol", "`tcp`"),
    (
        "response_flags",
        "why it failed: `-` not at all, `DENY` policy, `CONNECT` no way to the server, `TLS_FAILURE`, \
         `H2_HANDSHAKE_FAILURE`, `NETWORK_POLICY` the tunnel's port did not answer, `IDENTITY_ERROR`",
    ),
    ("connection_security_policy", "`mutual_tls` through a tunnel, else `unknown`"),
];

const fn traffic(name: &'static str, help: &'static str) -> Traffic {
    Counters(Description { name, help, labels: TRAFFIC })
}

const fn counter<const N: usize>(
    name: &'static str,
    help: &'static str,
    labels: [(&'static str, &'static str); N],
) -> Counters<N> {
    Counters(Description { name, help, labels })
}

const fn gauge<const N: usize>(
    name: &'static str,
    help: &'static str,
    labels: [(&'static str, &'static str); N],
) -> Gauges<N> {
    Gauges(Description { name, help, labels })
}

/// Connections by who speaks to whom.
pub static TCP_OPENED: Traffic = traffic(
    "istio_tcp_connections_opened_total",
    "Connections opened; one that fails before it reaches anybody counts when it fails.",
);
/// Connections that ended.
pub static TCP_CLOSED: Traffic =
    traffic("istio_tcp_connections_closed_total", "Connections ended, for whatever cause.");
/// Connections that failed.
pub static TCP_FAILED: Traffic =
    traffic("istio_tcp_connections_failed_total", "Connections ended by a failure that has a response flag.");
/// Bytes from client to server.
pub static TCP_RECEIVED: Traffic = traffic(
    "istio_tcp_received_bytes_total",
    "Bytes from client to server, while they flow; the same for both reporters.",
);
/// Bytes from server to client.
pub static TCP_SENT: Traffic =
    traffic("istio_tcp_sent_bytes_total", "Bytes from server to client, while they flow; the same for both reporters.");
/// What runs.
pub static ISTIO_BUILD: Gauges<2> =
    gauge("istio_build", "1; says what runs.", [("component", "the program"), ("tag", "its version")]);

/// Label sets that found no room.
pub static OVERFLOWED: Counters<0> = counter(
    "underpass_metrics_overflow_total",
    "Connections counted under `overflow`, because there are as many label sets as may be.",
    [],
);
/// Label sets.
pub static LABEL_SETS: Gauges<0> =
    gauge("underpass_metrics_label_sets", "Sets of labels under which connections are counted.", []);

/// Connections that live.
pub static CONNECTIONS_LIVE: Gauges<0> = gauge(
    "underpass_connections_live",
    "Connections, tunnel streams and handshakes of peers that are under way; which ones says `/connections`.",
    [],
);
/// Connections of this run.
pub static GENERATION_CONNECTIONS: Gauges<1> = gauge(
    "underpass_generation_connections",
    "Connections of pods that live in this run of the node proxy; while one run follows another, a node has several.",
    [("generation", "the run, as the node agent and `/generation` name it")],
);
/// Whether connections are taken.
pub static ACCEPTING: Gauges<0> = gauge(
    "underpass_accepting",
    "1 while connections are taken; 0 once another run of the node proxy takes them, or shortly before the end.",
    [],
);
/// How connections ended.
pub static CONNECTIONS_CLOSED: Counters<3> = counter(
    "underpass_connections_closed_total",
    "Connections and tunnel streams that ended, each exactly once.",
    [
        DIRECTION,
        (
            "step",
            "how far they came: `capture`, `handshake`, `request`, `resolve`, `authorise`, `certificate`, `tunnel`, `copy`; \
             `unknown` for one whose task was dropped",
        ),
        ("reason", "`ok`, or the code that the access log has as well"),
    ],
);
const POLICY: [(&str, &str); 3] = [
    ("policy", "the policy's name"),
    ("source_principal", "the client's SPIFFE id, or `unknown`"),
    ("destination_principal", "the server's SPIFFE id"),
];
/// Refusals.
pub static POLICY_REFUSALS: Counters<4> = counter(
    "underpass_policy_refusals_total",
    "Connections refused by policies, and living ones ended by them.",
    [("reason", "the code of the refusal"), POLICY[0], POLICY[1], POLICY[2]],
);
/// Dry runs.
pub static POLICY_DRY_RUN: Counters<4> = counter(
    "underpass_policy_dry_run_total",
    "Connections of which policies in dry run would have decided otherwise.",
    [("outcome", "`allowed`, or the code of the refusal"), POLICY[0], POLICY[1], POLICY[2]],
);
/// Living connections that were ended.
pub static CONNECTIONS_REVOKED: Counters<1> = counter(
    "underpass_connections_revoked_total",
    "Living connections that a change of policies ended.",
    [("reason", "the code of the refusal")],
);
/// Connections that could not be accepted.
pub static ACCEPT_FAILURES: Counters<0> = counter(
    "underpass_accept_failures_total",
    "Connections that could not be accepted, mostly for want of descriptors.",
    [],
);
/// Waits.
pub static WAIT: Histograms<1> = Histograms {
    description: Description {
        name: "underpass_wait_seconds",
        help: "What connections waited for, of those that had to.",
        labels: [(
            "what",
            "`view` the first view of the mesh, `certificate` the pod's own, `handshake` TLS and HTTP/2 of a peer's \
             tunnel, `tunnel` a tunnel of our own, dial included",
        )],
    },
    buckets: WAITS,
};

const BUDGET: [(&str, &str); 3] = [
    ("namespace", "the pod's namespace"),
    ("pod", "its name"),
    (
        "budget",
        "`connections`, `descriptors`, `handshakes` of peers under way, `buffered_bytes`; `node`: the descriptors of all, \
         where they are scarce",
    ),
];
/// What a pod has of a budget.
pub static BUDGET_USED: Gauges<3> = gauge("underpass_budget_used", "What a pod of this node has of a budget.", BUDGET);
/// What it may have.
pub static BUDGET_LIMIT: Gauges<3> =
    gauge("underpass_budget_limit", "What it may have; nothing where only the node's descriptors are a limit.", BUDGET);
/// How often its connections waited.
pub static BUDGET_WAITS: Counters<3> = counter(
    "underpass_budget_waits_total",
    "How often a worker left a listener of the pod alone for a moment, or a request in a tunnel waited, as there was no \
     room in a budget.",
    BUDGET,
);
/// Connections that were refused.
pub static BUDGET_REFUSED: Counters<3> =
    counter("underpass_budget_refused_total", "Connections of the pod that were refused for want of room.", BUDGET);

/// Tunnels to peers.
pub static TUNNELS_OPEN: Gauges<0> = gauge("underpass_tunnels_open", "Tunnels to peers that exist.", []);
/// Streams in them.
pub static TUNNEL_STREAMS_OPEN: Gauges<0> =
    gauge("underpass_tunnel_streams_open", "Connections inside the tunnels to peers.", []);
/// Tunnels made.
pub static TUNNELS_OPENED: Counters<0> =
    counter("underpass_tunnels_opened_total", "Tunnels to peers that were made.", []);
/// Tunnels evicted.
pub static TUNNELS_EVICTED: Counters<0> = counter(
    "underpass_tunnels_evicted_total",
    "Tunnels taken out of use because their peer, or the pod they began in, went or changed.",
    [],
);

/// Tunnels cut by a revocation.
pub static TUNNELS_REVOKED: Counters<0> =
    counter("underpass_tunnels_revoked_total", "Tunnels cut because the peer's certificate was revoked.", []);

/// Session with the operator.
pub static DISCOVERY_CONNECTED: Gauges<0> = gauge(
    "underpass_discovery_connected",
    "1 while the operator tells of changes, 0 while the last view has to do.",
    [],
);
/// The view's number.
pub static VIEW_VERSION: Gauges<0> =
    gauge("underpass_view_version", "Number of the view of the mesh; it grows with each change since the start.", []);
/// The view's age.
pub static VIEW_AGE: Gauges<0> =
    gauge("underpass_view_age_seconds", "Time since the view of the mesh last changed.", []);
/// How much the view holds.
pub static VIEW_OBJECTS: Gauges<1> = gauge(
    "underpass_view_objects",
    "What the node proxy knows of the mesh.",
    [("kind", "`workload`, `service` or `policy`")],
);
/// Pods.
pub static PODS: Gauges<0> = gauge("underpass_pods", "Pods that this node proxy serves.", []);
/// How long pods take.
pub static ENROLMENT: Histograms<0> = Histograms {
    description: Description {
        name: "underpass_enrolment_seconds",
        help: "From a pod's hand-over by the node agent until it has listeners and a certificate.",
        labels: [],
    },
    buckets: &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0],
};

/// Certificates asked for.
pub static CERTIFICATE_FETCHES: Counters<1> =
    counter("underpass_certificate_fetches_total", "Certificates asked for.", [("result", "`ok` or `error`")]);
/// What is left of each certificate. Written by the node proxy itself, which knows whose there are.
pub static CERTIFICATE_EXPIRY: Gauges<2> = gauge(
    "underpass_certificate_expiry_timestamp_seconds",
    "When a certificate in use ends, in seconds since 1970.",
    [
        ("identity", "the SPIFFE id of the workloads that use it"),
        (
            "certificate",
            "`leaf` their own, `issuer` the first to end of those that signed it, `root` of those that came with it",
        ),
    ],
);
/// The certificate that ends first.
pub static CERTIFICATE_FIRST_EXPIRY: Gauges<0> = gauge(
    "underpass_certificate_first_expiry_timestamp_seconds",
    "When the first of the certificates in use ends, in seconds since 1970.",
    [],
);

/// Panics.
pub static TASK_PANICS: Counters<1> = counter(
    "underpass_task_panics_total",
    "Tasks that panicked; the process went on.",
    [("task", "its name in the code")],
);
/// Lost log lines.
pub static LOG_LINES_DROPPED: Counters<0> =
    counter("underpass_log_lines_dropped_total", "Log lines dropped because standard error was not read in time.", []);
/// Descriptors.
pub static OPEN_FDS: Gauges<0> = gauge("process_open_fds", "Open file descriptors.", []);
/// The most descriptors.
pub static MAX_FDS: Gauges<0> = gauge("process_max_fds", "The most file descriptors that may be open.", []);
/// Memory.
pub static RESIDENT_MEMORY: Gauges<0> =
    gauge("process_resident_memory_bytes", "Memory in use, as the kernel counts it.", []);
/// Start.
pub static START_TIME: Gauges<0> =
    gauge("process_start_time_seconds", "When the process started, in seconds since 1970.", []);

/// When an API server was last heard.
pub static WATCH_HEARD: Gauges<1> = gauge(
    "underpass_watch_heard_timestamp_seconds",
    "When the API server last said anything of the kind, in seconds since 1970; it does so each minute at least.",
    [KIND],
);
/// What goes wrong with watches.
pub static WATCH_FAILURES: Counters<2> = counter(
    "underpass_watch_failures_total",
    "Lists and watches of the kind that failed.",
    [KIND, ("reason", "see reasons.md, objects from an API server")],
);

/// Objects that are known.
pub static OPERATOR_OBJECTS: Gauges<1> = gauge("underpass_operator_objects", "Objects that are known.", [KIND]);
/// What is wrong with them.
pub static OPERATOR_PROBLEMS: Gauges<0> = gauge(
    "underpass_operator_object_problems",
    "Files, kinds and objects of which the last good state holds, or none; which ones says `/problems`.",
    [],
);
/// What is missing of them.
pub static OPERATOR_LOST: Gauges<0> =
    gauge("underpass_operator_lost_files", "Those of which no good state is known.", []);
/// Workloads that are published.
pub static OPERATOR_WORKLOADS: Gauges<0> = gauge("underpass_operator_workloads", "Workloads of the mesh.", []);
/// Services that are published.
pub static OPERATOR_SERVICES: Gauges<0> = gauge("underpass_operator_services", "Services of the mesh.", []);
/// Policies that are published.
pub static OPERATOR_POLICIES: Gauges<0> = gauge("underpass_operator_policies", "Policies of the mesh.", []);
/// What changes cost.
pub static OPERATOR_TRANSLATED: Counters<0> = counter(
    "underpass_operator_objects_translated_total",
    "Objects that were translated because a change concerned them.",
    [],
);
/// Who is subscribed.
pub static OPERATOR_SUBSCRIBERS: Gauges<0> = gauge(
    "underpass_operator_subscribers",
    "Node proxies that follow this operator; which ones says `/subscribers`.",
    [],
);
/// How long pushes take.
pub static OPERATOR_PUSH: Histograms<0> = Histograms {
    description: Description {
        name: "underpass_operator_push_seconds",
        help: "From a change being published until every subscriber has acknowledged it; one at a time is looked at.",
        labels: [],
    },
    buckets: PUSHES,
};
/// Pods that left.
pub static OPERATOR_WITHDRAWALS: Counters<1> = counter(
    "underpass_operator_withdrawals_total",
    "Pods whose agent was told that they may leave.",
    [("result", "`acknowledged`: every node proxy knew; `deadline`: some did not say so in time")],
);
/// Who leads.
pub static OPERATOR_LEADS: Gauges<0> =
    gauge("underpass_operator_leads", "1 while this operator writes status for all, 0 while another one does.", []);
/// What could not be written.
pub static OPERATOR_WRITE_ERRORS: Counters<1> = counter(
    "underpass_operator_write_errors_total",
    "Writes to the API server that failed and are tried again.",
    [("what", "`answer`, `event` (given up), `lease`, `member`, `namespace`, `status` or `taint`")],
);
/// What became of requests for certificates.
pub static OPERATOR_CERTIFICATES: Counters<1> = counter(
    "underpass_operator_certificate_requests_total",
    "Requests for certificates that were answered.",
    [("result", "`signed`, or why not")],
);
/// How long requests for certificates take.
pub static OPERATOR_SIGNING: Histograms<0> = Histograms {
    description: Description {
        name: "underpass_operator_signing_seconds",
        help: "From a request for a certificate being read until it is signed; refused ones are not among them.",
        labels: [],
    },
    buckets: SIGNING,
};
/// When the authority's own certificates end.
pub static OPERATOR_EXPIRY: Gauges<1> = gauge(
    "underpass_operator_certificate_expiry_timestamp_seconds",
    "When the authority's own certificates end, in seconds since 1970.",
    [("kind", "`issuing`, or `root`: the first of them to end")],
);

/// A part of the catalogue under one heading.
pub struct Section {
    /// The heading.
    pub title: &'static str,
    /// What stands under it.
    pub metrics: &'static [&'static dyn Listed],
}

/// All of it, in the order of the reference page.
pub static ALL: &[Section] = &[
    Section {
        title: "Traffic (node proxy)",
        metrics: &[&TCP_OPENED, &TCP_CLOSED, &TCP_FAILED, &TCP_RECEIVED, &TCP_SENT, &LABEL_SETS, &OVERFLOWED],
    },
    Section {
        title: "Connections (node proxy)",
        metrics: &[
            &CONNECTIONS_LIVE,
            &GENERATION_CONNECTIONS,
            &ACCEPTING,
            &CONNECTIONS_CLOSED,
            &ACCEPT_FAILURES,
            &WAIT,
        ],
    },
    Section { title: "Budgets (node proxy)", metrics: &[&BUDGET_USED, &BUDGET_LIMIT, &BUDGET_WAITS, &BUDGET_REFUSED] },
    Section { title: "Policies (node proxy)", metrics: &[&POLICY_REFUSALS, &POLICY_DRY_RUN, &CONNECTIONS_REVOKED] },
    Section {
        title: "Tunnels (node proxy)",
        metrics: &[&TUNNELS_OPEN, &TUNNEL_STREAMS_OPEN, &TUNNELS_OPENED, &TUNNELS_EVICTED, &TUNNELS_REVOKED],
    },
    Section {
        title: "The mesh as the node proxy sees it",
        metrics: &[&DISCOVERY_CONNECTED, &VIEW_VERSION, &VIEW_AGE, &VIEW_OBJECTS, &PODS, &ENROLMENT],
    },
    Section {
        title: "Certificates (node proxy)",
        metrics: &[&CERTIFICATE_FETCHES, &CERTIFICATE_EXPIRY, &CERTIFICATE_FIRST_EXPIRY],
    },
    Section { title: "Objects from an API server (operator, agent)", metrics: &[&WATCH_HEARD, &WATCH_FAILURES] },
    Section {
        title: "Operator",
        metrics: &[
            &OPERATOR_OBJECTS,
            &OPERATOR_PROBLEMS,
            &OPERATOR_LOST,
            &OPERATOR_WORKLOADS,
            &OPERATOR_SERVICES,
            &OPERATOR_POLICIES,
            &OPERATOR_TRANSLATED,
            &OPERATOR_SUBSCRIBERS,
            &OPERATOR_PUSH,
            &OPERATOR_WITHDRAWALS,
            &OPERATOR_LEADS,
            &OPERATOR_WRITE_ERRORS,
            &OPERATOR_CERTIFICATES,
            &OPERATOR_SIGNING,
            &OPERATOR_EXPIRY,
        ],
    },
    Section {
        title: "Every program",
        metrics: &[&ISTIO_BUILD, &TASK_PANICS, &LOG_LINES_DROPPED, &OPEN_FDS, &MAX_FDS, &RESIDENT_MEMORY, &START_TIME],
    },
];

//! `docs/reference/metrics.md` says what the catalogue of metrics says.
//!
//! After a change of the catalogue: `UNDERPASS_WRITE_REFERENCE=1 cargo test -p underpass-runtime --test metrics_reference`.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

use std::{fmt::Write as _, fs, path::Path};

use underpass_runtime::metrics::{
    Kind, Listed,
    catalogue::{self, TRAFFIC},
};

const HEAD: &str = "# Metrics

<!-- Made of lib/runtime/src/metrics/catalogue.rs by lib/runtime/tests/metrics_reference.rs; edit there. -->

Every program serves `/metrics` (and `/stats/prometheus`); the node proxy and the operator on port 15020.

## Which way is sent?

`istio_tcp_received_bytes_total` counts what flows from client to server, `istio_tcp_sent_bytes_total` what flows from
server to client. Both proxies see it alike, whichever `reporter` they are: a download is `sent` at both. This is what
Istio's dashboards expect. The access log is different, as Istio's is: there `bytes_sent` is what the client sent and
`bytes_recv` what it received.

Bytes are counted while they flow, at most a second late.

## What is counted, and once

A connection (a captured TCP connection, or one stream of a peer's tunnel) is opened once and closed once, whatever
becomes of it. It is opened under its labels when its server is reached, or, if that fails, when it fails. A handshake
that fails counts as a connection that failed. A connection within the mesh is seen by two proxies, each of which is a
`reporter`: sum over one of them.

A `principal` stands where it was proven: by the tunnel's certificate, or because the proxy holds the pod's own socket.
Whether the bytes were encrypted says `connection_security_policy`.

## How many series

Labels name what runs pods (Deployments and the like), not pods. Series of which something that they name has left the
mesh, and which no living connection uses, disappear after five minutes. There are at most `--metrics-label-sets` sets of
labels; what finds no room is counted under the value `overflow`, and in `underpass_metrics_overflow_total`.
";

fn page() -> String {
    let mut page = HEAD.to_owned();
    for section in catalogue::ALL {
        writeln!(page, "\n## {}\n\n| metric | kind | labels | what it says |\n|---|---|---|---|", section.title)
            .unwrap();
        for metric in section.metrics {
            let kind = match metric.kind() {
                Kind::Counter => "counter".to_owned(),
                Kind::Gauge => "gauge".to_owned(),
                Kind::Histogram => {
                    let bounds: Vec<_> = metric.buckets().iter().map(ToString::to_string).collect();
                    format!("histogram: {} s", bounds.join(", "))
                }
            };
            writeln!(page, "| `{}` | {kind} | {} | {} |", metric.name(), labels(*metric), metric.help()).unwrap();
        }
    }
    page.push_str("\n## Labels of Istio's traffic metrics\n\nA value that is not known is `unknown`.\n\n");
    page.push_str("| label | value |\n|---|---|\n");
    for (name, meaning) in TRAFFIC {
        writeln!(page, "| `{name}` | {meaning} |").unwrap();
    }
    page
}

fn labels(metric: &dyn Listed) -> String {
    if metric.labels().len() == TRAFFIC.len() {
        return "see below".to_owned();
    }
    let labels = metric.labels().iter().map(|(name, meaning)| format!("`{name}`: {meaning}"));
    let labels = labels.collect::<Vec<_>>().join("; ");
    if labels.is_empty() { "–".to_owned() } else { labels }
}

#[test]
fn the_reference_page_says_what_the_catalogue_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/metrics.md");
    if std::env::var_os("UNDERPASS_WRITE_REFERENCE").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, page()).unwrap();
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        there == page(),
        "docs/reference/metrics.md is not what the catalogue says: see the head of this test's file"
    );
}

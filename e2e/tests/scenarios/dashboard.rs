//! A real Prometheus scrapes the node proxies and answers what a first dashboard asks.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_e2e::{LONG, MESH, SHORT, alone, call, get, identity_of, server, wait_authenticated};
use underpass_lab::{Lab, Place, PodSpec, Process, eventually};
use underpass_model::names::METRICS_PORT;

const LISTEN: &str = "127.0.0.1:9090";
const NOBODY: u16 = 8099;

/// A Prometheus in a node's namespace.
struct Prometheus<'a> {
    lab: &'a Lab,
    process: Process,
    _files: tempfile::TempDir,
}

impl<'a> Prometheus<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let targets = ["node-a", "node-b"].map(|node| Ok(format!("'{}:{METRICS_PORT}'", lab.proxy_pod(node)?.v4()?)));
        let targets = targets.into_iter().collect::<Result<Vec<_>>>()?.join(", ");
        let config = format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs: [{{job_name: nodeproxy, static_configs: [{{targets: [{targets}]}}]}}]\n"
        );
        let (config_file, data) = (files.path().join("prometheus.yml"), files.path().join("data"));
        fs::write(&config_file, config)?;
        let (config_flag, data_flag) =
            (format!("--config.file={}", config_file.display()), format!("--storage.tsdb.path={}", data.display()));
        let listen_flag = format!("--web.listen-address={LISTEN}");
        let argv = ["prometheus", &config_flag, &data_flag, &listen_flag, "--log.level=warn"];
        let process = lab.spawn(Place::node("node-a"), "prometheus", &argv)?;
        let this = Self { lab, process, _files: files };
        eventually(SHORT, "Prometheus to scrape both node proxies", || {
            let up = this.one("sum(up)")?;
            ensure!((up - 2.0).abs() < 0.1, "{up} are up; it says {}", this.process.output());
            Ok(())
        })?;
        Ok(this)
    }

    /// What a query answers: labels and value of each series.
    fn ask(&self, query: &str) -> Result<Vec<(BTreeMap<String, String>, f64)>> {
        let query = format!("query={query}");
        let url = format!("http://{LISTEN}/api/v1/query");
        let argv = ["curl", "-sS", "--fail", "--max-time", "15", "-G", "--data-urlencode", &query, &url];
        let answer = self.lab.run(Place::node("node-a"), &argv, SHORT)?.ok()?;
        let answer: Value = serde_json::from_str(&answer)?;
        let series = answer.pointer("/data/result").and_then(Value::as_array).context("no result")?;
        series
            .iter()
            .map(|one| {
                let labels = serde_json::from_value(one.get("metric").context("no labels")?.clone())?;
                let value = one.pointer("/value/1").and_then(Value::as_str).context("no value")?;
                Ok((labels, value.parse()?))
            })
            .collect()
    }

    /// The value of a query's only series; nothing is nought.
    fn one(&self, query: &str) -> Result<f64> {
        Ok(self.ask(query)?.first().map_or(0.0, |(_, value)| *value))
    }
}

#[test]
fn a_real_prometheus_answers_a_first_dashboard() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    let prometheus = Prometheus::start(&lab).unwrap();
    let far_address = far.v4().unwrap().to_string();

    // Connections by source and destination, and who they are.
    let url = format!("http://{far_address}:8080/");
    eventually(SHORT, "connections by source and destination", || {
        get(&lab, client.place(), &url)?;
        let query = "sum by (source_workload, destination_workload, source_principal, destination_principal, \
                     connection_security_policy) (increase(istio_tcp_connections_opened_total{reporter=\"destination\"}[1m])) > 0";
        let seen = prometheus.ask(query)?;
        let label = |labels: &BTreeMap<String, String>, name: &str, value: &str| labels.get(name).is_some_and(|is| is == value);
        let found = seen.iter().any(|(labels, _)| {
            label(labels, "source_workload", "client")
                && label(labels, "destination_workload", "far")
                && label(labels, "source_principal", &identity_of(&client))
                && label(labels, "destination_principal", &identity_of(&far))
                && label(labels, "connection_security_policy", "mutual_tls")
        });
        ensure!(found, "{seen:#?}");
        Ok(())
    })
    .unwrap();

    // Bytes a second while they flow: a download is `sent` at both proxies.
    let iperf = lab.spawn(far.place(), "iperf3", &["iperf3", "-s", "--forceflush"]).unwrap();
    iperf.wait_for_output("listening", SHORT).unwrap();
    let argv = ["iperf3", "-c", &far_address, "-R", "-t", "60", "-b", "20M"];
    let download = lab.spawn(client.place(), "download", &argv).unwrap();
    for reporter in ["source", "destination"] {
        let rate = |metric: &str| {
            prometheus.one(&format!("sum(rate({metric}{{reporter=\"{reporter}\",destination_workload=\"far\"}}[5s]))"))
        };
        eventually(SHORT, "bytes that flow", || {
            let (sent, received) = (rate("istio_tcp_sent_bytes_total")?, rate("istio_tcp_received_bytes_total")?);
            ensure!(download.is_alive(), "the download is over: {}", download.output());
            ensure!(sent > 1e6 && received < sent / 10.0, "{reporter}: sent {sent}, received {received} a second");
            Ok(())
        })
        .unwrap();
    }
    download.kill().unwrap();
    iperf.kill().unwrap();

    // Failures by reason.
    eventually(SHORT, "failures by reason", || {
        call(&lab, client.place(), "outcome", (&far_address, NOBODY))?;
        let failures =
            "sum by (direction, step, reason) (increase(underpass_connections_closed_total{reason!=\"ok\"}[1m])) > 0";
        let seen = prometheus.ask(failures)?;
        let refused = |(labels, _): &(BTreeMap<String, String>, f64)| {
            labels.get("direction").is_some_and(|is| is == "outbound")
                && labels.get("step").is_some_and(|is| is == "tunnel")
                && labels.get("reason").is_some_and(|is| is == "tunnel_refused")
        };
        ensure!(seen.iter().any(refused), "{seen:#?}");
        let failed = prometheus.one("sum(istio_tcp_connections_failed_total{response_flags=\"CONNECT\"})")?;
        ensure!(failed > 0.0, "no connection failed in Istio's words");
        Ok(())
    })
    .unwrap();

    // At rest as many have ended as began, and both ends counted the same bytes.
    eventually(LONG, "the accounts to balance", || {
        let open =
            prometheus.one("sum(istio_tcp_connections_opened_total) - sum(istio_tcp_connections_closed_total)")?;
        let live = prometheus.one("sum(underpass_connections_live)")?;
        ensure!(open == 0.0 && live == 0.0, "{open} are open, {live} live");
        let sent = |reporter: &str| {
            let of = format!("reporter=\"{reporter}\",connection_security_policy=\"mutual_tls\"");
            prometheus.one(&format!("sum(istio_tcp_sent_bytes_total{{{of}}})"))
        };
        let (source, destination) = (sent("source")?, sent("destination")?);
        ensure!(source <= destination && source > 0.9 * destination, "{source} and {destination}");
        Ok(())
    })
    .unwrap();
    prometheus.process.kill().unwrap();
}

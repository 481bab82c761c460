//! What a node proxy keeps of the mesh: the real one, subscribed like the others, with nothing to carry.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use underpass_lab::Options;

use super::{population, process::Process, subscriber::Operator};
use crate::{memory::REST, times::answer};

/// The operator has the usual ones.
const PORTS: [u16; 3] = [16000, 16020, 16021];
const PATIENCE: Duration = Duration::from_secs(60);

/// Its resident memory in MiB, once it knows what it is to know: so many pods, or, on demand, nobody yet.
pub(super) async fn resident(operator: &Operator, pods: usize, is_on_demand: bool, home: &Path) -> Result<f64> {
    let program = Options::new("any")?.binaries.join("underpass-nodeproxy");
    let [admin, metrics, ready] = PORTS.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let mut arguments = vec![
        format!("--node-name={}", population::node(0)),
        format!("--operator-address={}", operator.options.address),
        format!("--operator-root={}", operator.options.root_file.display()),
        format!("--token-file={}", operator.tokens.join(population::node(0)).display()),
        // There is no agent.
        format!("--zds-socket={}", home.join("zds.sock").display()),
        "--node-socket=none".into(),
        format!("--admin-address={admin}"),
        format!("--metrics-address={metrics}"),
        format!("--ready-address={ready}"),
    ];
    arguments.extend(is_on_demand.then(|| "--on-demand".to_owned()));
    let mut process = Process::start(&home.join("nodeproxy.log"), &program, &arguments)?;
    let begun = Instant::now();
    // On demand it is complete as soon as it is connected.
    while !answer(PORTS[1], "/metrics").is_ok_and(|page| knows(&page, if is_on_demand { 0 } else { pods })) {
        process.alive().context("the node proxy")?;
        ensure!(begun.elapsed() < PATIENCE, "the node proxy does not know the mesh after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(REST).await;
    process.mebibytes()
}

/// Whether it is connected and knows at least as many workloads.
fn knows(page: &str, workloads: usize) -> bool {
    let value = |series: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(series))?;
        line.trim().parse::<f64>().ok()
    };
    #[expect(clippy::cast_precision_loss, reason = "no mesh has 2^52 of anything")]
    let enough = value("underpass_view_objects{kind=\"workload\"}").is_some_and(|known| known >= workloads as f64);
    enough && value("underpass_discovery_connected") == Some(1.0)
}

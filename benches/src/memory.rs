//! What the node proxies keep in memory, without connections and with many idle ones.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    case::Case,
    measure::Figures,
    world::{ECHO, Way, spawn_bench},
};

/// Time for what was only passing through to be given back.
pub(crate) const REST: Duration = Duration::from_secs(1);

/// The memory of both node proxies before, with, and after idle connections.
pub(crate) fn idle(way: &Way, connections: usize) -> Result<Figures> {
    ensure!(way.case == Case::Across, "idle connections are measured across nodes");
    let before = way.proxies.iter().map(|pid| resident(*pid)).collect::<Result<Vec<f64>>>()?;
    let arguments = ["load", &way.at(ECHO)?, "idle", &connections.to_string()];
    let client = spawn_bench(&way.lab, way.client.clone(), &format!("idle-{connections}"), &arguments)?;
    client.wait_for_output(&format!("holding {connections}"), Duration::from_secs(120))?;
    thread::sleep(REST);
    let with = way.proxies.iter().map(|pid| resident(*pid)).collect::<Result<Vec<f64>>>()?;
    client.kill()?;
    thread::sleep(REST);
    let after = way.proxies.iter().map(|pid| resident(*pid)).collect::<Result<Vec<f64>>>()?;

    let mut figures = Figures::new();
    let names = [
        ["KiB client", "KiB client with", "KiB client after", "KiB/connection client"],
        ["KiB server", "KiB server with", "KiB server after", "KiB/connection server"],
    ];
    for (((names, before), with), after) in names.into_iter().zip(before).zip(with).zip(after) {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let each = (with - before) / connections as f64;
        figures.extend(names.into_iter().zip([before, with, after, each]));
    }
    Ok(figures)
}

/// A process's resident memory in KiB.
pub(crate) fn resident(pid: i32) -> Result<f64> {
    kibibytes(pid, "smaps_rollup", "Rss:")
}

/// The most that it was, in KiB.
pub(crate) fn peak(pid: i32) -> Result<f64> {
    kibibytes(pid, "status", "VmHWM:")
}

fn kibibytes(pid: i32, file: &str, name: &str) -> Result<f64> {
    let file = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&file).context(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

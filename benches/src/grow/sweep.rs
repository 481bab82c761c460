//! What grows, through which sizes, and what is measured at each.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use underpass_lab::{PodSpec, Program, eventually};

use super::crowd::Crowd;
use crate::{
    case::Case,
    measure::measure,
    memory::{REST, resident},
    plan::Measure,
    times::millis,
    world::{MESH, Subject, Way},
};

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Sweep {
    /// Connections that are in use at once
    Pairs,
    /// Pods of the mesh on the server's node
    Pods,
    /// Pods elsewhere that the node proxies know
    Workloads,
    /// Policies of the server, and of others
    Policies,
}

/// One chart of a sweep.
pub(super) struct Plan {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    /// Names of figures, and what they are called in the chart.
    pub(super) lines: &'static [(&'static str, &'static str)],
}

/// Takes a figure: at which size, its name, its value.
type Record<'a> = &'a mut dyn FnMut(usize, &'static str, f64);

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

impl Sweep {
    pub(super) fn sizes(self, quick: bool) -> &'static [usize] {
        match (self, quick) {
            (Self::Pairs, false) => &[1, 10, 100, 1000],
            (Self::Pods, false) => &[1, 10, 50, 100, 250],
            (Self::Workloads, false) => &[100, 1000, 10_000, 100_000],
            (Self::Policies, false) => &[1, 10, 100, 1000, 10_000],
            (Self::Pairs | Self::Policies, true) => &[1, 10],
            (Self::Pods, true) => &[1, 3],
            (Self::Workloads, true) => &[100, 1000],
        }
    }

    pub(super) fn axis(self) -> &'static str {
        match self {
            Self::Pairs => "connections in use at once",
            Self::Pods => "pods of the mesh on the server's node",
            Self::Workloads => "workloads known",
            Self::Policies => "policies",
        }
    }

    pub(super) fn plans(self) -> &'static [Plan] {
        const COST: &str = "us of both node proxies";
        match self {
            Self::Pairs => &[Plan {
                name: "pairs-cost",
                title: "A request's cost with many pairs",
                unit: COST,
                lines: &[("us/request", "a request")],
            }],
            Self::Pods => &[
                Plan {
                    name: "pods-cost",
                    title: "A call's cost with many pods on the node",
                    unit: COST,
                    lines: &[("us/connection", "a connection"), ("us/request", "a request")],
                },
                Plan {
                    name: "pods-start",
                    title: "One more pod's start",
                    unit: "ms of CNI ADD",
                    lines: &[("ms/ADD", "median of the newest ten")],
                },
                Plan {
                    name: "pods-memory",
                    title: "Memory with many pods on the node",
                    unit: "MiB resident",
                    lines: &[("MiB proxy", "node proxy"), ("MiB agent", "node agent")],
                },
            ],
            Self::Workloads => &[
                Plan {
                    name: "workloads-cost",
                    title: "A call's cost in a large mesh",
                    unit: COST,
                    lines: &[
                        ("us/connection", "a connection"),
                        ("us/request", "a request"),
                        ("us/request updated", "a request, one update a second"),
                    ],
                },
                Plan {
                    name: "workloads-latency",
                    title: "Latency in a large mesh at 1,000 requests a second",
                    unit: "us, the slowest of 100",
                    lines: &[("p99 us", "nothing changes"), ("p99 us updated", "one update a second")],
                },
                Plan {
                    name: "workloads-memory",
                    title: "Memory in a large mesh",
                    unit: "MiB resident",
                    lines: &[("MiB proxy", "node proxy")],
                },
            ],
            Self::Policies => &[Plan {
                name: "policies-cost",
                title: "A connection's cost with many policies",
                unit: COST,
                lines: &[("us/connection", "about the server"), ("us/connection others", "about others")],
            }],
        }
    }

    /// One round through the sizes, in a lab of its own: memory that was given back once is not that of a first growth.
    pub(super) fn measure(self, sizes: &[usize], seconds: f64, record: Record<'_>) -> Result<()> {
        let subject = Subject::up("this", &[Case::Across], None, &[])?;
        let way = subject.ways.first().context("no way")?;
        match self {
            Self::Pairs => sizes.iter().try_for_each(|size| {
                record(*size, "us/request", figure(way, Measure::Requests(*size), seconds, "us")?);
                Ok(())
            }),
            Self::Pods => pods(way, sizes, seconds, record),
            Self::Workloads => workloads(way, sizes, seconds, record),
            Self::Policies => policies(way, sizes, seconds, record),
        }
    }
}

/// Load that finds the processors busy, and little more.
const CLIENTS: usize = 16;
const CONNECTIONS: Measure = Measure::Connections(CLIENTS);
const REQUESTS: Measure = Measure::Requests(CLIENTS);
const STEADY: Measure = Measure::Open(Some(1000.0));

fn pods(way: &Way, sizes: &[usize], seconds: f64, record: Record<'_>) -> Result<()> {
    const NEWEST: usize = 10;
    let node = "node-b";
    let proxy = way.lab.program(&Program::node_proxy(node))?.pid;
    let agent = way.lab.program(&Program::agent(node))?.pid;
    // The server is the first.
    let mut count = 1;
    for size in sizes {
        let mut took = Vec::new();
        while count < *size {
            let began = Instant::now();
            let pod = way.lab.pod_add(&PodSpec::new(node, MESH, &format!("pod-{count}")))?;
            took.push(millis(began.elapsed()));
            way.lab.wait_captured(&pod, true, Duration::from_secs(30))?;
            count += 1;
        }
        let newest = took.split_off(took.len().saturating_sub(NEWEST));
        if let Some(spread) = crate::summary::Spread::of(newest) {
            record(*size, "ms/ADD", spread.median());
        }
        thread::sleep(REST);
        record(*size, "MiB proxy", mebibytes(proxy)?);
        record(*size, "MiB agent", mebibytes(agent)?);
        record(*size, "us/connection", figure(way, CONNECTIONS, seconds, "us")?);
        record(*size, "us/request", figure(way, REQUESTS, seconds, "us")?);
    }
    Ok(())
}

fn workloads(way: &Way, sizes: &[usize], seconds: f64, record: Record<'_>) -> Result<()> {
    let crowd = Crowd::of(&way.lab);
    let proxy = *way.proxies.first().context("a node proxy")?;
    let mut count = 0;
    for size in sizes {
        crowd.pods(count, *size)?;
        count = *size;
        thread::sleep(REST);
        record(*size, "MiB proxy", mebibytes(proxy)?);
        record(*size, "us/connection", figure(way, CONNECTIONS, seconds, "us")?);
        record(*size, "us/request", figure(way, REQUESTS, seconds, "us")?);
        record(*size, "p99 us", figure(way, STEADY, seconds, "p99 us")?);
        record(*size, "us/request updated", updated(way, &crowd, || figure(way, REQUESTS, seconds, "us"))?);
        record(*size, "p99 us updated", updated(way, &crowd, || figure(way, STEADY, seconds, "p99 us"))?);
    }
    Ok(())
}

fn policies(way: &Way, sizes: &[usize], seconds: f64, record: Record<'_>) -> Result<()> {
    let crowd = Crowd::of(&way.lab);
    for size in sizes {
        for (app, name) in [("nobody", "us/connection others"), ("far", "us/connection")] {
            let cost = crowd.with_policies(app, *size, || figure(way, CONNECTIONS, seconds, "us"))?;
            record(*size, name, cost);
        }
    }
    Ok(())
}

/// Does something while a workload changes each second.
fn updated<T>(way: &Way, crowd: &Crowd<'_>, what: impl FnOnce() -> Result<T>) -> Result<T> {
    const EVERY: Duration = Duration::from_secs(1);
    let node = way.lab.options().node_names().into_iter().next().context("a node")?;
    let version = || -> Result<f64> {
        let page = way.lab.metrics(&node)?;
        let value = page.lines().find_map(|line| line.strip_prefix("underpass_view_version "));
        Ok(value.context("underpass_view_version")?.parse()?)
    };
    let (ended, before) = (AtomicBool::new(false), version()?);
    let done = thread::scope(|scope| {
        let updates = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                crowd.move_one()?;
                thread::park_timeout(EVERY);
            }
            anyhow::Ok(())
        });
        let done = what();
        ended.store(true, Ordering::Relaxed);
        updates.thread().unpark();
        updates.join().map_err(|_| anyhow!("the updates panicked"))??;
        done
    })?;
    eventually(Duration::from_secs(30), "an update to arrive", || {
        ensure!(version()? > before);
        Ok(())
    })?;
    Ok(done)
}

fn figure(way: &Way, what: Measure, seconds: f64, name: &str) -> Result<f64> {
    let figures = measure(way, what, seconds, None).with_context(|| what.to_string())?;
    let found = figures.iter().find(|(figure, _)| *figure == name);
    Ok(found.with_context(|| format!("{what} has no {name}"))?.1)
}

fn mebibytes(pid: i32) -> Result<f64> {
    Ok(resident(pid)? / 1024.0)
}

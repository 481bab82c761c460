//! `underpass install`: puts the mesh on a cluster and waits until it serves.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::Result;
use kube::api::DynamicObject;
use tokio::time::{Instant, sleep};

use crate::{
    check,
    cluster::{self, Cluster, eventually, named},
    manifests::{self, Choice},
    screen::{self, Progress},
};

/// Put the mesh on a cluster, or bring it to this release.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    cluster: cluster::Options,
    #[command(flatten)]
    choice: Choice,
    /// Print the manifests instead of applying them
    #[arg(long)]
    manifests: bool,
    /// Do not look at the cluster first
    #[arg(long)]
    skip_checks: bool,
    /// Do not wait until everything serves
    #[arg(long)]
    no_wait: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    timeout: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.manifests {
        screen::say(arguments.choice.text().trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    cluster::on(install(arguments))
}

async fn install(arguments: &Arguments) -> Result<ExitCode> {
    let objects = arguments.choice.objects()?;
    let cluster = Cluster::connect(&arguments.cluster).await?;
    if !arguments.skip_checks && !check::before(&cluster).await? {
        screen::complain("the cluster is not ready for the mesh; --skip-checks installs all the same");
        return Ok(ExitCode::FAILURE);
    }
    screen::heading("Installing");
    let progress = Progress::new();
    for object in &objects {
        cluster.apply(object).await?;
        if manifests::is(object, "CustomResourceDefinition") {
            established(&cluster, object).await?;
        }
    }
    progress.step(&format!("{} objects applied", objects.len()));
    if !arguments.no_wait {
        wait(&cluster, &objects, &progress, Duration::from_secs(arguments.timeout)).await?;
        screen::good(
            "the mesh serves; bring a namespace under it: kubectl label namespace NAME underpass.dev/mesh=enabled",
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// A kind can be used only some time after it was defined.
async fn established(cluster: &Cluster, definition: &DynamicObject) -> Result<()> {
    let is_established = |found: &DynamicObject| {
        let conditions = found.data.pointer("/status/conditions").and_then(|conditions| conditions.as_array());
        conditions.is_some_and(|conditions| {
            conditions.iter().any(|one| one["type"] == "Established" && one["status"] == "True")
        })
    };
    eventually(&format!("{} to be established", named(definition)), Duration::from_secs(30), || async {
        Ok(cluster.get(definition).await?.is_some_and(|found| is_established(&found)))
    })
    .await
}

/// Waits for every workload, and says how far each is whenever that changes.
pub(crate) async fn wait(
    cluster: &Cluster,
    objects: &[DynamicObject],
    progress: &Progress,
    patience: Duration,
) -> Result<()> {
    let until = Instant::now() + patience;
    let workloads: Vec<&DynamicObject> = objects.iter().filter(|object| manifests::is_workload(object)).collect();
    let mut told = BTreeMap::new();
    loop {
        let mut waiting = Vec::new();
        for workload in &workloads {
            let found = cluster.get(workload).await?;
            let state = found.as_ref().and_then(manifests::progress);
            let (name, text) = match state {
                Some((wanted, ready)) => (named(workload), format!("{ready} of {wanted} ready")),
                None => (named(workload), "not seen by its controller yet".to_owned()),
            };
            if state.is_none_or(|(wanted, ready)| ready < wanted) {
                waiting.push(format!("{name}: {text}"));
            }
            if told.insert(name.clone(), text.clone()).as_ref() != Some(&text) {
                progress.step(&format!("{name}: {text}"));
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            for line in &waiting {
                screen::bad(line);
            }
            anyhow::bail!(
                "not everything is ready after {} s; look with: kubectl -n underpass-system get pods",
                patience.as_secs()
            );
        }
        sleep(Duration::from_millis(500)).await;
    }
}

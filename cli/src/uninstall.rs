//! `underpass uninstall`: takes the mesh off a cluster, in the order in which nobody loses a connection, and has every node
//! looked at in the end.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use kube::api::DynamicObject;

use crate::{
    cluster::{self, Cluster, named},
    install,
    manifests::{self, Choice, is},
    screen::{self, Progress},
};

/// Take the mesh off a cluster; labels of namespaces and policies stay unless asked for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    cluster: cluster::Options,
    #[command(flatten)]
    choice: Choice,
    /// Remove the mesh's kinds as well, and with them every policy
    #[arg(long)]
    crds: bool,
    /// How long each step may take, in seconds
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    timeout: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    cluster::on(uninstall(arguments))
}

async fn uninstall(arguments: &Arguments) -> Result<ExitCode> {
    let objects = arguments.choice.objects()?;
    let cluster = Cluster::connect(&arguments.cluster).await?;
    let patience = Duration::from_secs(arguments.timeout);
    let progress = Progress::new();
    let written = find(&objects, "DaemonSet", "underpass-agent")?;
    // As it is on the cluster: its images may be elsewhere.
    let agents = cluster.get(written).await?;
    screen::heading("Taking the mesh off");
    progress.step("agents let their pods go, while operator and node proxies still serve");
    cluster.delete(written, patience).await?;

    let namespace = find(&objects, "Namespace", "underpass-system")?;
    if cluster.get(namespace).await?.is_some() {
        let cleaners = manifests::cleaners(agents.as_ref().unwrap_or(written))?;
        cluster.delete(&cleaners, patience).await?;
        cluster.create(&cleaners).await?;
        progress.step("every node is looked at and cleaned");
        let looked = install::wait(&cluster, std::slice::from_ref(&cleaners), &progress, patience).await;
        looked.context("some nodes may not be clean; see: kubectl -n underpass-system logs -l app.kubernetes.io/name=underpass-cleanup -c cleanup")?;
        cluster.delete(&cleaners, patience).await?;
    }
    let mut gone = 0;
    for object in objects.iter().rev() {
        if is(object, "CustomResourceDefinition") && !arguments.crds {
            continue;
        }
        if cluster.delete(object, patience).await? {
            gone += 1;
        }
    }
    progress.step(&format!("{gone} objects deleted"));
    for object in &objects {
        let stays = is(object, "CustomResourceDefinition") && !arguments.crds;
        if !stays && cluster.get(object).await?.is_some() {
            bail!("{} is still there", named(object));
        }
    }
    screen::good("nothing of the mesh is left on any node");
    Ok(ExitCode::SUCCESS)
}

fn find<'a>(objects: &'a [DynamicObject], kind: &str, name: &str) -> Result<&'a DynamicObject> {
    let found = objects.iter().find(|object| is(object, kind) && object.metadata.name.as_deref() == Some(name));
    found.with_context(|| format!("the manifests have no {kind}/{name}"))
}

//! `underpass version`: of this program and of what runs on the cluster.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    cluster::{self, Cluster, named},
    manifests::{self, Choice},
    screen,
};

/// Say which releases run where.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    cluster: cluster::Options,
    #[command(flatten)]
    choice: Choice,
    /// Only of this program
    #[arg(long)]
    client: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    screen::say(&format!("underpass {}", env!("CARGO_PKG_VERSION")));
    if arguments.client {
        return Ok(ExitCode::SUCCESS);
    }
    cluster::on(of_cluster(arguments))
}

async fn of_cluster(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = Cluster::connect(&arguments.cluster).await?;
    for object in arguments.choice.objects()? {
        if !manifests::is_workload(&object) {
            continue;
        }
        let found = cluster.get(&object).await?;
        let image = found.as_ref().and_then(|found| found.data.pointer("/spec/template/spec/containers/0/image"));
        screen::say(&format!(
            "{} {}",
            named(&object),
            image.and_then(|image| image.as_str()).unwrap_or("is not installed")
        ));
    }
    Ok(ExitCode::SUCCESS)
}

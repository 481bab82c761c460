//! `underpass check`: is a cluster ready for the mesh, is the mesh in order, and what to do where not.

mod rules;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::{ConfigMap, Namespace, Node},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api,
    api::{ListParams, PostParams},
};

use crate::{
    cluster::{self, Cluster, named},
    manifests::{self, Choice},
    screen,
};
use rules::{Finding, Verdict};

/// Look whether a cluster is ready for the mesh (--pre), or the mesh in order.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    cluster: cluster::Options,
    #[command(flatten)]
    choice: Choice,
    /// Only what matters before an installation
    #[arg(long)]
    pre: bool,
    /// Warnings count as failures (exit code 3)
    #[arg(long)]
    strict: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    cluster::on(check(arguments))
}

async fn check(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = Cluster::connect(&arguments.cluster).await?;
    let mut findings = of_cluster(&cluster).await?;
    show("Cluster", &findings);
    if !arguments.pre {
        let installed = of_mesh(&cluster, &arguments.choice).await?;
        show("Mesh", &installed);
        findings.extend(installed);
    }
    let has = |verdict| findings.iter().any(|finding| finding.verdict == verdict);
    Ok(match (has(Verdict::Failed), has(Verdict::Warning) && arguments.strict) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(3),
        (false, false) => ExitCode::SUCCESS,
    })
}

/// What an installation looks at first; false if it would not work.
pub(crate) async fn before(cluster: &Cluster) -> Result<bool> {
    let findings = of_cluster(cluster).await?;
    show("Cluster", &findings);
    Ok(findings.iter().all(|finding| finding.verdict != Verdict::Failed))
}

fn show(category: &str, findings: &[Finding]) {
    screen::heading(category);
    for finding in findings {
        match finding.verdict {
            Verdict::Fine => screen::good(&finding.what),
            Verdict::Warning => screen::warn(&finding.what),
            Verdict::Failed => screen::bad(&finding.what),
        }
        finding.hint.iter().flat_map(|hint| hint.lines()).for_each(screen::note);
    }
}

async fn of_cluster(cluster: &Cluster) -> Result<Vec<Finding>> {
    let client = || cluster.client.clone();
    let version = client().apiserver_version().await.context("the API server does not answer")?;
    let mut findings = vec![rules::api_server(&version.major, &version.minor)];
    findings.push(may_install(cluster).await?);
    let nodes = Api::<Node>::all(client()).list(&ListParams::default()).await?.items;
    findings.extend(nodes.iter().map(rules::node));
    let namespaces = Api::<Namespace>::all(client()).list(&ListParams::default()).await?.items;
    findings.extend(rules::other_meshes(&namespaces));
    let cilium = Api::<ConfigMap>::namespaced(client(), "kube-system").get_opt("cilium-config").await?;
    findings.extend(cilium.as_ref().map(rules::cilium));
    let policies = Api::<NetworkPolicy>::all(client()).list(&ListParams::default()).await?.items;
    findings.extend(policies.iter().filter_map(rules::network_policy));
    Ok(findings)
}

/// Whoever installs hands out rights, so must have all of them.
async fn may_install(cluster: &Cluster) -> Result<Finding> {
    let everything = ResourceAttributes {
        group: Some("*".into()),
        resource: Some("*".into()),
        verb: Some("*".into()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(everything), ..Default::default() };
    let question = SelfSubjectAccessReview { spec, ..Default::default() };
    let reviews = Api::<SelfSubjectAccessReview>::all(cluster.client.clone());
    let answer = reviews.create(&PostParams::default(), &question).await?;
    Ok(rules::rights(answer.status.is_some_and(|status| status.allowed)))
}

async fn of_mesh(cluster: &Cluster, choice: &Choice) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for object in choice.objects()? {
        // A kind that is not known has no objects.
        let found = cluster.get(&object).await.unwrap_or_default();
        match found {
            None => findings.push(rules::missing(&named(&object))),
            Some(found) if manifests::is_workload(&object) => {
                findings.push(rules::workload(&named(&object), manifests::progress(&found)))
            }
            Some(_) => {}
        }
    }
    let agents =
        Api::<DaemonSet>::namespaced(cluster.client.clone(), "underpass-system").get_opt("underpass-agent").await?;
    findings.extend(agents.as_ref().and_then(|agents| rules::skew(agents, env!("CARGO_PKG_VERSION"))));
    Ok(findings)
}

//! The cluster that verbs work on, and what all of them do with objects of whatever kind.

use std::{collections::BTreeMap, future::Future, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
    discovery::{ApiCapabilities, Scope, pinned_kind},
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

/// Who writes, as the API server records it.
const MANAGER: &str = "underpass-cli";
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(500);

/// Which cluster.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Kubeconfig [default: as kubectl finds it]
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,
}

/// A cluster, and how it names the kinds that were asked for so far.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    kinds: Mutex<BTreeMap<(String, String), (ApiResource, ApiCapabilities)>>,
}

/// Runs a verb that talks to a cluster.
pub(crate) fn on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

impl Cluster {
    pub(crate) async fn connect(options: &Options) -> Result<Self> {
        let chosen = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
        let config = match &options.kubeconfig {
            Some(path) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &chosen).await?,
            None if options.context.is_some() => Config::from_kubeconfig(&chosen).await?,
            None => Config::infer().await?,
        };
        Ok(Self { client: Client::try_from(config)?, kinds: Mutex::default() })
    }

    /// The way to objects of one's kind, in its namespace.
    async fn api(&self, object: &DynamicObject) -> Result<Api<DynamicObject>> {
        let types = object.types.clone().context("an object without apiVersion and kind")?;
        let key = (types.api_version.clone(), types.kind.clone());
        let mut kinds = self.kinds.lock().await;
        let (resource, capabilities) = match kinds.get(&key) {
            Some(known) => known.clone(),
            None => {
                let kind = GroupVersionKind::try_from(&types)?;
                let found = pinned_kind(&self.client, &kind).await;
                let found = found.with_context(|| format!("the cluster does not know {} of {}", key.1, key.0))?;
                kinds.entry(key).or_insert(found).clone()
            }
        };
        Ok(match (capabilities.scope, object.metadata.namespace.as_deref()) {
            (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            (Scope::Namespaced, None) => bail!("{} has no namespace", named(object)),
            (Scope::Cluster, _) => Api::all_with(self.client.clone(), &resource),
        })
    }

    /// Puts an object in place: what is not said in it stays, what others said otherwise gives way.
    pub(crate) async fn apply(&self, object: &DynamicObject) -> Result<()> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let parameters = PatchParams::apply(MANAGER).force();
        let applied = self.api(object).await?.patch(&name, &parameters, &Patch::Apply(object)).await;
        applied.map(drop).with_context(|| format!("applying {}", named(object)))
    }

    /// Makes an object of which there is none yet.
    pub(crate) async fn create(&self, object: &DynamicObject) -> Result<()> {
        let created = self.api(object).await?.create(&PostParams::default(), object).await;
        created.map(drop).with_context(|| format!("creating {}", named(object)))
    }

    /// The object as it is, if there is one.
    pub(crate) async fn get(&self, object: &DynamicObject) -> Result<Option<DynamicObject>> {
        let name = object.metadata.name.clone().unwrap_or_default();
        Ok(self.api(object).await?.get_opt(&name).await?)
    }

    /// Deletes an object and what belongs to it, and waits until it is gone; true if there was one.
    pub(crate) async fn delete(&self, object: &DynamicObject, patience: Duration) -> Result<bool> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let api = match self.api(object).await {
            Ok(api) => api,
            // A kind that the cluster does not know has no objects.
            Err(error) if error.downcast_ref::<kube::Error>().is_some_and(is_missing) => return Ok(false),
            Err(error) => return Err(error),
        };
        match api.delete(&name, &DeleteParams::foreground()).await {
            Err(error) if is_missing(&error) => return Ok(false),
            deleted => drop(deleted.with_context(|| format!("deleting {}", named(object)))?),
        }
        let what = format!("{} to go", named(object));
        eventually(&what, patience, || async { Ok(api.get_opt(&name).await?.is_none()) }).await?;
        Ok(true)
    }
}

fn is_missing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 404,
        // The kind itself.
        kube::Error::Discovery(_) => true,
        _ => false,
    }
}

/// Waits until something is so. What cannot be looked at is tried again, and told in the end.
pub(crate) async fn eventually<F: Future<Output = Result<bool>>>(
    what: &str,
    patience: Duration,
    look: impl Fn() -> F,
) -> Result<()> {
    let until = Instant::now() + patience;
    loop {
        let seen = look().await;
        if matches!(seen, Ok(true)) {
            return Ok(());
        }
        if Instant::now() >= until {
            let waited = format!("waited {} s for {what}", patience.as_secs());
            return match seen {
                Err(error) => Err(error.context(waited)),
                Ok(_) => bail!(waited),
            };
        }
        sleep(LOOK).await;
    }
}

/// `Kind/name`, as people write it.
pub(crate) fn named(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("object", |types| types.kind.as_str());
    format!("{kind}/{}", object.metadata.name.as_deref().unwrap_or_default())
}

//! The roots for everybody who must trust them before they have a certificate: a ConfigMap in each namespace where
//! somebody connects to the operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};
use underpass_runtime::{Backoff, Shutdown};

use super::FIELD_MANAGER;
use crate::ca::{Told, state::ROOTS_FILE};

/// The name of the ConfigMap.
pub const CONFIG_MAP: &str = "underpass-root";
/// How often each is written again although nothing changed: somebody may have changed or removed it.
const AGAIN: Duration = Duration::from_secs(300);

/// Writes the roots where they are needed.
pub struct Bundles {
    client: Client,
    told: watch::Receiver<Told>,
    always: BTreeSet<String>,
    more: watch::Receiver<BTreeSet<String>>,
    written: BTreeMap<String, Written>,
}

/// What was written in a namespace.
struct Written {
    roots: Arc<str>,
    at: Instant,
}

impl Bundles {
    /// Will write what is told of the roots to some namespaces always, to others as long as they are wanted.
    #[must_use]
    pub fn new(
        client: Client,
        told: watch::Receiver<Told>,
        always: BTreeSet<String>,
        more: watch::Receiver<BTreeSet<String>>,
    ) -> Self {
        Self { client, told, always, more, written: BTreeMap::new() }
    }

    /// Writes while this operator leads, until asked to stop.
    pub async fn run(mut self, mut leads: watch::Receiver<bool>, shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                led = leads.wait_for(|leads| *leads) => if led.is_err() { return },
            }
            let sleep = if self.write().await {
                backoff.reset();
                AGAIN
            } else {
                backoff.delay()
            };
            tokio::select! {
                () = shutdown.requested() => return,
                Ok(()) = self.told.changed() => {}
                Ok(()) = self.more.changed() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Writes what is not written yet, and removes what nobody needs any more; says whether all of it was done.
    async fn write(&mut self) -> bool {
        let roots = self.told.borrow_and_update().roots_pem.clone();
        let wanted: BTreeSet<String> = self.always.union(&self.more.borrow_and_update()).cloned().collect();
        let mut all = true;
        for namespace in &wanted {
            let is_written = |written: &Written| written.roots == roots && written.at.elapsed() < AGAIN;
            if self.written.get(namespace).is_some_and(is_written) {
                continue;
            }
            match self.apply(namespace, &roots).await {
                Ok(()) => {
                    let written = Written { roots: roots.clone(), at: Instant::now() };
                    self.written.insert(namespace.clone(), written);
                }
                Err(error) => {
                    all = false;
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(namespace, error, "the roots could not be published");
                }
            }
        }
        let unwanted: Vec<String> = self.written.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        for namespace in unwanted {
            match self.api(&namespace).delete(CONFIG_MAP, &DeleteParams::default()).await {
                Err(error) if !is_gone(&error) => {
                    all = false;
                    tracing::warn!(
                        namespace,
                        error = &error as &dyn std::error::Error,
                        "the roots stay where nobody needs them"
                    );
                }
                _ => drop(self.written.remove(&namespace)),
            }
        }
        all
    }

    async fn apply(&self, namespace: &str, roots: &str) -> kube::Result<()> {
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": CONFIG_MAP, "labels": { "app.kubernetes.io/managed-by": "underpass" } },
            "data": { ROOTS_FILE: roots },
        });
        // Ours alone, whoever wrote there before.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.api(namespace).patch(CONFIG_MAP, &params, &Patch::Apply(object)).await.map(drop)
    }

    fn api(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

//! The state in a Secret. Replicas share it: each change names the version that it builds on, and the API server refuses
//! it when there is a newer one.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::FIELD_MANAGER;
use crate::ca::state::{
    Held, KEY_FILE, NEXT_KEY_FILE, REVOKED_FILE, ROOTS_FILE, State, StateError, StateStore, Storing,
};

/// The Secret of an authority. Only operators may have the right to read it.
#[derive(Clone)]
pub struct SecretState {
    api: Api<Secret>,
    namespace: String,
    name: String,
}

/// A part that is no text.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not UTF-8")]
struct NotText(&'static str);

impl SecretState {
    /// A Secret that may not exist yet.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn failed(&self, source: impl std::error::Error + Send + Sync + 'static) -> StateError {
        StateError { place: format!("Secret {}/{}", self.namespace, self.name), source: source.into() }
    }

    async fn load(&self) -> Result<Held, StateError> {
        let found = self.api.get_opt(&self.name).await.map_err(|error| self.failed(error))?;
        let Some(secret) = found else { return Ok(Held::default()) };
        let data = secret.data.unwrap_or_default();
        let text = |part: &'static str| match data.get(part) {
            Some(ByteString(bytes)) => {
                String::from_utf8(bytes.clone()).map(Some).map_err(|_| self.failed(NotText(part)))
            }
            None => Ok(None),
        };
        let state = State {
            roots: text(ROOTS_FILE)?,
            key: text(KEY_FILE)?,
            next_key: text(NEXT_KEY_FILE)?,
            revoked: text(REVOKED_FILE)?,
        };
        Ok(Held { state, version: secret.metadata.resource_version.unwrap_or_default() })
    }

    async fn save(&self, before: &Held, after: &State) -> Result<bool, StateError> {
        let data = [
            (ROOTS_FILE, &after.roots),
            (KEY_FILE, &after.key),
            (NEXT_KEY_FILE, &after.next_key),
            (REVOKED_FILE, &after.revoked),
        ];
        let data = data.map(|(part, text)| (part, text.clone().map(|text| ByteString(text.into_bytes()))));
        let written = if before.version.is_empty() {
            let data = data.into_iter().filter_map(|(part, bytes)| Some((part.to_owned(), bytes?)));
            self.create(data.collect()).await
        } else {
            let data: BTreeMap<_, _> = data.into();
            // What is null in a merge patch is removed; labels and whatever else others wrote stays.
            let patch = json!({ "metadata": { "resourceVersion": before.version }, "data": data });
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            self.api.patch(&self.name, &params, &Patch::Merge(patch)).await.map(drop)
        };
        match written {
            Ok(()) => Ok(true),
            // Somebody made or changed it meanwhile.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn create(&self, data: BTreeMap<String, ByteString>) -> kube::Result<()> {
        let metadata = ObjectMeta {
            name: Some(self.name.clone()),
            labels: Some([("app.kubernetes.io/managed-by".to_owned(), "underpass".to_owned())].into()),
            ..ObjectMeta::default()
        };
        let secret = Secret { metadata, data: Some(data), type_: Some("Opaque".to_owned()), ..Secret::default() };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        self.api.create(&params, &secret).await.map(drop)
    }
}

impl StateStore for SecretState {
    fn load(&self) -> Storing<'_, Held> {
        Box::pin(self.load())
    }

    fn save<'a>(&'a self, before: &'a Held, after: &'a State) -> Storing<'a, bool> {
        Box::pin(self.save(before, after))
    }
}

//! A copy of the mesh on disk, so that a node proxy that starts while the control plane is away still knows it.
//!
//! The file holds what a control plane would have sent: one delta response a type, each behind its length. It says
//! nothing secret, and is believed no more than the control plane was: whoever can write it could as well read the
//! process's memory.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use prost::Message as _;
use prost_types::Any;

use crate::{
    client::digest,
    store::Store,
    view::View,
    wire::{
        ResourceType, convert,
        workload::{Address, address::Type},
        xds,
    },
};

/// Who wrote the file. Another release may understand more of a resource than the one that wrote it, and would never
/// be sent the rest if it claimed to hold the resource's version.
const WRITER: &str = concat!("underpass-view/", env!("CARGO_PKG_VERSION"));

/// Where the copy is, and how long it stands back for the live mesh.
#[derive(Clone, Debug)]
pub struct KeptView {
    path: PathBuf,
    head_start: Duration,
}

/// Why a copy is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeptViewError {
    /// The file cannot be read.
    #[error("read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// The file holds something else, or was cut.
    #[error("{0} is no copy of a mesh: {1}")]
    Content(PathBuf, String),
}

/// All that a copy is made of; cheap to take.
pub(crate) struct Snapshot {
    pub(crate) view: View,
    pub(crate) versions: HashMap<String, Arc<str>>,
    pub(crate) authorizations: HashMap<String, Arc<str>>,
    pub(crate) revocations: HashMap<String, Arc<str>>,
}

impl KeptView {
    /// How long the control plane has to answer before a copy counts as the whole mesh. It mostly is milliseconds away,
    /// and who is new in the mesh is not in the copy: would be called in plaintext.
    pub const HEAD_START: Duration = Duration::from_secs(2);

    /// The copy at this path, whether or not it is there yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, head_start: Self::HEAD_START }
    }

    /// Stands back for this long instead of [`Self::HEAD_START`].
    #[must_use]
    pub fn with_head_start(self, head_start: Duration) -> Self {
        Self { head_start, ..self }
    }

    pub(crate) fn head_start(&self) -> Duration {
        self.head_start
    }

    /// Fills an empty store; answers whether there was a copy. The view is not complete by it: the control plane may be
    /// there and know more.
    ///
    /// # Errors
    /// [`KeptViewError`]; the store is as before.
    pub fn load(&self, store: &mut Store) -> Result<bool, KeptViewError> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(KeptViewError::Read(self.path.clone(), error)),
        };
        let wrong = |problem: String| KeptViewError::Content(self.path.clone(), problem);
        let mut rest = bytes.as_slice();
        let mut deltas = Vec::new();
        for kind in ResourceType::ALL {
            let response = xds::DeltaDiscoveryResponse::decode_length_delimited(&mut rest)
                .map_err(|error| wrong(format!("{kind:?}: {error}")))?;
            if response.type_url != kind.url() {
                return Err(wrong(format!("{:?} where {kind:?} should be", response.type_url)));
            }
            let mut digest = digest(kind, &response);
            digest.delta.complete = false;
            if response.system_version_info != WRITER {
                digest.delta.changed.iter_mut().for_each(|(_, version)| *version = Arc::from(""));
            }
            if let Some(refused) = digest.refused.first() {
                tracing::warn!(refused, more = digest.refused.len() - 1, "resources of the kept view were refused");
            }
            deltas.push(digest.delta);
        }
        deltas.into_iter().for_each(|delta| store.apply(delta));
        Ok(true)
    }

    /// Replaces the copy, whole or not at all.
    pub(crate) fn save(&self, snapshot: &Snapshot) -> io::Result<()> {
        let mut bytes = Vec::new();
        for kind in ResourceType::ALL {
            let resources = match kind {
                ResourceType::Address => addresses(snapshot),
                ResourceType::Authorization => authorizations(snapshot),
                ResourceType::Revocation => revocations(snapshot),
            };
            let response = xds::DeltaDiscoveryResponse {
                system_version_info: WRITER.to_owned(),
                type_url: kind.url().to_owned(),
                resources: resources.iter().map(|resource| resource.encode_to_vec().into()).collect(),
                ..xds::DeltaDiscoveryResponse::default()
            };
            response.encode_length_delimited(&mut bytes).map_err(io::Error::other)?;
        }
        replace(&self.path, &bytes)
    }
}

fn addresses(snapshot: &Snapshot) -> Vec<xds::Resource> {
    let address = |name: String, body: Type| {
        let mut resource = resource(name, ResourceType::Address, Address { r#type: Some(body) }.encode_to_vec());
        resource.version = snapshot.versions.get(&resource.name).map(ToString::to_string).unwrap_or_default();
        resource
    };
    let workloads = snapshot.view.workloads();
    let workloads =
        workloads.map(|each| address(each.uid.to_string(), Type::Workload(convert::workload_to_wire(each))));
    let services = snapshot.view.services();
    let services = services.map(|each| address(each.name.to_string(), Type::Service(convert::service_to_wire(each))));
    workloads.chain(services).collect()
}

fn authorizations(snapshot: &Snapshot) -> Vec<xds::Resource> {
    let all = snapshot.view.all_policies();
    all.map(|policy| {
        let body = convert::policy_to_wire(policy).encode_to_vec();
        let mut resource = resource(policy.name.to_string(), ResourceType::Authorization, body);
        resource.version = snapshot.authorizations.get(&resource.name).map(ToString::to_string).unwrap_or_default();
        resource
    })
    .collect()
}

fn revocations(snapshot: &Snapshot) -> Vec<xds::Resource> {
    let all = snapshot.view.revocations();
    all.map(|revocation| {
        let body = convert::revocation_to_wire(revocation).encode_to_vec();
        let mut resource = resource(revocation.name(), ResourceType::Revocation, body);
        resource.version = snapshot.revocations.get(&resource.name).map(ToString::to_string).unwrap_or_default();
        resource
    })
    .collect()
}

fn resource(name: String, kind: ResourceType, value: Vec<u8>) -> xds::Resource {
    let any = Any { type_url: kind.url().to_owned(), value };
    xds::Resource { name, resource: Some(any), ..xds::Resource::default() }
}

/// The draft has a name of its own: while a proxy is replaced, two of them keep copies under one name.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut draft = tempfile::Builder::new().prefix(".view-").tempfile_in(directory)?;
    draft.write_all(bytes)?;
    // Else a crash of the machine could leave an empty file under the name.
    draft.as_file().sync_all()?;
    draft.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use underpass_model::Revocation;
    use underpass_policy::{Policy, PolicyName, Scope};

    use super::*;
    use crate::{
        store::{Delta, Resource},
        testing::{at, service, service_name, workload},
    };

    fn filled() -> Store {
        let mut store = Store::new();
        let web = service_name("shop", "web");
        let pod = workload("shop", "web-1").address("10.0.0.1").hbone().backs(&web, &[(80, 8080)]).build();
        let changed = vec![
            (Resource::Workload(pod), Arc::from("v1")),
            (
                Resource::Service(service("shop", "web").address("10.96.0.1").ports(&[(80, 8080)]).build()),
                Arc::from("v2"),
            ),
        ];
        store.apply(Delta { kind: ResourceType::Address, changed, removed: Vec::new(), complete: true });
        let policy = Policy::refuse(PolicyName::new("shop", "deny"), Scope::Namespace);
        let changed = vec![(Resource::Authorization(policy), Arc::from("v3"))];
        store.apply(Delta { kind: ResourceType::Authorization, changed, removed: Vec::new(), complete: true });
        let serial = "0102030405060708".parse().unwrap();
        let changed = vec![(Resource::Revocation(Revocation::Serial(serial)), Arc::from("v4"))];
        store.apply(Delta { kind: ResourceType::Revocation, changed, removed: Vec::new(), complete: true });
        store
    }

    #[test]
    fn a_store_comes_back_as_it_was_and_resumes_by_versions() {
        let directory = tempfile::tempdir().unwrap();
        let kept = KeptView::new(directory.path().join("view"));
        kept.save(&filled().snapshot()).unwrap();
        let mut store = Store::new();
        assert!(kept.load(&mut store).unwrap());
        assert!(!store.view().is_complete(), "the control plane may know more");
        assert!(store.view().service_at(&at("10.96.0.1"), "shop").is_some());
        assert_eq!(store.view().endpoints(&service_name("shop", "web")).count(), 1);
        assert!(store.view().policy("shop/deny").is_some(), "what was not understood still refuses");
        assert_eq!(store.view().revocations().count(), 1);
        for kind in ResourceType::ALL {
            assert_eq!(store.versions(kind), filled().versions(kind));
        }
    }

    #[test]
    fn two_proxies_that_keep_their_views_at_once_do_not_disturb_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let kept = KeptView::new(directory.path().join("view"));
        let snapshot = filled().snapshot();
        std::thread::scope(|scope| {
            let keep = || (0..25).try_for_each(|_| kept.save(&snapshot));
            let both = [scope.spawn(keep), scope.spawn(keep)];
            for one in both {
                one.join().unwrap().unwrap();
            }
        });
        assert!(kept.load(&mut Store::new()).unwrap());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn no_copy_is_no_error_and_no_view() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::new();
        assert!(!KeptView::new(directory.path().join("view")).load(&mut store).unwrap());
        assert!(!store.view().is_complete());
    }

    #[test]
    fn a_copy_that_was_cut_anywhere_is_refused_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("view");
        let kept = KeptView::new(path.clone());
        kept.save(&filled().snapshot()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut store = Store::new();
            assert!(kept.load(&mut store).is_err(), "cut at {length} of {}", whole.len());
            assert_eq!(store.view().counts().workloads, 0);
        }
    }
}

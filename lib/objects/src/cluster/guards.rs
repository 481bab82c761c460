//! Whether an API server has NetworkPolicies, of whoever's kind: looked at again as soon as the first one comes.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, future, pin_mut};
use kube::{
    Api, Client,
    api::{ListParams, WatchParams},
    core::discovery::v2::{APIGroupDiscovery, APIVersionDiscovery},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use tokio::time;

use super::feed::{Heard, Unheard, Updates, explain};
use crate::{
    guarded::{NetworkPolicies, is_network_policy},
    snapshot::KindError,
};

/// How often it is asked which kinds there are: a new one comes with a CustomResourceDefinition, whose watch would be one
/// more right.
const KINDS: Duration = Duration::from_secs(10);
/// Between two looks, however often something happens.
const REST: Duration = Duration::from_millis(500);
/// A look that takes longer has failed.
const LOOK: Duration = Duration::from_secs(60);

/// One kind without objects, as of a revision.
struct Empty(ApiResource, String);

/// Tells each time that it becomes otherwise, until nobody listens.
pub(super) async fn follow(client: Client, updates: Updates) -> Result<(), Unheard> {
    let mut told = NetworkPolicies::default();
    loop {
        let looked = time::timeout(LOOK, look(&client)).await;
        let looked = looked.unwrap_or_else(|_elapsed| Err(KindError::Unreachable("no answer in time".into())));
        let (found, empty) = match looked {
            Ok(found) => found,
            // As with all objects, what was known last stays while nobody answers.
            Err(error @ KindError::Unreachable(_)) if told != NetworkPolicies::default() => {
                tracing::debug!(%error, "NetworkPolicies cannot be looked for; what was known last stays");
                (told.clone(), vec![])
            }
            Err(error) => (NetworkPolicies::Unknown(error.to_string()), vec![]),
        };
        if found != told {
            tracing::info!(network_policies = %found, "whether pods of one node may be joined without a tunnel");
            updates.send(Heard::NetworkPolicies(found.clone())).await.map_err(|_closed| Unheard)?;
            told = found;
        }
        time::sleep(REST).await;
        let _kinds_may_be_others = time::timeout(KINDS, first_of(&client, &empty)).await;
    }
}

/// Whether there are any; if there are none, the kinds to watch.
async fn look(client: &Client) -> Result<(NetworkPolicies, Vec<Empty>), KindError> {
    let groups = client.list_api_groups_aggregated().await.map_err(|error| explain(&error))?;
    let mut empty = Vec::new();
    for resource in network_policies(&groups.items).map_err(KindError::Refused)? {
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        let one = ListParams { limit: Some(1), ..ListParams::default() };
        match api.list_metadata(&one).await {
            Ok(list) if list.items.is_empty() => {
                empty.push(Empty(resource, list.metadata.resource_version.unwrap_or_default()));
            }
            Ok(_some) => {
                let kind = format!("{}.{}", resource.kind, resource.group);
                return Ok((NetworkPolicies::Present(kind), Vec::new()));
            }
            Err(error) => match explain(&error) {
                // Gone with its definition since.
                KindError::Unknown => {}
                error => return Err(error),
            },
        }
    }
    Ok((NetworkPolicies::Absent, empty))
}

/// Completes when there may be an object of one of these; never if there are no kinds.
async fn first_of(client: &Client, empty: &[Empty]) {
    let watches = empty.iter().map(|Empty(resource, revision)| {
        let api = Api::<DynamicObject>::all_with(client.clone(), resource);
        Box::pin(async move {
            let watch = WatchParams { bookmarks: false, ..WatchParams::default() };
            // A watch that fails says nothing; the next look is not far.
            let Ok(events) = api.watch_metadata(&watch, revision).await else { return future::pending().await };
            pin_mut!(events);
            if events.next().await.is_none() {
                future::pending::<()>().await;
            }
        })
    });
    let watches: Vec<_> = watches.collect();
    if watches.is_empty() {
        return future::pending().await;
    }
    future::select_all(watches).await;
}

/// The kinds of NetworkPolicies that a server has, each once; an error if it does not know all of its own kinds.
fn network_policies(groups: &[APIGroupDiscovery]) -> Result<Vec<ApiResource>, String> {
    if groups.is_empty() {
        return Err("it does not tell which kinds it has".into());
    }
    let mut found = BTreeMap::new();
    for group in groups {
        let name = group.metadata.as_ref().and_then(|metadata| metadata.name.as_deref()).unwrap_or_default();
        for version in &group.versions {
            if version.freshness.as_deref() == Some("Stale") {
                return Err(format!("it does not know the kinds of {name} at present"));
            }
            for resource in of_version(name, version) {
                // Versions are listed by preference; any one shows the same objects.
                found.entry((resource.group.clone(), resource.plural.clone())).or_insert(resource);
            }
        }
    }
    Ok(found.into_values().collect())
}

fn of_version(group: &str, version: &APIVersionDiscovery) -> Vec<ApiResource> {
    let resources = version.resources.iter().filter_map(|resource| {
        let kind = resource.response_kind.as_ref()?.kind.as_deref()?;
        let plural = resource.resource.as_deref()?;
        let can_be_listed = resource.verbs.iter().any(|verb| verb == "list");
        let name = GroupVersionKind::gvk(group, version.version.as_deref().unwrap_or_default(), kind);
        (can_be_listed && is_network_policy(kind)).then(|| ApiResource::from_gvk_with_plural(&name, plural))
    });
    resources.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn group(name: &str, freshness: &str, resources: &[(&str, &str, &str)]) -> Value {
        let resources: Vec<_> = resources
            .iter()
            .map(|(kind, plural, verb)| json!({"resource": plural, "responseKind": {"kind": kind}, "verbs": [verb]}))
            .collect();
        let version = |version: &str| json!({"version": version, "freshness": freshness, "resources": resources});
        json!({"metadata": {"name": name}, "versions": [version("v1"), version("v1beta1")]})
    }

    fn found(groups: &[Value]) -> Result<Vec<String>, String> {
        let groups: Vec<_> = groups.iter().map(|group| serde_json::from_value(group.clone()).unwrap()).collect();
        let path = |one: ApiResource| format!("{}/{}/{}", one.group, one.version, one.plural);
        Ok(network_policies(&groups)?.into_iter().map(path).collect())
    }

    #[test]
    fn kinds_of_all_groups_are_found_once() {
        let kubernetes = group(
            "networking.k8s.io",
            "Current",
            &[("NetworkPolicy", "networkpolicies", "list"), ("Ingress", "ingresses", "list")],
        );
        let cilium = group("cilium.io", "Current", &[("CiliumNetworkPolicy", "ciliumnetworkpolicies", "list")]);
        let reviews = group("authorization.k8s.io", "Current", &[("ANetworkPolicy", "reviews", "create")]);
        let expected = ["cilium.io/v1/ciliumnetworkpolicies", "networking.k8s.io/v1/networkpolicies"];
        assert_eq!(found(&[kubernetes, cilium, reviews]).unwrap(), expected);
    }

    #[test]
    fn a_server_that_does_not_know_its_kinds_is_no_proof_of_absence() {
        assert!(found(&[]).unwrap_err().contains("which kinds"));
        let away = group("projectcalico.org", "Stale", &[]);
        assert!(found(&[group("apps", "Current", &[]), away]).unwrap_err().contains("projectcalico.org"));
    }
}

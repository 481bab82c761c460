//! What the operator shows of itself to people, and what they may ask of it.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use http::{Method, Request, StatusCode};
use imbl::OrdMap;
use serde_json::{Value, json};
use tokio::sync::watch;
use underpass_discovery::{server::Publisher, wire::ResourceType};
use underpass_model::{Identity, TrustDomain};
use underpass_objects::{ObjectName, Objects, Snapshot, pod};
use underpass_runtime::admin::{Answer, Pages, json, text};

use crate::{
    app::Running,
    ca::{Authority, OpenError, Revoke},
    census::{Count, Enrolled},
    cluster::status::Told,
};

impl Running {
    /// Debugging pages: `/problems` with what is not taken, `/policies` with what became of the mesh's own objects,
    /// `/namespaces` with how far their enrolment has come, `/subscribers` with how far each has come, `/authority` with
    /// roots, issuing certificate and revocations. What changes something is a POST: `/rotate?what=root|issuing` and
    /// `/revoke?identity=SPIFFE-ID` or `?serial=HEX`, which a DELETE takes back.
    #[must_use]
    pub fn pages(&self) -> Pages {
        let publisher = self.publisher.clone();
        let subscribers = move |_| {
            let page = subscribers(&publisher).to_string();
            async move { json(page) }
        };
        let pages = of_newest(Pages::new(), "/problems", &self.objects, problems);
        let pages = of_newest(pages, "/policies", &self.told, policies);
        let pages = of_newest(pages, "/namespaces", &self.counts, namespaces);
        let authority = self.authority.clone();
        let shown = move |_| {
            let status = json!(authority.status());
            async move { json(status.to_string()) }
        };
        let [rotating, revoking, restoring] = [(); 3].map(|()| self.authority.clone());
        let objects = self.objects.clone();
        let rotate = move |request: Request<()>| rotate(rotating.clone(), parameters(&request));
        let revoke = move |request: Request<()>| {
            let objects = Arc::clone(&objects.borrow().objects);
            revoke(revoking.clone(), parameters(&request), objects)
        };
        let restore = move |request: Request<()>| restore(restoring.clone(), parameters(&request));
        pages
            .page(Method::GET, "/subscribers", subscribers)
            .page(Method::GET, "/authority", shown)
            .page(Method::POST, "/rotate", rotate)
            .page(Method::POST, "/revoke", revoke)
            .page(Method::DELETE, "/revoke", restore)
    }
}

/// A page that is made of the newest value.
fn of_newest<T: Send + Sync + 'static>(
    pages: Pages,
    path: &'static str,
    values: &watch::Receiver<T>,
    make: fn(&T) -> Value,
) -> Pages {
    let values = values.clone();
    pages.page(Method::GET, path, move |_| {
        let page = make(&values.borrow()).to_string();
        async move { json(page) }
    })
}

fn problems(snapshot: &Snapshot) -> Value {
    let problems = snapshot.problems.iter().map(|problem| {
        json!({
            "of": problem.origin.to_string(),
            "in_force": if problem.is_lost { "nothing" } else { "its last good state" },
            "line": problem.error.line(),
            "field": problem.error.field(),
            "reason": problem.error.reason(),
            "message": problem.error.to_string(),
        })
    });
    json!({
        "problems": problems.collect::<Vec<_>>(),
        "ignored": *snapshot.ignored,
        "network_policies": snapshot.network_policies.to_string(),
    })
}

fn policies(told: &Told) -> Value {
    let objects = told.objects.iter().map(|(verdict, _)| {
        json!({
            "object": verdict.key.to_string(),
            "reason": verdict.accepted.word(),
            "message": verdict.message,
        })
    });
    json!({ "version": told.version, "objects": objects.collect::<Vec<_>>() })
}

fn namespaces(counts: &OrdMap<String, Count>) -> Value {
    let namespaces = counts.iter().map(|(name, count)| {
        let reason = count.enrolled().map(Enrolled::word);
        (name.clone(), json!({ "reason": reason, "message": count.message() }))
    });
    Value::Object(namespaces.collect())
}

fn subscribers(publisher: &Publisher) -> Value {
    let subscribers = publisher.subscribers().into_iter().map(|subscriber| {
        json!({
            "node": &*subscriber.name,
            "id": subscriber.node_id,
            "connected_seconds": seconds_since(subscriber.since),
            "answered": subscriber.answered,
            "refusal": subscriber.refusal.map(|refusal| refusal.message),
        })
    });
    let subscribers: Vec<_> = subscribers.collect();
    let resources = publisher.count(ResourceType::Address);
    json!({ "version": publisher.version(), "resources": resources, "subscribers": subscribers })
}

type Parameters = BTreeMap<String, String>;

fn parameters(request: &Request<()>) -> Parameters {
    let pairs = request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    // Nothing that is asked for has other bytes than these two in need of an escape.
    pairs.map(|(name, value)| (name.to_owned(), value.replace("%3A", ":").replace("%2F", "/"))).collect()
}

async fn rotate(authority: Authority, parameters: Parameters) -> Answer {
    let now = SystemTime::now();
    let done = match parameters.get("what").map(String::as_str) {
        Some("issuing") => authority.replace_issuing(now).await,
        Some("root") => authority.replace_root(now).await,
        _ => return text(StatusCode::BAD_REQUEST, "what=issuing or what=root\n"),
    };
    answer(&authority, done)
}

async fn revoke(authority: Authority, parameters: Parameters, objects: Arc<Objects>) -> Answer {
    let what = what(&parameters, authority.trust_domain()).and_then(|what| match &what {
        Revoke::Identity(identity) if !parameters.contains_key(UNKNOWN) && !is_known(identity, &objects) => Err(format!(
            "no pod runs as {identity}, nor is there such a service account; to revoke it all the same: &{UNKNOWN}=yes"
        )),
        _ => Ok(what),
    });
    match what {
        Ok(what) => answer(&authority, authority.revoke(what, SystemTime::now()).await),
        Err(problem) => text(StatusCode::BAD_REQUEST, problem + "\n"),
    }
}

async fn restore(authority: Authority, parameters: Parameters) -> Answer {
    match what(&parameters, authority.trust_domain()) {
        Ok(what) => answer(&authority, authority.restore(what, SystemTime::now()).await),
        Err(problem) => text(StatusCode::BAD_REQUEST, problem + "\n"),
    }
}

/// The parameter by which somebody says that an identity need not be known.
const UNKNOWN: &str = "unknown";

/// Whom or what a request is about.
fn what(parameters: &Parameters, ours: &TrustDomain) -> Result<Revoke, String> {
    match (parameters.get("identity"), parameters.get("serial")) {
        (Some(name), None) => identity_of_ours(name, ours).map(Revoke::Identity),
        (None, Some(digits)) => digits.parse().map(Revoke::Serial).map_err(|error| error.to_string()),
        _ => Err("identity=SPIFFE-ID or serial=HEX".to_owned()),
    }
}

/// Whether somebody is, or could be, called so: a name that was mistyped revokes nobody. Accounts that are gone may have
/// left certificates behind.
fn is_known(identity: &Identity, objects: &Objects) -> bool {
    let (namespace, account) = (identity.namespace(), identity.service_account());
    objects.service_accounts.contains_key(&ObjectName::new(namespace, account))
        || objects.pods_in(namespace).any(|(_, pod)| pod::service_account(pod) == account)
}

/// Of another trust domain nothing would match, and who revokes would believe that it is done.
fn identity_of_ours(name: &str, ours: &TrustDomain) -> Result<Identity, String> {
    let identity = name.parse::<Identity>().map_err(|error| format!("identity: {error}"))?;
    if identity.trust_domain() == ours {
        Ok(identity)
    } else {
        Err(format!("{identity} is not of the trust domain {ours}"))
    }
}

fn answer(authority: &Authority, done: Result<(), OpenError>) -> Answer {
    match done {
        Ok(()) => json(json!(authority.status()).to_string()),
        Err(error) => text(StatusCode::CONFLICT, format!("{error}\n")),
    }
}

fn seconds_since(time: SystemTime) -> u64 {
    SystemTime::now().duration_since(time).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use underpass_objects::manifest;

    use super::*;

    #[test]
    fn a_request_is_about_one_identity_or_one_certificate() {
        let told = |query: &str| {
            let request = Request::get(format!("/revoke?{query}")).body(()).unwrap();
            what(&parameters(&request), &TrustDomain::default()).map(|what| what.to_string())
        };
        let name = "spiffe://cluster.local/ns/demo/sa/client";
        for (query, expected) in [
            ("identity=spiffe%3A%2F%2Fcluster.local%2Fns/demo/sa/client", Ok(name)),
            ("unknown=yes&identity=spiffe://cluster.local/ns/demo/sa/client", Ok(name)),
            ("serial=0a0b0c0d0e0f0102", Ok("certificate 0A0B0C0D0E0F0102")),
            ("serial=0a0b0c0d0e0f0102&identity=spiffe://cluster.local/ns/demo/sa/client", Err("identity=")),
            ("name=client", Err("identity=")),
            ("serial=x", Err("not a serial number")),
        ] {
            match (told(query), expected) {
                (Ok(told), Ok(expected)) => assert!(told.eq_ignore_ascii_case(expected), "{query}: {told}"),
                (Err(told), Err(part)) => assert!(told.contains(part), "{query}: {told}"),
                (told, _) => panic!("{query}: {told:?}"),
            }
        }
    }

    #[test]
    fn an_identity_is_known_by_its_account_or_by_a_pod() {
        let manifests = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: idle, namespace: shop}}\n---\n\
            {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}, spec: {serviceAccountName: web}}\n";
        let objects = manifest::read(manifests.as_bytes()).unwrap().objects;
        let objects: Objects = objects.into_values().map(|located| located.object).collect();
        for (account, known) in
            [("shop/sa/idle", true), ("shop/sa/web", true), ("shop/sa/wbe", false), ("x/sa/web", false)]
        {
            let identity = format!("spiffe://cluster.local/ns/{account}").parse().unwrap();
            assert_eq!(is_known(&identity, &objects), known, "{account}");
        }
    }

    #[test]
    fn only_identities_that_could_match_are_revoked() {
        let ours = TrustDomain::new("cluster.local").unwrap();
        let told = |name| identity_of_ours(name, &ours).map(|identity| identity.to_string());
        let name = "spiffe://cluster.local/ns/demo/sa/client";
        assert_eq!(told(name).as_deref(), Ok(name));
        for (bad, problem) in [
            ("spiffe://other.domain/ns/demo/sa/client", "is not of the trust domain cluster.local"),
            ("demo/client", "identity: "),
        ] {
            let error = told(bad).unwrap_err();
            assert!(error.contains(problem), "{bad}: {error}");
        }
    }
}

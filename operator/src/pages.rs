//! What the operator shows of itself to people, and what they may ask of it.

use std::time::SystemTime;

use http::{Method, Request, StatusCode};
use imbl::OrdMap;
use serde_json::{Value, json};
use tokio::sync::watch;
use underpass_discovery::{server::Publisher, wire::ResourceType};
use underpass_model::{Identity, TrustDomain};
use underpass_objects::Snapshot;
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
    /// `/revoke?identity=SPIFFE-ID` or `?serial=HEX`.
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
        let (rotating, revoking) = (self.authority.clone(), self.authority.clone());
        let rotate = move |request: Request<()>| rotate(rotating.clone(), parameter(&request));
        let revoke = move |request: Request<()>| revoke(revoking.clone(), parameter(&request));
        pages
            .page(Method::GET, "/subscribers", subscribers)
            .page(Method::GET, "/authority", shown)
            .page(Method::POST, "/rotate", rotate)
            .page(Method::POST, "/revoke", revoke)
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

/// The only parameter of a request, if there is one.
fn parameter(request: &Request<()>) -> Option<(String, String)> {
    let (name, value) = request.uri().query()?.split_once('=')?;
    // Nothing that is asked for has other bytes than these two in need of an escape.
    Some((name.to_owned(), value.replace("%3A", ":").replace("%2F", "/")))
}

async fn rotate(authority: Authority, parameter: Option<(String, String)>) -> Answer {
    let now = SystemTime::now();
    let what = parameter.filter(|(name, _)| name == "what").map(|(_, what)| what);
    let done = match what.as_deref() {
        Some("issuing") => authority.replace_issuing(now).await,
        Some("root") => authority.replace_root(now).await,
        _ => return text(StatusCode::BAD_REQUEST, "what=issuing or what=root\n"),
    };
    answer(&authority, done)
}

async fn revoke(authority: Authority, parameter: Option<(String, String)>) -> Answer {
    let what = match parameter.as_ref().map(|(name, value)| (name.as_str(), value)) {
        Some(("identity", name)) => identity_of_ours(name, authority.trust_domain()).map(Revoke::Identity),
        Some(("serial", digits)) => digits.parse().map(Revoke::Serial).map_err(|error| error.to_string()),
        _ => Err("identity=SPIFFE-ID or serial=HEX".to_owned()),
    };
    match what {
        Ok(what) => answer(&authority, authority.revoke(what, SystemTime::now()).await),
        Err(problem) => text(StatusCode::BAD_REQUEST, problem + "\n"),
    }
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
    use super::*;

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

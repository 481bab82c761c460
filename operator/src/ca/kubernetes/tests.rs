use std::time::{Duration, SystemTime};

use clap::Parser as _;
use serde_json::json;
use tonic::metadata::MetadataMap;
use underpass_identity::{Issued, KeyPair, TrustBundle};
use underpass_model::{Identity, TrustDomain};
use underpass_objects::testing::FakeApiServer;
use underpass_runtime::{Shutdown, tasks};

use super::*;
use crate::ca::{Authenticate as _, Authority, AuthorityOptions, OpenError, Revoke, state::State};

const SYSTEM: &str = "underpass-system";
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    kubernetes: KubernetesOptions,
}

fn options() -> KubernetesOptions {
    Flags::parse_from(["operator"]).kubernetes
}

fn store(server: &FakeApiServer) -> SharedStore {
    options().store(server.client(), SYSTEM)
}

async fn open(server: &FakeApiServer) -> Result<Authority, OpenError> {
    Authority::open(store(server), AuthorityOptions::new(TrustDomain::default()), SystemTime::now()).await
}

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn issue(authority: &Authority, roots: &TrustBundle) -> Issued {
    let (key, now, web) = (Arc::new(KeyPair::generate().unwrap()), SystemTime::now(), identity("web"));
    let mut answer = authority.sign(&key.csr_pem(&web).unwrap(), &web, Duration::ZERO, now).unwrap();
    *answer.last_mut().unwrap() = roots.roots().map(|der| crate::ca::roots::to_pem([der])).collect();
    Issued::from_answer(&answer, key, &web, now).unwrap()
}

#[tokio::test]
async fn replicas_that_start_together_share_one_root_and_the_next_process_keeps_it() {
    let server = FakeApiServer::start().await.unwrap();
    let (one, two, three) = tokio::join!(open(&server), open(&server), open(&server));
    let replicas = [one.unwrap(), two.unwrap(), three.unwrap()];
    let roots = TrustBundle::from_pem(&replicas[0].roots_pem()).unwrap();
    for replica in &replicas {
        assert_eq!(replica.roots_pem(), replicas[0].roots_pem());
        issue(replica, &roots);
    }
    issue(&open(&server).await.unwrap(), &roots);
    let secret = server.get("secrets", SYSTEM, "underpass-ca").unwrap();
    assert_eq!(secret["data"].as_object().unwrap().keys().collect::<Vec<_>>(), ["root-key.pem", "root.pem"]);
}

#[tokio::test]
async fn replicas_that_change_something_at_once_lose_nothing() {
    let server = FakeApiServer::start().await.unwrap();
    let (one, two) = (open(&server).await.unwrap(), open(&server).await.unwrap());
    let now = SystemTime::now();
    let (revoked, replaced) = tokio::join!(
        one.revoke(Revoke::Identity(identity("web")), now),
        two.revoke(Revoke::Identity(identity("api")), now)
    );
    revoked.unwrap();
    replaced.unwrap();
    let (replaced, revoked) = tokio::join!(one.replace_root(now), two.revoke(Revoke::Identity(identity("db")), now));
    replaced.unwrap();
    revoked.unwrap();
    for replica in [&one, &two] {
        replica.refresh(now).await.unwrap();
        assert_eq!(replica.told().borrow().revocations.len(), 3);
        assert_eq!((replica.status().phase, replica.status().roots.len()), ("announced", 2));
    }
    assert!(two.replace_root(now).await.is_err(), "one replacement at a time, whoever began it");
}

#[tokio::test]
async fn a_change_that_builds_on_an_old_version_is_not_made_and_others_labels_stay() {
    let server = FakeApiServer::start().await.unwrap();
    let store = store(&server);
    let nothing = store.load().await.unwrap();
    let state = |roots: &str| State { roots: Some(roots.to_owned()), ..State::default() };
    assert!(store.save(&nothing, &state("one")).await.unwrap());
    assert!(!store.save(&nothing, &state("two")).await.unwrap(), "it exists by now");
    let old = store.load().await.unwrap();
    let mut secret = server.get("secrets", SYSTEM, "underpass-ca").unwrap();
    secret["metadata"]["labels"]["backup"] = json!("nightly");
    secret["kind"] = json!("Secret");
    server.put(secret);
    assert!(!store.save(&old, &state("two")).await.unwrap(), "somebody changed it");
    let new = store.load().await.unwrap();
    assert!(store.save(&new, &state("two")).await.unwrap());
    let secret = server.get("secrets", SYSTEM, "underpass-ca").unwrap();
    assert_eq!(secret["metadata"]["labels"]["backup"], "nightly");
    assert!(store.load().await.unwrap().state == state("two"));
}

#[tokio::test]
async fn without_the_api_server_nothing_begins_and_what_began_goes_on() {
    let server = FakeApiServer::start().await.unwrap();
    server.refuse("secrets", Some(403));
    let Err(error) = open(&server).await else { panic!("it began without its state") };
    assert!(error.to_string().contains("underpass-system/underpass-ca"), "{error}");
    server.refuse("secrets", None);
    let authority = open(&server).await.unwrap();
    server.refuse("secrets", Some(500));
    assert!(authority.refresh(SystemTime::now()).await.is_err());
    assert!(authority.revoke(Revoke::Identity(identity("web")), SystemTime::now()).await.is_err());
    assert_eq!(authority.told().borrow().revocations.len(), 0, "what is not kept is not told");
    issue(&authority, &TrustBundle::from_pem(&authority.roots_pem()).unwrap());
}

fn published(server: &FakeApiServer, namespace: &str) -> Option<String> {
    let map = server.get("configmaps", namespace, bundle::CONFIG_MAP)?;
    map["data"]["root.pem"].as_str().map(str::to_owned)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let soon = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, soon).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn the_roots_are_where_they_are_needed_and_nowhere_else() {
    let server = FakeApiServer::start().await.unwrap();
    let authority = open(&server).await.unwrap();
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let (namespaces, needed) = watch::channel(set(&["shop"]));
    let shutdown = Shutdown::new();
    let bundles = options().bundles(server.client(), SYSTEM, authority.told(), needed);
    tasks::spawn("bundles", bundles.run(watch::channel(true).1, shutdown.clone()));
    let has = |namespace: &'static str, roots: Option<String>| {
        let server = &server;
        move || published(server, namespace) == roots
    };
    let first = Some(authority.roots_pem());
    until("in both", has(SYSTEM, first.clone())).await;
    until("in both", has("shop", first)).await;

    server.refuse("configmaps", Some(500));
    authority.replace_root(SystemTime::now()).await.unwrap();
    let both = Some(authority.roots_pem());
    server.refuse("configmaps", None);
    until("the new root too", has(SYSTEM, both.clone())).await;
    until("the new root too", has("shop", both.clone())).await;
    namespaces.send_replace(set(&["bank"]));
    until("where it is needed now", has("bank", both)).await;
    until("not where it was", has("shop", None)).await;
    shutdown.request();
}

#[tokio::test]
async fn a_token_is_believed_as_the_options_say() {
    let server = FakeApiServer::start().await.unwrap();
    server.on_create("tokenreviews", |mut review| {
        let audiences = review["spec"]["audiences"].clone();
        review["status"] = json!({
            "authenticated": true,
            "audiences": audiences,
            "user": {
                "username": "system:serviceaccount:underpass-system:underpass-nodeproxy",
                "extra": {
                    "authentication.kubernetes.io/node-name": ["node-a"],
                    "authentication.kubernetes.io/pod-name": ["proxy-x"],
                    "authentication.kubernetes.io/pod-uid": ["uid-x"],
                },
            },
        });
        review["metadata"] = json!({ "generateName": "review-" });
        review
    });
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", "Bearer some-token".parse().unwrap());
    let believed = options().authenticator(server.client());
    believed.prepare("some-token").await;
    assert_eq!(believed.authenticate(&metadata).unwrap().as_str(), "node-a");
    let other = KubernetesOptions { node_accounts: vec!["mesh/proxy".to_owned()], ..options() };
    let unknown = other.authenticator(server.client());
    unknown.prepare("some-token").await;
    assert!(unknown.authenticate(&metadata).is_err());
}

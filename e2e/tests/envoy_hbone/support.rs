//! An Envoy, and who is who.

use std::{future::Future, net::SocketAddr, process::Command, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::task::{LocalSet, spawn_blocking};
use underpass_e2e::envoy::{Certificate, Envoy};
use underpass_identity::{
    KeyPair,
    testing::{LeafOptions, TestAuthority},
};
use underpass_model::Identity;

pub(crate) const OURS: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(crate) const ENVOYS: &str = "spiffe://cluster.local/ns/edge/sa/gateway";
pub(crate) const ANYWHERE: &str = "127.0.0.1:0";

/// Runs a test as a worker of the node proxy runs, and not for ever.
pub(crate) fn on_worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(50), test).await.expect("the test ends in time") };
    LocalSet::new().block_on(&runtime, bounded);
}

/// Starts an Envoy, or fails the test.
pub(crate) fn envoy(listeners: &[Value], clusters: &[Value]) -> Arc<Envoy> {
    let bootstrap = underpass_e2e::envoy::bootstrap(listeners, clusters);
    let start = |argv: &[&str]| {
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]);
        command
    };
    Arc::new(Envoy::start(&bootstrap, start).unwrap_or_else(|error| panic!("{error:?}")))
}

/// Waits for the only entry of its access log, while connections go on.
pub(crate) async fn logged(envoy: &Arc<Envoy>) -> Value {
    let envoy = Arc::clone(envoy);
    spawn_blocking(move || envoy.logged("a request", |_| true)).await.unwrap().unwrap()
}

pub(crate) fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

pub(crate) fn anywhere() -> SocketAddr {
    ANYWHERE.parse().unwrap()
}

/// A certificate for Envoy.
pub(crate) fn certificate(authority: &TestAuthority, identity: &str, leaf: &LeafOptions) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let answer = authority.answer(&key.public_key_info(), &id(identity), leaf);
    Certificate::of(&answer, &key).unwrap()
}

//! What the administration interface shows and does. It listens on loopback.

mod connections;
mod cpu;
mod dump;
mod heap;

use std::{collections::HashMap, sync::Arc};

use http::{Method, StatusCode};
use underpass_discovery::Mesh;
use underpass_identity::store::CertificateStore;
use underpass_runtime::{
    Chain, Shutdown,
    admin::{Answer, Pages, json, text},
    telemetry::LogControl,
};

use crate::{account::Accounts, config::Config, generation::Generation, pods::Pods};

/// What the pages show and act on.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) generation: Generation,
    pub(crate) pods: Arc<Pods>,
    pub(crate) mesh: Mesh,
    pub(crate) certificates: CertificateStore,
    pub(crate) accounts: Accounts,
    pub(crate) shutdown: Shutdown,
}

/// The pages.
pub(crate) fn pages(config: &Config, log: LogControl, shown: &Shown) -> Pages {
    let node = config.node_name.clone();
    let dumped = shown.clone();
    let dump = move |_| {
        let (node, shown) = (node.clone(), dumped.clone());
        aside(move || json(format!("{:#}\n", dump::page(&node, &shown))))
    };
    let accounts = shown.accounts.clone();
    let connections = move |request: http::Request<()>| {
        let accounts = accounts.clone();
        aside(move || match connections::page(&accounts, &query(&request)) {
            Ok(page) => json(format!("{page:#}\n")),
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        })
    };
    let (generation, pods) = (shown.generation.clone(), Arc::clone(&shown.pods));
    let generation = move |_| {
        let page = generation_page(&generation, &pods);
        async move { json(format!("{page:#}\n")) }
    };
    let cpu = |request: http::Request<()>| async move {
        match cpu::page(&query(&request)).await {
            Ok(folded) => text(StatusCode::OK, folded),
            Err(error) => text(error.status(), format!("{}\n", Chain(&error))),
        }
    };
    let heap = |_| aside(|| text(StatusCode::OK, heap::page()));
    let stop = shown.shutdown.clone();
    let quit = move |_| {
        stop.request();
        async { text(StatusCode::OK, "draining\n") }
    };
    let logging = move |request: http::Request<()>| {
        let filter = query(&request).remove("level").unwrap_or_default();
        let answer = match log.set(&filter) {
            Ok(()) => text(StatusCode::OK, format!("logging {filter}\n")),
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}: use ?level=info or ?level=target=debug\n")),
        };
        async move { answer }
    };
    Pages::new()
        .page(Method::GET, "/config_dump", dump)
        .page(Method::GET, "/connections", connections)
        .page(Method::GET, "/debug/pprof/heap", heap)
        .page(Method::GET, "/debug/pprof/profile", cpu)
        .page(Method::GET, "/generation", generation)
        .page(Method::POST, "/logging", logging)
        .page(Method::POST, "/quitquitquit", quit)
}

/// `/generation`: this run of the proxy, how many connections it has, and whether another one follows it.
fn generation_page(generation: &Generation, pods: &Pods) -> serde_json::Value {
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (connections, open) = pods.count();
    serde_json::json!({
        "generation": generation.name(),
        "age_ms": millis(generation.age()),
        "accepting": generation.is_accepting(),
        "successor": generation.successor(),
        "stops_within_ms": generation.remaining().map(millis),
        "connections": connections,
        "tunnels": open.saturating_sub(connections),
    })
}

/// Makes an answer where a thread may take its time: this one has the agent and the operator to talk to.
async fn aside(make: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    let made = tokio::task::spawn_blocking(make).await;
    made.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")))
}

/// What stands behind the question mark. Nothing here needs escapes.
fn query(request: &http::Request<()>) -> HashMap<String, String> {
    let pairs = request.uri().query().unwrap_or_default().split('&');
    pairs.filter_map(|pair| pair.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

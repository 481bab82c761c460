//! What the administration interface shows and does. It listens on loopback.

use std::sync::Arc;

use http::{Method, StatusCode};
use underpass_discovery::Mesh;
use underpass_identity::store::CertificateStore;
use underpass_runtime::{
    Shutdown,
    admin::{Pages, json, text},
    telemetry::LogControl,
};

use crate::{config::Config, pods::Pods};

/// What the pages show and act on.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) pods: Arc<Pods>,
    pub(crate) mesh: Mesh,
    pub(crate) certificates: CertificateStore,
    pub(crate) shutdown: Shutdown,
}

/// The pages.
pub(crate) fn pages(config: &Config, log: LogControl, shown: &Shown) -> Pages {
    let node = config.node_name.clone();
    let Shown { pods, mesh, certificates, shutdown: stop } = shown.clone();
    let dump = move |_| {
        let page = serde_json::json!({
            "node": node,
            "version": env!("CARGO_PKG_VERSION"),
            "pods": pods.all().values().map(|pod| serde_json::json!({
                "uid": pod.uid.as_str(),
                "namespace": &*pod.namespace,
                "name": &*pod.name,
                "identity": pod.identity.to_string(),
                "connections": pod.connections.live(),
            })).collect::<Vec<_>>(),
            "certificates": certificates.status(),
            "view": mesh_summary(&mesh),
        });
        async move { json(format!("{page:#}\n")) }
    };
    let quit = move |_| {
        stop.request();
        async { text(StatusCode::OK, "draining\n") }
    };
    let logging = move |request: http::Request<()>| {
        let filter = request.uri().query().and_then(|query| query.strip_prefix("level=")).unwrap_or("").to_owned();
        let answer = match log.set(&filter) {
            Ok(()) => text(StatusCode::OK, format!("logging {filter}\n")),
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}: use ?level=info or ?level=target=debug\n")),
        };
        async move { answer }
    };
    Pages::new().page(Method::GET, "/config_dump", dump).page(Method::POST, "/logging", logging).page(
        Method::POST,
        "/quitquitquit",
        quit,
    )
}

fn mesh_summary(mesh: &Mesh) -> serde_json::Value {
    let view = mesh.view();
    let counts = view.counts();
    serde_json::json!({
        "version": view.version(),
        "complete": view.is_complete(),
        "workloads": counts.workloads,
        "services": counts.services,
        "authorizations": counts.authorizations,
    })
}

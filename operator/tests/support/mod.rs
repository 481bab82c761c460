//! A node proxy's side of an operator, with the real client.

use std::{ops::Deref, path::Path, sync::Arc, time::Duration};

use underpass_discovery::{
    Mesh, Store, View,
    client::{self, ClientOptions},
};
use underpass_operator::app::Running;
use underpass_runtime::{
    Shutdown,
    control::{Control, ControlOptions},
};

/// Nothing takes so long; what does has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked to stop when the test ends: tasks that end before anybody asked end the process.
pub(crate) struct EndsWithTest(pub(crate) Shutdown);

impl Deref for EndsWithTest {
    type Target = Shutdown;

    fn deref(&self) -> &Shutdown {
        &self.0
    }
}

impl Drop for EndsWithTest {
    fn drop(&mut self) {
        self.0.request();
    }
}

/// The way to an operator whose directories are in `home`, as one of its nodes.
pub(crate) fn control(running: &Running, home: &Path, node: &str) -> Control {
    Control::new(ControlOptions {
        address: format!("https://{}", running.address),
        root_file: home.join("state/root.pem"),
        server_name: "underpass-operator.underpass-system.svc".into(),
        token_file: home.join("tokens").join(node),
    })
}

/// The mesh as a node proxy sees it.
pub(crate) fn subscribe(control: Control, node: &str, shutdown: &Shutdown) -> Mesh {
    let store = Store::new();
    let mesh = store.mesh();
    let options = ClientOptions { node_id: node.into(), ..ClientOptions::default() };
    tokio::spawn(client::run(control, options, store, shutdown.clone()));
    mesh
}

/// Waits until a view is like that.
pub(crate) async fn see(mesh: &Mesh, what: &str, satisfied: impl Fn(&View) -> bool) -> Arc<View> {
    tokio::time::timeout(PATIENCE, mesh.wait_until(satisfied)).await.unwrap_or_else(|_| panic!("never seen: {what}"))
}

/// Looks again and again: for what has no notification.
pub(crate) async fn eventually(what: &str, satisfied: impl AsyncFn() -> bool) {
    let all = async {
        while !satisfied().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

//! An API server that lives in memory, for tests: lists, watches, gets, creates, replaces, patches and deletes objects of
//! whatever kind over loopback, and fails on demand.
//!
//! As far as the mesh notices it behaves like the real one: revisions that grow, conflicts, status subresources,
//! selectors, pages, bookmarks, `410 Gone`. It validates nothing and knows no rights; use a real cluster for those.

mod http;
mod merge;
mod store;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use self::store::Store;
pub use self::store::{Key, Resource};

/// The server; it ends when dropped.
#[derive(Debug)]
pub struct FakeApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<()>>,
}

/// What is made of an object that somebody creates.
type OnCreate = Arc<dyn Fn(Value) -> Value + Send + Sync>;

#[derive(Default)]
struct Shared {
    store: Mutex<Store>,
    /// Counts what watches should look at.
    changed: watch::Sender<u64>,
    faults: Mutex<Faults>,
    requests: Mutex<Vec<String>>,
    /// Groups of kinds, as discovery tells them.
    kinds: Mutex<Vec<Value>>,
}

#[derive(Default)]
struct Faults {
    /// Plural names that are answered with a status code.
    refused: BTreeMap<String, u16>,
    /// Watches that began before are cut.
    cut: u64,
    bookmarks: u64,
    on_create: BTreeMap<String, OnCreate>,
}

impl FakeApiServer {
    /// Begins to serve on a loopback port of the system's choice, with nothing in it.
    ///
    /// # Errors
    /// If it cannot listen.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, shared) = (listener.local_addr()?, Arc::<Shared>::default());
        let serving = Some(tokio::spawn(http::serve(listener, Arc::clone(&shared))));
        Ok(Self { address, shared, serving })
    }

    /// A client of it.
    ///
    /// # Panics
    /// If none can be made.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test has nothing better to do")]
    pub fn client(&self) -> Client {
        let url = format!("http://{}", self.address).parse().expect("the URL of an address");
        // Whoever asks is to see each fault; what is tried again, and when, is what tests are about.
        let mut config = Config::new(url);
        config.default_retry = false;
        Client::try_from(config).expect("a client without TLS")
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Creates or replaces an object, status included, by its `apiVersion` and `kind`; it gets what every object has.
    pub fn put(&self, object: Value) {
        self.shared.store().put(object);
        self.shared.tell();
    }

    /// Like [`Self::put`], for each document of a YAML text.
    ///
    /// # Panics
    /// If a document is no YAML.
    #[expect(clippy::expect_used, reason = "a test that cannot be read is no test")]
    pub fn put_yaml(&self, documents: &str) {
        for document in documents.split("\n---") {
            let object: Value = serde_yaml::from_str(document.trim_start_matches("---")).expect("YAML");
            if !object.is_null() {
                self.put(object);
            }
        }
    }

    /// Deletes an object; false if there is none.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) -> bool {
        let deleted = self.shared.store().delete(&Key::new(plural, namespace, name)).is_some();
        self.shared.tell();
        deleted
    }

    /// An object by its plural name, as it is now.
    #[must_use]
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.store().get(&Key::new(plural, namespace, name)).cloned()
    }

    /// All objects of a plural name.
    #[must_use]
    pub fn all(&self, plural: &str) -> Vec<Value> {
        self.shared.store().of(plural).map(|(_, object)| object.clone()).collect()
    }

    /// What was asked of it so far: method and path with query.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }

    /// Tells in discovery that there is a kind, which is otherwise served without that.
    pub fn tell_kind(&self, group: &str, kind: &str, plural: &str) {
        let resource = json!({"resource": plural, "responseKind": {"kind": kind}, "verbs": ["list", "watch"]});
        let version = json!({"version": "v1", "freshness": "Current", "resources": [resource]});
        lock(&self.shared.kinds).push(json!({"metadata": {"name": group}, "versions": [version]}));
    }

    /// Answers every request for a plural name with a status code (403: a right is missing; 404: no such kind), until
    /// told `None`. Watches that stand are cut.
    pub fn refuse(&self, plural: &str, code: Option<u16>) {
        let mut faults = lock(&self.shared.faults);
        match code {
            Some(code) => drop(faults.refused.insert(plural.into(), code)),
            None => drop(faults.refused.remove(plural)),
        }
        drop(faults);
        self.cut_watches();
    }

    /// Ends all watches, in the middle of what they say.
    pub fn cut_watches(&self) {
        lock(&self.shared.faults).cut += 1;
        self.shared.tell();
    }

    /// Forgets how it became what it is: who watches from before now is told `410 Gone`.
    pub fn forget_history(&self) {
        self.shared.store().forget_history();
        self.cut_watches();
    }

    /// Sends a bookmark to every watch that asked for them.
    pub fn bookmark(&self) {
        lock(&self.shared.faults).bookmarks += 1;
        self.shared.tell();
    }

    /// What is made of objects of a plural name that somebody creates, such as the status of a TokenReview.
    pub fn on_create(&self, plural: &str, make: impl Fn(Value) -> Value + Send + Sync + 'static) {
        lock(&self.shared.faults).on_create.insert(plural.into(), Arc::new(make));
    }

    /// Stops as if its machine had died: connections are cut, new ones refused; what it holds is kept.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            // Aborted, as was asked for.
            let _cancelled = serving.await;
        }
    }

    /// Serves again, on the same port.
    ///
    /// # Errors
    /// If somebody else has the port now.
    pub async fn start_again(&mut self) -> io::Result<()> {
        self.stop().await;
        let listener = TcpListener::bind(self.address).await?;
        self.serving = Some(tokio::spawn(http::serve(listener, Arc::clone(&self.shared))));
        Ok(())
    }
}

impl Drop for FakeApiServer {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Requests and answers.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    io,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use super::{
    Shared, lock,
    store::{Change, Event, Key, Refusal, Resource},
};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves until dropped, and its connections with it.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _peer)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&shared, request).await) }
            });
            // A client that goes away is no news.
            let _served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// What a path asks for.
struct Asked {
    resource: Resource,
    name: Option<String>,
    of_status: bool,
}

impl Asked {
    fn of(path: &str) -> Option<Self> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (api_version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, plural, name, part) = match rest {
            [plural] => ("", plural, None, None),
            [plural, name] => ("", plural, Some(name), None),
            [plural, name, part] if *plural != "namespaces" || *part == "status" => {
                ("", plural, Some(name), Some(part))
            }
            ["namespaces", namespace, plural] => (*namespace, plural, None, None),
            ["namespaces", namespace, plural, name] => (*namespace, plural, Some(name), None),
            ["namespaces", namespace, plural, name, part] => (*namespace, plural, Some(name), Some(part)),
            _ => return None,
        };
        let resource = Resource { api_version, plural: (*plural).into(), namespace: namespace.into() };
        Some(Self { resource, name: name.map(|name| (*name).to_owned()), of_status: part == Some(&"status") })
    }

    fn key(&self) -> Key {
        Key::new(&self.resource.plural, &self.resource.namespace, self.name.as_deref().unwrap_or_default())
    }
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    lock(&shared.requests).push(format!("{} {}", head.method, head.uri));
    if head.uri.path() == "/apis" {
        let groups = lock(&shared.kinds).clone();
        return json_answer(200, &json!({"kind": "APIGroupDiscoveryList", "items": groups}));
    }
    let Some(asked) = Asked::of(head.uri.path()) else { return refusal(&Refusal(404, "no such path".into())) };
    let refused = lock(&shared.faults).refused.get(&asked.resource.plural).copied();
    if let Some(code) = refused {
        let message = format!("{} is forbidden or unknown, as the test wants", asked.resource.plural);
        return refusal(&Refusal(code, message));
    }
    let query = query(head.uri.query().unwrap_or_default());
    let is_set = |name: &str| matches!(query.get(name).map(String::as_str), Some("1" | "true"));
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    match (&head.method, asked.name.as_deref()) {
        (&Method::GET, None) if is_set("watch") => watch(shared, &asked, &query),
        (&Method::GET, None) => list(shared, &asked, &query),
        (&Method::GET, Some(name)) => {
            let found = shared.store().get(&asked.key()).cloned();
            found.map_or_else(
                || refusal(&Refusal(404, format!("{name:?} not found"))),
                |object| json_answer(200, &object),
            )
        }
        (&Method::POST, None) => {
            let made = lock(&shared.faults).on_create.get(&asked.resource.plural).cloned();
            let object = made.map_or(body.clone(), |make| make(body));
            written(shared, 201, |shared| shared.store().create(&asked.resource, object))
        }
        (&Method::PUT, Some(name)) => {
            let change = Change::Replace(body);
            written(shared, 200, |shared| shared.store().change(&asked.resource, name, &change, asked.of_status))
        }
        (&Method::PATCH, Some(name)) => {
            let content = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let change = match content {
                "application/merge-patch+json" => Change::Merge(body),
                "application/strategic-merge-patch+json" => Change::Strategic(body),
                _ => Change::Apply(body),
            };
            written(shared, 200, |shared| shared.store().change(&asked.resource, name, &change, asked.of_status))
        }
        (&Method::DELETE, Some(name)) => written(shared, 200, |shared| {
            let deleted = shared.store().delete(&asked.key());
            deleted.ok_or_else(|| Refusal(404, format!("{name:?} not found")))
        }),
        (method, _) => refusal(&Refusal(405, format!("{method} is not what it does"))),
    }
}

fn written(shared: &Shared, code: u16, write: impl FnOnce(&Shared) -> Result<Value, Refusal>) -> Response<Body> {
    let outcome = write(shared);
    shared.tell();
    outcome.map_or_else(|why| refusal(&why), |object| json_answer(code, &object))
}

/// Which objects a request means.
struct Selection {
    namespace: String,
    plural: String,
    fields: Vec<Term>,
    labels: Vec<Term>,
}

/// One condition of a selector.
struct Term {
    path: Vec<String>,
    is_equal: bool,
    value: Option<String>,
}

impl Selection {
    fn of(asked: &Asked, query: &BTreeMap<String, String>) -> Self {
        let terms = |name: &str, path: &dyn Fn(&str) -> Vec<String>| {
            let given = query.get(name).map(String::as_str).unwrap_or_default();
            given.split(',').filter(|term| !term.is_empty()).map(|term| Term::of(term, path)).collect()
        };
        Self {
            namespace: asked.resource.namespace.clone(),
            plural: asked.resource.plural.clone(),
            fields: terms("fieldSelector", &|name| name.split('.').map(str::to_owned).collect()),
            labels: terms("labelSelector", &|name| ["metadata", "labels", name].map(str::to_owned).into()),
        }
    }

    fn selects(&self, key: &Key, object: &Value) -> bool {
        let is_meant = key.plural == self.plural && (self.namespace.is_empty() || key.namespace == self.namespace);
        is_meant && self.fields.iter().chain(&self.labels).all(|term| term.holds(object))
    }
}

impl Term {
    fn of(term: &str, path: &dyn Fn(&str) -> Vec<String>) -> Self {
        let (name, is_equal, value) = match (term.split_once("!="), term.split_once('=')) {
            (Some((name, value)), _) => (name, false, Some(value)),
            (None, Some((name, value))) => (name, true, Some(value.trim_start_matches('='))),
            (None, None) => (term, true, None),
        };
        Self { path: path(name), is_equal, value: value.map(str::to_owned) }
    }

    fn holds(&self, object: &Value) -> bool {
        let found = self.path.iter().try_fold(object, |value, name| value.get(name)).and_then(Value::as_str);
        match &self.value {
            Some(value) => (found == Some(value.as_str())) == self.is_equal,
            None => found.is_some() == self.is_equal,
        }
    }
}

fn list(shared: &Shared, asked: &Asked, query: &BTreeMap<String, String>) -> Response<Body> {
    let selection = Selection::of(asked, query);
    let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
    let store = shared.store();
    let (from, most) = (number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX));
    let of_kind = store.of(&asked.resource.plural);
    let selected: Vec<&Value> =
        of_kind.filter(|(key, object)| selection.selects(key, object)).map(|(_, object)| object).collect();
    let page: Vec<&Value> = selected.iter().skip(from).take(most).copied().collect();
    let end = from + page.len();
    let metadata = if end < selected.len() {
        json!({ "resourceVersion": store.revision().to_string(), "continue": end.to_string() })
    } else {
        json!({ "resourceVersion": store.revision().to_string() })
    };
    json_answer(
        200,
        &json!({ "apiVersion": asked.resource.api_version, "kind": "List", "metadata": metadata, "items": page }),
    )
}

/// One watch, from where it is.
struct Watch {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    selection: Selection,
    api_version: String,
    revision: u64,
    cut: u64,
    bookmarks: Option<u64>,
    ready: VecDeque<Value>,
    is_over: bool,
}

fn watch(shared: &Arc<Shared>, asked: &Asked, query: &BTreeMap<String, String>) -> Response<Body> {
    let changed = shared.changed.subscribe();
    let (cut, bookmarks) = {
        let faults = lock(&shared.faults);
        (faults.cut, faults.bookmarks)
    };
    let from = query.get("resourceVersion").and_then(|text| text.parse().ok());
    let revision = from.unwrap_or_else(|| shared.store().revision());
    let wants_bookmarks = query.get("allowWatchBookmarks").is_some_and(|value| value == "true");
    let watch = Watch {
        shared: Arc::clone(shared),
        changed,
        selection: Selection::of(asked, query),
        api_version: asked.resource.api_version.clone(),
        revision,
        cut,
        bookmarks: wants_bookmarks.then_some(bookmarks),
        ready: VecDeque::new(),
        is_over: false,
    };
    let mut answer = Response::new(StreamBody::new(watch.lines()).boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    answer
}

impl Watch {
    fn lines(self) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
        stream::unfold(self, |mut watch| async move {
            loop {
                if let Some(event) = watch.ready.pop_front() {
                    return Some((Ok(Frame::data(format!("{event}\n").into())), watch));
                }
                if watch.is_over {
                    return None;
                }
                if lock(&watch.shared.faults).cut != watch.cut {
                    watch.is_over = true;
                    return Some((Err(io::Error::other("cut, as the test wants")), watch));
                }
                watch.look();
                // The sender lives in what the watch holds.
                if watch.ready.is_empty() && !watch.is_over {
                    let _changed = watch.changed.changed().await;
                }
            }
        })
    }

    fn look(&mut self) {
        let events = self.shared.store().after(self.revision);
        let Some(events) = events else {
            self.is_over = true;
            let gone = status(410, "too old resource version");
            return self.ready.push_back(json!({ "type": "ERROR", "object": gone }));
        };
        for event in events {
            self.revision = event.revision;
            self.ready.extend(self.told(&event));
        }
        let wanted = lock(&self.shared.faults).bookmarks;
        if self.bookmarks.is_some_and(|sent| sent != wanted) {
            self.bookmarks = Some(wanted);
            let metadata = json!({ "resourceVersion": self.revision.to_string() });
            let object = json!({ "apiVersion": self.api_version, "kind": "Bookmark", "metadata": metadata });
            self.ready.push_back(json!({ "type": "BOOKMARK", "object": object }));
        }
    }

    fn told(&self, event: &Event) -> Option<Value> {
        let selected =
            |object: &Option<Value>| object.clone().filter(|object| self.selection.selects(&event.key, object));
        let (of_type, object) = match (selected(&event.before), selected(&event.after)) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            (Some(before), None) => ("DELETED", before),
        };
        Some(json!({ "type": of_type, "object": object }))
    }
}

fn status(code: u16, message: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": word(code), "message": message })
}

fn word(code: u16) -> &'static str {
    match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        _ => "InternalError",
    }
}

fn refusal(Refusal(code, message): &Refusal) -> Response<Body> {
    json_answer(*code, &status(*code, message))
}

fn json_answer(code: u16, value: &Value) -> Response<Body> {
    let body = Full::from(value.to_string()).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    answer
}

/// A query's parameters, decoded.
fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), decode(value))).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after.split_at_checked(2).filter(|_| byte == b'%');
        let value = escaped.and_then(|(digits, _)| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        rest = match (value, escaped) {
            (Some(value), Some((_, beyond))) => {
                bytes.push(value);
                beyond
            }
            _ => {
                bytes.push(if byte == b'+' { b' ' } else { byte });
                after
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

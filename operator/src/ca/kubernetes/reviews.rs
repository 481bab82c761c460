//! Who calls, by the token of its pod: the API server says whose a token is and on which node that pod runs.
//!
//! A token must be for our audience, of the node proxy's service account, and bound to a pod that still exists (the API
//! server looks). What it said is believed for a minute, so that a node with many pods costs one question, and so that
//! short absences of the API server are not noticed; what it refused is remembered for some seconds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::Semaphore, time::Instant};
use tonic::metadata::MetadataMap;

use crate::{
    ca::{Authenticate, NodeName, Preparation, Unauthenticated, bearer},
    tokens::{TokenDigest, digest},
};

/// Whose tokens are taken.
#[derive(Debug, Clone)]
pub struct ReviewOptions {
    /// For whom a token must be meant.
    pub audience: String,
    /// The service accounts of node proxies, as `NAMESPACE/NAME`.
    pub accounts: Vec<String>,
}

/// How long a good answer is believed.
const GOOD: Duration = Duration::from_secs(60);
/// How long a bad one is.
const BAD: Duration = Duration::from_secs(10);
/// How long an answer may be used after it was found fresh.
const GRACE: Duration = Duration::from_secs(30);
/// How many good answers are remembered: more than a mesh has nodes.
const MOST_GOOD: usize = 16_384;
/// How many bad ones are: whoever makes up tokens must not push out those of nodes.
const MOST_BAD: usize = 1024;
/// How many questions may be under way.
const QUESTIONS: usize = 32;
/// How long one may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// The API server's answers about tokens; clones share them.
#[derive(Clone)]
pub struct Reviews(Arc<Inner>);

struct Inner {
    client: Client,
    options: ReviewOptions,
    answers: Mutex<Answers>,
    questions: Semaphore,
}

/// Bounded by what they are: digests, never tokens.
#[derive(Default)]
struct Answers {
    good: HashMap<TokenDigest, (NodeName, Instant)>,
    bad: HashMap<TokenDigest, (Unauthenticated, Instant)>,
}

/// A pod that a token is bound to.
#[derive(Debug, PartialEq, Eq)]
struct BoundPod {
    namespace: String,
    name: String,
    uid: String,
    /// Where it runs, if the API server says so (from Kubernetes 1.30 on).
    node: Option<NodeName>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum ReviewError {
    #[error(transparent)]
    Refused(#[from] Unauthenticated),
    #[error("the API server did not answer")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer within {DEADLINE:?}")]
    Silent,
}

impl Reviews {
    /// Asks this API server.
    #[must_use]
    pub fn new(client: Client, options: ReviewOptions) -> Self {
        let (answers, questions) = (Mutex::default(), Semaphore::new(QUESTIONS));
        Self(Arc::new(Inner { client, options, answers, questions }))
    }
}

impl Authenticate for Reviews {
    fn authenticate(&self, metadata: &MetadataMap) -> Result<NodeName, Unauthenticated> {
        self.0.answers().find(&digest(bearer(metadata)?), GRACE).unwrap_or(Err(Unauthenticated::NotReviewed))
    }

    fn prepare(&self, token: &str) -> Preparation {
        let (inner, token) = (Arc::clone(&self.0), token.to_owned());
        Box::pin(async move { inner.prepare(token).await })
    }
}

impl Inner {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that there is a fresh answer about a token.
    async fn prepare(&self, token: String) {
        let digest = digest(&token);
        let is_fresh = || self.answers().find(&digest, Duration::ZERO).is_some();
        if is_fresh() {
            return;
        }
        // Never closed.
        let _place = self.questions.acquire().await;
        // Somebody else may have asked while we waited.
        if is_fresh() {
            return;
        }
        let reviewed = tokio::time::timeout(DEADLINE, self.review(token)).await.unwrap_or(Err(ReviewError::Silent));
        match reviewed {
            Ok(node) => self.answers().put(digest, Ok(node)),
            Err(ReviewError::Refused(why)) => self.answers().put(digest, Err(why)),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "a token could not be reviewed");
            }
        }
    }

    async fn review(&self, token: String) -> Result<NodeName, ReviewError> {
        let spec = TokenReviewSpec { token: Some(token), audiences: Some(vec![self.options.audience.clone()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let review = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        let bound = bound_pod(&review.status.unwrap_or_default(), &self.options)?;
        match bound.node {
            Some(node) => Ok(node),
            None => self.node_of(&bound).await,
        }
    }

    /// Where a pod runs, for API servers that do not say it of a token.
    async fn node_of(&self, bound: &BoundPod) -> Result<NodeName, ReviewError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &bound.namespace);
        let pod = pods.get_opt(&bound.name).await?;
        let pod = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(bound.uid.as_str()));
        let node = pod.and_then(|pod| pod.spec?.node_name).and_then(|name| NodeName::new(&name));
        Ok(node.ok_or(Unauthenticated::Unbound)?)
    }
}

impl Answers {
    /// An answer that is not older than it may be, or by this much.
    fn find(&self, digest: &TokenDigest, grace: Duration) -> Option<Result<NodeName, Unauthenticated>> {
        if let Some((node, at)) = self.good.get(digest) {
            return (at.elapsed() < GOOD + grace).then(|| Ok(node.clone()));
        }
        let (why, at) = self.bad.get(digest)?;
        (at.elapsed() < BAD + grace).then(|| Err(why.clone()))
    }

    fn put(&mut self, digest: TokenDigest, answer: Result<NodeName, Unauthenticated>) {
        let now = Instant::now();
        match answer {
            Ok(node) => {
                self.bad.remove(&digest);
                make_room(&mut self.good, MOST_GOOD, GOOD + GRACE);
                self.good.insert(digest, (node, now));
            }
            Err(why) => {
                self.good.remove(&digest);
                make_room(&mut self.bad, MOST_BAD, BAD + GRACE);
                self.bad.insert(digest, (why, now));
            }
        }
    }
}

/// Forgets what is too old when there is no room, or else all of it: to ask again costs little.
fn make_room<T>(answers: &mut HashMap<TokenDigest, (T, Instant)>, most: usize, age: Duration) {
    if answers.len() >= most {
        answers.retain(|_, (_, at)| at.elapsed() < age);
    }
    if answers.len() >= most {
        answers.clear();
    }
}

/// Decides by what the API server says of a token.
fn bound_pod(status: &TokenReviewStatus, options: &ReviewOptions) -> Result<BoundPod, Unauthenticated> {
    // A server that knows no audiences would take the token for any.
    let is_for_us = status.audiences.iter().flatten().any(|audience| *audience == options.audience);
    if status.authenticated != Some(true) || !is_for_us {
        return Err(Unauthenticated::UnknownToken);
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.clone().unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
    let Some((namespace, account)) = account else { return Err(Unauthenticated::NotANode(name)) };
    if !options.accounts.iter().any(|allowed| *allowed == format!("{namespace}/{account}")) {
        return Err(Unauthenticated::NotANode(name));
    }
    let claim = |claim: &str| only(&user, &format!("authentication.kubernetes.io/{claim}"));
    let (Some(pod), Some(uid)) = (claim("pod-name"), claim("pod-uid")) else { return Err(Unauthenticated::Unbound) };
    let node = claim("node-name").map(|name| NodeName::new(name).ok_or(Unauthenticated::Unbound)).transpose()?;
    Ok(BoundPod { namespace: namespace.to_owned(), name: pod.to_owned(), uid: uid.to_owned(), node })
}

/// The only value of a claim.
fn only<'a>(user: &'a UserInfo, claim: &str) -> Option<&'a str> {
    match user.extra.as_ref()?.get(claim)?.as_slice() {
        [value] => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests;

//! What an authenticator has to ask of others is asked before a call reaches the services, so that these can decide at
//! once.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, header::AUTHORIZATION};
use tower::{Layer, Service};

use super::{Authenticate, attest::token};

/// Something that is waited for before a caller is asked who it is.
pub type Preparation = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Puts the preparation before services. Comes before [`super::admit`].
#[derive(Clone, Debug)]
pub struct Prepare<A>(pub A);

/// A service behind the preparation.
#[derive(Clone, Debug)]
pub struct Prepared<A, S> {
    authenticate: A,
    inner: S,
}

impl<A: Clone, S> Layer<S> for Prepare<A> {
    type Service = Prepared<A, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Prepared { authenticate: self.0.clone(), inner }
    }
}

impl<A, S, B> Service<Request<B>> for Prepared<A, S>
where
    A: Authenticate,
    S: Service<Request<B>, Future: Send> + Clone + Send + 'static,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shown = request.headers().get(AUTHORIZATION).and_then(|value| token(value.to_str().ok()?).ok());
        let preparation = shown.map(|token| self.authenticate.prepare(token));
        // The one that is ready is the one to call.
        let next = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            if let Some(preparation) = preparation {
                preparation.await;
            }
            ready.call(request).await
        })
    }
}

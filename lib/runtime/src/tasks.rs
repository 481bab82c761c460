//! Supervised spawning: a task that panics is reported with its name instead of vanishing.

use std::{future::Future, panic::AssertUnwindSafe, pin::Pin, task::Context, task::Poll};

use tokio::task::JoinHandle;

use crate::Shutdown;

/// Spawns on the current runtime.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(Supervised { name, future: Box::pin(future) })
}

/// Spawns on the current thread's local set.
pub fn spawn_local<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + 'static,
{
    tokio::task::spawn_local(Supervised { name, future: Box::pin(future) })
}

/// Spawns a task without which the process is of no use. If it ends, by a panic or otherwise, before anybody asked to
/// stop, the process ends with status 70 (`EX_SOFTWARE`), so that whoever supervises it starts a whole one.
pub fn root<F>(name: &'static str, future: F, shutdown: &Shutdown) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        Supervised { name, future: Box::pin(future) }.await;
        if !shutdown.is_requested() {
            tracing::error!(task = name, "a task that must not end has ended; so does the process");
            std::process::exit(70);
        }
    })
}

struct Supervised<F> {
    name: &'static str,
    future: Pin<Box<F>>,
}

impl<F: Future<Output = ()>> Future for Supervised<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let name = self.name;
        let future = &mut self.future;
        // The future is never polled again after a panic, so no broken state can be seen.
        std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))).unwrap_or_else(|_| {
            tracing::error!(task = name, "a task panicked; what it carried is lost, the process goes on");
            crate::metrics::catalogue::TASK_PANICS.with([name]).increment(1);
            Poll::Ready(())
        })
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn a_panicking_task_ends_alone() {
        let task = super::spawn("test", async { panic!("on purpose") });
        assert!(task.await.is_ok(), "the panic is reported, not passed on");
    }
}

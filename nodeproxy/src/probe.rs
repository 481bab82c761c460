//! Asking the node agent who on this node made a plaintext connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use underpass_enrolment::node::{self, ToAgent};
use underpass_model::{AddressPair, PodUid};
use underpass_policy::Origin;

/// How long an answer may take. A look-up takes microseconds; more means that the agent is in trouble.
const DEADLINE: Duration = Duration::from_millis(500);
/// Questions that may wait.
const QUEUE: usize = 1024;

/// Asks; clones share the way.
#[derive(Clone, Debug)]
pub(crate) struct Probes {
    connected: Arc<AtomicBool>,
    questions: mpsc::Sender<Question>,
}

/// One question under way.
#[derive(Debug)]
pub(crate) struct Question {
    pod: PodUid,
    connection: AddressPair,
    reply: oneshot::Sender<node::Origin>,
}

impl Probes {
    /// A way to ask, and where the questions arrive.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, receiver) = mpsc::channel(QUEUE);
        (Self { connected: Arc::default(), questions }, receiver)
    }

    /// Who made this connection. Without an answer it is a stranger, never the kubelet.
    pub(crate) async fn origin(&self, pod: &PodUid, connection: AddressPair) -> Origin {
        if !self.connected.load(Ordering::Relaxed) {
            return Origin::Remote;
        }
        let (reply, answer) = oneshot::channel();
        let question = Question { pod: pod.clone(), connection, reply };
        if self.questions.try_send(question).is_err() {
            return Origin::Remote;
        }
        match tokio::time::timeout(DEADLINE, answer).await {
            Ok(Ok(node::Origin::Kubelet)) => Origin::Kubelet,
            Ok(Ok(node::Origin::Host)) => Origin::Host,
            Ok(Ok(node::Origin::Gone)) => Origin::Gone,
            Ok(Ok(node::Origin::Forwarded) | Err(_)) | Err(_) => Origin::Remote,
        }
    }

    /// The agent can be asked.
    pub(crate) fn connected(&self) {
        self.connected.store(true, Ordering::Relaxed);
    }

    /// The agent cannot be asked.
    pub(crate) fn disconnected(&self) {
        self.connected.store(false, Ordering::Relaxed);
    }
}

impl Question {
    /// As the agent reads it.
    pub(crate) fn message(&self, id: u64) -> ToAgent {
        ToAgent::Probe { id, pod: self.pod.clone(), connection: self.connection }
    }

    /// Hands the answer to whoever asked, if they still wait.
    pub(crate) fn answer(self, origin: node::Origin) {
        if self.reply.send(origin).is_err() {
            tracing::debug!(pod.uid = %self.pod, "the answer to a probe question came too late");
        }
    }

    /// Whoever asked has gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

//! One pod's task: looks at the situation, does the next step, and is interrupted whenever something changes.
//!
//! Waiting is interruptible, acting is not: a namespace is never programmed by two steps at once.

mod act;

use std::{
    future::Future,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep},
};
use underpass_enrolment::{
    plugin::{Attachment, Link, PluginFailure},
    zds::WorkloadInfo,
};
use underpass_model::PodUid;
use underpass_runtime::{Backoff, Chain};

use super::{
    Command, Outcome, Sandbox, Shared,
    decide::{Situation, Step},
};
use crate::{
    exclusions::Exclusions,
    facts::PodFacts,
    find::Netns,
    memory::{Remembered, RememberedNetns, Standing},
};

pub(super) struct PodTask {
    shared: Arc<Shared>,
    uid: PodUid,
    facts: watch::Receiver<Option<PodFacts>>,
    commands: mpsc::Receiver<Command>,
    info: WorkloadInfo,
    addresses: Vec<IpAddr>,
    attachment: Arc<Mutex<Option<Attachment>>>,
    netns: Option<Arc<Netns>>,
    standing: Standing,
    /// The exclusions that the rules in the pod were last written with.
    programmed: Option<Exclusions>,
    /// Whether this run of the agent has reported the pod as captured.
    reported: bool,
    /// Its sandbox ended: nothing to do before the next ADD, whatever its object says.
    dismissed: bool,
    adding: Option<Adding>,
    backoff: Backoff,
    trouble: Option<PluginFailure>,
    ended: bool,
}

/// ADDs that wait for an answer.
struct Adding {
    /// By when the pod's object must have been seen.
    object: Instant,
    /// By when everything must stand.
    deadline: Instant,
    replies: Vec<oneshot::Sender<Outcome>>,
}

impl PodTask {
    pub(super) fn new(
        shared: Arc<Shared>,
        uid: PodUid,
        facts: watch::Receiver<Option<PodFacts>>,
        commands: mpsc::Receiver<Command>,
        remembered: Remembered,
    ) -> Self {
        let Remembered { namespace, name, service_account, container_id, ifname, .. } = remembered;
        let attachment = (!container_id.is_empty()).then_some(Attachment { container_id, ifname });
        let (first, most) = shared.limits.retry;
        let mut task = Self {
            info: WorkloadInfo { name, namespace, service_account },
            addresses: remembered.addresses,
            attachment: Arc::new(Mutex::new(attachment)),
            netns: remembered.netns.as_ref().and_then(RememberedNetns::reopen).map(Arc::new),
            standing: remembered.standing,
            programmed: None,
            reported: false,
            dismissed: false,
            adding: None,
            backoff: Backoff::new(first, most),
            trouble: None,
            ended: false,
            shared,
            uid,
            facts,
            commands,
        };
        task.learn();
        if task.standing != Standing::Out {
            // Before any proxy connects, so that the first snapshot names the pod and its proxy goes on serving it.
            task.serve();
        }
        task
    }

    pub(super) fn attachment(&self) -> Arc<Mutex<Option<Attachment>>> {
        Arc::clone(&self.attachment)
    }

    pub(super) async fn run(mut self) {
        while !self.ended {
            self.learn();
            match self.situation().step() {
                Step::AwaitObject => self.await_object().await,
                Step::Decline => self.answer(&Ok(false)),
                Step::End => {
                    let linger = self.shared.limits.orphan;
                    if self.unless_interrupted(sleep(linger)).await.is_some() {
                        return self.end().await;
                    }
                }
                Step::Enrol => self.enrol().await,
                Step::GiveUp => {
                    let orphan = self.shared.limits.orphan;
                    if self.unless_interrupted(sleep(orphan)).await.is_some() {
                        tracing::info!(pod.uid = %self.uid, "the pod's object is gone and no DEL came; it is given up");
                        self.give_up().await;
                    }
                }
                Step::Leave => self.leave().await,
                Step::Rest => self.rest(None).await,
                Step::Watch => self.watch().await,
                Step::Withdraw => self.shared.proxies.withdraw(&self.uid).await,
            }
        }
    }

    async fn end(mut self) {
        // A command that came just now is answered before the task goes.
        self.commands.close();
        while let Some(command) = self.commands.recv().await {
            refuse(command);
        }
    }

    fn situation(&self) -> Situation {
        let wanted = self.facts.borrow().as_ref().map(|facts| facts.wanted && !self.dismissed);
        Situation {
            wanted,
            standing: self.standing,
            has_netns: self.netns.is_some(),
            served: self.shared.proxies.serves(&self.uid),
            adding: self.adding.is_some(),
        }
    }

    /// Takes from the object what must outlive it.
    fn learn(&mut self) {
        let facts = self.facts.borrow_and_update();
        let Some(facts) = facts.as_ref() else { return };
        self.info.clone_from(&facts.info);
        if !facts.addresses.is_empty() {
            self.addresses.clone_from(&facts.addresses);
        }
    }

    async fn await_object(&mut self) {
        let deadline = self.adding.as_ref().map_or_else(Instant::now, |adding| adding.object);
        if self.unless_interrupted(tokio::time::sleep_until(deadline)).await.is_some() {
            self.answer(&Err(failure(Link::Pod, "the agent has not seen the pod's object")));
        }
    }

    /// Waits for something to change, or for a while.
    async fn rest(&mut self, most: Option<Duration>) {
        match most {
            Some(most) => drop(self.unless_interrupted(sleep(most)).await),
            None => drop(self.unless_interrupted(std::future::pending::<()>()).await),
        }
    }

    /// Does some waiting; `None` if a command or another state of the object came first. The command is obeyed then.
    async fn unless_interrupted<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            command = self.commands.recv() => {
                match command {
                    Some(command) => self.obey(command).await,
                    None => self.ended = true,
                }
                None
            }
            changed = self.facts.changed() => {
                self.ended |= changed.is_err();
                None
            }
            done = work => Some(done),
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Add(sandbox, reply) => match Netns::open(&sandbox.netns) {
                Ok(netns) => self.attach(sandbox, netns, reply).await,
                Err(error) => tell(reply, Err(no_netns(&sandbox.netns, &error))),
            },
            Command::Check(reply) => {
                let outcome = self.check().await;
                tell(reply, outcome);
            }
            Command::Delete(attachment, reply) => {
                let held = self.held_attachment();
                // The runtime may end an earlier sandbox of the pod after it began the next.
                if attachment.is_none() || held.is_none() || attachment == held {
                    self.give_up().await;
                    self.dismissed = true;
                }
                tell(reply, ());
            }
        }
    }

    async fn attach(&mut self, sandbox: Sandbox, netns: Netns, reply: oneshot::Sender<Outcome>) {
        if self.netns.as_ref().is_some_and(|held| held.id != netns.id) {
            // What stands belongs to the pod's former sandbox.
            self.give_up().await;
        }
        self.dismissed = false;
        self.addresses = sandbox.addresses;
        if self.netns.is_none() {
            self.netns = Some(Arc::new(netns));
        }
        *self.attachment.lock().unwrap_or_else(PoisonError::into_inner) = Some(sandbox.attachment);
        self.remember().await;
        let (now, limits) = (Instant::now(), &self.shared.limits);
        let deadline = now + sandbox.patience.unwrap_or(limits.enrol).min(limits.enrol);
        let object = deadline.min(now + limits.object);
        let adding = self.adding.get_or_insert_with(|| Adding { object, deadline, replies: Vec::new() });
        adding.deadline = adding.deadline.min(deadline);
        adding.replies.push(reply);
        self.backoff.reset();
    }

    fn held_attachment(&self) -> Option<Attachment> {
        self.attachment.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers every waiting ADD.
    fn answer(&mut self, outcome: &Outcome) {
        for reply in self.adding.take().into_iter().flat_map(|adding| adding.replies) {
            tell(reply, outcome.clone());
        }
    }

    /// Writes down what must be known after a restart. A disk that does not take it stops no pod.
    async fn remember(&self) {
        let attachment = self.held_attachment();
        let (container_id, ifname) = attachment.map_or_else(Default::default, |a| (a.container_id, a.ifname));
        let nothing = self.netns.is_none() && self.standing == Standing::Out;
        let pod = (!nothing).then(|| Remembered {
            namespace: self.info.namespace.clone(),
            name: self.info.name.clone(),
            service_account: self.info.service_account.clone(),
            container_id,
            ifname,
            addresses: self.addresses.clone(),
            netns: self.netns.as_deref().map(RememberedNetns::from),
            standing: self.standing,
        });
        let (memory, uid) = (self.shared.memory.clone(), self.uid.clone());
        let written = blocking(move || memory.set(&uid, pod)).await;
        if let Some(Err(error)) = written {
            tracing::error!(pod.uid = %self.uid, error = %Chain(&error), "a pod cannot be remembered");
        }
    }

    fn serve(&self) {
        self.shared.proxies.serve_pod(&self.uid, self.info.clone(), self.netns.clone());
    }
}

/// Runs what blocks on a thread for it; `None` if it panicked, which is logged.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.inspect_err(|error| tracing::error!(%error, "work for a pod failed")).ok()
}

fn failure(link: Link, message: impl Into<String>) -> PluginFailure {
    PluginFailure { link, message: message.into() }
}

fn no_netns(path: &Path, error: &std::io::Error) -> PluginFailure {
    failure(Link::Netns, format!("cannot open {}: {error}", path.display()))
}

/// Whoever asked may have gone.
fn tell<T>(reply: oneshot::Sender<T>, answer: T) {
    let _gone = reply.send(answer);
}

fn refuse(command: Command) {
    match command {
        Command::Add(_, reply) | Command::Check(reply) => {
            tell(reply, Err(failure(Link::Pod, "the pod ended just now")));
        }
        Command::Delete(_, reply) => tell(reply, ()),
    }
}

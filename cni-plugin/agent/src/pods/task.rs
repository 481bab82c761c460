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
use underpass_model::{
    PodUid,
    exclusions::Exclusions,
    limits::{LimitError, PodLimits},
};
use underpass_runtime::{Backoff, Chain};

use super::{
    Command, Outcome, Sandbox, Shared, Stage, Told,
    decide::{Situation, Step},
};
use crate::{
    find::Netns,
    memory::{Remembered, RememberedNetns, Standing},
};

pub(super) struct PodTask {
    shared: Arc<Shared>,
    uid: PodUid,
    told: watch::Receiver<Told>,
    commands: mpsc::Receiver<Command>,
    info: WorkloadInfo,
    limits: (PodLimits, Vec<LimitError>),
    addresses: Vec<IpAddr>,
    attachment: Arc<Mutex<Option<Attachment>>>,
    netns: Option<Arc<Netns>>,
    standing: Standing,
    /// The exclusions that the rules in the pod were last written with.
    programmed: Option<Exclusions>,
    /// Whether this run of the agent has reported the pod as captured.
    reported: bool,
    /// Whether all manifests could be read since this agent knows the pod; before, it may only seem to be gone.
    sure: bool,
    /// Its sandbox ended: nothing to do before the next ADD, whatever its object says.
    dismissed: bool,
    adding: Option<Adding>,
    stage: Stage,
    /// Looks at the rules so far.
    looks: u64,
    backoff: Backoff,
    trouble: Option<PluginFailure>,
    ended: bool,
}

/// What becomes of the rules in a namespace that is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    /// They die with it; until then nothing passes in plaintext.
    Stay,
    /// It may live on, and what it says shall reach somebody.
    TakeAway,
}

/// ADDs that wait for an answer.
struct Adding {
    /// By when the pod's object must have been seen.
    object: Instant,
    /// By when its namespace's must have been, if all manifests can be read.
    namespace: Instant,
    /// By when everything must stand.
    deadline: Instant,
    replies: Vec<oneshot::Sender<Outcome>>,
}

impl PodTask {
    pub(super) fn new(
        shared: Arc<Shared>,
        uid: PodUid,
        told: watch::Receiver<Told>,
        commands: mpsc::Receiver<Command>,
        remembered: Option<Remembered>,
    ) -> Self {
        let sure = remembered.is_none();
        let remembered = remembered.unwrap_or_default();
        let Remembered { namespace, name, service_account, container_id, ifname, .. } = remembered;
        let attachment = (!container_id.is_empty()).then_some(Attachment { container_id, ifname });
        let (first, most) = shared.limits.retry;
        let mut task = Self {
            info: WorkloadInfo { name, namespace, service_account },
            limits: Default::default(),
            addresses: remembered.addresses,
            attachment: Arc::new(Mutex::new(attachment)),
            netns: None,
            standing: remembered.standing,
            programmed: None,
            reported: false,
            sure,
            dismissed: remembered.dismissed,
            adding: None,
            stage: Arc::new(Mutex::new(failure(Link::Agent, "the pod's turn has not come"))),
            looks: 0,
            backoff: Backoff::new(first, most),
            trouble: None,
            ended: false,
            shared,
            uid,
            told,
            commands,
        };
        if let Some(netns) = remembered.netns.as_ref().and_then(RememberedNetns::reopen)
            && task.shared.holders.claim(netns.id, &task.uid)
        {
            task.netns = Some(Arc::new(netns));
        }
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

    pub(super) fn stage(&self) -> Stage {
        Arc::clone(&self.stage)
    }

    /// Says what is being done, for those who cannot wait for its end.
    fn at(&self, link: Link, message: &str) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = failure(link, message);
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
                        self.dismissed = false;
                        self.remember().await;
                        return self.end().await;
                    }
                }
                Step::Enrol => self.enrol().await,
                Step::GiveUp => {
                    let orphan = self.shared.limits.orphan;
                    if self.unless_interrupted(sleep(orphan)).await.is_some() {
                        tracing::info!(pod.uid = %self.uid, "the pod's object is gone and no DEL came; it is given up");
                        self.give_up(Rules::TakeAway).await;
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
        let told = self.told.borrow();
        let facts = told.facts.as_ref();
        Situation {
            wanted: facts.map(|facts| facts.wanted && !self.dismissed),
            undecided: facts.is_some_and(|facts| facts.undecided),
            doubted: !self.sure,
            findable: facts.is_some_and(|facts| !facts.terminating) && !self.addresses.is_empty(),
            standing: self.standing,
            has_netns: self.netns.is_some(),
            served: self.shared.proxies.serves(&self.uid),
            adding: self.adding.is_some(),
        }
    }

    /// Takes from the object what must outlive it.
    fn learn(&mut self) {
        let told = self.told.borrow_and_update();
        self.sure |= told.readable;
        let Some(facts) = told.facts.as_ref() else { return };
        self.info.clone_from(&facts.info);
        if facts.terminating {
            self.shared.proxies.terminating(&self.uid);
        }
        if !facts.addresses.is_empty() {
            self.addresses.clone_from(&facts.addresses);
        }
        if self.limits != facts.limits {
            self.limits.clone_from(&facts.limits);
            for error in &self.limits.1 {
                tracing::warn!(pod.uid = %self.uid, pod.name = self.info.name, %error, "a limit is ignored");
            }
            self.shared.proxies.limit(&self.uid, &self.limits.0);
        }
    }

    /// A pod whose namespace nobody has described is outside the mesh; but that must be certain, and the description
    /// may come a moment later than the pod's own.
    async fn await_object(&mut self) {
        let (undecided, readable) = {
            let told = self.told.borrow();
            (told.facts.as_ref().is_some_and(|facts| facts.undecided), told.readable)
        };
        let outcome = match (undecided, readable) {
            (true, true) => Ok(false),
            (true, false) => {
                Err("the agent has not seen the object of the pod's namespace; not every manifest can be read")
            }
            (false, true) => Err("the agent has not seen the pod's object"),
            (false, false) => Err("the agent has not seen the pod's object; not every manifest can be read"),
        };
        let outcome = outcome.map_err(|message| failure(Link::Pod, message));
        if let Err(PluginFailure { link, message }) = &outcome {
            self.at(*link, message);
        }
        let deadline =
            self.adding.as_ref().map(|adding| if outcome.is_ok() { adding.namespace } else { adding.object });
        let over = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now));
        if self.unless_interrupted(over).await.is_some() {
            self.answer(&outcome);
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
            changed = self.told.changed() => {
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
            Command::Check(attachment, reply) => {
                let outcome = self.check(&attachment).await;
                tell(reply, outcome);
            }
            Command::Delete(attachment, netns, reply) => {
                self.delete(&attachment, &netns).await;
                tell(reply, ());
            }
        }
    }

    /// The runtime may end an earlier sandbox of the pod after it began the next, and knows sandboxes from before this
    /// agent; a pod that lives is not given up for those.
    async fn delete(&mut self, attachment: &Attachment, path: &Path) {
        let held = self.netns.as_deref();
        let same_netns = || held.is_some_and(|held| Netns::open(path).is_ok_and(|netns| netns.id == held.id));
        let (is_over, is_gone) = match self.held_attachment() {
            Some(held) => (held == *attachment, false),
            None => (same_netns(), held.is_none_or(Netns::is_unnamed)),
        };
        if is_over {
            // It must not be looked for again.
            self.dismissed = true;
        }
        if is_over || is_gone {
            self.give_up(Rules::Stay).await;
        }
    }

    async fn attach(&mut self, sandbox: Sandbox, netns: Netns, reply: oneshot::Sender<Outcome>) {
        let is_former = match &self.netns {
            Some(held) => held.id != netns.id,
            None => self.standing != Standing::Out,
        };
        if is_former {
            // What stands belongs to the pod's former sandbox.
            self.at(Link::Pod, "the pod's former sandbox is being given up");
            self.give_up(Rules::Stay).await;
        }
        self.dismissed = false;
        self.addresses = sandbox.addresses;
        self.shared.holders.assign(netns.id, &self.uid);
        if self.netns.is_none() {
            self.netns = Some(Arc::new(netns));
        }
        *self.attachment.lock().unwrap_or_else(PoisonError::into_inner) = Some(sandbox.attachment);
        self.remember().await;
        let (now, limits) = (Instant::now(), &self.shared.limits);
        // Somewhat before whoever asked is told what the pod is at, so that the better answer comes first.
        let deadline = sandbox.deadline - sandbox.deadline.saturating_duration_since(now) / 20;
        let (object, namespace) = (deadline.min(now + limits.object), deadline.min(now + limits.object / 5));
        let adding = self.adding.get_or_insert_with(|| Adding { object, namespace, deadline, replies: Vec::new() });
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
        let nothing = self.netns.is_none() && self.standing == Standing::Out && !self.dismissed;
        let pod = (!nothing).then(|| Remembered {
            namespace: self.info.namespace.clone(),
            name: self.info.name.clone(),
            service_account: self.info.service_account.clone(),
            container_id,
            ifname,
            addresses: self.addresses.clone(),
            netns: self.netns.as_deref().map(RememberedNetns::from),
            standing: self.standing,
            dismissed: self.dismissed,
        });
        let (memory, uid) = (self.shared.memory.clone(), self.uid.clone());
        let written = blocking(move || memory.set(&uid, pod)).await;
        if let Some(Err(error)) = written {
            tracing::error!(pod.uid = %self.uid, error = %Chain(&error), "a pod cannot be remembered");
        }
    }

    fn serve(&self) {
        self.shared.proxies.serve_pod(&self.uid, self.info.clone(), self.netns.clone());
        self.shared.proxies.limit(&self.uid, &self.limits.0);
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
        Command::Add(_, reply) | Command::Check(_, reply) => {
            tell(reply, Err(failure(Link::Pod, "the pod ended just now")));
        }
        Command::Delete(_, _, reply) => tell(reply, ()),
    }
}

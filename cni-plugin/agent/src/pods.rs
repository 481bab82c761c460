//! The pods of this node: one task each, so that a bad one hurts only itself.
//!
//! A task is told what its object says (by a watch) and what the container runtime wants (by commands); what it does
//! about it is `decide`, how it does it `task`.

mod decide;
mod task;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use underpass_enrolment::plugin::{Attachment, Link, PluginFailure};
use underpass_model::PodUid;
use underpass_runtime::tasks;

use crate::{
    facts::PodFacts,
    find::Holders,
    memory::{Memory, Remembered, Standing},
    program::Programmer,
    proxies::Proxies,
    reports::Reports,
};
use task::PodTask;

/// What every pod's task works with.
#[derive(Clone, Debug)]
pub struct Shared {
    /// This node's name, for reports.
    pub node: String,
    /// The node proxies.
    pub proxies: Proxies,
    /// Who programs namespaces.
    pub programmer: Programmer,
    /// What survives a restart.
    pub memory: Memory,
    /// Where captured pods are reported.
    pub reports: Reports,
    /// Which pod holds which network namespace.
    pub holders: Holders,
    /// How many namespaces are programmed at once.
    pub gates: Gates,
    /// How long things may take.
    pub limits: Limits,
}

/// Each `nft` takes a processor for milliseconds; more of them at once than processors only make all of them late.
#[derive(Clone, Debug)]
pub struct Gates {
    /// For whatever programs a namespace.
    programming: Arc<Semaphore>,
    /// Before it, for routine looks: pods that start overtake them.
    looking: Arc<Semaphore>,
}

impl Default for Gates {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let gate = |places: usize| Arc::new(Semaphore::new(places.max(1)));
        Self { programming: gate(processors), looking: gate(processors / 2) }
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One try of enrolling a pod; an ADD fails after it.
    pub enrol: Duration,
    /// For the object of a pod whose ADD has come.
    pub object: Duration,
    /// For the operator to withdraw a leaving pod everywhere.
    pub withdrawn: Duration,
    /// For the farewell of a deleted pod.
    pub farewell: Duration,
    /// Between two looks at the rules of a captured pod.
    pub reconcile: Duration,
    /// After the first failure, and at most after many.
    pub retry: (Duration, Duration),
    /// Without any node proxy, before the captured connections of a leaving pod are taken for ended.
    pub absence: Duration,
    /// After new connections of a leaving pod were let pass, before it is asked whether captured ones are left: who was
    /// redirected, and is still connecting, is in no queue yet. The second SYN-ACK comes after one second.
    pub under_way: Duration,
    /// Between the disappearance of a pod's object and giving the pod up without a DEL.
    pub orphan: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            enrol: Duration::from_secs(10),
            object: Duration::from_secs(5),
            withdrawn: Duration::from_secs(15),
            farewell: Duration::from_secs(2),
            reconcile: Duration::from_secs(30),
            retry: (Duration::from_millis(100), Duration::from_secs(30)),
            absence: Duration::from_secs(10),
            under_way: Duration::from_secs(1),
            orphan: Duration::from_secs(5),
        }
    }
}

/// What came of a request for a pod.
pub type Outcome = Result<bool, PluginFailure>;

/// The start of a pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's name for it.
    pub attachment: Attachment,
    /// Its network namespace.
    pub netns: PathBuf,
    /// The addresses it was given.
    pub addresses: Vec<std::net::IpAddr>,
    /// By when the runtime must have the answer.
    pub deadline: Instant,
}

/// What the container runtime wants of a pod's task.
#[derive(Debug)]
enum Command {
    Add(Sandbox, oneshot::Sender<Outcome>),
    Check(Attachment, oneshot::Sender<Outcome>),
    /// The path of the sandbox's network namespace may be empty.
    Delete(Attachment, PathBuf, oneshot::Sender<()>),
}

/// What a pod's task is told of its object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    facts: Option<PodFacts>,
    /// Whether every manifest can be read, so that what is missing is missing.
    readable: bool,
}

/// What a pod's task is at, in the words of the answer to whoever cannot wait for its end.
type Stage = Arc<Mutex<PluginFailure>>;

/// All pods of this node.
#[derive(Debug)]
pub struct Pods {
    shared: Arc<Shared>,
    tasks: Mutex<BTreeMap<PodUid, Handle>>,
    /// Whether the mesh goes: no pod belongs into it then, whatever its object says.
    leaving: AtomicBool,
}

#[derive(Debug)]
struct Handle {
    commands: mpsc::Sender<Command>,
    told: watch::Sender<Told>,
    attachment: Arc<Mutex<Option<Attachment>>>,
    stage: Stage,
    task: JoinHandle<()>,
}

/// Between two looks at whether every pod has left.
const LOOK: Duration = Duration::from_millis(50);

/// Commands that may wait for one pod.
const QUEUE: usize = 16;

impl Pods {
    /// Takes up what was remembered; the objects say soon whether it still holds.
    #[must_use]
    pub fn restore(shared: Shared, facts: BTreeMap<PodUid, PodFacts>, readable: bool) -> Self {
        let pods = Self { shared: Arc::new(shared), tasks: Mutex::default(), leaving: AtomicBool::new(false) };
        for (uid, remembered) in pods.shared.memory.all() {
            let told = Told { facts: facts.get(&uid).cloned(), readable };
            pods.lock().insert(uid.clone(), pods.spawn(uid, told, Some(remembered)));
        }
        pods.update(facts, readable);
        pods
    }

    /// Tells every pod what its object says now, and whether all that is written can be read.
    pub fn update(&self, mut facts: BTreeMap<PodUid, PodFacts>, readable: bool) {
        if self.leaving.load(Ordering::Acquire) {
            facts.values_mut().for_each(|facts| facts.wanted = false);
        }
        let mut tasks = self.lock();
        tasks.retain(|_, handle| !handle.commands.is_closed());
        for (uid, handle) in tasks.iter() {
            let new = facts.get(uid);
            handle.told.send_if_modified(|old| {
                let differs = old.facts.as_ref() != new || old.readable != readable;
                if differs {
                    *old = Told { facts: new.cloned(), readable };
                }
                differs
            });
        }
        for (uid, facts) in facts {
            tasks
                .entry(uid)
                .or_insert_with_key(|uid| self.spawn(uid.clone(), Told { facts: Some(facts), readable }, None));
        }
    }

    /// Lets every pod go, gently as far as there is time; those that are still captured then are left to others.
    pub async fn leave_all(&self, facts: BTreeMap<PodUid, PodFacts>, deadline: Duration) {
        self.leaving.store(true, Ordering::Release);
        self.update(facts, true);
        let all_out = async {
            while self.shared.memory.all().iter().any(|(_, pod)| pod.standing != Standing::Out) {
                sleep(LOOK).await;
            }
        };
        if timeout(deadline, all_out).await.is_err() {
            tracing::warn!("some pods have not left the mesh in time");
        }
    }

    /// By when a request that came at that time must be answered, if its sender waits for so long.
    #[must_use]
    pub fn deadline(&self, received: Instant, patience: Option<Duration>) -> Instant {
        let most = self.shared.limits.enrol;
        received + patience.map_or(most, |patience| patience.min(most))
    }

    /// A pod starts: captured, if it is enrolled, when this returns true.
    ///
    /// # Errors
    /// [`PluginFailure`] names the link that is missing, also when the deadline comes first.
    pub async fn add(&self, uid: &PodUid, sandbox: Sandbox) -> Outcome {
        let deadline = sandbox.deadline;
        let added = timeout_at(deadline, self.ask(uid, true, |reply| Command::Add(sandbox, reply))).await;
        added.unwrap_or_else(|_| Err(self.stage(uid)))
    }

    /// Whether a pod has what its ADD gave it.
    ///
    /// # Errors
    /// [`PluginFailure`] names the link that is missing, also when the deadline comes first.
    pub async fn check(&self, uid: &PodUid, attachment: Attachment, deadline: Instant) -> Outcome {
        let checked = timeout_at(deadline, self.ask(uid, false, |reply| Command::Check(attachment, reply))).await;
        checked.unwrap_or_else(|_| Err(self.stage(uid)))
    }

    /// A sandbox ends; its peers know when this returns, or its time was up.
    pub async fn delete(&self, uid: &PodUid, attachment: Attachment, netns: PathBuf) {
        let _done = self.ask(uid, false, |reply| Command::Delete(attachment, netns, reply)).await;
    }

    /// What a pod's task is at.
    fn stage(&self, uid: &PodUid) -> PluginFailure {
        let stage = self.lock().get(uid).map(|handle| Arc::clone(&handle.stage));
        stage.map_or_else(no_such_pod, |stage| stage.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// The pod of a sandbox.
    #[must_use]
    pub fn of_attachment(&self, attachment: &Attachment) -> Option<PodUid> {
        let has = |handle: &Handle| handle.attachment().as_ref() == Some(attachment);
        self.lock().iter().find(|(_, handle)| has(handle)).map(|(uid, _)| uid.clone())
    }

    /// Gives up every sandbox that is not in the list; those found without an ADD are left alone.
    pub async fn collect(&self, valid: &BTreeSet<(String, String)>) {
        let gone: Vec<(PodUid, Attachment)> = {
            let tasks = self.lock();
            let attached = tasks.iter().filter_map(|(uid, handle)| Some((uid.clone(), handle.attachment()?)));
            attached.filter(|(_, a)| !valid.contains(&(a.container_id.clone(), a.ifname.clone()))).collect()
        };
        for (uid, attachment) in gone {
            self.delete(&uid, attachment, PathBuf::new()).await;
        }
    }

    /// Ends every task once it has done what it is at. Pods stay as they are.
    pub async fn stop(&self) {
        let handles = std::mem::take(&mut *self.lock());
        // Dropping the channels is what tells a task.
        let ending: Vec<JoinHandle<()>> = handles.into_values().map(|handle| handle.task).collect();
        for task in ending {
            // A panic was reported where it happened.
            let _ended = task.await;
        }
    }

    /// Sends a command to a pod's task and waits for the answer; the task bounds its own time.
    async fn ask<T>(&self, uid: &PodUid, create: bool, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T
    where
        T: NoTask,
    {
        let commands = {
            let mut tasks = self.lock();
            let lives = tasks.get(uid).is_some_and(|handle| !handle.commands.is_closed());
            if !lives && create {
                tasks.insert(uid.clone(), self.spawn(uid.clone(), Told::default(), None));
            }
            tasks.get(uid).map(|handle| handle.commands.clone())
        };
        let Some(commands) = commands else { return T::no_task() };
        let (reply, answer) = oneshot::channel();
        if commands.send(command(reply)).await.is_err() {
            return T::no_task();
        }
        answer.await.unwrap_or_else(|_| T::no_task())
    }

    fn spawn(&self, uid: PodUid, told: Told, remembered: Option<Remembered>) -> Handle {
        let (commands, received) = mpsc::channel(QUEUE);
        let (tell, told) = watch::channel(told);
        let task = PodTask::new(Arc::clone(&self.shared), uid, told, received, remembered);
        let (attachment, stage) = (task.attachment(), task.stage());
        let task = tasks::spawn("pod", task.run());
        Handle { commands, told: tell, attachment, stage, task }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PodUid, Handle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    fn attachment(&self) -> Option<Attachment> {
        self.attachment.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The answer where there is no task to give one.
trait NoTask {
    fn no_task() -> Self;
}

impl NoTask for Outcome {
    fn no_task() -> Self {
        Err(no_such_pod())
    }
}

fn no_such_pod() -> PluginFailure {
    PluginFailure { link: Link::Attachment, message: "the agent knows no such pod".to_owned() }
}

impl NoTask for () {
    fn no_task() -> Self {}
}

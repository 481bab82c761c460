//! The steps that change something: enrol, watch, leave, give up.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, timeout, timeout_at};
use underpass_enrolment::{
    node::ReleaseReason,
    plugin::{Link, PluginFailure},
};
use underpass_objects::{CaptureReport, CaptureState};
use underpass_runtime::Chain;

use super::{PodTask, blocking, failure};
use crate::{
    exclusions::Exclusions,
    find,
    memory::Standing,
    pods::Outcome,
    program::{Mended, ProgramError, Programmer},
    proxies::Proxies,
    redirect::{Phase, Verified},
};

/// For a proxy to come back after the agent's restart, before captured connections are taken for ended.
const PROXY_RETURNS: Duration = Duration::from_secs(10);
/// What is captured may live as long as it wants.
const NO_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);

impl PodTask {
    /// Listeners, certificate, rules, report: in this order, so that nothing is redirected to nobody and nobody is
    /// told to come before everything stands.
    pub(super) async fn enrol(&mut self) {
        let alone = Instant::now() + self.shared.limits.enrol;
        let deadline = self.adding.as_ref().map_or(alone, |adding| adding.deadline);
        match self.try_enrol(deadline).await {
            None => {}
            Some(Ok(())) => {
                tracing::info!(pod.uid = %self.uid, pod.namespace = %self.info.namespace, pod.name = %self.info.name, "captured");
                self.trouble = None;
                self.backoff.reset();
                self.answer(&Ok(true));
            }
            Some(Err(failure)) => self.fail(failure).await,
        }
    }

    async fn try_enrol(&mut self, deadline: Instant) -> Option<Result<(), PluginFailure>> {
        let exclusions = match self.exclusions() {
            Ok(exclusions) => exclusions,
            Err(failure) => return Some(Err(failure)),
        };
        if let Err(failure) = self.hold_netns().await {
            return Some(Err(failure));
        }
        self.serve();
        let (proxies, uid) = (self.shared.proxies.clone(), self.uid.clone());
        let admitted = async move {
            accepted(&proxies, &uid, deadline).await?;
            let ready = timeout_at(deadline, proxies.ready(&uid)).await;
            ready.map_err(|_| {
                let why = proxies.not_ready(&uid);
                failure(Link::Certificate, why.unwrap_or_else(|| "the node proxy has no certificate yet".to_owned()))
            })
        };
        if let Err(failure) = self.unless_interrupted(admitted).await? {
            return Some(Err(failure));
        }
        Some(self.capture(exclusions).await)
    }

    async fn capture(&mut self, exclusions: Exclusions) -> Result<(), PluginFailure> {
        // Written down first: rules that nobody remembers would never be taken away.
        self.standing = Standing::Captured;
        self.remember().await;
        self.apply(exclusions, Phase::Captured).await?;
        self.report(CaptureState::Captured).await?;
        self.reported = true;
        Ok(())
    }

    /// Looks after the rules of a captured pod, and after the proxy that serves it.
    pub(super) async fn watch(&mut self) {
        if self.netns.as_ref().is_some_and(|netns| netns.is_unnamed()) {
            tracing::info!(pod.uid = %self.uid, "the pod's network namespace is gone and no DEL came; it is given up");
            self.give_up().await;
            self.dismissed = true;
            return;
        }
        if let Err(failure) = self.look_after().await {
            return self.fail(failure).await;
        }
        self.trouble = None;
        self.answer(&Ok(true));
        let jitter = Duration::from_millis(u64::from(self.uid.as_str().bytes().map(u32::from).sum::<u32>() % 1000));
        let (proxies, uid) = (self.shared.proxies.clone(), self.uid.clone());
        let wait = timeout(self.shared.limits.reconcile + jitter, async move { proxies.refused(&uid).await });
        match self.unless_interrupted(wait).await {
            Some(Ok(why)) => {
                tracing::warn!(pod.uid = %self.uid, why, "the node proxy does not serve a captured pod; it is asked again");
                let delay = self.backoff.delay();
                self.rest(Some(delay)).await;
                self.serve();
            }
            Some(Err(_elapsed)) => self.backoff.reset(),
            None => {}
        }
    }

    async fn look_after(&mut self) -> Result<(), PluginFailure> {
        let served = self.shared.proxies.serves(&self.uid) && self.netns.is_some();
        self.hold_netns().await?;
        if !served {
            self.serve();
        }
        // A bad annotation on a captured pod changes nothing but is told.
        let exclusions = match (self.exclusions(), self.programmed.clone()) {
            (Ok(exclusions), _) => exclusions,
            (Err(failure), Some(programmed)) => {
                self.tell_trouble(failure);
                programmed
            }
            (Err(failure), None) => return Err(failure),
        };
        let wanted = exclusions.clone();
        let mend =
            move |programmer: &Programmer, netns: BorrowedFd<'_>| programmer.mend(netns, &wanted, Phase::Captured);
        if let Mended::Repaired(difference) = self.program(mend).await? {
            tracing::warn!(pod.uid = %self.uid, difference, "the rules of a captured pod were put right");
            metrics::counter!("underpass_agent_rules_repaired_total").increment(1);
        }
        self.programmed = Some(exclusions);
        if !self.reported {
            self.report(CaptureState::Captured).await?;
            self.reported = true;
        }
        Ok(())
    }

    /// Report, withdrawal, redirect away, last captured connection, cleaning up.
    pub(super) async fn leave(&mut self) {
        self.answer(&Ok(false));
        if self.netns.as_ref().is_none_or(|netns| netns.is_unnamed()) {
            return self.give_up().await;
        }
        if self.standing != Standing::Draining && !self.withdraw_report().await {
            return;
        }
        // Bad annotations do not matter here: a draining pod has no redirects.
        if let Err(failure) = self.apply(Exclusions::default(), Phase::Draining).await {
            return self.fail(failure).await;
        }
        let (proxies, uid) = (self.shared.proxies.clone(), self.uid.clone());
        let drained = async move {
            let _nobody_came = timeout(PROXY_RETURNS, proxies.any_connected()).await;
            proxies.release(&uid, ReleaseReason::Unenrolled, NO_DEADLINE).await;
        };
        if self.unless_interrupted(drained).await.is_none() {
            return;
        }
        if let Err(failure) = self.program(|programmer, netns| programmer.remove(netns)).await {
            return self.fail(failure).await;
        }
        self.shared.proxies.withdraw(&self.uid).await;
        self.standing = Standing::Out;
        self.programmed = None;
        self.forget_report().await;
        self.remember().await;
        self.backoff.reset();
        tracing::info!(pod.uid = %self.uid, "no longer captured");
    }

    /// True once no peer dials the pod's tunnel port any more, or the wait was long enough.
    async fn withdraw_report(&mut self) -> bool {
        self.standing = Standing::Leaving;
        self.reported = false;
        self.remember().await;
        let generation = match self.report(CaptureState::Leaving).await {
            Ok(generation) => generation,
            Err(failure) => {
                self.fail(failure).await;
                return false;
            }
        };
        let (status, uid, most) = (self.shared.status.clone(), self.uid.clone(), self.shared.limits.withdrawn);
        match self.unless_interrupted(async move { status.withdrawn(&uid, generation, most).await }).await {
            None => return false,
            Some(true) => {}
            Some(false) => {
                tracing::warn!(pod.uid = %self.uid, "the operator has not withdrawn a leaving pod in time; it leaves all the same");
            }
        }
        self.standing = Standing::Draining;
        self.remember().await;
        true
    }

    /// Lets go of a sandbox that ends or ended: its peers are told, bounded; its rules die with it.
    pub(super) async fn give_up(&mut self) {
        self.forget_report().await;
        let (proxies, farewell) = (&self.shared.proxies, self.shared.limits.farewell);
        if proxies.serves(&self.uid) {
            let release = proxies.release(&self.uid, ReleaseReason::Deleted, farewell / 2);
            if timeout(farewell * 3 / 4, release).await.is_err() {
                tracing::warn!(pod.uid = %self.uid, "the node proxy has not released a deleted pod in time");
            }
            if timeout(farewell / 4, proxies.withdraw(&self.uid)).await.is_err() {
                tracing::warn!(pod.uid = %self.uid, "the node proxy has not stopped serving a deleted pod in time");
            }
        }
        self.netns = None;
        self.standing = Standing::Out;
        self.programmed = None;
        self.reported = false;
        *self.attachment.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        self.answer(&Err(failure(Link::Pod, "the sandbox ended")));
        self.remember().await;
    }

    pub(super) async fn check(&mut self) -> Outcome {
        let wanted = self.facts.borrow().as_ref().is_some_and(|facts| facts.wanted);
        if !wanted {
            return Ok(false);
        }
        if self.standing != Standing::Captured {
            return Err(self.trouble.clone().unwrap_or_else(|| failure(Link::Rules, "the pod is not captured yet")));
        }
        let exclusions = self.exclusions()?;
        match self.program(move |programmer, netns| programmer.verify(netns, &exclusions, Phase::Captured)).await? {
            Verified::Matches => Ok(true),
            Verified::Differs(difference) => Err(failure(Link::Rules, difference)),
        }
    }

    /// Tells a failure where it is new, answers who waits, and waits before the next try.
    async fn fail(&mut self, failure: PluginFailure) {
        metrics::counter!("underpass_agent_failures_total", "link" => failure.link.to_string()).increment(1);
        self.answer(&Err(failure.clone()));
        self.tell_trouble(failure);
        let delay = self.backoff.delay();
        self.rest(Some(delay)).await;
    }

    fn tell_trouble(&mut self, failure: PluginFailure) {
        if self.trouble.as_ref() != Some(&failure) {
            tracing::warn!(
                pod.uid = %self.uid, pod.namespace = %self.info.namespace, pod.name = %self.info.name,
                link = %failure.link, why = failure.message, "a pod is not as it should be"
            );
        }
        self.trouble = Some(failure);
    }

    fn exclusions(&self) -> Result<Exclusions, PluginFailure> {
        let facts = self.facts.borrow();
        let exclusions = facts.as_ref().map_or_else(|| Ok(Exclusions::default()), |facts| facts.exclusions.clone());
        exclusions.map_err(|error| failure(Link::Rules, error.to_string()))
    }

    /// Finds the namespace of a pod whose ADD was before this agent's time.
    async fn hold_netns(&mut self) -> Result<(), PluginFailure> {
        match &self.netns {
            Some(netns) if netns.is_unnamed() => {
                let message = format!("{} is gone", netns.path.display());
                self.give_up().await;
                return Err(failure(Link::Netns, message));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        let addresses = self.addresses.clone();
        let found = blocking(move || find::by_address(&addresses)).await;
        let found = found.ok_or_else(|| failure(Link::Netns, "the search for the network namespace failed"))?;
        let netns = found.map_err(|error| failure(Link::Netns, Chain(&error).to_string()))?;
        tracing::info!(pod.uid = %self.uid, path = %netns.path.display(), "found the pod's network namespace");
        self.netns = Some(Arc::new(netns));
        self.remember().await;
        Ok(())
    }

    async fn apply(&mut self, exclusions: Exclusions, phase: Phase) -> Result<(), PluginFailure> {
        let wanted = exclusions.clone();
        self.program(move |programmer, netns| programmer.apply(netns, &wanted, phase)).await?;
        self.programmed = Some(exclusions);
        Ok(())
    }

    async fn program<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Programmer, BorrowedFd<'_>) -> Result<T, ProgramError> + Send + 'static,
    ) -> Result<T, PluginFailure> {
        let netns = self.netns.clone().ok_or_else(|| failure(Link::Netns, "the network namespace is not known"))?;
        let programmer = self.shared.programmer.clone();
        let done = blocking(move || work(&programmer, netns.as_fd())).await;
        let done = done.ok_or_else(|| failure(Link::Rules, "programming the namespace failed"))?;
        done.map_err(|error| {
            let link = if matches!(error, ProgramError::Enter(_)) { Link::Netns } else { Link::Rules };
            failure(link, Chain(&error).to_string())
        })
    }

    async fn report(&self, state: CaptureState) -> Result<u64, PluginFailure> {
        let report = CaptureReport {
            pod_uid: self.uid.to_string(),
            namespace: self.info.namespace.clone(),
            name: self.info.name.clone(),
            node: self.shared.node.clone(),
            state,
            generation: 0,
        };
        let status = self.shared.status.clone();
        let written = blocking(move || status.report(&report)).await;
        let written = written.ok_or_else(|| failure(Link::Agent, "reporting the pod failed"))?;
        written.map_err(|error| failure(Link::Agent, Chain(&error).to_string()))
    }

    async fn forget_report(&self) {
        let (status, uid) = (self.shared.status.clone(), self.uid.clone());
        if let Some(Err(error)) = blocking(move || status.forget(&uid)).await {
            tracing::warn!(pod.uid = %self.uid, error = %Chain(&error), "a report stays though its pod is gone");
        }
    }
}

async fn accepted(proxies: &Proxies, uid: &underpass_model::PodUid, deadline: Instant) -> Result<(), PluginFailure> {
    match timeout_at(deadline, proxies.accepted(uid)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(failure(Link::Listeners, why)),
        Err(_) if proxies.is_connected() => {
            Err(failure(Link::Listeners, "the node proxy has not acknowledged the pod in time"))
        }
        Err(_) => Err(failure(Link::Proxy, "no node proxy is connected")),
    }
}

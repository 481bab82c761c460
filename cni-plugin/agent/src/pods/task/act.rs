//! The steps that change something: enrol, watch, leave, give up.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::fd::{AsFd as _, BorrowedFd},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout, timeout_at};
use underpass_enrolment::plugin::{Attachment, Link, PluginFailure};
use underpass_model::{PodUid, exclusions::Exclusions};
use underpass_objects::{
    CaptureReport, CaptureState, Kind, ObjectName,
    cluster::event::{Event, Severity},
};
use underpass_runtime::Chain;

use super::{PodTask, Rules, blocking, failure};
use crate::{
    find,
    memory::Standing,
    older,
    pods::Outcome,
    program::{Mended, ProgramError, Programmer},
    proxies::Proxies,
    redirect::{Phase, Verified},
};

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
            // Of two proxies of which one follows the other, one may have found the ports taken by the other.
            Some(Err(failure)) if failure.link == Link::Listeners && self.has_time() => {
                self.tell_trouble(failure);
                self.rest(Some(self.shared.limits.retry.0)).await;
            }
            Some(Err(failure)) => self.fail(failure).await,
        }
    }

    /// Whether an ADD waits that could still be answered well after another try.
    fn has_time(&self) -> bool {
        let most = self.shared.limits.retry.0 * 4;
        self.adding.as_ref().is_some_and(|adding| Instant::now() + most < adding.deadline)
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
        self.at(Link::Proxy, "the node proxy is asked to serve the pod");
        let (proxies, uid) = (self.shared.proxies.clone(), self.uid.clone());
        if let Err(failure) = self.unless_interrupted(async move { admitted(&proxies, &uid, deadline).await }).await? {
            return Some(Err(failure));
        }
        Some(self.capture(exclusions).await)
    }

    async fn capture(&mut self, exclusions: Exclusions) -> Result<(), PluginFailure> {
        // Written down first: rules that nobody remembers would never be taken away.
        self.standing = Standing::Captured;
        self.remember().await;
        self.at(Link::Rules, "the rules are being written");
        let older = self.tell_of_older().await;
        self.apply(exclusions, Phase::Captured).await?;
        if self.adding.is_none() {
            // What users cannot see from the pod's start.
            let message = format!("captured while it ran; {older} older connections go on outside of the mesh");
            self.tell_users(Severity::Normal, "MeshCaptured", message);
        }
        self.at(Link::Agent, "the pod is being reported");
        // A pod's start waits for no other machine; the report follows with the first look at the pod.
        if self.shared.reports.are_local() {
            self.report_captured().await?;
        }
        Ok(())
    }

    async fn report_captured(&mut self) -> Result<(), PluginFailure> {
        self.report(CaptureState::Captured).await?;
        self.reported = true;
        Ok(())
    }

    /// Users should know what goes on outside of the mesh, but nothing depends on the number.
    async fn tell_of_older(&self) -> usize {
        let Some(netns) = self.netns.clone() else { return 0 };
        let counted = blocking(move || older::count(netns.as_fd())).await;
        match &counted {
            Some(Ok(0)) | None => {}
            Some(Ok(connections)) => {
                metrics::counter!("underpass_agent_older_connections_total").increment(*connections as u64);
                tracing::info!(
                    pod.uid = %self.uid,
                    connections,
                    "connections older than the pod's capture go on outside of the mesh until they end"
                );
            }
            Some(Err(error)) => tracing::debug!(%error, "older connections could not be counted"),
        }
        counted.and_then(Result::ok).unwrap_or_default()
    }

    /// Looks after the rules of a captured pod, and after the proxy that serves it.
    pub(super) async fn watch(&mut self) {
        if self.netns.as_ref().is_some_and(|netns| netns.is_unnamed()) {
            tracing::info!(pod.uid = %self.uid, "the pod's network namespace is gone and no DEL came; it is given up");
            self.dismissed = true;
            self.give_up(Rules::Stay).await;
            return;
        }
        if let Err(failure) = self.look_after().await {
            return self.fail(failure).await;
        }
        self.trouble = None;
        if !self.confirm().await {
            return;
        }
        // What a disk refused earlier it may take now.
        self.remember().await;
        let next = self.until_next_look();
        let (proxies, uid) = (self.shared.proxies.clone(), self.uid.clone());
        let wait = timeout(next, async move { proxies.refused(&uid).await });
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

    /// Answers the ADD of a pod that is captured already, once a proxy that is connected now serves it; false if there
    /// is something else to see to.
    async fn confirm(&mut self) -> bool {
        let Some(adding) = &self.adding else { return true };
        let deadline = adding.deadline;
        if self.shared.proxies.lacks(&self.uid).is_some() {
            self.serve();
        }
        let (proxies, uid) = (self.shared.proxies.clone(), self.uid.clone());
        match self.unless_interrupted(async move { admitted(&proxies, &uid, deadline).await }).await {
            None => false,
            Some(Ok(())) => {
                self.answer(&Ok(true));
                true
            }
            Some(Err(failure)) => {
                self.fail(failure).await;
                false
            }
        }
    }

    /// Spread around the interval, and another time for each pod and each look: all pods of a node were taken up at
    /// once when the agent started.
    fn until_next_look(&mut self) -> Duration {
        self.looks = self.looks.wrapping_add(1);
        let mut hasher = DefaultHasher::new();
        (self.uid.as_str(), self.looks).hash(&mut hasher);
        let thousandths = u32::try_from(hasher.finish() % 1000).unwrap_or_default();
        self.shared.limits.reconcile * (500 + thousandths) / 1000
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
        self.at(Link::Rules, "the rules are being looked at");
        let mended = self.mend(exclusions.clone(), Phase::Captured).await?;
        let before = self.programmed.replace(exclusions);
        self.tell_mended(&mended, before.is_some() && before != self.programmed);
        if !self.reported {
            self.report_captured().await?;
        }
        Ok(())
    }

    async fn mend(&self, exclusions: Exclusions, phase: Phase) -> Result<Mended, PluginFailure> {
        // Who waits for an answer is no routine.
        let _turn = match self.adding {
            Some(_) => None,
            None => self.shared.gates.looking.acquire().await.ok(),
        };
        let mend = move |programmer: &Programmer, netns: BorrowedFd<'_>| programmer.mend(netns, &exclusions, phase);
        self.program(mend).await
    }

    /// Rules that were not as they should be, or that should be others than before.
    fn tell_mended(&self, mended: &Mended, is_wanted: bool) {
        let Mended::Repaired(difference) = mended else { return };
        if is_wanted {
            tracing::info!(pod.uid = %self.uid, difference, "the rules of a captured pod follow its annotations");
        } else {
            tracing::warn!(pod.uid = %self.uid, difference, "the rules of a captured pod were put right");
            metrics::counter!("underpass_agent_rules_repaired_total").increment(1);
        }
    }

    /// Report, withdrawal, redirect away, last captured connection, cleaning up.
    pub(super) async fn leave(&mut self) {
        self.answer(&Ok(false));
        self.at(Link::Rules, "the pod is leaving the mesh");
        if self.hold_netns().await.is_err() {
            return self.give_up(Rules::Stay).await;
        }
        if self.standing != Standing::Draining && !self.withdraw_report().await {
            return;
        }
        // Bad annotations do not matter here: a draining pod has no redirects.
        if let Err(failure) = self.apply(Exclusions::default(), Phase::Draining).await {
            return self.fail(failure).await;
        }
        if !self.drain().await {
            return;
        }
        // First: whoever came all the same is reset, and hears of it only while ports are still translated.
        self.shared.proxies.withdraw(&self.uid).await;
        if let Err(failure) = self.program(|programmer, netns| programmer.remove(netns)).await {
            return self.fail(failure).await;
        }
        self.standing = Standing::Out;
        self.programmed = None;
        self.forget_report().await;
        self.remember().await;
        self.backoff.reset();
        tracing::info!(pod.uid = %self.uid, "no longer captured");
    }

    /// True once the last captured connection has ended. Until then the rules that carry it are looked after.
    async fn drain(&mut self) -> bool {
        let (proxies, uid) = (self.shared.proxies.clone(), self.uid.clone());
        let (absence, under_way) = (self.shared.limits.absence, self.shared.limits.under_way);
        let mut drained = pin!(async move {
            sleep(under_way).await;
            proxies.drained(&uid, absence).await;
        });
        loop {
            let next = self.until_next_look();
            match self.unless_interrupted(timeout(next, &mut drained)).await {
                None => return false,
                Some(Ok(())) => return true,
                Some(Err(_elapsed)) => {}
            }
            if self.netns.as_ref().is_some_and(|netns| netns.is_unnamed()) {
                self.give_up(Rules::Stay).await;
                return false;
            }
            match self.mend(Exclusions::default(), Phase::Draining).await {
                Ok(mended) => self.tell_mended(&mended, false),
                Err(failure) => {
                    self.fail(failure).await;
                    return false;
                }
            }
        }
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
        let (reports, uid, name) = (self.shared.reports.clone(), self.uid.clone(), self.object_name());
        let most = self.shared.limits.withdrawn;
        match self.unless_interrupted(async move { reports.withdrawn(&uid, &name, generation, most).await }).await {
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

    /// Lets go of a sandbox that ends or ended: its peers are told, bounded.
    pub(super) async fn give_up(&mut self, rules: Rules) {
        self.forget_report().await;
        let takes_away = rules == Rules::TakeAway && self.standing != Standing::Out;
        let takes_away = takes_away && self.netns.as_ref().is_some_and(|netns| !netns.is_unnamed());
        if takes_away {
            // First, so that nothing is redirected to a proxy that has gone.
            self.tell_if_it_failed(self.apply_draining().await);
        }
        let (proxies, farewell) = (&self.shared.proxies, self.shared.limits.farewell);
        if timeout(farewell * 3 / 4, proxies.release(&self.uid, farewell / 2)).await.is_err() {
            tracing::warn!(pod.uid = %self.uid, "the node proxy has not released a deleted pod in time");
        }
        if takes_away {
            self.tell_if_it_failed(self.program(|programmer, netns| programmer.remove(netns)).await);
        }
        if timeout(farewell / 4, proxies.withdraw(&self.uid)).await.is_err() {
            tracing::warn!(pod.uid = %self.uid, "the node proxy has not stopped serving a deleted pod in time");
        }
        if let Some(netns) = self.netns.take() {
            self.shared.holders.release(netns.id, &self.uid);
        }
        self.standing = Standing::Out;
        self.programmed = None;
        self.reported = false;
        *self.attachment.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        self.answer(&Err(failure(Link::Pod, "the sandbox ended")));
        self.remember().await;
    }

    async fn apply_draining(&self) -> Result<(), PluginFailure> {
        let nothing = Exclusions::default();
        self.program(move |programmer, netns| programmer.apply(netns, &nothing, Phase::Draining)).await
    }

    fn tell_if_it_failed(&self, result: Result<(), PluginFailure>) {
        if let Err(failure) = result {
            tracing::warn!(pod.uid = %self.uid, %failure, "rules stay in a network namespace that is given up");
        }
    }

    pub(super) async fn check(&mut self, attachment: &Attachment) -> Outcome {
        let wanted = self.told.borrow().facts.as_ref().is_some_and(|facts| facts.wanted);
        if !wanted {
            return Ok(false);
        }
        // A pod that was found by its address has none.
        if self.held_attachment().is_some_and(|held| held != *attachment) {
            return Err(failure(Link::Attachment, "the agent knows the pod in another sandbox"));
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
            let reason = if self.standing == Standing::Out { "MeshCaptureFailed" } else { "MeshCaptureTroubled" };
            self.tell_users(Severity::Warning, reason, format!("{}: {}", failure.link, failure.message));
        }
        self.trouble = Some(failure);
    }

    fn exclusions(&self) -> Result<Exclusions, PluginFailure> {
        let told = self.told.borrow();
        let exclusions =
            told.facts.as_ref().map_or_else(|| Ok(Exclusions::default()), |facts| facts.exclusions.clone());
        exclusions.map_err(|error| failure(Link::Rules, error.to_string()))
    }

    /// Finds the namespace of a pod whose ADD was before this agent's time.
    async fn hold_netns(&mut self) -> Result<(), PluginFailure> {
        match &self.netns {
            Some(netns) if netns.is_unnamed() => {
                let message = format!("{} is gone", netns.path.display());
                self.give_up(Rules::Stay).await;
                return Err(failure(Link::Netns, message));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        if self.dismissed || self.told.borrow().facts.as_ref().is_none_or(|facts| facts.terminating) {
            return Err(failure(Link::Netns, "the pod is ending; its address may be another's by now"));
        }
        self.at(Link::Netns, "the pod's network namespace is being looked for");
        let (addresses, taken) = (self.addresses.clone(), self.shared.holders.others(&self.uid));
        let found = blocking(move || find::by_address(&addresses, &taken)).await;
        let found = found.ok_or_else(|| failure(Link::Netns, "the search for the network namespace failed"))?;
        let netns = found.map_err(|error| failure(Link::Netns, Chain(&error).to_string()))?;
        if !self.shared.holders.claim(netns.id, &self.uid) {
            return Err(failure(Link::Netns, "another pod has taken the network namespace just now"));
        }
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
        let _turn = self.shared.gates.programming.acquire().await.ok();
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
        let reported = self.shared.reports.report(report).await;
        reported.map_err(|error| failure(Link::Agent, Chain(&error).to_string()))
    }

    async fn forget_report(&self) {
        if let Err(error) = self.shared.reports.forget(&self.uid, &self.object_name()).await {
            tracing::warn!(pod.uid = %self.uid, error = %Chain(&error), "a report stays though its pod is gone");
        }
    }

    fn object_name(&self) -> ObjectName {
        ObjectName::new(&self.info.namespace, &self.info.name)
    }

    fn tell_users(&self, severity: Severity, reason: &'static str, message: String) {
        let (name, uid) = (self.object_name(), self.uid.to_string());
        self.shared.reports.event(Event { kind: Kind::Pod, name, uid, severity, reason, message });
    }
}

/// Waits until a connected proxy serves the pod with a certificate, or says what is missing.
async fn admitted(proxies: &Proxies, uid: &PodUid, deadline: Instant) -> Result<(), PluginFailure> {
    match timeout_at(deadline, proxies.served(uid)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(failure(Link::Listeners, why)),
        Err(_elapsed) => match proxies.lacks(uid) {
            Some(missing) => Err(missing),
            None => Ok(()),
        },
    }
}

use std::{collections::VecDeque, future::Future, pin::Pin};

use tokio::sync::Semaphore;
use underpass_model::Revocation;
use underpass_runtime::{Shutdown, tasks};

use super::*;
use crate::{
    authority::{Answer, AuthorityError},
    testing::{LeafOptions, TestAuthority, public_key_of},
    trust::TrustBundle,
};

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(10);

/// An authority that does as a test says, and remembers who asked and when.
struct Fake {
    signer: Mutex<Arc<TestAuthority>>,
    /// The roots it answers with, if not its own.
    roots: Mutex<Option<String>>,
    script: Mutex<VecDeque<Script>>,
    otherwise: Mutex<Script>,
    /// Who never gets anything.
    refused: Mutex<Option<String>>,
    calls: Mutex<Vec<(String, Instant)>>,
    /// How many may be answered.
    gate: Semaphore,
    under_way: Mutex<(usize, usize)>,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

#[derive(Clone, Copy)]
enum Script {
    Sign,
    Refuse,
    SignAnotherKey,
}

impl Fake {
    fn calls_of(&self, account: &str) -> Vec<Instant> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(name, _)| name == account).map(|(_, at)| *at).collect()
    }

    fn order(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }

    fn answer(&self, script: Script, csr_pem: &str, identity: &Identity, ttl: Duration) -> Answer {
        let now = (self.clock)();
        let leaf = LeafOptions { not_before: now - Duration::from_secs(60), not_after: now + ttl, names: None };
        let signer = Arc::clone(&self.signer.lock().unwrap());
        let mut answer = match script {
            Script::Refuse => return Err(AuthorityError::Refused(Box::new(tonic::Status::unavailable("on purpose")))),
            Script::Sign => signer.answer(&public_key_of(csr_pem), identity, &leaf),
            Script::SignAnotherKey => {
                signer.answer(&crate::key::KeyPair::generate().unwrap().public_key_info(), identity, &leaf)
            }
        };
        if let Some(roots) = &*self.roots.lock().unwrap() {
            answer.pop();
            answer.push(roots.clone());
        }
        Ok(answer)
    }
}

struct Handle(Arc<Fake>);

impl CertificateAuthority for Handle {
    fn sign(
        &self,
        csr_pem: String,
        identity: &Identity,
        ttl: Duration,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let (fake, identity) = (Arc::clone(&self.0), identity.clone());
        Box::pin(async move {
            fake.calls.lock().unwrap().push((identity.service_account().to_owned(), Instant::now()));
            {
                let mut under_way = fake.under_way.lock().unwrap();
                under_way.0 += 1;
                under_way.1 = under_way.1.max(under_way.0);
            }
            fake.gate.acquire().await.unwrap().forget();
            fake.under_way.lock().unwrap().0 -= 1;
            let script = fake.script.lock().unwrap().pop_front().unwrap_or(*fake.otherwise.lock().unwrap());
            let is_refused = fake.refused.lock().unwrap().as_deref() == Some(identity.service_account());
            let script = if is_refused { Script::Refuse } else { script };
            fake.answer(script, &csr_pem, &identity, ttl)
        })
    }
}

struct Bench {
    fake: Arc<Fake>,
    store: CertificateStore,
    shutdown: Shutdown,
}

/// A running store. Its clock is tokio's, which the tests pause.
fn bench(change: impl FnOnce(&mut StoreOptions)) -> Bench {
    let (started, base) = (Instant::now(), SystemTime::now());
    let clock: Arc<dyn Fn() -> SystemTime + Send + Sync> = Arc::new(move || base + started.elapsed());
    let fake = Arc::new(Fake {
        signer: Mutex::new(Arc::new(TestAuthority::new())),
        roots: Mutex::default(),
        script: Mutex::default(),
        otherwise: Mutex::new(Script::Sign),
        refused: Mutex::default(),
        calls: Mutex::default(),
        gate: Semaphore::new(Semaphore::MAX_PERMITS / 2),
        under_way: Mutex::default(),
        clock: Arc::clone(&clock),
    });
    let mut options = StoreOptions { clock, ..StoreOptions::default() };
    change(&mut options);
    let (store, task) = CertificateStore::new(Arc::new(Handle(Arc::clone(&fake))), options);
    let shutdown = Shutdown::new();
    tasks::spawn("store", task.run(shutdown.clone()));
    Bench { fake, store, shutdown }
}

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

/// Lets paused time pass, in steps, so that everything due on the way happens at its time.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

fn generation(store: &CertificateStore, account: &str) -> Option<u64> {
    store.credentials(&identity(account)).map(|credentials| credentials.generation)
}

#[tokio::test(start_paused = true)]
async fn fetches_what_is_wanted_and_renews_it_at_half_of_its_life() {
    let Bench { fake, store, .. } = bench(|_| {});
    let want = store.want(&identity("web"));
    let first = store.wait(want.identity(), HOUR).await.unwrap();
    assert_eq!(first.identity, identity("web"));
    pass(HOUR * 24 * 44 / 100).await;
    assert_eq!(generation(&store, "web"), Some(first.generation), "not before half of its life");
    pass(HOUR * 24 * 7 / 100).await;
    assert!(generation(&store, "web").unwrap() > first.generation);
    assert_eq!(fake.calls_of("web").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_second_want_and_many_waiters_cost_one_fetch() {
    let Bench { fake, store, .. } = bench(|_| {});
    let _wants = [store.want(&identity("web")), store.want(&identity("web"))];
    let (one, two) = (identity("web"), identity("web"));
    let (one, two) = tokio::join!(store.wait(&one, HOUR), store.wait(&two, HOUR));
    assert_eq!(one.unwrap().generation, two.unwrap().generation);
    pass(HOUR).await;
    assert_eq!(fake.calls_of("web").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn retries_back_off_from_half_a_second_to_150_seconds() {
    let Bench { fake, store, .. } = bench(|_| {});
    *fake.otherwise.lock().unwrap() = Script::Refuse;
    let _want = store.want(&identity("web"));
    pass(Duration::from_secs(3000)).await;
    let calls = fake.calls_of("web");
    let gaps: Vec<f64> = calls.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    let mut whole = 0.5_f64;
    for gap in &gaps {
        assert!(*gap >= whole / 2.0 - 0.01 && *gap <= whole + 0.01, "{gap} of {whole} in {gaps:?}");
        whole = (whole * 2.0).min(150.0);
    }
    assert!(gaps.len() > 15, "{gaps:?}");
    let status = store.status();
    assert_eq!((status[0].state, status[0].failures as usize), (CertificateState::Missing, calls.len()));
}

#[tokio::test(start_paused = true)]
async fn the_old_certificate_serves_until_it_expires_and_no_longer() {
    let Bench { fake, store, .. } = bench(|_| {});
    let _want = store.want(&identity("web"));
    let first = store.wait(&identity("web"), HOUR).await.unwrap();
    *fake.otherwise.lock().unwrap() = Script::Refuse;
    pass(HOUR * 23).await;
    assert!(fake.calls_of("web").len() > 5, "renewal was tried");
    assert_eq!(generation(&store, "web"), Some(first.generation));
    assert_eq!(store.status()[0].state, CertificateState::Valid);
    pass(HOUR).await;
    assert!(store.credentials(&identity("web")).is_none());
    assert_eq!(store.status()[0].state, CertificateState::Expired);
    *fake.otherwise.lock().unwrap() = Script::Sign;
    pass(Duration::from_secs(151)).await;
    assert!(store.credentials(&identity("web")).is_some(), "the outage is over");
    assert_eq!(store.status()[0].last_error, None);
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_before_who_may_need_it_before_what_is_renewed() {
    let Bench { fake, store, .. } = bench(|options| {
        options.parallel = 1;
        options.fetch_deadline = HOUR * 3;
    });
    let _old = store.want(&identity("old"));
    store.wait(&identity("old"), HOUR).await.unwrap();
    // A fetch that is not answered occupies the only place until the renewal is due too.
    fake.gate.forget_permits(fake.gate.available_permits());
    pass(HOUR * 10).await;
    let _busy = store.want(&identity("busy"));
    pass(HOUR * 2).await;
    let _warm = store.want(&identity("warm"));
    let waiter = tokio::spawn({
        let store = store.clone();
        async move { store.wait(&identity("waits"), HOUR).await.map(|_| ()) }
    });
    pass(SOON).await;
    assert_eq!(fake.order(), ["old", "busy"]);
    fake.gate.add_permits(1000);
    waiter.await.unwrap().unwrap();
    pass(SOON).await;
    assert_eq!(fake.order(), ["old", "busy", "waits", "warm", "old"]);
}

#[tokio::test(start_paused = true)]
async fn at_most_eight_fetches_run_at_a_time() {
    let Bench { fake, store, .. } = bench(|_| {});
    fake.gate.forget_permits(fake.gate.available_permits());
    let wants: Vec<_> = (0..20).map(|n| store.want(&identity(&format!("web-{n}")))).collect();
    pass(SOON).await;
    assert_eq!(fake.order().len(), 8);
    fake.gate.add_permits(1000);
    for want in &wants {
        store.wait(want.identity(), HOUR).await.unwrap();
    }
    assert_eq!(fake.under_way.lock().unwrap().1, 8);
    assert_eq!(fake.order().len(), 20, "each once");
}

#[tokio::test(start_paused = true)]
async fn forgets_minutes_after_the_last_want() {
    let Bench { fake, store, .. } = bench(|_| {});
    let wants = [store.want(&identity("web")), store.want(&identity("web"))];
    store.wait(&identity("web"), HOUR).await.unwrap();
    drop(wants);
    pass(Duration::from_secs(290)).await;
    let again = store.want(&identity("web"));
    pass(Duration::from_secs(600)).await;
    assert!(store.credentials(&identity("web")).is_some(), "wanted again in time");
    assert_eq!(fake.calls_of("web").len(), 1, "and not fetched anew");
    drop(again);
    pass(Duration::from_secs(361)).await;
    assert!(store.credentials(&identity("web")).is_none());
    assert!(store.status().is_empty());
    pass(HOUR * 24).await;
    assert_eq!(fake.calls_of("web").len(), 1, "what is forgotten is not renewed");
}

#[tokio::test(start_paused = true)]
async fn a_new_root_is_trusted_by_all_at_once_and_the_old_one_leaves_with_its_last_certificate() {
    let Bench { fake, store, .. } = bench(|_| {});
    let old = Arc::clone(&fake.signer.lock().unwrap());
    let new = Arc::new(TestAuthority::new());
    let _wants = [store.want(&identity("web")), store.want(&identity("api"))];
    let web = store.wait(&identity("web"), HOUR).await.unwrap();
    store.wait(&identity("api"), HOUR).await.unwrap();
    // The authority has a second root and signs with it already; the bundle it gives holds both.
    let both = old.roots().union(&new.roots());
    *fake.roots.lock().unwrap() = Some(format!("{}{}", old.root_pem(), new.root_pem()));
    *fake.signer.lock().unwrap() = Arc::clone(&new);
    let _late = store.want(&identity("late"));
    let late = store.wait(&identity("late"), HOUR).await.unwrap();
    let rebuilt = store.credentials(&identity("web")).unwrap();
    assert!(rebuilt.generation > web.generation);
    assert_eq!(rebuilt.not_after, web.not_after, "same certificate, new trust");
    assert_eq!(roots_of(&store), both);
    assert!(!Arc::ptr_eq(&rebuilt.server, &web.server));
    assert_eq!(late.identity, identity("late"));
    // All are renewed and the old root is no longer given.
    *fake.roots.lock().unwrap() = None;
    pass(HOUR * 13).await;
    assert_eq!(roots_of(&store), new.roots());
}

#[tokio::test(start_paused = true)]
async fn the_roots_of_an_expired_certificate_are_trusted_no_longer() {
    let Bench { fake, store, .. } = bench(|_| {});
    let _wants = [store.want(&identity("web")), store.want(&identity("stuck"))];
    store.wait(&identity("web"), HOUR).await.unwrap();
    store.wait(&identity("stuck"), HOUR).await.unwrap();
    let old = fake.signer.lock().unwrap().roots();
    let new = Arc::new(TestAuthority::new());
    *fake.signer.lock().unwrap() = Arc::clone(&new);
    *fake.refused.lock().unwrap() = Some("stuck".to_owned());
    pass(HOUR * 13).await;
    assert_eq!(roots_of(&store), old.union(&new.roots()), "one is renewed, the other still valid");
    let before = generation(&store, "web").unwrap();
    pass(HOUR * 11 + SOON).await;
    assert!(store.credentials(&identity("stuck")).is_none());
    assert_eq!(roots_of(&store), new.roots());
    assert!(generation(&store, "web").unwrap() > before, "those who still serve trust it no longer");
}

fn roots_of(store: &CertificateStore) -> TrustBundle {
    store.shared.ledger().roots().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_waiter_learns_at_its_deadline_what_is_wrong() {
    let Bench { fake, store, .. } = bench(|_| {});
    for (script, words) in [
        (Script::Refuse, "the authority gave no certificate (Unavailable): on purpose"),
        (Script::SignAnotherKey, "cert_chain[0]: the public key is not the one of the request"),
    ] {
        *fake.otherwise.lock().unwrap() = script;
        let before = Instant::now();
        let error = store.wait(&identity("web"), Duration::from_secs(20)).await.unwrap_err();
        assert_eq!(before.elapsed().as_secs(), 20);
        assert_eq!(error.reason(), "certificate_missing");
        assert!(error.to_string().contains(words), "{error}");
    }
    fake.gate.forget_permits(fake.gate.available_permits());
    let error = store.wait(&identity("api"), Duration::from_secs(2)).await.unwrap_err();
    assert!(error.to_string().contains("has not answered yet"), "{error}");
    let error = store.wait(&identity("api"), Duration::from_secs(20)).await.unwrap_err();
    assert!(error.to_string().contains("did not answer within 15s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn somebody_who_waits_shortens_a_long_delay() {
    let Bench { fake, store, .. } = bench(|_| {});
    *fake.otherwise.lock().unwrap() = Script::Refuse;
    let _want = store.want(&identity("web"));
    pass(Duration::from_secs(1000)).await;
    *fake.otherwise.lock().unwrap() = Script::Sign;
    store.wait(&identity("web"), Duration::from_secs(6)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn waiters_end_with_the_store() {
    let Bench { fake, store, shutdown } = bench(|_| {});
    fake.gate.forget_permits(fake.gate.available_permits());
    let waiter = tokio::spawn({
        let store = store.clone();
        async move { store.wait(&identity("web"), HOUR).await.map(|_| ()) }
    });
    pass(SOON).await;
    shutdown.request();
    assert_eq!(waiter.await.unwrap().unwrap_err().reason(), "stopping");
}

#[tokio::test(start_paused = true)]
async fn status_tells_all_but_the_secrets() {
    let Bench { store, .. } = bench(|_| {});
    let _wants = [store.want(&identity("web")), store.want(&identity("api"))];
    store.wait(&identity("web"), HOUR).await.unwrap();
    store.wait(&identity("api"), HOUR).await.unwrap();
    let status = store.status();
    assert!(status.is_sorted_by(|one, other| one.identity < other.identity));
    let json = serde_json::to_value(&status).unwrap();
    let fields: Vec<_> = json[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        fields,
        [
            "failures",
            "fetching",
            "generation",
            "identity",
            "issuer_not_after",
            "last_error",
            "next_fetch_in",
            "not_after",
            "not_before",
            "renew_at",
            "root_not_after",
            "roots",
            "serial",
            "state",
            "wanted"
        ]
    );
    assert_eq!(json[0]["state"], "valid");
}

#[tokio::test(start_paused = true)]
async fn the_next_process_serves_at_once_with_what_was_kept() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let kept = KeptFile::new(place.path().join("certificates")).unwrap();
    let keep = |options: &mut StoreOptions| options.kept = Some(kept.clone());
    let before = bench(keep);
    let _want = before.store.want(&identity("web"));
    let first = before.store.wait(&identity("web"), HOUR).await.unwrap();
    before.shutdown.request();

    let after = bench(keep);
    *after.fake.otherwise.lock().unwrap() = Script::Refuse;
    let same = after.store.credentials(&identity("web")).unwrap();
    assert_eq!(same.not_after, first.not_after);
    assert_eq!(roots_of(&after.store), before.fake.signer.lock().unwrap().roots());
    let _want = after.store.want(&identity("web"));
    pass(HOUR).await;
    assert!(after.store.credentials(&identity("web")).is_some());
    assert!(after.fake.order().is_empty(), "not fetched before half of its life");
    after.shutdown.request();

    let unwanted = bench(keep);
    pass(Duration::from_secs(361)).await;
    assert!(unwanted.store.credentials(&identity("web")).is_none(), "forgotten when nobody wants it");
    assert!(kept.read(SystemTime::now()).is_empty(), "in the file too");
}

#[tokio::test(start_paused = true)]
async fn a_revoked_certificate_is_given_up_and_replaced_at_once() {
    let revocations = Revocations::new();
    let Bench { fake, store, .. } = bench(|options| options.revocations = revocations.clone());
    let _wants = [store.want(&identity("web")), store.want(&identity("api"))];
    let first = store.wait(&identity("web"), HOUR).await.unwrap();
    let other = store.wait(&identity("api"), HOUR).await.unwrap();
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let revoke = |account: &str, before: SystemTime| {
        revocations.set_told([Revocation::Identity { identity: identity(account), before: seconds(before) }]);
    };
    // The fake's certificates begin a minute before now.
    revoke("web", SystemTime::now() + HOUR);
    pass(Duration::from_millis(100)).await;
    assert_eq!(store.status()[1].state, CertificateState::Missing);
    assert!(store.credentials(&identity("web")).is_none(), "what is revoked is not used");
    assert_eq!(generation(&store, "api"), Some(other.generation), "nobody else is touched");
    assert_eq!(fake.calls_of("web").len(), 2, "one that is revoked already is of no use");
    assert!(store.status()[1].last_error.as_ref().unwrap().contains("revoked"));
    revoke("web", SystemTime::now() - HOUR);
    let next = store.wait(&identity("web"), HOUR).await.unwrap();
    assert!(next.generation > first.generation);
}

use std::sync::Arc;

use tokio::time::sleep;

use super::*;
use crate::{
    store::{Delta, Mesh, Resource},
    testing::{at, service, service_name, workload},
    wire::ResourceType,
};

/// A client without a control plane: the test says what one would answer.
struct Bench {
    store: Store,
    mesh: Mesh,
    questions: Questions,
}

impl Bench {
    fn new() -> Self {
        let mut store = Store::new();
        store.take_questions();
        Self { mesh: store.mesh(), store, questions: Questions::default() }
    }

    /// Asks; the names to subscribe to, and whether there was an answer at once.
    fn ask(&mut self, address: &str) -> (Vec<String>, bool) {
        let (answer, mut answered) = oneshot::channel();
        let ask = Ask { question: Question::Address(at(address)), answer };
        let names = self.questions.add(vec![ask], &self.store);
        // An open question whose asker is gone counts as much here as any other.
        (names, answered.try_recv().is_ok())
    }

    fn nobody_at(&mut self, address: &str) -> Vec<String> {
        self.questions.settle(vec![at(address).to_string()], true, &self.store)
    }

    fn come(&mut self, resources: Vec<Resource>) -> Vec<String> {
        let names = resources.iter().flat_map(names).collect();
        let changed = resources.into_iter().map(|resource| (resource, Arc::from("1"))).collect();
        self.store.apply(Delta { kind: ResourceType::Address, changed, removed: Vec::new(), complete: true });
        self.questions.settle(names, true, &self.store)
    }
}

/// What a push calls a resource: its name and its aliases.
fn names(resource: &Resource) -> Vec<String> {
    let addresses: Vec<_> = match resource {
        Resource::Workload(workload) => workload.addresses.iter().map(|address| at(&address.to_string())).collect(),
        Resource::Service(service) => service.addresses.clone(),
        Resource::Authorization(_) | Resource::Revocation(_) => Vec::new(),
    };
    addresses.iter().map(ToString::to_string).chain([resource.name()]).collect()
}

fn pod(name: &str, address: &str) -> Resource {
    Resource::Workload(workload("a", name).address(address).build())
}

#[tokio::test(start_paused = true)]
async fn that_nobody_is_there_is_remembered_for_a_moment_and_then_asked_again() {
    let mut bench = Bench::new();
    let name = at("192.0.2.1").to_string();
    assert_eq!(bench.ask("192.0.2.1"), (vec![name.clone()], false));
    assert!(bench.nobody_at("192.0.2.1").is_empty(), "a newcomer would be pushed while this is remembered");
    assert_eq!(bench.ask("192.0.2.1"), (vec![], true));
    bench.questions.review_due().await;
    assert_eq!(bench.questions.review(&mut bench.store), std::slice::from_ref(&name));
    assert_eq!(bench.ask("192.0.2.1"), (vec![name], false));
}

#[tokio::test(start_paused = true)]
async fn an_absence_ends_with_a_push_or_with_the_stream() {
    let mut bench = Bench::new();
    bench.ask("10.0.0.1");
    bench.nobody_at("10.0.0.1");
    assert!(bench.come(vec![pod("new", "10.0.0.1")]).is_empty());
    assert_eq!(bench.questions.subscribed().collect::<Vec<_>>(), [at("10.0.0.1").to_string()], "followed from now on");

    bench.ask("10.0.0.2");
    bench.nobody_at("10.0.0.2");
    bench.questions.renew(bench.store.view());
    assert!(!bench.ask("10.0.0.2").1, "a newcomer may have been missed");
}

#[tokio::test(start_paused = true)]
async fn absences_that_are_remembered_are_bounded() {
    let mut bench = Bench::new();
    let address = |number: usize| format!("192.0.{}.{}", number >> 8, number & 0xff);
    for number in 0..ABSENT_LIMIT {
        bench.ask(&address(number));
        assert!(bench.nobody_at(&address(number)).is_empty());
    }
    bench.ask(&address(ABSENT_LIMIT));
    assert_eq!(bench.nobody_at(&address(ABSENT_LIMIT)), [at(&address(ABSENT_LIMIT)).to_string()]);
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_push_is_not_reviewed() {
    let mut bench = Bench::new();
    bench.ask("10.0.0.2");
    bench.come(vec![pod("idle", "10.0.0.2")]);
    sleep(IDLE).await;
    bench.ask("10.0.0.1");
    let pod = (pod("asked-for", "10.0.0.1"), Arc::from("1"));
    let (changed, removed) = (vec![pod], Vec::new());
    bench.store.apply(Delta { kind: ResourceType::Address, changed, removed, complete: false });
    let name = at("10.0.0.1").to_string();
    bench.questions.settle(vec![name.clone()], false, &bench.store);
    assert!(bench.questions.review(&mut bench.store).is_empty());
    bench.questions.settle(Vec::new(), true, &bench.store);
    assert!(bench.questions.subscribed().any(|followed| followed == name), "was taken for absent");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_asked_for_lately_is_let_go_and_what_is_in_use_stays() {
    let mut bench = Bench::new();
    let web = service_name("a", "web");
    let backing = Resource::Workload(workload("a", "web-1").address("10.0.0.1").backs(&web, &[(80, 80)]).build());
    for address in ["10.96.0.1", "10.0.0.2"] {
        bench.ask(address);
    }
    let service = Resource::Service(service("a", "web").address("10.96.0.1").build());
    bench.come(vec![service, backing, pod("idle", "10.0.0.2")]);
    for _ in 0..20 {
        sleep(Duration::from_secs(40)).await;
        assert_eq!(bench.mesh.ask(&at("10.96.0.1")).await, Ok(true));
        let names = bench.questions.review(&mut bench.store);
        if !names.is_empty() {
            assert!(names.contains(&at("10.0.0.2").to_string()), "{names:?}");
            assert!(names.iter().any(|name| name.ends_with("/idle")), "{names:?}");
        }
    }
    let view = bench.mesh.view();
    assert!(view.workload_at(&at("10.0.0.2")).is_none());
    assert_eq!(view.endpoints(&web).count(), 1, "a service in use keeps its endpoints");
    assert_eq!(bench.questions.subscribed().collect::<Vec<_>>(), [at("10.96.0.1").to_string()]);
    assert_eq!(bench.store.versions(ResourceType::Address).len(), 2, "the next stream does not ask for it either");
    assert!(!bench.ask("10.0.0.2").1, "who needs it again asks again");
}

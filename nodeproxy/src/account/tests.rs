use std::{cell::Cell, collections::HashMap, error::Error, fmt};

use underpass_discovery::{
    Mesh, View,
    testing::{service, service_name, workload},
};

use super::{series::Ledger, *};

/// Two workloads and a service, each with a name of its own for each of its labels.
pub(super) fn view() -> View {
    let one = |namespace: &str, name: &str| {
        let mut one = workload(namespace, &format!("{name}-1")).account(&format!("{name}-sa")).hbone().build();
        one.owner = name.into();
        one.canonical_name = format!("{name}-name").into();
        one.canonical_revision = format!("{name}-v1").into();
        one.cluster = format!("{name}-cluster").into();
        one.locality.region = format!("{name}-region").into();
        one.locality.zone = format!("{name}-zone").into();
        one
    };
    let mut till = service("back", "till").build();
    till.short_name = "till-short".into();
    View::of([one("front", "shop"), one("back", "till")], [till])
}

/// The one calls the other through a tunnel.
pub(super) fn story(view: &View) -> Story {
    let party = |namespace: &str| {
        let workload = view.workloads().find(|workload| &*workload.namespace == namespace).unwrap();
        Party {
            addr: Some("10.0.0.1:1".parse().unwrap()),
            workload: Some(Arc::clone(workload)),
            identity: Some(workload.identity().unwrap()),
        }
    };
    Story {
        source: party("front"),
        destination: party("back"),
        hbone_addr: Some("10.0.0.2:15008".parse().unwrap()),
        origin: None,
        service: view.service(&service_name("back", "till")).cloned(),
    }
}

#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken")
    }
}

impl Error for Broken {}

fn failed(flag: ResponseFlag) -> Failed<'static> {
    Failed { step: "tunnel", flag, reason: "broken", error: &Broken, refusal: None }
}

fn books(most: usize) -> (Accounts, Rc<Books>) {
    let accounts = Accounts::new(most);
    let books = Rc::new(accounts.books());
    (accounts, books)
}

fn begin(books: &Rc<Books>, story: &Story) -> Record {
    let mut record = Record::open(books, Direction::Outbound, ("10.0.0.1:1".parse().unwrap(), &Arc::default()));
    *record = story.clone();
    record
}

/// The sums of the page's values by metric, and by flag of those that have one.
fn sums(accounts: &Accounts) -> HashMap<String, u64> {
    let mut page = String::new();
    let mesh = Mesh::fixed(view());
    Publisher::new(accounts.ledger.clone(), mesh).write(&mut page);
    let mut sums = HashMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, rest) = line.split_once('{').unwrap();
        let (labels, value) = rest.rsplit_once("} ").unwrap();
        let flag = labels.split("response_flags=\"").nth(1).unwrap().split('"').next().unwrap();
        for key in [name.to_owned(), format!("{name} {flag}")] {
            *sums.entry(key).or_default() += value.parse::<u64>().unwrap();
        }
    }
    sums
}

fn sum(sums: &HashMap<String, u64>, name: &str) -> u64 {
    sums.get(name).copied().unwrap_or_default()
}

#[tokio::test]
async fn every_connection_is_counted_once_however_it_ends() {
    let (accounts, books) = books(100);
    let story = story(&view());
    let local = tokio::task::LocalSet::new();
    let begun = Rc::new(Cell::new(0));
    let ways = [
        (true, "well"),
        (true, "badly"),
        (true, "dropped"),
        (false, "well"),
        (false, "badly"),
        (false, "dropped"),
        (false, "discarded"),
    ];
    for (established, end) in ways {
        let (books, story, begun) = (Rc::clone(&books), story.clone(), Rc::clone(&begun));
        local.spawn_local(async move {
            let record = begin(&books, &story);
            if established {
                record.established().from_downstream.store(7, Ordering::Relaxed);
            }
            begun.set(begun.get() + 1);
            match end {
                "well" => record.close(Ok(())),
                "badly" => record.close(Err(failed(ResponseFlag::Connect))),
                "discarded" => record.discard(),
                _ => std::future::pending().await,
            }
        });
    }
    let all_began = async {
        while begun.get() < ways.len() {
            tokio::task::yield_now().await;
        }
    };
    local.run_until(all_began).await;
    assert_eq!(accounts.live(), 2, "those that wait");
    drop(local);

    assert_eq!(accounts.live(), 0);
    let sums = sums(&accounts);
    for (name, expected) in [
        ("istio_tcp_connections_opened_total", 6),
        ("istio_tcp_connections_closed_total", 6),
        ("istio_tcp_connections_closed_total -", 4),
        ("istio_tcp_connections_failed_total", 2),
        ("istio_tcp_connections_failed_total CONNECT", 2),
        ("istio_tcp_received_bytes_total", 3 * 7),
        ("istio_tcp_sent_bytes_total", 0),
    ] {
        assert_eq!(sum(&sums, name), expected, "{name}");
    }
}

#[test]
fn bytes_are_counted_while_they_flow_and_never_twice() {
    let (accounts, books) = books(100);
    let record = begin(&books, &story(&view()));
    let meter = record.established();
    let mut publisher = Publisher::new(accounts.ledger, Mesh::fixed(view()));
    let mut page = || {
        let mut page = String::new();
        publisher.write(&mut page);
        let of = |name: &str| {
            let line = page.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
        };
        (of("istio_tcp_received_bytes_total{"), of("istio_tcp_sent_bytes_total{"))
    };
    assert_eq!(page(), (0, 0));
    meter.from_downstream.fetch_add(10, Ordering::Relaxed);
    meter.to_downstream.fetch_add(1000, Ordering::Relaxed);
    assert_eq!(page(), (0, 0), "the copying itself touches the meter alone");
    books.flush();
    assert_eq!(page(), (10, 1000), "received is what the client sends, sent is what the server answers");
    books.flush();
    assert_eq!(page(), (10, 1000));
    meter.to_downstream.fetch_add(1, Ordering::Relaxed);
    record.close(Ok(()));
    books.flush();
    assert_eq!(page(), (10, 1001));
}

#[test]
fn what_finds_no_room_is_counted_together() {
    let (accounts, books) = books(1);
    let story = story(&view());
    begin(&books, &story).close(Ok(()));
    for _ in 0..3 {
        begin(&books, &Story::default()).close(Err(failed(ResponseFlag::Tls)));
    }
    begin(&books, &story).close(Ok(()));
    let mut page = String::new();
    Publisher::new(accounts.ledger.clone(), Mesh::fixed(view())).write(&mut page);
    let line = page.lines().find(|line| line.contains("overflow") && line.contains("failed_total")).unwrap();
    assert!(line.ends_with("} 3") && line.contains("reporter=\"source\""), "{line}");
    assert_eq!(
        sum(&sums(&accounts), "istio_tcp_connections_closed_total"),
        0,
        "a second page begins where the first ended"
    );
    let alone = View::of(view().workloads().filter(|one| &*one.namespace == "front").map(|one| (**one).clone()), []);
    books.flush();
    assert_eq!(accounts.ledger.review(&alone).len(), 1, "one set of labels goes");
    begin(&books, &Story::default()).close(Ok(()));
    let mut page = String::new();
    Publisher::new(accounts.ledger, Mesh::fixed(view())).write(&mut page);
    let counted = page.lines().any(|line| {
        line.starts_with("istio_tcp_connections_opened_total{") && !line.contains("overflow") && line.ends_with("} 1")
    });
    assert!(counted, "and who found no room before has some now: {page}");
}

#[test]
fn only_series_of_those_who_left_and_are_idle_are_given_up() {
    let (accounts, books) = books(100);
    let story = story(&view());
    let alone = View::of(view().workloads().filter(|one| &*one.namespace == "front").map(|one| (**one).clone()), []);
    let living = begin(&books, &story);
    living.established();
    let ledger: &Ledger = &accounts.ledger;
    assert_eq!(ledger.review(&view()).len(), 0, "everybody is there");
    assert_eq!(ledger.review(&alone).len(), 0, "one is gone, but its connection lives");
    living.close(Ok(()));
    books.flush();
    assert_eq!(ledger.review(&view()).len(), 0, "idle, but everybody is there");
    assert_eq!(ledger.review(&alone).len(), 1);
    begin(&books, &story).close(Ok(()));
    assert_eq!(sum(&sums(&accounts), "istio_tcp_connections_closed_total"), 1, "who comes back counts anew");
}

#[test]
fn the_list_of_connections_is_paged_across_workers() {
    let (accounts, first) = books(100);
    let second = Rc::new(accounts.books());
    let client = "10.0.0.9:9".parse().unwrap();
    let all: Vec<_> = (0..7)
        .map(|number| {
            Record::open(if number % 2 == 0 { &first } else { &second }, Direction::Inbound, (client, &Arc::default()))
        })
        .collect();
    let numbers = |after, most| accounts.page(after, most).iter().map(|live| live.number).collect::<Vec<_>>();
    assert_eq!(numbers(0, 3), [1, 2, 3]);
    assert_eq!(numbers(3, 3), [4, 5, 6]);
    assert_eq!(numbers(6, 3), [7]);
    drop(all);
    assert_eq!(accounts.live(), 0);
}

#[test]
fn policies_and_identities_without_end_make_no_series_without_end() {
    use underpass_runtime::metrics::catalogue::{POLICY_DRY_RUN, POLICY_REFUSALS};
    let ledger = Accounts::new(3).ledger;
    let values = |n: u32| [0, 1, 2, 3].map(|part| format!("{part}-{n}").into());
    assert!((0..3).all(|n| ledger.has_room(&POLICY_REFUSALS, &values(n))));
    assert!(!ledger.has_room(&POLICY_REFUSALS, &values(3)));
    assert!(!ledger.has_room(&POLICY_DRY_RUN, &values(0)), "another metric's labels are others");
    assert!((0..3).all(|n| ledger.has_room(&POLICY_REFUSALS, &values(n))), "those known stay");
}

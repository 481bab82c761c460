//! Look-ups, decisions, changes of a view and the copying of bytes, each alone: `cargo bench -p underpass-bench`.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    thread,
};

use divan::{Bencher, black_box, counter::BytesCount};
use underpass_discovery::{
    Delta, Resource, Store, View,
    testing::{at, service, service_name, workload},
    wire::ResourceType,
};
use underpass_hbone::{Meter, copy::tcp_with_tcp};
use underpass_model::{Identity, Network, NetworkAddress, Service, Workload};
use underpass_policy::{
    Action, Clause, Facts, Field, Hop, Match, Policy, PolicyName, PolicySet, Rule, Scope, ServiceAccount, Source,
};

const SERVICES: u32 = 10_000;
const WORKLOADS: u32 = 100_000;

fn main() {
    divan::main();
}

fn pod_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + number)
}

/// Ten workloads back each service.
fn pod(number: u32) -> Workload {
    let backed = service_name("shop", &format!("s{}", number % SERVICES));
    let pod = workload("shop", &format!("w{number}")).address(&pod_address(number).to_string());
    pod.hbone().backs(&backed, &[(80, 8080)]).build()
}

fn virtual_service(number: u32) -> Service {
    let address = Ipv4Addr::from(0x0b00_0000 + number).to_string();
    service("shop", &format!("s{number}")).address(&address).ports(&[(80, 8080)]).build()
}

fn view() -> &'static View {
    static VIEW: OnceLock<View> = OnceLock::new();
    VIEW.get_or_init(|| View::of((0..WORKLOADS).map(pod), (0..SERVICES).map(virtual_service)))
}

#[divan::bench]
fn look_up_workload(bencher: Bencher<'_, '_>) {
    let (view, network) = (view(), Network::from(""));
    let mut number = 0;
    bencher.bench_local(|| {
        number = (number + 7919) % WORKLOADS;
        let address = NetworkAddress { network: network.clone(), address: IpAddr::V4(pod_address(number)) };
        black_box(view.workload_at(&address)).is_some()
    });
}

#[divan::bench]
fn look_up_service_and_its_endpoints(bencher: Bencher<'_, '_>) {
    let view = view();
    let address = at("11.0.0.77");
    bencher.bench_local(|| {
        let service = black_box(view).service_at(&address, "shop");
        service.map_or(0, |service| view.endpoints(&service.name).count())
    });
}

#[divan::bench]
fn change_one_workload(bencher: Bencher<'_, '_>) {
    let mut store = Store::new();
    let one = |workload| (Resource::Workload(workload), Arc::from("1"));
    let changed = (0..WORKLOADS).map(|number| one(pod(number))).collect();
    store.apply(Delta { kind: ResourceType::Address, changed, removed: Vec::new(), complete: true });
    // As a connection that lives would, somebody keeps an older view.
    let _kept = store.mesh().view();
    let mut number = 0;
    bencher.bench_local(|| {
        number = (number + 7919) % WORKLOADS;
        let changed = vec![one(Workload { canonical_revision: number.to_string().into(), ..pod(number) })];
        store.apply(Delta { kind: ResourceType::Address, changed, removed: Vec::new(), complete: true });
    });
}

#[divan::bench(args = [0, 1, 10, 100, 1000])]
fn authorise(bencher: Bencher<'_, '_>, policies: usize) {
    // Each has to be looked at, as none matches.
    let policy = |number| {
        let accounts =
            Field::any([ServiceAccount { namespace: "shop".into(), name: format!("thief-{number}").into() }]);
        let thief = Match { service_accounts: accounts, ..Match::default() };
        Arc::new(Policy {
            name: PolicyName::new("shop", &format!("no-thief-{number}")),
            scope: Scope::Namespace,
            action: Action::Deny,
            rules: [Rule { clauses: [Clause::Matches([thief].into_iter().collect())].into_iter().collect() }]
                .into_iter()
                .collect(),
            dry_run: false,
        })
    };
    let set = PolicySet::new(Arc::from([]), (0..policies).map(policy).collect());
    let identity = |name| Identity::new(underpass_model::TrustDomain::default(), "shop", name);
    let (Ok(own), Ok(peer)) = (identity("web"), identity("till")) else { return };
    let source = Source::Peer(peer);
    let destination = SocketAddr::from((pod_address(1), 8080));
    bencher.bench_local(|| {
        let client = IpAddr::V4(pod_address(2));
        let facts = Facts { source: &source, client, own: &own, hop: Hop::Application, destination };
        black_box(&set).authorize(&facts).is_ok()
    });
}

/// One worker's loop between two TCP connections over loopback; what the other ends cost is in it.
#[divan::bench(sample_count = 20)]
fn copy_64_mib(bencher: Bencher<'_, '_>) {
    const SIZE: usize = 64 << 20;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| {
        runtime.block_on(async {
            let (near, mut source) = pair().await?;
            let (far, mut sink) = pair().await?;
            let wrote = thread::spawn(move || source.write_all(&vec![7; SIZE]));
            let read = thread::spawn(move || {
                let (mut buffer, mut count) = (vec![0; 1 << 18], 0);
                while let Ok(read @ 1..) = sink.read(&mut buffer) {
                    count += read;
                }
                count
            });
            let meter = Meter::default();
            let copied = tcp_with_tcp(near, far, &meter).await.is_ok();
            let all = read.join().is_ok_and(|count| count == SIZE) && wrote.join().is_ok_and(|wrote| wrote.is_ok());
            assert!(copied && all, "bytes were lost");
            std::io::Result::Ok(())
        })
    });
}

/// One end for the runtime, the other for a thread.
async fn pair() -> std::io::Result<(tokio::net::TcpStream, std::net::TcpStream)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let far = std::net::TcpStream::connect(listener.local_addr()?)?;
    Ok((listener.accept().await?.0, far))
}

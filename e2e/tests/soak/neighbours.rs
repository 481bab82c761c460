//! One pod offers 50,000 connections, another floods with bulk: what of it does a quiet neighbour notice?
//!
//! All of it runs on the same few cores, so that some of what is noticed is the scheduler's. The same flood between pods
//! without the mesh tells how much.

use std::{fs, time::Duration};

use anyhow::Context;
use underpass_e2e::{
    LONG, MESH, PLAIN, alone,
    churn::{footprint, labelled},
    neighbours::{Offered, Served, busy, flood, offer, offered, quiet},
    server, wait_authenticated,
};
use underpass_lab::{Lab, Pod, PodSpec};

/// Processes that offer; none could hold all of them, as each may have 20,000 descriptors.
const PROCESSES: u32 = 4;
const EACH: u32 = 12_500;
const ROUNDS: usize = 3;
const MEASURED: Duration = Duration::from_secs(20);
const AROUND: Duration = Duration::from_secs(120);
const STREAMS: u32 = 16;

/// Without this the ports of a pod would run out before its budget does.
fn widen_ports(lab: &Lab, pod: &Pod) {
    let write = || fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535").context("widening");
    lab.inside(pod.place(), write).unwrap();
}

#[test]
fn a_quiet_neighbour_beside_fifty_thousand_offers_and_a_flood() {
    let lab = alone().unwrap();
    let spec = PodSpec::new;
    let [still, greedy, bulk] =
        ["still", "greedy", "bulk"].map(|name| server(&lab, &spec("node-a", MESH, name)).unwrap());
    let far = server(&lab, &spec("node-b", MESH, "far")).unwrap();
    let plain = server(&lab, &spec("node-a", PLAIN, "bulk")).unwrap();
    let [sink, plain_sink] = [MESH, PLAIN].map(|namespace| busy(&lab, &spec("node-b", namespace, "sink")).unwrap());
    for (client, server) in [(&greedy, &sink), (&bulk, &sink), (&still, &far)] {
        wait_authenticated(&lab, client, server).unwrap();
    }
    widen_ports(&lab, &greedy);
    // How the quiet one is served, while a flood runs if there is to be one.
    let round = |flooding: Option<(&Pod, &Pod)>| {
        let flooding = flooding.map(|pods| flood(&lab, pods, STREAMS, MEASURED + AROUND).unwrap());
        let served = quiet(&lab, (&still, &far), MEASURED).unwrap();
        if let Some(flood) = flooding {
            assert!(flood.is_alive(), "{}", flood.output());
            flood.kill().unwrap();
        }
        served
    };

    let ways = [
        ("alone", None),
        ("beside a flood without the mesh", Some((&plain, &plain_sink))),
        ("beside a flood", Some((&bulk, &sink))),
    ];
    let mut all: Vec<_> = ways.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for _ in 0..ROUNDS {
        for ((_, flooding), (_, rounds)) in ways.iter().zip(&mut all) {
            rounds.push(round(*flooding));
        }
    }
    let offers_time = u32::try_from(ROUNDS).unwrap() * (MEASURED + Duration::from_secs(10)) + AROUND;
    let offering: Vec<_> = (0..PROCESSES)
        .map(|number| offer(&lab, (&greedy, &sink), &format!("offer-{number}"), EACH, offers_time).unwrap())
        .collect();
    for process in &offering {
        process.wait_for_output("offered", LONG).unwrap();
    }
    all.push(("beside a flood and offers", (0..ROUNDS).map(|_| round(Some((&bulk, &sink)))).collect()));

    for node in ["node-a", "node-b"] {
        let page = lab.metrics(node).unwrap();
        println!("{node}: {:?}", footprint(&lab, node).unwrap());
        for line in page.lines().filter(|line| line.starts_with("underpass_budget")) {
            println!("{node}: {line}");
        }
    }
    let reports: Vec<Offered> = offering.iter().map(|process| offered(process, LONG).unwrap()).collect();
    println!("offers: {reports:#?}");
    let middles: Vec<_> = all.iter().map(|(name, rounds)| (name, Served::middle(rounds))).collect();
    let alone = &middles[0].1;
    for (name, served) in &middles {
        let (calls, exchanges) = (served.calls.p99 / alone.calls.p99, served.exchanges.p99 / alone.exchanges.p99);
        println!("{name}: calls {:?}, p99 {calls:.1} times", served.calls);
        println!("{name}: exchanges {:?}, p99 {exchanges:.1} times", served.exchanges);
        assert_eq!(served.failures, [""; 0], "{name}");
        // Of what takes milliseconds; whoever had to wait for the flood's end would wait for minutes.
        assert!(served.calls.longest < 5000.0 && served.exchanges.longest < 5000.0, "{name}: {served:?}");
    }

    let page = lab.metrics("node-a").unwrap();
    assert_eq!(labelled(&page, "underpass_budget_refused_total", &[("pod", "still")]), None);
    let stood: u64 = reports.iter().map(|report| report.most_answered).sum();
    assert!(stood > 1000 && reports.iter().any(|report| report.resets > 0), "{reports:?}");
    wait_authenticated(&lab, &greedy, &sink).unwrap();
    assert!(footprint(&lab, "node-a").unwrap().descriptors < 20_000.0);
}

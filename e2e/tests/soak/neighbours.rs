//! One pod offers 50,000 connections, another floods with bulk: what of it does a quiet neighbour notice?

use std::{fs, time::Duration};

use anyhow::Context;
use underpass_e2e::{
    LONG, MESH, alone,
    churn::{footprint, labelled},
    neighbours::{Offered, Served, flood, offer, offered, quiet},
    server, wait_authenticated,
};
use underpass_lab::{Lab, Pod, PodSpec};

/// Processes that offer; none could hold all of them, as each may have 20,000 descriptors.
const PROCESSES: u32 = 4;
const EACH: u32 = 12_500;
const MEASURED: Duration = Duration::from_secs(60);
const AROUND: Duration = Duration::from_secs(120);

/// Without this the ports of a pod would run out before its budget does.
fn widen_ports(lab: &Lab, pod: &Pod) {
    let write = || fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535").context("widening");
    lab.inside(pod.place(), write).unwrap();
}

fn told(when: &str, served: &Served) -> String {
    format!("{when}: calls {:?}\n{when}: exchanges {:?}", served.calls, served.exchanges)
}

#[test]
fn a_quiet_neighbour_beside_fifty_thousand_offers_and_a_flood() {
    let lab = alone().unwrap();
    let pod = |node, name| server(&lab, &PodSpec::new(node, MESH, name)).unwrap();
    let (greedy, bulk, still) = (pod("node-a", "greedy"), pod("node-a", "bulk"), pod("node-a", "still"));
    let (busy, far) = (pod("node-b", "busy"), pod("node-b", "far"));
    for (client, server) in [(&greedy, &busy), (&bulk, &busy), (&still, &far)] {
        wait_authenticated(&lab, client, server).unwrap();
    }
    widen_ports(&lab, &greedy);

    let alone = quiet(&lab, (&still, &far), MEASURED).unwrap();
    println!("{}", told("alone", &alone));
    let flooding = flood(&lab, (&bulk, &busy), 16, MEASURED + AROUND).unwrap();
    let with_bulk = quiet(&lab, (&still, &far), MEASURED).unwrap();
    println!("{}", told("beside bulk", &with_bulk));
    let offering: Vec<_> = (0..PROCESSES)
        .map(|number| offer(&lab, (&greedy, &busy), &format!("offer-{number}"), EACH, MEASURED + AROUND).unwrap())
        .collect();
    for process in &offering {
        process.wait_for_output("offered", LONG).unwrap();
    }
    let beside = quiet(&lab, (&still, &far), MEASURED).unwrap();
    println!("{}", told("beside both", &beside));
    for node in ["node-a", "node-b"] {
        let page = lab.metrics(node).unwrap();
        println!("{node}: {:?}", footprint(&lab, node).unwrap());
        for line in page.lines().filter(|line| line.starts_with("underpass_budget")) {
            println!("{node}: {line}");
        }
    }
    let reports: Vec<Offered> = offering.iter().map(|process| offered(process, LONG).unwrap()).collect();
    println!("offers: {reports:#?}");
    println!("flood: {}", flooding.output().lines().last().unwrap_or_default());
    println!(
        "p99 grew {:.2} times for calls, {:.2} times for exchanges",
        beside.calls.p99 / alone.calls.p99,
        beside.exchanges.p99 / alone.exchanges.p99
    );

    for served in [&alone, &with_bulk, &beside] {
        assert_eq!(served.failures, [""; 0]);
    }
    let page = lab.metrics("node-a").unwrap();
    assert_eq!(labelled(&page, "underpass_budget_refused_total", &[("pod", "still")]), None);
    let stood: u64 = reports.iter().map(|report| report.most_answered).sum();
    assert!(stood > 1000 && reports.iter().any(|report| report.resets > 0), "{reports:?}");
    wait_authenticated(&lab, &greedy, &busy).unwrap();
    assert!(footprint(&lab, "node-a").unwrap().descriptors < 20_000.0);
}

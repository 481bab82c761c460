//! One pod offers more connections than it may have, another floods with bytes; a third notices nothing.

use std::time::Duration;

use anyhow::ensure;
use underpass_e2e::{
    LONG, MESH, SHORT, alone,
    churn::labelled,
    inbound,
    neighbours::{flood, offer, offered, quiet},
    said, server, wait_authenticated,
};
use underpass_lab::{PodSpec, eventually, until};
use underpass_model::names::{LIMIT_BUFFERED_BYTES, LIMIT_CONNECTIONS};

const LIMIT: u64 = 300;
const OFFERED: u32 = 1500;
const TIME: Duration = Duration::from_secs(15);

#[test]
fn budgets_hold_and_a_quiet_neighbour_goes_on_being_served() {
    let lab = alone().unwrap();
    let limit = |spec: PodSpec| spec.annotation(LIMIT_CONNECTIONS, &LIMIT.to_string());
    let greedy = server(&lab, &limit(PodSpec::new("node-a", MESH, "greedy"))).unwrap();
    let bulk = PodSpec::new("node-a", MESH, "bulk").annotation(LIMIT_BUFFERED_BYTES, "1Mi");
    let bulk = server(&lab, &bulk).unwrap();
    let still = server(&lab, &PodSpec::new("node-a", MESH, "still")).unwrap();
    let busy = server(&lab, &PodSpec::new("node-b", MESH, "busy")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    for client in [&greedy, &bulk] {
        wait_authenticated(&lab, client, &busy).unwrap();
    }
    wait_authenticated(&lab, &still, &far).unwrap();

    let offering = offer(&lab, (&greedy, &busy), "offer", OFFERED, TIME + Duration::from_secs(5)).unwrap();
    let flooding = flood(&lab, (&bulk, &busy), 32, TIME).unwrap();
    let budget = |metric: &str, pod: &str, budget: &str| {
        labelled(&lab.metrics("node-a")?, metric, &[("namespace", MESH), ("pod", pod), ("budget", budget)])
            .ok_or_else(|| anyhow::anyhow!("{metric} of {pod} is not told"))
    };
    eventually(SHORT, "the budget to be used up and somebody to be refused", || {
        let used = budget("underpass_budget_used", "greedy", "connections")?;
        ensure!(used > 0.9 * LIMIT as f64, "{used} connections");
        ensure!(budget("underpass_budget_refused_total", "greedy", "connections")? > 0.0, "nobody is refused");
        Ok(())
    })
    .unwrap();
    let served = quiet(&lab, (&still, &far), TIME / 2).unwrap();
    assert_eq!(served.failures, [""; 0], "{served:?}");
    assert!(served.calls.count > 20 && served.exchanges.count > 20, "{served:?}");

    let page = lab.metrics("node-a").unwrap();
    for (pod, metric) in [("still", "underpass_budget_refused_total"), ("still", "underpass_budget_waits_total")] {
        assert_eq!(labelled(&page, metric, &[("pod", pod)]), None, "{metric} of {pod}");
    }
    assert_eq!(budget("underpass_budget_limit", "greedy", "connections").unwrap(), LIMIT as f64);
    let report = offered(&offering, LONG).unwrap();
    assert!(report.most_answered <= LIMIT && report.most_answered > LIMIT * 9 / 10, "{report:?}");
    assert!(report.resets > 0 && report.lost == 0, "{report:?}");
    let refusals = lab.access_log("node-a").unwrap();
    let refusals = refusals.iter().filter(|line| said(line, "reason") == "budget_connections");
    assert!(refusals.count() > 0, "no line names the reason");
    until(LONG, "the flood to end", || !flooding.is_alive()).unwrap();
    assert!(flooding.output().contains("sent "), "the flood was cut: {}", flooding.output());

    // With the load goes all that it took, and whoever was over its budget is served again.
    eventually(LONG, "the budgets to be free again", || {
        for pod in ["greedy", "bulk"] {
            for what in ["connections", "buffered_bytes"] {
                let used = budget("underpass_budget_used", pod, what)?;
                ensure!(used == 0.0, "{pod} has {used} of {what}");
            }
        }
        Ok(())
    })
    .unwrap();
    wait_authenticated(&lab, &greedy, &busy).unwrap();
    assert!(!inbound(&lab, &busy, &greedy).unwrap().is_empty());
}

#[test]
fn a_server_that_may_have_few_connections_lets_peers_wait_and_then_refuses() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let small = PodSpec::new("node-b", MESH, "small").annotation(LIMIT_CONNECTIONS, "20");
    let small = server(&lab, &small).unwrap();
    wait_authenticated(&lab, &client, &small).unwrap();
    let offering = offer(&lab, (&client, &small), "offer", 60, Duration::from_secs(8)).unwrap();
    let report = offered(&offering, LONG).unwrap();
    assert!(report.most_answered <= 20 && report.answered > 15 && report.resets > 0 && report.lost == 0, "{report:?}");
    eventually(SHORT, "both nodes to say why", || {
        let lines = (lab.access_log("node-a")?, lab.access_log("node-b")?);
        let says = |lines: &[serde_json::Value], reason| lines.iter().any(|line| said(line, "reason") == reason);
        ensure!(says(&lines.1, "budget_connections"), "not where the budget is");
        ensure!(says(&lines.0, "tunnel_refused"), "not where the connection came from");
        Ok(())
    })
    .unwrap();
    wait_authenticated(&lab, &client, &small).unwrap();
}

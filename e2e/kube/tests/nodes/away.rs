//! The mesh goes on while parts of it are away.

use underpass_e2e_kube::{Namespace, SHORT, Workload, cluster, mesh};
use underpass_lab::eventually;

use crate::{AROUND, alone, enrolled, load};

const SYSTEM: &str = "--namespace=underpass-system";

/// How many operators there shall be; what changes that is undone with this value.
struct Operators;

impl Operators {
    fn none() -> Self {
        cluster().run(&[SYSTEM, "scale", "deployment/underpass-operator", "--replicas=0"]).unwrap();
        eventually(SHORT, "no operator to be there", || {
            let pods = cluster().run(&[SYSTEM, "get", "pods", "-l=app.kubernetes.io/component=operator", "-o=name"])?;
            anyhow::ensure!(pods.trim().is_empty(), "{pods}");
            Ok(())
        })
        .unwrap();
        Self
    }
}

impl Drop for Operators {
    fn drop(&mut self) {
        cluster().run(&[SYSTEM, "scale", "deployment/underpass-operator", "--replicas=2"]).ok();
        cluster().run(&[SYSTEM, "rollout", "status", "deployment/underpass-operator", "--timeout=100s"]).ok();
    }
}

#[test]
fn pods_of_known_accounts_start_and_talk_while_there_is_no_operator() {
    let _alone = alone();
    let (cluster, space) = (cluster(), enrolled("leaderless"));
    let there = cluster.workers().unwrap()[1].clone();
    // Only the client's account is answered, so that an answer shows an identity.
    let policy = "apiVersion: underpass.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: known}\nspec:
  targetRefs: [{kind: Pod, selector: {matchLabels: {app: far}}}]
  rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: client}}]}]\n";
    space.apply(policy).unwrap();
    space.run(&["wait", "authorizationpolicies/known", "--for=condition=Programmed", "--timeout=60s"]).unwrap();
    let running = load(&space, "far");
    running.run_on(AROUND);

    let operators = Operators::none();
    let delete = |pod: &str| space.run(&["delete", "pod", pod, "--wait=false"]).unwrap();
    let before = space.pod("client").unwrap();
    running.run_on(AROUND);
    running.finish().unwrap().flawless().unwrap();
    delete(&before.name);
    eventually(SHORT, "another client", || {
        let now = space.pod("client")?;
        anyhow::ensure!(now.name != before.name, "{now:?}");
        Ok(())
    })
    .unwrap();
    space.wait_for_rollout("deployment/client").unwrap();
    assert!(space.reach("client", "http://far/").unwrap().starts_with("i am far"));
    // A node proxy that starts now serves what it knew before.
    let proxy = mesh().pod("nodeproxy", &there).unwrap();
    cluster.run(&[SYSTEM, "delete", "pod", &proxy]).unwrap();
    eventually(SHORT, "another node proxy to be ready", || {
        cluster.run(&[SYSTEM, "rollout", "status", "daemonset/underpass-nodeproxy", "--timeout=5s"])
    })
    .unwrap();
    assert!(space.reach("client", "http://far/").unwrap().starts_with("i am far"));
    assert!(space.call("near", "http://far/").is_err(), "the policy is not in force any more");
    drop(operators);
    assert!(space.reach("client", "http://far/").unwrap().starts_with("i am far"));
}

/// Agents that are kept off all nodes.
struct NoAgents;

impl NoAgents {
    fn begin() -> Self {
        Self::place(r#"{"underpass.dev/none":"none"}"#).unwrap();
        eventually(SHORT, "no agent to be there", || {
            let pods = cluster().run(&[SYSTEM, "get", "pods", "-l=app.kubernetes.io/component=agent", "-o=name"])?;
            anyhow::ensure!(pods.trim().is_empty(), "{pods}");
            Ok(())
        })
        .unwrap();
        Self
    }

    fn place(selector: &str) -> anyhow::Result<String> {
        let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{selector}}}}}}}}}"#);
        cluster().run(&[SYSTEM, "patch", "daemonset/underpass-agent", "--type=merge", "--patch", &patch])
    }
}

impl Drop for NoAgents {
    fn drop(&mut self) {
        Self::place(r#"{"underpass.dev/none":null}"#).ok();
        cluster().run(&[SYSTEM, "rollout", "status", "daemonset/underpass-agent", "--timeout=100s"]).ok();
    }
}

#[test]
fn without_agents_pods_of_the_mesh_wait_and_all_others_start() {
    let _alone = alone();
    let (cluster, space) = (cluster(), enrolled("unattended"));
    let there = &cluster.workers().unwrap()[1];
    let running = [load(&space, "near"), load(&space, "far")];
    let agents = NoAgents::begin();
    let outside = Namespace::new(cluster, "bystander").unwrap();
    outside.start(&[&Workload::new("plain").on(there)]).unwrap();
    let before = space.pod("far").unwrap();
    space.run(&["scale", "deployment/far", "--replicas=2"]).unwrap();
    running[0].run_on(AROUND);
    let ready = space.run(&["get", "deployment", "far", "-o=jsonpath={.status.readyReplicas}"]).unwrap();
    assert_eq!(ready, "1", "a pod of the mesh started without its agent");
    drop(agents);
    space.wait_for_rollout("deployment/far").unwrap();
    assert!(space.pods("far").unwrap().contains(&before));
    for load in running {
        load.finish().unwrap().flawless().unwrap();
    }
}

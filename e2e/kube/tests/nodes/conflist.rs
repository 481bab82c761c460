//! Another tool rewrites the configuration of the container runtime's network.

use std::time::Duration;

use underpass_e2e_kube::{Workload, cluster};
use underpass_lab::eventually;

use crate::{alone, enrolled, load};

/// Five times what is promised.
const SOON: Duration = Duration::from_secs(5);
const OURS: &str = "underpass-cni";

#[test]
fn our_entry_is_back_when_another_tool_rewrote_the_configuration() {
    let _alone = alone();
    let (cluster, space) = (cluster(), enrolled("conflist"));
    let there = &cluster.workers().unwrap()[1];
    let before = cluster.chain(there).unwrap();
    assert_eq!(before.last().map(String::as_str), Some(OURS));
    let running = load(&space, "far");
    // As a network that knows nothing of us writes its own: whole, in place of what was there.
    let rewrite = r#"
import glob, json, os
path = sorted(glob.glob("/etc/cni/net.d/*.conflist"))[0]
config = json.load(open(path))
config["plugins"] = [plugin for plugin in config["plugins"] if plugin["type"] != "underpass-cni"]
open(path + ".new", "w").write(json.dumps(config))
os.rename(path + ".new", path)
"#;
    for _ in 0..3 {
        cluster.on_node(there, &["python3", "-c", rewrite]).unwrap();
        eventually(SOON, "our entry to be back", || {
            let now = cluster.chain(there)?;
            anyhow::ensure!(now == before, "{now:?}");
            Ok(())
        })
        .unwrap();
    }
    cluster.on_node(there, &["python3", "-c", rewrite]).unwrap();
    // One that starts at the wrong moment is captured while it runs.
    space.start(&[&Workload::new("late").on(there)]).unwrap();
    space.wait_captured().unwrap();
    assert_eq!(
        space.reach("client", "http://late/").unwrap(),
        format!("i am late, you are {}", space.pod("client").unwrap().address)
    );
    running.finish().unwrap().flawless().unwrap();
}

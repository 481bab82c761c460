//! A pod goes, and another one gets its name and its address.

use std::fs;

use anyhow::{Context, Result, ensure};
use underpass_e2e::{MESH, SHORT, alone, get, identity_of, inbound, said, server, wait_authenticated};
use underpass_lab::{Lab, PodSpec, eventually};

/// Lets a node give out its lowest free address next, instead of the one after the last it gave out.
fn forget_the_last_address(lab: &Lab, node: &str) -> Result<()> {
    let mut forgotten = 0;
    for network in fs::read_dir(lab.paths().node(node).join("addresses"))? {
        for file in fs::read_dir(network?.path())? {
            let file = file?;
            if file.file_name().to_str().context("a name")?.starts_with("last_reserved_ip") {
                fs::remove_file(file.path())?;
                forgotten += 1;
            }
        }
    }
    ensure!(forgotten == 2, "one for each family was expected, there were {forgotten}");
    Ok(())
}

#[test]
fn callers_reach_the_new_pod_of_a_used_name_and_address_by_its_own_identity() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let spec = PodSpec::new("node-b", MESH, "web");
    let old = server(&lab, &spec.clone().service_account("old")).unwrap();
    // A tunnel to the old pod stands, idle, when it goes.
    wait_authenticated(&lab, &client, &old).unwrap();

    lab.pod_delete(&old.name).unwrap();
    forget_the_last_address(&lab, "node-b").unwrap();
    let known = inbound(&lab, &old, &client).unwrap().len();
    let new = server(&lab, &spec.service_account("new")).unwrap();
    assert_eq!((&new.name, &new.addresses), (&old.name, &old.addresses));
    assert_ne!(new.uid, old.uid);

    let url = format!("http://{}:8080/", new.v4().unwrap());
    eventually(SHORT, "a call to the new pod in its own name", || {
        assert_eq!(get(&lab, client.place(), &url)?, format!("i am web, you are {}", client.v4()?));
        let lines = lab.access_log("node-a")?;
        let last = lines.iter().rfind(|line| said(line, "direction") == "outbound").context("no line")?;
        ensure!(said(last, "dst.identity") == identity_of(&new), "the last one: {last:#}");
        Ok(())
    })
    .unwrap();
    eventually(SHORT, "the new pod's own line", || {
        let lines = inbound(&lab, &new, &client)?;
        let since = lines.get(known..).unwrap_or_default();
        ensure!(!since.is_empty(), "none");
        // Nobody may have come in believing that this is the old one.
        let named = |line: &&serde_json::Value| ["", &identity_of(&new)].contains(&said(line, "dst.identity"));
        assert_eq!(since.iter().filter(named).count(), since.len(), "{since:#?}");
        ensure!(since.iter().any(|line| said(line, "src.identity") == identity_of(&client)), "{since:#?}");
        Ok(())
    })
    .unwrap();
}

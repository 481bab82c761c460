//! The mesh's container images: what is inside is all that their programs need.

use underpass_e2e_kube::{Namespace, SHORT, cluster};
use underpass_lab::eventually;

/// Runs a program of an image to its end, and takes what it printed.
fn run(space: &Namespace, image: &str, argv: &[&str]) -> String {
    let image = format!("--image=underpass.dev/{image}:{}", cluster().tag());
    let name = argv[0];
    space.run(&[&["run", name, &image, "--restart=Never", "--command", "--"], argv].concat()).unwrap();
    eventually(SHORT, "the program to end well", || {
        let phase = space.run(&["get", "pod", name, "--output=jsonpath={.status.phase}"])?;
        anyhow::ensure!(phase == "Succeeded", "{phase}: {}", space.run(&["logs", name])?);
        Ok(())
    })
    .unwrap();
    space.run(&["logs", name]).unwrap()
}

#[test]
fn every_program_finds_its_libraries() {
    let space = Namespace::new(cluster(), "images").unwrap();
    for (image, program) in
        [("nodeproxy", "underpass-nodeproxy"), ("agent", "underpass-agent"), ("operator", "underpass-operator")]
    {
        assert!(run(&space, image, &[program, "--help"]).contains("--log-level"), "{program} has no flags");
    }
    assert!(run(&space, "agent", &["nft", "--version"]).starts_with("nftables v"));
}

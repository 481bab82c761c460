//! Compiles the protocol's messages without an installed `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(
        ["proto/workload.proto", "proto/security.proto", "proto/trust.proto", "proto/xds.proto"],
        ["proto"],
    )?;
    tonic_prost_build::configure()
        // Resources stay slices of the message until each is decoded: see `DeltaDiscoveryResponse`.
        .bytes(".envoy.service.discovery.v3.DeltaDiscoveryResponse")
        // Encoding must be deterministic, because versions are made of it.
        .btree_map(".istio")
        .compile_fds(files)?;
    Ok(())
}

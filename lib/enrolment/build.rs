//! Generates the messages of ZDS and of `node.sock` from `proto/`, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    #[cfg(feature = "async")]
    tonic_prost_build::configure().compile_fds(protox::compile(["zds.proto", "node.proto"], ["proto"])?)?;
    Ok(())
}

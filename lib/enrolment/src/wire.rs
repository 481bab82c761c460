//! The generated messages. Nobody outside this crate sees them: [`crate::zds`] and [`crate::node`] have the types.

#[expect(unreachable_pub, unnameable_types, reason = "generated code is public everywhere")]
pub(crate) mod zds {
    include!(concat!(env!("OUT_DIR"), "/istio.workload.zds.rs"));
}

#[expect(unreachable_pub, unnameable_types, reason = "generated code is public everywhere")]
pub(crate) mod node {
    include!(concat!(env!("OUT_DIR"), "/underpass.node.v1.rs"));
}

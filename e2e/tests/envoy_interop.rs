//! A real Envoy in a pod of the lab, on either end of a tunnel with our node proxy on the other, with certificates of
//! the running operator.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests, which clippy does not see"
)]

#[path = "envoy_interop/inbound.rs"]
mod inbound;
#[path = "envoy_interop/mesh.rs"]
mod mesh;
#[path = "envoy_interop/outbound.rs"]
mod outbound;

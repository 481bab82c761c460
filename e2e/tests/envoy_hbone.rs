//! The wire alone: our tunnels with a real Envoy at the other end, over loopback, without a mesh around them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests, which clippy does not see"
)]

#[path = "envoy_hbone/applications.rs"]
mod applications;
#[path = "envoy_hbone/inward.rs"]
mod inward;
#[path = "envoy_hbone/outward.rs"]
mod outward;
#[path = "envoy_hbone/support.rs"]
mod support;

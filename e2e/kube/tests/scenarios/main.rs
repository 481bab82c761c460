//! Scenarios on real Kubernetes: one behaviour a file.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests, which clippy does not see"
)]

mod chain;
mod enrolment;
mod images;
mod joined;
mod meshed_services;
mod one_bad_pod;
mod policy;
mod probes;
mod rotation;
mod services;
mod starts;

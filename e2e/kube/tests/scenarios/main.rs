//! Scenarios on real Kubernetes: one behaviour a file.

mod chain;
mod services;

//! Real programs in a real lab: one behaviour a file.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

mod agent_away;
mod broken_pods;
mod captured;
mod churn;
mod closed_ports;
mod dashboard;
mod debugging_pages;
mod draining;
mod enrolment;
mod exclusions;
mod forged;
mod ipv6;
mod joined;
mod lab_verbs;
mod many;
mod neighbours;
mod on_demand;
mod operator_away;
mod other_authority;
mod own_ports;
mod policy;
mod probes;
mod programs;
mod proxy_restart;
mod reuse;
mod revocation;
mod rotation;
mod self_call;
mod services;
mod slow_handshakes;
mod spoofed;
mod streams;
mod termination;
mod tokens;
mod transfers;
mod uncaptured;
mod upgrade;

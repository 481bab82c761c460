//! The long versions of scenarios, one a file: minutes of load each, at size. They print figures and assert promises; `./x soak`
//! runs them, one after the other, on programs built as users get them, and `cargo test` only when they are named.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

mod churn;
mod neighbours;
mod upgrades;

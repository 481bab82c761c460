//! Long versions of scenarios, one a file: minutes, and more load than a test may offer. Never run by `cargo test` unless
//! named.

mod upgrades;

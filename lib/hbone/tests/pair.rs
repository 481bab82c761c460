//! Two ends of tunnels in one process. Time is paused unless a test needs the kernel's TCP.

#[path = "pair/abuse.rs"]
mod abuse;
#[path = "pair/copying.rs"]
mod copying;
#[path = "pair/pooling.rs"]
mod pooling;
#[path = "pair/streams.rs"]
mod streams;
#[path = "pair/support.rs"]
mod support;

//! Two ends of tunnels in one process. Time is paused unless a test needs the kernel's TCP.

#![expect(clippy::large_futures, reason = "a test's future is made once and may be large")]

#[cfg(test)]
#[path = "pair/abuse.rs"]
mod abuse;
#[cfg(test)]
#[path = "pair/copying.rs"]
mod copying;
#[cfg(test)]
#[path = "pair/floods.rs"]
mod floods;
#[cfg(test)]
#[path = "pair/frames.rs"]
mod frames;
#[cfg(test)]
#[path = "pair/pooling.rs"]
mod pooling;
#[cfg(test)]
#[path = "pair/revocation.rs"]
mod revocation;
#[cfg(test)]
#[path = "pair/streams.rs"]
mod streams;
#[cfg(test)]
#[path = "pair/support.rs"]
mod support;
#[cfg(test)]
#[path = "pair/windows.rs"]
mod windows;

//! HBONE: each application connection is one HTTP/2 CONNECT stream inside a mutual TLS connection between two pods.
//!
//! A *tunnel* is the TLS connection, a *stream* what one application connection becomes in it. [`pool`] opens streams and
//! keeps tunnels, [`server`] takes them, [`copy`] moves the bytes, [`headers`] says what a CONNECT tells besides its
//! target.
//!
//! Everything here belongs to one thread: nothing is `Send`, and helper tasks go to the thread's local set, so a tunnel
//! never wakes another thread. No policy is decided here, and no socket is dialled: callers do both.
//!
//! What a peer can make us hold is bounded: by the windows for data, by limits for headers, streams and resets; what it
//! can make us wait for, by deadlines and by PING.

mod buffers;
pub mod client;
pub mod copy;
mod cork;
pub mod headers;
pub mod held;
mod http2;
mod inflow;
mod keepalive;
mod lifetime;
pub mod pool;
pub mod server;
pub mod stream;
mod turns;
mod wire;

pub use client::{ConnectError, ConnectRequest, OpenError};
pub use copy::{CopyError, Meter};
pub use headers::{Baggage, ConnectHeaders, Forwarded, TraceParent};
pub use held::Held;
pub use http2::Http2Options;
pub use keepalive::KeepaliveOptions;
pub use pool::{Pool, PoolOptions, Tunnel, TunnelKey};
pub use server::{AcceptError, Incoming, RequestError, ServerConnection, ServerOptions, ShutdownHandle};
pub use stream::{StreamError, TunnelStream};

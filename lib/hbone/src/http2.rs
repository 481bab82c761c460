//! The HTTP/2 settings of both ends of a tunnel.

use std::time::Duration;

/// How large things may be in a tunnel.
#[derive(Debug, Clone)]
pub struct Http2Options {
    /// What a peer may send on one stream before the reader has taken it; 1 MiB. One stream carries that much a round
    /// trip: 1 GB/s within a zone (1 ms), 20 MB/s across a continent (50 ms).
    pub stream_window: u32,
    /// What a peer may send on all streams of a tunnel together; 16 MiB. Readers that stand still keep their stream's
    /// window of it, and when it is used up they stop all the others: here 16 of the 100 that one pair of pods has in a
    /// tunnel. Larger, a pod could make us hold more for each tunnel; smaller stream windows cost throughput. A server
    /// whose party has many tunnels gives each of them less.
    pub connection_window: u32,
    /// The largest frame we take; 1 MiB.
    pub frame_size: u32,
    /// What one stream may have waiting to be written; 256 KiB, which is one large write. With more, the bytes of many
    /// streams have left the caches before their turn comes.
    pub send_buffer: usize,
    /// The largest header list we take; 64 KiB.
    pub header_list: u32,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            stream_window: 1 << 20,
            connection_window: 16 << 20,
            frame_size: 1 << 20,
            send_buffer: 256 << 10,
            header_list: 64 << 10,
        }
    }
}

/// Plaintext and ciphertext that TLS may hold for writing: enough for one large write to the kernel.
pub(crate) const TLS_BUFFER: usize = 320 * 1024;

/// Streams that we reset are remembered this long, so that frames which were under way then are no offence. (Those that
/// come for forgotten streams count against the tunnel for its whole life.)
const REMEMBER_RESET: Duration = Duration::from_secs(5);
/// And this many of them.
const REMEMBERED_RESETS: usize = 1024;
/// Streams that a peer opened and reset before we looked at them. As many as may be open at once is a burst of
/// applications that give up; more is the rapid reset attack (CVE-2023-44487) and ends the tunnel.
const PENDING_RESETS: usize = 200;

/// The client's settings.
pub(crate) fn client(options: &Http2Options) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .max_frame_size(options.frame_size)
        .max_header_list_size(options.header_list)
        .max_send_buffer_size(options.send_buffer)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .reset_stream_duration(REMEMBER_RESET)
        .enable_push(false);
    builder
}

/// The server's settings.
pub(crate) fn server(options: &Http2Options, max_streams: u32) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .max_frame_size(options.frame_size)
        .max_header_list_size(options.header_list)
        .max_send_buffer_size(options.send_buffer)
        .max_concurrent_streams(max_streams)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .reset_stream_duration(REMEMBER_RESET);
    builder
}

//! A client that writes frames by hand.

use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use underpass_identity::tls;

use crate::support::certificates;

/// What a client says first (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types of frames (RFC 9113, section 6), and a flag.
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a CONNECT in HPACK, each field a literal that is not to be remembered.
pub(crate) fn connect_head() -> Vec<u8> {
    let authority = b"10.0.0.9:80";
    [&[0x02, 7], &b"CONNECT"[..], &[0x01, authority.len() as u8], authority].concat()
}

/// The client, after the preface and its settings.
pub(crate) async fn raw(near: DuplexStream) -> TlsStream<DuplexStream> {
    let connector = TlsConnector::from(certificates().client.client.clone());
    let mut tls = connector.connect(tls::server_name(), near).await.unwrap();
    tls.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    tls
}

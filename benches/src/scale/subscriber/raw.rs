//! Discovery's stream with messages as they are on the wire: what all subscribers say alike is encoded once, and how much
//! they are told is counted.

use anyhow::{Context, Result};
use http::uri::PathAndQuery;
use prost::bytes::{Buf as _, BufMut as _, Bytes};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use underpass_discovery::wire::MESSAGE_LIMIT;
use underpass_runtime::control::Control;

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Opens a stream on a connection of its own.
pub(super) async fn open(control: &Control, requests: mpsc::Receiver<Bytes>) -> Result<Streaming<Bytes>> {
    let channel = control.channel().await?;
    let mut request = Request::new(ReceiverStream::new(requests));
    control.authorize(&mut request).await?;
    let mut client = Grpc::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
    client.ready().await.context("a connection")?;
    Ok(client.streaming(request, PathAndQuery::from_static(METHOD), Raw).await?.into_inner())
}

/// Leaves messages alone.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

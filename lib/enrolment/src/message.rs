//! What a message is before it is bytes and after: a [`Packet`], with the descriptors that travel along.
//!
//! Encoding and decoding are pure, so that every refusal can be tested without a socket.

use std::os::fd::{BorrowedFd, OwnedFd};

/// A message to be sent: its bytes, and the descriptors that it lends to the kernel.
#[derive(Debug)]
pub struct Packet<'a> {
    /// The encoded message; never empty, because an empty packet means the end of the connection.
    pub bytes: Vec<u8>,
    /// The descriptors, in the order the message says.
    pub descriptors: Vec<BorrowedFd<'a>>,
}

/// A message of one of the two packet sockets.
pub trait Message: Sized {
    /// The message's name in errors.
    const NAME: &'static str;
    /// The most bytes that a packet of it may have.
    const LIMIT: usize;

    /// The message as a packet.
    ///
    /// # Errors
    /// [`EncodeError`] if the receiver would have to refuse it.
    fn encode(&self) -> Result<Packet<'_>, EncodeError>;

    /// The message in a packet; `None` if it is one that only a newer version knows, to be ignored.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are not the message, or the descriptors not those that it announces. All
    /// descriptors are closed then.
    fn decode(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<Option<Self>, DecodeError>;
}

/// Why a message cannot be sent. The fault is the caller's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EncodeError {
    /// More bytes than the receiver's buffer has.
    #[error("{message} has {length} bytes and the receiver takes {limit}")]
    TooLong {
        /// Which message.
        message: &'static str,
        /// Its size.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// More descriptors than the receiver makes room for.
    #[error("{message} has {count} descriptors and the receiver takes {limit}")]
    TooManyDescriptors {
        /// Which message.
        message: &'static str,
        /// Their number.
        count: usize,
        /// What is allowed.
        limit: usize,
    },
}

/// Why a packet is not the message that stands next. The fault is the peer's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Not the descriptors that the message comes with.
    #[error("{message} came with {actual} descriptors instead of {expected}")]
    Descriptors {
        /// Which message.
        message: &'static str,
        /// How many it announces.
        expected: usize,
        /// How many there were.
        actual: usize,
    },
    /// A field has a value that it cannot have.
    #[error("{message}: field {field} has no valid value: {value:?}")]
    Field {
        /// Which message.
        message: &'static str,
        /// Which field.
        field: &'static str,
        /// What stood there, shortened.
        value: String,
    },
    /// Not protobuf, or not of this shape.
    #[error("{message} is malformed: {cause}")]
    Malformed {
        /// Which message was expected.
        message: &'static str,
        /// What the decoder says.
        cause: prost::DecodeError,
    },
    /// A field that must be there is not.
    #[error("{message}: field {field} is missing")]
    Missing {
        /// Which message.
        message: &'static str,
        /// Which field.
        field: &'static str,
    },
}

impl EncodeError {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "message_too_long",
            Self::TooManyDescriptors { .. } => "message_too_many_descriptors",
        }
    }
}

impl DecodeError {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Descriptors { .. } => "message_descriptors",
            Self::Field { .. } => "message_field",
            Self::Malformed { .. } => "message_malformed",
            Self::Missing { .. } => "message_field_missing",
        }
    }
}

/// Encodes a generated message of `M`, checking the sizes.
pub(crate) fn packet<'a, M: Message>(
    wire: &impl prost::Message,
    descriptors: Vec<BorrowedFd<'a>>,
) -> Result<Packet<'a>, EncodeError> {
    let (message, limit) = (M::NAME, crate::seqpacket::MAX_DESCRIPTORS);
    if descriptors.len() > limit {
        return Err(EncodeError::TooManyDescriptors { message, count: descriptors.len(), limit });
    }
    let bytes = wire.encode_to_vec();
    if bytes.len() > M::LIMIT {
        return Err(EncodeError::TooLong { message, length: bytes.len(), limit: M::LIMIT });
    }
    Ok(Packet { bytes, descriptors })
}

/// Decodes the generated message of `M`.
pub(crate) fn parse<M: Message, W: prost::Message + Default>(bytes: &[u8]) -> Result<W, DecodeError> {
    W::decode(bytes).map_err(|cause| DecodeError::Malformed { message: M::NAME, cause })
}

/// Refuses other descriptors than a message announces.
pub(crate) fn count_descriptors(
    message: &'static str,
    expected: usize,
    descriptors: &[OwnedFd],
) -> Result<(), DecodeError> {
    match descriptors.len() {
        actual if actual == expected => Ok(()),
        actual => Err(DecodeError::Descriptors { message, expected, actual }),
    }
}

/// Takes a text that must not be empty.
pub(crate) fn required(message: &'static str, field: &'static str, value: String) -> Result<String, DecodeError> {
    if value.is_empty() { Err(DecodeError::Missing { message, field }) } else { Ok(value) }
}

/// A [`DecodeError::Field`] that repeats only a little of what the peer sent.
pub(crate) fn bad_field(message: &'static str, field: &'static str, value: &str) -> DecodeError {
    const REPEATED: usize = 100;
    DecodeError::Field { message, field, value: shorten(value, REPEATED).to_owned() }
}

/// At most `bytes` of a text, cut between characters: what others are told of an error must fit their buffer.
pub(crate) fn shorten(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or_default()
}

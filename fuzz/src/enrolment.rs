//! What plugin, agent and node proxy tell each other over Unix sockets.

use std::{
    fmt::Debug,
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    sync::OnceLock,
};

use underpass_enrolment::{
    message::{EncodeError, Message},
    node::{ToAgent, ToProxy},
    plugin::{EnrolledNamespaces, LineError, MAX_LINE, PluginRequest, PluginResponse},
    zds::{Ack, Hello, Request},
};

/// A packet of ZDS or `node.sock`: the first byte says of which kind, and how many descriptors come with it.
pub(crate) fn node(input: &[u8]) {
    let Some((&first, bytes)) = input.split_first() else { return };
    let descriptors = usize::from(first >> 4).min(4);
    match first % 8 {
        0 => packet::<Hello>(bytes, descriptors),
        1 => packet::<Request>(bytes, descriptors),
        2 => packet::<Ack>(bytes, descriptors),
        3 => packet::<ToAgent>(bytes, descriptors),
        4 => packet::<ToProxy>(bytes, descriptors),
        _ => {}
    }
}

/// What is read can be sent on, and says the same; errors stay short.
fn packet<M: Message + Debug>(bytes: &[u8], count: usize) {
    // The rest of a longer packet is cut off by the kernel, and refused for that.
    if bytes.len() > M::LIMIT {
        return;
    }
    let message = match M::decode(bytes, descriptors(count)) {
        Ok(Some(message)) => message,
        Ok(None) => return,
        Err(error) => return assert!(error.to_string().len() < 1024, "{error}"),
    };
    let first = match message.encode() {
        Ok(packet) => packet,
        // An address may take more room as we write it.
        Err(error @ EncodeError::TooLong { .. }) => return assert!(bytes.len() + 64 > M::LIMIT, "{error}"),
        Err(error @ EncodeError::TooManyDescriptors { .. }) => unreachable!("{error}"),
    };
    assert_eq!(first.descriptors.len(), count);
    assert!(!first.bytes.is_empty() || bytes.is_empty(), "an empty packet means the end");
    let again = M::decode(&first.bytes, descriptors(count)).expect("our own packet").expect("a message we know");
    assert_eq!(again.encode().expect("as before").bytes, first.bytes);
}

fn descriptors(count: usize) -> Vec<OwnedFd> {
    static NULL: OnceLock<File> = OnceLock::new();
    let null = NULL.get_or_init(|| File::open("/dev/null").expect("/dev/null"));
    (0..count).map(|_| null.as_fd().try_clone_to_owned().expect("a descriptor")).collect()
}

/// A line of `plugin.sock`, and the list of namespaces on disk.
pub(crate) fn plugin(input: &[u8]) {
    if let Ok(request) = PluginRequest::from_line(input) {
        check_line(input, request.to_line(), |line| PluginRequest::from_line(line).expect("our own line") == request);
    }
    if let Ok(response) = PluginResponse::from_line(input) {
        check_line(input, response.to_line(), |line| {
            PluginResponse::from_line(line).expect("our own line") == response
        });
    }
    if let Ok(text) = std::str::from_utf8(input) {
        let list = EnrolledNamespaces::from_text(text);
        assert_eq!(EnrolledNamespaces::from_text(&list.to_string()), list);
        for line in text.split('\n').map(str::trim) {
            assert_eq!(list.contains(line), !line.is_empty() && !line.starts_with('#'), "{line:?}");
        }
    }
}

fn check_line(input: &[u8], line: Result<Vec<u8>, LineError>, says_the_same: impl Fn(&[u8]) -> bool) {
    let Ok(line) = line else {
        return assert!(input.len() * 4 > MAX_LINE, "a short line became too long");
    };
    let (end, text) = line.split_last().expect("a line");
    assert!(*end == b'\n' && !text.contains(&b'\n'));
    assert!(says_the_same(&line) && says_the_same(text));
}

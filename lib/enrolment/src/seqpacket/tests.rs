use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsFd,
};

use rustix::io::{FdFlags, fcntl_getfd};
use underpass_model::PodUid;

use super::*;
use crate::{
    node::{Listeners, ListeningSocket, ToAgent, ToProxy},
    zds::{Ack, Request, WorkloadInfo},
};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A pipe whose reading end travels.
fn pipe() -> (io::PipeReader, io::PipeWriter) {
    io::pipe().unwrap()
}

#[tokio::test]
async fn descriptors_arrive_as_the_same_thing_and_close_on_exec() {
    let (agent, proxy) = Connection::pair().unwrap();
    let (reader, mut writer) = pipe();
    let info = WorkloadInfo { name: "a".to_owned(), namespace: "b".to_owned(), service_account: "c".to_owned() };
    agent.send(&Request::Add { uid: PodUid::new("u1"), info, netns: reader.into() }).await.unwrap();
    let Request::Add { netns, .. } = proxy.recv().await.unwrap().unwrap() else { panic!("not an add") };
    assert!(fcntl_getfd(&netns).unwrap().contains(FdFlags::CLOEXEC));
    writer.write_all(b"hello").unwrap();
    drop(writer);
    let mut text = String::new();
    File::from(netns).read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

#[tokio::test]
async fn sockets_keep_listening_on_their_way() {
    let (agent, proxy) = Connection::pair().unwrap();
    let sockets: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<u16> = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
    let sockets = sockets.into_iter().zip(&ports);
    let sockets = sockets.map(|(socket, port)| ListeningSocket { port: *port, socket: socket.into() }).collect();
    proxy.send(&ToAgent::Listeners(Listeners { pod: PodUid::new("u1"), sockets })).await.unwrap();
    let Some(ToAgent::Listeners(received)) = agent.recv().await.unwrap() else { panic!("not listeners") };
    for (listening, port) in received.sockets.into_iter().zip(ports) {
        assert_eq!(listening.port, port);
        let listener = std::net::TcpListener::from(listening.socket);
        let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        listener.accept().unwrap();
    }
}

#[tokio::test]
async fn a_message_without_its_descriptors_is_refused_and_the_next_is_good() {
    let (agent, proxy) = Connection::pair().unwrap();
    agent.send_packet(b"\x0a\x18\x0a\x02u1\x12\x12\x0a\x05web-0\x12\x04shop\x1a\x03web", &[]).await.unwrap();
    agent.send(&Request::SnapshotSent).await.unwrap();
    let error = proxy.recv::<Request>().await.unwrap_err();
    assert_eq!(error.to_string(), "zds add came with 0 descriptors instead of 1");
    assert!(matches!(proxy.recv().await, Ok(Some(Request::SnapshotSent))));
}

#[tokio::test]
async fn descriptors_of_a_refused_message_are_closed() {
    let (agent, proxy) = Connection::pair().unwrap();
    let (mut reader, writer) = pipe();
    agent.send_packet(b"\x1a\x00", &[writer.as_fd()]).await.unwrap();
    drop(writer);
    assert!(proxy.recv::<Request>().await.is_err());
    // The end of the pipe shows that no copy of the writing end is left.
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
}

#[tokio::test]
async fn a_packet_that_does_not_fit_is_an_error_not_half_a_packet() {
    let (agent, proxy) = Connection::pair().unwrap();
    let (mut reader, writer) = pipe();
    agent.send_packet(&[b'x'; 1025], &[writer.as_fd()]).await.unwrap();
    drop(writer);
    let error = proxy.recv::<Request>().await.unwrap_err();
    assert!(matches!(&error, RecvError::Io { source, .. } if source.kind() == io::ErrorKind::InvalidData), "{error:?}");
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "its descriptor must be closed");
    agent.send_packet(&[b'x'; 1024], &[]).await.unwrap();
    assert_eq!(proxy.recv_packet(1024).await.unwrap().unwrap().0.len(), 1024);
}

#[tokio::test]
async fn more_descriptors_than_there_is_room_for_are_an_error() {
    let (one, other) = Connection::pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    let many = [null.as_fd(); MAX_DESCRIPTORS + 1];
    assert_eq!(one.send_packet(b"x", &many).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The receiver's buffer is rounded up, hence some more than one too many.
    let many = [null.as_fd(); MAX_DESCRIPTORS + 4];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&many)));
    net::sendmsg(&one.socket, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).unwrap();
    assert_eq!(other.recv_packet(10).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn the_end_is_told_after_the_last_message() {
    let (agent, proxy) = Connection::pair().unwrap();
    proxy.send(&Ack::done()).await.unwrap();
    drop(proxy);
    assert_eq!(agent.recv::<Ack>().await.unwrap(), Some(Ack::done()));
    assert_eq!(agent.recv::<Ack>().await.unwrap(), None);
    let error = agent.send(&Request::SnapshotSent).await.unwrap_err();
    assert!(matches!(error, SendError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe));
}

#[tokio::test]
async fn nothing_is_sent_as_an_empty_packet() {
    let (one, _other) = Connection::pair().unwrap();
    assert_eq!(one.send_packet(b"", &[]).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn messages_of_a_newer_version_are_skipped() {
    let (agent, proxy) = Connection::pair().unwrap();
    agent.send_packet(b"\x7a\x00", &[]).await.unwrap();
    agent.send(&ToProxy::ListenersSent).await.unwrap();
    assert!(matches!(proxy.recv().await, Ok(Some(ToProxy::ListenersSent))));
}

#[tokio::test]
async fn a_sender_waits_for_a_slow_receiver_and_loses_nothing() {
    const MESSAGES: u64 = 5000;
    let (agent, proxy) = Connection::pair().unwrap();
    let send = async {
        for connections in 0..MESSAGES {
            proxy.send(&ToAgent::Live { pod: PodUid::new("u1"), connections }).await.unwrap();
        }
    };
    let receive = async {
        for expected in 0..MESSAGES {
            let message = agent.recv().await.unwrap();
            assert!(matches!(message, Some(ToAgent::Live { connections, .. }) if connections == expected));
        }
    };
    tokio::join!(send, receive);
}

#[tokio::test]
async fn listens_for_its_own_user_and_knows_its_peer() {
    use std::os::unix::fs::MetadataExt as _;
    let directory = directory();
    let path = directory.path().join("a.sock");
    let listener = Listener::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let client = Connection::connect(&path).unwrap();
    let server = listener.accept().await.unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    assert_eq!(server.peer().unwrap().pid, Some(own));
    server.send(&Request::SnapshotSent).await.unwrap();
    assert!(matches!(client.recv().await, Ok(Some(Request::SnapshotSent))));
}

#[tokio::test]
async fn replaces_a_dead_listener_but_neither_a_living_one_nor_a_file() {
    let directory = directory();
    let path = directory.path().join("a.sock");
    let first = Listener::bind(&path).unwrap();
    let error = Listener::bind(&path).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    drop(first);
    assert_eq!(Connection::connect(&path).unwrap_err().source.kind(), io::ErrorKind::ConnectionRefused);
    let _second = Listener::bind(&path).unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(Listener::bind(&file).is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn names_the_path_to_which_it_cannot_connect() {
    let directory = directory();
    let path = directory.path().join("nobody.sock");
    let error = Connection::connect(&path).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().contains("nobody.sock"));
    assert!(Connection::connect(Path::new(&"x".repeat(200))).is_err());
}

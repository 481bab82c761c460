use std::fs::File;

use proptest::prelude::*;

use super::*;

fn descriptor() -> OwnedFd {
    File::open("/proc/self/ns/net").unwrap().into()
}

fn descriptors(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| descriptor()).collect()
}

fn add(name: &str) -> Request {
    let info = WorkloadInfo { name: name.to_owned(), namespace: "shop".to_owned(), service_account: "web".to_owned() };
    Request::Add { uid: PodUid::new("u1"), info, netns: descriptor() }
}

fn refusal(bytes: &[u8], count: usize) -> String {
    Request::decode(bytes, descriptors(count)).unwrap_err().to_string()
}

#[test]
fn requests_have_the_bytes_of_the_field() {
    let bytes = |request: &Request| request.encode().unwrap().bytes;
    assert_eq!(bytes(&add("web-0")), b"\x0a\x18\x0a\x02u1\x12\x12\x0a\x05web-0\x12\x04shop\x1a\x03web");
    assert_eq!(bytes(&Request::Del { uid: PodUid::new("u1") }), b"\x12\x04\x12\x02u1");
    assert_eq!(bytes(&Request::SnapshotSent), b"\x1a\x00");
    assert_eq!(bytes(&Request::Keep { uid: PodUid::new("u1") }), b"\x2a\x04\x0a\x02u1");
    assert_eq!(Hello.encode().unwrap().bytes, b"\x08\x01");
    assert_eq!(Ack::done().encode().unwrap().bytes, b"\x0a\x00");
    assert_eq!(Ack::failed("no").encode().unwrap().bytes, b"\x0a\x04\x0a\x02no");
}

#[test]
fn requests_carry_exactly_the_descriptors_that_belong_to_them() {
    let bytes = |request: Request| request.encode().unwrap().bytes;
    let uid = || PodUid::new("u1");
    assert_eq!(refusal(&bytes(add("web-0")), 0), "zds add came with 0 descriptors instead of 1");
    assert_eq!(refusal(&bytes(add("web-0")), 2), "zds add came with 2 descriptors instead of 1");
    for (request, name) in [
        (Request::Del { uid: uid() }, "zds del"),
        (Request::Keep { uid: uid() }, "zds keep"),
        (Request::SnapshotSent, "zds snapshot_sent"),
    ] {
        assert_eq!(refusal(&bytes(request), 1), format!("{name} came with 1 descriptors instead of 0"));
    }
    assert!(Hello::decode(b"\x08\x01", descriptors(1)).is_err());
    assert!(Ack::decode(b"\x0a\x00", descriptors(1)).is_err());
}

#[test]
fn refuses_a_packet_that_the_proxy_could_not_receive() {
    assert_eq!(add(&"x".repeat(1000)).encode().unwrap().bytes.len(), 1024);
    let error = add(&"x".repeat(1001)).encode().unwrap_err();
    assert_eq!(error, EncodeError::TooLong { message: "zds request", length: 1025, limit: 1024 });
}

#[test]
fn the_longest_names_of_kubernetes_fit() {
    let info = WorkloadInfo { name: "n".repeat(253), namespace: "s".repeat(63), service_account: "a".repeat(253) };
    let add = Request::Add { uid: PodUid::new(&"u".repeat(63)), info, netns: descriptor() };
    assert!(add.encode().unwrap().bytes.len() <= MAX_PACKET);
}

#[test]
fn names_what_is_missing() {
    for (bytes, expected) in [
        (&b"\x0a\x04\x0a\x02u1"[..], "zds add: field workload_info is missing"),
        (b"\x0a\x02\x12\x00", "zds add: field uid is missing"),
        (b"\x0a\x0b\x0a\x02u1\x12\x05\x12\x01s\x1a\x00", "zds add: field workload_info.name is missing"),
    ] {
        assert_eq!(refusal(bytes, 1), expected);
    }
    assert_eq!(refusal(b"\x12\x00", 0), "zds del: field uid is missing");
    assert_eq!(refusal(b"", 0), "zds request: field payload is missing");
    assert_eq!(refusal(b"\x7a\x00", 0), "zds request: field payload is missing", "a kind that nobody knows yet");
}

#[test]
fn refuses_a_hello_of_another_version() {
    assert!(Hello::decode(b"", vec![]).is_err());
    assert!(Hello::decode(b"\x08\x02", vec![]).is_err());
    assert_eq!(Hello::decode(b"\x08\x01", vec![]).unwrap(), Some(Hello));
}

#[test]
fn a_failure_is_never_taken_for_success_and_always_fits() {
    let round = |ack: &Ack| Ack::decode(&ack.encode().unwrap().bytes, vec![]).unwrap().unwrap();
    assert!(round(&Ack::failed("")).outcome.is_err());
    let long = round(&Ack::failed(&"ü".repeat(5000))).outcome.unwrap_err();
    assert!(long.len() <= 900 && long.chars().all(|c| c == 'ü'));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0..3usize) {
        drop(Request::decode(&bytes, descriptors(count)));
        drop(Hello::decode(&bytes, descriptors(count)));
        drop(Ack::decode(&bytes, descriptors(count)));
    }

    #[test]
    fn what_is_added_is_what_was_named(uid in "[a-z0-9-]{1,40}", name in ".{1,40}", namespace in ".{1,40}", account in ".{1,40}") {
        let info = WorkloadInfo { name, namespace, service_account: account };
        let request = Request::Add { uid: PodUid::new(&uid), info: info.clone(), netns: descriptor() };
        let bytes = request.encode().unwrap().bytes;
        match Request::decode(&bytes, descriptors(1)).unwrap().unwrap() {
            Request::Add { uid: decoded, info: named, netns: _ } => {
                prop_assert_eq!(decoded.as_str(), uid);
                prop_assert_eq!(named, info);
            }
            other => prop_assert!(false, "decoded as {}", other.name()),
        }
    }

    #[test]
    fn acks_survive_the_way(error in ".{0,200}") {
        let ack = if error.is_empty() { Ack::done() } else { Ack::failed(&error) };
        prop_assert_eq!(Ack::decode(&ack.encode().unwrap().bytes, vec![]).unwrap(), Some(ack));
    }
}

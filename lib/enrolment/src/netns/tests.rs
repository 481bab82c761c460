use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::*;

fn own() -> NetnsId {
    id(File::open("/proc/thread-self/ns/net").unwrap().as_fd()).unwrap()
}

/// A namespace without a name, which ends with its last descriptor.
fn new_namespace() -> OwnedFd {
    let make = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("these tests need the right to make namespaces");
        open(Path::new("/proc/thread-self/ns/net")).unwrap()
    };
    std::thread::spawn(make).join().unwrap()
}

#[test]
fn acts_inside_and_is_back_afterwards() {
    let (before, netns) = (own(), new_namespace());
    let seen = inside(netns.as_fd(), own).unwrap();
    assert_eq!(seen, id(netns.as_fd()).unwrap());
    assert_ne!(seen, before);
    assert_eq!(own(), before);
}

#[test]
fn a_socket_stays_where_it_was_made() {
    let netns = new_namespace();
    let listener = inside(netns.as_fd(), || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap();
    let port = listener.local_addr().unwrap().port();
    let inside_socket = inside(netns.as_fd(), || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
    assert_eq!(inside_socket.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    // The namespace's own loopback is down: nobody gets out or in.
    assert!(inside(netns.as_fd(), || TcpStream::connect((Ipv4Addr::LOCALHOST, port))).unwrap().is_err());
}

#[test]
fn comes_back_also_from_a_panic() {
    let (before, netns) = (own(), new_namespace());
    let result = std::panic::catch_unwind(|| inside(netns.as_fd(), || panic!("as a test")));
    assert!(result.is_err());
    assert_eq!(own(), before);
}

#[test]
fn another_thread_leaves_this_one_alone_and_may_borrow() {
    let (before, netns) = (own(), new_namespace());
    let mut seen = Vec::new();
    let number = on_thread(netns.as_fd(), || {
        seen.push(own());
        // What it starts is inside, too.
        seen.push(std::thread::spawn(own).join().unwrap());
        7
    });
    assert_eq!(number.unwrap(), 7);
    assert_eq!(seen, [id(netns.as_fd()).unwrap(); 2]);
    assert_eq!(own(), before);
}

#[test]
fn refuses_what_is_no_network_namespace() {
    for path in ["/dev/null", "/proc/self/ns/uts"] {
        let descriptor = open(Path::new(path)).unwrap();
        assert!(inside(descriptor.as_fd(), || panic!("must not run")).is_err(), "{path}");
        assert!(on_thread(descriptor.as_fd(), || panic!("must not run")).is_err(), "{path}");
    }
}

#[test]
fn tells_namespaces_apart_whatever_the_descriptor() {
    let (one, other) = (new_namespace(), new_namespace());
    assert_ne!(id(one.as_fd()).unwrap(), id(other.as_fd()).unwrap());
    assert_eq!(id(one.as_fd()).unwrap(), id(one.try_clone().unwrap().as_fd()).unwrap());
}

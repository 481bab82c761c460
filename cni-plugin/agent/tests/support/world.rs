//! A pod and a machine outside it, as two network namespaces joined by a veth pair, with IPv4 and IPv6.
//!
//! Needs root and `ip`; without them a test fails. Dropping a world takes its namespaces away.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use underpass_enrolment::netns;

/// A namespace of a test.
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) netns: OwnedFd,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

/// A pod, and somebody outside.
pub(crate) struct World {
    pub(crate) pod: Place,
    pub(crate) outside: Place,
}

/// Long enough for a busy machine, short enough to fail.
const PATIENCE: Duration = Duration::from_secs(10);

impl World {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let unique = format!("{process}-{count}");
        // Nobody else's on this machine, so that a namespace can be told by its address.
        let v4 = format!("10.{}.{}", 100 + process % 100, count % 250);
        let v6 = format!("fd87:{:x}:{count:x}:", process % 0xffff);
        let world = Self {
            pod: Place::new(format!("upa-pod-{unique}"), &format!("{v4}.2"), &format!("{v6}:2")),
            outside: Place::new(format!("upa-out-{unique}"), &format!("{v4}.1"), &format!("{v6}:1")),
        };
        let (pod, outside) = (&world.pod.name, &world.outside.name);
        ip(&format!("-n {pod} link add eth0 type veth peer name eth0 netns {outside}"));
        for place in [&world.pod, &world.outside] {
            ip(&format!("-n {} addr add {}/24 dev eth0", place.name, place.v4));
            ip(&format!("-n {} addr add {}/64 dev eth0 nodad", place.name, place.v6));
            ip(&format!("-n {} link set lo up", place.name));
            ip(&format!("-n {} link set eth0 up", place.name));
        }
        for (place, via) in [(&world.pod, &world.outside), (&world.outside, &world.pod)] {
            ip(&format!("-n {} route add default via {}", place.name, via.v4));
            ip(&format!("-n {} -6 route add default via {}", place.name, via.v6));
        }
        world
    }
}

impl Place {
    fn new(name: String, v4: &str, v6: &str) -> Self {
        ip(&format!("netns add {name}"));
        let netns = netns::open(&PathBuf::from(format!("/var/run/netns/{name}"))).expect("the namespace was just made");
        Self { name, netns, v4: v4.parse().unwrap(), v6: v6.parse().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/var/run/netns/{}", self.name))
    }

    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        [self.v4, self.v6]
    }

    /// Runs inside; sockets made there stay there.
    pub(crate) fn inside<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        netns::on_thread(self.netns.as_fd(), action).expect("root may enter a namespace")
    }

    /// Serves a word to whoever connects and then echoes, until the test's process ends.
    pub(crate) fn serve(&self, address: SocketAddr, word: &'static str, mark: u32) {
        let listener = self.listen(address, mark);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || echo(stream, word));
            }
        });
    }

    pub(crate) fn listen(&self, address: SocketAddr, mark: u32) -> TcpListener {
        self.inside(|| {
            let socket = socket(address.ip(), mark);
            socket.set_reuse_address(true).unwrap();
            socket.bind(&address.into()).unwrap_or_else(|error| panic!("cannot bind {address}: {error}"));
            socket.listen(64).unwrap();
            socket.into()
        })
    }

    /// Connects from inside.
    pub(crate) fn dial(&self, to: SocketAddr, how: Dial) -> std::io::Result<Conversation> {
        self.inside(|| {
            let socket = socket(to.ip(), how.mark);
            if let Some(from) = how.from {
                socket.set_reuse_address(true)?;
                if how.transparent {
                    // The kernel keeps one flag for both families.
                    socket.set_ip_transparent_v4(true)?;
                }
                socket.bind(&SockAddr::from(from))?;
            }
            socket.connect_timeout(&to.into(), PATIENCE)?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(Conversation(stream))
        })
    }

    pub(crate) fn read_file(&self, path: &str) -> String {
        self.inside(|| std::fs::read_to_string(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Gives it its IPv6 address again.
    pub(crate) fn add_v6(&self) {
        ip(&format!("-n {} addr replace {}/64 dev eth0 nodad", self.name, self.v6));
    }

    pub(crate) fn nft(&self, arguments: &str) {
        let arguments = format!("netns exec {} nft {arguments}", self.name);
        ip(&arguments);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// How a client connects.
#[derive(Clone, Copy, Default)]
pub(crate) struct Dial {
    pub(crate) mark: u32,
    pub(crate) from: Option<SocketAddr>,
    pub(crate) transparent: bool,
}

/// A connection to something that [`Place::serve`]s.
pub(crate) struct Conversation(pub(crate) TcpStream);

impl Conversation {
    /// Who serves this connection.
    pub(crate) fn word(&mut self) -> String {
        self.line()
    }

    /// Says something and hears it again.
    pub(crate) fn lives(&mut self) {
        self.0.write_all(b"still there?\n").unwrap();
        assert_eq!(self.line(), "still there?");
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap_or_else(|error| panic!("after {line:?}: {error}"));
            match byte {
                [b'\n'] => return String::from_utf8(line).unwrap(),
                [byte] => line.push(byte),
            }
        }
    }
}

fn echo(mut stream: TcpStream, word: &str) {
    let mut buffer = [0; 4096];
    if stream.write_all(format!("{word}\n").as_bytes()).is_err() {
        return;
    }
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn socket(family: IpAddr, mark: u32) -> Socket {
    let domain = if family.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
    if domain == Domain::IPV6 {
        socket.set_only_v6(true).unwrap();
    }
    if mark != 0 {
        socket.set_mark(mark).expect("root may mark a socket");
    }
    socket
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {arguments}: {complaint} (these tests need root)");
}

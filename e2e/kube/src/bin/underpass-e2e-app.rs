//! What runs in the scenarios' pods: an HTTP server that says who it is and who called, and its callers. Plain sockets
//! and threads, so that nothing a library does by itself (retries, pools) hides what the mesh does.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is its result")]

use std::{
    env,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use underpass_lab::LoadReport;

/// After this a call has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many failures of a load are told.
const TOLD: usize = 100;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match *arguments.as_slice() {
        ["serve", name, port] => serve(name, port),
        ["serve-grpc", port] => serve_grpc(port),
        ["get", url] => get(url),
        ["wait"] => loop {
            thread::park();
        },
        ["load", url, callers] => load(url, callers),
        _ => Err(anyhow::anyhow!(
            "usage: underpass-e2e-app serve NAME PORT | serve-grpc PORT | get URL | load URL CALLERS | wait"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Answers every request with a line that names both ends; `/host` with the name of its pod.
fn serve(name: &str, port: &str) -> Result<()> {
    let listener = TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port.parse()?))?;
    thread::scope(|scope| {
        for connection in listener.incoming() {
            let connection = connection?;
            // A caller that goes away is no matter of the server's.
            scope.spawn(move || answer(name, &connection).ok());
        }
        Ok(())
    })
}

fn answer(name: &str, connection: &TcpStream) -> Result<()> {
    let peer = match connection.peer_addr()? {
        SocketAddr::V6(address) => address.ip().to_canonical(),
        SocketAddr::V4(address) => (*address.ip()).into(),
    };
    let body = format!("i am {name}, you are {peer}");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    let mut requests = BufReader::new(connection);
    while let Some(first) = head(&mut requests)?.into_iter().next() {
        println!("{peer} {first}");
        let body = if first.starts_with("GET /host ") { &host } else { &body };
        write!(&mut &*connection, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

/// Answers every gRPC call as a health service that serves does, which is what a kubelet's gRPC probe asks
/// (grpc.health.v1.Health/Check).
fn serve_grpc(port: &str) -> Result<()> {
    /// A message that is not compressed, of two bytes: field 1, `SERVING`.
    const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port.parse()?)).await?;
        loop {
            let (stream, _peer) = listener.accept().await?;
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await?;
                while let Some(request) = connection.accept().await {
                    let (_request, mut respond) = request?;
                    let head = http::Response::builder().header("content-type", "application/grpc").body(())?;
                    let mut body = respond.send_response(head, false)?;
                    body.send_data(SERVING.as_slice().into(), false)?;
                    body.send_trailers([("grpc-status".parse()?, "0".parse()?)].into_iter().collect())?;
                }
                anyhow::Ok(())
            });
        }
    })
}

/// The lines of a request's or response's head; none at the end of the connection.
fn head(from: &mut impl BufRead) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match (from.read_line(&mut line)?, line.trim_end()) {
            (0, _) if lines.is_empty() => return Ok(lines),
            (0, _) => bail!("closed in the middle of a head"),
            (_, "") => return Ok(lines),
            (_, line) => lines.push(line.to_owned()),
        }
    }
}

/// A connection to an HTTP server, for one request or many.
struct Caller {
    connection: BufReader<TcpStream>,
    request: String,
}

impl Caller {
    fn connect(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").context("only http:// is spoken")?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let address = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        let mut addresses = address.to_socket_addrs().with_context(|| format!("looking {address} up"))?;
        let address = addresses.next().context("a name without an address")?;
        let connection = TcpStream::connect_timeout(&address, PATIENCE).context("connecting")?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_nodelay(true)?;
        let request = format!("GET /{path} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        Ok(Self { connection: BufReader::new(connection), request })
    }

    fn call(&mut self) -> Result<String> {
        self.connection.get_mut().write_all(self.request.as_bytes()).context("asking")?;
        let head = head(&mut self.connection).context("waiting for the answer")?;
        let status = head.first().context("closed without an answer")?;
        ensure!(status.contains(" 200 "), "answered {status}");
        let length = head
            .iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .context("an answer without a length")?
            .1
            .parse()?;
        let mut body = vec![0; length];
        self.connection.read_exact(&mut body).context("reading the answer")?;
        Ok(String::from_utf8(body)?)
    }
}

fn get(url: &str) -> Result<()> {
    println!("{}", Caller::connect(url)?.call()?);
    Ok(())
}

/// Calls until its input ends, with a new connection each time, and beside that on one connection that is kept; then
/// prints what came of it.
fn load(url: &str, callers: &str) -> Result<()> {
    let report = Mutex::new(LoadReport::default());
    let told =
        |change: &mut dyn FnMut(&mut LoadReport)| change(&mut report.lock().unwrap_or_else(PoisonError::into_inner));
    let ended = AtomicBool::new(false);
    let running = || !ended.load(Ordering::Relaxed);
    let kept = Caller::connect(url)?;
    thread::scope(|scope| {
        for _ in 0..callers.parse::<u8>()? {
            scope.spawn(|| {
                while running() {
                    let begun = Instant::now();
                    let outcome = Caller::connect(url).and_then(|mut caller| caller.call());
                    let took = begun.elapsed().as_secs_f64() * 1000.0;
                    told(&mut |report| {
                        report.calls += 1;
                        report.longest_ms = report.longest_ms.max(took);
                        if let Err(error) = &outcome
                            && report.failures.len() < TOLD
                        {
                            report.failures.push(format!("after {took:.0} ms: {error:#}"));
                        }
                    });
                    thread::sleep(Duration::from_millis(10));
                }
            });
        }
        scope.spawn(|| {
            let mut kept = kept;
            while running() {
                let outcome = kept.call();
                told(&mut |report| match &outcome {
                    Ok(_) => report.exchanges += 1,
                    Err(error) => {
                        report.long_connection = Some(format!("after {} exchanges: {error:#}", report.exchanges));
                    }
                });
                if outcome.is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        println!("running");
        wait_for_end_of_input();
        ended.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    })?;
    println!("{}", serde_json::to_string(&report.into_inner().unwrap_or_else(PoisonError::into_inner))?);
    Ok(())
}

fn wait_for_end_of_input() {
    let mut buffer = [0; 64];
    loop {
        match std::io::stdin().read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

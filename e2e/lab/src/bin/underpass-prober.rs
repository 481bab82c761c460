//! The lab's stand-in for a kubelet: makes TCP and HTTP probes from the node it runs on, when asked through a socket.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use underpass_lab::{Probe, ProbeAnswer};

/// A kubelet's default is a second; a lab may be busy.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A status line is short; what a stranger sends beyond this is not read.
const LONGEST_HEAD: u64 = 4096;

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).context("usage: underpass-prober SOCKET")?;
    if std::fs::exists(&path)? {
        std::fs::remove_file(&path)?;
    }
    let listener = UnixListener::bind(&path).context("listening")?;
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || serve(&stream));
    }
    Ok(())
}

/// Answers one question; whoever asked and went away is not missed.
fn serve(stream: &UnixStream) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream).take(LONGEST_HEAD).read_line(&mut line)?;
    let answer = match make(&serde_json::from_str(&line)?) {
        Ok(detail) => ProbeAnswer { success: true, detail },
        Err(error) => ProbeAnswer { success: false, detail: format!("{error:#}") },
    };
    writeln!(&*stream, "{}", serde_json::to_string(&answer)?)?;
    Ok(())
}

fn make(probe: &Probe) -> Result<String> {
    match probe {
        Probe::TcpSocket { address } => {
            connect(address)?;
            Ok("connected".to_owned())
        }
        Probe::HttpGet { address, path } => {
            let mut stream = connect(address)?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n"
            )?;
            let mut head = String::new();
            BufReader::new(stream.take(LONGEST_HEAD)).read_line(&mut head).context("reading the answer")?;
            let status: u16 = head.split_whitespace().nth(1).and_then(|text| text.parse().ok()).context("no status")?;
            if !(200..400).contains(&status) {
                bail!("status {status}");
            }
            Ok(format!("status {status}"))
        }
    }
}

fn connect(address: &SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(address, TIMEOUT).context("connecting")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

//! The least HTTP client that a lab needs: one GET from inside a namespace, for metrics and readiness.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::netns;

const TIMEOUT: Duration = Duration::from_secs(2);
const LARGEST: u64 = 64 << 20;

/// Gets a page; anything but status 200 is an error with what was answered.
pub(crate) fn get(namespace: &str, address: SocketAddr, path: &str) -> Result<String> {
    let answer = netns::inside(namespace, || exchange(address, path))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of its head")?;
    let status = head.split_whitespace().nth(1).context("the answer has no status")?;
    if status != "200" {
        bail!("{path} answered {status}: {}", body.trim());
    }
    Ok(if chunked(head) { join_chunks(body) } else { body.to_owned() })
}

fn exchange(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LARGEST).read_to_end(&mut answer).context("reading the answer")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn chunked(head: &str) -> bool {
    head.to_ascii_lowercase().lines().any(|line| line.starts_with("transfer-encoding:") && line.contains("chunked"))
}

fn join_chunks(mut body: &str) -> String {
    let mut joined = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.split(';').next().unwrap_or(size).trim(), 16).unwrap_or(0);
        let Some((chunk, rest)) = rest.split_at_checked(size).filter(|_| size > 0) else { break };
        joined.push_str(chunk);
        body = rest.trim_start_matches("\r\n");
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_become_one_text() {
        assert_eq!(join_chunks("3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"), "abcde");
        assert_eq!(join_chunks("ff\r\nshort"), "");
    }
}

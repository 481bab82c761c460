//! As much of HTTP/1.1 as the load speaks.

/// A request that leaves the connection open.
pub(super) const KEEP: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
/// A request after which the server closes.
pub(super) const CLOSE: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";

/// The length of the answer that begins here, once its head is complete.
pub(super) fn length(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let text = std::str::from_utf8(answer.get(..head)?).ok()?;
    let body: usize = text.lines().find_map(|line| line.strip_prefix("Content-Length: "))?.parse().ok()?;
    Some(head + 4 + body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answers_length_is_known_once_its_head_is_complete() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(length(answer), Some(answer.len()));
        assert_eq!(length(&answer[..answer.len() - 5]), Some(answer.len()));
        assert_eq!(length(&answer[..20]), None);
    }
}

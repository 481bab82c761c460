//! Applications at both ends, on kernel TCP.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::spawn_local,
    time::timeout,
};

use crate::support::ANYWHERE;

/// More than all the windows on the way hold.
pub(crate) const MUCH: usize = 24 << 20;

/// A server. The first byte of a connection says what it does with it.
pub(crate) async fn server() -> SocketAddr {
    let listener = TcpListener::bind(ANYWHERE).await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            spawn_local(async move {
                // What goes wrong shows at the caller.
                serve(&mut socket).await.ok();
            });
        }
    });
    address
}

/// A server that says so many bytes and ends its half first; then it listens, and tells how many bytes it heard.
pub(crate) async fn ending_first(says: usize) -> (SocketAddr, oneshot::Receiver<io::Result<usize>>) {
    let listener = TcpListener::bind(ANYWHERE).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = oneshot::channel();
    spawn_local(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        let listening = async {
            socket.write_all(&bytes(says, LAST_WORD)).await?;
            socket.shutdown().await?;
            socket.read_to_end(&mut heard).await
        };
        // Not everybody wants to know.
        tell.send(listening.await).ok();
    });
    (address, told)
}

const LAST_WORD: u8 = 9;

/// Hears such a server to its end; ends well only with all that it says.
pub(crate) async fn hear_it_end(socket: &mut TcpStream, says: usize) -> io::Result<()> {
    let mut heard = Vec::with_capacity(says);
    timeout(Duration::from_secs(40), socket.read_to_end(&mut heard)).await.expect("its end comes")?;
    assert!(heard == bytes(says, LAST_WORD), "{} bytes of {says} came, or others", heard.len());
    Ok(())
}

/// And says something more to it.
pub(crate) async fn have_the_last_word(mut socket: TcpStream) {
    socket.write_all(&bytes(SOME, 1)).await.unwrap();
    socket.shutdown().await.unwrap();
}

/// More than one read or write takes.
pub(crate) const SOME: usize = 300_000;

async fn serve(socket: &mut TcpStream) -> io::Result<()> {
    match socket.read_u8().await? {
        // Repeats at once.
        b'e' => {
            let (mut from, mut to) = socket.split();
            tokio::io::copy(&mut from, &mut to).await?;
            to.shutdown().await
        }
        // Answers after the caller's end of file, with every byte changed.
        b'a' => {
            let mut all = Vec::new();
            socket.read_to_end(&mut all).await?;
            all.iter_mut().for_each(|byte| *byte = !*byte);
            socket.write_all(&all).await?;
            socket.shutdown().await
        }
        // Says something and breaks.
        _ => {
            socket.write_all(b"half of an answ").await?;
            socket.set_zero_linger()
        }
    }
}

pub(crate) fn bytes(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + n / 251) as u8 ^ salt).collect()
}

/// Sends `much` bytes, ends its half, and checks the answer, which begins only then.
pub(crate) async fn ask_and_half_close(socket: TcpStream, much: usize) {
    let sent: Rc<[u8]> = bytes(much, 3).into();
    let (mut from, mut to) = socket.into_split();
    let sending = Rc::clone(&sent);
    let sender = spawn_local(async move {
        to.write_all(b"a").await?;
        to.write_all(&sending).await?;
        to.shutdown().await?;
        io::Result::Ok(to)
    });
    let mut answer = Vec::with_capacity(much);
    timeout(Duration::from_secs(40), from.read_to_end(&mut answer)).await.expect("the answer ends").unwrap();
    sender.await.unwrap().unwrap();
    assert_eq!(answer.len(), sent.len());
    assert!(answer.iter().zip(sent.iter()).all(|(got, sent)| *got == !*sent), "the bytes are not those that were sent");
}

/// Talks back and forth.
pub(crate) async fn converse(socket: &mut TcpStream) {
    socket.write_all(b"e").await.unwrap();
    for round in 0..20_u8 {
        let said = bytes(1000, round);
        socket.write_all(&said).await.unwrap();
        let mut heard = vec![0; said.len()];
        timeout(Duration::from_secs(10), socket.read_exact(&mut heard)).await.expect("it answers").unwrap();
        assert_eq!(heard, said);
    }
}

/// What a caller sees of a server that breaks in the middle of its answer.
pub(crate) async fn see_it_break(mut socket: TcpStream) -> io::Error {
    socket.write_all(b"r").await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(10), socket.read_to_end(&mut answer)).await.expect("it ends");
    read.expect_err("an answer that was cut is no answer")
}

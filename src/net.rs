//! Names to addresses and addresses to connections, without ever blocking the one thread.

use core::time::Duration;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, getpeername, socket_with, sockopt};
use smol::lock::Semaphore;

use crate::reactor::{Io, within};

/// Addresses kept of one name's answer; a name with more is served by its first ones.
pub const MAX_ADDRESSES: usize = 16;

/// One lookup at a time: a hung `getaddrinfo` may hold one of `pool`'s two threads, never the one that the disk
/// needs.
static LOOKUP: Semaphore = Semaphore::new(1);

/// Opens a TCP connection, with Nagle's delay off.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] after `timeout`; otherwise what the kernel says, such as "connection refused".
pub async fn connect(addr: SocketAddr, timeout: Duration) -> io::Result<Io<TcpStream>> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &addr) {
        // An interrupted connect goes on by itself, as a non-blocking one does.
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = Io::new(TcpStream::from(socket))?;
    let connected = stream.when_writable(|stream| match getpeername(stream) {
        Ok(_) => Ok(()),
        Err(Errno::NOTCONN) => {
            sockopt::socket_error(stream)??;
            Err(io::ErrorKind::WouldBlock.into())
        }
        Err(error) => Err(error.into()),
    });
    within(timeout, connected).await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?;
    stream.get_ref().set_nodelay(true)?;
    Ok(stream)
}

/// The addresses of a host: at once where it is an address or `localhost`, else by the system's resolver, off
/// the main thread. At most [`MAX_ADDRESSES`], never none. Wrap it in [`within`]: a lookup has no limit of its own.
///
/// # Errors
/// What the resolver says.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]);
    }
    let turn = LOOKUP.acquire().await;
    let host = host.to_owned();
    let found = crate::pool::unblock(move || {
        // Given back when the lookup ends, not when its caller has lost patience.
        let _turn = turn;
        let found = (host.as_str(), port).to_socket_addrs()?;
        io::Result::Ok(found.take(MAX_ADDRESSES).collect::<Vec<_>>())
    })
    .await?;
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::net::TcpListener;

    use smol::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::reactor::block_on;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn connects_and_carries_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        block_on(async {
            let mut ours = connect(addr, PATIENCE).await.unwrap();
            let (theirs, _) = listener.accept().unwrap();
            theirs.set_nonblocking(true).unwrap();
            let mut theirs = Io::new(theirs).unwrap();
            ours.write_all(b"ping").await.unwrap();
            let mut got = [0; 4];
            theirs.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"ping");
            assert!(ours.get_ref().nodelay().unwrap());
        })
        .unwrap();
    }

    #[test]
    fn a_closed_port_refuses() {
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = block_on(connect(addr, PATIENCE)).unwrap().err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_full_backlog_times_out() {
        // The kernel completes handshakes up to the backlog; the one after it waits for ever.
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let addr = TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap();
        block_on(async {
            let mut held = Vec::new();
            let error = loop {
                match connect(addr, Duration::from_millis(200)).await {
                    Ok(stream) => held.push(stream),
                    Err(error) => break error,
                }
                assert!(held.len() < 64);
            };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        })
        .unwrap();
    }

    #[test]
    fn addresses_and_localhost_need_no_resolver() {
        block_on(async {
            let literal = resolve("::1", 7).await.unwrap();
            assert_eq!(literal, ["[::1]:7".parse().unwrap()]);
            let local = resolve("LOCALHOST", 7).await.unwrap();
            assert_eq!(local, ["127.0.0.1:7".parse().unwrap(), "[::1]:7".parse().unwrap()]);
            assert!(resolve("no such host", 7).await.is_err());
        })
        .unwrap();
    }
}

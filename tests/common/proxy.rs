//! A proxy that carries connections to servers of the test by the names that the agent gives it.

#![expect(clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::ServerConfig;

use super::{Stream, read_head};

/// How it wants to be asked.
#[derive(Clone)]
pub(crate) enum Speaks {
    Http,
    Https(Arc<ServerConfig>),
    Socks,
}

/// A proxy on loopback.
pub(crate) struct Relay {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Relay {
    /// One that knows these `host:port`, and lets nobody through to others.
    pub(crate) fn new(speaks: &Speaks, names: &[(&str, SocketAddr)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self { address: listener.local_addr().unwrap(), asked: Arc::default() };
        let names: BTreeMap<String, SocketAddr> =
            names.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect();
        let names = Arc::new(names);
        let (speaks, asked) = (speaks.clone(), Arc::clone(&relay.asked));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (speaks, names, asked) =
                    (speaks.clone(), Arc::clone(&names), Arc::clone(&asked));
                thread::spawn(move || serve(&speaks, stream, &names, &asked));
            }
        });
        relay
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was asked for, in order: `host:port`, and then all that stood beside it.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(
    speaks: &Speaks,
    stream: TcpStream,
    names: &BTreeMap<String, SocketAddr>,
    asked: &Mutex<Vec<String>>,
) {
    let mut stream = Stream::Plain(stream);
    if let Speaks::Https(config) = speaks {
        stream = stream.encrypted(config);
    }
    let (name, told, granted, refused): (_, _, &[u8], &[u8]) = match speaks {
        Speaks::Http | Speaks::Https(_) => {
            let head = read_head(&mut stream);
            let name = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
            (name, head, b"HTTP/1.1 200 Yes\r\n\r\n", b"HTTP/1.1 403 No\r\n\r\n")
        }
        Speaks::Socks => {
            let (name, told) = socks(&mut stream);
            (name, told, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0], &[5, 2, 0, 1, 0, 0, 0, 0, 0, 0])
        }
    };
    asked.lock().unwrap().push(format!("{name} {told}"));
    let Some(address) = names.get(&name) else {
        let _ = stream.write_all(refused);
        return;
    };
    let to = TcpStream::connect(address).unwrap();
    stream.write_all(granted).unwrap();
    stream.flush().unwrap();
    carry(stream, to);
}

/// The handshake of SOCKS5, with a password where one is to be had: where to, and `user:password`.
fn socks(stream: &mut Stream) -> (String, String) {
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    let count = take(2)[1];
    let password = take(count.into()).contains(&2);
    stream.write_all(&[5, if password { 2 } else { 0 }]).unwrap();
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    let mut told = String::new();
    if password {
        let count = take(2)[1];
        told = String::from_utf8(take(count.into())).unwrap();
        let count = take(1)[0];
        told = format!("{told}:{}", String::from_utf8(take(count.into())).unwrap());
        stream.write_all(&[1, 0]).unwrap();
    }
    let mut head = [0; 5];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[..4], [5, 1, 0, 3], "a name");
    let mut name = vec![0; usize::from(head[4]) + 2];
    stream.read_exact(&mut name).unwrap();
    let port = name.split_off(name.len() - 2);
    let port = u16::from_be_bytes([port[0], port[1]]);
    (format!("{}:{port}", String::from_utf8(name).unwrap()), told)
}

/// Carries bytes both ways until one side ends.
fn carry(mut one: Stream, other: TcpStream) {
    let pause = Some(Duration::from_millis(2));
    one.tcp().set_read_timeout(pause).unwrap();
    other.set_read_timeout(pause).unwrap();
    let mut other = Stream::Plain(other);
    while pass(&mut one, &mut other) && pass(&mut other, &mut one) {}
}

/// What has come from one side goes to the other. False: it has ended.
fn pass(from: &mut Stream, to: &mut Stream) -> bool {
    let mut bytes = vec![0; 64 * 1024];
    match from.read(&mut bytes) {
        Ok(0) => false,
        Ok(count) => to.write_all(&bytes[..count]).and_then(|()| to.flush()).is_ok(),
        Err(error) => matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
        ),
    }
}

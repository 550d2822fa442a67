//! The way through a SOCKS5 proxy (RFC 1928), with user and password where it wants them (RFC 1929).
//!
//! A host name goes to the proxy as it is, with `socks5` as with `socks5h`: a device behind such a proxy often has no
//! DNS of its own. Nothing is read beyond the proxy's answer, which has at most 262 bytes.

use std::io::ErrorKind;
use std::net::IpAddr;

use smol::io::{AsyncReadExt, AsyncWriteExt};

use super::{Stream, decoded, explain, hostport};
use crate::settings::Endpoint;

/// The version that each message but one begins with.
const SOCKS5: u8 = 5;
/// The version of user and password.
const PASSWORD_VERSION: u8 = 1;
/// Ways to say who one is.
const NOBODY: u8 = 0;
const PASSWORD: u8 = 2;
const NONE_WILL_DO: u8 = 0xff;
/// The one command that is used.
const CONNECT: u8 = 1;
/// Kinds of addresses.
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Asks for a connection to the endpoint. `user` is the user information of the proxy's URL.
///
/// # Errors
/// What the proxy answered, and what to look at.
pub(super) async fn ask(
    stream: &mut Stream,
    endpoint: &Endpoint,
    user: Option<&str>,
) -> Result<(), String> {
    // Both are made first: what cannot be said is not begun.
    let credentials = user.map(credentials).transpose()?;
    let request = request(endpoint)?;
    let greeting: &[u8] = match credentials {
        Some(_) => &[SOCKS5, 2, NOBODY, PASSWORD],
        None => &[SOCKS5, 1, NOBODY],
    };
    let [version, method] = exchange(stream, greeting, "the greeting").await?;
    speaks(version)?;
    match (method, credentials) {
        (NOBODY, _) => {}
        (PASSWORD, Some(credentials)) => {
            let [_, status] = exchange(stream, &credentials, "user and password").await?;
            if status != 0 {
                return Err(format!(
                    "it refused user and password (status {status}); they stand in opamp.server.proxy.url"
                ));
            }
        }
        (NONE_WILL_DO | PASSWORD, None) => {
            return Err("it demands credentials; user and password go into opamp.server.proxy.url"
                .to_owned());
        }
        (NONE_WILL_DO, Some(_)) => {
            return Err("it takes neither user and password nor nobody in particular".to_owned());
        }
        (other, _) => return Err(format!("it chose method {other}, which was not offered")),
    }
    let [version, reply, _, kind] = exchange(stream, &request, "CONNECT").await?;
    speaks(version)?;
    if reply != 0 {
        return Err(refusal(reply, &hostport(&endpoint.host, endpoint.port)));
    }
    // The address that it connects from is nobody's concern, but stands before what the server says.
    let rest = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => {
            let [length] = exchange(stream, &[], "CONNECT").await?;
            u16::from(length)
        }
        other => {
            return Err(format!("it answered CONNECT with an address of the unknown kind {other}"));
        }
    };
    for _ in 0..rest.saturating_add(2) {
        exchange::<1>(stream, &[], "CONNECT").await?;
    }
    Ok(())
}

/// Sends a message and reads so many bytes of the answer.
async fn exchange<const N: usize>(
    stream: &mut Stream,
    message: &[u8],
    what: &str,
) -> Result<[u8; N], String> {
    let mut answer = [0; N];
    let done = async {
        stream.write_all(message).await?;
        stream.flush().await?;
        stream.read_exact(&mut answer).await
    };
    match done.await {
        Ok(()) => Ok(answer),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(format!(
            "it ended the connection within its answer to {what}: is it a SOCKS5 proxy?"
        )),
        Err(error) => Err(format!("{what}: {}", explain(&error))),
    }
}

fn speaks(version: u8) -> Result<(), String> {
    match version {
        SOCKS5 => Ok(()),
        b'H' => Err("it speaks HTTP: should opamp.server.proxy.url begin with http://?".to_owned()),
        0 | 4 => {
            Err("it speaks SOCKS4, which has no IPv6 and no passwords; SOCKS5 is wanted".to_owned())
        }
        other => Err(format!("it does not speak SOCKS5: its answer begins with byte {other}")),
    }
}

/// User and password as RFC 1929 has them.
fn credentials(user: &str) -> Result<Vec<u8>, String> {
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let mut message = vec![PASSWORD_VERSION];
    for part in [decoded(user), decoded(password)] {
        let length = u8::try_from(part.len())
            .map_err(|_| "user or password has more than the 255 bytes that SOCKS5 allows")?;
        message.push(length);
        message.extend_from_slice(&part);
    }
    Ok(message)
}

fn request(endpoint: &Endpoint) -> Result<Vec<u8>, String> {
    let mut message = vec![SOCKS5, CONNECT, 0];
    match endpoint.host.parse() {
        Ok(IpAddr::V4(address)) => {
            message.push(IPV4);
            message.extend_from_slice(&address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            message.push(IPV6);
            message.extend_from_slice(&address.octets());
        }
        Err(_) => {
            let length = u8::try_from(endpoint.host.len())
                .map_err(|_| "the server's name has more than the 255 bytes that SOCKS5 allows")?;
            message.extend_from_slice(&[NAME, length]);
            message.extend_from_slice(endpoint.host.as_bytes());
        }
    }
    message.extend_from_slice(&endpoint.port.to_be_bytes());
    Ok(message)
}

/// RFC 1928 §6 in words.
fn refusal(reply: u8, to: &str) -> String {
    let why = match reply {
        2 => "it does not let us through to ",
        3 => "it has no network on the way to ",
        4 => "it does not reach, or does not know, ",
        5 => "nobody listens at ",
        6 => "packets got lost on the way to ",
        7 => "it knows no CONNECT, so no way to ",
        8 => "it does not know this kind of address: ",
        _ => "it failed to connect to ",
    };
    format!("it answered CONNECT with {reply}: {why}{to}")
}

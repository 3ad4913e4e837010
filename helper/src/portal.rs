//! Does this network want a sign-in before it lets anything through?
//!
//! Asks for a web page at an address that nobody has (192.0.2.213, RFC 5737): a network without a sign-in page
//! carries that nowhere, and one that answers in its place shows its page. No third party is asked, and a blocked
//! probe is no false alarm. Then at the gateway's own address, for networks that answer only for names. Both past
//! the tunnel and past the kill switch.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use url::{Host, Url};

use crate::outside;

/// TEST-NET-1.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 213));
/// A page that is there answers at once; it is one hop away.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// More than the header of an answer takes.
const HEADER_BYTES: usize = 8 * 1024;
/// The longest address of a page that is believed.
const URL_BYTES: usize = 2000;

/// What a network shows to a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Nothing answers in place of somebody else.
    Clear,
    /// A page that wants to be seen first.
    Portal(Page),
}

/// A sign-in page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where it is: `http` or `https`. Any web address leads to it when the network did not say.
    pub url: Url,
    /// The network answered for an address that nobody has; else for the gateway's, which may have a web server.
    pub is_certain: bool,
}

/// Looks, also at the gateway's address if one is given with its name. Takes no longer than 2 s.
pub async fn look(gateway: Option<(IpAddr, &str)>, fwmark: u32) -> Sight {
    let at_gateway = async {
        match gateway {
            Some((address, _)) => ask(address, fwmark).await,
            None => Err(io::ErrorKind::NotFound.into()),
        }
    };
    let (nobody, at_gateway) = tokio::join!(ask(NOBODY, fwmark), at_gateway);
    let seen = nobody.ok().and_then(|answer| judge(&answer, None));
    let seen = seen.or_else(|| judge(&at_gateway.ok()?, gateway.map(|(_, host)| host)));
    seen.map_or(Sight::Clear, Sight::Portal)
}

/// The `host:port` of a page.
pub fn endpoint(page: &str) -> Option<String> {
    let url = Url::parse(page).ok()?;
    Some(format!("{}:{}", url.host()?, url.port_or_known_default()?))
}

/// The header of what answers at port 80.
async fn ask(to: IpAddr, fwmark: u32) -> io::Result<Vec<u8>> {
    let conversation = async {
        let mut stream = connect(SocketAddr::new(to, 80), fwmark).await?;
        let host = match to {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: culvert\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(HEADER_BYTES as u64).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    timeout(ANSWER_WITHIN, conversation).await?
}

async fn connect(to: SocketAddr, fwmark: u32) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    outside::send(&socket, fwmark)?;
    socket.connect(to).await
}

/// What an answer shows; `asked` is the gateway's name or address, or `None` for an address that nobody has.
fn judge(answer: &[u8], asked: Option<&str>) -> Option<Page> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(answer).ok()?; // also one that goes on
    let status = response.code?;
    let location = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("location"));
    let url = location.and_then(|header| page(header.value));
    let is_elsewhere = url.as_ref().is_some_and(|url| !asked.is_some_and(|host| is_of(url, host)));
    let is_portal = match (status, asked) {
        (511, _) => true, // RFC 6585 section 6
        (300..=399, _) => is_elsewhere,
        (200..=299, None) => true, // a page of somebody who is not there
        _ => false,                // a proxy that found nobody, or the gateway's own web server
    };
    let anywhere = || Url::parse("http://192.0.2.213/").ok();
    is_portal.then(|| Some(Page { url: url.or_else(anywhere)?, is_certain: asked.is_none() }))?
}

fn page(location: &[u8]) -> Option<Url> {
    let text = std::str::from_utf8(location).ok().filter(|text| text.len() <= URL_BYTES)?;
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// A page of the gateway's own web server: at its address, or in its domain.
fn is_of(url: &Url, gateway: &str) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => domain(name).eq_ignore_ascii_case(domain(gateway)),
        Some(Host::Ipv4(v4)) => gateway.parse() == Ok(v4),
        Some(Host::Ipv6(v6)) => gateway.parse() == Ok(v6),
        None => false,
    }
}

/// The last two labels of a name.
fn domain(name: &str) -> &str {
    let name = name.trim_end_matches('.');
    name.rmatch_indices('.').nth(1).map_or(name, |(dot, _)| &name[dot + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_answers_for_an_address_that_nobody_has_wants_a_sign_in() {
        let url = |answer: &[u8]| judge(answer, None).map(|page| page.url.to_string());
        let redirect = b"HTTP/1.1 302 Found\r\nServer: x\r\nlocation: https://login.hotel.example/?c=1\r\n\r\n<html>";
        assert_eq!(url(redirect).as_deref(), Some("https://login.hotel.example/?c=1"));
        assert_eq!(url(b"HTTP/1.1 200 OK\r\n\r\n<html>").as_deref(), Some("http://192.0.2.213/"));
        assert_eq!(url(b"HTTP/1.0 511 Network Authentication Required\r\n").as_deref(), Some("http://192.0.2.213/"));
    }

    #[test]
    fn a_proxy_that_finds_nobody_there_is_no_portal() {
        for answer in [
            &b"HTTP/1.1 502 Bad Gateway\r\n\r\n"[..],
            b"HTTP/1.1 504 Gateway Timeout\r\nContent-Type: text/html\r\n\r\n",
            b"HTTP/1.1 403 Forbidden\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"",
            b"\xff\xff\xff",
        ] {
            assert_eq!(judge(answer, None), None, "{answer:?}");
        }
    }

    #[test]
    fn only_a_web_page_is_believed() {
        for location in ["javascript:alert(1)", "file:///etc/passwd", "culvert://enrol#x", "/login", "http://"] {
            let answer = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n");
            assert_eq!(judge(answer.as_bytes(), None), None, "{location}");
        }
        let long = format!("HTTP/1.1 302 Found\r\nLocation: http://a/{}\r\n\r\n", "a".repeat(3000));
        assert_eq!(judge(long.as_bytes(), None), None);
    }

    #[test]
    fn the_gateways_own_web_server_is_no_portal() {
        let moved = b"HTTP/1.1 301 Moved\r\nLocation: https://www.acme.org/\r\n\r\n";
        assert_eq!(judge(moved, Some("vpn.acme.org")), None);
        assert!(judge(moved, Some("vpn.culvert.example")).is_some());
        let judge = |answer: &[u8]| judge(answer, Some("203.0.113.7"));
        assert_eq!(judge(b"HTTP/1.1 200 OK\r\n\r\n"), None);
        assert_eq!(judge(b"HTTP/1.1 301 Moved\r\nLocation: https://203.0.113.7/\r\n\r\n"), None);
        assert_eq!(judge(b"HTTP/1.1 404 Not Found\r\n\r\n"), None);
        let page = judge(b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/login\r\n\r\n").unwrap();
        assert!(!page.is_certain);
    }
}

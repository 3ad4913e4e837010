//! Messages of macOS's routing socket, route(4): what is written to change a route. Pure, bytes only.
//!
//! Layouts from XNU `bsd/net/route.h` (`rt_msghdr`, 92 bytes) and `bsd/net/if_dl.h`; numbers are in the machine's byte
//! order, addresses in the network's. Socket addresses follow the header in the order of the `RTA_` bits, each padded
//! to four bytes.

use std::net::IpAddr;

use ipnet::IpNet;

/// `struct rt_msghdr`.
const HEADER_BYTES: usize = 92;
const RTM_VERSION: u8 = 5;
const RTM_ADD: u8 = 1;
const RTM_DELETE: u8 = 2;
const RTA_DST: i32 = 1;
const RTA_GATEWAY: i32 = 2;
const RTA_NETMASK: i32 = 4;
const RTF_UP: i32 = 0x1;
const RTF_GATEWAY: i32 = 0x2;
const RTF_REJECT: i32 = 0x8;
const RTF_STATIC: i32 = 0x800;
const AF_INET: u8 = 2;
const AF_LINK: u8 = 18;
const AF_INET6: u8 = 30;

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Through the interface with this index.
    Interface(u16),
    /// To this router.
    Router(IpAddr),
    /// Nowhere: refused at once.
    Nowhere,
}

/// A message that adds a route. `seq` comes back in the kernel's answer.
pub fn add(destination: IpNet, via: Via, seq: i32) -> Vec<u8> {
    let flags = RTF_UP | RTF_STATIC;
    let (flags, index, gateway) = match via {
        Via::Interface(index) => (flags, index, link(index)),
        Via::Router(router) => (flags | RTF_GATEWAY, 0, address(router)),
        // route(8) wants a gateway here, and takes this machine itself.
        Via::Nowhere => (flags | RTF_GATEWAY | RTF_REJECT, 0, address(loopback(destination))),
    };
    message(
        RTM_ADD,
        flags,
        index,
        RTA_DST | RTA_GATEWAY | RTA_NETMASK,
        seq,
        &[address(destination.network()), gateway, address(destination.netmask())],
    )
}

/// A message that deletes whatever route there is to a destination.
pub fn delete(destination: IpNet, seq: i32) -> Vec<u8> {
    message(
        RTM_DELETE,
        RTF_STATIC,
        0,
        RTA_DST | RTA_NETMASK,
        seq,
        &[address(destination.network()), address(destination.netmask())],
    )
}

/// What the kernel says of message `seq` of process `pid`: its error number, 0 for success; `None` for other messages.
pub fn answer(bytes: &[u8], pid: i32, seq: i32) -> Option<i32> {
    let number = |at: usize| Some(i32::from_ne_bytes(*bytes.get(at..at + 4)?.first_chunk()?));
    let is_ours = number(16)? == pid && number(20)? == seq && *bytes.get(2)? == RTM_VERSION;
    if is_ours { number(24) } else { None }
}

/// The two halves of a network, which go before it: longer prefixes win.
pub fn halves(net: IpNet) -> Vec<IpNet> {
    net.subnets(net.prefix_len().saturating_add(1)).map_or_else(|_| vec![net], Iterator::collect)
}

fn message(kind: u8, flags: i32, index: u16, addresses: i32, seq: i32, parts: &[Vec<u8>]) -> Vec<u8> {
    let body: usize = parts.iter().map(Vec::len).sum();
    let mut bytes = vec![0; HEADER_BYTES];
    // A message has three addresses at most.
    bytes[0..2].copy_from_slice(&((HEADER_BYTES + body) as u16).to_ne_bytes());
    (bytes[2], bytes[3]) = (RTM_VERSION, kind);
    bytes[4..6].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&addresses.to_ne_bytes());
    bytes[20..24].copy_from_slice(&seq.to_ne_bytes());
    bytes.extend(parts.iter().flatten());
    bytes
}

/// `struct sockaddr_in` (16 bytes) or `struct sockaddr_in6` (28).
fn address(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => [&[16, AF_INET, 0, 0][..], &v4.octets(), &[0; 8]].concat(),
        IpAddr::V6(v6) => [&[28, AF_INET6, 0, 0, 0, 0, 0, 0][..], &v6.octets(), &[0; 4]].concat(),
    }
}

/// `struct sockaddr_dl` (20 bytes) that names an interface by its index alone.
fn link(index: u16) -> Vec<u8> {
    [&[20, AF_LINK][..], &index.to_ne_bytes(), &[0; 16]].concat()
}

fn loopback(destination: IpNet) -> IpAddr {
    match destination {
        IpNet::V4(_) => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpNet::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_through_an_interface_has_its_index_twice_and_no_gateway_flag() {
        let bytes = add("128.0.0.0/1".parse().unwrap(), Via::Interface(7), 42);
        assert_eq!(bytes.len(), 92 + 16 + 20 + 16);
        assert_eq!(bytes[0..2], 144_u16.to_ne_bytes());
        assert_eq!(bytes[2..4], [5, 1]);
        assert_eq!(bytes[4..6], 7_u16.to_ne_bytes());
        assert_eq!(bytes[8..12], 0x801_i32.to_ne_bytes());
        assert_eq!(bytes[12..16], 7_i32.to_ne_bytes());
        assert_eq!(bytes[20..24], 42_i32.to_ne_bytes());
        assert_eq!(bytes[92..108], [16, 2, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[108..110], [20, 18]);
        assert_eq!(bytes[110..112], 7_u16.to_ne_bytes());
        assert_eq!(bytes[128..136], [16, 2, 0, 0, 128, 0, 0, 0]);
    }

    #[test]
    fn a_refused_network_is_rejected_by_this_machine() {
        let bytes = add("8000::/1".parse().unwrap(), Via::Nowhere, 1);
        assert_eq!(bytes.len(), 92 + 3 * 28);
        assert_eq!(bytes[8..12], 0x80B_i32.to_ne_bytes());
        assert_eq!(bytes[92..94], [28, 30]);
        assert_eq!(bytes[100], 0x80);
        let gateway = &bytes[120..148];
        assert_eq!((gateway[0], gateway[23]), (28, 1), "::1");
        assert_eq!(bytes[148 + 8], 0x80, "the mask of /1");
    }

    #[test]
    fn a_route_is_deleted_by_its_destination() {
        let bytes = delete("10.7.0.0/16".parse().unwrap(), 3);
        assert_eq!(bytes.len(), 92 + 32);
        assert_eq!(bytes[3], 2);
        assert_eq!(bytes[12..16], 5_i32.to_ne_bytes());
        assert_eq!(bytes[112..116], [255, 255, 0, 0]);
    }

    #[test]
    fn only_the_answer_to_our_own_message_counts() {
        let mut bytes = add("10.0.0.0/8".parse().unwrap(), Via::Router("192.0.2.1".parse().unwrap()), 9);
        bytes[16..20].copy_from_slice(&77_i32.to_ne_bytes());
        bytes[24..28].copy_from_slice(&17_i32.to_ne_bytes());
        assert_eq!(answer(&bytes, 77, 9), Some(17));
        assert_eq!(answer(&bytes, 77, 8), None);
        assert_eq!(answer(&bytes, 78, 9), None);
        for cut in 0..28 {
            assert_eq!(answer(&bytes[..cut], 77, 9), None, "cut at {cut}");
        }
    }

    #[test]
    fn halves_go_before_the_whole() {
        let of = |net: &str| halves(net.parse().unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of("0.0.0.0/0"), ["0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(of("::/0"), ["::/1", "8000::/1"]);
        assert_eq!(of("192.168.1.0/24"), ["192.168.1.0/25", "192.168.1.128/25"]);
        assert_eq!(of("192.0.2.7/32"), ["192.0.2.7/32"], "a host has none");
    }
}

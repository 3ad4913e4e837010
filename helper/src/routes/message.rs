//! Messages of macOS's routing socket (route(4)). Pure: tested on Linux byte by byte.
//!
//! A message is a `struct rt_msghdr` and then one `sockaddr` for each bit of `rtm_addrs`, in the order of the bits,
//! each padded to four bytes. Numbers are the machine's own, addresses in network order. Layouts and constants: XNU
//! `bsd/net/route.h`, `bsd/net/if_dl.h`, `bsd/netinet/in.h`.

use std::net::IpAddr;

use ipnet::IpNet;

/// `sizeof(struct rt_msghdr)`.
pub(super) const HEADER_BYTES: usize = 92;
/// Longer than any message that is read here.
pub(super) const LONGEST_BYTES: usize = 2048;

const RTM_VERSION: u8 = 5;
const RTM_ADD: u8 = 1;
const RTM_DELETE: u8 = 2;
const RTM_GET: u8 = 4;

const RTF_UP: i32 = 0x1;
const RTF_HOST: i32 = 0x4;
const RTF_REJECT: i32 = 0x8;
const RTF_STATIC: i32 = 0x800;

const RTA_DST: i32 = 0x1;
const RTA_GATEWAY: i32 = 0x2;
const RTA_NETMASK: i32 = 0x4;
const RTA_IFP: i32 = 0x10;

const AF_INET: u8 = 2;
const AF_LINK: u8 = 18;
const AF_INET6: u8 = 30;

/// Asks for a route to `destination` through the interface with this number, or, with `refuse`, that the kernel
/// refuses what goes there for as long as that interface exists.
pub(super) fn add(destination: IpNet, interface: u16, refuse: bool, sequence: i32) -> Vec<u8> {
    let refusal = if refuse { RTF_REJECT } else { 0 };
    Message::to(RTM_ADD, destination, sequence).flags(RTF_UP | RTF_STATIC | refusal).gateway(interface).finish()
}

/// Asks that exactly this route be removed. The kernel does not look through which interface it leads.
pub(super) fn delete(destination: IpNet, sequence: i32) -> Vec<u8> {
    Message::to(RTM_DELETE, destination, sequence).finish()
}

/// Asks for exactly this route.
pub(super) fn get(destination: IpNet, sequence: i32) -> Vec<u8> {
    Message::to(RTM_GET, destination, sequence).interface_wanted().finish()
}

/// What a message says that the kernel sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    kind: u8,
    /// The interface's number.
    pub(super) interface: u16,
    /// Who asked, if somebody did.
    pub(super) pid: i32,
    /// Which question.
    pub(super) sequence: i32,
}

impl Heard {
    /// `None` for what is no message of this version.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        // Messages about interfaces and addresses are shorter, and begin in the same way.
        let (length, version, kind) = (u16::from_ne_bytes(take(bytes, 0)?), *bytes.get(2)?, *bytes.get(3)?);
        if version != RTM_VERSION || usize::from(length) > bytes.len() {
            return None;
        }
        let number = |at| take(bytes, at).map_or(0, i32::from_ne_bytes);
        Some(Self { kind, interface: u16::from_ne_bytes(take(bytes, 4)?), pid: number(16), sequence: number(20) })
    }

    /// True for the answer to [`get`].
    pub(super) fn is_answer(&self, pid: i32, sequence: i32) -> bool {
        self.kind == RTM_GET && self.pid == pid && self.sequence == sequence
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// A message under way: the header's fields, and the addresses so far.
struct Message {
    kind: u8,
    sequence: i32,
    flags: i32,
    which: i32,
    destination: Vec<u8>,
    gateway: Vec<u8>,
    mask: Vec<u8>,
    interface: Vec<u8>,
}

impl Message {
    fn to(kind: u8, destination: IpNet, sequence: i32) -> Self {
        let destination = destination.trunc();
        let is_host = destination.prefix_len() == destination.max_prefix_len();
        // A host's route with a mask would be shadowed by the kernel's own clones of it.
        let (flags, which, mask) = if is_host {
            (RTF_HOST, RTA_DST, vec![])
        } else {
            (0, RTA_DST | RTA_NETMASK, address(destination.netmask()))
        };
        let destination = address(destination.network());
        Self { kind, sequence, flags, which, destination, gateway: vec![], mask, interface: vec![] }
    }

    fn flags(mut self, flags: i32) -> Self {
        self.flags |= flags;
        self
    }

    fn gateway(mut self, interface: u16) -> Self {
        self.which |= RTA_GATEWAY;
        self.gateway = link(interface);
        self
    }

    fn interface_wanted(mut self) -> Self {
        self.which |= RTA_IFP;
        self.interface = link(0);
        self
    }

    fn finish(self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        for address in [&self.destination, &self.gateway, &self.mask, &self.interface] {
            bytes.extend(address); // each a multiple of four
        }
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX); // four addresses at most
        bytes[0..2].copy_from_slice(&length.to_ne_bytes());
        (bytes[2], bytes[3]) = (RTM_VERSION, self.kind);
        bytes[8..12].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.which.to_ne_bytes());
        bytes[20..24].copy_from_slice(&self.sequence.to_ne_bytes()); // the kernel fills in who asks
        bytes
    }
}

/// `struct sockaddr_in` (16 bytes) or `struct sockaddr_in6` (28).
fn address(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = vec![16, AF_INET, 0, 0];
            bytes.extend(v4.octets());
            bytes.resize(16, 0);
            bytes
        }
        IpAddr::V6(v6) => {
            let mut bytes = vec![28, AF_INET6, 0, 0, 0, 0, 0, 0];
            bytes.extend(v6.octets());
            bytes.resize(28, 0);
            bytes
        }
    }
}

/// `struct sockaddr_dl` (20 bytes) that names an interface by its number.
fn link(interface: u16) -> Vec<u8> {
    let mut bytes = vec![20, AF_LINK];
    bytes.extend(interface.to_ne_bytes());
    bytes.resize(20, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn half_of_all_addresses_through_the_tunnel() {
        let bytes = add(net("128.0.0.0/1"), 21, false, 7);
        #[rustfmt::skip]
        let expected = [
            // Length, version, RTM_ADD; interface, padding; UP|STATIC; DST|GATEWAY|NETMASK.
            144, 0, 5, 1,  0, 0, 0, 0,  0x01, 8, 0, 0,  7, 0, 0, 0,
            // Pid, sequence, errno, use, inits.
            0, 0, 0, 0,  7, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,
        ];
        assert_eq!(bytes[..36], expected);
        assert_eq!(bytes[36..HEADER_BYTES], [0; 56], "no metrics");
        #[rustfmt::skip]
        let addresses = [
            16, 2, 0, 0,  128, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,
            20, 18, 21, 0,  0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,
            16, 2, 0, 0,  128, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(bytes[HEADER_BYTES..], addresses);
    }

    #[test]
    fn a_host_has_no_mask() {
        let bytes = add(net("100.77.0.1/32"), 21, false, 1);
        assert_eq!(bytes.len(), HEADER_BYTES + 16 + 20);
        assert_eq!(i32::from_ne_bytes(take(&bytes, 8).unwrap()), RTF_UP | RTF_STATIC | RTF_HOST);
        assert_eq!(i32::from_ne_bytes(take(&bytes, 12).unwrap()), RTA_DST | RTA_GATEWAY);
    }

    #[test]
    fn half_of_ipv6_refused_while_the_interface_exists() {
        let bytes = add(net("8000::/1"), 21, true, 1);
        assert_eq!(bytes.len(), HEADER_BYTES + 28 + 20 + 28);
        assert_eq!(i32::from_ne_bytes(take(&bytes, 8).unwrap()), RTF_UP | RTF_STATIC | RTF_REJECT);
        let destination = &bytes[HEADER_BYTES..HEADER_BYTES + 28];
        assert_eq!((destination[0], destination[1], destination[8]), (28, 30, 0x80));
        let mask = &bytes[HEADER_BYTES + 48..];
        assert_eq!((mask[0], mask[1], mask[8], mask[9]), (28, 30, 0x80, 0));
    }

    #[test]
    fn a_removal_names_the_route_and_nothing_else() {
        let bytes = delete(net("10.7.0.0/16"), 3);
        assert_eq!((bytes.len(), bytes[3]), (HEADER_BYTES + 32, RTM_DELETE));
        assert_eq!(bytes[HEADER_BYTES + 4..HEADER_BYTES + 8], [10, 7, 0, 0]);
        assert_eq!(bytes[HEADER_BYTES + 20..HEADER_BYTES + 24], [255, 255, 0, 0]);
    }

    #[test]
    fn a_question_asks_for_the_interface_too() {
        let bytes = get(net("fd00:77::/64"), 5);
        assert_eq!(bytes.len(), HEADER_BYTES + 28 + 28 + 20);
        assert_eq!(i32::from_ne_bytes(take(&bytes, 12).unwrap()), RTA_DST | RTA_NETMASK | RTA_IFP);
        assert_eq!(bytes[bytes.len() - 20..][..2], [20, AF_LINK]);
    }

    #[test]
    fn an_answer_is_told_from_those_to_others() {
        let mut bytes = get(net("0.0.0.0/1"), 5);
        bytes[4..6].copy_from_slice(&21u16.to_ne_bytes());
        bytes[16..20].copy_from_slice(&4711i32.to_ne_bytes());
        let heard = Heard::parse(&bytes).unwrap();
        assert!(heard.is_answer(4711, 5) && heard.interface == 21);
        assert!(!heard.is_answer(4711, 6) && !heard.is_answer(4712, 5));
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_sends_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Heard::parse(&bytes);
        }

        #[test]
        fn every_message_is_as_long_as_it_says_and_aligned(bits: u128, length in 0..=128u8, v4: bool) {
            let destination = if v4 {
                IpNet::new(std::net::Ipv4Addr::from(bits as u32).into(), length.min(32)).unwrap()
            } else {
                IpNet::new(std::net::Ipv6Addr::from(bits).into(), length).unwrap()
            };
            for bytes in [add(destination, 9, false, 1), delete(destination, 1), get(destination, 1)] {
                prop_assert_eq!(usize::from(u16::from_ne_bytes(take(&bytes, 0).unwrap())), bytes.len());
                prop_assert_eq!(bytes.len() % 4, 0);
                prop_assert!(bytes.len() <= LONGEST_BYTES);
                prop_assert!(Heard::parse(&bytes).is_some());
            }
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }
}

//! What a macOS utun looks like from outside: framing, C layouts, ioctl numbers, one packet at a time.
//!
//! Nothing here asks for a Mac, so all of it is compiled and tested on Linux too; `macos` holds the
//! calls that only Darwin has. Sources: XNU `bsd/net/if_utun.{c,h}`, `bsd/sys/kern_control.h`,
//! `bsd/netinet/in_var.h`, `bsd/netinet6/in6_var.h`, `bsd/sys/sockio.h`, `bsd/sys/socket_private.h`.
#![cfg_attr(not(target_os = "macos"), allow(dead_code, reason = "on other systems only the tests below use this file"))]

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{align_of, offset_of, size_of};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use rustix::io::Errno;

/// Bytes of address family before every packet, in network byte order.
pub(super) const FAMILY_LEN: usize = 4;

/// The name by which the kernel finds its utun controller.
pub(super) const CONTROL_NAME: &[u8] = b"com.apple.net.utun_control";

/// `UTUN_OPT_MAX_PENDING_PACKETS`: packets the kernel queues before it waits for the reader.
/// Its default of 1 would make every batch one packet long.
pub(super) const UTUN_OPT_MAX_PENDING_PACKETS: c_int = 16;

/// `IN6_IFF_NODAD`: usable at once. Nobody else is on the link to hold the address.
pub(super) const IN6_IFF_NODAD: c_int = 0x20;

/// `ND6_INFINITE_LIFETIME`.
pub(super) const INFINITE_LIFETIME: u32 = u32::MAX;

/// `CTLIOCGINFO`: the id of a kernel control by its name.
pub(super) const CTLIOCGINFO: c_ulong = iowr(b'N', 3, size_of::<CtlInfo>());
/// `SIOCSIFMTU`.
pub(super) const SIOCSIFMTU: c_ulong = iow(b'i', 52, size_of::<IfreqMtu>());
/// `SIOCAIFADDR`: adds an IPv4 address.
pub(super) const SIOCAIFADDR: c_ulong = iow(b'i', 26, size_of::<Ifaliasreq>());
/// `SIOCAIFADDR_IN6`: adds an IPv6 address.
pub(super) const SIOCAIFADDR_IN6: c_ulong = iow(b'i', 26, size_of::<In6Aliasreq>());

const AF_INET: u8 = 2;
const AF_INET6: u8 = 30; // Darwin's number
const AF_SYSTEM: u8 = 32;
const AF_SYS_CONTROL: u16 = 2;

/// `_IOW`: the caller gives `len` bytes.
const fn iow(group: u8, number: u8, len: usize) -> c_ulong {
    const IOC_IN: c_ulong = 0x8000_0000;
    IOC_IN | ioc(group, number, len)
}

/// `_IOWR`: the caller gives `len` bytes and gets them back changed.
const fn iowr(group: u8, number: u8, len: usize) -> c_ulong {
    const IOC_INOUT: c_ulong = 0xC000_0000;
    IOC_INOUT | ioc(group, number, len)
}

const fn ioc(group: u8, number: u8, len: usize) -> c_ulong {
    const IOCPARM_MASK: usize = 0x1fff;
    assert!(len <= IOCPARM_MASK, "an ioctl argument is at most 8191 bytes");
    ((len as c_ulong) << 16) | ((group as c_ulong) << 8) | number as c_ulong
}

/// `struct ctl_info`.
#[repr(C)]
pub(super) struct CtlInfo {
    pub(super) id: u32,
    pub(super) name: [u8; 96],
}

impl CtlInfo {
    /// Asks for the utun controller.
    pub(super) fn utun() -> Self {
        let mut name = [0; 96];
        name[..CONTROL_NAME.len()].copy_from_slice(CONTROL_NAME);
        Self { id: 0, name }
    }
}

/// `struct sockaddr_ctl`.
#[repr(C)]
pub(super) struct SockaddrCtl {
    len: u8,
    family: u8,
    sysaddr: u16,
    id: u32,
    unit: u32,
    reserved: [u32; 5],
}

impl SockaddrCtl {
    /// `utunN` for `Some(N)`; else the kernel chooses a free one (unit 0), so that no name can be taken already.
    pub(super) fn unit(control_id: u32, number: Option<u32>) -> Self {
        Self {
            len: size_of::<Self>() as u8,
            family: AF_SYSTEM,
            sysaddr: AF_SYS_CONTROL,
            id: control_id,
            unit: number.map_or(0, |number| number.saturating_add(1)),
            reserved: [0; 5],
        }
    }
}

/// `IFNAMSIZ` bytes, the name and its NUL.
pub(super) type Ifname = [u8; 16];

/// The interface's name as the ioctls take it.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for an empty name and for one that leaves no room for its NUL.
pub(super) fn ifname(name: &str) -> io::Result<Ifname> {
    let mut out = Ifname::default();
    if name.is_empty() || name.len() >= out.len() || name.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("'{name}' is no interface name")));
    }
    out[..name.len()].copy_from_slice(name.as_bytes());
    Ok(out)
}

/// `struct ifreq` with `ifr_mtu`; the union is 16 bytes long.
#[repr(C)]
pub(super) struct IfreqMtu {
    pub(super) name: Ifname,
    pub(super) mtu: c_int,
    pub(super) rest_of_union: [u8; 12],
}

/// Darwin's `struct sockaddr_in`, whose first byte is its length.
#[repr(C)]
pub(super) struct SockaddrIn {
    len: u8,
    family: u8,
    port: u16,
    address: [u8; 4],
    zero: [u8; 8],
}

impl SockaddrIn {
    fn new(address: Ipv4Addr) -> Self {
        Self { len: size_of::<Self>() as u8, family: AF_INET, port: 0, address: address.octets(), zero: [0; 8] }
    }
}

/// Darwin's `struct sockaddr_in6`.
#[repr(C)]
pub(super) struct SockaddrIn6 {
    len: u8,
    family: u8,
    port: u16,
    flowinfo: u32,
    address: [u8; 16],
    scope_id: u32,
}

impl SockaddrIn6 {
    fn new(address: Ipv6Addr) -> Self {
        Self {
            len: size_of::<Self>() as u8,
            family: AF_INET6,
            port: 0,
            flowinfo: 0,
            address: address.octets(),
            scope_id: 0,
        }
    }

    /// An absent address.
    fn none() -> Self {
        Self { len: 0, family: 0, port: 0, flowinfo: 0, address: [0; 16], scope_id: 0 }
    }
}

/// `struct ifaliasreq`.
#[repr(C)]
pub(super) struct Ifaliasreq {
    name: Ifname,
    address: SockaddrIn,
    destination: SockaddrIn,
    mask: SockaddrIn,
}

impl Ifaliasreq {
    /// One host address. A point-to-point interface needs a far end; it is the address itself, so
    /// that the kernel adds no route but the host route to us.
    pub(super) fn host(name: Ifname, address: Ipv4Addr) -> Self {
        Self {
            name,
            address: SockaddrIn::new(address),
            destination: SockaddrIn::new(address),
            mask: SockaddrIn::new(Ipv4Addr::BROADCAST),
        }
    }
}

/// `struct in6_addrlifetime` of 64-bit Darwin.
#[repr(C)]
pub(super) struct In6Addrlifetime {
    expire: i64,
    preferred: i64,
    valid_seconds: u32,
    preferred_seconds: u32,
}

/// `struct in6_aliasreq`.
#[repr(C)]
pub(super) struct In6Aliasreq {
    name: Ifname,
    address: SockaddrIn6,
    destination: SockaddrIn6,
    prefix_mask: SockaddrIn6,
    flags: c_int,
    lifetime: In6Addrlifetime,
}

impl In6Aliasreq {
    /// One host address, for ever and usable at once.
    pub(super) fn host(name: Ifname, address: Ipv6Addr) -> Self {
        Self {
            name,
            address: SockaddrIn6::new(address),
            destination: SockaddrIn6::none(), // IPv6 takes a far end only with another address
            prefix_mask: SockaddrIn6::new(Ipv6Addr::from_bits(u128::MAX)),
            flags: IN6_IFF_NODAD,
            lifetime: In6Addrlifetime {
                expire: 0,
                preferred: 0,
                valid_seconds: INFINITE_LIFETIME,
                preferred_seconds: INFINITE_LIFETIME,
            },
        }
    }
}

/// `struct msghdr_x` of `recvmsg_x` and `sendmsg_x`.
#[repr(C)]
pub(super) struct MsghdrX {
    pub(super) name: *mut c_void,
    pub(super) namelen: u32,
    pub(super) iov: *mut libc::iovec,
    pub(super) iovlen: c_int,
    pub(super) control: *mut c_void,
    pub(super) controllen: u32,
    pub(super) flags: c_int,
    pub(super) datalen: usize,
}

impl MsghdrX {
    /// A header over `iovlen` pieces at `iov`; no name and no control data, as a utun wants it.
    pub(super) const fn over(iov: *mut libc::iovec, iovlen: c_int) -> Self {
        Self {
            name: std::ptr::null_mut(),
            namelen: 0,
            iov,
            iovlen,
            control: std::ptr::null_mut(),
            controllen: 0,
            flags: 0,
            datalen: 0,
        }
    }
}

/// `recvmsg_x` (system call 480): returns how many messages came. Not in any public header.
pub(super) type RecvmsgX = unsafe extern "C" fn(c_int, *mut MsghdrX, c_uint, c_int) -> isize;
/// `sendmsg_x` (system call 481): returns how many messages went.
pub(super) type SendmsgX = unsafe extern "C" fn(c_int, *const MsghdrX, c_uint, c_int) -> isize;

// The layouts as a 64-bit Darwin compiler lays them out. Wrong ones must not compile anywhere.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<c_char>() == 1);
    assert!(size_of::<CtlInfo>() == 100);
    assert!(size_of::<SockaddrCtl>() == 32);
    assert!(offset_of!(SockaddrCtl, id) == 4 && offset_of!(SockaddrCtl, unit) == 8);
    assert!(size_of::<IfreqMtu>() == 32 && offset_of!(IfreqMtu, mtu) == 16);
    assert!(size_of::<SockaddrIn>() == 16 && size_of::<SockaddrIn6>() == 28);
    assert!(offset_of!(SockaddrIn, address) == 4 && offset_of!(SockaddrIn6, address) == 8);
    assert!(size_of::<Ifaliasreq>() == 64);
    assert!(offset_of!(Ifaliasreq, destination) == 32 && offset_of!(Ifaliasreq, mask) == 48);
    assert!(size_of::<In6Addrlifetime>() == 24);
    assert!(size_of::<In6Aliasreq>() == 128);
    assert!(offset_of!(In6Aliasreq, prefix_mask) == 72);
    assert!(offset_of!(In6Aliasreq, flags) == 100 && offset_of!(In6Aliasreq, lifetime) == 104);
    assert!(size_of::<MsghdrX>() == 56 && align_of::<MsghdrX>() == 8);
    assert!(offset_of!(MsghdrX, namelen) == 8 && offset_of!(MsghdrX, iov) == 16);
    assert!(offset_of!(MsghdrX, iovlen) == 24 && offset_of!(MsghdrX, control) == 32);
    assert!(offset_of!(MsghdrX, controllen) == 40 && offset_of!(MsghdrX, flags) == 44);
    assert!(offset_of!(MsghdrX, datalen) == 48);
};

/// The bytes before a packet, by its version nibble; `None` for what is no IP packet.
pub(super) fn family_of(packet: &[u8]) -> Option<[u8; FAMILY_LEN]> {
    match packet.first()? >> 4 {
        4 => Some([0, 0, 0, AF_INET]),
        6 => Some([0, 0, 0, AF_INET6]),
        _ => None,
    }
}

/// The packet in a message of `message_len` bytes (family included) whose rest lies in `slot`.
///
/// `None` for a message that was cut to the slot, is empty, or whose family contradicts its packet.
pub(super) fn received(family: [u8; FAMILY_LEN], slot: &[u8], message_len: usize, truncated: bool) -> Option<&[u8]> {
    if truncated {
        return None;
    }
    let packet = slot.get(..message_len.checked_sub(FAMILY_LEN)?)?;
    (family_of(packet)? == family).then_some(packet)
}

/// What the kernel's refusal of one message means for the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The queue is full: come back when the descriptor is writable.
    Full,
    /// The call was interrupted: once more.
    Again,
    /// This packet is malformed to the kernel: leave it and take the next.
    Packet,
    /// The interface is gone.
    Device,
}

impl Refused {
    pub(super) fn by(errno: Errno) -> Self {
        match errno {
            // A utun's socket buffer being full is ENOBUFS, not EAGAIN (`kern_control.c`).
            Errno::AGAIN | Errno::NOBUFS => Self::Full,
            Errno::INTR => Self::Again,
            Errno::INVAL | Errno::MSGSIZE | Errno::AFNOSUPPORT => Self::Packet,
            _ => Self::Device,
        }
    }
}

/// Reads one message with its family in a separate piece, so that no byte of the packet moves.
///
/// Returns the message's length, family included; `None` when nothing waits. For a kernel without
/// `recvmsg_x`.
///
/// # Errors
/// What the OS says once the interface is gone.
pub(super) fn read_one(fd: impl AsFd, family: &mut [u8; FAMILY_LEN], slot: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        let mut pieces = [IoSliceMut::new(family), IoSliceMut::new(slot)];
        match rustix::io::readv(&fd, &mut pieces) {
            Ok(0) => return Err(closed()),
            Ok(len) => return Ok(Some(len)),
            Err(errno) => match Refused::by(errno) {
                Refused::Full => return Ok(None),
                Refused::Again => {}
                Refused::Packet | Refused::Device => return Err(errno.into()),
            },
        }
    }
}

/// Writes one packet. Returns false when the device is full; a packet that the kernel refuses as
/// malformed counts as written. For a kernel without `sendmsg_x`.
///
/// # Errors
/// What the OS says once the interface is gone.
pub(super) fn write_one(fd: impl AsFd, packet: &[u8]) -> io::Result<bool> {
    let Some(family) = family_of(packet) else { return Ok(true) };
    loop {
        match rustix::io::writev(&fd, &[IoSlice::new(&family), IoSlice::new(packet)]) {
            Ok(_) => return Ok(true),
            Err(errno) => match Refused::by(errno) {
                Refused::Full => return Ok(false),
                Refused::Again => {}
                Refused::Packet => return Ok(true),
                Refused::Device => return Err(errno.into()),
            },
        }
    }
}

/// The utun has been detached: the kernel closed its end.
pub(super) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel removed the utun interface")
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

    use super::*;

    #[test]
    fn ioctl_numbers_are_those_of_darwin() {
        // As printed by a C program on a Mac; also in wireguard-go, tun-rs and XNU's own tools.
        assert_eq!(CTLIOCGINFO, 0xc064_4e03);
        assert_eq!(SIOCSIFMTU, 0x8020_6934);
        assert_eq!(SIOCAIFADDR, 0x8040_691a);
        assert_eq!(SIOCAIFADDR_IN6, 0x8080_691a);
    }

    #[test]
    fn a_name_that_leaves_no_room_for_its_nul_is_refused() {
        assert_eq!(&ifname("utun7").unwrap()[..6], b"utun7\0");
        assert!(ifname("fifteen_letters").is_ok());
        for bad in ["", "sixteen_letters_", "utun\u{0}7"] {
            assert_eq!(ifname(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_host_address_reaches_nobody_else() {
        let v4 = Ifaliasreq::host(ifname("utun7").unwrap(), Ipv4Addr::new(100, 64, 0, 9));
        assert_eq!((v4.address.len, v4.address.family), (16, 2));
        assert_eq!(v4.address.address, [100, 64, 0, 9]);
        assert_eq!(v4.destination.address, v4.address.address);
        assert_eq!(v4.mask.address, [255; 4]);

        let v6 = In6Aliasreq::host(ifname("utun7").unwrap(), Ipv6Addr::LOCALHOST);
        assert_eq!((v6.address.len, v6.address.family), (28, 30));
        assert_eq!(v6.prefix_mask.address, [255; 16]);
        assert_eq!((v6.destination.len, v6.flags), (0, 0x20));
        assert_eq!(v6.lifetime.valid_seconds, u32::MAX);
    }

    #[test]
    fn the_family_follows_the_version_nibble() {
        assert_eq!(family_of(&[0x45, 0]), Some([0, 0, 0, 2]));
        assert_eq!(family_of(&[0x60, 0]), Some([0, 0, 0, 30]));
        assert_eq!(family_of(&[0x01]), None);
        assert_eq!(family_of(&[]), None);
    }

    #[test]
    fn a_cut_or_contradictory_message_is_no_packet() {
        let (v4, v6) = ([0, 0, 0, 2], [0, 0, 0, 30]);
        let slot = [0x45; 32];
        assert_eq!(received(v4, &slot, 4 + 20, false), Some(&slot[..20]));
        assert_eq!(received(v4, &slot, 4 + 20, true), None, "cut");
        assert_eq!(received(v6, &slot, 4 + 20, false), None, "family of another version");
        assert_eq!(received(v4, &slot, 4, false), None, "no packet");
        assert_eq!(received(v4, &slot, 3, false), None, "not even a family");
        assert_eq!(received(v4, &slot, 4 + 33, false), None, "longer than its slot");
    }

    #[test]
    fn a_full_queue_is_no_error_and_a_bad_packet_stops_nothing() {
        assert_eq!(Refused::by(Errno::NOBUFS), Refused::Full);
        assert_eq!(Refused::by(Errno::AGAIN), Refused::Full);
        assert_eq!(Refused::by(Errno::INTR), Refused::Again);
        assert_eq!(Refused::by(Errno::MSGSIZE), Refused::Packet);
        assert_eq!(Refused::by(Errno::NXIO), Refused::Device);
    }

    #[test]
    fn a_packet_crosses_with_its_family_in_front() {
        let (near, far) = pair();
        let packet = [&[0x60][..], &[7; 1279]].concat();
        assert!(write_one(&near, &packet).unwrap());

        let (mut family, mut slot) = ([0; FAMILY_LEN], [0; 2048]);
        let len = read_one(&far, &mut family, &mut slot).unwrap().unwrap();
        assert_eq!(len, 4 + 1280);
        assert_eq!(family, [0, 0, 0, 30]);
        assert_eq!(received(family, &slot, len, false), Some(&packet[..]));
        assert_eq!(read_one(&far, &mut family, &mut slot).unwrap(), None, "and nothing else waits");
    }

    #[test]
    fn what_is_no_ip_packet_is_not_written() {
        let (near, far) = pair();
        assert!(write_one(&near, &[0x01, 2, 3]).unwrap());
        assert_eq!(read_one(&far, &mut [0; FAMILY_LEN], &mut [0; 64]).unwrap(), None);
    }

    #[test]
    fn a_full_device_says_so_and_takes_more_once_drained() {
        let (near, far) = pair();
        sockopt::set_socket_send_buffer_size(&near, 4096).unwrap();
        let packet = [0x45; 1400];
        let mut written = 0;
        while write_one(&near, &packet).unwrap() {
            written += 1;
            assert!(written < 10_000, "the queue is bounded");
        }
        assert!(written > 0);
        read_one(&far, &mut [0; FAMILY_LEN], &mut [0; 2048]).unwrap().unwrap();
        assert!(write_one(&near, &packet).unwrap());
    }

    /// Two ends that keep message boundaries, as a utun's socket does.
    fn pair() -> (OwnedFd, OwnedFd) {
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::empty(), None).unwrap();
        rustix::io::ioctl_fionbio(&near, true).unwrap();
        rustix::io::ioctl_fionbio(&far, true).unwrap();
        (near, far)
    }
}

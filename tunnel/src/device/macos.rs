//! The macOS utun: created, given addresses, read and written in batches. Needs root.
//!
//! The crates for this lack IPv6 or batches, so it is ours. A utun belongs to the socket that made
//! it: when the process ends, however it ends, the kernel removes the interface with its addresses
//! and every route through it. It has no offload, so frames are single packets. Layouts, numbers and
//! the one-packet path are in `utun`, where Linux tests them; here is what only Darwin has.
//! Sources: XNU `bsd/net/if_utun.c`, `bsd/kern/kern_control.c`, `bsd/kern/uipc_syscalls.c`.
#![allow(unsafe_code, reason = "kernel control sockets, ioctls and two system calls that libc does not wrap")]

use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::io;
use std::mem::{size_of, size_of_val};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, FdFlags};

use super::utun::{self, FAMILY_LEN, MsghdrX, Refused};
use super::{Device, Offload};
use crate::segment::{Frame, Intake, SuperPacket, VnetHeader};

/// Messages per system call. Three times quinn-udp's 32; the kernel's own cap
/// (`kern.ipc.somaxrecvmsgx`) is 256.
const BATCH: usize = 96;

/// Packets that the kernel may queue for us: 8 MiB of 1500-byte packets, and then some.
const PENDING_PACKETS: c_int = 4096;

/// What `SO_RCVBUF` is asked to be, in bytes; halved until the kernel agrees.
const RECEIVE_BUFFER: c_int = 8 * 1024 * 1024;
/// The kernel's own default, below which there is no point in asking.
const RECEIVE_BUFFER_LEAST: c_int = 512 * 1024;

/// What the kernel gives a new utun, in bytes.
const DEFAULT_MTU: u16 = 1500;

// What libc does declare must agree with our own layouts, which Linux tests.
const _: () = {
    assert!(size_of::<libc::ctl_info>() == size_of::<utun::CtlInfo>());
    assert!(size_of::<libc::sockaddr_ctl>() == size_of::<utun::SockaddrCtl>());
    assert!(size_of::<libc::ifreq>() == size_of::<utun::IfreqMtu>());
    assert!(size_of::<libc::ifaliasreq>() == size_of::<utun::Ifaliasreq>());
    assert!(size_of::<libc::in6_addrlifetime>() == size_of::<utun::In6Addrlifetime>());
    assert!(libc::CTLIOCGINFO == utun::CTLIOCGINFO);
};

/// One utun interface. Dropping it removes the interface, its addresses and its routes.
#[derive(Debug)]
pub struct Utun {
    fd: OwnedFd,
    name: String,
    calls: BatchCalls,
    families: Box<[[u8; FAMILY_LEN]; BATCH]>,
    /// [`BATCH`] slots of `slot_bytes` each.
    slots: Vec<u8>,
    slot_bytes: usize,
}

impl Utun {
    /// Creates an interface `utunN`, the kernel choosing N. Up, without addresses, MTU 1500.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] without root; whatever else the OS says.
    pub fn create() -> io::Result<Self> {
        Self::with_number(None)
    }

    /// Creates the interface of this name, `utunN`, with N at most 65,535.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for another name, [`io::ErrorKind::ResourceBusy`] for one that is taken, else
    /// as [`Self::create`].
    pub fn open(name: &str) -> io::Result<Self> {
        let number = name.strip_prefix("utun").and_then(|number| number.parse::<u16>().ok());
        let number = number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the name is not utunN"))?;
        Self::with_number(Some(number.into()))
    }

    fn with_number(number: Option<u32>) -> io::Result<Self> {
        let fd = control_socket()?;
        // A child that inherits the descriptor would keep the interface alive after our end.
        rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
        connect_unit(&fd, number)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        raise_receive_buffer(&fd)?;
        set_option(&fd, libc::SYSPROTO_CONTROL, utun::UTUN_OPT_MAX_PENDING_PACKETS, PENDING_PACKETS)?;
        let name = interface_name(&fd)?;
        let mut device = Self {
            fd,
            name,
            calls: BatchCalls::find(),
            families: Box::new([[0; FAMILY_LEN]; BATCH]),
            slots: Vec::new(),
            slot_bytes: 0,
        };
        device.fit_slots(DEFAULT_MTU);
        Ok(device)
    }

    /// Makes room for packets of `mtu_bytes`. Never shrinks: longer ones may still be queued.
    fn fit_slots(&mut self, mtu_bytes: u16) {
        self.slot_bytes = self.slot_bytes.max(usize::from(mtu_bytes));
        self.slots.resize(self.slot_bytes * BATCH, 0);
    }

    /// One `recvmsg_x` of at most `budget` messages; returns how many came.
    fn receive_many(
        &mut self,
        recvmsg_x: utun::RecvmsgX,
        budget: usize,
        take: &mut dyn FnMut(Frame<'_>),
    ) -> io::Result<usize> {
        let wanted = budget.min(BATCH);
        let slot_bytes = self.slot_bytes;
        let mut pieces = [[EMPTY; 2]; BATCH];
        let mut messages = [const { MsghdrX::over(std::ptr::null_mut(), 0) }; BATCH];
        let buffers = self.families.iter_mut().zip(self.slots.chunks_exact_mut(slot_bytes));
        for ((message, piece), (family, slot)) in messages.iter_mut().zip(&mut pieces).zip(buffers).take(wanted) {
            *piece = [iovec(family.as_mut_ptr(), FAMILY_LEN), iovec(slot.as_mut_ptr(), slot_bytes)];
            *message = MsghdrX::over(piece.as_mut_ptr(), 2);
        }
        let came = loop {
            // SAFETY: the first `wanted` headers point to two valid pieces each, which point into
            // `families` and `slots`; nothing else uses those until the call returns.
            let came = unsafe { recvmsg_x(self.fd.as_raw_fd(), messages.as_mut_ptr(), wanted as c_uint, 0) };
            match check(came) {
                Ok(0) => return Err(utun::closed()),
                Ok(came) => break came,
                Err(errno) => match Refused::by(errno) {
                    Refused::Full => return Ok(0),
                    Refused::Again => {}
                    Refused::Packet | Refused::Device => return Err(errno.into()),
                },
            }
        };
        let buffers = self.families.iter().zip(self.slots.chunks_exact(slot_bytes));
        for (message, (family, slot)) in messages.iter().zip(buffers).take(came) {
            let truncated = message.flags & libc::MSG_TRUNC != 0;
            if let Some(packet) = utun::received(*family, slot, message.datalen, truncated) {
                take(Frame::lent(VnetHeader::default(), packet));
            }
        }
        Ok(came)
    }

    /// One `readv`; returns how many messages came, 0 or 1.
    fn receive_one(&mut self, take: &mut dyn FnMut(Frame<'_>)) -> io::Result<usize> {
        let slot = &mut self.slots[..self.slot_bytes];
        let Some(len) = utun::read_one(&self.fd, &mut self.families[0], slot)? else { return Ok(0) };
        // `readv` cuts without a word; a packet cannot be longer than its slot, see `fit_slots`.
        if let Some(packet) = utun::received(self.families[0], slot, len, false) {
            take(Frame::lent(VnetHeader::default(), packet));
        }
        Ok(1)
    }

    /// One `sendmsg_x` of at most [`BATCH`] frames; returns how many were taken, and whether the
    /// device is full.
    fn send_many(&self, sendmsg_x: utun::SendmsgX, frames: &[SuperPacket]) -> io::Result<(usize, bool)> {
        let mut families = [[0; FAMILY_LEN]; BATCH];
        let mut pieces = [[EMPTY; 2]; BATCH];
        let mut messages = [const { MsghdrX::over(std::ptr::null_mut(), 0) }; BATCH];
        let mut ready = 0;
        let slots = messages.iter_mut().zip(&mut pieces).zip(&mut families);
        for (frame, ((message, piece), family)) in frames.iter().zip(slots) {
            // What is no IP packet ends the batch here, and is passed over once it is the first.
            let Some((packet, its_family)) = single(frame) else { break };
            *family = its_family;
            // `sendmsg_x` only reads what the pieces point to; `iovec` has no const form.
            *piece = [iovec(family.as_mut_ptr(), FAMILY_LEN), iovec(packet.as_ptr().cast_mut(), packet.len())];
            *message = MsghdrX::over(piece.as_mut_ptr(), 2);
            message.datalen = FAMILY_LEN + packet.len();
            ready += 1;
        }
        if ready == 0 {
            return Ok((frames.len().min(1), false));
        }
        loop {
            // SAFETY: the first `ready` headers point to two valid pieces each, over `families`
            // and over packets that `frames` holds; the kernel only reads them.
            let sent = unsafe { sendmsg_x(self.fd.as_raw_fd(), messages.as_ptr(), ready as c_uint, 0) };
            match check(sent) {
                Ok(sent) => return Ok((sent, false)),
                Err(errno) => match Refused::by(errno) {
                    Refused::Full => return Ok((0, true)),
                    Refused::Again => {}
                    Refused::Packet => return Ok((1, false)),
                    Refused::Device => return Err(errno.into()),
                },
            }
        }
    }
}

impl Device for Utun {
    fn name(&self) -> &str {
        &self.name
    }

    fn offload(&self) -> Offload {
        Offload::default()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn read_batch(
        &mut self,
        budget: usize,
        _intake: &mut Intake,
        take: &mut dyn FnMut(Frame<'_>),
    ) -> io::Result<usize> {
        let mut read = 0;
        while read < budget {
            let (came, most) = match self.calls.receive {
                Some(recvmsg_x) => (self.receive_many(recvmsg_x, budget - read, take)?, (budget - read).min(BATCH)),
                None => (self.receive_one(take)?, 1),
            };
            read += came;
            if came < most {
                break;
            }
        }
        Ok(read)
    }

    fn write_batch(&mut self, frames: &[SuperPacket]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < frames.len() {
            let (sent, full) = match self.calls.send {
                Some(sendmsg_x) => self.send_many(sendmsg_x, &frames[taken..])?,
                None => match single(&frames[taken]) {
                    Some((packet, _)) if !utun::write_one(&self.fd, packet)? => (0, true),
                    _ => (1, false),
                },
            };
            taken += sent;
            if full {
                break;
            }
        }
        Ok(taken)
    }

    fn set_mtu(&mut self, mtu_bytes: u16) -> io::Result<()> {
        self.fit_slots(mtu_bytes);
        set_mtu(&self.name, mtu_bytes)
    }
}

/// Sets an interface's MTU.
///
/// # Errors
/// Whatever the OS says; [`io::ErrorKind::InvalidInput`] for what is no interface name.
pub fn set_mtu(interface: &str, mtu_bytes: u16) -> io::Result<()> {
    let request =
        utun::IfreqMtu { name: utun::ifname(interface)?, mtu: c_int::from(mtu_bytes), rest_of_union: [0; 12] };
    ioctl(&any_socket(libc::AF_INET)?, utun::SIOCSIFMTU, &request)
}

/// Gives the interface one host address, usable at once. It goes when the interface goes.
///
/// # Errors
/// Whatever the OS says; [`io::ErrorKind::InvalidInput`] for what is no interface name.
pub fn add_address(interface: &str, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(address) => add_ipv4(utun::ifname(interface)?, address),
        IpAddr::V6(address) => add_ipv6(utun::ifname(interface)?, address),
    }
}

fn add_ipv4(name: utun::Ifname, address: Ipv4Addr) -> io::Result<()> {
    let request = utun::Ifaliasreq::host(name, address);
    ioctl(&any_socket(libc::AF_INET)?, utun::SIOCAIFADDR, &request)
}

fn add_ipv6(name: utun::Ifname, address: Ipv6Addr) -> io::Result<()> {
    let request = utun::In6Aliasreq::host(name, address);
    ioctl(&any_socket(libc::AF_INET6)?, utun::SIOCAIFADDR_IN6, &request)
}

/// The two system calls that move batches. They are in no header, so a later macOS may lack them:
/// looked up, never linked.
#[derive(Clone, Copy, Debug)]
struct BatchCalls {
    receive: Option<utun::RecvmsgX>,
    send: Option<utun::SendmsgX>,
}

impl BatchCalls {
    fn find() -> Self {
        // SAFETY: the names are NUL-terminated. What libsystem_kernel exports under them has had
        // these signatures since macOS 10.11 (XNU `bsd/sys/socket_private.h`), and an `Option` of a
        // function pointer is NULL exactly for `None`.
        unsafe {
            Self {
                receive: std::mem::transmute::<*mut c_void, Option<utun::RecvmsgX>>(libc::dlsym(
                    libc::RTLD_DEFAULT,
                    c"recvmsg_x".as_ptr(),
                )),
                send: std::mem::transmute::<*mut c_void, Option<utun::SendmsgX>>(libc::dlsym(
                    libc::RTLD_DEFAULT,
                    c"sendmsg_x".as_ptr(),
                )),
            }
        }
    }
}

/// The one packet of a frame; `None` for what is no IP packet, and for a super-packet, which a
/// device without offload is never given.
fn single(frame: &SuperPacket) -> Option<(&[u8], [u8; FAMILY_LEN])> {
    debug_assert!(!frame.header.is_super(), "a utun has no offload");
    let mut parts = frame.parts();
    let packet = parts.next()?;
    parts.next().is_none().then_some((packet, utun::family_of(packet)?))
}

fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::PF_SYSTEM, libc::SOCK_DGRAM, libc::SYSPROTO_CONTROL) };
    own(fd)
}

/// Any socket of the family: interface ioctls go through one.
fn any_socket(family: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM, 0) };
    own(fd)
}

fn own(fd: c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned by `socket` and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn connect_unit(fd: &OwnedFd, number: Option<u32>) -> io::Result<()> {
    let mut info = utun::CtlInfo::utun();
    // SAFETY: the request reads and writes a `ctl_info`, which `info` is (asserted above).
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), utun::CTLIOCGINFO, &raw mut info) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let address = utun::SockaddrCtl::unit(info.id, number);
    // SAFETY: `address` is a `sockaddr_ctl` of the length given.
    let result =
        unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn interface_name(fd: &OwnedFd) -> io::Result<String> {
    let mut name = [0u8; libc::IFNAMSIZ];
    let mut len = name.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `name`, and the new length to `len`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SYSPROTO_CONTROL,
            libc::UTUN_OPT_IFNAME,
            name.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// As much receive buffer as the kernel grants: it is what bounds a batch.
fn raise_receive_buffer(fd: &OwnedFd) -> io::Result<()> {
    let mut bytes = RECEIVE_BUFFER;
    loop {
        match set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes) {
            Err(_) if bytes > RECEIVE_BUFFER_LEAST => bytes /= 2, // `kern.ipc.maxsockbuf` is lower
            result => return result,
        }
    }
}

fn set_option(fd: &OwnedFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the option's value is one int, and its length says so.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An `_IOW` request: the kernel reads `argument` and writes nothing.
fn ioctl<T>(fd: &OwnedFd, request: c_ulong, argument: &T) -> io::Result<()> {
    // A request that belongs to another type would make the kernel read past the end.
    debug_assert_eq!((request >> 16) & 0x1fff, size_of::<T>() as c_ulong);
    // SAFETY: the request's number carries the length of what it reads, which is `T`'s.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_ref(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A count of messages, or why there is none.
fn check(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

fn iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use super::*;

    const OURS: Ipv4Addr = Ipv4Addr::new(100, 127, 9, 9);
    const THEIRS: Ipv4Addr = Ipv4Addr::new(100, 127, 9, 10);

    /// Runs on the Mac runner only, under sudo: `cargo nextest run --run-ignored only`.
    #[test]
    #[ignore = "needs a Mac and root"]
    fn a_packet_comes_out_and_an_answer_goes_in() {
        let mut device = Utun::create().unwrap();
        add_address(device.name(), OURS.into()).unwrap();
        add_address(device.name(), IpAddr::V6(Ipv6Addr::new(0xfd4e, 0x9a1c, 0, 0, 0, 0, 0, 9))).unwrap();
        device.set_mtu(1280).unwrap();

        // Multicast leaves by the interface it is told to: no route is needed, none stays behind.
        let socket = UdpSocket::bind((OURS, 0)).unwrap();
        socket2::SockRef::from(&socket).set_multicast_if_v4(&OURS).unwrap();
        socket.send_to(b"out", "224.0.0.251:9").unwrap();
        wait_for(&mut device, |packet| packet[0] >> 4 == 4 && packet.ends_with(b"out"));

        let answer = datagram(socket.local_addr().unwrap().port(), *b"in!");
        assert_eq!(device.write_batch(&[SuperPacket::single(answer.into())]).unwrap(), 1);
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(socket.recv(&mut buffer).unwrap(), 3);
        assert_eq!(&buffer[..3], b"in!");
    }

    /// A UDP datagram from the far side to `port` here; UDP over IPv4 may go without a checksum.
    fn datagram(port: u16, payload: [u8; 3]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(THEIRS.octets());
        packet.extend(OURS.octets());
        let sum: u32 = packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend([0, 9]);
        packet.extend(port.to_be_bytes());
        packet.extend([0, 11, 0, 0]);
        packet.extend(payload);
        packet
    }

    fn wait_for(device: &mut Utun, wanted: impl Fn(&[u8]) -> bool) {
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let mut found = false;
            let mut intake = Intake::default();
            device.read_batch(BATCH, &mut intake, &mut |mut frame| found |= wanted(frame.bytes())).unwrap();
            if found {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the packet did not come out of {}", device.name());
    }
}

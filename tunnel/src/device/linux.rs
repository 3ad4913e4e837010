//! Linux TUN with virtio-net headers (`Documentation/networking/tuntap.rst`, `linux/if_tun.h`).
//!
//! `IFF_VNET_HDR` and `TUNSETOFFLOAD` let the kernel hand over TCP super-packets of up to 64 KiB
//! and take them back. Opened by ourselves: the `tun` crate (0.8.14) refuses more than one queue
//! and sets no offload. The interface disappears when the last queue is closed.

#![allow(unsafe_code, reason = "three ioctls that no crate wraps safely")]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::device::{Device, Offload};
use crate::segment::{Frame, Intake, SuperPacket, VnetHeader};

/// `IFNAMSIZ` without the terminating zero.
const LONGEST_NAME: usize = libc::IFNAMSIZ - 1;

/// One queue of a TUN interface.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    offload: Offload,
}

/// Why no TUN could be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `/dev/net/tun` is not there.
    #[error(
        "/dev/net/tun is missing: load the module with `modprobe tun`, or give the container `--device /dev/net/tun`"
    )]
    NoDriver,
    /// The process may not make interfaces.
    #[error("no permission to make a TUN interface: run as root or with CAP_NET_ADMIN")]
    NotPermitted,
    /// An interface of that name is in use.
    #[error("the interface {0} is in use by another program: stop it, or choose another name")]
    Busy(String),
    /// The name cannot be an interface's.
    #[error("{0:?} cannot name an interface: use 1 to {LONGEST_NAME} letters, digits, '-' or '_'")]
    BadName(String),
    /// Anything else.
    #[error("cannot make the TUN interface {name}: {source}")]
    Os {
        /// The name asked for.
        name: String,
        /// What the OS said.
        source: io::Error,
    },
}

impl Tun {
    /// Makes the interface `name` with `queues` queues.
    ///
    /// # Errors
    /// [`OpenError`], each with the act that repairs it.
    pub fn open(name: &str, queues: usize) -> Result<Vec<Self>, OpenError> {
        let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(usable) {
            return Err(OpenError::BadName(name.into()));
        }
        (0..queues).map(|_| Self::open_queue(name, queues > 1)).collect()
    }

    fn open_queue(name: &str, several: bool) -> Result<Self, OpenError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::NoDriver,
            Some(libc::EPERM | libc::EACCES) => OpenError::NotPermitted,
            Some(libc::EBUSY | libc::EEXIST) => OpenError::Busy(name.into()),
            _ => OpenError::Os { name: name.into(), source },
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(failed)?;

        let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if several {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        // SAFETY: `ifreq` is plain data; all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`; the name is zero-terminated, being
        // shorter than IFNAMSIZ.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).map_err(failed)?;

        let header = VnetHeader::LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) }).map_err(failed)?;
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        let set =
            |flags| check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) });
        // Kernels before 6.2 refuse what they do not know.
        let with_udp = set(tcp | udp).is_ok();
        if !with_udp {
            set(tcp).map_err(failed)?;
        }
        Ok(Self { file, name: name.into(), offload: Offload { tcp: true, udp: with_udp } })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Device for Tun {
    fn name(&self) -> &str {
        &self.name
    }

    fn offload(&self) -> Offload {
        self.offload
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn read_batch(&mut self, budget: usize, intake: &mut Intake, take: &mut dyn FnMut(Frame<'_>)) -> io::Result<usize> {
        for read in 0..budget {
            let frame = loop {
                match intake.read_with(|slices| (&self.file).read_vectored(slices)) {
                    Ok(frame) => break frame,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(read),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            };
            if let Some(frame) = frame {
                take(frame);
            }
        }
        Ok(budget)
    }

    fn write_batch(&mut self, frames: &[SuperPacket]) -> io::Result<usize> {
        for (written, frame) in frames.iter().enumerate() {
            let header = frame.header.to_bytes();
            let mut slices = [IoSlice::new(&[]); SuperPacket::MAX_SLICES];
            let used = frame.io_slices(&header, &mut slices);
            loop {
                match (&self.file).write_vectored(&slices[..used]) {
                    Ok(_) => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(written),
                    // EINVAL: a packet the kernel will not have; EIO: the interface is down. Both
                    // are lost packets, not a lost device.
                    Err(error)
                        if matches!(
                            error.raw_os_error(),
                            Some(libc::EINVAL | libc::EIO | libc::ENOBUFS | libc::ENOMEM)
                        ) =>
                    {
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(frames.len())
    }

    fn set_mtu(&mut self, mtu_bytes: u16) -> io::Result<()> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        // SAFETY: `ifreq` is plain data; all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_mtu = mtu_bytes.into();
        // SAFETY: SIOCSIFMTU reads one `ifreq` (netdevice(7)).
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw const request) })
    }
}

//! What strangers can do: packets with any source address, random ones, and those of others again.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use culvert_lab::random::Random;
use culvert_tunnel::identity::Pin;
use culvert_tunnel::shard::cid::CidKey;
use culvert_tunnel::shard::engine::{Engine, Role};
use culvert_tunnel::transport::{ClientTransport, Tuning};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Flood, Pace};

/// UDP payload of a full-sized packet here.
const FULL_BYTES: usize = 1400;
/// Distinct handshakes that are begun; their packets come from ever new addresses.
const HANDSHAKES: usize = 64;
/// `ETH_P_IP` of linux/if_ether.h, in network byte order as packet(7) wants it.
const IPV4_FRAMES: i32 = 0x0800_u16.to_be() as i32;
/// A capture that sees nothing for this long is over.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn initials(flood: &Flood) -> anyhow::Result<()> {
    let transport = ClientTransport::enrolment(vec![Pin::of_spki(b"nobody's")], Tuning::default())?;
    let mut packets = Vec::new();
    let mut buffer = Vec::new();
    for _ in 0..HANDSHAKES {
        let now = Instant::now();
        let mut engine = Engine::new(0, 1, Role::Client, CidKey::random(), false, None);
        engine.dial(now, flood.to.into(), "vpn.example", transport.clone())?;
        engine.settle(now);
        while let Some(transmit) = engine.poll_transmit(now, 1, &mut buffer) {
            packets.push(buffer[..transmit.size].to_vec());
        }
    }
    spray(flood, |random, payload| payload.extend_from_slice(&packets[random.below(packets.len())]))
}

pub(crate) fn noise(flood: &Flood) -> anyhow::Result<()> {
    spray(flood, |random, payload| {
        let len = random.below(FULL_BYTES);
        while payload.len() < len {
            payload.extend_from_slice(&random.next().to_ne_bytes());
        }
        payload.truncate(len);
    })
}

/// Sends what `fill` writes, each from another address of 198.18.0.0/15 (RFC 2544: nobody's).
fn spray(flood: &Flood, mut fill: impl FnMut(&mut Random, &mut Vec<u8>)) -> anyhow::Result<()> {
    let socket = raw_socket()?;
    let (mut random, mut pace) = (Random::new(0x9e37_79b9_7f4a_7c15), Pace::new(flood.rate));
    let (mut payload, mut packet) = (Vec::new(), Vec::new());
    let mut sent = 0u64;
    for _ in 0..flood.count {
        pace.pass();
        payload.clear();
        fill(&mut random, &mut payload);
        let source = Ipv4Addr::from_bits(0xc612_0000 | (random.next() as u32 & 0x1_ffff));
        let from = SocketAddrV4::new(source, 1024 + random.below(60_000) as u16);
        udp_packet(from, flood.to, &payload, &mut packet);
        sent += u64::from(send(&socket, &packet, flood.to)?);
    }
    println!("{sent}");
    Ok(())
}

pub(crate) fn capture(from: Ipv4Addr, count: usize, file: &Path) -> anyhow::Result<()> {
    // DGRAM: without the link layer's header.
    let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(IPV4_FRAMES)))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (mut kept, mut packet) = (Vec::new(), vec![0; 65_536]);
    let mut packets = 0;
    while packets < count {
        let len = match socket.read(&mut packet) {
            Ok(len) => len,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => return Err(error.into()),
        };
        let packet = &packet[..len];
        // Larger ones are several that the kernel has not cut yet.
        let wanted = len > 28
            && len <= 1500
            && packet[0] == 0x45
            && packet[9] == 17
            && packet[12..16] == from.octets()
            && packet[22..24] == 443u16.to_be_bytes();
        if wanted {
            kept.extend_from_slice(&(len as u16).to_be_bytes());
            kept.extend_from_slice(packet);
            packets += 1;
        }
    }
    fs::write(file, kept)?;
    println!("{packets}");
    Ok(())
}

pub(crate) fn replay(file: &Path, flood: &Flood) -> anyhow::Result<()> {
    let kept = fs::read(file).with_context(|| file.display().to_string())?;
    let mut packets = Vec::new();
    let mut rest = &kept[..];
    while let Some((len, bytes)) = rest.split_first_chunk::<2>() {
        let (packet, behind) = bytes.split_at_checked(u16::from_be_bytes(*len).into()).context("a cut file")?;
        packets.push(packet.to_vec());
        rest = behind;
    }
    if packets.is_empty() {
        bail!("{} holds no packets", file.display());
    }
    let socket = raw_socket()?;
    let (mut random, mut pace) = (Random::new(0x2545_f491_4f6c_dd1d), Pace::new(flood.rate));
    let mut sent = 0u64;
    for n in 0..flood.count {
        pace.pass();
        let mut packet = packets[n as usize % packets.len()].clone();
        packet[26..28].fill(0); // no UDP checksum: a captured one may not be complete, a flipped bit breaks it
        if n % 2 == 1 {
            let at = 28 + random.below(packet.len() - 28);
            packet[at] ^= 1 << random.below(8);
        }
        sent += u64::from(send(&socket, &packet, flood.to)?);
    }
    println!("{sent}");
    Ok(())
}

pub(crate) fn pour(flood: &Flood) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut pace = Pace::new(flood.rate);
    let mut sent = 0u64;
    for _ in 0..flood.count {
        pace.pass();
        // Refused or no room: what counts is what was sent.
        sent += u64::from(socket.send_to(&[7; 1200], flood.to).is_ok());
    }
    println!("{sent}");
    Ok(())
}

/// Takes packets with their IP headers (raw(7)).
fn raw_socket() -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).context("raw packets need root")?;
    socket.set_send_buffer_size(4 << 20)?;
    Ok(socket)
}

/// False when the kernel had no room for it.
fn send(socket: &Socket, packet: &[u8], to: SocketAddrV4) -> anyhow::Result<bool> {
    match socket.send_to(packet, &to.into()) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// IPv4 and UDP, without the checksums: the kernel fills in that of IP, UDP may go without.
pub(crate) fn udp_packet(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8], packet: &mut Vec<u8>) {
    packet.clear();
    let len = 28 + payload.len();
    packet.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet.extend_from_slice(&from.ip().octets());
    packet.extend_from_slice(&to.ip().octets());
    packet.extend_from_slice(&from.port().to_be_bytes());
    packet.extend_from_slice(&to.port().to_be_bytes());
    packet.extend_from_slice(&((len - 20) as u16).to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
}

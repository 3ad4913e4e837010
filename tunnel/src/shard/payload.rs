//! What a DATAGRAM frame's payload may be (wire version 1), and whether its packet may cross.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use bytes::Bytes;

use crate::packet::{Dropped, Header};
use crate::segment::Coalescer;
use crate::shard::engine::Role;
use crate::shard::link::{Link, kind};
use crate::shard::mailbox::Event;
use crate::{ecn, filter, icmp, mss};

/// One DATAGRAM payload: a packet for the device, an echo, or half a packet. `marked`: the path marked
/// its outer packet "congestion experienced". Returns true for a packet that went to the device.
pub(crate) fn take_payload(
    role: &Role,
    link: &mut Link,
    now: Instant,
    payload: Bytes,
    marked: bool,
    to_device: &mut Coalescer,
    events: &mut VecDeque<Event>,
) -> Result<bool, Dropped> {
    let &first = payload.first().ok_or(Dropped::Malformed { len: 0 })?;
    if link.reported {
        return Ok(false); // it ended; nobody waits for this any more
    }
    let (packet, marked) = match first {
        kind::ECHO => {
            if let Some(rtt) = link.on_echo(now, &payload)? {
                events.push_back(Event::Echo { link: link.id, rtt });
            }
            return Ok(false);
        }
        kind::PIECE => match link.on_piece(now, &payload, marked)? {
            Some(whole) => (whole.packet, whole.marked),
            None => return Ok(false),
        },
        _ if matches!(first >> 4, 4 | 6) => (payload, marked),
        _ => return Err(Dropped::UnknownKind { kind: first }),
    };
    let header = Header::parse(&packet)?;
    let lease = link.lease.ok_or(Dropped::NoSession { destination: header.dst() })?;
    match role {
        Role::Client => filter::client_in(&lease, &header)?,
        Role::Gateway { policy, .. } => {
            policy.from_client(&lease, &header)?;
            if let Some(limits) = &mut link.limits {
                let judged = limits.judge_received(&header, &packet, policy.gateway.contains(&header.dst()), now);
                if let Err(Dropped::Policy { .. }) = judged {
                    refuse(link, now, &packet, &header);
                }
                judged?;
            }
        }
    }
    let packet = if marked { ecn::mark(packet, &header)? } else { packet };
    link.received.count(packet.len());
    if header.dst().is_ipv6() {
        link.received_ipv6.count(packet.len());
    }
    // What the far host may be sent must cross this link.
    let packet = mss::clamp(packet, &header, link.inner_mtu.carried_bytes());
    to_device.push(packet);
    Ok(true)
}

/// Tells the client's own host that the destination is out of bounds, so that connecting fails at once.
/// The answer comes from the address that was asked for, as answers of `engine::device` do.
fn refuse(link: &mut Link, now: Instant, packet: &Bytes, header: &Header) {
    if !link.may_answer(now) {
        return;
    }
    let answer = match header.dst() {
        IpAddr::V4(asked) => icmp::unreachable(packet, asked, None),
        IpAddr::V6(asked) => icmp::unreachable(packet, Ipv4Addr::UNSPECIFIED, Some(asked)),
    };
    let Some(answer) = answer else { return };
    let Ok(header) = Header::parse(&answer) else { return };
    let max_bytes = link.datagram_bytes();
    let _ = link.send_packet(now, answer, &header, max_bytes); // no room: one answer less
}

//! In from the device: a frame is checked, routed, cut into packets and queued; what is too large is
//! answered.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use bytes::Bytes;

use super::{Engine, Role};
use crate::packet::{Dropped, Header};
use crate::segment::{Frame, VnetHeader};
use crate::shard::handover::Handover;
use crate::shard::link::Sent;
use crate::shard::mailbox::{Event, LinkId};
use crate::{filter, icmp};

impl Engine {
    /// Takes one frame of the device: a packet, or a super-packet as `vnet` says.
    pub fn on_frame(&mut self, now: Instant, vnet: &VnetHeader, frame: &[u8]) {
        self.on_device_frame(now, Frame::lent(*vnet, frame));
    }

    /// As [`Self::on_frame`], wherever the frame's bytes are.
    pub fn on_device_frame(&mut self, now: Instant, frame: Frame<'_>) {
        self.carried += 1;
        if let Err(why) = self.route_frame(now, frame) {
            self.stats.dropped_device.count(&why);
        }
    }

    fn route_frame(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), Dropped> {
        let header = frame.header()?;
        let destination = header.dst();
        let nobody = Dropped::NoSession { destination };
        let index = match &self.role {
            Role::Client => {
                let index = self.active.ok_or(nobody)?;
                let lease = self.links[index].as_ref().and_then(|link| link.lease).ok_or(nobody)?;
                filter::client_out(&lease, &header)?;
                index
            }
            Role::Gateway { routing, policy, .. } => {
                policy.to_client(&header)?;
                let id = routing.get(destination).ok_or(nobody)?;
                if id.shard != self.shard {
                    let handovers = &mut self.handovers;
                    frame.cut(&mut self.cuttings, &mut |packet| {
                        handovers.push(Handover::Packet { link: id, packet });
                    })?;
                    return Ok(());
                }
                *self.by_serial.get(&id.serial).ok_or(nobody)?
            }
        };
        let link = self.links[index].as_mut().ok_or(nobody)?;
        let max_bytes = link.datagram_bytes();
        let mut too_big = None;
        frame.cut(&mut self.cuttings, &mut |packet| {
            if let Sent::TooBig { mtu_bytes, packet } = link.send_packet(now, packet, &header, max_bytes) {
                // One answer a frame is enough for its sender.
                too_big.get_or_insert((packet, mtu_bytes));
            }
        })?;
        if !link.lossy && !link.has_room() {
            let gateway = matches!(self.role, Role::Gateway { .. });
            link.lossy = !self.hold_up.begin(now, index, gateway, self.by_serial.len() == 1);
        }
        if matches!(self.role, Role::Client) && link.is_news_that_it_sends(now) {
            self.events.push_back(Event::Sending { link: link.id });
        }
        self.queue(index);
        if let Some((packet, mtu_bytes)) = too_big {
            self.answer_too_big(now, index, &packet, &header, mtu_bytes);
        }
        Ok(())
    }

    /// A packet that another shard has routed and checked.
    pub(super) fn on_handed_packet(&mut self, now: Instant, id: LinkId, packet: Bytes) {
        debug_assert_eq!(id.shard, self.shard);
        self.carried += 1;
        let found = Header::parse(&packet).and_then(|header| {
            let nobody = Dropped::NoSession { destination: header.dst() };
            Ok((*self.by_serial.get(&id.serial).ok_or(nobody)?, header))
        });
        let (index, header) = match found {
            Ok(found) => found,
            Err(why) => return self.stats.dropped_device.count(&why),
        };
        let Some(link) = self.links[index].as_mut() else { return };
        let max_bytes = link.datagram_bytes();
        let sent = link.send_packet(now, packet, &header, max_bytes);
        self.queue(index);
        if let Sent::TooBig { mtu_bytes, packet } = sent {
            self.answer_too_big(now, index, &packet, &header, mtu_bytes);
        }
    }

    /// Tells the sender of a device packet, through the device, how large it may be.
    fn answer_too_big(&mut self, now: Instant, index: usize, packet: &Bytes, header: &Header, mtu_bytes: u16) {
        let Some(link) = self.links[index].as_mut() else { return };
        if !link.may_answer(now) {
            return;
        }
        // The answer comes from the address that was asked for: any other source would fail the
        // host's reverse-path check, and our own is a martian when it arrives on the device.
        let answer = match header.dst() {
            IpAddr::V4(asked) => icmp::too_big(packet, mtu_bytes, asked, None),
            IpAddr::V6(asked) => icmp::too_big(packet, mtu_bytes, Ipv4Addr::UNSPECIFIED, Some(asked)),
        };
        if let Some(answer) = answer {
            link.too_big_answers += 1;
            link.too_big_answers_ipv6 += u64::from(header.dst().is_ipv6());
            self.to_device.push(answer);
        }
    }

    /// False while a full queue should be drained before the device is read again.
    pub fn wants_device(&mut self, now: Instant) -> bool {
        let Some(index) = self.hold_up.by() else { return true };
        if let Some(link) = self.links[index].as_mut()
            && !link.reported
            && !link.has_room()
        {
            if matches!(self.role, Role::Client) || !self.hold_up.is_too_long(now) {
                return false;
            }
            link.lossy = true;
        }
        self.hold_up.end();
        true
    }
}

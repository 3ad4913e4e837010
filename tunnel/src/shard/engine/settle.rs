//! What QUIC has to say about the links that were touched.

use std::time::Instant;

use quinn_proto::crypto::rustls::HandshakeData;
use quinn_proto::{ConnectionHandle, Event as QuicEvent, StreamEvent};
use rustls::pki_types::CertificateDer;

use super::{EXPORTER_LABEL, Engine, MOST_UNTOLD, PAYLOADS_A_SETTLE, Role};
use crate::close::{Close, Down};
use crate::shard::ending::down;
use crate::shard::link::Notice;
use crate::shard::mailbox::{Established, Event, Protocol};
use crate::shard::payload::take_payload;

impl Engine {
    /// Takes what QUIC has to say about every link that was touched.
    pub fn settle(&mut self, now: Instant) {
        let mut again = Vec::new();
        while let Some(index) = self.touched.pop() {
            if let Some(link) = self.links[index].as_mut() {
                link.touched = false;
                if self.settle_link(now, index) {
                    again.push(index);
                }
            }
        }
        for index in again {
            self.touch(index);
        }
    }

    /// True when [`Self::settle`] left payloads for another turn.
    pub fn has_more(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Returns true when payloads are left.
    fn settle_link(&mut self, now: Instant, index: usize) -> bool {
        loop {
            let Some(link) = self.links[index].as_mut() else { return false };
            if let Some(event) = link.connection.poll_endpoint_events() {
                let drained = event.is_drained();
                if drained {
                    // Why it ended may still wait behind it.
                    while let Some(event) = link.connection.poll() {
                        if let QuicEvent::ConnectionLost { reason } = event {
                            let down = down(&reason, link.heard);
                            self.report(now, index, down);
                            break;
                        }
                    }
                }
                let answer = self.endpoint.handle_event(ConnectionHandle(index), event);
                if drained {
                    self.remove(now, index);
                    return false;
                }
                if let (Some(event), Some(link)) = (answer, self.links[index].as_mut()) {
                    link.connection.handle_event(event);
                }
                continue;
            }
            let Some(event) = link.connection.poll() else { break };
            match event {
                QuicEvent::Connected => self.on_connected(now, index),
                QuicEvent::ConnectionLost { reason } => {
                    let down = down(&reason, link.heard);
                    self.report(now, index, down);
                }
                QuicEvent::Stream(StreamEvent::Opened { .. }) => {
                    link.accept_control();
                    self.read_control(now, index);
                }
                QuicEvent::Stream(StreamEvent::Readable { .. }) => self.read_control(now, index),
                QuicEvent::Stream(StreamEvent::Writable { .. }) => link.write_control(),
                QuicEvent::Stream(StreamEvent::Finished { .. }) => link.finish_closing(now),
                _ => {}
            }
        }
        let more = self.read_datagrams(now, index, PAYLOADS_A_SETTLE, false);
        let Some(link) = self.links[index].as_mut() else { return false };
        if link.follow_peer(now) {
            link.notice.moved = true;
        }
        self.watch_mtu(now, index);
        self.queue(index);
        more
    }

    fn on_connected(&mut self, now: Instant, index: usize) {
        let Some(link) = self.links[index].as_mut().filter(|link| !link.reported) else { return };
        let session = link.connection.crypto_session();
        let data = session.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
        let protocol = data.and_then(|data| data.protocol).and_then(|name| Protocol::from_alpn(&name));
        let peer_chain: Vec<CertificateDer<'static>> =
            session.peer_identity().and_then(|chain| chain.downcast().ok()).map_or_else(Vec::new, |chain| *chain);
        let mut exporter = [0; 32];
        let exported = session.export_keying_material(&mut exporter, EXPORTER_LABEL, &[]);
        let (Some(protocol), Ok(())) = (protocol, exported) else {
            // TLS refuses a foreign ALPN by itself; this is a peer that offered none.
            link.close(now, Close::Version, "no common protocol".into());
            self.report(now, index, Down::Local(Close::Version));
            return;
        };
        link.protocol = Some(protocol);
        if matches!(self.role, Role::Client) {
            link.open_control();
        }
        let handshake = now.saturating_duration_since(link.began);
        let (id, remote) = (link.id, link.remote);
        self.handshakes.end(id.serial);
        self.events.push_back(Event::Established(Established {
            link: id,
            remote,
            protocol,
            peer_chain,
            exporter,
            handshake,
        }));
    }

    pub(super) fn read_control(&mut self, now: Instant, index: usize) {
        let room = MOST_UNTOLD.saturating_sub(self.events.len());
        let Some(link) = self.links[index].as_mut().filter(|link| !link.reported) else { return };
        let mut frames = Vec::new();
        let outcome = if room == 0 { Ok(true) } else { link.read_control(room.min(16), &mut frames) };
        let id = link.id;
        self.events.extend(frames.into_iter().map(|payload| Event::Frame { link: id, payload }));
        match outcome {
            Ok(false) => {}
            Ok(true) => {
                if let Some(link) = self.links[index].as_mut()
                    && !std::mem::replace(&mut link.starved, true)
                {
                    self.starved.push(index);
                }
            }
            Err(code) => self.close(now, id, code, "unreadable control frame".into()),
        }
    }

    /// Takes at most `most` payloads; `marked`: in packets that the path marked "congestion experienced".
    /// Returns true when some are left.
    pub(super) fn read_datagrams(&mut self, now: Instant, index: usize, most: usize, marked: bool) -> bool {
        let Some(link) = self.links.get_mut(index).and_then(Option::as_mut) else { return false };
        for _ in 0..most {
            let Some(payload) = link.connection.datagrams().recv() else { return false };
            match take_payload(&self.role, link, now, payload, marked, &mut self.to_device, &mut self.events) {
                Ok(carried) => self.carried += u64::from(carried),
                Err(why) => link.dropped_in.count(&why),
            }
        }
        true
    }

    fn watch_mtu(&mut self, now: Instant, index: usize) {
        let Some(link) = self.links[index].as_mut() else { return };
        if link.lease.is_none() {
            link.notice = Notice { queued: link.notice.queued, ..Default::default() };
            return;
        }
        link.notice.mtu |= link.follow_path(now);
        if link.notice.mtu || link.notice.moved {
            self.notify(index);
        }
    }

    pub(super) fn notify(&mut self, index: usize) {
        if let Some(link) = self.links[index].as_mut()
            && !std::mem::replace(&mut link.notice.queued, true)
        {
            self.notices.push_back(index);
        }
    }
}

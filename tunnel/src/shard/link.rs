//! One connection of a shard: QUIC state, control stream, lease and counters.
//!
//! Pure: it takes packets, stream bytes and `now`; the engine moves what comes out.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use quinn_proto::{Connection, Dir, SendDatagramError, StreamId, VarInt, WriteError};

use crate::bucket::Bucket;
use crate::close::{Close, Down};
use crate::control::FrameReader;
use crate::filter::Lease;
use crate::mss;
use crate::packet::{Dropped, Header};
use crate::pieces::{self, Joined, Joiner};
use crate::rules::Limits;
use crate::shard::inner_mtu::InnerMtu;
use crate::shard::mailbox::{LinkId, Protocol};
use crate::stats::{Drops, Flow, LinkStats};
use crate::transport::DATAGRAM_SEND_BYTES;

/// A handshake that takes longer has failed (product.md 5.4, E104: "No reply for 5 s").
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a close waits for the frames before it to be acknowledged.
const LINGER: Duration = Duration::from_millis(500);
/// How long a link that has ended is kept to repeat its close; QUIC's own wait of three probe
/// timeouts is the peer's to stretch.
const DRAIN: Duration = Duration::from_secs(5);
/// Frames waiting for a peer that does not read them; beyond it the peer is hostile or dead.
const MOST_OUTGOING_BYTES: usize = 4 * crate::control::MAX_FRAME;
/// How often the control plane hears that a link is in use.
const SENDING_TOLD_EVERY: Duration = Duration::from_secs(5);
/// Echo requests whose answers are still welcome.
const MOST_ECHOES: usize = 4;
/// Packets up to this size are copied when their queue is more than half full: a slice of a few
/// bytes would hold 64 KiB for as long as it waits.
const SMALL_BYTES: usize = 512;
/// Below this much room the device is not read: one super-packet and its bookkeeping.
const ROOM_FOR_A_FRAME_BYTES: usize = 128 * 1024;

/// ICMP messages a second to the senders behind one link: what Linux allows a host for all of them
/// (`icmp_msgs_per_sec`, `icmp_msgs_burst` in ip-sysctl.rst).
const ANSWERS_PER_SECOND: u32 = 1000;
const ANSWERS_AT_ONCE: u32 = 50;

/// Kind bytes of a DATAGRAM payload that is no IP packet.
pub(crate) mod kind {
    /// The in-tunnel health check.
    pub(crate) const ECHO: u8 = 0x01;
    /// Half of a split packet.
    pub(crate) const PIECE: u8 = 0x02;
}

/// Echo payload: kind, direction, nonce.
const ECHO_BYTES: usize = 10;
const ECHO_REQUEST: u8 = 0;
const ECHO_REPLY: u8 = 1;

/// What became of an outgoing packet.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It is queued.
    Queued,
    /// It is larger than the path carries: tell its sender.
    TooBig {
        /// What would have crossed.
        mtu_bytes: u16,
        /// The packet, for the answer to quote.
        packet: Bytes,
    },
    /// Dropped and counted.
    Dropped,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) connection: Connection,
    pub(crate) remote: SocketAddr,
    pub(crate) began: Instant,
    pub(crate) protocol: Option<Protocol>,
    /// A datagram of the peer has arrived.
    pub(crate) heard: bool,
    /// The end has been told to the control plane.
    pub(crate) reported: bool,
    pub(crate) lease: Option<Lease>,
    /// What its client may reach; `None` for a client without rules.
    pub(crate) limits: Option<Box<Limits>>,
    /// The largest inner packet that hosts may send.
    pub(crate) inner_mtu: InnerMtu,
    /// In the engine's queue of links to transmit for.
    pub(crate) queued: bool,
    /// In the engine's list of links to settle.
    pub(crate) touched: bool,
    /// Its datagram queue has been full for long: drop instead of holding up the device.
    pub(crate) lossy: bool,
    /// In the engine's list of control streams that wait for the control plane.
    pub(crate) starved: bool,
    /// What the control plane has not been told yet.
    pub(crate) notice: Notice,
    ended: Option<Instant>,
    told_remote: Option<Instant>,
    told_sending: Option<Instant>,
    stream: Option<StreamId>,
    reader: FrameReader,
    outgoing: VecDeque<Bytes>,
    outgoing_bytes: usize,
    wrote: bool,
    closing: Option<Closing>,
    joiner: Joiner,
    next_piece: u16,
    /// Unanswered requests, oldest first.
    echoes: VecDeque<(u64, Instant)>,
    next_echo: u64,
    pub(crate) sent: Flow,
    pub(crate) sent_ipv6: Flow,
    pub(crate) received: Flow,
    pub(crate) received_ipv6: Flow,
    pub(crate) dropped_out: Drops,
    pub(crate) dropped_in: Drops,
    pub(crate) split: u64,
    pub(crate) too_big_answers: u64,
    pub(crate) too_big_answers_ipv6: u64,
    answers: Bucket,
}

/// News of a link of which only the latest counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Notice {
    pub(crate) moved: bool,
    pub(crate) mtu: bool,
    /// In the engine's queue of notices.
    pub(crate) queued: bool,
}

#[derive(Debug)]
struct Closing {
    code: Close,
    reason: String,
    by: Instant,
}

impl Link {
    pub(crate) fn new(id: LinkId, connection: Connection, now: Instant) -> Self {
        Self {
            id,
            remote: connection.remote_address(),
            connection,
            began: now,
            protocol: None,
            heard: false,
            reported: false,
            lease: None,
            limits: None,
            inner_mtu: InnerMtu::default(),
            queued: false,
            touched: false,
            lossy: false,
            starved: false,
            notice: Notice::default(),
            ended: None,
            told_remote: None,
            told_sending: None,
            stream: None,
            reader: FrameReader::default(),
            outgoing: VecDeque::new(),
            outgoing_bytes: 0,
            wrote: false,
            closing: None,
            joiner: Joiner::default(),
            next_piece: 0,
            echoes: VecDeque::new(),
            next_echo: 1,
            sent: Flow::default(),
            sent_ipv6: Flow::default(),
            received: Flow::default(),
            received_ipv6: Flow::default(),
            dropped_out: Drops::default(),
            dropped_in: Drops::default(),
            split: 0,
            too_big_answers: 0,
            too_big_answers_ipv6: 0,
            answers: Bucket::new(ANSWERS_PER_SECOND, ANSWERS_AT_ONCE),
        }
    }

    /// When the link wants [`Self::on_timeout`].
    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        let handshake = (self.protocol.is_none() && !self.reported).then(|| self.began + HANDSHAKE_TIMEOUT);
        let linger = self.closing.as_ref().map(|closing| closing.by);
        let drained = self.ended.map(|ended| ended + DRAIN);
        [
            self.connection.poll_timeout(),
            handshake,
            linger,
            drained,
            self.joiner.poll_timeout(),
            self.inner_mtu.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Lets QUIC's timers fire. Returns why the link ends, if time ended it.
    pub(crate) fn on_timeout(&mut self, now: Instant) -> Option<Down> {
        self.connection.handle_timeout(now);
        self.expire_pieces(now);
        if self.protocol.is_none() && !self.reported && now >= self.began + HANDSHAKE_TIMEOUT {
            self.connection.close(now, VarInt::from_u32(Close::Timeout.code()), Bytes::new());
            return Some(if self.heard { Down::TimedOut } else { Down::NoAnswer });
        }
        if self.closing.as_ref().is_some_and(|closing| now >= closing.by) {
            self.finish_closing(now);
        }
        None
    }

    /// The control plane was told that the link ended.
    pub(crate) fn on_reported(&mut self, now: Instant) {
        self.reported = true;
        self.ended = Some(now);
        self.inner_mtu.end();
    }

    /// True when nobody needs the link any more, whatever the peer says.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.ended.is_some_and(|ended| now >= ended + DRAIN)
    }

    /// Takes a new address of the peer; true when the control plane should hear of it now.
    pub(crate) fn follow_peer(&mut self, now: Instant) -> bool {
        let remote = self.connection.remote_address();
        let quiet = self.told_remote.is_some_and(|told| now < told + Duration::from_secs(1));
        if remote == self.remote || self.reported || quiet {
            return false;
        }
        self.remote = remote;
        self.told_remote = Some(now);
        true
    }

    /// A packet goes out. True when the control plane should hear that the link is in use.
    pub(crate) fn is_news_that_it_sends(&mut self, now: Instant) -> bool {
        let news = self.told_sending.is_none_or(|told| now >= told + SENDING_TOLD_EVERY);
        if news {
            self.told_sending = Some(now);
        }
        news
    }

    /// The client's side of opening the control stream.
    pub(crate) fn open_control(&mut self) {
        self.stream = self.connection.streams().open(Dir::Bi);
        self.write_control();
    }

    /// The gateway's side: takes the stream that the client opened.
    pub(crate) fn accept_control(&mut self) {
        if self.stream.is_none() {
            self.stream = self.connection.streams().accept(Dir::Bi);
            self.write_control();
        }
    }

    /// Queues one encoded frame. False when the peer lets too much pile up.
    pub(crate) fn send_frame(&mut self, frame: Vec<u8>) -> bool {
        if self.closing.is_some() {
            return true;
        }
        if self.outgoing_bytes + frame.len() > MOST_OUTGOING_BYTES {
            self.outgoing.clear();
            self.outgoing_bytes = 0;
            return false;
        }
        self.outgoing_bytes += frame.len();
        self.outgoing.push_back(frame.into());
        self.write_control();
        true
    }

    /// Writes as much as flow control lets through.
    pub(crate) fn write_control(&mut self) {
        let Some(id) = self.stream else { return };
        while let Some(frame) = self.outgoing.front_mut() {
            match self.connection.send_stream(id).write(frame) {
                Ok(0) | Err(WriteError::Blocked) => return,
                // The peer will never read them.
                Err(_) => {
                    self.outgoing.clear();
                    self.outgoing_bytes = 0;
                    return;
                }
                Ok(n) => {
                    self.wrote = true;
                    self.outgoing_bytes -= n;
                    _ = frame.split_to(n);
                    if frame.is_empty() {
                        self.outgoing.pop_front();
                    }
                }
            }
        }
        if self.closing.is_some() {
            _ = self.connection.send_stream(id).finish();
        }
    }

    /// Reads whole frames off the control stream, at most `limit`; true when more may be there.
    pub(crate) fn read_control(&mut self, limit: usize, frames: &mut Vec<Vec<u8>>) -> Result<bool, Close> {
        let Some(id) = self.stream else { return Ok(false) };
        loop {
            while frames.len() < limit {
                match self.reader.next_frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return Err(error.close().unwrap_or(Close::Malformed)),
                }
            }
            if frames.len() >= limit {
                return Ok(true);
            }
            let mut stream = self.connection.recv_stream(id);
            let Ok(mut chunks) = stream.read(true) else { return Ok(false) };
            let chunk = chunks.next(4096);
            _ = chunks.finalize();
            match chunk {
                Ok(Some(chunk)) => self.reader.push(&chunk.bytes),
                Ok(None) | Err(_) => return Ok(false),
            }
        }
    }

    /// Begins to close: at once, or as soon as the frames before it are acknowledged.
    pub(crate) fn close(&mut self, now: Instant, code: Close, mut reason: String) {
        if self.closing.is_some() || self.connection.is_closed() {
            return;
        }
        let mut end = reason.len().min(256);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        self.closing = Some(Closing { code, reason, by: now + LINGER });
        if self.wrote || !self.outgoing.is_empty() {
            self.write_control();
        } else {
            self.finish_closing(now);
        }
    }

    /// Sends the CONNECTION_CLOSE that [`Self::close`] announced.
    pub(crate) fn finish_closing(&mut self, now: Instant) {
        if let Some(closing) = self.closing.take() {
            self.connection.close(now, VarInt::from_u32(closing.code.code()), closing.reason.into());
        }
    }

    /// Largest inner packet that crosses in one datagram now; 0 before the handshake.
    pub(crate) fn datagram_bytes(&mut self) -> usize {
        self.connection.datagrams().max_size().unwrap_or(0)
    }

    /// Follows the path. True when hosts may send more or less than before.
    pub(crate) fn follow_path(&mut self, now: Instant) -> bool {
        let bytes = self.datagram_bytes();
        self.inner_mtu.follow(now, bytes)
    }

    /// May one more packet be answered by ICMP now?
    pub(crate) fn may_answer(&mut self, now: Instant) -> bool {
        self.answers.take(1, now)
    }

    /// True when the queue has room for one more frame of the device.
    pub(crate) fn has_room(&mut self) -> bool {
        self.connection.datagrams().send_buffer_space() >= ROOM_FOR_A_FRAME_BYTES
    }

    /// True when hardly anything waits any more.
    pub(crate) fn is_nearly_empty(&mut self) -> bool {
        self.connection.datagrams().send_buffer_space() >= DATAGRAM_SEND_BYTES / 8 * 7
    }

    /// Queues one inner packet for the peer. `header` is that of its flow (of the super-packet it
    /// was cut from), `max_bytes` is [`Self::datagram_bytes`].
    pub(crate) fn send_packet(&mut self, now: Instant, packet: Bytes, header: &Header, max_bytes: usize) -> Sent {
        let len = packet.len();
        if let Some(limits) = &mut self.limits
            && let Err(why) = limits.judge_sent(len, now)
        {
            self.dropped_out.count(&why);
            return Sent::Dropped;
        }
        if len <= max_bytes {
            // A part of a super-packet holds no more than its neighbours do, which leave just before it.
            let alone = len == header.len();
            let packet =
                if alone { self.unpinned(mss::clamp(packet, header, self.inner_mtu.carried_bytes())) } else { packet };
            return self.send_datagram(packet, len, header);
        }
        // IPv6 promises 1,280 bytes, and an IPv4 packet without DF may be divided by any router.
        let may_split = len <= usize::from(self.inner_mtu.carried_bytes()) || !header.dont_fragment();
        if may_split {
            self.next_piece = self.next_piece.wrapping_add(1);
            if let Some([first, second]) = pieces::split_in_two(&packet, self.next_piece, max_bytes) {
                self.split += 1;
                if self.enqueue(first) && self.enqueue(second) {
                    self.count_sent(len, header);
                    return Sent::Queued;
                }
                return Sent::Dropped;
            }
        }
        let mtu_bytes = u16::try_from(max_bytes).unwrap_or(u16::MAX).max(self.inner_mtu.carried_bytes());
        self.dropped_out.count(&Dropped::TooBig { len, mtu_bytes });
        Sent::TooBig { mtu_bytes, packet }
    }

    fn count_sent(&mut self, len: usize, header: &Header) {
        self.sent.count(len);
        if header.dst().is_ipv6() {
            self.sent_ipv6.count(len);
        }
    }

    fn send_datagram(&mut self, packet: Bytes, len: usize, header: &Header) -> Sent {
        if self.enqueue(packet) {
            self.count_sent(len, header);
            Sent::Queued
        } else {
            Sent::Dropped
        }
    }

    /// See [`SMALL_BYTES`].
    fn unpinned(&mut self, packet: Bytes) -> Bytes {
        let waits = self.connection.datagrams().send_buffer_space() < DATAGRAM_SEND_BYTES / 2;
        if packet.len() <= SMALL_BYTES && waits { Bytes::copy_from_slice(&packet) } else { packet }
    }

    fn enqueue(&mut self, datagram: Bytes) -> bool {
        match self.connection.datagrams().send(datagram, false) {
            Ok(()) => true,
            Err(SendDatagramError::Blocked(_) | SendDatagramError::TooLarge) => {
                self.dropped_out.count(&Dropped::QueueFull);
                false
            }
            Err(SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled) => {
                self.dropped_out.count(&Dropped::UnknownKind { kind: 0 });
                false
            }
        }
    }

    /// Sends an echo request.
    pub(crate) fn send_echo(&mut self, now: Instant) {
        if self.echoes.len() == MOST_ECHOES {
            self.echoes.pop_front();
        }
        self.echoes.push_back((self.next_echo, now));
        self.enqueue(echo(ECHO_REQUEST, self.next_echo));
        self.next_echo += 1;
    }

    /// Takes an echo payload. Returns the round-trip time when it answers a request of ours, once.
    pub(crate) fn on_echo(&mut self, now: Instant, payload: &[u8]) -> Result<Option<Duration>, Dropped> {
        let malformed = Dropped::Malformed { len: payload.len() };
        let payload: &[u8; ECHO_BYTES] = payload.try_into().map_err(|_| malformed)?;
        let nonce = u64::from_be_bytes(payload[2..].try_into().map_err(|_| malformed)?);
        match payload[1] {
            ECHO_REQUEST => {
                self.enqueue(echo(ECHO_REPLY, nonce));
                Ok(None)
            }
            ECHO_REPLY => {
                let asked = self.echoes.iter().position(|(asked, _)| *asked == nonce);
                let at = asked.and_then(|index| self.echoes.remove(index)).map(|(_, at)| at);
                Ok(at.map(|at| now.saturating_duration_since(at)))
            }
            _ => Err(malformed),
        }
    }

    /// Takes one half of a split packet; the whole when it is the second.
    pub(crate) fn on_piece(&mut self, now: Instant, payload: &Bytes, marked: bool) -> Result<Option<Joined>, Dropped> {
        self.expire_pieces(now);
        self.joiner.on_piece(now, payload, marked)
    }

    fn expire_pieces(&mut self, now: Instant) {
        for _ in 0..self.joiner.expire(now) {
            self.dropped_in.count(&Dropped::Unjoined);
        }
    }

    /// The counters now.
    pub(crate) fn stats(&mut self) -> LinkStats {
        let quic = self.connection.stats();
        let room = self.connection.datagrams().send_buffer_space();
        LinkStats {
            sent: self.sent,
            sent_ipv6: self.sent_ipv6,
            received: self.received,
            received_ipv6: self.received_ipv6,
            dropped_out: self.dropped_out,
            dropped_in: self.dropped_in,
            split: self.split,
            too_big_answers: self.too_big_answers,
            too_big_answers_ipv6: self.too_big_answers_ipv6,
            rtt: quic.path.rtt,
            quic_sent: quic.path.sent_packets,
            quic_lost: quic.path.lost_packets,
            black_holes: quic.path.black_holes_detected,
            path_mtu_bytes: quic.path.current_mtu,
            inner_mtu_bytes: self.inner_mtu.told_bytes(),
            queued_bytes: DATAGRAM_SEND_BYTES.saturating_sub(room) as u64,
        }
    }
}

fn echo(direction: u8, nonce: u64) -> Bytes {
    let mut payload = BytesMut::with_capacity(ECHO_BYTES);
    payload.put_u8(kind::ECHO);
    payload.put_u8(direction);
    payload.put_u64(nonce);
    payload.freeze()
}

//! Counters, by direction and by why a packet was dropped. One writer (the shard), no locks:
//! they are copied out when the control plane asks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::packet::Dropped;

/// Packets and bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// Whole inner packets.
    pub packets: u64,
    /// Their lengths, IP header included.
    pub bytes: u64,
}

impl Flow {
    /// Counts one packet of `len` bytes.
    pub fn count(&mut self, len: usize) {
        self.packets += 1;
        self.bytes += len as u64;
    }
}

impl std::ops::AddAssign for Flow {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Packets dropped, by reason. Indexed by [`Dropped::index`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops([u64; Dropped::KINDS]);

impl Drops {
    /// Counts one.
    pub fn count(&mut self, why: &Dropped) {
        self.0[why.index()] += 1;
    }

    /// Counts all of another's as well.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// `(reason word, packets)`, every reason, in a stable order.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Dropped::WORDS.iter().copied().zip(self.0)
    }

    /// As [`Self::by_reason`], only reasons that occurred.
    pub fn occurred(&self) -> BTreeMap<String, u64> {
        self.by_reason().filter(|(_, packets)| *packets > 0).map(|(word, packets)| (word.to_owned(), packets)).collect()
    }

    /// All reasons together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Serialize for Drops {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.by_reason())
    }
}

/// One link's counters and what QUIC knows of its path.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LinkStats {
    /// Inner packets sent to the peer.
    pub sent: Flow,
    /// Of these, packets of IPv6.
    pub sent_ipv6: Flow,
    /// Inner packets received from the peer.
    pub received: Flow,
    /// Of these, packets of IPv6.
    pub received_ipv6: Flow,
    /// Dropped on the way to the peer.
    pub dropped_out: Drops,
    /// Dropped on the way from the peer.
    pub dropped_in: Drops,
    /// Inner packets that crossed as two datagrams, sent.
    pub split: u64,
    /// ICMP "too big" answers given to the host's own stack.
    pub too_big_answers: u64,
    /// Of these, answers by ICMPv6.
    pub too_big_answers_ipv6: u64,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// QUIC packets sent, and those of them that were declared lost.
    pub quic_sent: u64,
    /// See `quic_sent`.
    pub quic_lost: u64,
    /// Times that path-MTU discovery fell back.
    pub black_holes: u64,
    /// UDP payload bytes that the path carries.
    pub path_mtu_bytes: u16,
    /// Largest inner packet in one datagram.
    pub inner_mtu_bytes: u16,
    /// Bytes waiting in the datagram queue.
    pub queued_bytes: u64,
}

/// Totals of one shard since it started.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ShardStats {
    /// UDP datagrams received, whatever they were.
    pub datagrams_in: u64,
    /// UDP datagrams sent.
    pub datagrams_out: u64,
    /// Datagrams that belong to no connection and open none.
    pub datagrams_foreign: u64,
    /// Datagrams of banned addresses that would have opened a connection, or belong to one that is not open yet.
    pub datagrams_banned: u64,
    /// Handshakes begun by peers.
    pub handshakes: u64,
    /// Handshakes answered with a Retry first.
    pub retries: u64,
    /// Handshakes not answered since Retry packets had used up their bytes.
    pub retries_withheld: u64,
    /// Handshakes refused since too many were waiting or under way.
    pub handshakes_refused: u64,
    /// Packets and datagrams handed to other shards.
    pub handed_out: u64,
    /// Packets and datagrams taken over from other shards.
    pub handed_in: u64,
    /// Packets and datagrams for which another shard had no room.
    pub handed_lost: u64,
    /// Device packets for an address that no link holds, or that no link may send.
    pub dropped_device: Drops,
    /// Packets of links that the device had no room for.
    pub undelivered: Drops,
    /// Turns of the loop: one wake-up each.
    pub turns: u64,
}

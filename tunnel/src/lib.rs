//! The library that both ends of a Culvert tunnel share: TUN device → packet → QUIC datagram, and
//! back.
//!
//! # The data path
//!
//! 1. [`device`]: a TUN hands over a packet, or a TCP super-packet with a virtio header.
//! 2. [`packet`] parses the header once; [`filter`] says whether it may cross; on a gateway
//!    [`routing`] names the session.
//! 3. [`segment`] splits the super-packet into packets of the flow's segment size; what exceeds the
//!    path is answered by [`icmp`], or crosses in two [`pieces`].
//! 4. Each packet becomes the payload of one DATAGRAM frame (RFC 9221); quinn-proto encrypts a
//!    whole GSO batch into one buffer and one `sendmsg` takes it.
//! 5. The far side reads GRO batches into buffers of the pool, decrypts in place, checks again
//!    ([`filter`]), and coalesces neighbouring segments ([`segment`]) into one `writev`.
//!
//! [`shard`] is the loop that moves all this, one OS thread with everything it needs. The control
//! plane (tokio) talks to it through [`shard::mailbox`]: sessions open with the messages of
//! [`control`], devices enrol with those of [`enrol`], and end with a code of [`close`].
//!
//! Pure files (bytes and `now` in, bytes out): `packet filter bucket ecn icmp mss segment pieces control enrol
//! close identity invitation routing banned` and `shard::engine`. Files that touch the world: `device`,
//! `socket`, `shard`, `shard::waker`.

pub mod banned;
pub mod bucket;
pub mod checksum;
pub mod close;
pub mod congestion;
pub mod control;
pub mod device;
pub mod ecn;
pub mod enrol;
pub mod filter;
pub mod icmp;
pub mod identity;
pub mod invitation;
pub mod mss;
pub mod packet;
pub mod pieces;
mod pool;
pub mod routing;
pub mod rules;
pub mod segment;
pub mod shard;
pub mod socket;
pub mod stats;
pub mod transport;

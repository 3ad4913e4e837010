//! Handshakes that peers begin: a Retry first, then their turn; and what may be answered to strangers.

use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{Incoming, Transmit, VarInt};

use super::Engine;
use crate::close::{Close, Down};
use crate::shard::handshakes::{BEGIN_A_TURN, Next};

/// Answers to strangers that may wait for the socket.
const MOST_RESPONSES: usize = 512;
/// The most that a Retry packet has: headers, our token and its tag.
const RETRY_BYTES: u32 = 256;
/// What Retry packets may take of the uplink, whoever asks for them.
pub(super) const RETRY_BYTES_PER_SECOND: u32 = 4 << 20;

impl Engine {
    pub(super) fn on_incoming(&mut self, now: Instant, incoming: Incoming) {
        self.stats.handshakes += 1;
        if !incoming.remote_address_validated() && incoming.may_retry() {
            if !self.retry_bytes.take(RETRY_BYTES, now) {
                self.stats.retries_withheld += 1;
                self.endpoint.ignore(incoming);
                return;
            }
            self.stats.retries += 1;
            let mut buffer = Vec::new();
            if let Ok(transmit) = self.endpoint.retry(incoming, &mut buffer) {
                self.respond(transmit, buffer);
            }
            return;
        }
        if let Err(incoming) = self.handshakes.wait(now, incoming.remote_address().ip(), incoming) {
            self.stats.handshakes_refused += 1;
            self.endpoint.ignore(incoming);
        }
    }

    /// Begins some of the handshakes that wait.
    pub(super) fn begin_handshakes(&mut self, now: Instant) {
        let mut begun = 0;
        while begun < BEGIN_A_TURN {
            match self.handshakes.next(now) {
                Next::Begin(incoming, source) => {
                    self.begin_handshake(now, incoming, source);
                    begun += 1;
                }
                Next::GiveWay(serial) => self.give_way(now, serial),
                Next::Forget(incoming) => {
                    self.stats.handshakes_refused += 1;
                    self.endpoint.ignore(incoming);
                }
                Next::Wait => break,
            }
        }
    }

    fn begin_handshake(&mut self, now: Instant, incoming: Incoming, source: IpAddr) {
        let mut buffer = Vec::new();
        match self.endpoint.accept(incoming, now, &mut buffer, None) {
            Ok((handle, connection)) => {
                let id = self.add(now, handle, connection);
                self.handshakes.begun(now, id.serial, source);
            }
            Err(error) => {
                self.handshakes.failed(source);
                if let Some(transmit) = error.response {
                    self.respond(transmit, buffer);
                }
            }
        }
    }

    pub(super) fn respond(&mut self, transmit: Transmit, bytes: Vec<u8>) {
        if self.responses.len() < MOST_RESPONSES {
            self.responses.push_back((transmit, bytes));
        }
    }

    /// Ends a handshake that hangs, there being too many. It is told as one that timed out, not counted as refused.
    fn give_way(&mut self, now: Instant, serial: u64) {
        self.handshakes.end(serial);
        let Some(&index) = self.by_serial.get(&serial) else { return };
        if let Some(link) = self.links[index].as_mut() {
            link.connection.close(now, VarInt::from_u32(Close::Timeout.code()), Bytes::new());
        }
        self.touch(index);
        self.report(now, index, Down::Local(Close::Timeout));
    }
}

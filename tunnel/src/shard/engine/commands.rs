//! In from the control plane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::VarInt;
use tokio::sync::oneshot;

use super::{Engine, Role};
use crate::close::{Close, Down};
use crate::filter::{Lease, Policy};
use crate::rules::{Limits, Rules};
use crate::shard::mailbox::{Inspection, LinkId};
use crate::stats::ShardStats;
use crate::transport::{ClientTransport, ServerTransport};

impl Engine {
    /// Opens a connection.
    pub fn dial(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        server_name: &str,
        transport: ClientTransport,
    ) -> Result<LinkId, Down> {
        match self.endpoint.connect(now, transport.config, remote, server_name) {
            Ok((handle, connection)) => Ok(self.add(now, handle, connection)),
            // Every cause is a bad address or name; the caller has checked both.
            Err(_) => Err(Down::NoAnswer),
        }
    }

    /// Sends one frame on the link's control stream.
    pub fn send_frame(&mut self, now: Instant, id: LinkId, frame: Vec<u8>) {
        let mut taken = true;
        self.with(id, |link| taken = link.send_frame(frame));
        if !taken {
            self.close(now, id, Close::Unexpected, "the control stream is not read".into());
        }
    }

    /// Opens the link for inner packets.
    pub fn admit(&mut self, id: LinkId, lease: Lease) {
        let Some(index) = self.with(id, |link| link.lease = Some(lease)) else { return };
        match &self.role {
            Role::Client => {
                self.active = Some(index);
                self.hold_up.end();
            }
            Role::Gateway { routing, .. } => routing.insert(lease, id),
        }
    }

    /// Holds the link's client to these rules; what it has used up of a rate is forgotten.
    pub fn limit(&mut self, id: LinkId, rules: Option<Arc<Rules>>) {
        self.with(id, |link| link.limits = rules.map(|rules| Box::new(Limits::new(rules))));
    }

    /// Answers new peers with these keys. A client answers nobody.
    pub fn serve(&mut self, new: ServerTransport) {
        if let Role::Gateway { transport, .. } = &mut self.role {
            self.endpoint.set_server_config(Some(new.config.clone()));
            *transport = new;
        }
    }

    /// Judges packets by this. A client judges by its lease alone.
    pub fn judge(&mut self, new: Arc<Policy>) {
        if let Role::Gateway { policy, .. } = &mut self.role {
            *policy = new;
        }
    }

    /// Closes the link.
    pub fn close(&mut self, now: Instant, id: LinkId, code: Close, reason: String) {
        let Some(index) = self.with(id, |link| link.close(now, code, reason)) else { return };
        self.report(now, index, Down::Local(code));
    }

    /// Sends an echo request.
    pub fn echo(&mut self, now: Instant, id: LinkId) {
        self.with(id, |link| link.send_echo(now));
    }

    /// The socket was replaced: every peer must learn the new address.
    pub fn on_rebind(&mut self) {
        for index in 0..self.links.len() {
            if let Some(link) = self.links[index].as_mut() {
                link.connection.local_address_changed();
                self.touch(index);
            }
        }
    }

    /// Closes everything at once.
    pub fn stop(&mut self, now: Instant, code: Close, reason: &str) {
        while let Some(incoming) = self.handshakes.give_up() {
            self.endpoint.ignore(incoming);
        }
        for index in 0..self.links.len() {
            if let Some(link) = self.links[index].as_mut() {
                link.connection.close(now, VarInt::from_u32(code.code()), Bytes::copy_from_slice(reason.as_bytes()));
                self.touch(index);
                self.report(now, index, Down::Local(code));
            }
        }
    }

    /// Answers with the counters.
    pub fn inspect(&mut self, reply: oneshot::Sender<Inspection>) {
        let links = self.links.iter_mut().flatten().filter(|link| !link.reported);
        let links = links.map(|link| (link.id, link.stats())).collect();
        _ = reply.send(Inspection { shard: self.stats, links });
    }

    /// Counters that the loop itself moves.
    pub fn stats_mut(&mut self) -> &mut ShardStats {
        &mut self.stats
    }
}

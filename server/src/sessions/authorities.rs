//! A rotation of the CA in a running gateway: it sees the command's step, shows and accepts what counts now, and
//! tells the clients. No session ends by it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_tunnel::control::{Base64, FromServer, Hello};
use culvert_tunnel::device::Device as Interface;
use culvert_tunnel::identity::Pin;
use culvert_tunnel::shard::mailbox::{Command, LinkId};

use super::{Link, Sessions};
use crate::conversation::Office;
use crate::registry::Registry;

/// How often some of those that are to be told are.
pub(super) const TELL_EVERY: Duration = Duration::from_millis(250);
/// How many at once. Each then asks for a certificate, which is a signature and a write to the disk.
const AT_ONCE: usize = 25;

impl<R: Registry, D: Interface> Sessions<R, D> {
    /// What may change without a command: the authorities on the disk, and the gateway's own certificate by its age.
    pub(super) async fn look_at_certificates(&mut self) {
        self.look_at_authorities().await;
        self.renew_leaf().await;
    }

    /// Takes other authorities from the disk, if they are others. What cannot be read leaves those that there are.
    pub(super) async fn look_at_authorities(&mut self) {
        let stamp = self.leaf.state().authorities_stamp();
        if stamp == self.authorities_stamp {
            return;
        }
        let authorities = match self.leaf.state().authorities() {
            Ok(authorities) => Arc::new(authorities),
            Err(error) => return tracing::error!(event = "ca_not_changed", %error),
        };
        match self.leaf.renewed(&authorities, &self.office.settings, SystemTime::now()) {
            Ok(None) => {}
            Ok(Some(transport)) => {
                for shard in &self.shards {
                    let _ = shard.send(Command::Serve(transport.clone())).await; // a shard that has ended; see `run`
                }
            }
            Err(error) => return tracing::error!(event = "ca_not_changed", %error),
        }
        self.authorities_stamp = stamp;
        let trusted = authorities.trusted_pins();
        let is_news = trusted != self.office.authorities.trusted_pins();
        self.office = Arc::new(Office { authorities, ..Office::clone(&self.office) });
        if is_news {
            let trusted: Vec<String> = trusted.iter().map(Pin::to_string).collect();
            tracing::info!(event = "ca_changed", trusted = trusted.join(" "), "clients are told as they are here");
            let able = self.open().filter(|(_, session)| !session.hello.authorities.is_empty());
            self.untold = able.map(|(link, _)| link).collect();
        }
    }

    /// True when a client trusts others than it should, and can change that.
    pub(super) fn has_news_of_authorities(&self, hello: &Hello) -> bool {
        !hello.authorities.is_empty() && hello.authorities != self.office.authorities.trusted_pins()
    }

    /// Tells some of those that wait for it.
    pub(super) async fn tell_authorities(&mut self) {
        let authorities = self.office.authorities.trusted();
        let authorities = authorities.into_iter().map(|certificate| Base64(certificate.to_vec())).collect();
        let message = FromServer::Authorities { authorities };
        let links: Vec<LinkId> = self.untold.drain(..self.untold.len().min(AT_ONCE)).collect();
        for link in links {
            if let Some(Link::Open(session)) = self.links.get_mut(&link) {
                session.renewed = None; // it will ask at once
                self.send(link, &message).await;
            }
        }
    }

    /// A client has a certificate by this CA on its disk.
    pub(super) fn on_kept(&self, link: LinkId, authority: Pin) {
        let Some(Link::Open(session)) = self.links.get(&link) else { return };
        if self.office.authorities.current().pin() != authority
            && self.office.authorities.second_pin() != Some(authority)
        {
            return; // nothing that anybody would act on
        }
        let (registry, device) = (self.office.registry.clone(), session.device.id.clone());
        tokio::spawn(async move {
            if let Err(error) = registry.holds(&device, &authority).await {
                tracing::warn!(event = "registry_failed", %error); // its next session shows it again
            }
        });
    }
}

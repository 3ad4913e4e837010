//! What is said with one client before it has a session: judging a session, or enrolling a device.
//!
//! One task a connection, so that a slow client delays nobody. A task reads the frames that the
//! gateway's loop hands it, and ends when that loop drops its end (the connection closed). Each
//! step has a deadline. Nothing is admitted here: that is for `sessions`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_tunnel::close::Close;
use culvert_tunnel::control::{self, FrameError, FromClient, FromServer, Hello};
use culvert_tunnel::device::Device as Interface;
use culvert_tunnel::enrol::{
    EnrolKey, Enroller, FromEnrollee, FromEnroller, Grant, NeedsInvitation, ProvenCsr, Refusal,
};
use culvert_tunnel::filter::Lease;
use culvert_tunnel::identity::{CertificateFacts, DeviceId};
use culvert_tunnel::shard::mailbox::{Command, Established, LinkId, ShardHandle};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::admit::{self, Refused};
use crate::authorities::{Authorities, Issuer};
use crate::config::Config;
use crate::dns;
use crate::door::Door;
use crate::log::{port, src};
use crate::metrics;
use crate::registry::{Device, EnrolError, Enrolment, Registry};
use crate::sessions::Proof;
use crate::settings::Settings;

/// How long a client may take for each step.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames of one client that may wait to be read.
pub const FRAMES: usize = 4;

/// What every conversation needs.
#[derive(Clone, Debug)]
pub struct Office<R> {
    /// The authority on devices and invitations.
    pub registry: R,
    /// Issue device certificates.
    pub authorities: Arc<Authorities>,
    /// What the operator chose.
    pub config: Config,
    /// The same, joined with what `init` chose.
    pub settings: Settings,
    /// Who this gateway is among those that share the registry; `None` where it has one of its own.
    pub gateway_id: Option<String>,
    /// What the resolver for clients has done, if there is one.
    pub dns: Option<Arc<dns::Counters>>,
    /// Told of refusals, and of sessions.
    pub door: Door,
}

/// A client that may have a session.
#[derive(Debug)]
pub struct Admission {
    /// Its connection.
    pub link: LinkId,
    /// Who it is.
    pub device: Device,
    /// With which addresses.
    pub lease: Lease,
    /// What it said of itself.
    pub hello: Hello,
    /// What its answers to challenges are judged by.
    pub proof: Proof,
}

/// One connection whose handshake is complete.
#[derive(Debug)]
pub struct Conversation<R, D: Interface> {
    /// Shared by all of them.
    pub office: Arc<Office<R>>,
    /// The shard that owns the connection.
    pub shard: ShardHandle<D>,
    /// What TLS found out.
    pub established: Established,
    /// Its frames, until it closes.
    pub frames: mpsc::Receiver<Vec<u8>>,
}

/// The connection is over, by whichever side; there is nobody to talk to.
struct Gone;

/// Why a step did not succeed.
enum Failed {
    Refused(Refused),
    Gone,
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Gone> for Failed {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<control::Refused> for Failed {
    fn from(refused: control::Refused) -> Self {
        Self::Refused(Refused::new(refused.close(), refused.reason))
    }
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        control::Refused::from(refusal).into()
    }
}

impl<R: Registry, D: Interface> Conversation<R, D> {
    /// Judges a session, up to and including `hello`. `None` when it was refused, or is gone.
    pub async fn judge_session(mut self) -> Option<Admission> {
        let mut peer = Peer::default();
        match self.session(&mut peer).await {
            Ok(admission) => Some(admission),
            Err(Failed::Gone) => None,
            Err(Failed::Refused(refused)) => {
                let door = &self.office.door;
                door.session_refused(self.established.remote, refused.code.word(), &peer.name, peer.device);
                self.close(refused).await;
                None
            }
        }
    }

    async fn session(&mut self, peer: &mut Peer) -> Result<Admission, Failed> {
        let Some(leaf) = self.established.peer_chain.first() else {
            return Err(Refused::new(Close::NoCertificate, "a session needs a device certificate; enrol first").into());
        };
        let proof = Proof { certificate: leaf.to_vec(), exporter: self.established.exporter };
        let facts =
            CertificateFacts::read(leaf).map_err(|error| Refused::new(Close::UnknownDevice, error.to_string()))?;
        peer.name = facts.common_name.clone().unwrap_or_default();
        let device = self.office.registry.device_by_key(facts.spki.as_bytes()).await.map_err(|error| {
            if !error.is_outage() {
                tracing::error!(event = "registry_failed", %error); // an outage is told once
            }
            Refused::new(Close::Internal, admit::registry_sentence(&error))
        })?;
        peer.device = device.as_ref().map(|device| device.id.clone());
        let lease =
            admit::judge_device(&facts, device.as_ref(), &self.office.settings.pool, OffsetDateTime::now_utc())?;
        let Some(device) = device else { return Err(Failed::Gone) }; // `judge_device` refuses `None`
        self.judge_issuer(leaf, &device).await?;
        peer.name = device.name.clone();
        let hello = self.hello().await?;
        let judged = admit::judge_hello(&hello);
        if let Err(refused) = &judged {
            self.send(&FromServer::Refused(control::Refused::new(refused.code, &refused.reason))).await?;
        }
        judged?;
        Ok(Admission { link: self.established.link, device, lease, hello, proof })
    }

    /// While there are several CAs: may one that this one has signed still come? The registry hears who has which.
    async fn judge_issuer(&self, certificate: &[u8], device: &Device) -> Result<(), Refused> {
        let Office { authorities, registry, .. } = &*self.office;
        if !authorities.are_several() {
            return Ok(());
        }
        let issuer = authorities.issuer(certificate);
        match issuer.map_err(|error| Refused::new(Close::UnknownDevice, error.to_string()))? {
            Issuer::Former => Err(Refused::new(
                Close::Expired,
                "the gateway has a new certificate authority since this device was last here; ask for a new invitation",
            )),
            Issuer::Counts(pin) if device.authority != Some(pin) => {
                if let Err(error) = registry.holds(&device.id, &pin).await {
                    tracing::warn!(event = "registry_failed", %error); // it is noted the next time
                }
                Ok(())
            }
            Issuer::Counts(_) => Ok(()),
        }
    }

    async fn hello(&mut self) -> Result<Hello, Failed> {
        loop {
            match self.receive::<FromClient>("hello").await? {
                Ok(FromClient::Hello(hello)) => return Ok(hello),
                Ok(_) => return Err(Refused::new(Close::Unexpected, "the first message must be hello").into()),
                Err(FrameError::Unknown(what)) => self.send(&FromServer::Unsupported { what }).await?,
                Err(error) => return Err(malformed(&error).into()),
            }
        }
    }

    /// Turns an invitation into a device, or refuses. Closes the connection in the end.
    pub async fn enrol(mut self) {
        let mut asked = Asked::default();
        match self.enrolment(&mut asked).await {
            Ok(device) => {
                metrics::enrolment("ok");
                tracing::info!(
                    event = "enrol_ok",
                    src = src(self.established.remote.ip()),
                    port = port(self.established.remote),
                    user = device.user,
                    device = device.name,
                    device_id = device.id,
                    ipv4 = %device.ipv4,
                    invitation = asked.invitation,
                );
                // The client closes when it has checked what it got; if not, we do.
                let _ = timeout(STEP_TIMEOUT, self.frames.recv()).await;
                self.close(Refused::new(Close::Goodbye, "enrolled")).await;
            }
            Err(Failed::Gone) => {}
            Err(Failed::Refused(refused)) => {
                let door = &self.office.door;
                door.enrolment_refused(self.established.remote, refused.code.word(), &asked.invitation, &asked.name);
                let told = FromEnroller::Refused(control::Refused::new(refused.code, &refused.reason));
                let _ = self.send(&told).await; // closing tells the code as well
                self.close(refused).await;
            }
        }
    }

    async fn enrolment(&mut self, asked: &mut Asked) -> Result<Device, Failed> {
        let mut enroller = Enroller::new(self.established.exporter);
        let begin = self.enrolment_frame("begin").await?;
        let NeedsInvitation { id, device_name, .. } = enroller.on_begin(begin)?;
        *asked = Asked { invitation: id.to_string(), name: device_name };
        let found = self.office.registry.invitation(id.as_bytes()).await;
        let found = found.map_err(|error| internal(&error))?;
        let whose = found.as_ref().map(|invitation| Whose {
            limit: self.office.config.policies.devices(&invitation.user, self.office.config.devices_per_user),
            renews: invitation.renews.clone(),
        });
        let judged = admit::judge_invitation(found, OffsetDateTime::now_utc()).and_then(|invitation| {
            let key: [u8; 32] = invitation.key.try_into().map_err(|_| Refusal::Internal)?;
            Ok(EnrolKey::from_bytes(key))
        });
        match enroller.on_invitation(judged) {
            FromEnroller::Refused(refused) => return Err(refused.into()),
            challenge => self.send(&challenge).await?,
        }
        let proof = self.enrolment_frame("proof").await?;
        let proven = enroller.on_proof(&proof)?;
        let (device, grant) = self.grant(id.as_bytes(), whose.unwrap_or_default(), &proven).await?;
        let enrolled = enroller.finish(grant)?;
        self.send(&enrolled).await?;
        Ok(device)
    }

    async fn enrolment_frame(&mut self, what: &'static str) -> Result<FromEnrollee, Failed> {
        self.receive::<FromEnrollee>(what).await?.map_err(|error| malformed(&error).into())
    }

    /// Issues the certificate and adds the device. A certificate of a device that was not added
    /// is worth nothing, so it comes first and the registry has the last word.
    async fn grant(&self, invitation: &[u8], whose: Whose, proven: &ProvenCsr) -> Result<(Device, Grant), Failed> {
        let Office { registry, authorities, config, settings, gateway_id, .. } = &*self.office;
        let authority = authorities.current(); // the one that the invitation names
        let id = match whose.renews {
            Some(known) => known.parse(),
            None => DeviceId::generate(),
        };
        let id = id.map_err(|_| Refusal::Internal)?;
        let issued = authority
            .issue_device_for(&proven.csr, id, config.device_lifetime, SystemTime::now())
            .map_err(|error| Failed::from(Refusal::BadRequest(error)))?;
        let enrolment = Enrolment {
            invitation,
            device: &id.to_string(),
            name: &proven.device_name,
            spki_sha256: *proven.spki.as_bytes(),
            serial: &issued.serial_hex,
            not_after: issued.not_after.into(),
            authority: authority.pin(),
            pool: settings.pool,
            gateway: gateway_id.as_deref(),
            devices_per_user: whose.limit,
            now: OffsetDateTime::now_utc(),
        };
        let device = registry.enrol(&enrolment).await.map_err(|error| {
            if let EnrolError::Registry(error) = &error
                && !error.is_outage()
            {
                tracing::error!(event = "registry_failed", %error);
            }
            admit::refusal(&error)
        })?;
        let grant = Grant {
            device_id: id,
            device_name: device.name.clone(),
            user: device.user.clone(),
            leaf: issued.der,
            authority: authority.certificate_der().to_vec(),
            gateway: settings.display_name().to_owned(),
            endpoints: settings.endpoints(),
            server_name: settings.endpoint.host.clone(),
        };
        Ok((device, grant))
    }

    async fn receive<M: DeserializeOwned>(&mut self, what: &'static str) -> Result<Result<M, FrameError>, Failed> {
        match timeout(STEP_TIMEOUT, self.frames.recv()).await {
            Ok(Some(payload)) => Ok(control::decode(&payload)),
            Ok(None) => Err(Failed::Gone),
            Err(_) => {
                let reason = format!("no {what} came within {} s", STEP_TIMEOUT.as_secs());
                Err(Refused::new(Close::Timeout, reason).into())
            }
        }
    }

    async fn send<M: Serialize>(&self, message: &M) -> Result<(), Failed> {
        let frame = control::encode(message).map_err(|error| malformed(&error))?;
        let link = self.established.link;
        self.shard.send(Command::Send { link, frame }).await.map_err(|_| Failed::Gone)
    }

    async fn close(&self, Refused { code, reason }: Refused) {
        // A shard that has stopped has closed the connection.
        let _ = self.shard.send(Command::Close { link: self.established.link, code, reason }).await;
    }
}

/// What an invitation says of the device that it makes.
#[derive(Default)]
struct Whose {
    /// How many devices its user may have.
    limit: Option<u32>,
    /// The device that gets a new key instead.
    renews: Option<String>,
}

/// Who a session would be for, as far as it is known.
#[derive(Default)]
struct Peer {
    /// What the certificate says, or the registry.
    name: String,
    /// The id of the device that the registry has under the certificate's key.
    device: Option<String>,
}

#[derive(Default)]
struct Asked {
    invitation: String,
    name: String,
}

fn malformed(error: &FrameError) -> Refused {
    Refused::new(error.close().unwrap_or(Close::Unexpected), error.to_string())
}

fn internal(error: &crate::registry::RegistryError) -> Refusal {
    if error.is_outage() {
        return Refusal::RegistryAway;
    }
    tracing::error!(event = "registry_failed", %error);
    Refusal::Internal
}

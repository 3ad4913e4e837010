//! Who may connect, and with which address. Pure: what the registry says goes in as values.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use culvert_tunnel::bucket::Bucket;
use culvert_tunnel::close::Close;
use culvert_tunnel::control::{Hello, VERSION, Welcome};
use culvert_tunnel::enrol::Refusal;
use culvert_tunnel::filter::Lease;
use culvert_tunnel::identity::{CertificateFacts, IdentityError};
use time::OffsetDateTime;

use crate::addresses::Pool;
use crate::config::Push;
use crate::registry::{Device, EnrolError, Invitation, RegistryError};
use crate::settings::Settings;

/// A session or an enrolment that will not be: the code, and one sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// For the close frame.
    pub code: Close,
    /// For the user.
    pub reason: String,
}

impl Refused {
    /// A refusal.
    pub fn new(code: Close, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// May the holder of this certificate have a session now?
///
/// TLS has verified the chain; the registry is the authority all the same. `device` is what it
/// has under the certificate's key.
///
/// # Errors
/// [`Refused`] with a verdict of the close table.
pub fn judge_device(
    certificate: &CertificateFacts,
    device: Option<&Device>,
    pool: &Pool,
    now: OffsetDateTime,
) -> Result<Lease, Refused> {
    let Some(device) = device.filter(|device| certificate.common_name.as_ref() == Some(&device.id)) else {
        return Err(Refused::new(
            Close::UnknownDevice,
            "this gateway does not know the device; ask for a new invitation",
        ));
    };
    if let Some(at) = device.revoked_at {
        return Err(Refused::new(Close::Revoked, format!("an administrator removed this device on {}", at.date())));
    }
    if now >= device.not_after.max(certificate.not_after.into()) {
        return Err(Refused::new(Close::Expired, "the device's certificate has expired; ask for a new invitation"));
    }
    device.lease(pool).ok_or_else(|| {
        let reason = format!("the gateway's network was changed and does not hold {}", device.ipv4);
        Refused::new(Close::PoolFull, reason)
    })
}

/// Do both ends speak a common version?
///
/// # Errors
/// [`Refused`] with [`Close::Version`].
pub fn judge_hello(hello: &Hello) -> Result<(), Refused> {
    if hello.version == VERSION {
        return Ok(());
    }
    let reason = format!("the client speaks version {} and this gateway version {VERSION}", hello.version);
    Err(Refused::new(Close::Version, reason))
}

/// What a client is told when its session opens.
pub fn welcome(
    settings: &Settings,
    push: &Push,
    rechallenge: Option<Duration>,
    device: &Device,
    lease: Lease,
    seen_as: SocketAddr,
) -> Welcome {
    let gateway = settings.pool.gateway();
    let ipv6 = settings.pool.ipv6();
    // A client without an inner IPv6 address cannot carry IPv6; it blocks what it cannot carry.
    Welcome {
        gateway: settings.display_name().to_owned(),
        device: device.name.clone(),
        ipv4: lease.ipv4,
        ipv6: lease.ipv6,
        gateway_ipv4: gateway.ipv4,
        gateway_ipv6: gateway.ipv6,
        networks: std::iter::once(settings.pool.ipv4().into()).chain(ipv6.map(Into::into)).collect(),
        routes: push.routes.clone(),
        excluded_routes: push.excluded_routes.clone(),
        dns_servers: settings.name_servers(&push.dns),
        dns_domains: push.domains.clone(),
        seen_as,
        endpoints: settings.endpoints(),
        certificate_until: device.not_after.unix_timestamp(),
        rechallenge_seconds: rechallenge.map_or(0, |every| every.as_secs()),
        time: Some(OffsetDateTime::now_utc().unix_timestamp()),
    }
}

/// What the enroller is told about an invitation that may not be used, from what the registry says.
pub fn refusal(error: &EnrolError) -> Refusal {
    match error {
        EnrolError::Foreign => Refusal::Foreign,
        EnrolError::Expired { at } => Refusal::Expired { at: (*at).into() },
        EnrolError::Used { at, device } => Refusal::Used { at: (*at).into(), device: device.clone() },
        EnrolError::Cancelled => Refusal::Cancelled,
        EnrolError::Limit { limit } => Refusal::Limit(*limit),
        EnrolError::KnownKey => Refusal::BadRequest(IdentityError::RequestKey),
        EnrolError::PoolFull(_) => Refusal::PoolFull,
        EnrolError::Registry(error) if error.is_outage() => Refusal::RegistryAway,
        EnrolError::Registry(_) => Refusal::Internal,
    }
}

/// What a known device's owner is told when the registry cannot say whether it may connect.
pub fn registry_sentence(error: &RegistryError) -> &'static str {
    match error {
        RegistryError::Forgotten => {
            "the gateway cannot reach its registry, and what it remembers is too old; it is tried again"
        }
        error if error.is_outage() => {
            "the gateway cannot reach its registry, and does not remember this device; it is tried again"
        }
        _ => "the gateway cannot read its registry; try again later",
    }
}

/// The invitation, if it may be used now.
///
/// # Errors
/// The [`Refusal`] for the enroller.
pub fn judge_invitation(invitation: Option<Invitation>, now: OffsetDateTime) -> Result<Invitation, Refusal> {
    let invitation = invitation.ok_or(Refusal::Foreign)?;
    invitation.judge(now).map_err(|error| refusal(&error))?;
    Ok(invitation)
}

/// How often one device may open a session: a few at once, as when it moves between networks.
const OPENS_AT_ONCE: u32 = 10;
/// See [`OPENS_AT_ONCE`].
const OPENS_PER_SECOND: u32 = 1;
/// Devices remembered before those that rest are forgotten.
const REMEMBERED: usize = 1024;

/// Who connects too often. Peers without a certificate share one bucket, so that strangers cannot keep
/// enrolled devices out; each device has its own, so that ten thousand may come back at once and one
/// that comes all the time is told to wait.
#[derive(Debug)]
pub struct Rates {
    strangers: Bucket,
    /// By the hash of its certificate.
    devices: HashMap<u64, Bucket>,
    hasher: RandomState,
    tidy_at: usize,
}

impl Rates {
    /// Strangers have `per_second` together, and as many at once.
    pub fn new(per_second: u32) -> Self {
        Self {
            strangers: Bucket::new(per_second, per_second),
            devices: HashMap::new(),
            hasher: RandomState::new(),
            tidy_at: REMEMBERED,
        }
    }

    /// May this peer have a connection now? `certificate` is its own, in DER; TLS has verified it.
    pub fn pass(&mut self, certificate: Option<&[u8]>, now: Instant) -> bool {
        let Some(certificate) = certificate else { return self.strangers.take(1, now) };
        if self.devices.len() >= self.tidy_at {
            self.devices.retain(|_, bucket| !bucket.is_full(now));
            self.tidy_at = REMEMBERED.max(2 * self.devices.len());
        }
        let device = self.hasher.hash_one(certificate);
        self.devices.entry(device).or_insert_with(|| Bucket::new(OPENS_PER_SECOND, OPENS_AT_ONCE)).take(1, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_tunnel::identity::{Authority, DeviceId, DeviceKey};
    use std::time::SystemTime;

    #[test]
    fn a_device_is_known_by_key_and_id_and_gets_its_own_address() {
        let (facts, device) = enrolled();
        let lease = judge_device(&facts, Some(&device), &pool(), now()).unwrap();
        assert_eq!(lease.ipv4, device.ipv4);
        assert_eq!(code(&facts, None, now()), Close::UnknownDevice);
        let other = Device { id: DeviceId::generate().unwrap().to_string(), ..device };
        assert_eq!(code(&facts, Some(&other), now()), Close::UnknownDevice);
    }

    #[test]
    fn a_revoked_or_expired_device_or_one_outside_the_network_is_told_so() {
        let (facts, device) = enrolled();
        let revoked = Device { revoked_at: Some(now()), ..device.clone() };
        assert_eq!(code(&facts, Some(&revoked), now()), Close::Revoked);
        assert_eq!(code(&facts, Some(&device), now() + time::Duration::days(91)), Close::Expired);
        let moved = Device { ipv4: "10.0.0.9".parse().unwrap(), ..device };
        assert_eq!(code(&facts, Some(&moved), now()), Close::PoolFull);
    }

    #[test]
    fn strangers_do_not_use_up_what_enrolled_devices_may() {
        let start = Instant::now();
        let mut rates = Rates::new(10);
        assert_eq!((0..50).filter(|_| rates.pass(None, start)).count(), 10);
        assert!(rates.pass(Some(b"a device"), start));
    }

    #[test]
    fn ten_thousand_devices_may_come_at_once_and_one_may_not_come_all_the_time() {
        let start = Instant::now();
        let mut rates = Rates::new(10);
        let herd = |n: u32| n.to_be_bytes();
        assert!((0..10_000).all(|n| rates.pass(Some(&herd(n)), start)));
        let one = (0..200).filter(|n| rates.pass(Some(b"one"), start + Duration::from_millis(n * 100))).count();
        assert_eq!(one, 29, "ten at once, then one a second");
        let later = start + Duration::from_secs(60);
        (0..20_000).for_each(|n| assert!(rates.pass(Some(&herd(20_000 + n)), later)));
        assert!(rates.devices.len() < 25_000, "those that rest are forgotten: {}", rates.devices.len());
    }

    #[test]
    fn another_version_is_refused() {
        let hello = |version| Hello { version, client: String::new(), platform: String::new(), authorities: vec![] };
        assert_eq!(judge_hello(&hello(VERSION)), Ok(()));
        assert_eq!(judge_hello(&hello(99)).unwrap_err().code, Close::Version);
    }

    fn code(facts: &CertificateFacts, device: Option<&Device>, now: OffsetDateTime) -> Close {
        judge_device(facts, device, &pool(), now).unwrap_err().code
    }

    fn enrolled() -> (CertificateFacts, Device) {
        let authority = Authority::create("test", SystemTime::now()).unwrap();
        let key = DeviceKey::generate().unwrap();
        let id = DeviceId::generate().unwrap();
        let issued = authority.issue_device(&key.csr("laptop").unwrap(), id, SystemTime::now()).unwrap();
        let device = Device {
            id: id.to_string(),
            user: "anna".into(),
            name: "laptop".into(),
            spki_sha256: *issued.spki.as_bytes(),
            serial: issued.serial_hex,
            not_after: issued.not_after.into(),
            ipv4: "100.77.3.2".parse().unwrap(),
            ipv6: None,
            created: now(),
            last_seen: None,
            revoked_at: None,
            authority: None,
        };
        (CertificateFacts::read(&issued.der).unwrap(), device)
    }

    fn pool() -> Pool {
        Pool::new("100.77.3.0/24".parse().unwrap(), None)
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }
}

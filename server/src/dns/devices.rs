//! The devices' own names: `DEVICE.USER.internal`, and the names of inner addresses. Pure.
//!
//! A device sees itself and the gateway; it sees others only without isolation, and a name that it may
//! not see is answered like one that is not there. Users and devices are called as people like, so
//! their names become labels: in lower case, and a `-` for whatever a host name cannot have.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use culvert_tunnel::filter::Lease;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::question::Answer;
use crate::addresses::Pool;
use crate::registry::Device;

/// How long a client may keep such an answer: a device may be removed at any time.
pub const TTL_SECONDS: u32 = 30;
/// The gateway's label below the domain.
const GATEWAY: &str = "gateway";
/// RFC 1035 section 2.3.4.
const LABEL_BYTES: usize = 63;

/// Names and addresses of every device at one moment.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    domain: Option<Name>,
    gateway: Option<(Name, Lease)>,
    by_name: HashMap<Name, Lease>,
    by_address: HashMap<IpAddr, Name>,
    /// The users' names, which have nothing but devices below them.
    users: HashSet<Name>,
    isolation: bool,
}

impl Devices {
    /// Those that may connect. Of two that come to the same name the one enrolled first has it, so that
    /// nobody takes over a name by calling a new device like an old one.
    pub fn new(domain: Option<&Name>, devices: &[Device], pool: &Pool, isolation: bool) -> Self {
        let mut this = Self { domain: domain.cloned(), isolation, ..Self::default() };
        let Some(domain) = domain else { return this };
        this.gateway = domain.prepend_label(GATEWAY).ok().map(|name| (name, pool.gateway()));
        let mut devices: Vec<&Device> = devices.iter().filter(|device| device.revoked_at.is_none()).collect();
        devices.sort_by_key(|device| device.created);
        for device in devices {
            if let (Some(name), Some(lease)) = (name(device, domain), device.lease(pool))
                && !this.by_name.contains_key(&name)
            {
                this.by_address.extend(addresses(lease).map(|address| (address, name.clone())));
                this.users.insert(name.base_name());
                this.by_name.insert(name, lease);
            }
        }
        this
    }

    /// What `asker` is told about a name in the devices' domain.
    pub fn lookup(&self, asker: IpAddr, name: &Name, kind: RecordType) -> Answer {
        let Some(domain) = &self.domain else { return nothing(name, ResponseCode::NXDomain) };
        if let Some(lease) = self.lease(asker, name) {
            let records = addresses(lease).map(|address| match address {
                IpAddr::V4(address) => RData::A(A(address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(address)),
            });
            let wanted = records.filter(|data| kind == data.record_type() || kind == RecordType::ANY);
            return found(domain, name, wanted.collect());
        }
        match kind {
            RecordType::SOA if name == domain => found(domain, name, vec![RData::SOA(authority(domain))]),
            _ if name == domain || self.is_above(asker, name) => nothing(domain, ResponseCode::NoError),
            _ => nothing(domain, ResponseCode::NXDomain),
        }
    }

    /// What `asker` is told about an inner address. `name` is the question's, `exact` when it is the address' own.
    pub fn reverse(&self, asker: IpAddr, name: &Name, address: IpAddr, exact: bool, kind: RecordType) -> Answer {
        match self.holder(asker, address) {
            Some(holder) if exact && matches!(kind, RecordType::PTR | RecordType::ANY) => {
                found(name, name, vec![RData::PTR(PTR(holder.clone()))])
            }
            Some(_) if exact => nothing(&name.base_name(), ResponseCode::NoError),
            _ => nothing(&name.base_name(), ResponseCode::NXDomain),
        }
    }

    fn lease(&self, asker: IpAddr, name: &Name) -> Option<Lease> {
        let gateway = self.gateway.iter().find(|(own, _)| own == name).map(|(_, lease)| *lease);
        gateway.or_else(|| self.by_name.get(name).filter(|_| self.sees(asker, name)).copied())
    }

    fn holder(&self, asker: IpAddr, address: IpAddr) -> Option<&Name> {
        let gateway = self.gateway.iter().find(|(_, lease)| addresses(*lease).any(|own| own == address));
        let device = || self.by_address.get(&address).filter(|name| self.sees(asker, name));
        gateway.map(|(name, _)| name).or_else(device)
    }

    /// A name with others below it exists, even if it has nothing itself (RFC 8020).
    fn is_above(&self, asker: IpAddr, name: &Name) -> bool {
        let own = self.by_address.get(&asker).is_some_and(|own| name.zone_of(own));
        own || !self.isolation && self.users.contains(name)
    }

    fn sees(&self, asker: IpAddr, name: &Name) -> bool {
        !self.isolation || self.by_address.get(&asker) == Some(name)
    }
}

fn addresses(lease: Lease) -> impl Iterator<Item = IpAddr> {
    std::iter::once(lease.ipv4.into()).chain(lease.ipv6.map(IpAddr::from))
}

fn name(device: &Device, domain: &Name) -> Option<Name> {
    let user = domain.prepend_label(label(&device.user)?).ok()?;
    user.prepend_label(label(&device.name)?).ok()
}

/// `Anna's laptop` is `anna-s-laptop`; `None` when nothing is left.
fn label(text: &str) -> Option<String> {
    let mut label = String::new();
    for letter in text.chars().map(|letter| letter.to_ascii_lowercase()) {
        match letter {
            'a'..='z' | '0'..='9' => label.push(letter),
            _ if label.is_empty() || label.ends_with('-') => {}
            _ => label.push('-'),
        }
    }
    label.truncate(LABEL_BYTES);
    label.truncate(label.trim_end_matches('-').len());
    (!label.is_empty()).then_some(label)
}

fn found(domain: &Name, name: &Name, data: Vec<RData>) -> Answer {
    if data.is_empty() {
        return nothing(domain, ResponseCode::NoError);
    }
    let answers = data.into_iter().map(|data| Record::from_rdata(name.clone(), TTL_SECONDS, data)).collect();
    Answer { authoritative: true, answers, ..Answer::bare(ResponseCode::NoError) }
}

/// No such name, or nothing of that type; the SOA says for how long (RFC 2308 section 3).
pub fn nothing(domain: &Name, code: ResponseCode) -> Answer {
    let soa = Record::from_rdata(domain.clone(), TTL_SECONDS, RData::SOA(authority(domain)));
    Answer { authoritative: true, authorities: vec![soa], ..Answer::bare(code) }
}

fn authority(domain: &Name) -> SOA {
    const DAY_SECONDS: i32 = 86_400;
    let nobody = domain.prepend_label("nobody").unwrap_or_else(|_| domain.clone());
    SOA::new(domain.clone(), nobody, 1, DAY_SECONDS, DAY_SECONDS, DAY_SECONDS, TTL_SECONDS)
}

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::*;

    #[test]
    fn a_device_learns_its_own_addresses_and_the_gateways() {
        let devices = devices(true);
        for name in ["laptop.anna.internal.", "LAPTOP.Anna.internal."] {
            assert_eq!(devices.addresses(LAPTOP, name), ["100.77.3.2", "fd4e:9a1c::2"], "{name}");
        }
        assert_eq!(devices.addresses(LAPTOP, "gateway.internal."), ["100.77.3.1", "fd4e:9a1c::1"]);
        assert_eq!(devices.pointer(LAPTOP, LAPTOP), "laptop.anna.internal.");
        assert_eq!(devices.pointer(LAPTOP, "fd4e:9a1c::1"), "gateway.internal.");
    }

    #[test]
    fn with_isolation_another_device_is_answered_like_one_that_is_not_there() {
        let devices = devices(true);
        for (theirs, nobodys) in
            [("bob-s-phone.bob.internal.", "nothing.bob.internal."), ("bob.internal.", "eve.internal.")]
        {
            let told = |name: &str| {
                let answer = devices.lookup(ip(LAPTOP), &self::name(name), RecordType::A);
                format!("{answer:?}")
            };
            assert_eq!(told(theirs), told(nobodys));
            assert!(told(theirs).contains("NXDomain"));
        }
        assert_eq!(devices.pointer(LAPTOP, PHONE), "NXDomain");
        assert_eq!(devices.lookup(ip(LAPTOP), &name("anna.internal."), RecordType::A).code, ResponseCode::NoError);
    }

    #[test]
    fn without_isolation_devices_know_each_other() {
        let devices = devices(false);
        assert_eq!(devices.addresses(LAPTOP, "bob-s-phone.bob.internal."), ["100.77.3.3", "fd4e:9a1c::3"]);
        assert_eq!(devices.pointer(LAPTOP, PHONE), "bob-s-phone.bob.internal.");
        assert_eq!(devices.lookup(ip(LAPTOP), &name("bob.internal."), RecordType::A).code, ResponseCode::NoError);
    }

    #[test]
    fn the_first_of_two_devices_keeps_its_name_and_a_removed_one_has_none() {
        let devices = devices(false);
        assert_eq!(devices.addresses(PHONE, "laptop.anna.internal."), ["100.77.3.2", "fd4e:9a1c::2"]);
        assert_eq!(devices.addresses(PHONE, "gone.anna.internal."), ["NXDomain"]);
        assert_eq!(devices.addresses(PHONE, "..anna.internal."), ["NXDomain"]);
    }

    #[test]
    fn a_name_without_that_record_is_no_error() {
        let answer = devices(true).lookup(ip(LAPTOP), &name("laptop.anna.internal."), RecordType::MX);
        assert_eq!((answer.code, answer.answers.len(), answer.authorities.len()), (ResponseCode::NoError, 0, 1));
        let soa = devices(true).lookup(ip(LAPTOP), &name("internal."), RecordType::SOA);
        assert_eq!(soa.answers.len(), 1);
    }

    #[test]
    fn names_become_labels() {
        for (text, expected) in [
            ("laptop", Some("laptop")),
            ("Anna's  Laptop!", Some("anna-s-laptop")),
            ("Jürgens Mac", Some("j-rgens-mac")),
            ("..", None),
            ("日本", None),
        ] {
            assert_eq!(label(text).as_deref(), expected, "{text}");
        }
        assert_eq!(label(&"x".repeat(64)).unwrap().len(), 63);
    }

    const LAPTOP: &str = "100.77.3.2";
    const PHONE: &str = "100.77.3.3";

    impl Devices {
        /// The addresses that the asker is told, or the code.
        fn addresses(&self, asker: &str, name: &str) -> Vec<String> {
            let Ok(name) = Name::from_ascii(name) else { return vec!["NXDomain".into()] };
            let answers = [RecordType::A, RecordType::AAAA].map(|kind| self.lookup(ip(asker), &name, kind));
            if answers[0].code != ResponseCode::NoError {
                return vec![format!("{:?}", answers[0].code)];
            }
            answers.iter().flat_map(|answer| &answer.answers).map(|record| record.data.to_string()).collect()
        }

        /// The name that the asker is told, or the code.
        fn pointer(&self, asker: &str, address: &str) -> String {
            let name = Name::from(ip(address));
            let answer = self.reverse(ip(asker), &name, ip(address), true, RecordType::PTR);
            answer.answers.first().map_or(format!("{:?}", answer.code), |record| record.data.to_string())
        }
    }

    fn devices(isolation: bool) -> Devices {
        let mut gone = device("anna", "gone", 5, 0);
        gone.revoked_at = Some(OffsetDateTime::UNIX_EPOCH);
        // The one that came later is named first, so that the order of the registry decides nothing.
        let all =
            [device("anna", "Laptop", 4, 9), device("anna", "laptop", 2, 1), device("bob", "Bob's phone", 3, 2), gone];
        let pool = Pool::new("100.77.3.0/24".parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap()));
        Devices::new(Some(&name("internal.")), &all, &pool, isolation)
    }

    fn device(user: &str, name: &str, last: u8, day: i64) -> Device {
        Device {
            id: format!("{user}-{last}"),
            user: user.into(),
            name: name.into(),
            spki_sha256: [last; 32],
            serial: String::new(),
            not_after: OffsetDateTime::UNIX_EPOCH,
            ipv4: [100, 77, 3, last].into(),
            ipv6: None,
            created: OffsetDateTime::UNIX_EPOCH + Duration::days(day),
            last_seen: None,
            revoked_at: None,
            authority: None,
        }
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}

//! What one client may reach, and how fast. Pure; a few comparisons a packet, none for a client without rules.
//!
//! Rules judge what a client sends. What comes back needs no rule: the gateway's firewall lets only
//! answers into the tunnel. Not here: whose address a packet may have, and client to client (`filter`).

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use crate::bucket::Bucket;
use crate::packet::{Dropped, Fragment, Header};

/// TCP, UDP and SCTP keep their ports in the first four bytes.
const WITH_PORTS: [u8; 3] = [6, 17, 132];
/// What passes at once under a rate: a tenth of a second, but at least this, or TCP would never get up to speed.
const BURST_MIN_BYTES: u32 = 256 * 1024;

/// The rules of one client; those of a group are shared by its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The only destinations; `None` is everything.
    pub allow: Option<Vec<Allow>>,
    /// The most that passes in each direction; `None` is no limit.
    pub bytes_per_second: Option<u32>,
}

/// One destination that may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Where.
    pub network: IpNet,
    /// By which transport (IANA's protocol number); `None` is any.
    pub protocol: Option<u8>,
    /// At which ports; `None` is any. Needs a protocol that has ports.
    pub ports: Option<RangeInclusive<u16>>,
}

impl Allow {
    fn matches(&self, destination: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        self.network.contains(&destination)
            && self.protocol.is_none_or(|allowed| allowed == protocol)
            // A later fragment has no ports; without its first one it is worth nothing.
            && self.ports.as_ref().is_none_or(|ports| port.is_none_or(|port| ports.contains(&port)))
    }
}

/// The rules of one link, with what has passed.
#[derive(Debug)]
pub(crate) struct Limits {
    rules: Arc<Rules>,
    inwards: Option<Bucket>,
    outwards: Option<Bucket>,
}

impl Limits {
    pub(crate) fn new(rules: Arc<Rules>) -> Self {
        let bucket = |rate: u32| Bucket::new(rate, (rate / 10).max(BURST_MIN_BYTES));
        let [inwards, outwards] = [rules.bytes_per_second.map(bucket); 2];
        Self { rules, inwards, outwards }
    }

    /// May the client send this packet? `spared`: its destination is the gateway itself.
    pub(crate) fn judge_received(
        &mut self,
        header: &Header,
        packet: &[u8],
        spared: bool,
        now: Instant,
    ) -> Result<(), Dropped> {
        let destination = header.dst();
        if let (Some(allow), false) = (&self.rules.allow, spared) {
            let protocol = header.protocol();
            let port = destination_port(header, packet)?;
            if !allow.iter().any(|allow| allow.matches(destination, protocol, port)) {
                return Err(Dropped::Policy { destination });
            }
        }
        pass(&mut self.inwards, packet.len(), now)
    }

    /// May these bytes go to the client?
    pub(crate) fn judge_sent(&mut self, bytes: usize, now: Instant) -> Result<(), Dropped> {
        pass(&mut self.outwards, bytes, now)
    }
}

fn pass(bucket: &mut Option<Bucket>, bytes: usize, now: Instant) -> Result<(), Dropped> {
    let passes = bucket.as_mut().is_none_or(|bucket| bucket.take(bytes as u32, now));
    if passes { Ok(()) } else { Err(Dropped::RateLimit) }
}

/// `None` where the protocol has no ports, or this fragment does not hold them.
fn destination_port(header: &Header, packet: &[u8]) -> Result<Option<u16>, Dropped> {
    if header.fragment() == Fragment::Later || !WITH_PORTS.contains(&header.protocol()) {
        return Ok(None);
    }
    match *header.payload(packet) {
        [_, _, high, low, ..] => Ok(Some(u16::from_be_bytes([high, low]))),
        // A first fragment cut before its ports would pass every rule.
        _ => Err(Dropped::Malformed { len: packet.len() }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const ICMP: u8 = 1;

    #[test]
    fn only_what_is_allowed_passes() {
        let rules = [allow("10.1.0.0/16", None, None), allow("10.2.0.5/32", Some(TCP), Some(443..=444))];
        for (to, protocol, port, passes) in [
            ("10.1.9.9", UDP, 53, true),
            ("10.1.9.9", ICMP, 0, true),
            ("10.2.0.5", TCP, 443, true),
            ("10.2.0.5", TCP, 444, true),
            ("10.2.0.5", TCP, 445, false),
            ("10.2.0.5", UDP, 443, false),
            ("10.2.0.5", ICMP, 0, false),
            ("10.2.0.6", TCP, 443, false),
            ("192.0.2.1", TCP, 443, false),
        ] {
            let judged = judge(&rules, &packet(to, protocol, port, 0));
            assert_eq!(judged.is_ok(), passes, "{to} {protocol} {port}: {judged:?}");
        }
    }

    #[test]
    fn the_gateway_itself_is_spared_and_no_rules_allow_everything() {
        let packet = packet("100.77.3.1", UDP, 53, 0);
        let header = Header::parse(&packet).unwrap();
        let mut limits = Limits::new(Arc::new(Rules { allow: Some(vec![]), bytes_per_second: None }));
        assert_eq!(limits.judge_received(&header, &packet, true, Instant::now()), Ok(()));
        let refused = Err(Dropped::Policy { destination: header.dst() });
        assert_eq!(limits.judge_received(&header, &packet, false, Instant::now()), refused);
        let mut free = Limits::new(Arc::new(Rules::default()));
        assert_eq!(free.judge_received(&header, &packet, false, Instant::now()), Ok(()));
    }

    #[test]
    fn fragments_cannot_go_round_a_port() {
        let rules = [allow("10.2.0.5/32", Some(TCP), Some(443..=443))];
        // "More fragments" at offset 0 with two bytes of payload: the ports are in the next one.
        let mut tiny = packet("10.2.0.5", TCP, 443, 0x2000);
        tiny.truncate(22);
        tiny[3] = 22;
        assert_eq!(judge(&rules, &tiny), Err(Dropped::Malformed { len: 22 }));
        assert!(judge(&rules, &packet("10.2.0.5", TCP, 22, 0x2000)).is_err());
        // Later fragments go to where their first one may, and nowhere else.
        assert_eq!(judge(&rules, &packet("10.2.0.5", TCP, 22, 0x0100)), Ok(()));
        assert!(judge(&rules, &packet("10.2.0.5", UDP, 22, 0x0100)).is_err());
    }

    #[test]
    fn a_rate_holds_in_each_direction_by_itself() {
        let rate = 10 * 1024 * 1024;
        let mut limits = Limits::new(Arc::new(Rules { allow: None, bytes_per_second: Some(rate) }));
        let t0 = Instant::now();
        let mut passed = 0_u64;
        for millisecond in 0..1_000 {
            for _ in 0..20 {
                let now = t0 + Duration::from_millis(millisecond);
                passed += u64::from(limits.judge_sent(1_000, now).is_ok()) * 1_000;
            }
        }
        let most = u64::from(rate) + u64::from(rate / 10);
        assert!((u64::from(rate)..=most).contains(&passed), "{passed} of {rate}");
        let packet = packet("192.0.2.1", UDP, 53, 0);
        let header = Header::parse(&packet).unwrap();
        assert_eq!(limits.judge_received(&header, &packet, false, t0), Ok(()));
    }

    fn allow(network: &str, protocol: Option<u8>, ports: Option<RangeInclusive<u16>>) -> Allow {
        Allow { network: network.parse().unwrap(), protocol, ports }
    }

    fn judge(rules: &[Allow], packet: &[u8]) -> Result<(), Dropped> {
        let mut limits = Limits::new(Arc::new(Rules { allow: Some(rules.to_vec()), bytes_per_second: None }));
        limits.judge_received(&Header::parse(packet).unwrap(), packet, false, Instant::now())
    }

    /// An IPv4 packet of 28 bytes; `place` is flags and fragment offset.
    fn packet(to: &str, protocol: u8, port: u16, place: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, protocol, 0, 0, 100, 77, 3, 2];
        packet[6..8].copy_from_slice(&place.to_be_bytes());
        let IpAddr::V4(to) = to.parse().unwrap() else { panic!("IPv4") };
        packet.extend(to.octets());
        packet.extend([0x30, 0x39]);
        packet.extend(port.to_be_bytes());
        packet.extend([0, 8, 0, 0]);
        packet
    }
}

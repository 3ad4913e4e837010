//! The one state enum, and the snapshot that `culvert status` prints.
//!
//! Fields are only added inside one [`SCHEMA`] number. Times are RFC 3339 in UTC, sizes are bytes,
//! durations carry their unit in the name. A fact that was not checked is absent, never "true".

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::problem::Problem;
use crate::settings::KillSwitch;

/// A moment, in UTC.
pub type Timestamp = OffsetDateTime;

/// The version of the JSON that `status --json` and `watch --json` print.
pub const SCHEMA: u32 = 1;

/// Where the client is. Shared by helper, CLI and app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// There is no identity yet.
    NotEnrolled,
    /// Nothing is changed on this machine, and nothing is wanted.
    Disconnected,
    /// The first attempt is under way.
    Connecting {
        /// What it waits for.
        step: Step,
    },
    /// The gateway has said welcome and an echo has come back through the tunnel.
    Connected {
        /// Since when.
        #[serde(with = "time::serde::rfc3339")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Moment"))]
        since: Timestamp,
    },
    /// The link is gone, or an attempt failed for a cause that time may heal. Traffic is held back while
    /// `protection` is there; before the first session nothing is in force.
    Reconnecting {
        /// Why the last link or attempt ended.
        cause: Problem,
        /// Attempts since the link was last healthy.
        attempt: u32,
        /// When the next one begins; absent while one is under way.
        #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(with = "Option<crate::schema::Moment>"))]
        next_at: Option<Timestamp>,
    },
    /// This machine has no network; connects by itself when one is back.
    Offline,
    /// This network wants a sign-in first.
    PortalSignIn {
        /// Its page.
        #[serde(default)]
        page: String,
        /// The page can be reached until then, and nothing else; absent while it is held back, too.
        #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(with = "Option<crate::schema::Moment>"))]
        open_until: Option<Timestamp>,
    },
    /// The kill switch holds traffic back while there is no tunnel.
    Blocked {
        /// Why there is no tunnel.
        cause: Problem,
    },
    /// A person must act; nothing is tried again by itself.
    Failed {
        /// What happened, and what to do.
        #[serde(flatten)]
        problem: Problem,
    },
    /// Changes are being undone.
    Disconnecting,
    /// Connecting is suspended by a rule (a trusted network, a timer).
    Paused,
}

impl State {
    /// The stable word, as in JSON.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotEnrolled => "not_enrolled",
            Self::Disconnected => "disconnected",
            Self::Connecting { .. } => "connecting",
            Self::Connected { .. } => "connected",
            Self::Reconnecting { .. } => "reconnecting",
            Self::Offline => "offline",
            Self::PortalSignIn { .. } => "portal_sign_in",
            Self::Blocked { .. } => "blocked",
            Self::Failed { .. } => "failed",
            Self::Disconnecting => "disconnecting",
            Self::Paused => "paused",
        }
    }

    /// True only in [`Self::Connected`].
    pub const fn is_connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }
}

/// What an attempt waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The gateway's name is being looked up.
    Resolve,
    /// The QUIC and TLS handshake.
    Handshake,
    /// The gateway's decision about this device.
    Welcome,
    /// Device, addresses, routes and resolver of this machine.
    Configure,
    /// The first echo through the tunnel.
    Echo,
}

impl Step {
    /// What is happening, for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Resolve => "looking up the gateway's name",
            Self::Handshake => "waiting for the gateway's answer",
            Self::Welcome => "waiting for the gateway's decision",
            Self::Configure => "setting up addresses and routes",
            Self::Echo => "testing the tunnel",
        }
    }
}

/// Everything there is to know at one moment. Parts that do not apply are absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The state; its `state` field is the word.
    #[serde(flatten)]
    pub state: State,
    /// The profile in use, or the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The gateway of that profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// Inner addresses of this device, IPv4 first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The tunnel interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// What goes through the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<Protection>,
    /// The kill switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_switch: Option<Blocking>,
    /// What is known of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Path>,
    /// Counters of this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// The device certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// Sentences about what could not be done, such as a resolver that was left alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The helper's program version.
    pub helper: String,
}

/// Which gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Gateway {
    /// Its display name.
    pub name: String,
    /// `host:port`, as enrolled.
    pub endpoint: String,
    /// The address in use; absent while not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// The address that the gateway sees this client at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_as: Option<SocketAddr>,
    /// Its own address inside the tunnel; absent while not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<IpAddr>,
}

/// What goes through the tunnel. True only for what the helper has put in force itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Protection {
    /// All IPv4 traffic goes through the tunnel.
    pub ipv4: bool,
    /// All IPv6 traffic goes through the tunnel, or is refused at once.
    pub ipv6: bool,
    /// The resolver is the gateway's.
    pub dns: bool,
    /// The kill switch is on.
    pub kill_switch: bool,
}

/// The kill switch: what is chosen, and what is so now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Blocking {
    /// When it is to be in force.
    pub mode: KillSwitch,
    /// True while the system's firewall refuses what would leave beside the tunnel.
    pub in_force: bool,
    /// Local networks may be reached all the same.
    pub allow_lan: bool,
}

/// What is known of the path to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Path {
    /// Smoothed round-trip time.
    pub rtt_ms: f64,
    /// QUIC packets declared lost, of those sent in this session.
    pub loss_percent: f64,
    /// The largest inner packet that crosses in one datagram.
    pub mtu_bytes: u16,
    /// UDP payload bytes that the path carries.
    #[serde(default)]
    pub path_mtu_bytes: u16,
    /// Times that the path was found to carry less than before.
    #[serde(default)]
    pub black_holes: u64,
}

/// Counters of one session, seen from this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Traffic {
    /// Inner bytes received.
    pub received_bytes: u64,
    /// Inner bytes sent.
    pub sent_bytes: u64,
    /// Inner packets received.
    pub received_packets: u64,
    /// Inner packets sent.
    pub sent_packets: u64,
    /// Packets dropped.
    pub dropped: Dropped,
    /// Packets sent that crossed as two datagrams.
    #[serde(default)]
    pub split_packets: u64,
    /// Packets that were too big, and whose senders were told by ICMP.
    #[serde(default)]
    pub too_big_answers: u64,
}

/// Packets dropped, by direction and reason; only reasons that occurred.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Dropped {
    /// On their way to the gateway.
    pub sent: Drops,
    /// On their way from it.
    pub received: Drops,
}

/// Packets by the word for the reason.
pub type Drops = BTreeMap<String, u64>;

/// The device certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Certificate {
    /// The device's name in the gateway's registry.
    pub device: String,
    /// When access ends unless it is renewed.
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Moment"))]
    pub until: Timestamp,
}

#[cfg(test)]
pub(crate) fn sample() -> Status {
    use time::macros::datetime;
    Status {
        schema: SCHEMA,
        state: State::Connected { since: datetime!(2026-05-03 09:12:00 UTC) },
        profile: Some("acme".into()),
        gateway: Some(Gateway {
            name: "Acme".into(),
            endpoint: "vpn.acme.org:443".into(),
            remote: Some("203.0.113.7:443".parse().unwrap()),
            seen_as: Some("198.51.100.2:40000".parse().unwrap()),
            inner: Some("100.77.3.1".parse().unwrap()),
        }),
        addresses: vec!["100.77.3.9".parse().unwrap(), "fd4e:9a1c::9".parse().unwrap()],
        interface: Some("culvert0".into()),
        protection: Some(Protection { ipv4: true, ipv6: true, dns: true, kill_switch: true }),
        kill_switch: Some(Blocking { mode: KillSwitch::Auto, in_force: true, allow_lan: true }),
        path: Some(Path { rtt_ms: 23.0, loss_percent: 0.5, mtu_bytes: 1380, path_mtu_bytes: 1413, black_holes: 1 }),
        traffic: Some(Traffic {
            received_bytes: 1_200_000_000,
            sent_bytes: 96_000_000,
            received_packets: 900_000,
            sent_packets: 400_000,
            dropped: Dropped { sent: [("too_big".to_owned(), 2)].into(), received: Drops::new() },
            split_packets: 7,
            too_big_answers: 2,
        }),
        certificate: Some(Certificate { device: "anna-mac".into(), until: datetime!(2026-08-03 00:00:00 UTC) }),
        notes: vec!["a note".into()],
        helper: "0.1.0".into(),
    }
}

#[cfg(test)]
pub(crate) fn sample_json() -> serde_json::Value {
    serde_json::json!({
        "schema": 1, "state": "connected", "since": "2026-05-03T09:12:00Z", "profile": "acme",
        "gateway": {"name": "Acme", "endpoint": "vpn.acme.org:443", "remote": "203.0.113.7:443",
                    "seen_as": "198.51.100.2:40000", "inner": "100.77.3.1"},
        "addresses": ["100.77.3.9", "fd4e:9a1c::9"], "interface": "culvert0",
        "protection": {"ipv4": true, "ipv6": true, "dns": true, "kill_switch": true},
        "kill_switch": {"mode": "auto", "in_force": true, "allow_lan": true},
        "path": {"rtt_ms": 23.0, "loss_percent": 0.5, "mtu_bytes": 1380, "path_mtu_bytes": 1413, "black_holes": 1},
        "traffic": {"received_bytes": 1_200_000_000, "sent_bytes": 96_000_000, "received_packets": 900_000,
                    "sent_packets": 400_000, "dropped": {"sent": {"too_big": 2}, "received": {}},
                    "split_packets": 7, "too_big_answers": 2},
        "certificate": {"device": "anna-mac", "until": "2026-08-03T00:00:00Z"},
        "notes": ["a note"], "helper": "0.1.0"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::code;

    #[test]
    fn each_state_is_told_by_the_word_it_claims() {
        let problem = Problem::new(code::REVOKED);
        let at = time::macros::datetime!(2026-05-03 09:12:00 UTC);
        let states = [
            State::NotEnrolled,
            State::Disconnected,
            State::Connecting { step: Step::Echo },
            State::Connected { since: at },
            State::Reconnecting { cause: problem.clone(), attempt: 1, next_at: None },
            State::Offline,
            State::PortalSignIn { page: "http://login.hotel.example/".into(), open_until: Some(at) },
            State::Blocked { cause: problem.clone() },
            State::Failed { problem },
            State::Disconnecting,
            State::Paused,
        ];
        for state in states {
            let json = serde_json::to_value(&state).unwrap();
            assert_eq!(json["state"], state.word());
            assert_eq!(serde_json::from_value::<State>(json).unwrap(), state);
        }
    }

    #[test]
    fn a_newer_helpers_extra_field_is_ignored() {
        let mut json = sample_json();
        json["weather"] = "fine".into();
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), sample());
    }

    #[test]
    fn what_does_not_apply_is_absent() {
        let bare = Status {
            schema: SCHEMA,
            state: State::NotEnrolled,
            profile: None,
            gateway: None,
            addresses: vec![],
            interface: None,
            protection: None,
            kill_switch: None,
            path: None,
            traffic: None,
            certificate: None,
            notes: vec![],
            helper: "0.1.0".into(),
        };
        let json = serde_json::to_value(&bare).unwrap();
        assert_eq!(json, serde_json::json!({"schema": 1, "state": "not_enrolled", "helper": "0.1.0"}));
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), bare);
    }
}

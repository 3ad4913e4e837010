//! The messages, one enum per direction. Every [`Ask`] gets exactly one [`Answer`] with its `id`;
//! after `watch`, answers without an `id` follow whenever the state changes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::diagnosis::Diagnosis;
use crate::log::{LogLevel, LogLine};
use crate::managed::SettingsInForce;
use crate::problem::Problem;
use crate::secret::Secret;
use crate::settings::SettingsChange;
use crate::status::{State, Status, Timestamp};

/// What may be asked. The whole list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Opens the conversation. The first request, and only the first.
    Hello {
        /// The protocol version that the caller speaks.
        version: u32,
        /// The caller's program and version, for the log.
        client: String,
        /// What [`Event::Nonce`] said, where it was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nonce: Option<String>,
    },
    /// Everything there is to know now. Answered by [`Event::Status`].
    Status,
    /// Like `status`, and from then on [`Event::Change`] at every change.
    Watch,
    /// Trades an invitation for an identity; the new profile becomes the default one.
    /// Answered by [`Event::Enrolled`] when it is done.
    Enrol {
        /// `culvert://enrol#..`, as the gateway printed it.
        invitation: String,
        /// The name that the gateway's list of devices shows; the host's name when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device_name: Option<String>,
    },
    /// Connects, and stays connected until `disconnect`. Answered at once by [`Event::Done`].
    Connect {
        /// A profile's name; the default profile when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        profile: Option<String>,
        /// The keychain's key of a profile that is sealed; the helper forgets it at `disconnect`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<Secret>,
    },
    /// Seals a profile's device key, so that it opens only with this key, which the user's keychain keeps. Answered
    /// by [`Event::Profiles`].
    SealProfile {
        /// Its name.
        profile: String,
        /// The keychain's key.
        key: Secret,
    },
    /// Undoes `seal_profile`. Answered by [`Event::Profiles`].
    UnsealProfile {
        /// Its name.
        profile: String,
        /// The keychain's key.
        key: Secret,
    },
    /// Disconnects and undoes every change. Answered at once by [`Event::Done`].
    Disconnect {
        /// Lifts the kill switch in any mode, until the next `connect`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unblock: bool,
    },
    /// The gateways that this machine is enrolled with. Answered by [`Event::Profiles`].
    Profiles,
    /// Gives a profile another name. Answered by [`Event::Profiles`].
    RenameProfile {
        /// Its name now.
        profile: String,
        /// Its name from now on: letters, digits and `-`, 64 at most.
        to: String,
    },
    /// Forgets a profile and its identity, which cannot be had back. Answered by [`Event::Profiles`].
    RemoveProfile {
        /// Its name.
        profile: String,
    },
    /// Makes a profile the one that `connect` uses when none is named. Answered by [`Event::Profiles`].
    DefaultProfile {
        /// Its name.
        profile: String,
    },
    /// What is in force: chosen by the user, or decided by the administrator. Answered by [`Event::Settings`].
    Settings,
    /// Changes what the user has chosen, at once. Answered by [`Event::Settings`].
    Set(SettingsChange),
    /// The helper's log of this run, oldest line first. Answered by [`Event::Logs`].
    Logs {
        /// Only lines after this number; all that are kept when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
        /// Only lines this serious, or more.
        #[serde(default)]
        level: LogLevel,
        /// New lines are told from then on, too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        follow: bool,
    },
    /// Lets the sign-in page of this network be reached for a while, and nothing else. Answered by [`Event::Portal`].
    OpenPortal,
    /// Looks for what is wrong; changes nothing. Answered by [`Event::Diagnosis`] within [`DOCTOR_WITHIN`].
    Doctor,
    /// Disconnects, lifts the kill switch in any mode, and forgets settings and profiles, as before the program was
    /// removed. Answered by [`Event::Done`].
    Forget {
        /// The profiles stay, and with them access to their gateways.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep_identity: bool,
    },
    /// The helper's version.
    Version,
}

/// A diagnosis takes no longer than this.
pub const DOCTOR_WITHIN: Duration = Duration::from_secs(15);

impl Request {
    /// True for what every version of the protocol understands, and shows without changing anything.
    pub const fn is_core(&self) -> bool {
        matches!(self, Self::Hello { .. } | Self::Version | Self::Status)
    }

    /// True for what any user of this machine may ask.
    pub const fn only_looks(&self) -> bool {
        matches!(self, Self::Hello { .. } | Self::Version | Self::Status | Self::Watch)
    }
}

/// What the helper says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// Said before anything else on macOS, and only there: `hello` must bring it back.
    Nonce {
        /// Hexadecimal, never the same.
        nonce: String,
    },
    /// Answers `hello`.
    Hello {
        /// The protocol version that the helper speaks.
        version: u32,
        /// The helper's program version.
        helper: String,
    },
    /// A full snapshot.
    Status(Box<Status>),
    /// The state changed. Sent to watchers; the newest state replaces unsent older ones.
    Change(Change),
    /// Answers `enrol`.
    Enrolled {
        /// The new profile's name.
        profile: String,
        /// The gateway's display name.
        gateway: String,
        /// The device's name in the gateway's registry.
        device: String,
        /// When the device certificate ends.
        #[serde(with = "time::serde::rfc3339")]
        certificate_until: Timestamp,
    },
    /// Answers `connect` and `disconnect`: the wish is noted, its end comes as a change of state.
    Done {
        /// False when there was nothing to do.
        changed: bool,
    },
    /// Answers `profiles`, and what changes them: those there are now, by name.
    Profiles {
        /// All of them.
        profiles: Vec<ProfileFacts>,
    },
    /// Answers `settings` and `set`: what is in force now.
    Settings(SettingsInForce),
    /// Answers `logs`; sent to those who follow whenever there is more.
    Logs {
        /// As many as fit in a frame.
        lines: Vec<LogLine>,
        /// There are more: ask again, with the last line's number.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// Answers `open_portal`.
    Portal {
        /// The page: `http` or `https`.
        page: String,
        /// It can be reached until then.
        #[serde(with = "time::serde::rfc3339")]
        until: Timestamp,
    },
    /// Answers `doctor`.
    Diagnosis(Box<Diagnosis>),
    /// Answers `version`.
    Version {
        /// The protocol version that the helper speaks.
        version: u32,
        /// The helper's program version.
        helper: String,
    },
    /// The request was refused or failed.
    Error(Problem),
}

/// One change of state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Change {
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Moment"))]
    pub at: Timestamp,
    /// The profile it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The new state; its `state` field is the word.
    #[serde(flatten)]
    pub state: State,
}

/// One gateway that this machine is enrolled with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProfileFacts {
    /// What the user calls it.
    pub name: String,
    /// The gateway's display name.
    pub gateway: String,
    /// Where its sessions are opened, `host:port`, best first.
    pub endpoints: Vec<String>,
    /// What the device is called there.
    pub device: String,
    /// Whose device it is.
    pub user: String,
    /// When the device certificate ends; absent when the identity is damaged.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::schema::Moment>"))]
    pub certificate_until: Option<Timestamp>,
    /// `connect` uses it when none is named.
    pub is_default: bool,
    /// The device's id in the gateway's registry, which names its key in a keychain.
    #[serde(default)]
    pub device_id: String,
    /// Its key opens only with one from a user's keychain.
    #[serde(default)]
    pub sealed: bool,
}

/// A request with the caller's number for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Comes back in the answer.
    pub id: u32,
    /// What is asked.
    pub request: Request,
}

/// An event, and which request it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The request's number; absent when the helper speaks unasked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// What is told.
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Problem, code};
    use crate::settings::KillSwitch;
    use crate::status::{self, Step};
    use crate::{FrameReader, decode, encode};
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};
    use std::fmt::Debug;
    use time::macros::datetime;

    #[test]
    fn every_request_survives_the_frame_and_keeps_its_shape() {
        let requests = [
            (
                Request::Hello { version: 1, client: "culvert 0.1.0".into(), nonce: None },
                json!({"type": "hello", "version": 1, "client": "culvert 0.1.0"}),
            ),
            (
                Request::Hello { version: 1, client: "culvert 0.1.0".into(), nonce: Some("c0de".into()) },
                json!({"type": "hello", "version": 1, "client": "culvert 0.1.0", "nonce": "c0de"}),
            ),
            (Request::Status, json!({"type": "status"})),
            (Request::Watch, json!({"type": "watch"})),
            (
                Request::Enrol { invitation: "culvert://enrol#x".into(), device_name: Some("mac".into()) },
                json!({"type": "enrol", "invitation": "culvert://enrol#x", "device_name": "mac"}),
            ),
            (Request::Connect { profile: None, key: None }, json!({"type": "connect"})),
            (
                Request::Connect { profile: Some("acme".into()), key: None },
                json!({"type": "connect", "profile": "acme"}),
            ),
            (
                Request::Connect { profile: None, key: Some(Secret::new("0a".into())) },
                json!({"type": "connect", "key": "0a"}),
            ),
            (
                Request::SealProfile { profile: "acme".into(), key: Secret::new("0a".into()) },
                json!({"type": "seal_profile", "profile": "acme", "key": "0a"}),
            ),
            (
                Request::UnsealProfile { profile: "acme".into(), key: Secret::new("0a".into()) },
                json!({"type": "unseal_profile", "profile": "acme", "key": "0a"}),
            ),
            (Request::Disconnect { unblock: false }, json!({"type": "disconnect"})),
            (Request::Disconnect { unblock: true }, json!({"type": "disconnect", "unblock": true})),
            (Request::Profiles, json!({"type": "profiles"})),
            (
                Request::RenameProfile { profile: "acme".into(), to: "work".into() },
                json!({"type": "rename_profile", "profile": "acme", "to": "work"}),
            ),
            (Request::RemoveProfile { profile: "acme".into() }, json!({"type": "remove_profile", "profile": "acme"})),
            (Request::DefaultProfile { profile: "acme".into() }, json!({"type": "default_profile", "profile": "acme"})),
            (Request::Settings, json!({"type": "settings"})),
            (
                Request::Set(SettingsChange { kill_switch: Some(KillSwitch::Lockdown), ..SettingsChange::default() }),
                json!({"type": "set", "kill_switch": "lockdown"}),
            ),
            (Request::Version, json!({"type": "version"})),
            (
                Request::Logs { after: None, level: LogLevel::Info, follow: false },
                json!({"type": "logs", "level": "info"}),
            ),
            (
                Request::Logs { after: Some(7), level: LogLevel::Debug, follow: true },
                json!({"type": "logs", "after": 7, "level": "debug", "follow": true}),
            ),
            (Request::OpenPortal, json!({"type": "open_portal"})),
            (Request::Doctor, json!({"type": "doctor"})),
            (Request::Forget { keep_identity: false }, json!({"type": "forget"})),
            (Request::Forget { keep_identity: true }, json!({"type": "forget", "keep_identity": true})),
        ];
        for (request, shape) in requests {
            let ask = Ask { id: 7, request };
            survives(&ask, &json!({"id": 7, "request": shape}));
        }
    }

    #[test]
    fn every_event_survives_the_frame_and_keeps_its_shape() {
        let at = datetime!(2026-05-03 09:12:00 UTC);
        let no_answer = Problem::new(code::NO_ANSWER);
        let problem = json!({"code": "E104", "word": "no_answer", "cause": no_answer.cause, "hint": no_answer.hint});
        let events = [
            (Event::Nonce { nonce: "c0de".into() }, json!({"type": "nonce", "nonce": "c0de"})),
            (
                Event::Hello { version: 1, helper: "0.1.0".into() },
                json!({"type": "hello", "version": 1, "helper": "0.1.0"}),
            ),
            (
                Event::Enrolled {
                    profile: "acme".into(),
                    gateway: "Acme".into(),
                    device: "anna-mac".into(),
                    certificate_until: at,
                },
                json!({"type": "enrolled", "profile": "acme", "gateway": "Acme", "device": "anna-mac",
                       "certificate_until": "2026-05-03T09:12:00Z"}),
            ),
            (Event::Done { changed: false }, json!({"type": "done", "changed": false})),
            (
                Event::Profiles {
                    profiles: vec![ProfileFacts {
                        name: "acme".into(),
                        gateway: "Acme".into(),
                        endpoints: vec!["vpn.acme.org:443".into()],
                        device: "anna-mac".into(),
                        user: "anna".into(),
                        certificate_until: Some(at),
                        is_default: true,
                        device_id: "0a".into(),
                        sealed: false,
                    }],
                },
                json!({"type": "profiles", "profiles": [{
                    "name": "acme", "gateway": "Acme", "endpoints": ["vpn.acme.org:443"], "device": "anna-mac",
                    "user": "anna", "certificate_until": "2026-05-03T09:12:00Z", "is_default": true,
                    "device_id": "0a", "sealed": false}]}),
            ),
            (
                Event::Settings(SettingsInForce::default()),
                json!({"type": "settings", "kill_switch": "auto", "allow_lan": true, "overlap": "ask", "locked": []}),
            ),
            (
                Event::Logs {
                    lines: vec![LogLine {
                        seq: 3,
                        at,
                        level: LogLevel::Warn,
                        target: "culvert_helper::service".into(),
                        text: "failed".into(),
                    }],
                    more: false,
                },
                json!({"type": "logs", "lines": [{"seq": 3, "at": "2026-05-03T09:12:00Z", "level": "warn",
                       "target": "culvert_helper::service", "text": "failed"}]}),
            ),
            (
                Event::Portal { page: "http://login.hotel.example/".into(), until: at },
                json!({"type": "portal", "page": "http://login.hotel.example/", "until": "2026-05-03T09:12:00Z"}),
            ),
            (
                Event::Version { version: 1, helper: "0.1.0".into() },
                json!({"type": "version", "version": 1, "helper": "0.1.0"}),
            ),
            (
                Event::Change(Change {
                    at,
                    profile: Some("acme".into()),
                    state: State::Reconnecting { cause: no_answer.clone(), attempt: 3, next_at: Some(at) },
                }),
                json!({"type": "change", "at": "2026-05-03T09:12:00Z", "profile": "acme", "state": "reconnecting",
                       "cause": problem, "attempt": 3, "next_at": "2026-05-03T09:12:00Z"}),
            ),
            (
                Event::Change(Change { at, profile: None, state: State::Connecting { step: Step::Handshake } }),
                json!({"type": "change", "at": "2026-05-03T09:12:00Z", "state": "connecting", "step": "handshake"}),
            ),
        ];
        for (event, shape) in events {
            survives(&Answer { id: None, event }, &json!({"event": shape}));
        }
        let refused = json!({"type": "error", "code": "E104", "word": "no_answer",
                             "cause": no_answer.cause, "hint": no_answer.hint});
        survives(&Answer { id: Some(2), event: Event::Error(no_answer) }, &json!({"id": 2, "event": refused}));
        let status = Answer { id: Some(3), event: Event::Status(Box::new(status::sample())) };
        let mut shape = status::sample_json();
        shape["type"] = json!("status");
        survives(&status, &json!({"id": 3, "event": shape}));
    }

    #[test]
    fn an_unknown_request_is_named_in_the_error() {
        let error = decode::<Ask>(br#"{"id":1,"request":{"type":"run_command","command":"id"}}"#).unwrap_err();
        assert!(error.to_string().contains("run_command"), "{error}");
    }

    fn survives<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: &M, shape: &Value) {
        let mut reader = FrameReader::default();
        reader.push(&encode(message).unwrap());
        let frame = reader.next_frame().unwrap().unwrap();
        assert_eq!(&decode::<Value>(&frame).unwrap(), shape);
        assert_eq!(&decode::<M>(&frame).unwrap(), message);
    }
}

//! Why somebody cannot connect: everything that is known of a device or a user, joined into one sentence
//! with the one command that repairs it. Pure; `admin::why` gathers the facts.

mod words;

use std::time::Duration;

use culvert_tunnel::identity::Pin;
use serde::Serialize;
use time::OffsetDateTime;

use crate::addresses::Pool;
use crate::control_socket::DeviceHistory;
use crate::registry::{Device, Invitation};
use words::{ago, moment, refusal};

/// What the running gateway knows of a device.
#[derive(Clone, Debug)]
pub struct Heard {
    /// What it has heard since it started.
    pub history: DeviceHistory,
    /// When its session opened, if it has one (RFC 3339), and where its client is.
    pub session: Option<(String, String)>,
    /// Since when it runs (RFC 3339).
    pub since: String,
}

/// What is known of one device.
#[derive(Clone, Debug)]
pub struct DeviceFacts<'a> {
    /// What the registry has.
    pub device: &'a Device,
    /// Of its user.
    pub invitations: &'a [Invitation],
    /// `None` when no gateway runs here.
    pub heard: Option<Heard>,
    /// The network inside.
    pub pool: &'a Pool,
    /// The certificate authorities that count.
    pub authorities: &'a [Pin],
}

/// What is known of a user who has no device.
#[derive(Clone, Copy, Debug)]
pub struct UserFacts<'a> {
    /// The name.
    pub user: &'a str,
    /// All of them.
    pub invitations: &'a [Invitation],
}

/// What is the matter, as a word that scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It has a session.
    Connected,
    /// An administrator took its access away.
    Revoked,
    /// Its certificate has ended.
    Expired,
    /// Its certificate is of a certificate authority that counts no more.
    FormerAuthority,
    /// Its address is not in the network inside.
    OutsideNetwork,
    /// No gateway runs here.
    NotRunning,
    /// The place that it comes from is banned.
    Banned,
    /// It was refused for another reason.
    Refused,
    /// It was enrolled and never came.
    NeverConnected,
    /// Nothing that the gateway knows of stands in its way.
    NothingKnown,
    /// The user's invitation waits.
    InvitationOpen,
    /// The user's last invitation is past its end.
    InvitationExpired,
    /// The user's last invitation was withdrawn.
    InvitationCancelled,
    /// The user has neither devices nor invitations.
    NeverInvited,
}

/// The answer for one device or user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// `user/device`, or a user.
    pub name: String,
    /// In a word.
    pub verdict: Verdict,
    /// In one sentence, without its full stop.
    pub sentence: String,
    /// The command that repairs it; on the gateway unless it says otherwise.
    pub fix: Option<String>,
    /// What cannot be known.
    pub unknown: Option<String>,
}

impl Judgement {
    /// For people, on one line.
    pub fn text(&self) -> String {
        let fix = self.fix.as_ref().map_or_else(String::new, |fix| format!(". Fix: {fix}"));
        format!("{}: {}{fix}", self.name, self.sentence)
    }
}

/// What keeps this device away?
pub fn judge_device(facts: &DeviceFacts<'_>, now: OffsetDateTime) -> Judgement {
    let device = facts.device;
    let name = format!("{}/{}", device.user, device.name);
    let renew = Some(format!("culvert-server invite {} --renew", quoted(&name)));
    let (verdict, sentence, fix) =
        if let Some((since, from)) = facts.heard.as_ref().and_then(|heard| heard.session.clone()) {
            (Verdict::Connected, format!("connected since {since} from {from}"), None)
        } else if let Some(at) = device.revoked_at {
            let sentence =
                format!("{}an administrator removed its access {}", refused(facts, "revoked", now), ago(now - at));
            (Verdict::Revoked, sentence, Some(format!("culvert-server devices restore {}", quoted(&name))))
        } else if now >= device.not_after {
            let open =
                facts.invitations.iter().find(|one| one.renews.as_ref() == Some(&device.id) && one.judge(now).is_ok());
            let sent = open.map_or_else(String::new, |open| {
                format!("; an invitation that renews it is open until {}", moment(open.expires, now))
            });
            let sentence =
                format!("{}certificate expired {}{sent}", refused(facts, "expired", now), ago(now - device.not_after));
            (Verdict::Expired, sentence, renew)
        } else if device.authority.is_some_and(|authority| !facts.authorities.contains(&authority)) {
            let sentence = format!(
                "{}the gateway has a new certificate authority, and the device was away while it changed",
                refused(facts, "expired", now)
            );
            (Verdict::FormerAuthority, sentence, renew)
        } else if device.lease(facts.pool).is_none() {
            let sentence = format!("its address {} is not in the inner network {}", device.ipv4, facts.pool.ipv4());
            let fix = "set network.ipv4 to a network that holds it, and: systemctl restart culvert-server";
            (Verdict::OutsideNetwork, sentence, Some(fix.to_owned()))
        } else {
            match &facts.heard {
                None => {
                    let sentence = "no gateway runs here, so nobody can connect".to_owned();
                    (Verdict::NotRunning, sentence, Some("systemctl start culvert-server".to_owned()))
                }
                Some(heard) => judge_heard(device, &name, heard, renew, now),
            }
        };
    Judgement { name, verdict, sentence, fix, unknown: unknown(facts, verdict) }
}

type Found = (Verdict, String, Option<String>);

/// The registry has nothing against it: what did the gateway hear?
fn judge_heard(device: &Device, name: &str, heard: &Heard, renew: Option<String>, now: OffsetDateTime) -> Found {
    let record = &heard.history.record;
    if let Some(ban) = &heard.history.ban {
        let until = ban.until.as_ref().map_or_else(String::new, |until| format!(" until {until}"));
        let why = match (ban.by.as_str(), ban.reason.as_str()) {
            ("failures", reason) => format!(" for failed logins, the last one {reason}"),
            (_, "") => " by an administrator".to_owned(),
            (_, reason) => format!(" by an administrator ({reason})"),
        };
        let place = record.place.map_or_else(String::new, |place| format!(" {}", words::place(place)));
        let sentence = format!("the address that it last came from{place} is banned{until}{why}");
        return (Verdict::Banned, sentence, Some(format!("culvert-server bans remove {}", ban.prefix)));
    }
    if let Some(last) = record.last.back() {
        let (why, fix) = refusal(&last.reason, name, renew);
        return (Verdict::Refused, format!("{}{why}", handshakes(record.refused, record.refused_since, now)), fix);
    }
    let look = Some("on the device: culvert doctor".to_owned());
    let silence = format!("nothing was heard of it since this gateway started at {}", heard.since);
    match (record.opened, device.last_seen) {
        (Some(at), _) => {
            let sentence = format!(
                "nothing is wrong here; its last session opened {}, and it was not refused since",
                ago(now - at)
            );
            (Verdict::NothingKnown, sentence, look)
        }
        (None, Some(seen)) => {
            let sentence = format!("nothing is wrong here; last seen {}, and {silence}", ago(now - seen));
            (Verdict::NothingKnown, sentence, look)
        }
        (None, None) => {
            let sentence = format!("enrolled {} and never connected; {silence}", ago(now - device.created));
            (Verdict::NeverConnected, sentence, look)
        }
    }
}

/// Why has this user no device?
pub fn judge_user(facts: &UserFacts<'_>, now: OffsetDateTime) -> Judgement {
    let again = Some(format!("culvert-server invite {}", quoted(facts.user)));
    let open = facts.invitations.iter().find(|one| one.judge(now).is_ok());
    let last = facts.invitations.iter().max_by_key(|one| one.created);
    let (verdict, sentence) = match (open, last) {
        (Some(open), _) => {
            let sentence = format!(
                "invited {}, and the invitation was not used yet; it is good until {}",
                ago(now - open.created),
                moment(open.expires, now)
            );
            (Verdict::InvitationOpen, sentence)
        }
        (None, Some(last)) => match last.cancelled_at {
            Some(at) => (Verdict::InvitationCancelled, format!("the last invitation was withdrawn {}", ago(now - at))),
            None => (Verdict::InvitationExpired, format!("the last invitation expired {}", ago(now - last.expires))),
        },
        (None, None) => (Verdict::NeverInvited, "has no device and no invitation".to_owned()),
    };
    Judgement { name: facts.user.to_owned(), verdict, sentence, fix: again, unknown: None }
}

/// "3 handshakes refused since 09:14: ", from what was heard of the device itself or, since TLS refuses an
/// expired certificate before it is known whose it is, from where the device was last heard of.
fn refused(facts: &DeviceFacts<'_>, reason: &str, now: OffsetDateTime) -> String {
    let Some(Heard { history, .. }) = &facts.heard else { return String::new() };
    if history.record.refused > 0 {
        return handshakes(history.record.refused, history.record.refused_since, now);
    }
    let Some(there) = &history.of_place else { return String::new() };
    let same: Vec<_> = there.last.iter().filter(|refusal| refusal.reason == reason).collect();
    handshakes(same.len() as u64, same.first().map(|refusal| refusal.at), now)
}

fn handshakes(count: u64, since: Option<OffsetDateTime>, now: OffsetDateTime) -> String {
    let Some(since) = since.filter(|_| count > 0) else { return String::new() };
    let noun = if count == 1 { "handshake" } else { "handshakes" };
    format!("{count} {noun} refused since {}: ", moment(since, now))
}

fn unknown(facts: &DeviceFacts<'_>, verdict: Verdict) -> Option<String> {
    match (&facts.heard, verdict) {
        (None, _) => {
            Some("without a running gateway its handshakes, their failures and its session are not known".to_owned())
        }
        (Some(heard), Verdict::NothingKnown | Verdict::NeverConnected) if heard.history.record.place.is_none() => Some(
            "where it comes from is not known, so neither is whether that is banned (culvert-server bans list)"
                .to_owned(),
        ),
        _ => None,
    }
}

/// A name as a shell takes it.
fn quoted(name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./@".contains(letter);
    if name.chars().all(plain) { name.to_owned() } else { format!("'{}'", name.replace('\'', r"'\''")) }
}

/// A time as text; negative when it is still to come.
fn length(span: time::Duration) -> Duration {
    span.try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests;

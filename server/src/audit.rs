//! One line in the log for each thing that an administrator does (product contract 7.5):
//! `event=admin actor=root(uid=0,via=socket) action=reload target=- result=ok`.
//!
//! Commands that change the registry write there who did it, and the running gateway logs it when it sees
//! the change, wherever the command ran; without a running gateway the registry alone has it. What is asked
//! of the gateway is logged as it is answered.

use std::fs;

use crate::control_socket::Request;
use crate::log::network;
use crate::registry::{Event, Registry};

/// The way by which somebody acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A command that opened the registry itself.
    Command,
    /// The control socket, whose credentials are the kernel's.
    Socket,
}

/// Who acts: the user's name, number, and way.
pub fn actor(uid: u32, via: Via) -> String {
    let via = match via {
        Via::Command => "command",
        Via::Socket => "socket",
    };
    format!("{}(uid={uid},via={via})", user_name(uid).unwrap_or_default())
}

/// The name in `/etc/passwd` (passwd(5)). A directory service is not asked: it may be far away, and the number
/// is what counts.
fn user_name(uid: u32) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Logs one act.
pub fn record(actor: &str, action: &str, target: &str, result: &str) {
    let target = if target.is_empty() { "-" } else { target };
    tracing::info!(event = "admin", actor, action, target, result);
}

/// What a request does and to what; `None` when it only asks.
pub fn act(request: &Request) -> Option<(&'static str, String)> {
    match request {
        Request::Reload => Some(("reload", String::new())),
        Request::Kick { devices } => Some(("kick", devices.join(" "))),
        Request::BanAdd { prefix, .. } => Some(("ban", network(*prefix))),
        Request::BanRemove { prefix } => Some(("unban", network(*prefix))),
        // What has changed is in the registry's events.
        Request::Sessions
        | Request::Status
        | Request::Alive
        | Request::Ready
        | Request::Scrape
        | Request::Changed
        | Request::Bans
        | Request::History { .. } => None,
    }
}

/// Logs what administrators did to the registry; devices enrol and renew without them.
pub async fn record_changes(registry: &impl Registry, events: &[Event]) {
    for event in events {
        let action = match event.event.as_str() {
            "revoked" => "revoke",
            "restored" => "restore",
            "renamed" => "rename",
            "invite" => "invite",
            "invite_cancel" => "invite_cancel",
            "ca_rotate" => "ca_rotate",
            "ca_finish" => "ca_finish",
            "ca_abort" => "ca_abort",
            "gateway_forgotten" => "forget",
            _ => continue,
        };
        let device = registry.find_devices(&event.target).await.ok().filter(|found| found.len() == 1);
        let target = match device.as_deref() {
            Some([device]) if device.id == event.target => format!("{}/{}", device.user, device.name),
            _ => event.target.clone(),
        };
        record(&event.actor, action, &target, "ok");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_has_a_name_a_number_and_a_way() {
        assert_eq!(actor(0, Via::Socket), "root(uid=0,via=socket)");
        assert_eq!(actor(4_294_967_294, Via::Command), "(uid=4294967294,via=command)");
    }

    #[test]
    fn questions_are_no_acts() {
        assert_eq!(act(&Request::Status), None);
        assert_eq!(act(&Request::BanRemove { prefix: "203.0.113.0/24".parse().unwrap() }).unwrap().1, "203.0.113.0/24");
    }
}

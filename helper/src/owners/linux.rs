//! Linux: systemd-logind over D-Bus (org.freedesktop.login1(5)). Without it nobody is known to sit here.

use std::collections::HashMap;

use zbus::{Connection, OwnedObjectPath, OwnedVariant};

const LOGIND: &str = "org.freedesktop.login1";

/// Session id, user id, user name, seat id, path.
type Listed = (String, u32, String, String, OwnedObjectPath);
/// A session's properties, as they were at one moment.
type Facts = HashMap<String, OwnedVariant>;

pub(super) async fn is_local(uid: u32) -> bool {
    has_active_session(uid).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "systemd-logind");
        false
    })
}

async fn has_active_session(uid: u32) -> zbus::Result<bool> {
    let bus = Connection::system().await?;
    let manager = ("/org/freedesktop/login1", "org.freedesktop.login1.Manager");
    let reply = bus.call_method(Some(LOGIND), manager.0, Some(manager.1), "ListSessions", &()).await?;
    let sessions: Vec<Listed> = reply.body().deserialize()?;
    for (id, owner, _, seat, path) in sessions {
        // A session without a seat is remote, or a service's.
        if owner != uid || seat.is_empty() {
            continue;
        }
        match facts(&bus, &path).await {
            Ok(facts) if sits_here(&facts) => return Ok(true),
            Ok(_) => {}
            // One that has ended meanwhile says nothing about the others.
            Err(error) => tracing::debug!(%error, id, "systemd-logind"),
        }
    }
    Ok(false)
}

async fn facts(bus: &Connection, session: &OwnedObjectPath) -> zbus::Result<Facts> {
    let properties = Some("org.freedesktop.DBus.Properties");
    let reply = bus.call_method(Some(LOGIND), session, properties, "GetAll", &"org.freedesktop.login1.Session").await?;
    reply.body().deserialize()
}

/// A person at this machine's own screen: the session in front, and not the display manager's own.
fn sits_here(session: &Facts) -> bool {
    let is = |name: &str| session.get(name).and_then(|value| bool::try_from(value).ok());
    let class = session.get("Class").and_then(|value| <&str>::try_from(value).ok()).unwrap_or_default();
    // Not `greeter`, `lock-screen` or `background`, nor `user-incomplete`, whose user has not logged in yet.
    let is_user = matches!(class, "user" | "user-early" | "user-light" | "user-early-light");
    is_user && is("Active") == Some(true) && is("Remote") == Some(false)
}

#[cfg(test)]
mod tests {
    use zbus::Str;

    use super::*;

    #[test]
    fn only_a_person_whose_session_is_in_front_and_not_remote_sits_here() {
        let session = |class: &'static str, active: bool, remote: bool| {
            let class = Str::from(class).into();
            Facts::from([("Class".into(), class), ("Active".into(), active.into()), ("Remote".into(), remote.into())])
        };
        assert!(sits_here(&session("user", true, false)));
        assert!(!sits_here(&session("user", false, false)));
        assert!(!sits_here(&session("user", true, true)));
        for class in ["greeter", "lock-screen", "background", "manager", "user-incomplete", ""] {
            assert!(!sits_here(&session(class, true, false)), "{class}");
        }
    }

    #[test]
    fn what_a_session_does_not_say_is_not_assumed() {
        assert!(!sits_here(&Facts::new()));
        let class = Str::from("user").into();
        assert!(!sits_here(&Facts::from([("Class".into(), class), ("Active".into(), true.into())])));
    }
}

//! Linux: systemd-logind over D-Bus (org.freedesktop.login1(5)). Without it nobody is known to sit here.

use zbus::{Connection, OwnedObjectPath, OwnedVariant};

const LOGIND: &str = "org.freedesktop.login1";

/// Session id, user id, user name, seat id, path.
type Listed = (String, u32, String, String, OwnedObjectPath);

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
    for (_, owner, _, seat, path) in sessions {
        // A session without a seat is remote, or a service's.
        if owner == uid && !seat.is_empty() && is(&bus, &path, "Active").await? && !is(&bus, &path, "Remote").await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn is(bus: &Connection, session: &OwnedObjectPath, property: &str) -> zbus::Result<bool> {
    let arguments = ("org.freedesktop.login1.Session", property);
    let get =
        bus.call_method(Some(LOGIND), session, Some("org.freedesktop.DBus.Properties"), "Get", &arguments).await?;
    let value: OwnedVariant = get.body().deserialize()?;
    bool::try_from(value)
}

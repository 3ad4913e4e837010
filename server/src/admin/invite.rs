//! `invite NAME`: leave for one device (or more) of one user.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use culvert_tunnel::identity::printable;
use culvert_tunnel::invitation::{self, InvitationId, Secret};
use serde::Serialize;
use time::OffsetDateTime;

use super::{AdminError, SCHEMA, actor, devices, state_dir};
use crate::config::Config;
use crate::files;
use crate::owner;
use crate::registry::any::AnyRegistry;
use crate::registry::{Device, Invitation, Registry};
use crate::settings::Settings;
use crate::times::rfc3339;

/// What the command line asks.
#[derive(Clone, Debug)]
pub struct InviteRequest {
    /// For whom.
    pub user: String,
    /// How long it is good.
    pub lifetime: Duration,
    /// For how many devices.
    pub uses: u32,
    /// Write the link here instead of showing it.
    pub out: Option<PathBuf>,
    /// `user` names a device that gets a new key and certificate, instead of a user who gets a device more.
    pub renew: bool,
}

impl InviteRequest {
    /// One device, one day.
    pub fn for_user(user: &str) -> Self {
        Self { user: user.to_owned(), lifetime: Duration::from_secs(86_400), uses: 1, out: None, renew: false }
    }
}

/// An invitation that was made.
#[derive(Clone, Debug, Serialize)]
pub struct Invited {
    /// The link, which contains the secret; `None` when it went into a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invitation: Option<String>,
    /// The file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Its name in the registry; not secret.
    pub invitation_id: String,
    /// For whom.
    pub user: String,
    /// The device that it renews.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renews: Option<String>,
    /// Its end.
    pub expires: String,
    /// For how many devices.
    pub uses: u32,
}

impl Invited {
    /// For people.
    pub fn text(&self) -> String {
        let devices = match (&self.renews, self.uses) {
            (Some(device), _) => format!("renews {device}"),
            (None, 1) => "one device".to_owned(),
            (None, uses) => format!("{uses} devices"),
        };
        let head = format!("Invitation for {} ({devices}, until {}):\n", self.user, self.expires);
        let body = match (&self.invitation, &self.file) {
            (Some(link), _) => link.clone(),
            (None, Some(file)) => format!("in {}", file.display()),
            (None, None) => String::new(),
        };
        format!("{head}{body}\n")
    }

    /// The link as a QR code of half blocks, dark on light whatever the terminal's colours are.
    ///
    /// # Errors
    /// [`AdminError::NoQr`] when the link is in a file, or does not fit.
    pub fn qr(&self) -> Result<String, AdminError> {
        let link = self.invitation.as_ref().ok_or(AdminError::NoQr)?;
        let code = qrcode::QrCode::with_error_correction_level(link, qrcode::EcLevel::L);
        let drawn = code
            .map_err(|_| AdminError::NoQr)?
            .render::<qrcode::render::unicode::Dense1x2>()
            .dark_color(qrcode::render::unicode::Dense1x2::Light)
            .light_color(qrcode::render::unicode::Dense1x2::Dark)
            .build();
        Ok(format!("{drawn}\n"))
    }

    /// As the answer to `invite --json`.
    ///
    /// # Errors
    /// None: all fields have JSON forms.
    pub fn json(&self) -> serde_json::Result<serde_json::Value> {
        let mut object = serde_json::to_value(self)?;
        object["schema"] = SCHEMA.into();
        Ok(object)
    }
}

/// The name as it is kept, if it is one.
///
/// # Errors
/// [`AdminError::BadName`].
pub fn check_name(name: &str) -> Result<String, AdminError> {
    printable(name).filter(|kept| kept == name).ok_or(AdminError::BadName)
}

/// Makes an invitation.
///
/// # Errors
/// [`AdminError`]; there is no invitation then.
pub async fn invite(config: &Config, request: &InviteRequest) -> Result<Invited, AdminError> {
    invite_as(config, request, |link| Ok(link.to_owned())).await
}

/// Makes an invitation that is told, or written, as what `text` makes of its link.
///
/// # Errors
/// [`AdminError`]; there is no invitation then.
pub async fn invite_as(
    config: &Config,
    request: &InviteRequest,
    text: impl FnOnce(&str) -> Result<String, AdminError>,
) -> Result<Invited, AdminError> {
    let user = check_name(&request.user)?;
    let state = state_dir(config);
    let registry = state.registry().await?;
    let renewed = if request.renew { Some(device_to_renew(&registry, &request.user).await?) } else { None };
    let user = renewed.as_ref().map_or(user, |device| device.user.clone());
    let settings = Settings::resolve(config, &registry).await?;
    let now = SystemTime::now();
    let secret = Secret::generate()?;
    let expires = OffsetDateTime::from(now + request.lifetime);
    let invitation = invitation::Invitation {
        endpoints: settings.endpoints(),
        pin: state.authority()?.pin(),
        id: InvitationId::generate()?,
        secret,
        expires: expires.unix_timestamp().unsigned_abs(),
        gateway: settings.display_name().to_owned(),
        user: user.clone(),
    };
    let text = text(&invitation.to_link())?;
    // First the file: an invitation that nobody could read would still count.
    if let Some(path) = &request.out {
        let whole = format!("{}\n", text.trim_end());
        owner::as_caller(|| files::write_new(path, whole.as_bytes(), 0o600)).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => AdminError::Exists(path.clone()),
            _ => AdminError::Write { path: path.clone(), error },
        })?;
    }
    let kept = Invitation {
        id: invitation.id.as_bytes().to_vec(),
        key: invitation.secret.key().as_bytes().to_vec(),
        user: user.clone(),
        uses_allowed: request.uses,
        uses: 0,
        created: now.into(),
        expires,
        cancelled_at: None,
        last_use: None,
        renews: renewed.as_ref().map(|device| device.id.clone()),
    };
    let added = registry.add_invitation(&kept, &actor()).await;
    if added.is_err()
        && let Some(path) = &request.out
    {
        let _ = owner::as_caller(|| std::fs::remove_file(path)); // ours, and worth nothing
    }
    added?;
    registry.close().await;
    Ok(Invited {
        invitation: request.out.is_none().then_some(text),
        file: request.out.clone(),
        invitation_id: invitation.id.to_string(),
        user,
        renews: renewed.map(|device| format!("{}/{}", device.user, device.name)),
        expires: rfc3339(expires),
        uses: request.uses,
    })
}

/// A device by its name, or the only one of a user that may connect.
async fn device_to_renew(registry: &AnyRegistry, name: &str) -> Result<Device, AdminError> {
    let mut of_user = registry.devices_of(name).await?;
    of_user.retain(|device| device.revoked_at.is_none());
    let device = match (of_user.pop(), of_user.is_empty()) {
        (Some(only), true) => only,
        _ => devices::one(registry, name).await?,
    };
    if device.revoked_at.is_some() {
        return Err(AdminError::IsRevoked(format!("{}/{}", device.user, device.name)));
    }
    Ok(device)
}

//! A configuration profile for Macs under MDM, as XML (Apple: Configuration Profile Reference). Pure.
//!
//! Three payloads: what the app takes as given (managed preferences), leave for the background helper to run
//! without being switched off (`com.apple.servicemanagement`, macOS 13), and leave for notifications. All for the
//! whole machine. Not signed: an MDM signs what it sends. Identifiers and UUIDs come from the gateway's id, so that a
//! profile made later takes the earlier one's place on every Mac.

use plist::{Dictionary, Value};
use uuid::Uuid;

/// The bundle identifier of the app; its managed preferences have the same name.
pub const APP: &str = "net.culvert.app";

/// What a profile says.
#[derive(Clone, Debug)]
pub struct Profile<'a> {
    /// Who manages these Macs; the app shows it.
    pub organization: &'a str,
    /// The registry's id of this gateway, which stays the same for its life.
    pub gateway_id: &'a str,
    /// Its first endpoint.
    pub gateway: &'a str,
    /// Who has signed app and helper: ten characters that Apple gives.
    pub team_id: &'a str,
    /// Enrols every Mac that has the profile.
    pub invitation: Option<&'a str>,
    /// What users cannot change.
    pub locked: Locked,
}

/// Settings of the app. What is `None`, or empty, its user chooses.
#[derive(Clone, Debug, Default)]
pub struct Locked {
    /// Connect whenever the app starts.
    pub connect_at_launch: Option<bool>,
    /// Start the app when somebody logs in.
    pub start_at_login: Option<bool>,
    /// Block everything outside the tunnel, while disconnected, too.
    pub lockdown: Option<bool>,
    /// Let local networks through the kill switch.
    pub allow_lan: Option<bool>,
    /// Where users ask for help.
    pub support_url: Option<String>,
    /// How the app updates itself.
    pub update_policy: Option<&'static str>,
    /// What its menu does not show.
    pub hide_menu_items: Vec<&'static str>,
}

impl Profile<'_> {
    /// The file.
    ///
    /// # Errors
    /// None that are known: it is written to memory.
    pub fn to_xml(&self) -> Result<String, plist::Error> {
        let gateway = Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("culvert://gateway/{}", self.gateway_id).as_bytes());
        let identifier = format!("net.culvert.mdm.{gateway}");
        let payload = |kind: &str, name: &str, content: Dictionary| {
            let mut payload = content;
            payload.insert("PayloadType".into(), kind.into());
            payload.insert("PayloadVersion".into(), 1.into());
            payload.insert("PayloadIdentifier".into(), format!("{identifier}.{kind}").into());
            payload.insert("PayloadUUID".into(), text(Uuid::new_v5(&gateway, kind.as_bytes())));
            payload.insert("PayloadDisplayName".into(), name.into());
            payload.insert("PayloadOrganization".into(), self.organization.into());
            payload
        };
        let payloads = [
            (APP, "Culvert: settings", self.preferences()),
            ("com.apple.servicemanagement", "Culvert: background helper", self.service_management()),
            ("com.apple.notificationsettings", "Culvert: notifications", notifications()),
        ];
        let payloads = payloads.map(|(kind, name, content)| Value::Dictionary(payload(kind, name, content)));
        let mut profile = payload("Configuration", &format!("Culvert at {}", self.gateway), Dictionary::new());
        profile.insert("PayloadIdentifier".into(), identifier.as_str().into());
        profile.insert("PayloadUUID".into(), text(gateway));
        profile.insert("PayloadScope".into(), "System".into());
        profile.insert("PayloadContent".into(), Value::Array(payloads.into()));
        let mut xml = Vec::new();
        Value::Dictionary(profile).to_writer_xml(&mut xml)?;
        xml.push(b'\n');
        Ok(String::from_utf8_lossy(&xml).into_owned())
    }

    fn preferences(&self) -> Dictionary {
        let Locked {
            connect_at_launch,
            start_at_login,
            lockdown,
            allow_lan,
            support_url,
            update_policy,
            hide_menu_items,
        } = &self.locked;
        let hidden = (!hide_menu_items.is_empty())
            .then(|| Value::Array(hide_menu_items.iter().map(|item| (*item).into()).collect()));
        let keys = [
            ("organization", Some(self.organization.into())),
            ("gateway", Some(self.gateway.into())),
            ("invitation", self.invitation.map(Value::from)),
            ("connectAtLaunch", connect_at_launch.map(Value::from)),
            ("startAtLogin", start_at_login.map(Value::from)),
            ("lockdown", lockdown.map(Value::from)),
            ("allowLAN", allow_lan.map(Value::from)),
            ("supportURL", support_url.as_deref().map(Value::from)),
            ("updatePolicy", update_policy.map(Value::from)),
            ("hideMenuItems", hidden),
        ];
        keys.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }

    /// By team, not by label: anybody's program may call itself like ours.
    fn service_management(&self) -> Dictionary {
        let rule = [("RuleType", "TeamIdentifier"), ("RuleValue", self.team_id), ("Comment", "Culvert")];
        [("Rules".to_owned(), Value::Array(vec![dictionary(rule.map(|(key, value)| (key, value.into())))]))]
            .into_iter()
            .collect()
    }
}

fn notifications() -> Dictionary {
    let settings = dictionary([
        ("BundleIdentifier", APP.into()),
        ("NotificationsEnabled", true.into()),
        ("AlertType", 1.into()), // a banner that goes by itself
        ("ShowInNotificationCenter", true.into()),
        ("ShowInLockScreen", false.into()),
        ("BadgesEnabled", false.into()),
        ("SoundsEnabled", false.into()),
        ("CriticalAlertEnabled", false.into()),
    ]);
    [("NotificationSettings".to_owned(), Value::Array(vec![settings]))].into_iter().collect()
}

fn dictionary<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Dictionary(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// In upper case, as Apple's tools write them.
fn text(uuid: Uuid) -> Value {
    uuid.to_string().to_uppercase().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile<'static> {
        Profile {
            organization: "Acme <&> Söhne",
            gateway_id: "g1",
            gateway: "vpn.example.org:443",
            team_id: "ABCDE12345",
            invitation: None,
            locked: Locked::default(),
        }
    }

    /// Every identifier and UUID of a profile, in its order.
    fn names(profile: &Profile<'_>) -> Vec<String> {
        let value = Value::from_reader_xml(profile.to_xml().unwrap().as_bytes()).unwrap();
        let outer = value.as_dictionary().unwrap();
        let inner = outer["PayloadContent"].as_array().unwrap().iter().map(|payload| payload.as_dictionary().unwrap());
        std::iter::once(outer)
            .chain(inner)
            .flat_map(|payload| [&payload["PayloadIdentifier"], &payload["PayloadUUID"]])
            .map(|name| name.as_string().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_gateways_profile_keeps_its_names_and_shares_none() {
        let first = names(&profile());
        let changed = Profile { organization: "Other", gateway: "elsewhere:443", invitation: Some("x"), ..profile() };
        assert_eq!(names(&changed), first, "of the same gateway");
        let of_another = names(&Profile { gateway_id: "g2", ..profile() });
        let all: std::collections::HashSet<_> = first.iter().chain(&of_another).collect();
        assert_eq!(all.len(), 16, "{all:?}");
    }

    #[test]
    fn what_is_not_locked_is_not_in_it() {
        let xml = profile().to_xml().unwrap();
        assert!(!xml.contains("allowLAN") && !xml.contains("hideMenuItems") && !xml.contains("invitation"), "{xml}");
        let locked = Locked { allow_lan: Some(false), hide_menu_items: vec!["quit"], ..Default::default() };
        let xml = Profile { locked, ..profile() }.to_xml().unwrap();
        assert!(xml.contains("allowLAN") && xml.contains("hideMenuItems"), "{xml}");
    }
}

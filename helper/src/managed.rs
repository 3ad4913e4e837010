//! What the administrator of this machine has decided: managed preferences, as an MDM's profile brings them.
//!
//! On a Mac macOS keeps the payload of the profile as a property list. Elsewhere root puts the profile itself in its
//! place, as `culvert-server mdm-profile` wrote it. Both are understood everywhere. A key that cannot be used is named
//! and the others count. Not here: what is locked by it (`culvert_protocol::Managed`), and how its invitation is used
//! ([`invited`]).

use std::fs;
use std::io::{self, Cursor};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use culvert_protocol::{Managed, Secret};
use plist::{Dictionary, Value};
use serde::de::DeserializeOwned;

use crate::watch::FileWatch;

pub mod invited;

/// The app's bundle identifier, and with it the type of the payload and the name of the preferences.
pub const DOMAIN: &str = "net.culvert.app";

/// Where the decisions are: the machine's managed preferences on a Mac, elsewhere a profile that root put there.
pub const FILE: &str = if cfg!(target_os = "macos") {
    "/Library/Managed Preferences/net.culvert.app.plist"
} else {
    "/etc/culvert/managed.mobileconfig"
};

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// `None` on a machine that nobody manages.
    pub managed: Option<Managed>,
    /// Enrols the machine, once.
    pub invitation: Option<Secret>,
    /// What cannot be used, in sentences.
    pub damage: Vec<String>,
}

impl Decided {
    /// Reads `path`. One that is not there decides nothing; neither does one that others than root may write.
    pub fn read(path: &Path) -> Self {
        let bytes = match fs::metadata(path).and_then(|meta| Ok((is_roots(&meta), fs::read(path)?))) {
            Ok((true, bytes)) => bytes,
            Ok((false, _)) => {
                let why = "others than root may write it. hint: chown root, chmod go-w";
                return Self::damaged(format!("{} is not used: {why}", path.display()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => return Self::damaged(format!("{} cannot be read: {error}", path.display())),
        };
        let mut decided = Self::parse(&bytes);
        for damage in &mut decided.damage {
            *damage = format!("{}: {damage}", path.display());
        }
        decided
    }

    /// A profile, or the payload of one alone; XML or binary.
    pub fn parse(bytes: &[u8]) -> Self {
        let value = match Value::from_reader(Cursor::new(bytes)) {
            Ok(value) => value,
            Err(error) => return Self::damaged(format!("it is no property list: {error}")),
        };
        let Some(preferences) = preferences(&value) else {
            return Self::damaged(format!("it has no payload of the type {DOMAIN}"));
        };
        let mut damage = Vec::new();
        let managed = Managed {
            organization: take(preferences, "organization", &mut damage),
            lockdown: take(preferences, "lockdown", &mut damage),
            allow_lan: take(preferences, "allowLAN", &mut damage),
            connect_at_launch: take(preferences, "connectAtLaunch", &mut damage),
            start_at_login: take(preferences, "startAtLogin", &mut damage),
            support_url: take(preferences, "supportURL", &mut damage),
            update_policy: take(preferences, "updatePolicy", &mut damage),
            hide_menu_items: take(preferences, "hideMenuItems", &mut damage).unwrap_or_default(),
        };
        let invitation = take(preferences, "invitation", &mut damage);
        Self { managed: Some(managed), invitation, damage }
    }

    fn damaged(why: String) -> Self {
        Self { damage: vec![why], ..Self::default() }
    }
}

/// Of a profile the payload, else the whole.
fn preferences(value: &Value) -> Option<&Dictionary> {
    let whole = value.as_dictionary()?;
    let Some(payloads) = whole.get("PayloadContent") else { return Some(whole) };
    let mut payloads = payloads.as_array()?.iter().filter_map(Value::as_dictionary);
    payloads.find(|payload| payload.get("PayloadType").and_then(Value::as_string) == Some(DOMAIN))
}

fn take<T: DeserializeOwned>(from: &Dictionary, key: &str, damage: &mut Vec<String>) -> Option<T> {
    let read = plist::from_value(from.get(key)?);
    // Without the value, which may be the invitation.
    read.map_err(|_| damage.push(format!("{key} is of a kind that is not known here, so it is as if absent"))).ok()
}

fn is_roots(meta: &fs::Metadata) -> bool {
    meta.uid() == 0 && meta.mode() & 0o022 == 0
}

/// The file, watched from the first reading on.
#[derive(Debug)]
pub struct ManagedFile {
    path: PathBuf,
    watch: Option<FileWatch>,
}

impl ManagedFile {
    /// Must be called within a runtime.
    pub fn new(path: PathBuf) -> Self {
        let mut file = Self { path, watch: None };
        file.follow();
        file
    }

    /// What it says now.
    pub fn read(&self) -> Decided {
        Decided::read(&self.path)
    }

    /// Waits until it may say something else. Cancel-safe.
    pub async fn changed(&mut self) {
        match &self.watch {
            Some(watch) => watch.next().await,
            None => std::future::pending().await,
        }
        self.follow();
    }

    /// Watches its folder, or the nearest one above that is there, until that has news.
    fn follow(&mut self) {
        let is_there = |path: &&Path| path.parent().is_some_and(Path::exists);
        let Some(nearest) = self.path.ancestors().find(is_there) else { return };
        match FileWatch::open(nearest) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => tracing::warn!(%error, "the administrator's decisions are read at the next start only"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_protocol::{MenuItem, UpdatePolicy};
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    const PAYLOAD: &str = "<dict><key>PayloadType</key><string>net.culvert.app</string>\
        <key>organization</key><string>Acme &lt;&amp;&gt; Söhne</string><key>lockdown</key><true/>\
        <key>allowLAN</key><false/><key>updatePolicy</key><string>ask</string>\
        <key>hideMenuItems</key><array><string>quit</string></array>\
        <key>invitation</key><string>culvert://enrol#X</string></dict>";

    fn xml(body: &str) -> Vec<u8> {
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><plist version=\"1.0\">{body}</plist>").into_bytes()
    }

    fn expected() -> Decided {
        let managed = Managed {
            organization: Some("Acme <&> Söhne".into()),
            lockdown: Some(true),
            allow_lan: Some(false),
            update_policy: Some(UpdatePolicy::Ask),
            hide_menu_items: vec![MenuItem::Quit],
            ..Managed::default()
        };
        let invitation = Some(Secret::new("culvert://enrol#X".into()));
        Decided { managed: Some(managed), invitation, damage: vec![] }
    }

    #[test]
    fn the_payload_alone_and_the_whole_profile_say_the_same_in_xml_and_in_binary() {
        let profile = format!(
            "<dict><key>PayloadContent</key><array><dict><key>PayloadType</key><string>com.apple.servicemanagement\
             </string></dict>{PAYLOAD}</array><key>PayloadType</key><string>Configuration</string></dict>"
        );
        for body in [PAYLOAD, &profile] {
            assert_eq!(Decided::parse(&xml(body)), expected());
            let mut binary = Vec::new();
            Value::from_reader_xml(xml(body).as_slice()).unwrap().to_writer_binary(&mut binary).unwrap();
            assert_eq!(Decided::parse(&binary), expected());
        }
    }

    #[test]
    fn a_key_that_cannot_be_used_is_named_and_the_others_count() {
        let body = "<dict><key>lockdown</key><string>yes</string><key>allowLAN</key><false/>\
                    <key>updatePolicy</key><string>sometimes</string><key>weather</key><true/></dict>";
        let decided = Decided::parse(&xml(body));
        let managed = decided.managed.unwrap();
        assert_eq!((managed.lockdown, managed.allow_lan, managed.update_policy), (None, Some(false), None));
        assert_eq!(decided.damage.len(), 2, "{:?}", decided.damage);
        assert!(decided.damage[0].starts_with("lockdown ") && decided.damage[1].starts_with("updatePolicy "));
    }

    #[test]
    fn nonsense_decides_nothing_and_is_named() {
        let others = "<dict><key>PayloadContent</key><array/></dict>";
        for nonsense in
            [b"".to_vec(), b"lockdown = true".to_vec(), b"bplist00\xff".to_vec(), xml("<true/>"), xml(others)]
        {
            let decided = Decided::parse(&nonsense);
            assert_eq!((decided.managed, decided.damage.len()), (None, 1), "{:?}", decided.damage);
        }
    }

    #[test]
    fn only_a_file_that_root_alone_can_write_decides() {
        assert!(rustix::process::geteuid().is_root(), "giving a file away needs root");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("managed.plist");
        assert_eq!(Decided::read(&file), Decided::default(), "no file");
        fs::write(&file, xml(PAYLOAD)).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(Decided::read(&file), expected());
        for mode in [0o620, 0o602] {
            fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            let decided = Decided::read(&file);
            assert_eq!(decided.managed, None, "{mode:o}");
            assert!(decided.damage[0].contains("others than root"), "{:?}", decided.damage);
        }
        fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
        assert_eq!(Decided::read(&file).managed, None, "another user's");
    }

    #[tokio::test]
    async fn a_file_that_comes_changes_and_goes_is_heard_of_also_when_its_folder_comes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/managed.plist");
        let mut file = ManagedFile::new(path.clone());
        let mut heard = async |what: &str| {
            while tokio::time::timeout(Duration::from_millis(200), file.changed()).await.is_ok() {
                if file.read().managed.is_some() == path.exists() {
                    return;
                }
            }
            panic!("{what} was not heard of");
        };
        fs::create_dir(dir.path().join("a")).unwrap();
        heard("the first folder").await;
        fs::create_dir(dir.path().join("a/b")).unwrap();
        heard("the second folder").await;
        fs::write(&path, xml(PAYLOAD)).unwrap();
        heard("the file").await;
        fs::remove_file(&path).unwrap();
        heard("its end").await;
    }
}

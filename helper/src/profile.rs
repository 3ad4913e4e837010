//! The gateways that this machine is enrolled with: one file each, readable by root only.
//!
//! A profile is written whole or not at all (temporary file, fsync, rename, fsync of the
//! directory), so that neither a crash nor a full disk costs an identity. Not here: how one is
//! obtained (`enrol`).

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use culvert_tunnel::identity::{CertificateDer, CertificateFacts, Credential, DeviceId, IdentityError, Pin};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::dial;
use crate::files::{self, replace, write_synced};
use crate::seal::Sealed;

/// More than a profile takes; written once before an invitation is spent, to see that there is room.
const ROOM_BYTES: usize = 64 * 1024;

/// One gateway and this machine's identity there.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// What the user calls it; also the name of its file.
    pub name: String,
    /// The gateway's display name.
    pub gateway: String,
    /// Where sessions are opened, `host:port`, best first; kept up to date by each welcome.
    pub endpoints: Vec<String>,
    /// The name or address that the certificate of the gateway behind the first endpoint must carry.
    pub server_name: String,
    /// The device's id in the gateway's registry.
    pub device_id: DeviceId,
    /// What the device is called there.
    pub device_name: String,
    /// Whose device it is.
    pub user: String,
    /// The device's certificate and the CA's, PEM.
    pub chain_pem: String,
    /// The CAs that may vouch for the gateway, PEM, as it told; the first one is to sign the device's certificate.
    /// Empty for the one of `chain_pem`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authorities_pem: String,
    /// The device's private key, PKCS#8 PEM. Empty on the disk, and until it is opened, where `sealed` is there.
    #[serde(default)]
    pub key_pem: String,
    /// The private key as only a user's keychain opens it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
    /// What the gateway's tunnel carried last time; absent before the first session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<Carried>,
}

/// What a gateway wants in its tunnel, and what it wants outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// The only destinations that go into the tunnel; empty for all.
    pub only: Vec<IpNet>,
    /// Destinations that stay outside.
    pub excluded: Vec<IpNet>,
}

impl fmt::Debug for Profile {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut it = f.debug_struct("Profile");
        it.field("name", &self.name).field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Profile {
    /// Certificate and key, checked against each other.
    ///
    /// # Errors
    /// [`IdentityError`] for a file that was edited or damaged.
    pub fn credential(&self) -> Result<Credential, IdentityError> {
        Credential::from_pem(&self.chain_pem, &self.key_pem)
    }

    /// What the device's certificate says; the key is not needed for that.
    ///
    /// # Errors
    /// [`IdentityError`] for a file that was edited or damaged.
    pub fn facts(&self) -> Result<CertificateFacts, IdentityError> {
        let chain = Credential::chain_from_pem(&self.chain_pem)?;
        CertificateFacts::read(chain.first().ok_or(IdentityError::Certificate)?)
    }

    /// The name or address that the certificate must carry of the gateway behind endpoint number `endpoint`: gateways
    /// that share their devices have names of their own.
    pub fn server_name(&self, endpoint: usize) -> &str {
        let other = self.endpoints.get(endpoint).filter(|_| endpoint > 0);
        other.map_or(&self.server_name, |endpoint| dial::host(endpoint))
    }

    /// True while the key is only there as the keychain's owner can open it.
    pub fn is_locked(&self) -> bool {
        self.sealed.is_some() && self.key_pem.is_empty()
    }

    /// Forgets the key in this process's memory, if the disk has it sealed.
    pub fn lock(&mut self) {
        if self.sealed.is_some() {
            self.key_pem.zeroize();
        }
    }

    /// The pin of the CA that signed the device's certificate.
    pub fn authority(&self) -> Option<Pin> {
        Pin::of_certificate(Credential::chain_from_pem(&self.chain_pem).ok()?.last()?).ok()
    }

    /// The CAs that may vouch for the gateway, the one to have a certificate of first.
    ///
    /// # Errors
    /// [`IdentityError`] for a file that was edited or damaged.
    pub fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        if !self.authorities_pem.is_empty() {
            return Credential::chain_from_pem(&self.authorities_pem);
        }
        Ok(Credential::chain_from_pem(&self.chain_pem)?.pop().into_iter().collect())
    }

    /// The pins of [`Self::authorities`]; none of a damaged file.
    pub fn pins(&self) -> Vec<Pin> {
        let authorities = self.authorities().unwrap_or_default();
        authorities.iter().filter_map(|authority| Pin::of_certificate(authority).ok()).collect()
    }

    /// True for two identities at one gateway: they share a CA, or the gateway says that it is the same device.
    fn is_same_gateway(&self, other: &Self) -> bool {
        let (own, others) = (self.pins(), other.pins());
        own.iter().any(|pin| others.contains(pin))
            || (self.device_id == other.device_id && self.server_name == other.server_name)
    }

    /// As it goes to the disk.
    fn to_json(&self) -> io::Result<Vec<u8>> {
        let key_pem = if self.sealed.is_some() { String::new() } else { self.key_pem.clone() };
        Ok(serde_json::to_vec_pretty(&Self { key_pem, ..self.clone() })?)
    }
}

/// The profiles in one state directory.
#[derive(Clone, Debug)]
pub struct Profiles {
    dir: PathBuf,
}

impl Profiles {
    /// Uses `STATE_DIR/profiles`; makes it, readable by root only, when there is none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("profiles");
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(Self { dir })
    }

    /// The names, sorted.
    ///
    /// # Errors
    /// What the file system says.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let file = entry?.file_name();
            if let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".json")) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none of that name,
    /// [`io::ErrorKind::InvalidData`] for a damaged file.
    pub fn load(&self, name: &str) -> io::Result<Profile> {
        if !is_name(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let bytes = fs::read(self.file(name))?;
        serde_json::from_slice(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The default profile's name; `None` before the first enrolment.
    ///
    /// # Errors
    /// What the file system says.
    pub fn default_name(&self) -> io::Result<Option<String>> {
        let names = self.names()?;
        match fs::read_to_string(self.dir.join("default")) {
            Ok(name) if names.iter().any(|known| known == name.trim()) => Ok(Some(name.trim().to_owned())),
            Ok(_) => Ok(names.into_iter().next()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(names.into_iter().next()),
            Err(error) => Err(error),
        }
    }

    /// Keeps a profile and makes it the default one. It replaces that of the same gateway; another gateway of the same name gets a number.
    ///
    /// # Errors
    /// What the file system says; the profiles are as they were then.
    pub fn keep(&self, mut profile: Profile) -> io::Result<Profile> {
        profile.name = self.name_for(&profile)?;
        self.write(&format!("{}.json", profile.name), &profile.to_json()?)?;
        self.write("default", profile.name.as_bytes())?;
        Ok(profile)
    }

    /// Gives a profile another name. The identity is copied before it is removed, so a crash between the two leaves
    /// it twice and not never.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none of that name, [`io::ErrorKind::InvalidInput`] for a name that
    /// cannot be, [`io::ErrorKind::AlreadyExists`] for one that is taken.
    pub fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        let mut profile = self.load(name)?;
        if !is_name(to) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if name == to {
            return Ok(());
        }
        if self.file(to).exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let was_default = self.default_name()?.as_deref() == Some(name);
        profile.name = to.to_owned();
        self.write(&format!("{to}.json"), &profile.to_json()?)?;
        if was_default {
            self.write("default", to.as_bytes())?;
        }
        files::remove(&self.file(name))
    }

    /// Forgets a profile, damaged or not. Its identity is gone then.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none of that name, else what the file system says.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        if !is_name(name) || !self.file(name).exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        if self.default_name()?.as_deref() == Some(name) {
            files::remove(&self.dir.join("default"))?;
        }
        files::remove(&self.file(name))
    }

    /// Makes a profile the default one.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none of that name, else what the file system says.
    pub fn make_default(&self, name: &str) -> io::Result<()> {
        if !is_name(name) || !self.file(name).exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.write("default", name.as_bytes())
    }

    /// Writes a profile that is there anew.
    ///
    /// # Errors
    /// What the file system says; the profile is as it was then.
    pub fn update(&self, profile: &Profile) -> io::Result<()> {
        self.write(&format!("{}.json", profile.name), &profile.to_json()?)
    }

    /// Sees whether a profile could be written now, before an invitation is spent on it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn has_room(&self) -> io::Result<()> {
        let path = self.dir.join("room.new");
        let written = write_synced(&path, &[0; ROOM_BYTES]);
        let removed = fs::remove_file(&path);
        written.and(removed)
    }

    fn name_for(&self, profile: &Profile) -> io::Result<String> {
        let base = slug(&profile.gateway);
        for number in 1.. {
            let name = if number == 1 { base.clone() } else { format!("{base}-{number}") };
            match self.load(&name) {
                Ok(known) if !known.is_same_gateway(profile) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {} // not ours to overwrite
                Ok(_) => return Ok(name),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(name),
                Err(error) => return Err(error),
            }
        }
        Ok(base)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        replace(&self.dir.join(file), bytes)
    }
}

/// A gateway's display name as a file's name.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.truncate(40);
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "gateway".into() } else { slug.into() }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_tunnel::identity::{Authority, DeviceKey};
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    #[test]
    fn a_profile_comes_back_as_it_was_and_only_root_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Profiles::open(dir.path()).unwrap();
        assert_eq!(profiles.default_name().unwrap(), None);
        let kept = profiles.keep(profile("Acme Corp.", &authority())).unwrap();
        assert_eq!(kept.name, "acme-corp");
        assert_eq!(profiles.load("acme-corp").unwrap(), kept);
        assert_eq!(profiles.default_name().unwrap().as_deref(), Some("acme-corp"));
        kept.credential().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("profiles")), 0o700);
        assert_eq!(mode(&dir.path().join("profiles/acme-corp.json")), 0o600);
        assert!(!format!("{kept:?}").contains("PRIVATE"));
    }

    #[test]
    fn the_same_gateway_replaces_its_profile_and_another_of_the_same_name_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Profiles::open(dir.path()).unwrap();
        let (acme, impostor) = (authority(), authority());
        profiles.keep(profile("Acme", &acme)).unwrap();
        assert_eq!(profiles.keep(profile("Acme", &acme)).unwrap().name, "acme");
        assert_eq!(profiles.keep(profile("Acme", &impostor)).unwrap().name, "acme-2");
        assert_eq!(profiles.names().unwrap(), ["acme", "acme-2"]);
    }

    #[test]
    fn a_gateway_with_another_authority_is_the_same_one_to_a_device_that_it_renews() {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Profiles::open(dir.path()).unwrap();
        let old = profiles.keep(profile("Acme", &authority())).unwrap();
        let invited = Profile { device_id: old.device_id, ..profile("Acme", &authority()) };
        assert_eq!(profiles.keep(invited).unwrap().name, "acme");
        assert_eq!(profiles.names().unwrap(), ["acme"]);
    }

    #[test]
    fn a_write_that_fails_leaves_the_profile_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Profiles::open(dir.path()).unwrap();
        let acme = authority();
        let kept = profiles.keep(profile("Acme", &acme)).unwrap();
        fs::create_dir(dir.path().join("profiles/acme.json.new")).unwrap(); // as a full disk: the new file cannot be written
        assert!(profiles.keep(profile("Acme", &acme)).is_err());
        assert_eq!(profiles.load("acme").unwrap(), kept);
    }

    #[test]
    fn a_renamed_profile_keeps_its_identity_and_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Profiles::open(dir.path()).unwrap();
        let kept = profiles.keep(profile("Acme", &authority())).unwrap();
        profiles.keep(profile("Home", &authority())).unwrap();
        profiles.make_default("acme").unwrap();
        profiles.rename("acme", "Work-2").unwrap();
        assert_eq!(profiles.names().unwrap(), ["Work-2", "home"]);
        assert_eq!(profiles.load("Work-2").unwrap().key_pem, kept.key_pem);
        assert_eq!(profiles.default_name().unwrap().as_deref(), Some("Work-2"));
        let refused = |name: &str, to: &str| profiles.rename(name, to).unwrap_err().kind();
        assert_eq!(refused("Work-2", "home"), io::ErrorKind::AlreadyExists);
        assert_eq!(refused("Work-2", "../x"), io::ErrorKind::InvalidInput);
        assert_eq!(refused("nobody", "x"), io::ErrorKind::NotFound);
        profiles.rename("home", "home").unwrap();
        assert_eq!(profiles.names().unwrap(), ["Work-2", "home"]);
    }

    #[test]
    fn without_its_default_profile_another_one_is_it() {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Profiles::open(dir.path()).unwrap();
        for gateway in ["Acme", "Home"] {
            profiles.keep(profile(gateway, &authority())).unwrap();
        }
        profiles.remove("home").unwrap();
        assert_eq!(profiles.default_name().unwrap().as_deref(), Some("acme"));
        fs::write(dir.path().join("profiles/acme.json"), "damaged").unwrap();
        profiles.remove("acme").unwrap();
        assert_eq!(profiles.default_name().unwrap(), None);
        assert_eq!(profiles.remove("acme").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Profiles::open(dir.path()).unwrap();
        for name in ["../../etc/passwd", "", "a/b", "."] {
            assert_eq!(profiles.load(name).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        assert_eq!(slug("../../etc"), "etc");
        assert_eq!(slug("漢字"), "gateway");
    }

    fn authority() -> Authority {
        Authority::create("Acme", SystemTime::now()).unwrap()
    }

    fn profile(gateway: &str, authority: &Authority) -> Profile {
        let key = DeviceKey::generate().unwrap();
        let device_id = DeviceId::generate().unwrap();
        let issued = authority.issue_device(&key.csr("test").unwrap(), device_id, SystemTime::now()).unwrap();
        let chain = vec![issued.der.into(), authority.certificate_der().clone()];
        let credential = Credential::new(chain, key).unwrap();
        Profile {
            name: String::new(),
            gateway: gateway.into(),
            endpoints: vec!["127.0.0.1:443".into()],
            server_name: "127.0.0.1".into(),
            device_id,
            device_name: "test".into(),
            user: "anna".into(),
            chain_pem: credential.chain_pem(),
            key_pem: credential.key_pem().expose().into(),
            sealed: None,
            authorities_pem: String::new(),
            carried: None,
        }
    }
}

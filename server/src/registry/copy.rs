//! What a gateway remembers of the registry that it shares: its devices and facts, for when the database does not
//! answer.
//!
//! A file of the state directory, authenticated with a key that only this gateway has: whoever can write files there
//! and nothing more cannot invent a device. One line with the HMAC-SHA256 of the rest, one with the facts, one a
//! device. Replaced in one step, so a crash leaves the old one or the new one.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::Path;

use aws_lc_rs::hmac;
use culvert_tunnel::identity::Pin;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Device, RegistryError};
use crate::files;

/// Of the file's format; another one is not read.
const VERSION: u32 = 1;
/// What the key is derived for.
const LABEL: &[u8] = b"culvert-server copy of the registry, version 1";

/// Authenticates the file. Derived from a secret of the gateway's own.
#[derive(Clone)]
pub struct CopyKey(hmac::Key);

impl CopyKey {
    /// The key that belongs to the secret.
    pub fn derive(secret: &[u8]) -> Self {
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), LABEL);
        Self(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }
}

impl fmt::Debug for CopyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CopyKey")
    }
}

/// The registry as it was at one event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// The newest event that it holds.
    pub event: i64,
    /// When the database last answered, in seconds since the Unix epoch.
    pub at: i64,
    /// Facts by their names.
    pub meta: BTreeMap<String, String>,
    devices: HashMap<String, Device>,
    /// Device ids by their keys' hashes.
    keys: HashMap<[u8; 32], String>,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// There is none, or it cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not written by this gateway, or damaged.
    #[error("it was not written by this gateway, or is damaged")]
    Forged,
    /// By another version of this program.
    #[error("it has another format")]
    Format,
}

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    event: i64,
    at: i64,
    meta: BTreeMap<String, String>,
}

/// A device as one JSON object; also in exports of the registry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceRecord {
    id: String,
    user: String,
    name: String,
    spki_sha256: String,
    serial: String,
    not_after: i64,
    ipv4: std::net::Ipv4Addr,
    ipv6: Option<std::net::Ipv6Addr>,
    created: i64,
    last_seen: Option<i64>,
    revoked_at: Option<i64>,
    #[serde(default)]
    authority: Option<Pin>,
}

impl From<&Device> for DeviceRecord {
    fn from(device: &Device) -> Self {
        Self {
            id: device.id.clone(),
            user: device.user.clone(),
            name: device.name.clone(),
            spki_sha256: HEXLOWER.encode(&device.spki_sha256),
            serial: device.serial.clone(),
            not_after: device.not_after.unix_timestamp(),
            ipv4: device.ipv4,
            ipv6: device.ipv6,
            created: device.created.unix_timestamp(),
            last_seen: device.last_seen.map(OffsetDateTime::unix_timestamp),
            revoked_at: device.revoked_at.map(OffsetDateTime::unix_timestamp),
            authority: device.authority,
        }
    }
}

impl TryFrom<DeviceRecord> for Device {
    type Error = RegistryError;

    fn try_from(record: DeviceRecord) -> Result<Self, RegistryError> {
        let when =
            |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| RegistryError::Impossible("time"));
        let spki = HEXLOWER.decode(record.spki_sha256.as_bytes()).ok().and_then(|hash| hash.try_into().ok());
        Ok(Self {
            spki_sha256: spki.ok_or(RegistryError::Impossible("key hash"))?,
            not_after: when(record.not_after)?,
            created: when(record.created)?,
            last_seen: record.last_seen.map(when).transpose()?,
            revoked_at: record.revoked_at.map(when).transpose()?,
            id: record.id,
            user: record.user,
            name: record.name,
            serial: record.serial,
            ipv4: record.ipv4,
            ipv6: record.ipv6,
            authority: record.authority,
        })
    }
}

impl Copy {
    /// A copy of these devices.
    pub fn new(event: i64, at: i64, meta: BTreeMap<String, String>, devices: Vec<Device>) -> Self {
        let mut this = Self { event, at, meta, ..Self::default() };
        devices.into_iter().for_each(|device| this.put(device));
        this
    }

    /// Adds the device, or changes it.
    pub fn put(&mut self, device: Device) {
        let key = device.spki_sha256;
        self.keys.insert(key, device.id.clone());
        if let Some(old) = self.devices.insert(device.id.clone(), device)
            && old.spki_sha256 != key
        {
            self.keys.remove(&old.spki_sha256);
        }
    }

    /// The device whose public key has this hash.
    pub fn by_key(&self, spki_sha256: &[u8; 32]) -> Option<&Device> {
        self.devices.get(self.keys.get(spki_sha256)?)
    }

    /// Every device, in no order.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// Writes the file, readable by its owner only.
    ///
    /// # Errors
    /// Whatever the OS says; the old file is still there then.
    pub fn write(&self, path: &Path, key: &CopyKey) -> io::Result<()> {
        let head = Head { version: VERSION, event: self.event, at: self.at, meta: self.meta.clone() };
        let mut body = serde_json::to_vec(&head)?;
        body.push(b'\n');
        for device in self.devices.values() {
            serde_json::to_writer(&mut body, &DeviceRecord::from(device))?;
            body.push(b'\n');
        }
        let mut bytes = HEXLOWER.encode(hmac::sign(&key.0, &body).as_ref()).into_bytes();
        bytes.push(b'\n');
        bytes.append(&mut body);
        files::write_private(path, &bytes)
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn read(path: &Path, key: &CopyKey) -> Result<Self, CopyError> {
        let bytes = std::fs::read(path)?;
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(CopyError::Forged)?;
        let (tag, body) = (&bytes[..end], &bytes[end + 1..]);
        let tag = HEXLOWER.decode(tag).map_err(|_| CopyError::Forged)?;
        hmac::verify(&key.0, body, &tag).map_err(|_| CopyError::Forged)?;
        let mut lines = body.split(|byte| *byte == b'\n');
        let head: Head = serde_json::from_slice(lines.next().unwrap_or_default()).map_err(|_| CopyError::Format)?;
        if head.version != VERSION {
            return Err(CopyError::Format);
        }
        let devices: Option<Vec<Device>> = lines
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice::<DeviceRecord>(line).ok()?.try_into().ok())
            .collect();
        Ok(Self::new(head.event, head.at, head.meta, devices.ok_or(CopyError::Format)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_written_is_read_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy");
        let key = CopyKey::derive(b"secret");
        let mut copy = Copy::new(7, 1_800_000_000, [("ca_pin".into(), "p".into())].into(), vec![device("a", 1)]);
        copy.put(Device { revoked_at: Some(now()), ..device("b", 2) });
        copy.write(&path, &key).unwrap();
        assert_eq!(Copy::read(&path, &key).unwrap(), copy);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Copy::read(&path, &CopyKey::derive(b"other")), Err(CopyError::Forged)));
        let mut bytes = std::fs::read(&path).unwrap();
        for cut in [0, 10, 64, bytes.len() - 2] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(matches!(Copy::read(&path, &key), Err(CopyError::Forged)), "cut at {cut}");
        }
        let revoked = bytes.windows(12).rposition(|window| window == b"\"revoked_at\"").unwrap();
        bytes[revoked + 1] = b'x';
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(Copy::read(&path, &key), Err(CopyError::Forged)));
    }

    #[test]
    fn a_device_with_a_new_key_is_not_found_by_its_old_one() {
        let mut copy = Copy::new(1, 0, BTreeMap::new(), vec![device("a", 1)]);
        copy.put(device("a", 2));
        assert_eq!(copy.by_key(&[1; 32]), None);
        assert_eq!(copy.by_key(&[2; 32]).unwrap().id, "a");
        assert_eq!(copy.devices().count(), 1);
    }

    fn device(id: &str, key: u8) -> Device {
        Device {
            id: id.into(),
            user: "anna".into(),
            name: "laptop".into(),
            spki_sha256: [key; 32],
            serial: "0a".into(),
            not_after: now(),
            ipv4: "100.77.3.2".parse().unwrap(),
            ipv6: Some("fd00::2".parse().unwrap()),
            created: now(),
            last_seen: None,
            revoked_at: None,
            authority: None,
        }
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }
}

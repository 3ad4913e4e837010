//! A registry as one file of JSON lines, to move it from one store to another.
//!
//! The first line says what this is and how much follows; each further line is one object of one kind. Keys of
//! invitations are in it, so nobody else may read it.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::copy::DeviceRecord;
use super::{Device, Event, Invitation, RegistryError};

/// Of the file's format.
const VERSION: u32 = 1;

/// Everything that a registry holds, but for the gateways that share it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// Facts by their names.
    pub meta: BTreeMap<String, String>,
    /// Names, and when they were first invited, in seconds since the Unix epoch.
    pub users: Vec<(String, i64)>,
    /// Every device.
    pub devices: Vec<Device>,
    /// Every invitation; what their last use was is in `uses`.
    pub invitations: Vec<Invitation>,
    /// Which invitation made which device.
    pub uses: Vec<Use>,
    /// Everything that happened, oldest first.
    pub events: Vec<Event>,
}

/// One use of an invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Id of the invitation.
    pub invitation: Vec<u8>,
    /// Id of the device that it made.
    pub device: String,
    /// When, in seconds since the Unix epoch.
    pub at: i64,
}

/// How much of each kind there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Users.
    pub users: usize,
    /// Devices.
    pub devices: usize,
    /// Invitations.
    pub invitations: usize,
    /// Their uses.
    pub uses: usize,
    /// Events.
    pub events: usize,
}

/// Why a file is no registry.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Something else, or another version's.
    #[error("it is no registry that this version can read")]
    Foreign,
    /// Cut off, or edited.
    #[error("it says that it holds {said:?}, and holds {found:?}")]
    Torn {
        /// By its first line.
        said: Sizes,
        /// By its other lines.
        found: Sizes,
    },
    /// One line.
    #[error("line {0} makes no sense")]
    Line(usize),
}

#[derive(Serialize, Deserialize)]
struct Head {
    culvert_registry: u32,
    holds: Sizes,
    meta: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    User { name: String, created: i64 },
    Device(DeviceRecord),
    Invitation(InvitationRecord),
    Use { invitation: String, device: String, at: i64 },
    Event { id: i64, at: i64, event: String, actor: String, target: String },
}

#[derive(Serialize, Deserialize)]
struct InvitationRecord {
    id: String,
    key: String,
    user: String,
    uses_allowed: u32,
    uses: u32,
    created: i64,
    expires: i64,
    cancelled_at: Option<i64>,
    renews: Option<String>,
}

impl Dump {
    /// How much of each kind it holds.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            users: self.users.len(),
            devices: self.devices.len(),
            invitations: self.invitations.len(),
            uses: self.uses.len(),
            events: self.events.len(),
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let head = Head { culvert_registry: VERSION, holds: self.sizes(), meta: self.meta.clone() };
        line(to, &head)?;
        for (name, created) in &self.users {
            line(to, &Line::User { name: name.clone(), created: *created })?;
        }
        for device in &self.devices {
            line(to, &Line::Device(device.into()))?;
        }
        for invitation in &self.invitations {
            line(to, &Line::Invitation(invitation.into()))?;
        }
        for Use { invitation, device, at } in &self.uses {
            line(to, &Line::Use { invitation: HEXLOWER.encode(invitation), device: device.clone(), at: *at })?;
        }
        for Event { id, at, event, actor, target } in &self.events {
            let at = at.unix_timestamp();
            let (event, actor, target) = (event.clone(), actor.clone(), target.clone());
            line(to, &Line::Event { id: *id, at, event, actor, target })?;
        }
        Ok(())
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn read(from: impl BufRead) -> Result<Self, DumpError> {
        let mut lines = from.lines().enumerate();
        let (_, first) = lines.next().ok_or(DumpError::Foreign)?;
        let head: Head = serde_json::from_str(&first?).map_err(|_| DumpError::Foreign)?;
        if head.culvert_registry != VERSION {
            return Err(DumpError::Foreign);
        }
        let mut dump = Self { meta: head.meta, ..Self::default() };
        for (number, text) in lines {
            let line: Line = serde_json::from_str(&text?).map_err(|_| DumpError::Line(number + 1))?;
            dump.take(line).ok_or(DumpError::Line(number + 1))?;
        }
        let found = dump.sizes();
        if found == head.holds { Ok(dump) } else { Err(DumpError::Torn { said: head.holds, found }) }
    }

    fn take(&mut self, line: Line) -> Option<()> {
        match line {
            Line::User { name, created } => self.users.push((name, created)),
            Line::Device(device) => self.devices.push(device.try_into().ok()?),
            Line::Invitation(invitation) => self.invitations.push(invitation.try_into().ok()?),
            Line::Use { invitation, device, at } => {
                self.uses.push(Use { invitation: HEXLOWER.decode(invitation.as_bytes()).ok()?, device, at });
            }
            Line::Event { id, at, event, actor, target } => {
                let at = OffsetDateTime::from_unix_timestamp(at).ok()?;
                self.events.push(Event { id, at, event, actor, target });
            }
        }
        Some(())
    }
}

fn line(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *to, value)?;
    to.write_all(b"\n")
}

impl From<&Invitation> for InvitationRecord {
    fn from(invitation: &Invitation) -> Self {
        Self {
            id: HEXLOWER.encode(&invitation.id),
            key: HEXLOWER.encode(&invitation.key),
            user: invitation.user.clone(),
            uses_allowed: invitation.uses_allowed,
            uses: invitation.uses,
            created: invitation.created.unix_timestamp(),
            expires: invitation.expires.unix_timestamp(),
            cancelled_at: invitation.cancelled_at.map(OffsetDateTime::unix_timestamp),
            renews: invitation.renews.clone(),
        }
    }
}

impl TryFrom<InvitationRecord> for Invitation {
    type Error = RegistryError;

    fn try_from(record: InvitationRecord) -> Result<Self, RegistryError> {
        let when =
            |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| RegistryError::Impossible("time"));
        let bytes = |text: &str| HEXLOWER.decode(text.as_bytes()).map_err(|_| RegistryError::Impossible("key"));
        Ok(Self {
            id: bytes(&record.id)?,
            key: bytes(&record.key)?,
            user: record.user,
            uses_allowed: record.uses_allowed,
            uses: record.uses,
            created: when(record.created)?,
            expires: when(record.expires)?,
            cancelled_at: record.cancelled_at.map(when).transpose()?,
            last_use: None,
            renews: record.renews,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_cut_off_or_something_else_is_not_read() {
        let dump = Dump { users: vec![("anna".into(), 1), ("ben".into(), 2)], ..Dump::default() };
        let mut text = Vec::new();
        dump.write(&mut text).unwrap();
        assert_eq!(Dump::read(text.as_slice()).unwrap(), dump);
        let end = text[..text.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        assert!(matches!(Dump::read(&text[..end]), Err(DumpError::Torn { .. })));
        assert!(matches!(Dump::read(&text[..text.len() - 4]), Err(DumpError::Line(3))));
        for foreign in ["", "{}\n", "{\"culvert_registry\":2,\"holds\":{},\"meta\":{}}\n"] {
            assert!(matches!(Dump::read(foreign.as_bytes()), Err(DumpError::Foreign)), "{foreign}");
        }
    }
}

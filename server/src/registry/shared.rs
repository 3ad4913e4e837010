//! The registry in a database, as a running gateway asks it: while the database does not answer, known devices are
//! known still.
//!
//! Questions about devices are answered from the copy (`copy`) then, for as long as `registry.cache_age` says; a
//! revoked device is revoked there too. Everything else fails at once with the reason, and is not kept waiting: the
//! task that follows changes (`changes`) asks once a second, and its first answer ends the outage.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use culvert_tunnel::identity::Pin;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::copy::{Copy, CopyError, CopyKey};
use super::postgres::PostgresRegistry;
use super::{
    Certificate, Counts, Device, EnrolError, Enrolment, Event, Invitation, Meta, Registry, RegistryError, Renamed,
    Rotation, Seen, User,
};
use crate::addresses::Pool;
use crate::metrics;

/// How long a database may take to answer before it counts as down; shorter than a client waits for a step.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// How often the copy's age is put on the disk when nothing else changes.
const AGE_EVERY: Duration = Duration::from_secs(300);
/// More changes than this at once are taken over by reading everything.
const CHANGES_AT_ONCE: u32 = 200;
/// What `init` wrote.
const FACTS: [Meta; 3] = [Meta::Ipv4, Meta::Ipv6, Meta::Authority];

/// A registry in a database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedRegistry {
    store: PostgresRegistry,
    /// `None` for a command, which says what is wrong instead.
    memory: Option<Arc<Memory>>,
}

/// What is remembered of it.
#[derive(Debug)]
struct Memory {
    path: PathBuf,
    key: CopyKey,
    good_for: Duration,
    copy: RwLock<Option<Copy>>,
    down: AtomicBool,
    /// When the file was last written.
    written: Mutex<Option<Instant>>,
}

impl SharedRegistry {
    /// For a command.
    pub fn plain(store: PostgresRegistry) -> Self {
        Self { store, memory: None }
    }

    /// For a gateway, whose copy is the file at `path` and good for as long as `good_for`. Connects; while the
    /// database does not answer, what the file says does.
    ///
    /// # Errors
    /// Why there is neither.
    pub async fn remembering(
        store: PostgresRegistry,
        path: &Path,
        key: CopyKey,
        good_for: Duration,
    ) -> Result<Self, RegistryError> {
        let copy = match Copy::read(path, &key) {
            Ok(copy) => Some(copy),
            Err(CopyError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(event = "registry_copy_unusable", %error, "{} is left alone", path.display());
                None
            }
        };
        let memory = Memory {
            path: path.to_owned(),
            key,
            good_for,
            copy: RwLock::new(copy),
            down: AtomicBool::new(false),
            written: Mutex::new(None),
        };
        let this = Self { store, memory: Some(Arc::new(memory)) };
        match this.refresh().await {
            Err(error @ RegistryError::Unreachable(_)) => this.remembered(|_| ()).map_err(|_| error)?,
            other => other?,
        }
        Ok(this)
    }

    /// The database itself, for what only a fleet has.
    pub fn store(&self) -> &PostgresRegistry {
        &self.store
    }

    /// Closes every connection.
    pub async fn close(self) {
        self.store.close().await;
    }

    /// Takes over what has changed in the database.
    ///
    /// # Errors
    /// What the database says; the copy is as it was then.
    pub async fn refresh(&self) -> Result<(), RegistryError> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let known = memory.look(|copy| copy.map(|copy| copy.event));
        let at = OffsetDateTime::now_utc().unix_timestamp();
        let mut changed = true;
        match known {
            None => self.take_over(memory, at).await?,
            Some(known) => {
                let events = self.probe(self.store.events_after(known, CHANGES_AT_ONCE)).await?;
                if events.len() >= CHANGES_AT_ONCE as usize {
                    self.take_over(memory, at).await?;
                } else {
                    let mut devices = Vec::new();
                    for event in &events {
                        let found = self.probe(self.store.find_devices(&event.target)).await?;
                        devices.extend(found.into_iter().filter(|device| device.id == event.target));
                    }
                    memory.change(|copy| {
                        devices.into_iter().for_each(|device| copy.put(device));
                        copy.event = events.last().map_or(copy.event, |event| event.id);
                        copy.at = at;
                    });
                    changed = !events.is_empty();
                }
            }
        }
        if changed || memory.is_old_on_disk() {
            memory.write().await;
        }
        Ok(())
    }

    async fn take_over(&self, memory: &Memory, at: i64) -> Result<(), RegistryError> {
        // The number first: what changes meanwhile is only taken over twice.
        let event = self.probe(self.store.last_event()).await?;
        let mut meta = std::collections::BTreeMap::new();
        for fact in FACTS {
            if let Some(value) = self.store.meta(fact).await? {
                meta.insert(fact.name().to_owned(), value);
            }
        }
        let devices = self.store.devices().await?;
        *memory.copy.write().unwrap_or_else(PoisonError::into_inner) = Some(Copy::new(event, at, meta, devices));
        Ok(())
    }

    fn is_down(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.down.load(Ordering::Relaxed))
    }

    /// Asks the database, unless it is known not to answer.
    async fn ask<T>(&self, answer: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
        if self.is_down() {
            return Err(RegistryError::Unreachable("it did not answer a moment ago".into()));
        }
        self.probe(answer).await
    }

    /// Asks the database, and notes whether it answers.
    async fn probe<T>(&self, answer: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
        let Some(memory) = &self.memory else { return answer.await };
        let told = timeout(ANSWER_WITHIN, answer)
            .await
            .unwrap_or_else(|_| Err(RegistryError::Unreachable("it does not answer in time".into())));
        memory.heard(told.as_ref().err().filter(|error| error.is_outage()));
        told
    }

    /// Asks the database, or while it does not answer the copy.
    async fn ask_or<T>(
        &self,
        answer: impl Future<Output = Result<T, RegistryError>>,
        remembered: impl FnOnce(&Copy) -> T,
    ) -> Result<T, RegistryError> {
        match self.ask(answer).await {
            Err(error) if error.is_outage() && self.memory.is_some() => self.remembered(remembered),
            told => told,
        }
    }

    fn remembered<T>(&self, look: impl FnOnce(&Copy) -> T) -> Result<T, RegistryError> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let nothing = || RegistryError::Unreachable("nothing is remembered of it".into());
        let memory = self.memory.as_ref().ok_or_else(nothing)?;
        memory.look(|copy| {
            let copy = copy.ok_or_else(nothing)?;
            // A clock that was set back makes nothing younger than it is: the difference counts.
            let age = now.abs_diff(copy.at);
            if age > memory.good_for.as_secs() { Err(RegistryError::Forgotten) } else { Ok(look(copy)) }
        })
    }
}

impl Memory {
    fn look<T>(&self, look: impl FnOnce(Option<&Copy>) -> T) -> T {
        look(self.copy.read().unwrap_or_else(PoisonError::into_inner).as_ref())
    }

    fn change(&self, change: impl FnOnce(&mut Copy)) {
        if let Some(copy) = self.copy.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
            change(copy);
        }
    }

    fn is_old_on_disk(&self) -> bool {
        let written = *self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.is_none_or(|written| written.elapsed() >= AGE_EVERY)
    }

    /// A disk that is full costs the copy's age, and is told.
    async fn write(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || {
            this.look(|copy| copy.map_or(Ok(()), |copy| copy.write(&this.path, &this.key)))
        });
        match written.await {
            Ok(Ok(())) => *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now()),
            Ok(Err(error)) => {
                tracing::warn!(event = "registry_copy_not_written", %error, "{}", self.path.display());
            }
            Err(_) => {} // the runtime is going down
        }
    }

    /// Tells an outage and its end once.
    fn heard(&self, outage: Option<&RegistryError>) {
        metrics::registry_up(outage.is_none());
        let before = self.down.swap(outage.is_some(), Ordering::Relaxed);
        match (before, outage) {
            (false, Some(error)) => {
                let hours = self.good_for.as_secs_f64() / 3_600.0;
                tracing::error!(
                    event = "registry_unreachable",
                    %error,
                    "known devices may connect for {hours:.1} h more; nobody can enrol"
                );
            }
            (true, None) => tracing::info!(event = "registry_back", "the registry's database answers again"),
            _ => {}
        }
    }
}

impl Registry for SharedRegistry {
    async fn meta(&self, name: Meta) -> Result<Option<String>, RegistryError> {
        self.ask_or(self.store.meta(name), |copy| copy.meta.get(name.name()).cloned()).await
    }

    async fn add_invitation(&self, invitation: &Invitation, actor: &str) -> Result<(), RegistryError> {
        self.ask(self.store.add_invitation(invitation, actor)).await
    }

    async fn invitation(&self, id: &[u8]) -> Result<Option<Invitation>, RegistryError> {
        self.ask(self.store.invitation(id)).await
    }

    async fn invitations(&self) -> Result<Vec<Invitation>, RegistryError> {
        self.ask(self.store.invitations()).await
    }

    async fn cancel_invitation(&self, id: &[u8], now: OffsetDateTime, actor: &str) -> Result<bool, RegistryError> {
        self.ask(self.store.cancel_invitation(id, now, actor)).await
    }

    async fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<Device, EnrolError> {
        // A refusal is an answer of the database, too.
        let told = self.ask(async {
            match self.store.enrol(enrolment).await {
                Err(EnrolError::Registry(error)) => Err(error),
                other => Ok(other),
            }
        });
        told.await?
    }

    async fn device_by_key(&self, spki_sha256: &[u8; 32]) -> Result<Option<Device>, RegistryError> {
        let asked = self.ask_or(self.store.device_by_key(spki_sha256), |copy| copy.by_key(spki_sha256).cloned());
        match asked.await? {
            // It may have enrolled since the copy was made.
            None if self.is_down() => Err(RegistryError::Unreachable("the device is not remembered".into())),
            told => Ok(told),
        }
    }

    async fn find_devices(&self, name: &str) -> Result<Vec<Device>, RegistryError> {
        self.ask(self.store.find_devices(name)).await
    }

    async fn devices_of(&self, user: &str) -> Result<Vec<Device>, RegistryError> {
        self.ask(self.store.devices_of(user)).await
    }

    async fn devices(&self) -> Result<Vec<Device>, RegistryError> {
        let mut devices = self.ask_or(self.store.devices(), |copy| copy.devices().cloned().collect::<Vec<_>>()).await?;
        devices.sort_by(|a, b| (&a.user, &a.name).cmp(&(&b.user, &b.name)));
        Ok(devices)
    }

    async fn users(&self) -> Result<Vec<User>, RegistryError> {
        self.ask(self.store.users()).await
    }

    async fn stranded(&self, pool: &Pool) -> Result<Option<Device>, RegistryError> {
        let outside = |device: &&Device| device.revoked_at.is_none() && device.lease(pool).is_none();
        self.ask_or(self.store.stranded(pool), |copy| copy.devices().find(outside).cloned()).await
    }

    async fn saw(&self, seen: &[Seen]) -> Result<(), RegistryError> {
        if self.is_down() {
            return Ok(()); // nothing hangs on it, and the outage is told
        }
        self.ask(self.store.saw(seen)).await
    }

    async fn revoke(&self, device: &str, now: OffsetDateTime, actor: &str) -> Result<bool, RegistryError> {
        self.ask(self.store.revoke(device, now, actor)).await
    }

    async fn restore(&self, device: &str, now: OffsetDateTime, actor: &str) -> Result<bool, RegistryError> {
        self.ask(self.store.restore(device, now, actor)).await
    }

    async fn rename(
        &self,
        device: &str,
        name: &str,
        now: OffsetDateTime,
        actor: &str,
    ) -> Result<Renamed, RegistryError> {
        self.ask(self.store.rename(device, name, now, actor)).await
    }

    async fn renew(
        &self,
        device: &str,
        certificate: &Certificate<'_>,
        now: OffsetDateTime,
    ) -> Result<bool, RegistryError> {
        self.ask(self.store.renew(device, certificate, now)).await
    }

    async fn holds(&self, device: &str, authority: &Pin) -> Result<(), RegistryError> {
        self.ask(self.store.holds(device, authority)).await
    }

    async fn first_authority(&self, authority: &Pin) -> Result<(), RegistryError> {
        self.ask(self.store.first_authority(authority)).await
    }

    async fn rotated(
        &self,
        step: Rotation,
        authority: &Pin,
        now: OffsetDateTime,
        actor: &str,
    ) -> Result<(), RegistryError> {
        self.ask(self.store.rotated(step, authority, now, actor)).await
    }

    async fn counts(&self, now: OffsetDateTime) -> Result<Counts, RegistryError> {
        self.ask(self.store.counts(now)).await
    }

    /// Asks the database even while it is down: that is how its return is noticed.
    async fn last_event(&self) -> Result<i64, RegistryError> {
        self.probe(self.store.last_event()).await
    }

    async fn known_event(&self) -> Result<i64, RegistryError> {
        self.ask_or(self.store.last_event(), |copy| copy.event).await
    }

    /// As [`Self::last_event`].
    async fn events_after(&self, id: i64, at_most: u32) -> Result<Vec<Event>, RegistryError> {
        self.probe(self.store.events_after(id, at_most)).await
    }

    async fn history(&self, target: &str, at_most: u32) -> Result<Vec<Event>, RegistryError> {
        self.ask(self.store.history(target, at_most)).await
    }
}

//! The user's keychain: Keychain on macOS, Secret Service on Linux. It keeps the key that opens a profile's device key,
//! and the helper gets it for one connection.

use culvert_protocol::{Client, Event, Problem, ProfileFacts, Request, Secret, code};
use data_encoding::HEXLOWER;
use keyring::{Entry, Error};
use tokio::sync::oneshot;

use crate::ask;
use crate::failure::Failure;

/// What the entries are filed under; the device's id is the account.
const SERVICE: &str = "net.culvert";

/// The key of a profile that is sealed, `None` for others. `wanted`: its name; the default profile when absent.
pub(crate) async fn key_of(client: &mut Client, wanted: Option<&str>) -> Result<Option<Secret>, Failure> {
    let profiles = match ask(client, Request::Profiles).await? {
        Event::Profiles { profiles } => profiles,
        other => return Err(Failure::unexpected(&other)),
    };
    let is_it = |profile: &&ProfileFacts| wanted.map_or(profile.is_default, |name| profile.name == name);
    match profiles.iter().find(is_it).filter(|profile| profile.sealed) {
        Some(profile) => get(profile.device_id.clone()).await.map(Some),
        None => Ok(None),
    }
}

/// Makes a key and keeps it; one that is there already is taken again.
pub(crate) async fn make(device_id: String) -> Result<Secret, Failure> {
    if let Ok(key) = get(device_id.clone()).await {
        return Ok(key);
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| Problem::new(code::INTERNAL))?;
    let key = HEXLOWER.encode(&bytes);
    let text = key.clone();
    aside(device_id.clone(), move |entry| entry.set_password(&text)).await?;
    // What cannot be read back would lock its owner out.
    let back = get(device_id).await?;
    if back.expose() == key { Ok(back) } else { Err(problem("It does not give back what it was given").into()) }
}

/// Forgets it.
pub(crate) async fn forget(device_id: String) -> Result<(), Failure> {
    aside(device_id, |entry| match entry.delete_credential() {
        Err(Error::NoEntry) => Ok(()),
        done => done,
    })
    .await
}

async fn get(device_id: String) -> Result<Secret, Failure> {
    aside(device_id, Entry::get_password).await.map(Secret::new)
}

/// On a thread of its own: a keychain may ask its user first, and Ctrl-C must be heard meanwhile.
async fn aside<T: Send + 'static>(
    device_id: String,
    act: impl FnOnce(&Entry) -> keyring::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || tell.send(Entry::new(SERVICE, &device_id).and_then(|entry| act(&entry))));
    let done = told.await.map_err(|_| Problem::new(code::INTERNAL))?;
    done.map_err(|error| match error {
        Error::NoEntry => problem("Your keychain has no key for this profile").into(),
        error => problem(&format!("Your keychain does not answer: {error}")).into(),
    })
}

fn problem(sentence: &str) -> Problem {
    Problem::new(code::LOCKED).because(sentence)
}

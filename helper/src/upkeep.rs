//! Keeps this device's access good while it is connected: a new certificate at two thirds of the old
//! one's life, and answers when the gateway asks whether the device still has its key.
//!
//! Pure: profiles and messages in, messages and profiles out; `session` sends and saves. The key
//! stays the same for the life of a device, so that a renewal that is lost on its way changes nothing.

use std::time::{Duration, SystemTime};

use culvert_tunnel::control::{Base64, FromClient};
use culvert_tunnel::identity::{Credential, DeviceKey, IdentityError, Pin, is_device_certificate, renew_at};

use crate::profile::Profile;

/// The longest time between two looks at the clock: a machine that sleeps does not count it as waiting.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);
/// The shortest time between two requests.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Why what the gateway sent is not kept.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// Not a leaf and its CA.
    #[error("the gateway sent a chain of {0} certificates instead of 2")]
    Chain(usize),
    /// Signed by somebody else than the CA that this device was enrolled with.
    #[error("the gateway sent a certificate of another authority")]
    Authority,
    /// For another device, or another key.
    #[error("the gateway sent a certificate that is not this device's")]
    NotOurs,
    /// It ends before the one that is there.
    #[error("the gateway sent a certificate that ends no later than the old one")]
    NotNewer,
    /// The profile, or what came, cannot be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What to do about the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Ask for a new one, and look again after this time.
    Ask(Duration),
    /// Nothing before this time has passed.
    Wait(Duration),
}

/// Judges a certificate that is valid from `from` to `until`.
pub fn due(from: SystemTime, until: SystemTime, now: SystemTime) -> Renewal {
    let at = renew_at(from, until);
    match at.duration_since(now) {
        Ok(left) if !left.is_zero() => Renewal::Wait(left.min(LOOK_EVERY)),
        _ => {
            let left = until.duration_since(now).unwrap_or_default();
            Renewal::Ask((left / 4).clamp(ASK_AGAIN, LOOK_EVERY))
        }
    }
}

/// Judges a profile's certificate. One that cannot be read is looked at again later.
pub fn due_for(profile: &Profile, now: SystemTime) -> Renewal {
    profile.facts().map_or(Renewal::Wait(LOOK_EVERY), |facts| due(facts.not_before, facts.not_after, now))
}

/// The request for a new certificate, for the key that is there.
///
/// # Errors
/// [`IdentityError`] when the profile's key cannot be used.
pub fn request(profile: &Profile) -> Result<FromClient, IdentityError> {
    let key = DeviceKey::from_pem(&profile.key_pem)?;
    Ok(FromClient::Renew { csr: key.csr(&profile.device_name)? })
}

/// The answer to a challenge on a connection with this TLS exporter value.
///
/// # Errors
/// [`IdentityError`] when the profile's key cannot be used.
pub fn answer(profile: &Profile, nonce: Vec<u8>, exporter: &[u8; 32]) -> Result<FromClient, IdentityError> {
    let signature = DeviceKey::from_pem(&profile.key_pem)?.answer_challenge(&nonce, exporter)?;
    Ok(FromClient::ChallengeAnswer { nonce, signature })
}

/// The profile's new chain, PEM, when it is one to keep.
///
/// # Errors
/// [`RenewError`]; the old one stays then.
pub fn accept(profile: &Profile, chain: Vec<Base64>) -> Result<String, RenewError> {
    let [leaf, authority] = <[Base64; 2]>::try_from(chain).map_err(|chain| RenewError::Chain(chain.len()))?;
    if profile.authority() != Some(Pin::of_certificate(&authority.0)?) {
        return Err(RenewError::Authority);
    }
    let key = DeviceKey::from_pem(&profile.key_pem)?;
    if !is_device_certificate(&leaf.0, &authority.0, profile.device_id, key.pin())? {
        return Err(RenewError::NotOurs);
    }
    let renewed = Credential::new(vec![leaf.0.into(), authority.0.into()], key)?;
    if renewed.facts()?.not_after <= profile.facts()?.not_after {
        return Err(RenewError::NotNewer);
    }
    Ok(renewed.chain_pem())
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_tunnel::identity::{Authority, DeviceId, verify_challenge};

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life_and_asked_for_until_it_comes() {
        let from = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let until = from + 90 * DAY;
        assert_eq!(due(from, until, from), Renewal::Wait(LOOK_EVERY));
        assert_eq!(due(from, until, from + 60 * DAY - Duration::from_secs(5)), Renewal::Wait(Duration::from_secs(5)));
        assert_eq!(due(from, until, from + 60 * DAY), Renewal::Ask(LOOK_EVERY));
        assert_eq!(due(from, until, until - Duration::from_secs(60)), Renewal::Ask(Duration::from_secs(15)));
        assert_eq!(due(from, until, until + DAY), Renewal::Ask(ASK_AGAIN));
    }

    #[test]
    fn a_new_certificate_of_our_gateway_for_our_key_is_kept() {
        let (authority, profile) = enrolled();
        let FromClient::Renew { csr } = request(&profile).unwrap() else { panic!("a request") };
        let chain = issue(&authority, &csr, profile.device_id, SystemTime::now() + DAY);
        let renewed = Profile { chain_pem: accept(&profile, chain).unwrap(), ..profile.clone() };
        assert!(renewed.facts().unwrap().not_after > profile.facts().unwrap().not_after);
        renewed.credential().unwrap();
    }

    #[test]
    fn nothing_else_is_kept() {
        let (authority, profile) = enrolled();
        let csr = DeviceKey::from_pem(&profile.key_pem).unwrap().csr("mac").unwrap();
        let later = SystemTime::now() + DAY;
        let stranger = Authority::create("Acme", SystemTime::now()).unwrap();
        let foreign_key = DeviceKey::generate().unwrap().csr("mac").unwrap();
        let good = issue(&authority, &csr, profile.device_id, later);
        let refused = |chain: Vec<Base64>| accept(&profile, chain).unwrap_err();
        assert!(matches!(refused(vec![]), RenewError::Chain(0)));
        assert!(matches!(refused(good[..1].to_vec()), RenewError::Chain(1)));
        assert!(matches!(refused(vec![good[1].clone(), Base64(vec![0x30])]), RenewError::Identity(_)));
        let foreign = issue(&stranger, &csr, profile.device_id, later);
        assert!(matches!(refused(foreign.clone()), RenewError::Authority));
        assert!(matches!(refused(vec![foreign[0].clone(), good[1].clone()]), RenewError::NotOurs));
        assert!(matches!(refused(issue(&authority, &foreign_key, profile.device_id, later)), RenewError::NotOurs));
        let other = DeviceId::generate().unwrap();
        assert!(matches!(refused(issue(&authority, &csr, other, later)), RenewError::NotOurs));
        let older = issue(&authority, &csr, profile.device_id, SystemTime::now() - 2 * DAY);
        assert!(matches!(refused(older), RenewError::NotNewer));
    }

    #[test]
    fn a_challenge_is_answered_for_this_connection_only() {
        let (_, profile) = enrolled();
        let FromClient::ChallengeAnswer { nonce, signature } = answer(&profile, vec![7; 32], &[1; 32]).unwrap() else {
            panic!("an answer")
        };
        let leaf = profile.credential().unwrap().chain()[0].to_vec();
        assert_eq!(verify_challenge(&leaf, &nonce, &[1; 32], &signature), Ok(()));
        assert_eq!(verify_challenge(&leaf, &nonce, &[2; 32], &signature), Err(IdentityError::Challenge));
    }

    fn issue(authority: &Authority, csr: &[u8], id: DeviceId, now: SystemTime) -> Vec<Base64> {
        let issued = authority.issue_device(csr, id, now).unwrap();
        vec![Base64(issued.der), Base64(authority.certificate_der().to_vec())]
    }

    fn enrolled() -> (Authority, Profile) {
        let authority = Authority::create("Acme", SystemTime::now() - 10 * DAY).unwrap();
        let key = DeviceKey::generate().unwrap();
        let device_id = DeviceId::generate().unwrap();
        let chain = issue(&authority, &key.csr("mac").unwrap(), device_id, SystemTime::now());
        let credential =
            Credential::new(chain.into_iter().map(|certificate| certificate.0.into()).collect(), key).unwrap();
        let profile = Profile {
            name: "acme".into(),
            gateway: "Acme".into(),
            endpoints: vec!["vpn.example.org:443".into()],
            server_name: "vpn.example.org".into(),
            device_id,
            device_name: "mac".into(),
            user: "anna".into(),
            chain_pem: credential.chain_pem(),
            key_pem: credential.key_pem().expose().to_owned(),
            sealed: None,
            carried: None,
        };
        (authority, profile)
    }
}

//! Keeps this device's access good while it is connected: a new certificate at two thirds of the old
//! one's life, the gateway's new certificate authority when it changes that, and answers when the gateway asks whether the device still has its key.
//!
//! Pure: profiles and messages in, messages and profiles out; `session` sends and saves. The key
//! stays the same for the life of a device, so that a renewal that is lost on its way changes nothing.

use std::time::{Duration, SystemTime};

use culvert_tunnel::control::{Base64, FromClient, MAX_AUTHORITIES};
use culvert_tunnel::identity::{
    CertificateDer, Credential, DeviceKey, IdentityError, Pin, certificates_pem, is_authority, is_device_certificate,
    renew_at,
};

use crate::profile::Profile;

/// The longest time between two looks at the clock: a machine that sleeps does not count it as waiting.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);
/// The shortest time between two requests.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// The time between two requests for a certificate of another CA; the gateway hears one in ten seconds.
const ASK_AUTHORITY_AGAIN: Duration = Duration::from_secs(11);

/// Why what the gateway sent is not kept.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// Not a leaf and its CA.
    #[error("the gateway sent a chain of {0} certificates instead of 2")]
    Chain(usize),
    /// Signed by somebody else than the CAs that this device trusts.
    #[error("the gateway sent a certificate of another authority")]
    Authority,
    /// None, or more than anybody needs.
    #[error("the gateway sent {0} certificate authorities instead of 1 to {MAX_AUTHORITIES}")]
    Authorities(usize),
    /// A certificate that may not issue others.
    #[error("the gateway sent a certificate authority that is none")]
    NotAuthority,
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
    if profile.authority() != profile.pins().first().copied() {
        return Renewal::Ask(ASK_AUTHORITY_AGAIN);
    }
    profile.facts().map_or(Renewal::Wait(LOOK_EVERY), |facts| due(facts.not_before, facts.not_after, now))
}

/// The request for a new certificate, for the key that is there.
///
/// # Errors
/// [`IdentityError`] when the profile's key cannot be used.
pub fn request(profile: &Profile) -> Result<FromClient, IdentityError> {
    let key = DeviceKey::from_pem(&profile.key_pem)?;
    Ok(FromClient::Renew { csr: key.csr(&profile.device_name)?, authority: profile.pins().first().copied() })
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
    let pin = Pin::of_certificate(&authority.0)?;
    if !profile.pins().contains(&pin) {
        return Err(RenewError::Authority);
    }
    let key = DeviceKey::from_pem(&profile.key_pem)?;
    if !is_device_certificate(&leaf.0, &authority.0, profile.device_id, key.pin())? {
        return Err(RenewError::NotOurs);
    }
    let renewed = Credential::new(vec![leaf.0.into(), authority.0.into()], key)?;
    if profile.authority() == Some(pin) && renewed.facts()?.not_after <= profile.facts()?.not_after {
        return Err(RenewError::NotNewer);
    }
    Ok(renewed.chain_pem())
}

/// The CAs to trust from now on, PEM. That they are the gateway's the session has shown, which one that is trusted
/// vouches for; an end does not matter here, since TLS looks at it.
///
/// # Errors
/// [`RenewError`]; those that are trusted stay so then.
pub fn learn(authorities: Vec<Base64>) -> Result<String, RenewError> {
    if !(1..=MAX_AUTHORITIES).contains(&authorities.len()) {
        return Err(RenewError::Authorities(authorities.len()));
    }
    for authority in &authorities {
        if !is_authority(&authority.0)? {
            return Err(RenewError::NotAuthority);
        }
    }
    let authorities: Vec<CertificateDer<'_>> = authorities.into_iter().map(|authority| authority.0.into()).collect();
    Ok(certificates_pem(&authorities))
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
        let FromClient::Renew { csr, .. } = request(&profile).unwrap() else { panic!("a request") };
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
    fn another_authority_is_learnt_then_asked_for_and_the_old_one_dropped() {
        let (old, profile) = enrolled();
        let new = old.successor(SystemTime::now()).unwrap();
        let told = |authorities: &[&Authority]| {
            learn(authorities.iter().map(|one| Base64(one.certificate_der().to_vec())).collect()).unwrap()
        };
        assert!(matches!(due_for(&profile, SystemTime::now()), Renewal::Wait(_)));
        let both = Profile { authorities_pem: told(&[&new, &old]), ..profile };
        assert_eq!(both.pins(), [new.pin(), old.pin()]);
        assert_eq!(due_for(&both, SystemTime::now()), Renewal::Ask(ASK_AUTHORITY_AGAIN));
        let FromClient::Renew { csr, authority } = request(&both).unwrap() else { panic!("a request") };
        assert_eq!(authority, Some(new.pin()));
        // Of the same second as the old one, and no longer.
        let chain = issue(&new, &csr, both.device_id, SystemTime::now());
        let renewed = Profile { chain_pem: accept(&both, chain).unwrap(), ..both };
        assert!(matches!(due_for(&renewed, SystemTime::now()), Renewal::Wait(_)));
        let finished = Profile { authorities_pem: told(&[&new]), ..renewed };
        let chain = issue(&old, &csr, finished.device_id, SystemTime::now() + DAY);
        assert!(matches!(accept(&finished, chain).unwrap_err(), RenewError::Authority), "the old one counts no more");
    }

    #[test]
    fn what_is_no_authority_is_not_learnt() {
        let (authority, profile) = enrolled();
        let one = Base64(authority.certificate_der().to_vec());
        let leaf = Base64(profile.credential().unwrap().chain()[0].to_vec());
        assert!(matches!(learn(vec![]).unwrap_err(), RenewError::Authorities(0)));
        assert!(matches!(learn(vec![one.clone(); 3]).unwrap_err(), RenewError::Authorities(3)));
        assert!(matches!(learn(vec![one, leaf]).unwrap_err(), RenewError::NotAuthority));
        assert!(matches!(learn(vec![Base64(vec![0x30])]).unwrap_err(), RenewError::Identity(_)));
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
            authorities_pem: String::new(),
            carried: None,
        };
        (authority, profile)
    }
}

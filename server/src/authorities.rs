//! The gateway's certificate authorities: one, and a second one while devices change from one to the other. Pure;
//! `state` keeps them on the disk.
//!
//! A rotation has two steps, and a way back before the second:
//!
//! ```text
//!               gateway shows    devices' certificates of   clients trust   a device gets its next one from
//!   one          one              one                        one             one
//!   coming       one              both                       both            the second
//!   (leaving)    one              both                       one             one
//!   finished     the second       the second                 the second      the second
//! ```
//!
//! Clients are told in a session, which one that they trust vouches for: whoever could forge that message could be
//! their gateway anyway, so that another signature over it would add nothing. A client that was away from beginning
//! to end trusts the former one only. Therefore the former one has certified the present one before its key was
//! removed (a cross certificate): that client can see that it has reached its gateway, is told what to do, and is
//! let in no further.

use culvert_tunnel::identity::{Authority, CertificateDer, IdentityError, Pin, is_signed_by};

/// What counts now.
#[derive(Debug)]
pub struct Authorities {
    current: Authority,
    second: Option<Second>,
    former: Option<Former>,
}

/// The one beside the current one.
#[derive(Debug)]
pub enum Second {
    /// It takes the current one's place.
    Coming(Box<Authority>),
    /// It was to come and does not. Its key is gone; devices have certificates of it.
    Leaving(CertificateDer<'static>),
}

/// The one before the current one. Its key is gone.
#[derive(Clone, Debug)]
pub struct Former {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// What it says of the current one's key.
    pub cross: CertificateDer<'static>,
}

/// Who signed a device's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// One that counts.
    Counts(Pin),
    /// The former one.
    Former,
}

impl Authorities {
    /// These and no others.
    pub fn new(current: Authority, second: Option<Second>, former: Option<Former>) -> Self {
        Self { current, second, former }
    }

    /// The one that vouches for the gateway, and that invitations name.
    pub fn current(&self) -> &Authority {
        &self.current
    }

    /// The one beside it.
    pub fn second(&self) -> Option<&Second> {
        self.second.as_ref()
    }

    /// The pin of the one beside it.
    pub fn second_pin(&self) -> Option<Pin> {
        match self.second.as_ref()? {
            Second::Coming(authority) => Some(authority.pin()),
            Second::Leaving(certificate) => Pin::of_certificate(certificate).ok(),
        }
    }

    /// What clients are to trust; the first one signs their certificates.
    pub fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let current = self.current.certificate_der().clone();
        match &self.second {
            Some(Second::Coming(coming)) => vec![coming.certificate_der().clone(), current],
            Some(Second::Leaving(_)) | None => vec![current],
        }
    }

    /// The pins of [`Self::trusted`].
    pub fn trusted_pins(&self) -> Vec<Pin> {
        match &self.second {
            Some(Second::Coming(coming)) => vec![coming.pin(), self.current.pin()],
            Some(Second::Leaving(_)) | None => vec![self.current.pin()],
        }
    }

    /// Those whose certificates TLS lets through; [`Self::issuer`] has the last word.
    pub fn accepted(&self) -> Vec<CertificateDer<'static>> {
        let second = self.second.as_ref().map(|second| match second {
            Second::Coming(coming) => coming.certificate_der().clone(),
            Second::Leaving(leaving) => leaving.clone(),
        });
        let former = self.former.as_ref().map(|former| former.certificate.clone());
        std::iter::once(self.current.certificate_der().clone()).chain(second).chain(former).collect()
    }

    /// What the gateway shows besides its certificate and the CA's, for those who trust only the former one.
    pub fn cross(&self) -> Option<&CertificateDer<'static>> {
        self.former.as_ref().map(|former| &former.cross)
    }

    /// The one to sign a device's certificate with. A client that does not say trusts one, the current one; `None`
    /// for one that signs nothing here.
    pub fn signer(&self, asked: Option<Pin>) -> Option<&Authority> {
        let Some(pin) = asked else { return Some(&self.current) };
        let coming = match &self.second {
            Some(Second::Coming(coming)) => Some(&**coming),
            Some(Second::Leaving(_)) | None => None,
        };
        std::iter::once(&self.current).chain(coming).find(|authority| authority.pin() == pin)
    }

    /// True while a certificate may be another one's than the current one's.
    pub fn are_several(&self) -> bool {
        self.second.is_some() || self.former.is_some()
    }

    /// Who signed a device's certificate that TLS has let through.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] for what is no certificate.
    pub fn issuer(&self, certificate: &[u8]) -> Result<Issuer, IdentityError> {
        if let (Some(second), Some(pin)) = (self.accepted().get(1), self.second_pin())
            && is_signed_by(certificate, second)?
        {
            return Ok(Issuer::Counts(pin));
        }
        match &self.former {
            Some(former) if is_signed_by(certificate, &former.certificate)? => Ok(Issuer::Former),
            _ => Ok(Issuer::Counts(self.current.pin())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_tunnel::identity::{DeviceId, DeviceKey};
    use std::time::{Duration, SystemTime};

    #[test]
    fn both_count_until_the_end_and_a_device_gets_what_it_trusts() {
        let (old, new) = pair();
        let (of_old, of_new) = (device(&old), device(&new));
        let pins = [old.pin(), new.pin()];
        let one = Authorities::new(old, None, None);
        assert_eq!(one.issuer(&of_old), Ok(Issuer::Counts(pins[0])));
        assert_eq!(one.signer(Some(pins[1])).map(Authority::pin), None);
        let coming = Authorities::new(one.current, Some(Second::Coming(Box::new(new))), None);
        assert_eq!(coming.trusted_pins(), [pins[1], pins[0]]);
        assert_eq!(coming.accepted().len(), 2);
        assert_eq!(coming.signer(None).map(Authority::pin), Some(pins[0]), "an older client");
        assert_eq!(coming.signer(Some(pins[1])).map(Authority::pin), Some(pins[1]));
        assert_eq!(coming.issuer(&of_old), Ok(Issuer::Counts(pins[0])));
        assert_eq!(coming.issuer(&of_new), Ok(Issuer::Counts(pins[1])));
    }

    #[test]
    fn one_that_leaves_signs_nothing_and_counts_until_its_devices_have_another() {
        let (old, new) = pair();
        let (of_new, pins) = (device(&new), [old.pin(), new.pin()]);
        let leaving = Authorities::new(old, Some(Second::Leaving(new.certificate_der().clone())), None);
        assert_eq!(leaving.trusted_pins(), [pins[0]]);
        assert_eq!(leaving.signer(Some(pins[1])).map(Authority::pin), None);
        assert_eq!(leaving.issuer(&of_new), Ok(Issuer::Counts(pins[1])));
    }

    #[test]
    fn the_former_one_is_known_and_counts_no_more() {
        let (old, new) = pair();
        let (of_old, of_new, pin) = (device(&old), device(&new), new.pin());
        let now = SystemTime::now();
        let cross = old.cross_sign(&new, now + Duration::from_secs(60), now).unwrap();
        let former = Former { certificate: old.certificate_der().clone(), cross };
        let finished = Authorities::new(new, None, Some(former));
        assert_eq!(finished.trusted_pins(), [pin]);
        assert_eq!(finished.accepted().len(), 2, "so that its devices hear why");
        assert_eq!(finished.issuer(&of_old), Ok(Issuer::Former));
        assert_eq!(finished.issuer(&of_new), Ok(Issuer::Counts(pin)));
        assert_eq!(finished.signer(Some(old.pin())).map(Authority::pin), None);
    }

    fn pair() -> (Authority, Authority) {
        let old = Authority::create("Acme", SystemTime::now()).unwrap();
        let new = old.successor(SystemTime::now()).unwrap();
        (old, new)
    }

    fn device(authority: &Authority) -> Vec<u8> {
        let csr = DeviceKey::generate().unwrap().csr("mac").unwrap();
        authority.issue_device(&csr, DeviceId::generate().unwrap(), SystemTime::now()).unwrap().der
    }
}

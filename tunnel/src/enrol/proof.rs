//! The two proofs of enrolment, and the key that they are made with.

use std::fmt;

use aws_lc_rs::{
    digest::{SHA256, digest},
    hkdf, hmac,
};
use zeroize::Zeroizing;

use crate::identity::IdentityError;

const KEY_SALT: &[u8] = b"culvert-enrol/1";
const KEY_INFO: &[u8] = b"proof key";
const CLIENT_LABEL: &[u8] = b"culvert-enrol/1 client proof";
const SERVER_LABEL: &[u8] = b"culvert-enrol/1 server proof";

/// The HMAC key of one invitation, derived from its secret by HKDF-SHA-256 (RFC 5869). Whoever
/// has it can answer for the invitation, but not rebuild it. Never printed, wiped when dropped.
#[derive(Clone)]
pub struct EnrolKey(Zeroizing<[u8; 32]>);

impl EnrolKey {
    /// The key with these bytes, as the registry keeps them.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes for the registry.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn derive(secret: &[u8; 16]) -> Self {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, KEY_SALT).extract(secret);
        let mut key = Zeroizing::new([0; 32]);
        prk.expand(&[KEY_INFO], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut *key))
            .expect("32 bytes are one block of HKDF-SHA-256");
        Self(key)
    }
}

impl fmt::Debug for EnrolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnrolKey(..)")
    }
}

/// What both ends saw of one conversation, once both nonces are known.
pub(super) struct Transcript {
    pub server_nonce: [u8; 32],
    pub client_nonce: [u8; 32],
    pub csr_hash: [u8; 32],
    /// What TLS exported for this connection ([`crate::shard::mailbox::Established`]).
    pub exporter: [u8; 32],
}

impl Transcript {
    pub fn client_proof(&self, key: &EnrolKey) -> Result<[u8; 32], IdentityError> {
        let tag = hmac::sign(&hmac_key(key), &self.message(CLIENT_LABEL, None));
        tag.as_ref().try_into().map_err(|_| IdentityError::Crypto)
    }

    pub fn server_proof(&self, key: &EnrolKey, chain: &[&[u8]]) -> Result<[u8; 32], IdentityError> {
        let tag = hmac::sign(&hmac_key(key), &self.message(SERVER_LABEL, Some(chain)));
        tag.as_ref().try_into().map_err(|_| IdentityError::Crypto)
    }

    /// In constant time.
    pub fn is_client_proof(&self, key: &EnrolKey, proof: &[u8; 32]) -> bool {
        hmac::verify(&hmac_key(key), &self.message(CLIENT_LABEL, None), proof).is_ok()
    }

    /// In constant time.
    pub fn is_server_proof(&self, key: &EnrolKey, chain: &[&[u8]], proof: &[u8; 32]) -> bool {
        hmac::verify(&hmac_key(key), &self.message(SERVER_LABEL, Some(chain)), proof).is_ok()
    }

    /// Each part behind its length, so that no two conversations give the same bytes.
    fn message(&self, label: &[u8], chain: Option<&[&[u8]]>) -> Vec<u8> {
        let chain_hash = chain.map(|chain| sha256(&length_prefixed(chain)));
        let mut parts: Vec<&[u8]> = vec![label, &self.server_nonce, &self.client_nonce, &self.csr_hash, &self.exporter];
        parts.extend(chain_hash.as_ref().map(<[u8; 32]>::as_slice));
        length_prefixed(&parts)
    }
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

fn hmac_key(key: &EnrolKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes())
}

fn length_prefixed(parts: &[&[u8]]) -> Vec<u8> {
    let mut message = Vec::with_capacity(256);
    for part in parts {
        message.extend_from_slice(&(part.len() as u32).to_be_bytes());
        message.extend_from_slice(part);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_conversation_counts_in_both_proofs() {
        let key = EnrolKey::from_bytes([1; 32]);
        let changes: [fn(&mut Transcript); 4] = [
            |t| t.server_nonce[31] ^= 1,
            |t| t.client_nonce[31] ^= 1,
            |t| t.csr_hash[31] ^= 1,
            |t| t.exporter[31] ^= 1,
        ];
        let client = transcript().client_proof(&key).unwrap();
        let server = transcript().server_proof(&key, &[b"leaf", b"ca"]).unwrap();
        assert!(transcript().is_client_proof(&key, &client));
        assert!(transcript().is_server_proof(&key, &[b"leaf", b"ca"], &server));
        for (n, change) in changes.iter().enumerate() {
            let mut other = transcript();
            change(&mut other);
            assert!(!other.is_client_proof(&key, &client), "change {n}");
            assert!(!other.is_server_proof(&key, &[b"leaf", b"ca"], &server), "change {n}");
        }
        let other_key = EnrolKey::from_bytes([2; 32]);
        assert!(!transcript().is_client_proof(&other_key, &client));
        assert!(!transcript().is_server_proof(&other_key, &[b"leaf", b"ca"], &server));
        assert!(!transcript().is_server_proof(&key, &[b"lea", b"fca"], &server));
    }

    #[test]
    fn the_two_directions_differ_by_label() {
        let [client, server] = [CLIENT_LABEL, SERVER_LABEL].map(|label| transcript().message(label, None));
        assert_ne!(client, server);
        let key = EnrolKey::from_bytes([1; 32]);
        let client = transcript().client_proof(&key).unwrap();
        assert!(!transcript().is_server_proof(&key, &[], &client));
    }

    fn transcript() -> Transcript {
        Transcript { server_nonce: [1; 32], client_nonce: [2; 32], csr_hash: [3; 32], exporter: [4; 32] }
    }
}

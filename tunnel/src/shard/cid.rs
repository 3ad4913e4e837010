//! Connection IDs that carry the number of the shard that owns the connection.
//!
//! Eight bytes: four random, one the shard (masked by a secret table, so that an observer cannot
//! link two IDs of a connection by it), three a keyed check, so that garbage is told from the ID
//! of a connection that was. All shards of a gateway share one [`CidKey`].

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

/// Bytes of our connection IDs.
pub(crate) const CID_BYTES: usize = 8;

/// Bytes of the secret behind a [`CidKey`].
pub const SECRET_BYTES: usize = 32;

/// The secret of one gateway's (or client's) connection IDs.
#[derive(Clone)]
pub struct CidKey(Arc<Secret>);

struct Secret {
    check: [u8; 16],
    mask: [u8; 256],
    reset: Arc<hmac::Key>,
}

impl std::fmt::Debug for CidKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CidKey(..)")
    }
}

impl CidKey {
    /// A key from the system's random numbers.
    pub fn random() -> Self {
        Self::from_secret(&Self::random_secret())
    }

    /// What [`Self::from_secret`] takes, from the system's random numbers.
    pub fn random_secret() -> [u8; SECRET_BYTES] {
        let mut secret = [0; SECRET_BYTES];
        aws_lc_rs::rand::fill(&mut secret).expect("the system has random numbers");
        secret
    }

    /// The key that belongs to a secret. A gateway that keeps its secret can tell the clients of an earlier
    /// process at once that their sessions are gone (RFC 9000 section 10.3.2).
    pub fn from_secret(secret: &[u8; SECRET_BYTES]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derive = |purpose: &[u8], part: u8| {
            let mut context = hmac::Context::with_key(&key);
            context.update(purpose);
            context.update(&[part]);
            context.sign()
        };
        let mut check = [0; 16];
        check.copy_from_slice(&derive(b"check", 0).as_ref()[..16]);
        let mut mask = [0; 256];
        for (part, bytes) in (0..).zip(mask.chunks_exact_mut(32)) {
            bytes.copy_from_slice(derive(b"mask", part).as_ref());
        }
        let reset = hmac::Key::new(hmac::HMAC_SHA256, derive(b"reset", 0).as_ref());
        Self(Arc::new(Secret { check, mask, reset: Arc::new(reset) }))
    }

    /// The key of stateless resets (RFC 9000 section 10.3), the same for all shards.
    pub(crate) fn reset_key(&self) -> Arc<hmac::Key> {
        self.0.reset.clone()
    }

    /// The shard that made `cid`; `None` when this key did not.
    pub(crate) fn shard_of(&self, cid: &[u8]) -> Option<u8> {
        let cid: &[u8; CID_BYTES] = cid.try_into().ok()?;
        (self.check(cid[..5].try_into().ok()?) == cid[5..]).then(|| cid[4] ^ self.0.mask[usize::from(cid[0])])
    }

    fn make(&self, shard: u8) -> [u8; CID_BYTES] {
        let mut cid = [0; CID_BYTES];
        aws_lc_rs::rand::fill(&mut cid[..4]).expect("the system has random numbers");
        cid[4] = shard ^ self.0.mask[usize::from(cid[0])];
        let check = self.check(&[cid[0], cid[1], cid[2], cid[3], cid[4]]);
        cid[5..].copy_from_slice(&check);
        cid
    }

    /// SipHash-1-3 with the key as prefix: keeps garbage out cheaply; nothing secret hangs on it.
    fn check(&self, head: &[u8; 5]) -> [u8; 3] {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.0.check);
        hasher.write(head);
        let [a, b, c, ..] = hasher.finish().to_be_bytes();
        [a, b, c]
    }
}

/// The generator of one shard.
#[derive(Debug)]
pub(crate) struct ShardCids {
    pub(crate) key: CidKey,
    pub(crate) shard: u8,
}

impl ConnectionIdGenerator for ShardCids {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.key.make(self.shard))
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        self.key.shard_of(cid).map(drop).ok_or(InvalidCid)
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The destination connection ID in a datagram's first packet (RFC 8999 section 5), if it is one
/// that could be ours.
pub(crate) fn destination(datagram: &[u8]) -> Option<&[u8]> {
    const LONG_HEADER: u8 = 0x80;
    let first = *datagram.first()?;
    if first & LONG_HEADER == 0 {
        return datagram.get(1..1 + CID_BYTES);
    }
    (usize::from(*datagram.get(5)?) == CID_BYTES).then(|| datagram.get(6..6 + CID_BYTES)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_its_shard_and_garbage_names_none() {
        let key = CidKey::random();
        for shard in [0, 1, 7, 255] {
            let cid = key.make(shard);
            assert_eq!(key.shard_of(&cid), Some(shard));
            assert_eq!(CidKey::random().shard_of(&cid), None);
            let mut broken = cid;
            broken[2] ^= 1;
            assert_eq!(key.shard_of(&broken), None);
        }
        assert_eq!(key.shard_of(b"short"), None);
    }

    #[test]
    fn a_kept_secret_knows_the_ids_of_an_earlier_process() {
        let secret = CidKey::random_secret();
        let cid = CidKey::from_secret(&secret).make(3);
        assert_eq!(CidKey::from_secret(&secret).shard_of(&cid), Some(3));
        let sign = |key: CidKey| hmac::sign(&key.reset_key(), &cid).as_ref().to_vec();
        assert_eq!(sign(CidKey::from_secret(&secret)), sign(CidKey::from_secret(&secret)));
        assert_ne!(sign(CidKey::from_secret(&secret)), sign(CidKey::random()));
    }

    #[test]
    fn the_id_is_found_in_short_and_long_headers() {
        let cid = CidKey::random().make(3);
        let short = [&[0x40][..], &cid, &[0; 30]].concat();
        let long = [&[0xc0, 0, 0, 0, 1, 8][..], &cid, &[0; 30]].concat();
        assert_eq!(destination(&short), Some(&cid[..]));
        assert_eq!(destination(&long), Some(&cid[..]));
        assert_eq!(destination(&[0x40, 1, 2]), None);
        assert_eq!(destination(&[]), None);
        assert_eq!(destination(&[0xc0, 0, 0, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}

//! Both ends against each other, through real frames, and against those who would like to be one.

use std::time::{Duration, SystemTime};

use super::*;
use crate::{
    close::{Close, ECode},
    control::{FrameReader, decode, encode},
    identity::{Authority, CertificateFacts, DeviceKey, IdentityError, Issued, MAX_CSR},
    invitation::{Invitation, Secret},
};

#[test]
fn an_invitation_becomes_a_certificate() {
    let gateway = Gateway::new();
    let key = DeviceKey::generate().unwrap();
    let (mut device, begin) = Enrollee::start(&gateway.invitation, &key, "Anna’s Mac", "macOS 26", HERE).unwrap();
    let mut enroller = Enroller::new(HERE);
    let needs = enroller.on_begin(wire(&begin)).unwrap();
    assert_eq!(needs.id, gateway.invitation.id);
    assert_eq!((needs.device_name.as_str(), needs.platform.as_str()), ("Anna’s Mac", "macOS 26"));
    let proof = device.on_message(wire(&enroller.on_invitation(Ok(gateway.stored_key())))).unwrap();
    let Step::Send(proof) = proof else { panic!("{proof:?}") };
    let proven = enroller.on_proof(&wire(&proof)).unwrap();
    assert_eq!(proven.spki, key.pin());
    let issued = gateway.issue(&proven.csr);
    let last = wire(&enroller.finish(gateway.grant(&issued)).unwrap());
    let Step::Done(enrolment) = device.on_message(last).unwrap() else { panic!("not done") };
    assert_eq!(enrolment.chain, [issued.der, gateway.authority.certificate_der().to_vec()]);
    assert_eq!(CertificateFacts::read(&enrolment.chain[0]).unwrap().spki, key.pin());
    assert_eq!(enrolment.device_id, ID);
    assert_eq!(enrolment.endpoints, ["vpn.example.org:443"]);
    assert_eq!(enrolment.server_name, "vpn.example.org");
}

#[test]
fn the_secret_never_crosses_the_wire() {
    let gateway = Gateway::new();
    let mut wiretap = Vec::new();
    gateway.run(&mut |frame| wiretap.extend_from_slice(frame));
    let secret = data_encoding::BASE64.encode(&SECRET);
    let key = data_encoding::BASE64.encode(gateway.stored_key().as_bytes());
    let text = String::from_utf8_lossy(&wiretap);
    assert!(text.contains("server_nonce") && text.contains("\"proof\""));
    assert!(!text.contains(secret.trim_end_matches('=')) && !text.contains(key.trim_end_matches('=')));
}

#[test]
fn a_proof_relayed_to_another_connection_is_worthless() {
    let gateway = Gateway::new();
    let key = DeviceKey::generate().unwrap();
    // A man in the middle passes every message on. Only the two TLS connections differ.
    let (mut device, begin) = Enrollee::start(&gateway.invitation, &key, "mac", "", HERE).unwrap();
    let mut enroller = Enroller::new(ELSEWHERE);
    enroller.on_begin(begin).unwrap();
    let challenge = enroller.on_invitation(Ok(gateway.stored_key()));
    let Step::Send(proof) = device.on_message(challenge).unwrap() else { panic!("no proof") };
    assert_eq!(enroller.on_proof(&proof).unwrap_err().close(), Close::InviteProof);
}

#[test]
fn a_recorded_enrolment_cannot_be_played_again() {
    let gateway = Gateway::new();
    let Conversation { begin, proof, .. } = gateway.run(&mut |_| ());
    // Even if TLS exported the same bytes, the gateway's nonce would not be the same.
    let mut enroller = Enroller::new(HERE);
    enroller.on_begin(begin).unwrap();
    enroller.on_invitation(Ok(gateway.stored_key()));
    assert_eq!(enroller.on_proof(&proof).unwrap_err().close(), Close::InviteProof);
}

#[test]
fn a_proof_is_good_for_one_certificate() {
    let gateway = Gateway::new();
    let Conversation { begin, proof, last, mut enroller, mut device } = gateway.run(&mut |_| ());
    assert_eq!(enroller.on_proof(&proof).unwrap_err().close(), Close::Unexpected);
    assert_eq!(enroller.on_begin(begin).unwrap_err().close(), Close::Unexpected);
    let issued = gateway.issue(&DeviceKey::generate().unwrap().csr("mac").unwrap());
    assert_eq!(enroller.finish(gateway.grant(&issued)).unwrap_err().close(), Close::Unexpected);
    assert_eq!(device.on_message(last), Err(EnrolError::Unexpected));
}

#[test]
fn a_recorded_answer_does_not_satisfy_another_device() {
    let gateway = Gateway::new();
    let Conversation { last, .. } = gateway.run(&mut |_| ());
    let (mut device, _, _) = gateway.until_proof();
    assert_eq!(device.on_message(last), Err(EnrolError::ServerProof));
}

#[test]
fn a_wrong_proof_ends_the_conversation() {
    let gateway = Gateway::new();
    let (_, mut enroller, proof) = gateway.until_proof();
    let FromEnrollee::Proof { mut hmac } = proof.clone() else { panic!("{proof:?}") };
    hmac[31] ^= 1;
    assert_eq!(enroller.on_proof(&FromEnrollee::Proof { hmac }).unwrap_err().close(), Close::InviteProof);
    assert_eq!(enroller.on_proof(&proof).unwrap_err().close(), Close::Unexpected);
}

#[test]
fn a_wrong_secret_is_refused() {
    let gateway = Gateway::new();
    let (_, mut enroller, proof) = Gateway {
        invitation: Invitation { secret: Secret::from_bytes([8; 16]), ..gateway.invitation.clone() },
        ..gateway
    }
    .until_proof();
    let refused = enroller.on_proof(&proof).unwrap_err();
    assert_eq!(refused.close(), Close::InviteProof);
    assert_eq!(refused.close().ecode(), ECode(601));
}

#[test]
fn a_swapped_request_is_refused() {
    let gateway = Gateway::new();
    let (mut device, begin) = gateway.start();
    let FromEnrollee::Begin(begin) = begin else { panic!("{begin:?}") };
    let csr = DeviceKey::generate().unwrap().csr("mac").unwrap();
    let mut enroller = Enroller::new(HERE);
    enroller.on_begin(FromEnrollee::Begin(Begin { csr, ..begin })).unwrap();
    let challenge = enroller.on_invitation(Ok(gateway.stored_key()));
    let Step::Send(proof) = device.on_message(challenge).unwrap() else { panic!("no proof") };
    assert_eq!(enroller.on_proof(&proof).unwrap_err().close(), Close::InviteProof);
}

#[test]
fn a_man_in_the_middle_with_another_authority_enrols_nobody() {
    let gateway = Gateway::new();
    let impostor = Gateway { authority: Authority::create("Acme", now()).unwrap(), ..Gateway::new() };
    let (mut device, begin) = gateway.start();
    let FromEnrollee::Begin(Begin { csr, .. }) = begin else { panic!("{begin:?}") };
    let proof = device.on_message(FromEnroller::Challenge { server_nonce: [3; 32] }).unwrap();
    let Step::Send(FromEnrollee::Proof { hmac }) = proof else { panic!("{proof:?}") };
    // It has no key for a proof of its own. What it has is the device's: reflect it.
    let issued = impostor.issue(&csr);
    let last = impostor.enrolled(&issued, hmac);
    let error = device.on_message(last).unwrap_err();
    assert_eq!(error, EnrolError::ServerProof);
    assert_eq!(error.ecode(), ECode(201));
}

#[test]
fn a_stolen_registry_does_not_make_another_authority_acceptable() {
    let gateway = Gateway::new();
    let thief = Gateway { authority: Authority::create("Acme", now()).unwrap(), ..Gateway::new() };
    let (mut device, mut enroller, proof) = gateway.until_proof();
    let proven = enroller.on_proof(&proof).unwrap();
    let last = enroller.finish(thief.grant(&thief.issue(&proven.csr))).unwrap();
    let error = device.on_message(last).unwrap_err();
    let (pinned, found) = (gateway.authority.pin(), thief.authority.pin());
    assert_eq!(error, EnrolError::WrongAuthority { pinned, found });
    assert_eq!(error.ecode(), ECode(201));
}

#[test]
fn a_certificate_that_is_not_the_device_s_own_is_not_kept() {
    let other_key = DeviceKey::generate().unwrap().csr("mac").unwrap();
    refuses_certificate(|gateway, _| gateway.grant(&gateway.issue(&other_key)));
    refuses_certificate(|gateway, csr| Grant {
        device_id: DeviceId::from_bytes([9; 16]),
        ..gateway.grant(&gateway.issue(csr))
    });
    // The right key and the right names, but signed by a CA that only has the right name.
    refuses_certificate(|gateway, csr| {
        let namesake = Authority::create("Acme", now()).unwrap();
        gateway.grant(&namesake.issue_device(csr, ID, now()).unwrap())
    });
}

#[test]
fn a_changed_chain_breaks_the_proof() {
    let gateway = Gateway::new();
    let (mut device, mut enroller, proof) = gateway.until_proof();
    let proven = enroller.on_proof(&proof).unwrap();
    let last = enroller.finish(gateway.grant(&gateway.issue(&proven.csr))).unwrap();
    let FromEnroller::Enrolled(mut enrolled) = last else { panic!("{last:?}") };
    enrolled.chain[0] = Base64(gateway.issue(&proven.csr).der);
    assert_eq!(device.on_message(FromEnroller::Enrolled(enrolled)), Err(EnrolError::ServerProof));
}

#[test]
fn a_gateway_that_names_no_usable_address_is_refused() {
    for (endpoints, server_name) in [
        (vec![], "vpn.example.org"),
        (vec!["vpn.example.org:443".to_owned(); 9], "vpn.example.org"),
        (vec!["a b:443".to_owned()], "vpn.example.org"),
        (vec!["vpn.example.org:443".to_owned()], ""),
    ] {
        let gateway = Gateway::new();
        let (mut device, mut enroller, proof) = gateway.until_proof();
        let issued = gateway.issue(&enroller.on_proof(&proof).unwrap().csr);
        let grant = Grant { endpoints, server_name: server_name.into(), ..gateway.grant(&issued) };
        assert_eq!(device.on_message(enroller.finish(grant).unwrap()), Err(EnrolError::BadEndpoint));
    }
}

#[test]
fn each_refusal_has_its_own_code_and_sentence() {
    let at = now();
    let refusals = [
        (Refusal::Expired { at }, 0x40, "3 May 2026 at 03:09 UTC"),
        (Refusal::Used { at, device: "anna-mac".into() }, 0x41, "3 May 2026 at 03:09 UTC by \"anna-mac\""),
        (Refusal::Foreign, 0x42, "never issued"),
        (Refusal::Proof, 0x43, "does not fit"),
        (Refusal::Cancelled, 0x44, "withdrawn"),
        (Refusal::BadRequest(IdentityError::RequestKey), 0x45, "P-256"),
        (Refusal::Limit(3), 0x30, "3 devices"),
    ];
    for (refusal, code, words) in refusals {
        let gateway = Gateway::new();
        let (mut device, begin) = gateway.start();
        let mut enroller = Enroller::new(HERE);
        enroller.on_begin(begin).unwrap();
        let answer = wire(&enroller.on_invitation(Err(refusal)));
        let Err(EnrolError::Refused(refused)) = device.on_message(answer) else { panic!("not refused") };
        assert_eq!(refused.code, code);
        assert!(refused.reason.contains(words), "{}", refused.reason);
        // A refused conversation is over, also for a device that goes on.
        let after = enroller.on_proof(&FromEnrollee::Proof { hmac: [0; 32] });
        assert_eq!(after.unwrap_err().close(), Close::Unexpected);
    }
}

#[test]
fn a_request_that_cannot_be_used_is_refused_before_a_certificate_is_issued() {
    let gateway = Gateway::new();
    let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let rsa = rcgen::CertificateParams::default().serialize_request(&rsa).unwrap().der().to_vec();
    for csr in [b"garbage".to_vec(), rsa] {
        // A device that knows the secret, so that the proof is right and only the request is not.
        let (mut device, begin) = gateway.start();
        device.replace_csr(&csr);
        let FromEnrollee::Begin(begin) = begin else { panic!("{begin:?}") };
        let mut enroller = Enroller::new(HERE);
        enroller.on_begin(FromEnrollee::Begin(Begin { csr, ..begin })).unwrap();
        let challenge = enroller.on_invitation(Ok(gateway.stored_key()));
        let Step::Send(proof) = device.on_message(challenge).unwrap() else { panic!("no proof") };
        assert_eq!(enroller.on_proof(&proof).unwrap_err().close(), Close::BadRequest);
    }
    let long = begin_with(|begin| begin.csr = vec![0; MAX_CSR + 1]);
    assert_eq!(Enroller::new(HERE).on_begin(long).unwrap_err().close(), Close::BadRequest);
}

#[test]
fn messages_out_of_turn_are_refused() {
    let gateway = Gateway::new();
    let proof = FromEnrollee::Proof { hmac: [0; 32] };
    assert_eq!(Enroller::new(HERE).on_begin(proof.clone()).unwrap_err().close(), Close::Unexpected);
    assert_eq!(Enroller::new(HERE).on_proof(&proof).unwrap_err().close(), Close::Unexpected);
    let early = Enroller::new(HERE).on_invitation(Ok(gateway.stored_key()));
    let FromEnroller::Refused(refused) = early else { panic!("{early:?}") };
    assert_eq!(refused.close(), Close::Unexpected);
    let (_, mut enroller, _) = gateway.until_proof();
    assert_eq!(enroller.on_proof(&gateway.start().1).unwrap_err().close(), Close::Unexpected);

    let issued = gateway.issue(&DeviceKey::generate().unwrap().csr("mac").unwrap());
    let (mut device, _) = gateway.start();
    assert_eq!(device.on_message(gateway.enrolled(&issued, [0; 32])), Err(EnrolError::Unexpected));
    let (mut device, _, _) = gateway.until_proof();
    let second = FromEnroller::Challenge { server_nonce: [0; 32] };
    assert_eq!(device.on_message(second), Err(EnrolError::Unexpected));
}

#[test]
fn another_version_is_told_so() {
    let newer = begin_with(|begin| begin.version = 2);
    let refused = Enroller::new(HERE).on_begin(newer).unwrap_err();
    assert_eq!(refused.close(), Close::Version);
    assert!(refused.reason.contains('2'), "{}", refused.reason);
}

#[test]
fn names_from_the_peer_are_cut_to_one_printable_line() {
    let sly = begin_with(|begin| begin.device_name = format!("mac\n{}", "x".repeat(500)));
    let needs = Enroller::new(HERE).on_begin(sly).unwrap();
    assert_eq!(needs.device_name.chars().count(), 64);
    assert!(needs.device_name.starts_with("mac x"));
    let nameless = begin_with(|begin| begin.device_name = "\u{200b}\n".into());
    assert_eq!(Enroller::new(HERE).on_begin(nameless).unwrap_err().close(), Close::BadRequest);

    let (mut device, _) = Gateway::new().start();
    let refused = Refused::new(Close::Limit, format!("no\x1b[2J\n{}", "x".repeat(500)));
    let Err(EnrolError::Refused(refused)) = device.on_message(FromEnroller::Refused(refused)) else {
        panic!("not refused")
    };
    assert!(!refused.reason.contains(char::is_control) && refused.reason.len() == 256);
}

#[test]
fn a_nonce_of_the_wrong_length_is_a_malformed_message() {
    let short = br#"{"type":"challenge","server_nonce":"AAAA"}"#;
    assert!(decode::<FromEnroller>(short).is_err());
    let no_id =
        br#"{"type":"begin","version":1,"invitation":"zz","client_nonce":"","csr":"","device_name":"a","platform":""}"#;
    assert!(decode::<FromEnrollee>(no_id).is_err());
}

/// What TLS exported on the connection that the test is about, and on another.
const HERE: [u8; 32] = [0xe1; 32];
const ELSEWHERE: [u8; 32] = [0xe2; 32];
const SECRET: [u8; 16] = *b"a secret, really";
const ID: DeviceId = DeviceId::from_bytes([0x1d; 16]);

/// A CA, an invitation that it issued, and what its registry would say.
struct Gateway {
    authority: Authority,
    invitation: Invitation,
    stored: EnrolKey,
}

/// A complete enrolment, for those who listened.
struct Conversation {
    begin: FromEnrollee,
    proof: FromEnrollee,
    last: FromEnroller,
    enroller: Enroller,
    device: Enrollee,
}

impl Gateway {
    fn new() -> Self {
        let authority = Authority::create("Acme", now()).unwrap();
        let invitation = Invitation {
            endpoints: vec!["vpn.example.org:443".into()],
            pin: authority.pin(),
            id: InvitationId::from_bytes([7; 8]),
            secret: Secret::from_bytes(SECRET),
            expires: u64::MAX,
            gateway: "Acme".into(),
            user: "anna".into(),
        };
        let stored = invitation.secret.key();
        Self { authority, invitation, stored }
    }

    /// As it comes back from the registry.
    fn stored_key(&self) -> EnrolKey {
        EnrolKey::from_bytes(*self.stored.as_bytes())
    }

    fn start(&self) -> (Enrollee, FromEnrollee) {
        let key = DeviceKey::generate().unwrap();
        Enrollee::start(&self.invitation, &key, "mac", "test", HERE).unwrap()
    }

    fn until_proof(&self) -> (Enrollee, Enroller, FromEnrollee) {
        let (mut device, begin) = self.start();
        let mut enroller = Enroller::new(HERE);
        enroller.on_begin(begin).unwrap();
        let challenge = enroller.on_invitation(Ok(self.stored_key()));
        let Step::Send(proof) = device.on_message(challenge).unwrap() else { panic!("no proof") };
        (device, enroller, proof)
    }

    /// Enrols a device, and shows every frame to `wiretap`.
    fn run(&self, wiretap: &mut dyn FnMut(&[u8])) -> Conversation {
        let (mut device, begin) = self.start();
        wiretap(&encode(&begin).unwrap());
        let mut enroller = Enroller::new(HERE);
        enroller.on_begin(begin.clone()).unwrap();
        let challenge = enroller.on_invitation(Ok(self.stored_key()));
        wiretap(&encode(&challenge).unwrap());
        let Step::Send(proof) = device.on_message(challenge).unwrap() else { panic!("no proof") };
        wiretap(&encode(&proof).unwrap());
        let proven = enroller.on_proof(&proof).unwrap();
        let last = enroller.finish(self.grant(&self.issue(&proven.csr))).unwrap();
        wiretap(&encode(&last).unwrap());
        let Step::Done(_) = device.on_message(last.clone()).unwrap() else { panic!("not done") };
        Conversation { begin, proof, last, enroller, device }
    }

    fn issue(&self, csr: &[u8]) -> Issued {
        self.authority.issue_device(csr, ID, now()).unwrap()
    }

    fn grant(&self, issued: &Issued) -> Grant {
        Grant {
            device_id: ID,
            device_name: "mac".into(),
            user: "anna".into(),
            leaf: issued.der.clone(),
            authority: self.authority.certificate_der().to_vec(),
            gateway: "Acme".into(),
            endpoints: vec!["vpn.example.org:443".into()],
            server_name: "vpn.example.org".into(),
        }
    }

    /// The last message with a proof of the caller's making.
    fn enrolled(&self, issued: &Issued, proof: [u8; 32]) -> FromEnroller {
        let Grant { device_id, device_name, user, leaf, authority, gateway, endpoints, server_name } =
            self.grant(issued);
        let chain = vec![Base64(leaf), Base64(authority)];
        FromEnroller::Enrolled(Enrolled { device_id, device_name, user, chain, gateway, endpoints, server_name, proof })
    }
}

fn refuses_certificate(grant: impl FnOnce(&Gateway, &[u8]) -> Grant) {
    let gateway = Gateway::new();
    let (mut device, mut enroller, proof) = gateway.until_proof();
    let proven = enroller.on_proof(&proof).unwrap();
    let last = enroller.finish(grant(&gateway, &proven.csr)).unwrap();
    assert_eq!(device.on_message(last), Err(EnrolError::WrongCertificate));
}

fn begin_with(change: impl FnOnce(&mut Begin)) -> FromEnrollee {
    let (_, begin) = Gateway::new().start();
    let FromEnrollee::Begin(mut begin) = begin else { panic!("{begin:?}") };
    change(&mut begin);
    FromEnrollee::Begin(begin)
}

/// `message` as it arrives at the other end.
fn wire<M: Serialize + serde::de::DeserializeOwned>(message: &M) -> M {
    let mut reader = FrameReader::default();
    reader.push(&encode(message).unwrap());
    decode(&reader.next_frame().unwrap().unwrap()).unwrap()
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_777_777_777)
}

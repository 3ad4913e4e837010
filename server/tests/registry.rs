//! The registry's judgements and races, over a real SQLite file and a real PostgreSQL server.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod stores;

use std::collections::HashSet;

use culvert_server::addresses::Pool;
use culvert_server::registry::{Certificate, EnrolError, Enrolment, Invitation, Registry, Renamed, Seen};
use stores::{Cluster, Home, enrol, invitation, invite, key, now, request};

/// One test each over SQLite; over PostgreSQL one test of all, since a server takes seconds to make.
macro_rules! over_both {
    ($($behaviour:ident)*) => {
        mod sqlite {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $behaviour() {
                    super::$behaviour(&Home::file()).await;
                }
            )*
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn postgres_behaves_the_same() {
            let cluster = Cluster::start();
            let mut number = 0;
            $(
                number += 1;
                eprintln!(stringify!($behaviour)); // the last one shown is the one that failed
                $behaviour(&Home::database(&cluster, &format!("test{number}"))).await;
            )*
            assert!(number > 10);
        }
    };
}

over_both! {
    an_invitation_becomes_a_device_with_a_stable_address
    used_expired_cancelled_and_foreign_invitations_are_told_apart
    a_user_has_no_more_devices_than_allowed_and_the_invitation_survives_the_refusal
    a_full_pool_refuses_and_changes_nothing
    a_network_that_grew_downwards_still_takes_new_devices
    when_the_end_of_the_network_is_reached_a_gap_is_found
    a_device_is_revoked_and_restored_once_and_all_of_it_is_on_record
    a_device_is_found_by_user_and_name_by_id_and_by_name
    a_device_gets_another_name_unless_its_user_has_one_of_that_name
    a_certificate_is_renewed_for_the_key_that_the_device_has_and_no_other
    a_renewing_invitation_gives_a_known_device_a_new_key_and_no_second_one
    devices_and_invitations_are_counted_by_what_they_are
    a_second_device_of_the_same_name_gets_a_number_and_a_known_key_is_refused
    concurrent_enrolments_get_different_addresses
    a_single_use_invitation_is_used_once_however_many_race_for_it
    of_many_notes_the_latest_counts
}

async fn an_invitation_becomes_a_device_with_a_stable_address(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"i1", "anna", 1).await;
    let device = enrol(&registry, b"i1", 1).await.unwrap();
    assert_eq!((device.user.as_str(), device.ipv4.to_string().as_str()), ("anna", "100.77.3.2"));
    assert_eq!(registry.device_by_key(&key(1)).await.unwrap(), Some(device));
    assert_eq!(registry.device_by_key(&key(2)).await.unwrap(), None);
}

async fn used_expired_cancelled_and_foreign_invitations_are_told_apart(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"used", "anna", 1).await;
    enrol(&registry, b"used", 1).await.unwrap();
    invite(&registry, b"cancelled", "anna", 1).await;
    assert!(registry.cancel_invitation(b"cancelled", now(), "test").await.unwrap());
    assert!(!registry.cancel_invitation(b"cancelled", now(), "test").await.unwrap());
    let mut expired = invitation(b"expired", "anna", 1);
    expired.expires = now();
    registry.add_invitation(&expired, "test").await.unwrap();

    assert!(matches!(enrol(&registry, b"used", 2).await, Err(EnrolError::Used { .. })));
    assert!(matches!(enrol(&registry, b"cancelled", 2).await, Err(EnrolError::Cancelled)));
    assert!(matches!(enrol(&registry, b"expired", 2).await, Err(EnrolError::Expired { .. })));
    assert!(matches!(enrol(&registry, b"foreign", 2).await, Err(EnrolError::Foreign)));
    assert_eq!(registry.devices().await.unwrap().len(), 1);
}

async fn a_user_has_no_more_devices_than_allowed_and_the_invitation_survives_the_refusal(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"anna", "anna", 9).await;
    invite(&registry, b"ben", "ben", 9).await;
    for number in 0..3 {
        enrol(&registry, b"anna", number).await.unwrap();
    }
    assert!(matches!(enrol(&registry, b"anna", 3).await, Err(EnrolError::Limit { limit: 3 })));
    assert_eq!(registry.invitation(b"anna").await.unwrap().unwrap().uses, 3);
    enrol(&registry, b"ben", 4).await.unwrap();
}

async fn a_full_pool_refuses_and_changes_nothing(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 99).await;
    let small = Pool::new("10.9.8.0/29".parse().unwrap(), None);
    for number in 0..5 {
        registry.enrol(&Enrolment { pool: small, devices_per_user: None, ..request(b"i", number) }).await.unwrap();
    }
    let sixth = Enrolment { pool: small, devices_per_user: None, ..request(b"i", 5) };
    assert!(matches!(registry.enrol(&sixth).await, Err(EnrolError::PoolFull(_))));
    assert_eq!(registry.invitation(b"i").await.unwrap().unwrap().uses, 5);
}

async fn a_network_that_grew_downwards_still_takes_new_devices(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"i1", "anna", 2).await;
    let older = enrol(&registry, b"i1", 1).await.unwrap();
    let pool = Pool::new("100.77.2.0/23".parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap()));
    let newer = registry.enrol(&Enrolment { pool, ..request(b"i1", 2) }).await.unwrap();
    let (older, newer) = (older.lease(&pool).unwrap(), newer.lease(&pool).unwrap());
    assert_ne!(older.ipv4, newer.ipv4);
    assert_ne!(older.ipv6, newer.ipv6, "in a session each has its own");
}

async fn when_the_end_of_the_network_is_reached_a_gap_is_found(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 99).await;
    let network = |text: &str| Pool::new(text.parse().unwrap(), None);
    let enrolled = async |pool: Pool, number| {
        let enrolment = Enrolment { pool, devices_per_user: None, ..request(b"i", number) };
        registry.enrol(&enrolment).await.map(|device| device.ipv4.to_string())
    };
    // The upper half is full, and then the network grows downwards.
    for number in 0..5 {
        enrolled(network("10.9.8.8/29"), number).await.unwrap();
    }
    let grown = network("10.9.8.0/28");
    let mut given = Vec::new();
    for number in 5..13 {
        given.push(enrolled(grown, number).await.unwrap());
    }
    given.sort();
    let gaps = ["10.9.8.2", "10.9.8.3", "10.9.8.4", "10.9.8.5", "10.9.8.6", "10.9.8.7", "10.9.8.8", "10.9.8.9"];
    assert_eq!(given, gaps);
    assert!(matches!(enrolled(grown, 13).await, Err(EnrolError::PoolFull(_))));
}

async fn a_device_is_revoked_and_restored_once_and_all_of_it_is_on_record(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 1).await;
    let device = enrol(&registry, b"i", 1).await.unwrap();
    let before = registry.last_event().await.unwrap();
    assert!(!registry.restore(&device.id, now(), "test").await.unwrap());
    assert!(registry.revoke(&device.id, now(), "test").await.unwrap());
    assert!(!registry.revoke(&device.id, now(), "test").await.unwrap());
    assert_eq!(registry.device_by_key(&key(1)).await.unwrap().unwrap().revoked_at, Some(now()));
    assert!(registry.restore(&device.id, now(), "test").await.unwrap());
    let told: Vec<_> = registry.events_after(before, 10).await.unwrap();
    let told: Vec<_> = told.iter().map(|event| (event.event.as_str(), event.target.as_str())).collect();
    assert_eq!(told, [("revoked", device.id.as_str()), ("restored", device.id.as_str())]);
    assert_eq!(registry.events_after(before, 1).await.unwrap().len(), 1);
    assert_eq!(registry.history(&device.id, 1).await.unwrap()[0].event, "restored");
    assert!(!registry.revoke("nobody", now(), "test").await.unwrap());
}

async fn a_device_is_found_by_user_and_name_by_id_and_by_name(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"a", "anna", 2).await;
    invite(&registry, b"b", "ben", 1).await;
    for (invitation, number) in [(b"a", 1), (b"a", 2), (b"b", 3)] {
        enrol(&registry, invitation, number).await.unwrap();
    }
    let found = async |name: &str| -> Vec<String> {
        let devices = registry.find_devices(name).await.unwrap();
        devices.iter().map(|device| format!("{}/{}", device.user, device.name)).collect()
    };
    assert_eq!(found("laptop").await, ["anna/laptop", "ben/laptop"]);
    assert_eq!(found("anna/laptop-2").await, ["anna/laptop-2"]);
    assert_eq!(found("device-3").await, ["ben/laptop"]);
    assert!(found("anna").await.is_empty() && found("").await.is_empty() && found("anna/").await.is_empty());
    let users = registry.users().await.unwrap();
    let users: Vec<_> = users.iter().map(|user| (user.name.as_str(), user.devices, user.revoked)).collect();
    assert_eq!(users, [("anna", 2, 0), ("ben", 1, 0)]);
}

async fn a_device_gets_another_name_unless_its_user_has_one_of_that_name(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 2).await;
    let [first, second] = [enrol(&registry, b"i", 1).await.unwrap(), enrol(&registry, b"i", 2).await.unwrap()];
    let rename = async |id: &str, name: &str| registry.rename(id, name, now(), "test").await.unwrap();
    assert_eq!(rename(&second.id, "laptop").await, Renamed::Taken);
    assert_eq!(rename(&first.id, "laptop").await, Renamed::Same);
    assert_eq!(rename(&first.id, "mac").await, Renamed::Done);
    assert_eq!(rename(&second.id, "laptop").await, Renamed::Done);
    assert_eq!(rename("nobody", "x").await, Renamed::Gone);
}

async fn a_certificate_is_renewed_for_the_key_that_the_device_has_and_no_other(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 1).await;
    let device = enrol(&registry, b"i", 1).await.unwrap();
    let later = now() + time::Duration::DAY * 60;
    let renew = async |number| {
        let certificate = Certificate { spki_sha256: key(number), serial: "0b", not_after: later };
        registry.renew(&device.id, &certificate, now()).await.unwrap()
    };
    assert!(!renew(2).await);
    assert!(renew(1).await);
    let renewed = registry.device_by_key(&key(1)).await.unwrap().unwrap();
    assert_eq!((renewed.serial.as_str(), renewed.not_after, renewed.ipv4), ("0b", later, device.ipv4));
    registry.revoke(&device.id, now(), "test").await.unwrap();
    assert!(!renew(1).await);
}

async fn a_renewing_invitation_gives_a_known_device_a_new_key_and_no_second_one(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 1).await;
    let device = enrol(&registry, b"i", 1).await.unwrap();
    for (id, number) in [(b"r1", 2), (b"r2", 3)] {
        let renewing = Invitation { renews: Some(device.id.clone()), ..invitation(id, "anna", 1) };
        registry.add_invitation(&renewing, "test").await.unwrap();
        // The limit counts devices, and this makes none.
        let enrolment = Enrolment { device: &device.id, devices_per_user: Some(1), ..request(id, number) };
        let again = registry.enrol(&enrolment).await.unwrap();
        assert_eq!((again.id.as_str(), again.ipv4), (device.id.as_str(), device.ipv4));
        assert!(matches!(enrol(&registry, id, 9).await, Err(EnrolError::Used { .. })));
    }
    assert_eq!(registry.device_by_key(&key(1)).await.unwrap(), None);
    assert_eq!(registry.devices().await.unwrap().len(), 1);
}

async fn devices_and_invitations_are_counted_by_what_they_are(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"used", "anna", 3).await;
    for number in 0..3 {
        let days = [3, 20, 80][number as usize];
        let enrolment = Enrolment { not_after: now() + time::Duration::days(days), ..request(b"used", number) };
        registry.enrol(&enrolment).await.unwrap();
    }
    invite(&registry, b"open", "anna", 1).await;
    invite(&registry, b"cancelled", "anna", 1).await;
    registry.cancel_invitation(b"cancelled", now(), "test").await.unwrap();
    registry.revoke("device-2", now(), "test").await.unwrap();
    let counts = registry.counts(now()).await.unwrap();
    let told = (counts.active, counts.expired, counts.revoked, counts.expiring_in_7_days, counts.expiring_in_30_days);
    assert_eq!(told, (2, 0, 1, 1, 2));
    let invitations = (counts.invitations_open, counts.invitations_used, counts.invitations_cancelled);
    assert_eq!((invitations, counts.invitations_expired), ((1, 1, 1), 0));
    let later = registry.counts(now() + time::Duration::days(10)).await.unwrap();
    assert_eq!((later.active, later.expired, later.invitations_expired), (1, 1, 1));
}

async fn a_second_device_of_the_same_name_gets_a_number_and_a_known_key_is_refused(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 99).await;
    enrol(&registry, b"i", 1).await.unwrap();
    for number in 2..20 {
        let enrolment = Enrolment { devices_per_user: None, ..request(b"i", number) };
        assert_eq!(registry.enrol(&enrolment).await.unwrap().name, format!("laptop-{number}"));
    }
    let again = Enrolment { spki_sha256: key(1), devices_per_user: None, ..request(b"i", 20) };
    assert!(matches!(registry.enrol(&again).await, Err(EnrolError::KnownKey)));
}

async fn concurrent_enrolments_get_different_addresses(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 40).await;
    // Two handles, as the gateway and an administrator's command have.
    let second = home.open().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40 {
        let registry = if number % 2 == 0 { registry.clone() } else { second.clone() };
        tasks.spawn(async move {
            registry.enrol(&Enrolment { devices_per_user: None, ..request(b"i", number) }).await.unwrap().ipv4
        });
    }
    let addresses: HashSet<_> = tasks.join_all().await.into_iter().collect();
    assert_eq!(addresses.len(), 40);
}

async fn a_single_use_invitation_is_used_once_however_many_race_for_it(home: &Home) {
    let registry = home.create().await;
    let second = home.open().await;
    for round in 0..5u8 {
        invite(&registry, &[round], "anna", 1).await;
        let mut tasks = tokio::task::JoinSet::new();
        for racer in 0..8u8 {
            let registry = if racer % 2 == 0 { registry.clone() } else { second.clone() };
            tasks.spawn(async move {
                let number = u32::from(round) * 8 + u32::from(racer);
                registry.enrol(&Enrolment { devices_per_user: None, ..request(&[round], number) }).await
            });
        }
        let results = tasks.join_all().await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(EnrolError::Used { .. }))), "{results:?}");
    }
}

async fn of_many_notes_the_latest_counts(home: &Home) {
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 2).await;
    let [first, second] = [enrol(&registry, b"i", 1).await.unwrap(), enrol(&registry, b"i", 2).await.unwrap()];
    let at = |seconds| now() + time::Duration::seconds(seconds);
    let note = |device: &str, seconds| Seen { device: device.into(), at: at(seconds) };
    // More than one statement takes, and devices that are gone.
    let mut seen: Vec<Seen> = (0..2_500).map(|number| note(&format!("gone-{number}"), 0)).collect();
    seen.extend([note(&first.id, 7), note(&first.id, 9), note(&first.id, 8), note(&second.id, 3)]);
    registry.saw(&seen).await.unwrap();
    registry.saw(&[]).await.unwrap();
    let seen: Vec<_> = registry.devices().await.unwrap().into_iter().map(|device| device.last_seen.unwrap()).collect();
    assert_eq!(seen, [at(9), at(3)]);
}

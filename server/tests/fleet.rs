//! A registry that gateways share, over a real PostgreSQL server: parts of the network, bad databases, an outage, a move
//! from SQLite.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod stores;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use culvert_server::addresses::Pool;
use culvert_server::config::Database;
use culvert_server::registry::copy::CopyKey;
use culvert_server::registry::dump::Dump;
use culvert_server::registry::gateways::{Beat, JoinError};
use culvert_server::registry::postgres::PostgresRegistry;
use culvert_server::registry::shared::SharedRegistry;
use culvert_server::registry::{EnrolError, Enrolment, Invitation, Meta, Registry, RegistryError};
use stores::{Cluster, Home, enrol, invitation, invite, key, now, request};

/// All of it with one server, since one takes seconds to make.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gateways_share_a_database() {
    let mut cluster = Cluster::start();
    each_gateway_gives_addresses_of_its_own_parts(&cluster).await;
    a_part_is_nobody_elses_and_when_none_is_left_that_is_said(&cluster).await;
    gateways_that_race_get_different_addresses(&cluster).await;
    two_with_one_identity_are_told_apart(&cluster).await;
    a_change_rings_at_once(&cluster).await;
    a_registry_moves_from_a_file_into_a_database(&cluster).await;
    each_bad_database_is_told_by_its_name(&cluster).await;
    a_database_that_is_cut_off_holds_nobody_up(&cluster).await;
    known_devices_are_known_while_the_database_is_down(&mut cluster).await;
}

async fn each_gateway_gives_addresses_of_its_own_parts(cluster: &Cluster) {
    let registry = open(&cluster.database("parts")).await;
    let pool = network("10.9.8.0/27"); // four parts of eight addresses; the first two and the last are nobody's
    for gateway in ["a", "b"] {
        registry.join(&beat(gateway), &pool, now()).await.unwrap();
        registry.join(&beat(gateway), &pool, now()).await.unwrap(); // again changes nothing
    }
    registry.add_invitation(&invitation(b"i", "anna", 99), "test").await.unwrap();
    let enrolled = async |gateway: &'static str, number| {
        let enrolment = Enrolment { pool, gateway: Some(gateway), devices_per_user: None, ..request(b"i", number) };
        registry.enrol(&enrolment).await.map(|device| device.ipv4.octets()[3])
    };
    assert_eq!(enrolled("a", 1).await.unwrap(), 2);
    assert_eq!(enrolled("b", 2).await.unwrap(), 8);
    assert_eq!(enrolled("a", 3).await.unwrap(), 3);
    // Its part is full at 7, and the next free one begins at 16.
    let given: Vec<u8> = {
        let mut given = Vec::new();
        for number in 4..9 {
            given.push(enrolled("a", number).await.unwrap());
        }
        given
    };
    assert_eq!(given, [4, 5, 6, 7, 16]);
    let gateways = registry.gateways().await.unwrap();
    let parts: Vec<_> = gateways.iter().map(|gateway| (gateway.id.as_str(), gateway.slices.as_slice())).collect();
    assert_eq!(parts, [("a", &[0, 2][..]), ("b", &[1])]);
    assert!(gateways.iter().all(|gateway| gateway.live));
    // Who is forgotten leaves its part and its devices.
    assert!(registry.forget("b", now(), "test").await.unwrap());
    assert!(!registry.forget("b", now(), "test").await.unwrap());
    assert!(!registry.beat(&beat("b")).await.unwrap());
    registry.join(&beat("c"), &pool, now()).await.unwrap();
    assert_eq!(enrolled("c", 20).await.unwrap(), 9, "8 is a device's still");
    // 16 to 22 and 24 to 30 are left for a, and then nothing is.
    let mut last = 0;
    let error = loop {
        match enrolled("a", 100 + last).await {
            Ok(_) => last += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, EnrolError::PoolFull(_)), "{error}");
    assert_eq!(last, 7 + 7);
    assert_eq!(enrolled("c", 21).await.unwrap(), 10, "c's own part is not touched by that");
}

async fn a_part_is_nobody_elses_and_when_none_is_left_that_is_said(cluster: &Cluster) {
    let database = cluster.database("nopart");
    let registry = open(&database).await;
    let pool = network("10.9.8.0/28"); // two parts
    let (first, second) = tokio::join!(async { registry.join(&beat("a"), &pool, now()).await }, async {
        open(&database).await.join(&beat("b"), &pool, now()).await
    },);
    first.unwrap();
    second.unwrap();
    let parts: HashSet<Vec<u32>> =
        registry.gateways().await.unwrap().into_iter().map(|gateway| gateway.slices).collect();
    assert_eq!(parts.len(), 2);
    cluster.psql("nopart", "INSERT INTO gateways VALUES ('x', 'x', '', '', 0, 0)");
    assert!(
        !try_sql(cluster, "nopart", "INSERT INTO slices VALUES (0, 'x')"),
        "the table itself refuses a second owner"
    );
    let error = registry.join(&beat("c"), &pool, now()).await.unwrap_err();
    assert!(matches!(error, JoinError::NoSlice(_)) && error.to_string().contains("gateways forget"), "{error}");
    assert_eq!(registry.gateways().await.unwrap().len(), 3, "c is not in");
}

async fn gateways_that_race_get_different_addresses(cluster: &Cluster) {
    let database = cluster.database("race");
    let pool = network("10.9.0.0/16");
    let mut tasks = tokio::task::JoinSet::new();
    let first = open(&database).await;
    first.add_invitation(&invitation(b"i", "anna", 60), "test").await.unwrap();
    for gateway in ["a", "b", "c"] {
        let registry = open(&database).await;
        registry.join(&beat(gateway), &pool, now()).await.unwrap();
        for number in 0..20 {
            let (registry, number) = (registry.clone(), number + 100 * u32::from(gateway.as_bytes()[0]));
            tasks.spawn(async move {
                let enrolment =
                    Enrolment { pool, gateway: Some(gateway), devices_per_user: None, ..request(b"i", number) };
                registry.enrol(&enrolment).await.unwrap().ipv4
            });
        }
    }
    let addresses: HashSet<_> = tasks.join_all().await.into_iter().collect();
    assert_eq!(addresses.len(), 60);
    let thirds: HashSet<u8> = addresses.iter().map(|address| address.octets()[2]).collect();
    assert_eq!(thirds, [0, 1, 2].into(), "each from its own part");
    // Events became visible in the order of their numbers: none is skipped by who follows them.
    let events = first.events_after(0, 1_000).await.unwrap();
    let numbers: Vec<i64> = events.iter().map(|event| event.id).collect();
    assert_eq!(numbers, (1..=numbers.len() as i64).collect::<Vec<_>>());
}

async fn two_with_one_identity_are_told_apart(cluster: &Cluster) {
    let database = cluster.database("twin");
    let (first, second) = (open(&database).await, open(&database).await);
    let mut held = first.listen().await.unwrap();
    assert!(PostgresRegistry::hold(&mut held, "a").await.unwrap());
    let mut twin = second.listen().await.unwrap();
    assert!(!PostgresRegistry::hold(&mut twin, "a").await.unwrap());
    assert!(PostgresRegistry::hold(&mut twin, "b").await.unwrap());
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !PostgresRegistry::hold(&mut twin, "a").await.unwrap() {
        assert!(Instant::now() < deadline, "the lock outlives its connection");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_change_rings_at_once(cluster: &Cluster) {
    let database = cluster.database("rings");
    let (here, there) = (open(&database).await, open(&database).await);
    let mut listener = here.listen().await.unwrap();
    let began = Instant::now();
    there.add_invitation(&invitation(b"i", "anna", 1), "test").await.unwrap();
    let heard = tokio::time::timeout(Duration::from_secs(2), listener.try_recv()).await.expect("within 2 s");
    assert!(heard.unwrap().is_some());
    println!("a change is heard of after {:?}", began.elapsed());
}

async fn a_registry_moves_from_a_file_into_a_database(cluster: &Cluster) {
    let home = Home::file();
    let old = home.create().await;
    invite(&old, b"i1", "anna", 5).await;
    invite(&old, b"i2", "ben", 1).await;
    let device = enrol(&old, b"i1", 1).await.unwrap();
    enrol(&old, b"i1", 2).await.unwrap();
    old.revoke("device-2", now(), "test").await.unwrap();
    old.cancel_invitation(b"i2", now(), "test").await.unwrap();
    let renewing = Invitation { renews: Some(device.id.clone()), ..invitation(b"r", "anna", 1) };
    old.add_invitation(&renewing, "test").await.unwrap();
    let dump = old.export().await.unwrap();
    let mut text = Vec::new();
    dump.write(&mut text).unwrap();
    let read = Dump::read(text.as_slice()).unwrap();
    assert_eq!(read, dump);

    let database = cluster.database("moved");
    let new = PostgresRegistry::open(&database).await.unwrap();
    let facts = [(Meta::Authority, "pin".to_owned())];
    new.import(&facts, &read).await.unwrap();
    assert!(matches!(new.import(&facts, &read).await, Err(RegistryError::InUse)), "only into an empty one");
    assert!(matches!(new.establish(&facts).await, Err(RegistryError::InUse)));
    let moved = new.export().await.unwrap();
    assert_eq!(Dump { meta: Default::default(), ..moved }, Dump { meta: Default::default(), ..dump });
    assert_eq!(new.meta(Meta::Authority).await.unwrap().as_deref(), Some("pin"));
    // And it goes on: new numbers follow the old ones.
    new.add_invitation(&invitation(b"i3", "cleo", 1), "test").await.unwrap();
    assert_eq!(new.enrol(&request(b"i3", 3)).await.unwrap().ipv4.to_string(), "100.77.3.4");
    assert_eq!(new.last_event().await.unwrap(), read.events.len() as i64 + 2);

    let torn = Dump { users: vec![], ..read };
    let empty = PostgresRegistry::open(&cluster.database("torn")).await.unwrap();
    assert!(empty.import(&facts, &torn).await.is_err(), "a device of nobody's");
    assert_eq!(empty.export().await.unwrap(), Dump::default(), "nothing of it is there");
}

async fn each_bad_database_is_told_by_its_name(cluster: &Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let password = |text: &str| {
        let path = folder.path().join(text);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        Some(path)
    };
    let open = async |database: &Database| PostgresRegistry::open(database).await.map(drop);
    let error = open(&cluster.place("guarded", "postgres", password("wrong"))).await.unwrap_err();
    assert!(matches!(error, RegistryError::WrongPassword), "{error}");
    let error = open(&cluster.place("guarded", "postgres", Some("/nonexistent".into()))).await.unwrap_err();
    assert!(matches!(error, RegistryError::NoPassword { .. }), "{error}");
    let error = open(&cluster.place("culvert", "nowhere", None)).await.unwrap_err();
    assert!(matches!(error, RegistryError::NoDatabase), "{error}");
    let database = cluster.database("owned");
    let error = open(&cluster.place("guarded", "owned", password("secret"))).await.unwrap_err();
    assert!(matches!(error, RegistryError::DatabaseDenied(_)), "{error}");
    open(&database).await.unwrap();
    cluster.psql("owned", "INSERT INTO _sqlx_migrations VALUES (9999, 'later', now(), true, '', 0)");
    let error = open(&database).await.unwrap_err();
    assert!(matches!(error, RegistryError::Newer), "{error}");
    for error in [RegistryError::WrongPassword, RegistryError::Newer] {
        assert!(!error.to_string().contains("secret"));
    }
}

async fn a_database_that_is_cut_off_holds_nobody_up(cluster: &Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let store = PostgresRegistry::new(&cluster.database("cut")).unwrap();
    let (path, day) = (folder.path().join("copy"), Duration::from_secs(86_400));
    let registry = SharedRegistry::remembering(store, &path, CopyKey::derive(b"secret"), day).await.unwrap();
    registry.add_invitation(&invitation(b"i", "anna", 9), "test").await.unwrap();
    registry.enrol(&request(b"i", 1)).await.unwrap();
    registry.refresh().await.unwrap();
    cluster.freeze(true);
    let asked = Instant::now();
    let first = registry.device_by_key(&key(1)).await;
    let (waited, asked) = (asked.elapsed(), Instant::now());
    let second = registry.device_by_key(&key(1)).await;
    let again = asked.elapsed();
    cluster.freeze(false);
    println!("cut off: the first question waited {waited:?}, the next {again:?}");
    assert_eq!(first.unwrap().unwrap().id, "device-1");
    assert_eq!(second.unwrap().unwrap().id, "device-1");
    assert!(waited < Duration::from_secs(6), "less than a client waits for a step: {waited:?}");
    assert!(again < Duration::from_millis(100), "{again:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while registry.last_event().await.is_err() {
        assert!(Instant::now() < deadline, "the database is back and nobody notices");
    }
    registry.enrol(&request(b"i", 2)).await.unwrap();
}

async fn known_devices_are_known_while_the_database_is_down(cluster: &mut Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let (path, day) = (folder.path().join("copy"), Duration::from_secs(86_400));
    let database = cluster.database("down");
    let remembering = async |good_for| {
        let store = PostgresRegistry::new(&database).unwrap();
        SharedRegistry::remembering(store, &path, CopyKey::derive(b"secret"), good_for).await
    };
    let registry = remembering(day).await.unwrap();
    let admin = open(&database).await;
    admin.add_invitation(&invitation(b"i", "anna", 9), "test").await.unwrap();
    for number in 1..=3 {
        registry.enrol(&request(b"i", number)).await.unwrap();
    }
    admin.revoke("device-2", now(), "test").await.unwrap();
    registry.refresh().await.unwrap(); // as the gateway does when it is rung
    admin.add_invitation(&invitation(b"late", "ben", 1), "test").await.unwrap();
    admin.enrol(&request(b"late", 4)).await.unwrap();
    admin.close().await;
    cluster.stop();

    let asked = Instant::now();
    assert!(registry.last_event().await.is_err());
    println!("an outage is noticed after {:?}", asked.elapsed());
    let asked = Instant::now();
    assert_eq!(registry.device_by_key(&key(1)).await.unwrap().unwrap().id, "device-1");
    assert!(registry.device_by_key(&key(2)).await.unwrap().unwrap().revoked_at.is_some());
    let unknown = registry.device_by_key(&key(4)).await.unwrap_err();
    assert!(matches!(unknown, RegistryError::Unreachable(_)), "it may be known to the database: {unknown}");
    assert_eq!(registry.devices().await.unwrap().len(), 3);
    assert_eq!(registry.stranded(&network("10.0.0.0/8")).await.unwrap().unwrap().user, "anna");
    let enrolled = registry.enrol(&request(b"i", 5)).await.unwrap_err();
    assert!(matches!(enrolled, EnrolError::Registry(RegistryError::Unreachable(_))), "{enrolled}");
    assert!(asked.elapsed() < Duration::from_millis(500), "nobody is kept waiting: {:?}", asked.elapsed());

    // A gateway that starts meanwhile.
    let started = remembering(day).await.unwrap();
    assert_eq!(started.device_by_key(&key(3)).await.unwrap().unwrap().id, "device-3");
    assert_eq!(started.known_event().await.unwrap(), registry.known_event().await.unwrap());
    tokio::time::sleep(Duration::from_millis(1_100)).await; // the copy counts in seconds
    let stale = remembering(Duration::ZERO).await.unwrap_err();
    assert!(matches!(stale, RegistryError::Unreachable(_)), "{stale}");
    let other = SharedRegistry::remembering(
        PostgresRegistry::new(&database).unwrap(),
        &path,
        CopyKey::derive(b"another gateway's"),
        day,
    );
    assert!(other.await.is_err(), "a copy of another gateway's is nobody's word");

    cluster.run();
    let deadline = Instant::now() + Duration::from_secs(10);
    while registry.last_event().await.is_err() {
        assert!(Instant::now() < deadline, "the database is back and nobody notices");
    }
    registry.refresh().await.unwrap();
    assert_eq!(registry.device_by_key(&key(4)).await.unwrap().unwrap().id, "device-4");
    registry.enrol(&request(b"i", 5)).await.unwrap();
}

async fn open(database: &Database) -> PostgresRegistry {
    PostgresRegistry::open(database).await.unwrap()
}

fn try_sql(cluster: &Cluster, database: &str, statement: &str) -> bool {
    cluster.try_psql(database, statement)
}

fn beat(id: &str) -> Beat {
    Beat { id: id.into(), name: format!("{id}.example.org"), endpoints: vec![format!("{id}.example.org:443")] }
}

fn network(text: &str) -> Pool {
    Pool::new(text.parse().unwrap(), None)
}

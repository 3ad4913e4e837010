//! How long the registry takes with a hundred thousand devices, in both stores. Run it with an optimised build, on a
//! machine that does nothing else:
//! `cargo test --release -p culvert-server --test registry_size -- --ignored --nocapture`

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod stores;

use std::future::Future;
use std::time::{Duration, Instant};

use culvert_server::registry::any::AnyRegistry;
use culvert_server::registry::dump::{Dump, Use};
use culvert_server::registry::sqlite::SqliteRegistry;
use culvert_server::registry::{Device, Enrolment, Event, Registry, Renamed};
use stores::{Cluster, Home, invitation, key, now, request, wide};

const DEVICES: u32 = 100_000;
const ROUNDS: u32 = 200;
/// What the product promises for each.
const MOST: Duration = Duration::from_millis(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute; see above"]
async fn every_operation_takes_under_10_ms_with_100_000_devices() {
    let cluster = Cluster::start_durable();
    let dump = dump();
    let file = Home::file();
    let AnyRegistry::Sqlite(sqlite) = file.create().await else { unreachable!() };
    sqlite.import(&[], &dump).await.unwrap();
    let base = Home::database(&cluster, "size");
    let AnyRegistry::Postgres(postgres) = base.open().await else { unreachable!() };
    postgres.store().import(&[], &dump).await.unwrap();
    cluster.psql("size", "VACUUM ANALYZE"); // as it is some time after an import
    cluster.psql("size", "CHECKPOINT");
    let sqlite = measure(&AnyRegistry::Sqlite(SqliteRegistry::open(&file.path()).await.unwrap())).await;
    let postgres = measure(&AnyRegistry::Postgres(postgres)).await;
    println!("of {ROUNDS}, ms: median (mean)           SQLite          PostgreSQL");
    let mut slow = Vec::new();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    for ((what, file), (_, base)) in sqlite.into_iter().zip(postgres) {
        let told = |(median, mean): Took| format!("{:.2} ({:.2})", ms(median), ms(mean));
        println!("{what:<24} {:>18} {:>18}", told(file), told(base));
        if file.0.max(base.0) > MOST {
            slow.push(what);
        }
    }
    assert!(slow.is_empty(), "{slow:?}");
}

async fn measure(registry: &AnyRegistry) -> Vec<(&'static str, Took)> {
    registry.add_invitation(&invitation(b"more", "more", 1_000_000), "test").await.unwrap();
    let any = |round: u32| (round * 7_919) % DEVICES;
    let id = |round: u32| format!("device-{}", any(round));
    let last = registry.last_event().await.unwrap();
    vec![
        ("find", took(async |round| drop(registry.find_devices(&id(round)).await.unwrap())).await),
        ("by_key", took(async |round| drop(registry.device_by_key(&key(any(round))).await.unwrap().unwrap())).await),
        (
            "enrol",
            took(async |round| {
                let number = DEVICES + round;
                let enrolment = Enrolment { pool: wide(), devices_per_user: None, ..request(b"more", number) };
                drop(registry.enrol(&enrolment).await.unwrap());
            })
            .await,
        ),
        ("revoke", took(async |round| assert!(registry.revoke(&id(round), now(), "test").await.unwrap())).await),
        (
            "rename",
            took(async |round| {
                assert_eq!(
                    registry.rename(&id(round), &format!("new-{round}"), now(), "test").await.unwrap(),
                    Renamed::Done
                );
            })
            .await,
        ),
        ("events_after", took(async |_| drop(registry.events_after(last, 100).await.unwrap())).await),
    ]
}

/// Median and mean: what others do on the machine meanwhile shows in the mean.
type Took = (Duration, Duration);

async fn took<F: Future<Output = ()>>(mut act: impl FnMut(u32) -> F) -> Took {
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let began = Instant::now();
        act(round).await;
        all.push(began.elapsed());
    }
    all.sort();
    (all[all.len() / 2], all.iter().sum::<Duration>() / ROUNDS)
}

fn dump() -> Dump {
    let device = |number: u32| Device {
        id: format!("device-{number}"),
        user: format!("user-{}", number / 4),
        name: format!("laptop-{number}"),
        spki_sha256: key(number),
        serial: "0a".into(),
        not_after: now() + time::Duration::DAY,
        ipv4: (u32::from_be_bytes([10, 0, 0, 2]) + number).into(),
        ipv6: None,
        created: now(),
        last_seen: None,
        revoked_at: None,
        authority: None,
    };
    let event = |number: u32| Event {
        id: i64::from(number) + 1,
        at: now(),
        event: "enrol_ok".into(),
        actor: "user".into(),
        target: format!("device-{number}"),
    };
    Dump {
        users: (0..DEVICES / 4).map(|number| (format!("user-{number}"), 1)).collect(),
        devices: (0..DEVICES).map(device).collect(),
        invitations: vec![invitation(b"first", "user-0", DEVICES)],
        uses: (0..DEVICES)
            .map(|number| Use { invitation: b"first".to_vec(), device: format!("device-{number}"), at: 1 })
            .collect(),
        events: (0..DEVICES).map(event).collect(),
        ..Dump::default()
    }
}

//! The registry over a real SQLite file: judgements, races, a crash at any moment, a full disk.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

use std::collections::HashSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use culvert_server::addresses::Pool;
use culvert_server::registry::sqlite::SqliteRegistry;
use culvert_server::registry::{
    Certificate, Device, EnrolError, Enrolment, Invitation, Meta, Registry, RegistryError, Renamed,
};
use time::OffsetDateTime;

#[tokio::test]
async fn an_invitation_becomes_a_device_with_a_stable_address() {
    let home = Home::new();
    let registry = home.create().await;
    invite(&registry, b"i1", "anna", 1).await;
    let device = enrol(&registry, b"i1", 1).await.unwrap();
    assert_eq!((device.user.as_str(), device.ipv4.to_string().as_str()), ("anna", "100.77.3.2"));
    assert_eq!(registry.device_by_key(&key(1)).await.unwrap(), Some(device));
    assert_eq!(registry.device_by_key(&key(2)).await.unwrap(), None);
}

#[tokio::test]
async fn used_expired_cancelled_and_foreign_invitations_are_told_apart() {
    let home = Home::new();
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

#[tokio::test]
async fn a_user_has_no_more_devices_than_allowed_and_the_invitation_survives_the_refusal() {
    let home = Home::new();
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

#[tokio::test]
async fn a_full_pool_refuses_and_changes_nothing() {
    let home = Home::new();
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

#[tokio::test]
async fn a_network_that_grew_downwards_still_takes_new_devices() {
    let home = Home::new();
    let registry = home.create().await;
    invite(&registry, b"i1", "anna", 2).await;
    let older = enrol(&registry, b"i1", 1).await.unwrap();
    let pool = Pool::new("100.77.2.0/23".parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap()));
    let newer = registry.enrol(&Enrolment { pool, ..request(b"i1", 2) }).await.unwrap();
    let (older, newer) = (older.lease(&pool).unwrap(), newer.lease(&pool).unwrap());
    assert_ne!(older.ipv4, newer.ipv4);
    assert_ne!(older.ipv6, newer.ipv6, "in a session each has its own");
}

#[tokio::test]
async fn when_the_end_of_the_network_is_reached_a_gap_is_found() {
    let home = Home::new();
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

#[tokio::test]
async fn a_device_is_revoked_and_restored_once_and_all_of_it_is_on_record() {
    let home = Home::new();
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

#[tokio::test]
async fn a_device_is_found_by_user_and_name_by_id_and_by_name() {
    let home = Home::new();
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

#[tokio::test]
async fn a_device_gets_another_name_unless_its_user_has_one_of_that_name() {
    let home = Home::new();
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

#[tokio::test]
async fn a_certificate_is_renewed_for_the_key_that_the_device_has_and_no_other() {
    let home = Home::new();
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

#[tokio::test]
async fn a_renewing_invitation_gives_a_known_device_a_new_key_and_no_second_one() {
    let home = Home::new();
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

#[tokio::test]
async fn devices_and_invitations_are_counted_by_what_they_are() {
    let home = Home::new();
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

#[tokio::test]
async fn a_registry_of_the_first_version_is_brought_up_to_date() {
    let home = Home::new();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(home.file()).create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let mut first = sqlx::migrate!("./migrations/sqlite");
    first.migrations.to_mut().truncate(1);
    first.run(&pool).await.unwrap();
    for statement in [
        "INSERT INTO users (id, name, created) VALUES (1, 'anna', 1)",
        "INSERT INTO devices (id, user, name, spki_sha256, serial, not_after, ipv4, created)
         VALUES ('d', 1, 'mac', zeroblob(32), '0a', 1, '100.77.3.254', 1)",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    pool.close().await;
    let registry = SqliteRegistry::open(&home.file()).await.unwrap();
    invite(&registry, b"i", "anna", 9).await;
    // The last address of the network is taken by the old device: the number was read from its text.
    let pool = request(b"i", 1).pool;
    assert_eq!(registry.stranded(&pool).await.unwrap(), None);
    assert_eq!(enrol(&registry, b"i", 1).await.unwrap().ipv4.to_string(), "100.77.3.2");
    let other = Pool::new("100.77.4.0/24".parse().unwrap(), None);
    assert_eq!(registry.stranded(&other).await.unwrap().unwrap().id, "device-1");
}

#[tokio::test]
async fn a_second_device_of_the_same_name_gets_a_number_and_a_known_key_is_refused() {
    let home = Home::new();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_enrolments_get_different_addresses() {
    let home = Home::new();
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 40).await;
    // Two handles, as the gateway and an administrator's command have.
    let second = SqliteRegistry::open(&home.file()).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_single_use_invitation_is_used_once_however_many_race_for_it() {
    let home = Home::new();
    let registry = home.create().await;
    let second = SqliteRegistry::open(&home.file()).await.unwrap();
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

#[tokio::test]
async fn what_is_no_registry_is_called_damaged_and_left_alone() {
    let home = Home::new();
    let garbage = vec![0x5a; 8192];
    std::fs::write(home.file(), &garbage).unwrap();
    assert!(matches!(SqliteRegistry::open(&home.file()).await, Err(RegistryError::Damaged)));
    assert_eq!(std::fs::read(home.file()).unwrap(), garbage);
    assert!(matches!(SqliteRegistry::create(&home.file(), &[]).await, Err(RegistryError::Denied)));
    assert_eq!(std::fs::read(home.file()).unwrap(), garbage);
}

#[tokio::test]
async fn only_the_owner_can_read_it_its_log_included() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 1).await;
    for entry in std::fs::read_dir(home.folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
    assert_eq!(registry.meta(Meta::GatewayId).await.unwrap().as_deref(), Some("g"));
}

#[tokio::test]
async fn it_survives_kill_9_at_any_point() {
    let home = Home::new();
    let registry = home.create().await;
    registry.close().await;
    let mut before = 0;
    for round in 0..8u64 {
        let mut writer =
            Killed(child("child_enrols_without_end", &home.file(), Command::new(std::env::current_exe().unwrap())));
        // The writer announces that it is under way; then it is killed somewhere in a transaction.
        let started = home.folder.path().join("started");
        for _ in 0..500 {
            if started.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        std::fs::remove_file(&started).expect("the writer started");
        std::thread::sleep(Duration::from_millis(37 + round * 23));
        writer.0.kill().unwrap();
        writer.0.wait().unwrap();
        before = check_invariants(&home.file(), before).await;
    }
    assert!(before > 8, "only {before} devices were enrolled in all rounds");
}

#[tokio::test]
async fn a_full_disk_is_called_by_its_name_and_leaves_the_registry_as_it_was() {
    let home = Home::new();
    // A mount namespace of its own: the small disk goes when the child does.
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "--"]).arg(std::env::current_exe().unwrap());
    let output = child("child_fills_its_disk", home.folder.path(), unshare).wait_with_output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// Runs only as a child of the test above.
#[test]
#[ignore = "a child process of another test"]
fn child_enrols_without_end() {
    let path = std::env::var_os(CHILD).expect("started by a test");
    let path = Path::new(&path);
    block_on(async {
        let registry = SqliteRegistry::open(path).await.unwrap();
        let mut number = registry.devices().await.unwrap().len() as u32;
        std::fs::write(path.with_file_name("started"), "").unwrap();
        loop {
            let id = number.to_be_bytes();
            if registry.invitation(&id).await.unwrap().is_none() {
                invite(&registry, &id, "anna", 1).await;
            }
            let enrolment = Enrolment { pool: wide(), devices_per_user: None, ..request(&id, number) };
            registry.enrol(&enrolment).await.unwrap();
            number += 1;
        }
    });
}

/// Runs only as a child of the test above.
#[test]
#[ignore = "a child process of another test"]
fn child_fills_its_disk() {
    let disk = std::env::var_os(CHILD).expect("started by a test");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=400k", "tmpfs"])
        .arg(&disk)
        .status()
        .expect("mount(8) is there");
    assert!(mounted.success());
    let path = Path::new(&disk).join("registry.sqlite");
    let ballast = Path::new(&disk).join("ballast");
    std::fs::write(&ballast, [0; 100 * 1024]).unwrap();
    block_on(async {
        let registry = SqliteRegistry::create(&path, &[]).await.unwrap();
        invite(&registry, b"i", "anna", 1_000_000).await;
        let mut enrolled = 0;
        let error = loop {
            let enrolment = Enrolment { pool: wide(), devices_per_user: None, ..request(b"i", enrolled) };
            match registry.enrol(&enrolment).await {
                Ok(_) => enrolled += 1,
                Err(error) => break error,
            }
            assert!(enrolled < 100_000, "the disk never filled");
        };
        assert!(matches!(error, EnrolError::Registry(RegistryError::DiskFull)), "{error:?}");
        assert!(enrolled > 0);
        assert_eq!(registry.devices().await.unwrap().len() as u32, enrolled);
        assert_eq!(registry.invitation(b"i").await.unwrap().unwrap().uses, enrolled);

        std::fs::remove_file(ballast).unwrap();
        let enrolment = Enrolment { pool: wide(), devices_per_user: None, ..request(b"i", enrolled) };
        registry.enrol(&enrolment).await.expect("there is room again, and nobody had to restart");
        registry.close().await;
        check_invariants(&path, enrolled as usize + 1).await;
    });
}

const CHILD: &str = "CULVERT_TEST_CHILD";

/// A folder for one registry.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("registry.sqlite")
    }

    async fn create(&self) -> SqliteRegistry {
        SqliteRegistry::create(&self.file(), &[(Meta::GatewayId, "g".into())]).await.unwrap()
    }
}

/// A child that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This test program again, running one ignored test.
fn child(test: &str, path: &Path, mut command: Command) -> Child {
    command
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the child starts")
}

/// Opens the file after a crash and looks for anything half done. Returns the devices found.
async fn check_invariants(path: &Path, at_least: usize) -> usize {
    let registry = SqliteRegistry::open(path).await.unwrap();
    let devices: Vec<Device> = registry.devices().await.unwrap();
    assert!(devices.len() >= at_least, "{} devices, there were {at_least}", devices.len());
    let addresses: HashSet<_> = devices.iter().map(|device| device.ipv4).collect();
    assert_eq!(addresses.len(), devices.len());
    registry.close().await;

    // Through another SQLite connection: what the file itself says.
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let integrity: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&pool).await.unwrap();
    assert_eq!(integrity, "ok");
    for (what, count) in [
        ("uses without a device", "SELECT coalesce(sum(uses), 0) - (SELECT count(*) FROM devices) FROM invitations"),
        ("devices without a use", "SELECT count(*) FROM devices WHERE id NOT IN (SELECT device FROM invitation_uses)"),
        ("devices without an event", "SELECT count(*) FROM devices WHERE id NOT IN (SELECT target FROM events)"),
        ("broken references", "SELECT count(*) FROM pragma_foreign_key_check"),
    ] {
        let count: i64 = sqlx::query_scalar(count).fetch_one(&pool).await.unwrap();
        assert_eq!(count, 0, "{what}");
    }
    pool.close().await;
    devices.len()
}

async fn invite(registry: &SqliteRegistry, id: &[u8], user: &str, uses: u32) {
    registry.add_invitation(&invitation(id, user, uses), "test").await.unwrap();
}

fn invitation(id: &[u8], user: &str, uses_allowed: u32) -> Invitation {
    Invitation {
        id: id.to_vec(),
        key: vec![1; 32],
        user: user.into(),
        uses_allowed,
        uses: 0,
        created: now(),
        expires: now() + time::Duration::HOUR,
        cancelled_at: None,
        last_use: None,
        renews: None,
    }
}

async fn enrol(registry: &SqliteRegistry, invitation: &[u8], number: u32) -> Result<Device, EnrolError> {
    registry.enrol(&request(invitation, number)).await
}

fn request(invitation: &[u8], number: u32) -> Enrolment<'_> {
    Enrolment {
        invitation,
        device: Box::leak(format!("device-{number}").into_boxed_str()),
        name: "laptop",
        spki_sha256: key(number),
        serial: "0a",
        not_after: now() + time::Duration::DAY,
        pool: Pool::new("100.77.3.0/24".parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap())),
        devices_per_user: Some(3),
        now: now(),
    }
}

fn wide() -> Pool {
    Pool::new("10.0.0.0/8".parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap()))
}

fn key(number: u32) -> [u8; 32] {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    key
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

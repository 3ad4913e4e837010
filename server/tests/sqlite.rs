//! What is SQLite's own: its file, a crash at any moment, a full disk, an older version.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod stores;

use std::collections::HashSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use culvert_server::addresses::Pool;
use culvert_server::registry::any::AnyRegistry;
use culvert_server::registry::sqlite::SqliteRegistry;
use culvert_server::registry::{Device, EnrolError, Enrolment, Meta, Registry, RegistryError};
use stores::{Home, enrol, invite, request, wide};

#[tokio::test]
async fn a_registry_of_the_first_version_is_brought_up_to_date() {
    let home = Home::file();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(home.path()).create_if_missing(true);
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
    let registry = home.open().await;
    invite(&registry, b"i", "anna", 9).await;
    // The last address of the network is taken by the old device: the number was read from its text.
    let pool = request(b"i", 1).pool;
    assert_eq!(registry.stranded(&pool).await.unwrap(), None);
    assert_eq!(enrol(&registry, b"i", 1).await.unwrap().ipv4.to_string(), "100.77.3.2");
    let other = Pool::new("100.77.4.0/24".parse().unwrap(), None);
    assert_eq!(registry.stranded(&other).await.unwrap().unwrap().id, "device-1");
}

#[tokio::test]
async fn what_is_no_registry_is_called_damaged_and_left_alone() {
    let home = Home::file();
    let garbage = vec![0x5a; 8192];
    std::fs::write(home.path(), &garbage).unwrap();
    assert!(matches!(SqliteRegistry::open(&home.path()).await, Err(RegistryError::Damaged)));
    assert_eq!(std::fs::read(home.path()).unwrap(), garbage);
    assert!(matches!(SqliteRegistry::create(&home.path(), &[]).await, Err(RegistryError::Denied)));
    assert_eq!(std::fs::read(home.path()).unwrap(), garbage);
}

#[tokio::test]
async fn only_the_owner_can_read_it_its_log_included() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::file();
    let registry = home.create().await;
    invite(&registry, b"i", "anna", 1).await;
    for entry in std::fs::read_dir(home.folder()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
    assert_eq!(registry.meta(Meta::GatewayId).await.unwrap().as_deref(), Some("g"));
}

#[tokio::test]
async fn it_survives_kill_9_at_any_point() {
    let home = Home::file();
    let registry = home.create().await;
    registry.close().await;
    let mut before = 0;
    for round in 0..8u64 {
        let mut writer =
            Killed(child("child_enrols_without_end", &home.path(), Command::new(std::env::current_exe().unwrap())));
        // The writer announces that it is under way; then it is killed somewhere in a transaction.
        let started = home.folder().join("started");
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
        before = check_invariants(&home.path(), before).await;
    }
    assert!(before > 8, "only {before} devices were enrolled in all rounds");
}

#[tokio::test]
async fn a_full_disk_is_called_by_its_name_and_leaves_the_registry_as_it_was() {
    let home = Home::file();
    // A mount namespace of its own: the small disk goes when the child does.
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "--"]).arg(std::env::current_exe().unwrap());
    let output = child("child_fills_its_disk", home.folder(), unshare).wait_with_output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// Runs only as a child of the test above.
#[test]
#[ignore = "a child process of another test"]
fn child_enrols_without_end() {
    let path = std::env::var_os(CHILD).expect("started by a test");
    let path = Path::new(&path);
    block_on(async {
        let registry = AnyRegistry::Sqlite(SqliteRegistry::open(path).await.unwrap());
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
        let registry = AnyRegistry::Sqlite(SqliteRegistry::create(&path, &[]).await.unwrap());
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
    let registry = AnyRegistry::Sqlite(SqliteRegistry::open(path).await.unwrap());
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

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

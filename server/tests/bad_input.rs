//! What an operator may hand to the gateway that is wrong: each key of the configuration in each way, and a
//! registry from the future. Everything is told, and nothing is changed.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod home;

use std::collections::BTreeSet;
use std::process::Command;

use culvert_server::config::{Config, ConfigError, Flags, KEYS, Key, Kind, Named};
use home::{Home, text};

/// Values of every shape that TOML has.
const SHAPES: [(&str, &str); 8] = [
    ("string", "\"zzz\""),
    ("integer", "7"),
    ("boolean", "true"),
    ("float", "1.5"),
    ("datetime", "1979-05-27"),
    ("array", "[\"zzz\"]"),
    ("array", "[1]"),
    ("inline table", "{ a = 1 }"),
];

#[test]
fn a_key_of_another_shape_is_named_with_its_place_and_what_to_write() {
    for key in KEYS {
        for (shape, value) in SHAPES.iter().filter(|(shape, value)| !fits(key.kind, shape, value)) {
            let told = complaints(key, key.name, value);
            let expected = format!(
                "gw.toml:4:{}: {}.{} must be {}, not {shape}",
                key.name.len() + 4,
                key.section,
                key.name,
                key.kind.expected()
            );
            assert_eq!(told, [expected]);
        }
    }
}

#[test]
fn a_value_without_meaning_is_named_with_its_place_and_what_to_write() {
    for key in KEYS.iter().filter(|key| key.kind != Kind::Switch) {
        let wrong = meaningless(key);
        assert!(!wrong.is_empty(), "{}.{}: say in this test what is wrong for it", key.section, key.name);
        for value in wrong {
            let told = complaints(key, key.name, value);
            // A URL may hold a password, so it is not told.
            let (sign, wrong) = if key.name == "url" { (": ", ": not ") } else { (" = ", " is not ") };
            let begin = format!("gw.toml:4:{}: {}.{}{sign}", key.name.len() + 4, key.section, key.name);
            assert_eq!(told.len(), 1, "{told:?}");
            let (_, repair) = told[0].split_once(wrong).unwrap_or_else(|| panic!("{told:?}"));
            assert!(told[0].starts_with(&begin) && repair.len() > 5, "{told:?}");
        }
    }
}

#[test]
fn a_misspelt_key_or_variable_is_told_the_right_word() {
    for key in KEYS {
        let misspelt = format!("{}z", key.name);
        let told = complaints(key, &misspelt, "1");
        let expected =
            format!("gw.toml:4:1: unknown key \"{misspelt}\" in [{}]; did you mean \"{}\"?", key.section, key.name);
        assert_eq!(told, [expected]);
        let variable = format!("{}Z", key.variable());
        let flags = Flags::default();
        let error = Config::load(&flags, [(variable.clone(), "1".to_owned())], Named::MayBeMissing).unwrap_err();
        let right = key.variable();
        assert_eq!(error.to_string(), format!("environment {variable}: no such setting; did you mean \"{right}\"?"));
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once_and_every_command_refuses() {
    let home = Home::with_gateway();
    let before = home.snapshot();
    let sections: BTreeSet<&str> = KEYS.iter().map(|key| key.section).collect();
    let mut config = String::new();
    for section in sections {
        config.push_str(&format!("[{section}]\n"));
        for key in KEYS.iter().filter(|key| key.section == section) {
            config.push_str(&format!("{} = 1979-05-27\n", key.name));
        }
    }
    let good = std::fs::read(home.config()).unwrap();
    std::fs::write(home.config(), &config).unwrap();
    let told = home.fails(9, &["check-config"]);
    assert_eq!(told.lines().count(), KEYS.len(), "{told}");
    for command in [&["run"][..], &["invite", "anna"], &["devices", "list"], &["reload"], &["ca", "show"], &["doctor"]]
    {
        assert_eq!(home.fails(9, command), told, "{command:?}");
    }
    std::fs::write(home.config(), good).unwrap();
    assert_eq!(home.snapshot(), before);
}

#[tokio::test]
async fn a_registry_of_a_newer_version_is_told_by_every_command_and_left_alone() {
    let home = Home::with_gateway();
    home.ok(&["invite", "anna"]);
    let later = "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, execution_time) \
                 VALUES (99990101000000, 'later', '2099-01-01', 1, x'00', 0)";
    let path = home.folder.path().join("state/gateway/registry.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query(later).execute(&pool).await.unwrap();
    pool.close().await;
    let before = home.snapshot();
    let backup = home.folder.path().join("backup");
    let secret = home.folder.path().join("secret");
    std::fs::write(&secret, "correct horse battery staple\n").unwrap();
    let (backup, secret) = (backup.to_str().unwrap(), secret.to_str().unwrap());
    let newer = "error: the registry was written by a newer culvert-server; run that version\n";
    for command in [
        &["invite", "ben"][..],
        &["invite", "anna", "--renew"],
        &["invites", "list"],
        &["invites", "cancel", "anna"],
        &["devices", "list"],
        &["devices", "show", "laptop"],
        &["devices", "rename", "laptop", "other"],
        &["devices", "revoke", "laptop"],
        &["devices", "restore", "laptop"],
        &["sessions", "kick", "laptop"],
        &["why", "anna"],
        &["ca", "show"],
        &["ca", "backup", backup, "--passphrase-file", secret],
        &["mdm-profile", "--org", "Acme", "--team-id", "ABCDE12345", "--uses", "1"],
        &["init"],
    ] {
        assert_eq!(home.fails(1, command), newer, "{command:?}");
    }
    let run = Command::new("unshare")
        .args(["--map-root-user", "--net", "--"])
        .arg(env!("CARGO_BIN_EXE_culvert-server"))
        .args(home.place())
        .arg("run")
        .output()
        .unwrap();
    assert!(text(&run.stderr).ends_with(newer), "{}", text(&run.stderr));
    std::fs::remove_file(secret).unwrap();
    assert_eq!(home.snapshot(), before);
}

/// What is said about `[SECTION] NAME = VALUE` on the fourth line, without the folder's name.
fn complaints(key: &Key, name: &str, value: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gw.toml");
    std::fs::write(&path, format!("# a comment\n\n[{}]\n{name} = {value}\n", key.section)).unwrap();
    let flags = Flags { config: Some(path), ..Flags::default() };
    match Config::load(&flags, [], Named::MustExist) {
        Ok(_) => panic!("{}.{name} = {value} was taken", key.section),
        Err(ConfigError::Invalid(problems)) => {
            let folder = format!("{}/", folder.path().display());
            problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
        }
        Err(error) => panic!("{error}"),
    }
}

fn fits(kind: Kind, shape: &str, value: &str) -> bool {
    match kind {
        Kind::Text => shape == "string",
        Kind::TextOrNumber => matches!(shape, "string" | "integer"),
        Kind::Number => shape == "integer",
        Kind::Switch => shape == "boolean",
        Kind::List => value == "[\"zzz\"]",
    }
}

/// Of the right shape, and wrong.
fn meaningless(key: &Key) -> &'static [&'static str] {
    match (key.section, key.name) {
        ("listen", "address") => &["\"\"", "\"[::]\"", "\"[::]:0\"", "\"[::]:65536\"", "\"vpn.example.org:443\""],
        ("endpoint", "name") => &["\"a b\"", "\"vpn.example.org:0\"", "\"https://vpn.example.org\""],
        ("endpoint", "extra_names") => &["[\"\"]", "[\"vpn.example.org\", \"a b\"]"],
        ("network", "ipv4") => &["\"\"", "\"100.77.3.1/24\"", "\"10.0.0.0/7\"", "\"10.0.0.0/30\"", "\"224.0.0.0/8\""],
        ("network", "ipv6") => &["\"fd4e::/48\"", "\"fe80::/64\"", "\"fd4e::1/64\"", "\"10.0.0.0/24\""],
        ("network", "mtu") => &["1279", "9001", "-1", "\"large\""],
        ("network", "nat") => &["[\"ipv5\"]", "[\"ipv4\", \"\"]"],
        ("push", "routes" | "excluded_routes") => &["[\"10.0.0.0/33\"]", "[\"everything\"]", "[\"\"]"],
        ("push", "dns") => &["[\"dns.example.org\"]", "[\"10.0.0.300\"]"],
        ("push", "domains") => &["[\"a b\"]", "[\"\"]", "[\"-.example\"]"],
        ("dns", "upstream") => &["[\"dns.example.org\"]", "[\"\"]"],
        ("dns", "zones") => &["[\"corp.example\"]", "[\"corp.example=\"]", "[\"=10.0.0.53\"]"],
        ("dns", "inner") => &["\"a b\"", "\"..\""],
        ("limits", "devices_per_user" | "handshakes_per_second" | "speedtests") => &["-1", "4294967296"],
        ("bans", "failures") => &["-1", "4294967296"],
        ("limits", "rate") => &["\"fast\"", "\"-5M\"", "-1"],
        ("registry", "url") => &["\"db.example.org\"", "\"mysql://db/culvert\"", "\"postgres://db/c?sslmode=never\""],
        ("registry", "password_file") => &["\"secret\""],
        ("registry", "cache_age") => &["\"soon\"", "\"-1h\"", "\"\""],
        ("metrics", "listen") => &["\"9580\"", "\"localhost:9580\"", "\"127.0.0.1:0\""],
        ("log", "format") => &["\"xml\"", "\"\""],
        ("log", "level") => &["\"loud\"", "\"info,loud\""],
        ("log", "addresses") => &["\"some\"", "\"\""],
        ("log", "file") => &["\"log/gateway.log\""],
        ("bans", "window") => &["\"0s\"", "\"soon\"", "\"\"", "\"-5m\""],
        ("bans", "duration") => &["\"25h\"", "\"0s\"", "\"forever\""],
        ("bans", "exempt") => &["[\"vpn.example.org\"]", "[\"10.0.0.0/33\"]"],
        ("state", "dir") => &["\"state\"", "\"\""],
        ("control", "socket") => &[
            "\"sock\"",
            "\"\"",
            "\"/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
        ],
        ("tunnel", "device") => &["\"\"", "\"a b\"", "\"culvert0123456789\"", "\"../tun\""],
        ("tunnel", "shards") => &["0", "65", "-1", "\"many\""],
        ("tunnel", "congestion") => &["\"fast\"", "\"\""],
        ("auth", "rechallenge") => &["\"often\"", "\"-1h\""],
        ("auth", "device_lifetime") => &["\"29s\"", "\"0\"", "\"3660d\"", "\"for ever\""],
        _ => &[],
    }
}

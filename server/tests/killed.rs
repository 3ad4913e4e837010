//! `kill -9` at any moment of an administrator's commands and of the gateway itself: what was acknowledged is kept,
//! what was not is whole or not there, and the state opens.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod client;
mod namespace;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client::{Gateway, with_gateway};
use culvert_server::registry::sqlite::SqliteRegistry;
use serde_json::Value;

const ROUNDS: u64 = 60;
/// No command here takes longer, so that some are killed at their very end and some not at all.
const LONGEST_MS: u64 = 60;

#[test]
fn what_was_acknowledged_is_kept_whatever_is_killed() {
    with_gateway("what_was_acknowledged_is_kept_whatever_is_killed", async |gateway| {
        for _ in 0..2 {
            gateway.enrol(&gateway.invite("anna")).await.unwrap(); // laptop and laptop-2
        }
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let mut random = Random(seed | 1);
        let mut known = State::read(gateway);
        let (mut acknowledged, mut killed) = (0, 0);
        let folder = gateway.folder.path().to_owned();
        std::fs::write(folder.join("secret"), "correct horse battery staple\n").unwrap();
        let secret = folder.join("secret").display().to_string();
        for round in 0..ROUNDS {
            let prefix = format!("203.0.113.{}/32", random.below(6));
            let user = format!("user-{round}");
            let file = folder.join(format!("file-{round}")).display().to_string();
            let device = ["anna/laptop", "anna/laptop-2"][random.below(2) as usize];
            let command: Vec<&str> = match random.below(8) {
                0 => vec!["invite", &user],
                1 => vec!["invite", &user, "--out", &file],
                2 => vec!["invites", "cancel", known.some_user(&mut random)],
                3 => vec!["devices", "revoke", device],
                4 => vec!["devices", "restore", device],
                5 => vec!["bans", "add", &prefix],
                6 => vec!["bans", "remove", &prefix],
                _ => vec!["ca", "backup", &file, "--passphrase-file", &secret],
            };
            let whole = run_and_kill(gateway, &command, random.below(LONGEST_MS));
            if random.below(4) == 0 {
                gateway.signal("-9");
                gateway.wait();
                gateway.start();
            }
            let now = State::read(gateway);
            let context = format!("round {round} of seed {seed}: {command:?}, acknowledged: {whole}");
            let mut wanted = known.clone();
            wanted.apply(&command);
            if whole {
                acknowledged += 1;
                assert_eq!(now, wanted, "{context}");
            } else {
                killed += 1;
                assert!(now == known || now == wanted, "{context}:\n{known:?}\n{now:?}");
            }
            check_file(Path::new(&file), &command, whole, &context);
            let _ = std::fs::remove_file(&file); // the disk is small
            known = now;
        }
        assert!(acknowledged > 5 && killed > 5, "{acknowledged} acknowledged, {killed} killed: choose LONGEST_MS anew");
        gateway.signal("-9");
        gateway.wait();
        let registry = SqliteRegistry::open(&folder.join("state/gateway/registry.sqlite")).await.unwrap();
        registry.check().await.unwrap();
        registry.close().await;
        gateway.ok(&["ca", "backup", &folder.join("last").display().to_string(), "--passphrase-file", &secret]);
        let left: Vec<_> = std::fs::read_dir(folder.join("state"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(".backup-"))
            .collect();
        assert!(left.is_empty(), "copies of the registry stay behind: {left:?}");
    });
}

/// True when it was done before it was killed.
fn run_and_kill(gateway: &Gateway, command: &[&str], after_ms: u64) -> bool {
    let mut child = gateway.command(command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(after_ms));
    let _ = child.kill(); // it may have ended
    child.wait().unwrap().code().is_some_and(|code| code == 0 || is_refusal(command, code))
}

/// Nothing to cancel.
fn is_refusal(command: &[&str], code: i32) -> bool {
    code == 1 && command[..2] == ["invites", "cancel"]
}

/// A backup or an invitation in a file.
fn check_file(path: &Path, command: &[&str], whole: bool, context: &str) {
    let Ok(bytes) = std::fs::read(path) else {
        let writes = command[0] == "ca" || command.contains(&"--out");
        assert!(!(whole && writes), "{context}: no file");
        return;
    };
    if command[0] == "ca" {
        let opened = culvert_server::sealed_file::open(&bytes, "correct horse battery staple");
        assert!(opened.is_ok_and(|plain| culvert_server::backup::unpack(&plain).is_ok()), "{context}: a torn backup");
    } else {
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.trim().parse::<culvert_tunnel::invitation::Invitation>().is_ok(), "{context}: {text:?}");
    }
}

/// What the commands change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// Open invitations by user.
    invitations: BTreeMap<String, usize>,
    /// Whether each may connect.
    devices: BTreeMap<String, bool>,
    bans: Vec<String>,
}

impl State {
    fn read(gateway: &Gateway) -> Self {
        let list = |command: &str, key: &str| -> Vec<Value> {
            gateway.json(&[command, "list", "--json"])[key].as_array().unwrap().clone()
        };
        let word = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
        let mut invitations = BTreeMap::new();
        for row in list("invites", "invitations") {
            *invitations.entry(word(&row, "user")).or_insert(0) += 1;
        }
        let devices = list("devices", "devices");
        let devices = devices
            .iter()
            .map(|row| (format!("{}/{}", word(row, "user"), word(row, "name")), row["revoked_at"].is_null()))
            .collect();
        let mut bans: Vec<String> = list("bans", "bans").iter().map(|row| word(row, "prefix")).collect();
        bans.sort();
        Self { invitations, devices, bans }
    }

    fn apply(&mut self, command: &[&str]) {
        match command {
            ["invite", user, ..] => *self.invitations.entry((*user).to_owned()).or_insert(0) += 1,
            ["invites", "cancel", user] => drop(self.invitations.remove(*user)),
            ["devices", what, device] => drop(self.devices.insert((*device).to_owned(), *what == "restore")),
            ["bans", "add", prefix] if !self.bans.iter().any(|ban| ban == prefix) => {
                self.bans.push((*prefix).to_owned());
                self.bans.sort();
            }
            ["bans", "remove", prefix] => self.bans.retain(|ban| ban != prefix),
            _ => {}
        }
    }

    fn some_user(&self, random: &mut Random) -> &str {
        let at = random.below(self.invitations.len().max(1) as u64) as usize;
        self.invitations.keys().nth(at).map_or("nobody", String::as_str)
    }
}

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

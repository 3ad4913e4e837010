//! A gateway's folder, and the program run on it.

#![allow(dead_code, reason = "no test needs all of it")]
#![allow(unreachable_pub, reason = "shared by several test crates")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A folder for one gateway.
pub struct Home {
    pub folder: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn with_gateway() -> Self {
        let home = Self::new();
        home.ok(&["init", "--endpoint", "vpn.example.org"]);
        home
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("gw.toml")
    }

    pub fn place(&self) -> Vec<PathBuf> {
        let path = |name: &str| self.folder.path().join(name);
        vec!["--config".into(), path("gw.toml"), "--state-dir".into(), path("state"), "--socket".into(), path("sock")]
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-server"));
        command.args(self.place()).args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// Standard error of a command that must fail with `code`, and say nothing on standard output.
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
        text(&output.stderr)
    }

    /// Every file with its content.
    pub fn snapshot(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn walk(folder: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                } else {
                    found.push((path.clone(), std::fs::read(&path).unwrap()));
                }
            }
        }
        let mut found = Vec::new();
        walk(self.folder.path(), &mut found);
        // SQLite's log and index come and go with its readers.
        found
            .retain(|(path, _)| !path.to_string_lossy().ends_with("-wal") && !path.to_string_lossy().ends_with("-shm"));
        found.sort();
        found
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

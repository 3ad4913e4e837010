//! `culvert` without a helper: exit codes and messages that need none. With one: `scripts/test`'s
//! namespace tests.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic as its body does")]

use std::process::{Command, Output, Stdio};

#[test]
fn without_a_helper_every_command_says_so_with_its_own_exit_code() {
    for arguments in ["status", "status --check --json", "connect --wait", "disconnect", "watch --json", "enrol x"] {
        let output = culvert(arguments);
        assert_eq!(output.status.code(), Some(4), "{arguments}");
        assert!(output.stdout.is_empty(), "{arguments}: stdout is for data");
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(words.starts_with("error: The background helper does not answer at /nonexistent/"), "{words}");
        assert!(words.contains(" hint: ") && words.trim_end().ends_with("[E401]"), "{words}");
        assert_eq!(words.lines().count(), 1, "{words}");
    }
}

#[test]
fn the_version_is_told_without_a_helper_too() {
    let output = culvert("version --json");
    assert!(output.status.success());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["client"], env!("CARGO_PKG_VERSION"));
    assert!(json["helper"].is_null());
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for arguments in ["", "fly", "connect --wait=soon", "connect --wait --no-wait", "status --colour"] {
        assert_eq!(culvert(arguments).status.code(), Some(2), "{arguments}");
    }
}

#[test]
fn every_help_page_lists_the_exit_codes() {
    for arguments in ["--help", "connect --help", "status --help", "enrol --help"] {
        let output = culvert(arguments);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        for line in ["4    background service not reachable", "7    not enrolled", "130  interrupted"] {
            assert!(text.contains(line), "{arguments}: {text}");
        }
    }
}

#[test]
fn a_reader_that_has_gone_away_is_no_panic() {
    let mut child = command("--help").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
    let mut child = command("version").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
}

fn culvert(arguments: &str) -> Output {
    command(arguments).stdin(Stdio::null()).output().unwrap()
}

fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.env("CULVERT_SOCKET", "/nonexistent/helper.sock").args(arguments.split_whitespace());
    command
}

//! The program as an administrator meets it: a real process, its output and its exit codes.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use culvert_server::registry::sqlite::SqliteRegistry;
use culvert_tunnel::invitation::Invitation;
use serde_json::Value;

use home::{Home, text};

mod home;

#[test]
fn a_second_init_changes_nothing_and_says_so() {
    let home = Home::new();
    let first = home.json(&["init", "--endpoint", "vpn.example.org", "--invite", "anna", "--json"]);
    assert_eq!((&first["schema"], &first["changed"]), (&1.into(), &true.into()));
    assert_eq!(first["endpoints"], serde_json::json!(["vpn.example.org:443"]));
    let invitation: Invitation = first["invitation"].as_str().unwrap().parse().unwrap();
    assert_eq!(invitation.endpoints, ["vpn.example.org:443"]);
    assert_eq!(invitation.user, "anna");
    assert_eq!(first["ca_pin"], invitation.pin.to_string());

    let before = home.snapshot();
    let second = home.json(&["init", "--endpoint", "other.example.org", "--invite", "ben", "--json"]);
    assert_eq!(second["changed"], false);
    assert_eq!(second["ca_pin"], first["ca_pin"]);
    assert_eq!(second["invitation"], Value::Null);
    assert_eq!(home.snapshot(), before);
    let text = home.ok(&["init"]);
    assert!(text.starts_with("There is a gateway here already; nothing was changed."), "{text}");
}

#[test]
fn init_picks_private_networks_and_writes_a_configuration_that_is_valid() {
    let home = Home::new();
    let done = home.json(&["init", "--endpoint", "203.0.113.7:8443", "--json"]);
    let networks: Vec<ipnet::IpNet> =
        done["networks"].as_array().unwrap().iter().map(|net| net.as_str().unwrap().parse().unwrap()).collect();
    assert_eq!((networks[0].prefix_len(), networks[1].prefix_len()), (24, 64));
    assert!("fd00::/8".parse::<ipnet::IpNet>().unwrap().contains(&networks[1]));
    assert_eq!((&done["port"], &done["listen_port"]), (&8443.into(), &443.into()));
    assert!(home.ok(&["check-config"]).contains("valid"));
    let shown = home.ok(&["check-config", "--show"]);
    assert!(shown.contains(&format!("ipv4 = \"{}\"  # {}:", networks[0], home.config().display())), "{shown}");
    assert!(shown.contains("address = \"[::]:443\"  # default"), "{shown}");
}

#[test]
fn an_init_that_is_killed_leaves_nothing_half_made() {
    for milliseconds in [1, 5, 9, 13, 18, 24, 31, 40, 60, 90] {
        let home = Home::new();
        let arguments = ["init", "--endpoint", "vpn.example.org", "--json"];
        let mut child = home.command(&arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        let done = home.json(&arguments);
        assert_eq!(done["endpoints"], serde_json::json!(["vpn.example.org:443"]), "after {milliseconds} ms");
        home.ok(&["invite", "anna"]);
        let left: Vec<PathBuf> = std::fs::read_dir(home.folder.path().join("state"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into())
            .filter(|name: &PathBuf| name != Path::new(".lock") && name != Path::new("gateway"))
            .collect();
        assert!(left.is_empty(), "{left:?} after {milliseconds} ms");
    }
}

#[test]
fn a_dry_run_writes_nothing() {
    let home = Home::new();
    let text = home.ok(&["init", "--endpoint", "vpn.example.org", "--dry-run"]);
    assert!(text.starts_with("This would be the gateway; nothing was changed."), "{text}");
    assert!(home.snapshot().is_empty());
}

#[test]
fn a_host_behind_nat_is_told_to_say_its_name() {
    let home = Home::new();
    // Without any network, as in a fresh namespace, there is no public address either.
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "--"])
        .arg(env!("CARGO_BIN_EXE_culvert-server"))
        .args(home.place())
        .arg("init")
        .output()
        .unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("Say its public name: culvert-server init --endpoint vpn.example.org"), "{told}");
    assert!(home.snapshot().is_empty());
}

#[test]
fn a_wrong_configuration_is_told_with_place_and_remedy() {
    let home = Home::new();
    std::fs::write(home.config(), "[listen]\nadress = \"[::]:443\"\n\n[network]\nmtu = 12\n").unwrap();
    let told = home.fails(9, &["check-config"]);
    let file = home.config();
    let file = file.display();
    assert_eq!(
        told,
        format!(
            "error: {file}:2:1: unknown key \"adress\" in [listen]; did you mean \"address\"?\n\
             error: {file}:5:7: network.mtu = \"12\" is not \"auto\" or 1280 to 9000 bytes\n"
        )
    );
    for command in [&["run"][..], &["invite", "anna"], &["devices", "list"]] {
        assert_eq!(home.fails(9, command), told, "{command:?}");
    }
    let other = home.folder.path().join("other.toml");
    std::fs::write(&other, "").unwrap();
    assert!(home.ok(&["check-config", other.to_str().unwrap()]).contains("valid"));
}

#[test]
fn an_unknown_variable_is_an_error_and_a_known_one_wins() {
    let home = Home::new();
    std::fs::write(home.config(), "[log]\nlevel = \"warn\"\n").unwrap();
    let output = home.command(&["check-config"]).env("CULVERT_SERVER_LOG__LEVLE", "debug").output().unwrap();
    assert_eq!(output.status.code(), Some(9));
    assert!(text(&output.stderr).contains("did you mean \"CULVERT_SERVER_LOG__LEVEL\"?"));
    let output = home.command(&["check-config", "--show"]).env("CULVERT_SERVER_LOG__LEVEL", "debug").output().unwrap();
    assert!(text(&output.stdout).contains("level = \"debug\"  # environment CULVERT_SERVER_LOG__LEVEL"));
}

#[test]
fn invitations_say_for_whom_and_how_long() {
    let home = Home::with_gateway();
    let done = home.json(&["invite", "anna", "--expires", "30m", "--uses", "3", "--json"]);
    assert_eq!((&done["user"], &done["uses"]), (&"anna".into(), &3.into()));
    let invitation: Invitation = done["invitation"].as_str().unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!((1_700..=1_800).contains(&(invitation.expires - now)));

    let out = home.folder.path().join("anna.invite");
    let shown = home.ok(&["invite", "anna", "--out", out.to_str().unwrap()]);
    assert!(!shown.contains("culvert://"), "the secret is only in the file: {shown}");
    let kept = std::fs::read_to_string(&out).unwrap();
    assert!(kept.trim().parse::<Invitation>().is_ok());
    home.fails(1, &["invite", "anna", "--out", out.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), kept);

    assert!(home.fails(2, &["invite", "anna", "--expires", "soon"]).contains("30m, 24h or 7d"));
    home.fails(2, &["invite", "an\nna"]);
    home.fails(2, &["invite", "anna", "--uses", "0"]);
}

#[test]
fn lists_have_a_schema_and_a_gateway_that_does_not_run_has_its_own_code() {
    let home = Home::with_gateway();
    assert_eq!(home.json(&["devices", "list", "--json"]), serde_json::json!({ "schema": 1, "devices": [] }));
    assert!(home.ok(&["devices", "list"]).starts_with("USER"));
    assert!(home.fails(4, &["sessions", "list"]).contains("culvert-server run"));
    home.fails(4, &["status", "--json"]);
    home.fails(2, &["dance"]);
}

#[test]
fn run_refuses_without_init_and_without_the_right_to_change_the_network() {
    let home = Home::new();
    std::fs::write(home.config(), "").unwrap();
    assert!(home.fails(7, &["run"]).contains("run culvert-server init"));

    // The right comes first: without it, nothing said about the gateway would be worth anything.
    for home in [home, Home::with_gateway()] {
        for command in ["run", "cleanup"] {
            let output = Command::new("setpriv")
                .args(["--bounding-set", "-net_admin", "--inh-caps", "-all", "--"])
                .arg(env!("CARGO_BIN_EXE_culvert-server"))
                .args(home.place())
                .arg(command)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(8), "{command}: {}", text(&output.stderr));
            assert!(text(&output.stderr).contains("CAP_NET_ADMIN"), "{command}");
        }
    }
}

#[test]
fn init_says_when_clients_dial_another_port_than_the_gateway_listens_on() {
    let home = Home::new();
    let output = home.command(&["init", "--endpoint", "vpn.example.org:4433"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(
        text(&output.stderr),
        "note: clients will dial UDP 4433, the gateway listens on 443: forward the port or set \
         listen.address = \"[::]:4433\"\n"
    );
    let same = Home::new();
    let output = same.command(&["init", "--endpoint", "vpn.example.org:443"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn what_root_does_to_another_users_gateway_stays_usable_for_that_user() {
    if !rustix::process::geteuid().is_root() {
        return; // only root acts for others
    }
    let home = Home::new();
    let state = home.folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(4711), Some(4711)).unwrap();
    std::fs::set_permissions(home.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let out = home.folder.path().join("anna.invite");
    home.ok(&["init", "--endpoint", "vpn.example.org", "--invite", "anna"]);
    // A reader that stays keeps SQLite's log and index in place, as a running gateway does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let registry = runtime.block_on(SqliteRegistry::open(&state.join("gateway/registry.sqlite"))).unwrap();
    for file in ["registry.sqlite-wal", "registry.sqlite-shm"] {
        std::fs::metadata(state.join("gateway").join(file)).expect("the trap is set");
    }
    home.ok(&["invite", "ben"]);
    home.ok(&["invite", "cleo", "--out", out.to_str().unwrap()]);
    home.ok(&["devices", "list"]);
    let owner = |path: &Path| std::fs::symlink_metadata(path).unwrap().uid();
    let mut folders = vec![state.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(owner(&path), 4711, "{}", path.display());
            folders.extend(path.is_dir().then_some(path));
        }
    }
    assert_eq!((owner(&out), owner(&home.config())), (0, 0), "what the command line names is the caller's");
    let told = home.fails(8, &["run"]);
    assert!(told.contains("systemctl start culvert-server"), "{told}");
    runtime.block_on(registry.close());
}

#[test]
fn a_gateway_makes_itself_on_an_empty_volume_and_nowhere_else() {
    let home = Home::new();
    let state = home.folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    // Root of a mount namespace of its own and nothing more: the gateway is made, and does not run.
    let run = |volume: bool, name: &str| {
        let mount = if volume { "mount --bind $0 $0 && exec \"$@\"" } else { "exec \"$@\"" };
        let output = Command::new("unshare")
            .args(["--map-root-user", "--mount", "--net", "--", "sh", "-c", mount])
            .arg(&state)
            .args(["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-all", "--"])
            .arg(env!("CARGO_BIN_EXE_culvert-server"))
            .args(home.place())
            .args(["run", "--init"])
            .env("CULVERT_SERVER_ENDPOINT__NAME", name)
            .output()
            .unwrap();
        (output.status.code(), text(&output.stderr))
    };
    std::fs::write(home.config(), "").unwrap();
    let (code, told) = run(true, "");
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("CULVERT_SERVER_ENDPOINT__NAME"), "{told}");
    std::fs::write(state.join("someone-elses"), "").unwrap();
    let (code, told) = run(true, "vpn.example.org");
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("(someone-elses) but no gateway"), "{told}");
    std::fs::remove_file(state.join("someone-elses")).unwrap();
    // Where temporary folders are a file system of their own, that is a volume.
    if device(home.folder.path()) == device(Path::new("/")) {
        let (code, told) = run(false, "vpn.example.org");
        assert_eq!(code, Some(2), "{told}");
        assert!(told.contains("is no volume, so a gateway made here would be lost"), "{told}");
    }
    assert!(!state.join("gateway").exists(), "nothing was made so far");

    let (code, told) = run(true, "vpn.example.org");
    assert_eq!(code, Some(8), "{told}");
    assert!(told.contains("initialised") && !told.contains("culvert://"), "no secret in a log: {told}");
    let pin = home.json(&["init", "--json"])["ca_pin"].clone();
    let (code, told) = run(true, "vpn.example.org");
    assert_eq!(code, Some(8), "{told}");
    assert!(!told.contains("initialised"), "{told}");
    assert_eq!(home.json(&["init", "--json"])["ca_pin"], pin, "a second start makes no other gateway");
    assert_eq!(std::fs::read_to_string(home.config()).unwrap(), "", "no configuration is written");
}

#[test]
fn packages_get_completions_and_a_page_for_every_command() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.ok(&["completions", shell]).contains("check-config"), "{shell}");
    }
    home.ok(&["man", home.folder.path().to_str().unwrap()]);
    for page in ["culvert-server.8", "culvert-server-init.8", "culvert-server-devices-list.8"] {
        let text = std::fs::read_to_string(home.folder.path().join(page)).unwrap();
        assert!(text.contains(".SH NAME"), "{page}");
    }
}

fn device(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().dev()
}

//! `mdm-profile`, as Python's plistlib reads it, which is not what wrote it.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod home;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use culvert_helper::managed::{DOMAIN, Decided};
use culvert_protocol::{Managed, MenuItem, UpdatePolicy};
use culvert_tunnel::invitation::Invitation;
use home::{Home, text};
use serde_json::{Value, json};

const ACME: [&str; 5] = ["mdm-profile", "--org", "Acme <&> Söhne", "--team-id", "ABCDE12345"];

#[test]
fn a_profile_enrols_a_fleet_with_the_settings_that_are_locked() {
    let home = a_gateway();
    let told = home.ok(&with(&[
        "--uses",
        "200",
        "--expires",
        "30d",
        "--connect-at-launch",
        "on",
        "--allow-lan",
        "off",
        "--hide-menu-items",
        "quit,settings",
        "--support-url",
        "https://help.example.org/?a=b&c=d",
        "--update-policy",
        "off",
    ]));
    let profile = read(&told);
    assert_eq!((&profile["PayloadType"], &profile["PayloadVersion"]), (&json!("Configuration"), &json!(1)));
    assert_eq!(profile["PayloadScope"], "System", "managed login items work for the whole machine only");
    let [preferences, services, notifications] = payloads(&profile);
    assert_eq!(preferences["PayloadType"], "net.culvert.app");
    assert_eq!(preferences["organization"], "Acme <&> Söhne");
    assert_eq!(preferences["gateway"], "vpn.example.org:443");
    assert_eq!((&preferences["connectAtLaunch"], &preferences["allowLAN"]), (&json!(true), &json!(false)));
    assert_eq!(preferences["hideMenuItems"], json!(["quit", "settings"]));
    assert_eq!(preferences["supportURL"], "https://help.example.org/?a=b&c=d");
    assert_eq!(preferences["updatePolicy"], "off");
    assert_eq!((&preferences["lockdown"], &preferences["startAtLogin"]), (&Value::Null, &Value::Null));
    let invitation: Invitation = preferences["invitation"].as_str().unwrap().parse().unwrap();
    assert_eq!((invitation.user.as_str(), invitation.endpoints), ("mdm", vec!["vpn.example.org:443".to_owned()]));
    let kept = home.json(&["invites", "list", "--json"]);
    assert_eq!((&kept["invitations"][0]["uses_allowed"], &kept["invitations"][1]), (&json!(200), &Value::Null));
    assert_eq!(services["PayloadType"], "com.apple.servicemanagement");
    let rule = json!([{"RuleType": "TeamIdentifier", "RuleValue": "ABCDE12345", "Comment": "Culvert"}]);
    assert_eq!(services["Rules"], rule);
    assert_eq!(notifications["PayloadType"], "com.apple.notificationsettings");
    assert_eq!(notifications["NotificationSettings"][0]["BundleIdentifier"], "net.culvert.app");
}

#[test]
fn the_helper_reads_every_key_that_the_command_writes() {
    let home = a_gateway();
    let all = [
        "--uses",
        "2",
        "--connect-at-launch",
        "on",
        "--start-at-login",
        "off",
        "--lockdown",
        "on",
        "--allow-lan",
        "off",
    ];
    let more = ["--support-url", "mailto:help@example.org", "--hide-menu-items", "gateways,diagnose,settings,quit"];
    for (word, policy) in
        [("automatic", UpdatePolicy::Automatic), ("ask", UpdatePolicy::Ask), ("off", UpdatePolicy::Off)]
    {
        let told = home.ok(&with(&[&all[..], &more, &["--update-policy", word]].concat()));
        let decided = Decided::parse(told.as_bytes());
        let expected = Managed {
            organization: Some("Acme <&> Söhne".into()),
            lockdown: Some(true),
            allow_lan: Some(false),
            connect_at_launch: Some(true),
            start_at_login: Some(false),
            support_url: Some("mailto:help@example.org".into()),
            update_policy: Some(policy),
            hide_menu_items: vec![MenuItem::Gateways, MenuItem::Diagnose, MenuItem::Settings, MenuItem::Quit],
        };
        assert_eq!((decided.managed.as_ref(), &decided.damage), (Some(&expected), &vec![]));
        let preferences = &read(&told)["PayloadContent"][0];
        assert_eq!(preferences["PayloadType"], DOMAIN);
        assert_eq!(preferences["invitation"], decided.invitation.unwrap().expose());
        // Beside these eight, the invitation and the gateway that it names, the payload has Apple's own keys only.
        let keys = preferences.as_object().unwrap().keys();
        assert_eq!(keys.filter(|key| !key.starts_with("Payload")).count(), 10, "{preferences}");
    }
    let none = Decided::parse(home.ok(&with(&["--no-invitation"])).as_bytes());
    assert_eq!((none.invitation, none.damage), (None, vec![]));
    assert_eq!(none.managed.unwrap().locked(), []);
}

#[test]
fn a_later_profile_takes_the_place_of_the_earlier_one() {
    let home = a_gateway();
    let names = |told: &str| {
        let profile = read(told);
        let parts: Vec<Value> = std::iter::once(&profile)
            .chain(profile["PayloadContent"].as_array().unwrap())
            .map(|payload| json!([payload["PayloadIdentifier"], payload["PayloadUUID"]]))
            .collect();
        parts
    };
    let first = names(&home.ok(&with(&["--uses", "1"])));
    assert_eq!(first.len(), 4);
    assert_eq!(names(&home.ok(&with(&["--no-invitation", "--lockdown", "on"]))), first);
    assert_ne!(names(&a_gateway().ok(&with(&["--no-invitation"]))), first, "another gateway's stands beside it");
}

#[test]
fn a_file_with_an_invitation_is_for_its_maker_alone_and_none_is_overwritten() {
    let home = a_gateway();
    let path = home.folder.path().join("acme.mobileconfig");
    let output = path.to_str().unwrap();
    let told = home.ok(&with(&["--uses", "3", "--output", output]));
    assert!(told.starts_with(&format!("The profile is in {output}; whoever has it may enrol 3 devices")), "{told}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let before = std::fs::read_to_string(&path).unwrap();
    assert!(read(&before)["PayloadContent"][0]["invitation"].is_string());
    let refused = home.fails(1, &with(&["--uses", "3", "--output", output]));
    assert_eq!(refused, format!("error: {output} exists already; nothing was changed\n"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    assert_eq!(home.json(&["invites", "list", "--json"])["invitations"].as_array().unwrap().len(), 1);
    let open = home.folder.path().join("open.mobileconfig");
    home.ok(&with(&["--no-invitation", "--output", open.to_str().unwrap()]));
    assert_eq!(std::fs::metadata(&open).unwrap().permissions().mode() & 0o044, 0o044);
}

#[test]
fn wrong_input_is_refused_and_makes_no_invitation() {
    let home = a_gateway();
    let long = "x".repeat(65);
    for (arguments, said) in [
        (&["mdm-profile", "--org", "Acme"][..], "--uses <N>"),
        (&["mdm-profile", "--org", "Acme", "--uses", "5"], "--team-id ID"),
        (&["mdm-profile", "--org", "", "--team-id", "ABCDE12345", "--uses", "5"], "1 to 64 printable characters"),
        (&["mdm-profile", "--org", &long, "--team-id", "ABCDE12345", "--uses", "5"], "1 to 64 printable characters"),
        (&["mdm-profile", "--org", "Acme", "--team-id", "abc", "--uses", "5"], "ten digits and capital letters"),
        (&with(&["--uses", "0"]), "1..=10000"),
        (&with(&["--uses", "5", "--expires", "soon"]), "write it like 30m, 24h or 7d"),
        (&with(&["--uses", "5", "--support-url", "http://help.example.org"]), "https://help.example.org"),
        (&with(&["--uses", "5", "--lockdown", "perhaps"]), "[possible values: on, off]"),
        (&with(&["--uses", "5", "--hide-menu-items", "everything"]), "gateways, diagnose, settings, quit"),
        (&with(&["--no-invitation", "--uses", "5"]), "cannot be used with"),
    ] {
        let told = home.fails(2, arguments);
        assert!(told.contains(said), "{arguments:?}: {told}");
    }
    let told = home.fails(1, &with(&["--uses", "201"]));
    assert!(told.contains("mdm may have 200 devices, not 201; write [policy.mdm] devices = 201"), "{told}");
    assert!(home.json(&["invites", "list", "--json"])["invitations"].as_array().unwrap().is_empty());
    let empty = Home::new();
    std::fs::write(empty.config(), "").unwrap();
    empty.fails(7, &with(&["--uses", "5"]));
}

fn a_gateway() -> Home {
    let home = Home::with_gateway();
    let mut config = std::fs::read_to_string(home.config()).unwrap();
    config.push_str("\n[policy.mdm]\ndevices = 200\n");
    std::fs::write(home.config(), config).unwrap();
    home
}

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&ACME[..], more].concat()
}

fn payloads(profile: &Value) -> [&Value; 3] {
    let content: Vec<&Value> = profile["PayloadContent"].as_array().unwrap().iter().collect();
    content.try_into().unwrap()
}

/// What Python makes of it.
fn read(profile: &str) -> Value {
    let script = "import json, plistlib, sys; print(json.dumps(plistlib.loads(sys.stdin.buffer.read())))";
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(profile.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{profile}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

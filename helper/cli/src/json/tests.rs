use super::*;
use culvert_protocol::{
    Blocking, Certificate, Check, CheckId, Diagnosis, Dropped, Finding, Gateway, KillSwitch, LogLevel, Managed,
    MenuItem, Path, Problem, Protection, Settings, State, Status, Step, Timestamp, Traffic, UpdatePolicy, code,
};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The files that packages install, and what each is about.
fn schemas() -> Vec<(&'static str, &'static str, Schema)> {
    vec![
        ("status", "culvert status --json, and the first line of culvert watch --json", schema::<Status>()),
        ("watch", "each line of culvert watch --json after the first", schema::<ChangeLine>()),
        ("doctor", "culvert doctor --json", schema::<Diagnosis>()),
        ("logs", "each line of culvert logs --json", schema::<LogsLine>()),
        ("profiles", "culvert profiles list --json", schema::<Numbered<Profiles>>()),
        ("settings", "culvert settings list --json", schema::<SettingsList>()),
        ("speedtest", "culvert speedtest --json", schema::<Numbered<Speed>>()),
        ("version", "culvert version --json", schema::<Numbered<Version>>()),
    ]
}

fn schema<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
}

#[test]
fn the_shipped_schemas_are_those_of_the_types() {
    for (name, about, schema) in schemas() {
        let mut schema = schema.to_value();
        schema["title"] = json!(about);
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        let path = file(name);
        if std::env::var_os("CULVERT_WRITE_SCHEMAS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let shipped = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            shipped == text,
            "{} is not what the types say; write it with CULVERT_WRITE_SCHEMAS=1 cargo test -p culvert-cli, and see \
             that fields were only added",
            path.display()
        );
    }
}

#[test]
fn what_is_printed_fits_its_schema() {
    for state in states() {
        fits("status", &status(state.clone()));
        fits("watch", &ChangeLine::new(Change { at: Timestamp::UNIX_EPOCH, profile: Some("acme".into()), state }));
    }
    let fail = Finding::fail(code::NO_ANSWER, "No answer", "Try another network").inferred();
    let found = vec![Check { check: CheckId::Reach, finding: fail }];
    fits("doctor", &Diagnosis::of(Timestamp::UNIX_EPOCH, 1, found, "well"));
    let line =
        LogLine { seq: 1, at: Timestamp::UNIX_EPOCH, level: LogLevel::Warn, target: "a".into(), text: "b".into() };
    fits("logs", &LogsLine::new(line));
    for certificate_until in [None, Some(Timestamp::UNIX_EPOCH)] {
        let profile = ProfileFacts {
            name: "acme".into(),
            gateway: "Acme".into(),
            endpoints: vec!["vpn.acme.org:443".into()],
            device: "laptop".into(),
            user: "anna".into(),
            certificate_until,
            is_default: true,
            device_id: "0a".into(),
            sealed: true,
        };
        fits("profiles", &Numbered::new(Profiles { profiles: vec![profile] }));
    }
    for kill_switch in KillSwitch::ALL {
        let settings = Settings { kill_switch, ..Settings::default() };
        fits("settings", &SettingsList::new(SettingsInForce { settings, ..SettingsInForce::default() }));
    }
    let managed = Managed {
        organization: Some("Acme".into()),
        lockdown: Some(true),
        allow_lan: Some(false),
        connect_at_launch: Some(true),
        start_at_login: Some(true),
        support_url: Some("https://help.example.org".into()),
        update_policy: Some(UpdatePolicy::Ask),
        hide_menu_items: vec![MenuItem::Quit],
    };
    let settings = managed.applied_to(Settings::default());
    fits(
        "settings",
        &SettingsList::new(SettingsInForce { settings, locked: managed.locked(), managed: Some(managed) }),
    );
    let speed = Speed {
        gateway: "Acme".into(),
        down_bits_per_second: 4.1e8,
        up_bits_per_second: 9.8e7,
        rtt_ms: 23.0,
        loaded_rtt_ms: 41.0,
        seconds: 5,
    };
    fits("speedtest", &Numbered::new(speed));
    for helper in [None, Some("0.1.0".to_owned())] {
        fits("version", &Numbered::new(Version::new(helper)));
    }
}

#[test]
fn what_is_wrong_fits_no_schema() {
    let validator = validator("status");
    let good = serde_json::to_value(status(State::Disconnected)).unwrap();
    assert!(validator.is_valid(&good));
    for (field, wrong) in [("state", json!("dreaming")), ("schema", json!("one")), ("helper", json!(null))] {
        let mut bad = good.clone();
        bad[field] = wrong;
        assert!(!validator.is_valid(&bad), "{bad}");
    }
}

/// Valid, and without a field that the schema does not name.
fn fits<T: Serialize>(name: &str, value: &T) {
    let value = serde_json::to_value(value).unwrap();
    assert_eq!(value["schema"], json!(1), "{name}");
    let errors: Vec<String> = validator(name).iter_errors(&value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{name}: {errors:?} in {value}");
}

/// The shipped schema, closed: a field that it does not name is an error here, though not for those who read it.
fn validator(name: &str) -> jsonschema::Validator {
    let text = std::fs::read_to_string(file(name)).unwrap();
    let mut schema: Value = serde_json::from_str(&text).unwrap();
    schema["unevaluatedProperties"] = json!(false);
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas").join(format!("{name}.json"))
}

fn states() -> Vec<State> {
    let problem = Problem::new(code::NO_ANSWER);
    let at = Timestamp::UNIX_EPOCH;
    vec![
        State::NotEnrolled,
        State::Disconnected,
        State::Connecting { step: Step::Handshake },
        State::Connected { since: at },
        State::Reconnecting { cause: problem.clone(), attempt: 2, next_at: Some(at) },
        State::Reconnecting { cause: problem.clone(), attempt: 2, next_at: None },
        State::Offline,
        State::PortalSignIn { page: "http://login.hotel.example/".into(), open_until: None },
        State::PortalSignIn { page: "http://login.hotel.example/".into(), open_until: Some(at) },
        State::Blocked { cause: problem.clone() },
        State::Failed { problem },
        State::Disconnecting,
        State::Paused,
    ]
}

fn status(state: State) -> Status {
    let is_up = state.is_connected();
    let on = |there: bool| there.then_some(());
    Status {
        schema: SCHEMA,
        state,
        profile: Some("acme".into()),
        gateway: Some(Gateway {
            name: "Acme".into(),
            endpoint: "vpn.acme.org:443".into(),
            remote: on(is_up).map(|()| "203.0.113.7:443".parse().unwrap()),
            seen_as: on(is_up).map(|()| "[2001:db8::1]:40000".parse().unwrap()),
            inner: on(is_up).map(|()| "100.77.3.1".parse().unwrap()),
        }),
        addresses: on(is_up).map(|()| vec!["100.77.3.9".parse().unwrap()]).unwrap_or_default(),
        interface: on(is_up).map(|()| "culvert0".into()),
        protection: on(is_up).map(|()| Protection { ipv4: true, ipv6: true, dns: true, kill_switch: true }),
        kill_switch: Some(Blocking { mode: KillSwitch::Auto, in_force: true, allow_lan: true }),
        path: on(is_up).map(|()| Path {
            rtt_ms: 23.0,
            loss_percent: 0.5,
            mtu_bytes: 1380,
            path_mtu_bytes: 1413,
            black_holes: 0,
        }),
        traffic: on(is_up).map(|()| Traffic {
            received_bytes: u64::MAX,
            dropped: Dropped { sent: [("too_big".to_owned(), 2)].into(), ..Dropped::default() },
            ..Traffic::default()
        }),
        certificate: Some(Certificate { device: "laptop".into(), until: Timestamp::UNIX_EPOCH }),
        notes: vec!["a note".into()],
        helper: "0.1.0".into(),
    }
}

//! The real helper on a real socket: what it answers, whom it serves, and that no caller can hurt it.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic as its body does")]
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use culvert_helper::profile::{Profile, Profiles};
use culvert_protocol::{
    Answer, Ask, Client, ClientError, Code, Event, FrameReader, KillSwitch, LogLevel, MAX_FRAME, Request, SettingName,
    SettingsChange, SettingsInForce, State, code, decode, encode,
};
use culvert_tunnel::identity::{Authority, Credential, DeviceId, DeviceKey, Pin};
use culvert_tunnel::invitation::{Invitation, InvitationId, Secret};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::timeout;

#[tokio::test]
async fn a_fresh_helper_says_that_it_is_not_set_up_and_what_to_do() {
    let helper = Helper::start();
    let mut client = helper.client().await;
    let Event::Status(status) = client.request(Request::Status).await.unwrap() else { panic!() };
    assert_eq!(status.state, State::NotEnrolled);
    let refused = refusal(client.request(Request::Connect { profile: None, key: None }).await);
    assert_eq!(refused, code::NOT_ENROLLED);
    let refused =
        refusal(client.request(Request::Connect { profile: Some("../../etc/shadow".into()), key: None }).await);
    assert_eq!(refused, code::NOT_ENROLLED);
    let done = client.request(Request::Disconnect { unblock: false }).await.unwrap();
    assert_eq!(done, Event::Done { changed: false });
    assert!(matches!(client.request(Request::Version).await.unwrap(), Event::Version { version: 1, .. }));
}

#[tokio::test]
async fn a_bad_invitation_gets_a_sentence_and_leaves_everything_as_it_was() {
    let helper = Helper::start_with(&[profile("Acme", "127.0.0.1:9")]);
    let mut client = helper.client().await;
    for text in ["", "hello", "culvert://enrol#AAAA", "culvert1 zzzz"] {
        let enrol = Request::Enrol { invitation: text.into(), device_name: None };
        assert_eq!(refusal(client.request(enrol).await), code::INVITATION, "{text:?}");
    }
    let Event::Status(status) = client.request(Request::Status).await.unwrap() else { panic!() };
    assert_eq!((status.state, status.profile.as_deref()), (State::Disconnected, Some("acme")));
}

#[tokio::test]
async fn a_gateway_that_does_not_answer_is_named_and_disconnect_ends_the_attempts() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    let helper = Helper::start_with(&[profile("Acme", &endpoint)]);
    let mut client = helper.client().await;
    let Event::Status(status) = client.request(Request::Watch).await.unwrap() else { panic!() };
    assert_eq!(status.state, State::Disconnected);
    let mut other = helper.client().await;
    let done = other.request(Request::Connect { profile: None, key: None }).await.unwrap();
    assert_eq!(done, Event::Done { changed: true });
    let cause = loop {
        match next_state(&mut client).await {
            State::Connecting { .. } => {}
            State::Reconnecting { cause, attempt: 1, .. } => break cause,
            state => panic!("{state:?}"),
        }
    };
    assert_eq!(cause.code, code::NO_ANSWER);
    assert!(cause.cause.contains(&endpoint), "{cause}");
    assert_eq!(other.request(Request::Disconnect { unblock: false }).await.unwrap(), Event::Done { changed: true });
    while next_state(&mut client).await != State::Disconnected {}
    assert_eq!(other.request(Request::Disconnect { unblock: false }).await.unwrap(), Event::Done { changed: false });
}

#[tokio::test]
async fn an_enrolment_without_an_answer_names_the_gateway() {
    let helper = Helper::start();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    let invitation = Invitation {
        endpoints: vec![endpoint.clone()],
        pin: Pin::from_bytes([7; 32]),
        id: InvitationId::generate().unwrap(),
        secret: Secret::generate().unwrap(),
        expires: u64::MAX / 2,
        gateway: "Acme".into(),
        user: "anna".into(),
    };
    let mut client = helper.client().await;
    let enrol = Request::Enrol { invitation: invitation.to_link(), device_name: None };
    let Err(ClientError::Refused(problem)) = client.request(enrol).await else { panic!() };
    assert_eq!(problem.code, code::NO_ANSWER);
    assert!(problem.cause.contains(&endpoint), "{problem}");
}

#[tokio::test]
async fn an_unknown_profile_is_told_with_those_that_exist() {
    let helper = Helper::start_with(&[profile("Acme", "127.0.0.1:9")]);
    let mut client = helper.client().await;
    let asked = client.request(Request::Connect { profile: Some("home".into()), key: None }).await;
    let Err(ClientError::Refused(problem)) = asked else { panic!() };
    assert_eq!(problem.code, code::NO_PROFILE);
    assert!(problem.to_string().contains("home") && problem.to_string().contains("acme"), "{problem}");
}

#[tokio::test]
async fn garbage_is_answered_with_a_sentence_and_harms_nobody() {
    let helper = Helper::start();
    let oversized = (MAX_FRAME as u32 + 1).to_be_bytes().to_vec();
    let unknown = frame_of(br#"{"id":1,"request":{"type":"run_command","command":"id"}}"#);
    let no_hello = encode(&Ask { id: 1, request: Request::Status }).unwrap();
    for bytes in [oversized, unknown, no_hello, frame_of(b"\xff\xfe"), frame_of(b"")] {
        let told = helper.say(&bytes);
        assert!(matches!(&told[..], [Event::Error(problem)] if problem.code == code::BAD_REQUEST), "{told:?}");
    }
    helper.client().await;
}

#[tokio::test]
async fn a_caller_of_another_version_learns_what_the_helper_is_and_its_state_and_nothing_else() {
    let helper = Helper::start();
    let requests = [
        Request::Hello { version: 99, client: "a newer app".into(), nonce: None },
        Request::Version,
        Request::Status,
        Request::Connect { profile: None, key: None },
        Request::Status,
    ];
    let asks = requests.into_iter().enumerate().map(|(id, request)| encode(&Ask { id: id as u32, request }).unwrap());
    let told = helper.say_and_hear(&asks.collect::<Vec<_>>().concat(), 5);
    assert!(
        matches!(&told[..], [
            Event::Hello { version: 1, .. },
            Event::Version { version: 1, .. },
            Event::Status(_),
            Event::Error(problem),
            Event::Status(_),
        ] if problem.code == code::HELPER_VERSION),
        "{told:?}"
    );
}

#[tokio::test]
async fn the_log_is_told_and_followed() {
    let helper = Helper::start_with(&[profile("Acme", "127.0.0.1:9")]);
    let mut client = helper.client().await;
    let logs = |after, follow| Request::Logs { after, level: LogLevel::Info, follow };
    let Event::Logs { lines, more: false } = client.request(logs(None, true)).await.unwrap() else { panic!() };
    assert!(lines.iter().any(|line| line.text.starts_with("ready")), "{lines:?}");
    let last = lines.last().unwrap().seq;
    let Event::Logs { lines, .. } = client.request(logs(Some(last), true)).await.unwrap() else { panic!() };
    assert!(lines.is_empty(), "{lines:?}");
    client.request(Request::Set(SettingsChange { allow_lan: Some(false), ..SettingsChange::default() })).await.unwrap();
    let told = timeout(Duration::from_secs(5), client.next_event()).await.expect("a line comes").unwrap();
    let Event::Logs { lines, .. } = told else { panic!("{told:?}") };
    assert!(lines[0].text.contains("allow_lan=false") && lines[0].seq > last, "{lines:?}");
}

#[tokio::test]
async fn what_the_administrator_decides_is_in_force_at_once_and_no_user_changes_it() {
    let helper = Helper::start();
    let mut client = helper.client().await;
    let allow_lan = |is| Request::Set(SettingsChange { allow_lan: Some(is), ..SettingsChange::default() });
    client.request(allow_lan(true)).await.unwrap();
    let decide = |body: &str| {
        let file = helper.dir.path().join("managed.mobileconfig");
        let text = format!("<plist version=\"1.0\"><dict>{body}</dict></plist>");
        std::fs::write(helper.dir.path().join("new"), text).unwrap();
        std::fs::set_permissions(helper.dir.path().join("new"), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::rename(helper.dir.path().join("new"), file).unwrap();
    };
    decide("<key>organization</key><string>Acme</string><key>allowLAN</key><false/><key>lockdown</key><false/>");
    let now = settings_until(&mut client, |now| now.managed.is_some()).await;
    assert_eq!((now.settings.allow_lan, &now.locked[..]), (false, &[SettingName::AllowLan][..]));
    let lockdown = SettingsChange { kill_switch: Some(KillSwitch::Lockdown), ..SettingsChange::default() };
    for against in [allow_lan(true), Request::Set(lockdown)] {
        let Err(ClientError::Refused(problem)) = client.request(against).await else { panic!() };
        assert_eq!(problem.code, code::MANAGED);
        assert!(problem.cause.starts_with("Managed by Acme: "), "{problem}");
    }
    client.request(allow_lan(false)).await.expect("what is so may be set");
    decide("<key>allowLAN</key><string>no</string>");
    let now = settings_until(&mut client, |now| now.locked.is_empty()).await;
    assert!(!now.settings.allow_lan, "chosen above");
    let Event::Status(status) = client.request(Request::Status).await.unwrap() else { panic!() };
    assert!(status.notes.iter().any(|note| note.contains("allowLAN") && note.contains("E425")), "{:?}", status.notes);
    std::fs::remove_file(helper.dir.path().join("managed.mobileconfig")).unwrap();
    settings_until(&mut client, |now| now.managed.is_none()).await;
    client.request(allow_lan(true)).await.unwrap();
}

async fn settings_until(client: &mut Client, is_so: impl Fn(&SettingsInForce) -> bool) -> SettingsInForce {
    let look = async {
        loop {
            let Event::Settings(now) = client.request(Request::Settings).await.unwrap() else { panic!() };
            if is_so(&now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(5), look).await.expect("the file is heard of")
}

#[tokio::test]
async fn a_caller_that_stops_in_the_middle_of_a_frame_is_hung_up_on() {
    let helper = Helper::start();
    let began = Instant::now();
    let told = helper.say(&[0, 0]);
    assert!(matches!(&told[..], [Event::Error(_)]), "{told:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_ninth_caller_is_told_that_the_helper_is_busy_and_a_free_place_is_used_again() {
    let helper = Helper::start();
    let mut callers = Vec::new();
    for _ in 0..8 {
        callers.push(helper.client().await);
    }
    let ninth = Client::connect(&helper.socket, "test").await;
    assert!(matches!(&ninth, Err(ClientError::Refused(problem)) if problem.code == code::BUSY), "{ninth:?}");
    callers.pop();
    let again = async {
        while Client::connect(&helper.socket, "test").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(5), again).await.expect("the place is free again");
}

#[tokio::test]
async fn a_thousand_callers_leave_no_descriptor_behind() {
    let helper = Helper::start();
    helper.client().await;
    let before = helper.descriptors();
    for _ in 0..1000 {
        drop(UnixStream::connect(&helper.socket).unwrap());
    }
    let settled = async {
        while helper.descriptors() > before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), settled).await.expect("descriptors are given back");
    let served = async { while Client::connect(&helper.socket, "test").await.is_err() {} };
    timeout(Duration::from_secs(5), served).await.expect("callers are served");
}

#[test]
fn another_user_may_look_and_is_refused_the_rest_with_a_sentence_unless_allowed() {
    assert!(rustix::process::geteuid().is_root(), "taking another user's place needs root");
    let helper = Helper::start();
    assert_eq!(std::fs::metadata(&helper.socket).unwrap().permissions().mode() & 0o777, 0o666);
    let asks = |requests: &[Request]| {
        let ask = |request: &Request| encode(&Ask { id: 1, request: request.clone() }).unwrap();
        [hello(), requests.iter().map(ask).collect::<Vec<_>>().concat()].concat()
    };
    let changing = [
        Request::Connect { profile: None, key: None },
        Request::Disconnect { unblock: true },
        Request::Profiles,
        Request::Settings,
        Request::Set(SettingsChange::default()),
        Request::Enrol { invitation: String::new(), device_name: None },
        Request::Logs { after: None, level: LogLevel::Info, follow: false },
        Request::Doctor,
        Request::Forget { keep_identity: true },
    ];
    let told = as_user(65_534, || helper.say_and_hear(&asks(&changing), 10));
    assert!(matches!(&told[0], Event::Hello { .. }), "{told:?}");
    for event in &told[1..] {
        assert!(matches!(event, Event::Error(problem) if problem.code == code::FORBIDDEN), "{event:?}");
    }
    let told = as_user(65_534, || helper.say_and_hear(&asks(&[Request::Watch]), 2));
    assert!(matches!(&told[1], Event::Status(_)), "{told:?}");
    let told = as_user(12_345, || helper.say_and_hear(&asks(&[Request::Settings]), 2)); // allowed on the command line
    assert!(matches!(&told[1], Event::Settings(_)), "{told:?}");
}

#[tokio::test]
async fn users_who_may_only_look_cannot_take_every_place() {
    assert!(rustix::process::geteuid().is_root(), "taking another user's place needs root");
    let helper = Helper::start();
    let looking: Vec<UnixStream> = as_user(65_534, || {
        let open = |_| {
            let mut stream = UnixStream::connect(&helper.socket).unwrap();
            stream.write_all(&hello()).unwrap();
            stream
        };
        (0..20).map(open).collect()
    });
    let served = async { while Client::connect(&helper.socket, "test").await.is_err() {} };
    timeout(Duration::from_secs(5), served).await.expect("an owner is served");
    drop(looking);
}

#[tokio::test]
async fn a_second_helper_steps_back_and_a_dead_ones_socket_is_taken_over() {
    let mut helper = Helper::start();
    let second = helper.command().output().unwrap();
    let words = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && words.contains("another helper listens"), "{words}");
    helper.client().await;
    helper.child.kill().unwrap();
    helper.child.wait().unwrap();
    assert!(helper.socket.exists());
    helper.restart();
    helper.client().await;
}

#[tokio::test]
async fn a_stopped_helper_takes_its_socket_with_it() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut helper = Helper::start();
        kill_process(Pid::from_child(&helper.child), signal).unwrap();
        assert!(helper.child.wait().unwrap().success(), "{signal:?}");
        assert!(!helper.socket.exists(), "{signal:?}");
    }
}

#[tokio::test]
async fn a_service_managers_socket_is_served_and_left_to_it_and_it_is_told_of_start_and_end() {
    let mut helper = Helper::start();
    helper.stop();
    let path = helper.dir.path().join("manager.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let manager = UnixDatagram::bind(helper.dir.path().join("notify.sock")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut early = UnixStream::connect(&path).unwrap();
    early.write_all(&hello()).unwrap(); // nobody serves it yet

    let plain = helper.command();
    // sd_listen_fds(3): descriptor 3, meant for the process with this id.
    let hand_over = r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", hand_over, "sh"]).arg(plain.get_program()).args(plain.get_args());
    command.stdin(OwnedFd::from(listener.try_clone().unwrap()));
    command.env("NOTIFY_SOCKET", helper.dir.path().join("notify.sock"));
    helper.child = ready(command);

    assert_eq!(told(&manager), "READY=1");
    assert_eq!(told(&manager), "STATUS=not enrolled");
    early.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut heard = vec![0; 4096];
    let count = early.read(&mut heard).unwrap();
    assert!(matches!(&events(&heard[..count])[..], [Event::Hello { .. }]), "a question from before the start");
    Client::connect(&path, "test").await.unwrap();
    assert!(!helper.socket.exists(), "it listens nowhere else");

    helper.stop();
    assert_eq!(told(&manager), "STOPPING=1");
    assert!(path.exists(), "the socket is the service manager's");
    UnixStream::connect(&path).expect("and who asks now waits for the next helper");
}

#[tokio::test]
async fn a_socket_that_was_meant_for_another_process_is_left_alone() {
    let mut helper = Helper::start();
    helper.stop();
    let mut command = helper.command();
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    helper.child = ready(command);
    helper.client().await;
}

#[tokio::test]
async fn a_damaged_profile_is_an_error_with_a_name_and_not_the_end() {
    let helper = Helper::start_with(&[profile("Acme", "127.0.0.1:9")]);
    std::fs::write(helper.dir.path().join("state/profiles/acme.json"), "{").unwrap();
    let mut client = helper.client().await;
    assert_eq!(refusal(client.request(Request::Connect { profile: None, key: None }).await), code::DISK);
    assert!(matches!(client.request(Request::Status).await.unwrap(), Event::Status(_)));
}

/// A helper of this test's own, with its own socket and state.
struct Helper {
    dir: TempDir,
    socket: PathBuf,
    child: Child,
}

impl Helper {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(profiles: &[Profile]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let socket = dir.path().join("run/helper.sock");
        std::fs::create_dir(dir.path().join("state")).unwrap();
        for profile in profiles {
            Profiles::open(&dir.path().join("state")).unwrap().keep(profile.clone()).unwrap();
        }
        // These tests have no network of their own to cut off.
        std::fs::write(dir.path().join("state/settings.json"), r#"{"kill_switch": "off"}"#).unwrap();
        let child = ready(Self::command_in(dir.path()));
        Self { dir, socket, child }
    }

    fn restart(&mut self) {
        self.child = ready(self.command());
    }

    fn stop(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    fn command(&self) -> Command {
        Self::command_in(self.dir.path())
    }

    fn command_in(dir: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-helper"));
        command.arg("run").arg("--socket").arg(dir.join("run/helper.sock")).arg("--state-dir").arg(dir.join("state"));
        command.arg("--managed").arg(dir.join("managed.mobileconfig"));
        command.args(["--allow-uid", "12345", "--device-name", "cvtest0"]);
        command
    }

    async fn client(&self) -> Client {
        Client::connect(&self.socket, "test").await.unwrap()
    }

    /// Sends bytes, and hears what the helper says until it hangs up.
    fn say(&self, bytes: &[u8]) -> Vec<Event> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        let _ = stream.write_all(bytes); // refused callers may be hung up on before they speak
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        events(&heard)
    }

    /// Sends bytes, and hears so many events.
    fn say_and_hear(&self, bytes: &[u8], count: usize) -> Vec<Event> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut heard = Vec::new();
        let mut chunk = vec![0; 4096];
        while events(&heard).len() < count {
            let read = stream.read(&mut chunk).unwrap();
            assert!(read > 0, "hung up after {:?}", events(&heard));
            heard.extend_from_slice(&chunk[..read]);
        }
        events(&heard)
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a helper and waits until it listens.
fn ready(mut command: Command) -> Child {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut seen = String::new();
    loop {
        let Some(Ok(line)) = lines.next() else { panic!("the helper ended: {seen}") };
        if line.contains("ready") {
            break;
        }
        seen.push_str(&line);
    }
    std::thread::spawn(move || lines.for_each(drop)); // so that its log never blocks it
    child
}

/// What a helper has told the service manager, one message at a time (sd_notify(3)).
fn told(manager: &UnixDatagram) -> String {
    let mut words = [0; 512];
    let count = manager.recv(&mut words).expect("the service manager is told");
    String::from_utf8_lossy(&words[..count]).trim().to_owned()
}

async fn next_state(client: &mut Client) -> State {
    loop {
        let event = timeout(Duration::from_secs(15), client.next_event()).await.expect("a change comes").unwrap();
        if let Event::Change(change) = event {
            return change.state;
        }
    }
}

fn refusal(answer: Result<Event, ClientError>) -> Code {
    let Err(ClientError::Refused(problem)) = answer else { panic!("{answer:?}") };
    assert!(!problem.cause.is_empty() && !problem.hint.is_empty(), "{problem}");
    problem.code
}

fn events(bytes: &[u8]) -> Vec<Event> {
    let mut reader = FrameReader::default();
    reader.push(bytes);
    let mut events = Vec::new();
    while let Some(frame) = reader.next_frame().unwrap() {
        events.push(decode::<Answer>(&frame).unwrap().event);
    }
    events
}

fn frame_of(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes(), payload].concat()
}

fn hello() -> Vec<u8> {
    encode(&Ask { id: 1, request: Request::Hello { version: 1, client: "test".into(), nonce: None } }).unwrap()
}

/// Runs `act` as another user, on a thread that ends with it.
fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    let run = || {
        let uid = rustix::process::Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        act()
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap()
}

fn profile(gateway: &str, endpoint: &str) -> Profile {
    let now = std::time::SystemTime::now();
    let authority = Authority::create(gateway, now).unwrap();
    let (key, device_id) = (DeviceKey::generate().unwrap(), DeviceId::generate().unwrap());
    let issued = authority.issue_device(&key.csr("test").unwrap(), device_id, now).unwrap();
    let credential = Credential::new(vec![issued.der.into(), authority.certificate_der().clone()], key).unwrap();
    Profile {
        name: String::new(),
        gateway: gateway.into(),
        endpoints: vec![endpoint.into()],
        server_name: "127.0.0.1".into(),
        device_id,
        device_name: "test".into(),
        user: "anna".into(),
        chain_pem: credential.chain_pem(),
        key_pem: credential.key_pem().expose().into(),
        sealed: None,
        authorities_pem: String::new(),
        carried: None,
    }
}

//! Clients against the real gateway: the program itself, its own TUN, nftables and registry, in a
//! network namespace of each test's own. The client is a stock `quinn`.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod namespace;

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use culvert_tunnel::close::Close;
use culvert_tunnel::control::{self, FrameReader, FromClient, FromServer, Hello, Welcome};
use culvert_tunnel::enrol::{EnrolError, Enrollee, Enrolment, Step};
use culvert_tunnel::identity::{Authority, DeviceId, DeviceKey};
use culvert_tunnel::invitation::{Invitation, Secret};
use futures_util::TryStreamExt;
use namespace::in_a_namespace;
use nftables::helper::{DEFAULT_NFT, get_current_ruleset_with_args};
use nftables::schema::{NfListObject, NfObject};
use quinn::{ApplicationClose, Connection, ConnectionError, VarInt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[test]
fn a_device_enrols_keeps_its_address_and_carries_packets() {
    with_gateway("a_device_enrols_keeps_its_address_and_carries_packets", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let listed = gateway.json(&["devices", "list", "--json"]);
        assert_eq!(listed["devices"][0]["id"], device.enrolment.device_id.to_string());
        assert_eq!(listed["devices"][0]["user"], "anna");

        let session = gateway.session(&device).await.unwrap();
        assert_eq!(listed["devices"][0]["ipv4"], session.welcome.ipv4.to_string());
        assert!(session.welcome.ipv6.is_some());
        assert_eq!(ping(&session, session.welcome.gateway_ipv4).await, Some(session.welcome.gateway_ipv4));

        let sessions = gateway.json(&["sessions", "list", "--json"]);
        assert_eq!(sessions["sessions"][0]["device"], "laptop");
        assert_eq!(sessions["sessions"][0]["received_packets"], 1);
        assert_eq!(gateway.json(&["status", "--json"])["sessions"], 1);

        let address = session.welcome.ipv4;
        session.connection.close(VarInt::from_u32(0), b"");
        let again = gateway.session(&device).await.unwrap();
        assert_eq!(again.welcome.ipv4, address);
    });
}

#[test]
fn a_newer_session_of_the_same_device_replaces_the_older() {
    with_gateway("a_newer_session_of_the_same_device_replaces_the_older", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let older = gateway.session(&device).await.unwrap();
        let newer = gateway.session(&device).await.unwrap();
        assert_eq!(closed(&older.connection).await, Close::Replaced);
        assert_eq!(ping(&newer, newer.welcome.gateway_ipv4).await, Some(newer.welcome.gateway_ipv4));
        assert_eq!(gateway.json(&["sessions", "list", "--json"])["sessions"].as_array().unwrap().len(), 1);
    });
}

#[test]
fn every_bad_invitation_has_its_own_code() {
    with_gateway("every_bad_invitation_has_its_own_code", async |gateway| {
        let used = gateway.invite("anna");
        gateway.enrol(&used).await.unwrap();
        assert_eq!(refused(gateway.enrol(&used).await), Close::InviteUsed);

        let good = gateway.invite("anna");
        let mistyped = Invitation { secret: Secret::generate().unwrap(), ..good.clone() };
        assert_eq!(refused(gateway.enrol(&mistyped).await), Close::InviteProof);
        let foreign = Invitation { id: culvert_tunnel::invitation::InvitationId::generate().unwrap(), ..good.clone() };
        assert_eq!(refused(gateway.enrol(&foreign).await), Close::InviteForeign);

        let short = gateway.invite_with("anna", &["--expires", "1s"]);
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        assert_eq!(refused(gateway.enrol(&short).await), Close::InviteExpired);

        gateway.sql("UPDATE invitations SET cancelled_at = 1 WHERE uses = 0").await;
        assert_eq!(refused(gateway.enrol(&good).await), Close::InviteCancelled);
        assert_eq!(gateway.json(&["devices", "list", "--json"])["devices"].as_array().unwrap().len(), 1);
        let log = gateway.log();
        assert!(log.contains("event=enrol_failed src=127.0.0.1 port="), "{log}");
        assert!(log.contains("reason=invite_used validated=yes"), "{log}");
    });
}

#[test]
fn a_full_disk_refuses_an_enrolment_and_the_invitation_stays_good() {
    with_gateway("a_full_disk_refuses_an_enrolment_and_the_invitation_stays_good", async |gateway| {
        let invitation = gateway.invite("anna");
        let filler = gateway.folder.path().join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        assert_eq!(refused(gateway.enrol(&invitation).await), Close::Internal);
        assert!(gateway.fails(&["invite", "ben"]).contains("the disk that holds the registry is full"));
        drop(file);
        std::fs::remove_file(filler).unwrap();
        let device = gateway.enrol(&invitation).await.unwrap();
        gateway.session(&device).await.unwrap();
    });
}

#[test]
fn a_session_needs_a_certificate_that_the_registry_knows() {
    with_gateway("a_session_needs_a_certificate_that_the_registry_knows", async |gateway| {
        let nobody = gateway.connect(b"culvert/1", None).await.unwrap();
        assert_eq!(closed(&nobody).await, Close::NoCertificate);

        let authority = gateway.authority();
        let key = DeviceKey::generate().unwrap();
        let stranger = authority.issue_device(&key.csr("x").unwrap(), DeviceId::generate().unwrap(), SystemTime::now());
        let chain = vec![stranger.unwrap().der];
        let stranger = gateway.connect(b"culvert/1", Some((&chain, &key))).await.unwrap();
        assert_eq!(closed(&stranger).await, Close::UnknownDevice);

        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        gateway.sql("UPDATE devices SET revoked_at = 1800000000").await;
        let revoked = gateway.connect(b"culvert/1", Some((&device.enrolment.chain, &device.key))).await.unwrap();
        assert_eq!(closed(&revoked).await, Close::Revoked);

        let other = Authority::create("another CA", SystemTime::now()).unwrap();
        let forged = other.issue_device(&key.csr("x").unwrap(), DeviceId::generate().unwrap(), SystemTime::now());
        let forged = gateway.connect(b"culvert/1", Some((&vec![forged.unwrap().der], &key))).await;
        let told = match forged {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        };
        // TLS alert unknown_ca, as a QUIC transport error (RFC 9001 section 4.8).
        assert!(
            matches!(&told, ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == 0x130),
            "{told:?}"
        );
        let alpn = gateway.connect(b"h3", None).await.unwrap_err();
        assert!(
            matches!(&alpn, ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == 0x178),
            "{alpn:?}"
        );

        for reason in ["no_certificate", "unknown_device", "revoked", "unknown_ca"] {
            gateway.logs(&format!("reason={reason} validated=yes name=\"")).await;
        }
        let log = gateway.log();
        assert!(!log.contains("no_application_protocol"), "its address was not validated: {log}");
    });
}

#[test]
fn garbage_on_the_control_stream_is_answered_by_its_own_code() {
    with_gateway("garbage_on_the_control_stream_is_answered_by_its_own_code", async |gateway| {
        for (bytes, code) in [
            (&b"\0\0\0\x04junk"[..], Close::Malformed),
            (b"\xff\xff\xff\xff", Close::Oversized),
            (b"\0\0\0\x12{\"type\":\"goodbye\"}", Close::Unexpected),
        ] {
            let connection = gateway.connect(b"culvert-enrol/1", None).await.unwrap();
            let (mut send, _receive) = connection.open_bi().await.unwrap();
            send.write_all(bytes).await.unwrap();
            let expected = if code == Close::Unexpected { Close::Unexpected } else { code };
            assert_eq!(closed(&connection).await, expected, "{bytes:?}");
        }
    });
}

#[test]
fn a_session_that_floods_its_control_stream_is_ended_and_counted() {
    with_gateway("a_session_that_floods_its_control_stream_is_ended_and_counted", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let mut session = gateway.session(&device).await.unwrap();
        for _ in 0..10 {
            session.control.send(&FromClient::Path { mtu_bytes: 1400 }).await;
        }
        assert!(ping(&session, session.welcome.gateway_ipv4).await.is_some(), "a few are welcome");
        let frame = control::encode(&FromClient::Path { mtu_bytes: 1400 }).unwrap();
        while session.control.send.write_all(&frame).await.is_ok() {}
        assert_eq!(closed(&session.connection).await, Close::Unexpected);
        assert_eq!(gateway.json(&["status", "--json"])["ended"]["unexpected"], 1);
    });
}

#[test]
fn stopping_says_goodbye_and_leaves_the_host_as_it_was() {
    with_gateway("stopping_says_goodbye_and_leaves_the_host_as_it_was", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        assert_eq!(tables(), ["culvert_culv0"]);
        assert_eq!(forwarding(), "1");
        gateway.signal("-TERM");
        assert_eq!(closed(&session.connection).await, Close::Shutdown);
        assert!(gateway.wait().success());
        assert!(tables().is_empty());
        assert_eq!(forwarding(), "0");
        assert!(!gateway.folder.path().join("sock").exists());
        assert!(gateway.log().contains("event=session_close"));

        // A crash leaves everything; the next start undoes it first, and so does cleanup.
        gateway.start();
        gateway.signal("-KILL");
        gateway.wait();
        assert_eq!((tables().len(), forwarding()), (1, "1".into()));
        gateway.ok(&["cleanup"]);
        assert_eq!((tables().len(), forwarding()), (0, "0".into()));
        gateway.start();
        gateway.signal("-KILL");
        gateway.wait();
        gateway.start();
        assert_eq!((tables().len(), forwarding()), (1, "1".into()));
        gateway.signal("-INT");
        assert!(gateway.wait().success());
        assert_eq!((tables().len(), forwarding()), (0, "0".into()));
    });
}

#[test]
fn each_start_that_is_refused_says_what_repairs_it_and_changes_nothing() {
    with_gateway("each_start_that_is_refused_says_what_repairs_it_and_changes_nothing", async |gateway| {
        assert!(gateway.refuses(&[]).contains("another culvert-server uses"));
        gateway.signal("-TERM");
        gateway.wait();

        let taken = std::net::UdpSocket::bind(LISTEN).unwrap();
        assert!(gateway.refuses(&[]).contains("UDP port 4433 of 127.0.0.1:4433 is in use by another program"));
        drop(taken);
        let told = gateway.refuses(&[("CULVERT_SERVER_LISTEN__ADDRESS", "192.0.2.1:4433")]);
        assert!(told.contains("no interface of this host has the address 192.0.2.1"), "{told}");
        assert!(gateway.refuses(&[("PATH", "/nonexistent")]).contains("apt install nftables"));
        let told = gateway.refuses(&[("CULVERT_SERVER_TUNNEL__DEVICE", "lo")]);
        assert!(told.contains("lo"), "{told}");

        add_address("10.55.0.1/16").await;
        let told = gateway.refuses(&[("CULVERT_SERVER_NETWORK__IPV4", "10.55.7.0/24")]);
        assert!(told.contains("the inner network 10.55.7.0/24 overlaps 10.55.0.0/16"), "{told}");

        let hidden = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/dev/net"]).status().unwrap();
        assert!(hidden.success());
        assert!(gateway.refuses(&[]).contains("/dev/net/tun is missing"));
        assert!(tables().is_empty());
        assert_eq!(forwarding(), "0");
    });
}

#[test]
fn a_gateway_with_one_client_stays_under_30_megabytes() {
    with_gateway("a_gateway_with_one_client_stays_under_30_megabytes", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        for _ in 0..100 {
            ping(&session, session.welcome.gateway_ipv4).await;
        }
        let kilobytes = gateway.resident_kilobytes();
        assert!(kilobytes < 30_000, "{kilobytes} kB resident");
    });
}

const LISTEN: &str = "127.0.0.1:4433";

/// A gateway of this test, and the folder with everything that is its own.
struct Gateway {
    folder: tempfile::TempDir,
    child: std::sync::Mutex<Option<Child>>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// An enrolled device.
struct Device {
    key: DeviceKey,
    enrolment: Enrolment,
}

/// An open session.
struct Session {
    connection: Connection,
    welcome: Welcome,
    control: Talk,
}

fn with_gateway(test: &str, body: impl AsyncFnOnce(&Gateway)) {
    in_a_namespace(test, || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            add_address("127.0.0.1/8").await;
            let folder = tempfile::tempdir().unwrap();
            // A small disk of its own, so that a test can fill it.
            let disk =
                Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(folder.path()).status();
            assert!(disk.unwrap().success());
            let gateway = Gateway { folder, child: std::sync::Mutex::new(None) };
            gateway.ok(&["init", "--endpoint", LISTEN]);
            gateway.start();
            let outcome = tokio::time::timeout(Duration::from_secs(40), body(&gateway)).await;
            assert!(outcome.is_ok(), "took too long; log:\n{}", gateway.log());
        });
    });
}

impl Gateway {
    fn command(&self, arguments: &[&str]) -> Command {
        let path = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-server"));
        command
            .args([PathBuf::from("--config"), path("gw.toml"), "--state-dir".into(), path("state")])
            .args([PathBuf::from("--socket"), path("sock")])
            .args(arguments)
            .env("CULVERT_SERVER_LISTEN__ADDRESS", LISTEN)
            .env("CULVERT_SERVER_TUNNEL__DEVICE", "culv0")
            .env("CULVERT_SERVER_LOG__FORMAT", "text");
        command
    }

    fn start(&self) {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let child = self.command(&["run"]).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        *self.child.lock().unwrap() = Some(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.run(&["status"]).status.success() {
            assert!(Instant::now() < deadline, "it did not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Standard error of a `run` that must end at once with an error.
    fn refuses(&self, environment: &[(&str, &str)]) -> String {
        let output = self.command(&["run"]).envs(environment.iter().copied()).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        let errors: Vec<&str> = told.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "one sentence: {told}");
        errors[0].to_owned()
    }

    fn run(&self, arguments: &[&str]) -> std::process::Output {
        self.command(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of a command that must fail.
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    fn invite(&self, user: &str) -> Invitation {
        self.invite_with(user, &[])
    }

    fn invite_with(&self, user: &str, more: &[&str]) -> Invitation {
        let arguments: Vec<&str> = ["invite", user, "--json"].iter().chain(more).copied().collect();
        self.json(&arguments)["invitation"].as_str().unwrap().parse().unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Waits for `text` in the log: a client may hear of its refusal first.
    async fn logs(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "{text}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn authority(&self) -> Authority {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join("state/gateway").join(name)).unwrap();
        Authority::load(&read("ca.pem"), &read("ca.key")).unwrap()
    }

    async fn sql(&self, statement: &'static str) {
        let path = self.folder.path().join("state/gateway/registry.sqlite");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
        sqlx::query(statement).execute(&pool).await.unwrap();
        pool.close().await;
    }

    fn pid(&self) -> u32 {
        self.child.lock().unwrap().as_ref().unwrap().id()
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap().success());
    }

    fn wait(&self) -> std::process::ExitStatus {
        self.child.lock().unwrap().take().unwrap().wait().unwrap()
    }

    fn resident_kilobytes(&self) -> u64 {
        let mut status = String::new();
        let path = format!("/proc/{}/status", self.pid());
        std::fs::File::open(path).unwrap().read_to_string(&mut status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    async fn connect(
        &self,
        alpn: &[u8],
        identity: Option<(&Vec<Vec<u8>>, &DeviceKey)>,
    ) -> Result<Connection, ConnectionError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority().certificate_der().clone()).unwrap();
        let builder =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(roots);
        let mut tls = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
                let key = PrivateKeyDer::from_pem_slice(key.to_pem().expose().as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        endpoint.connect(LISTEN.parse::<SocketAddr>().unwrap(), "127.0.0.1").unwrap().await
    }

    async fn enrol(&self, invitation: &Invitation) -> Result<Device, EnrolError> {
        let connection = self.connect(b"culvert-enrol/1", None).await.unwrap();
        let mut exporter = [0; 32];
        connection.export_keying_material(&mut exporter, b"EXPORTER-culvert/1", b"").unwrap();
        let key = DeviceKey::generate().unwrap();
        let (mut enrollee, begin) = Enrollee::start(invitation, &key, "laptop", "linux", exporter).unwrap();
        let mut talk = Talk::open(&connection).await;
        talk.send(&begin).await;
        loop {
            match enrollee.on_message(talk.receive().await)? {
                Step::Send(message) => talk.send(&message).await,
                Step::Done(enrolment) => {
                    connection.close(VarInt::from_u32(Close::Goodbye.code()), b"");
                    return Ok(Device { key, enrolment });
                }
            }
        }
    }

    async fn session(&self, device: &Device) -> Result<Session, ConnectionError> {
        let connection = self.connect(b"culvert/1", Some((&device.enrolment.chain, &device.key))).await?;
        let mut control = Talk::open(&connection).await;
        let hello = Hello { version: control::VERSION, client: "test".into(), platform: "linux".into() };
        control.send(&FromClient::Hello(hello)).await;
        match control.receive().await {
            FromServer::Welcome(welcome) => Ok(Session { connection, welcome, control }),
            other => panic!("{other:?}"),
        }
    }
}

/// Frames on one stream.
struct Talk {
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    frames: FrameReader,
}

impl Talk {
    async fn open(connection: &Connection) -> Self {
        let (send, receive) = connection.open_bi().await.unwrap();
        Self { send, receive, frames: FrameReader::default() }
    }

    async fn send(&mut self, message: &impl Serialize) {
        self.send.write_all(&control::encode(message).unwrap()).await.unwrap();
    }

    async fn receive<M: DeserializeOwned>(&mut self) -> M {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return control::decode(&frame).unwrap();
            }
            let chunk = self.receive.read_chunk(4096, true).await.unwrap().expect("the stream is open");
            self.frames.push(&chunk.bytes);
        }
    }
}

fn refused(outcome: Result<Device, EnrolError>) -> Close {
    match outcome {
        Err(EnrolError::Refused(refused)) => refused.close(),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was enrolled"),
    }
}

async fn closed(connection: &Connection) -> Close {
    match tokio::time::timeout(Duration::from_secs(15), connection.closed()).await.expect("it is closed") {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) => {
            Close::from_code(error_code.into_inner()).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

/// Sends one ICMP echo request through the tunnel; returns who answered it within a second.
async fn ping(session: &Session, target: Ipv4Addr) -> Option<Ipv4Addr> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0];
    packet.extend(session.welcome.ipv4.octets());
    packet.extend(target.octets());
    packet.extend([8, 0, 0, 0, 0, 7, 0, 1]);
    let ip = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&ip);
    let icmp = checksum(&packet[20..]);
    packet[22..24].copy_from_slice(&icmp);
    session.connection.send_datagram(packet.into()).unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(1), async {
        loop {
            let answer = session.connection.read_datagram().await.unwrap();
            if answer.len() == 28 && answer[0] == 0x45 && answer[20] == 0 {
                return Ipv4Addr::new(answer[12], answer[13], answer[14], answer[15]);
            }
        }
    });
    answer.await.ok()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

/// Sets the loopback interface up and gives it an address.
async fn add_address(network: &str) {
    let network: ipnet::IpNet = network.parse().unwrap();
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let lo = handle.link().get().match_name("lo").execute().try_next().await.unwrap().unwrap();
    let up = rtnetlink::LinkUnspec::new_with_index(lo.header.index).up().build();
    handle.link().set(up).execute().await.unwrap();
    handle.address().add(lo.header.index, network.addr(), network.prefix_len()).replace().execute().await.unwrap();
}

fn forwarding() -> String {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim().to_owned()
}

fn tables() -> Vec<String> {
    let listed = get_current_ruleset_with_args(DEFAULT_NFT, ["list", "tables"]).unwrap();
    let table = |object: &NfObject<'_>| match object {
        NfObject::ListObject(NfListObject::Table(table)) => Some(table.name.to_string()),
        _ => None,
    };
    listed.objects.iter().filter_map(table).collect()
}

//! A gateway of a test's own, in a network namespace of its own, and a client that is a stock `quinn`.

#![allow(dead_code, reason = "each test program uses a part")]

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_tunnel::close::Close;
use culvert_tunnel::control::{self, FrameReader, FromClient, FromServer, Hello, Welcome};
use culvert_tunnel::enrol::{EnrolError, Enrollee, Enrolment, Step};
use culvert_tunnel::identity::{Authority, DeviceKey, Pin};
use culvert_tunnel::invitation::Invitation;
use futures_util::TryStreamExt;
use quinn::{ApplicationClose, Connection, ConnectionError, VarInt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::namespace::in_a_namespace;

pub const LISTEN: &str = "127.0.0.1:4433";

/// A gateway of this test, and the folder with everything that is its own.
pub struct Gateway {
    pub folder: tempfile::TempDir,
    pub child: std::sync::Mutex<Option<Child>>,
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
pub struct Device {
    pub key: DeviceKey,
    pub enrolment: Enrolment,
}

/// An open session.
pub struct Session {
    pub connection: Connection,
    pub welcome: Welcome,
    pub control: Talk,
}

pub fn with_gateway(test: &str, body: impl AsyncFnOnce(&Gateway)) {
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
    pub fn command(&self, arguments: &[&str]) -> Command {
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

    pub fn start(&self) {
        self.start_with(&[]);
    }

    /// Starts it with these variables besides.
    pub fn start_with(&self, environment: &[(&str, &str)]) {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = self.command(&["run"]);
        let child = command.envs(environment.iter().copied()).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        *self.child.lock().unwrap() = Some(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.run(&["status"]).status.success() {
            assert!(Instant::now() < deadline, "it did not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Standard error of a `run` that must end at once with an error.
    pub fn refuses(&self, environment: &[(&str, &str)]) -> String {
        let output = self.command(&["run"]).envs(environment.iter().copied()).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        let errors: Vec<&str> = told.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "one sentence: {told}");
        errors[0].to_owned()
    }

    pub fn run(&self, arguments: &[&str]) -> std::process::Output {
        self.command(arguments).output().unwrap()
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of a command that must fail.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    pub fn invite(&self, user: &str) -> Invitation {
        self.invite_with(user, &[])
    }

    pub fn invite_with(&self, user: &str, more: &[&str]) -> Invitation {
        let arguments: Vec<&str> = ["invite", user, "--json"].iter().chain(more).copied().collect();
        self.json(&arguments)["invitation"].as_str().unwrap().parse().unwrap()
    }

    /// What the administrator lays over the file of `init`; a running gateway has not read it yet.
    pub fn write_config(&self, text: &str) {
        let folder = self.folder.path().join("gw.d");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("test.toml"), text).unwrap();
    }

    pub fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Waits for `text` in the log: a client may hear of its refusal first.
    pub async fn logs(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "{text}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn authority(&self) -> Authority {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join("state/gateway").join(name)).unwrap();
        Authority::load(&read("ca.pem"), &read("ca.key")).unwrap()
    }

    pub async fn sql(&self, statement: &'static str) {
        let path = self.folder.path().join("state/gateway/registry.sqlite");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
        sqlx::query(statement).execute(&pool).await.unwrap();
        pool.close().await;
    }

    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap().success());
    }

    pub fn wait(&self) -> std::process::ExitStatus {
        self.child.lock().unwrap().take().unwrap().wait().unwrap()
    }

    /// Memory of its own; the program's pages, three times as many unoptimised, are not in it (`scripts/bench`
    /// measures the whole of an optimised one).
    pub fn anonymous_kilobytes(&self) -> u64 {
        let mut status = String::new();
        let path = format!("/proc/{}/status", self.pid());
        std::fs::File::open(path).unwrap().read_to_string(&mut status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub async fn connect(
        &self,
        alpn: &[u8],
        identity: Option<(&Vec<Vec<u8>>, &DeviceKey)>,
    ) -> Result<Connection, ConnectionError> {
        dial(&self.endpoint(Ipv4Addr::LOCALHOST, alpn, identity), "127.0.0.1").await
    }

    /// As [`Self::connect`] for enrolment, to a gateway that must show a certificate for this name.
    pub async fn connect_to(
        &self,
        name: &str,
        identity: Option<(&Vec<Vec<u8>>, &DeviceKey)>,
    ) -> Result<Connection, ConnectionError> {
        dial(&self.endpoint(Ipv4Addr::LOCALHOST, b"culvert-enrol/1", identity), name).await
    }

    /// Where connections from this address of the loopback network begin.
    pub fn endpoint(
        &self,
        from: Ipv4Addr,
        alpn: &[u8],
        identity: Option<(&Vec<Vec<u8>>, &DeviceKey)>,
    ) -> quinn::Endpoint {
        self.endpoint_trusting(self.authority().certificate_der().clone(), from, alpn, identity)
    }

    /// The same of a client that trusts another authority than the gateway's present one.
    pub fn endpoint_trusting(
        &self,
        authority: CertificateDer<'static>,
        from: Ipv4Addr,
        alpn: &[u8],
        identity: Option<(&Vec<Vec<u8>>, &DeviceKey)>,
    ) -> quinn::Endpoint {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority).unwrap();
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
        let mut endpoint = quinn::Endpoint::client(SocketAddr::new(from.into(), 0)).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        endpoint
    }

    pub async fn enrol(&self, invitation: &Invitation) -> Result<Device, EnrolError> {
        let connection = self.connect(b"culvert-enrol/1", None).await.unwrap();
        self.enrol_over(&connection, invitation, "laptop").await
    }

    pub async fn enrol_over(
        &self,
        connection: &Connection,
        invitation: &Invitation,
        name: &str,
    ) -> Result<Device, EnrolError> {
        let mut exporter = [0; 32];
        connection.export_keying_material(&mut exporter, b"EXPORTER-culvert/1", b"").unwrap();
        let key = DeviceKey::generate().unwrap();
        let (mut enrollee, begin) = Enrollee::start(invitation, &key, name, "linux", exporter).unwrap();
        let mut talk = Talk::open(connection).await;
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

    pub async fn session(&self, device: &Device) -> Result<Session, ConnectionError> {
        self.session_trusting(device, vec![]).await
    }

    /// As [`Self::session`], of a client that can change the authorities that it trusts.
    pub async fn session_trusting(&self, device: &Device, authorities: Vec<Pin>) -> Result<Session, ConnectionError> {
        let connection = self.connect(b"culvert/1", Some((&device.enrolment.chain, &device.key))).await?;
        let mut control = Talk::open(&connection).await;
        let hello = Hello { version: control::VERSION, client: "test".into(), platform: "linux".into(), authorities };
        control.send(&FromClient::Hello(hello)).await;
        match control.receive().await {
            FromServer::Welcome(welcome) => Ok(Session { connection, welcome, control }),
            other => panic!("{other:?}"),
        }
    }
}

/// A connection to the gateway, which must show a certificate for this name.
pub fn dial(endpoint: &quinn::Endpoint, name: &str) -> quinn::Connecting {
    endpoint.connect(LISTEN.parse().unwrap(), name).unwrap()
}

/// Frames on one stream.
pub struct Talk {
    pub send: quinn::SendStream,
    pub receive: quinn::RecvStream,
    pub frames: FrameReader,
}

impl Talk {
    pub async fn open(connection: &Connection) -> Self {
        let (send, receive) = connection.open_bi().await.unwrap();
        Self { send, receive, frames: FrameReader::default() }
    }

    pub async fn send(&mut self, message: &impl Serialize) {
        self.send.write_all(&control::encode(message).unwrap()).await.unwrap();
    }

    pub async fn receive<M: DeserializeOwned>(&mut self) -> M {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return control::decode(&frame).unwrap();
            }
            let chunk = self.receive.read_chunk(4096, true).await.unwrap().expect("the stream is open");
            self.frames.push(&chunk.bytes);
        }
    }
}

pub fn refused(outcome: Result<Device, EnrolError>) -> Close {
    match outcome {
        Err(EnrolError::Refused(refused)) => refused.close(),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was enrolled"),
    }
}

pub async fn closed(connection: &Connection) -> Close {
    match tokio::time::timeout(Duration::from_secs(15), connection.closed()).await.expect("it is closed") {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) => {
            Close::from_code(error_code.into_inner()).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

/// Sends one ICMP echo request through the tunnel; returns who answered it within a second.
pub async fn ping(session: &Session, target: Ipv4Addr) -> Option<Ipv4Addr> {
    let packet = echo_request(session.welcome.ipv4, target);
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

/// An ICMP echo request of 28 bytes.
pub fn echo_request(source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0];
    packet.extend(source.octets());
    packet.extend(target.octets());
    packet.extend([8, 0, 0, 0, 0, 7, 0, 1]);
    let ip = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&ip);
    let icmp = checksum(&packet[20..]);
    packet[22..24].copy_from_slice(&icmp);
    packet
}

/// RFC 1071.
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

/// Sets the loopback interface up and gives it an address.
pub async fn add_address(network: &str) {
    let network: ipnet::IpNet = network.parse().unwrap();
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let lo = handle.link().get().match_name("lo").execute().try_next().await.unwrap().unwrap();
    let up = rtnetlink::LinkUnspec::new_with_index(lo.header.index).up().build();
    handle.link().set(up).execute().await.unwrap();
    handle.address().add(lo.header.index, network.addr(), network.prefix_len()).replace().execute().await.unwrap();
}

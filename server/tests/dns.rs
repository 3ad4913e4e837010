//! The resolver for clients, with real sockets on loopback and name servers that the tests play themselves.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use culvert_server::addresses::Pool;
use culvert_server::config::{Config, Flags, Named};
use culvert_server::dns::{Counters, Forwarder, Running, Snapshot};
use culvert_server::registry::sqlite::SqliteRegistry;
use culvert_server::settings::Settings;
use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

#[tokio::test]
async fn an_answer_comes_from_upstream_once_and_then_from_the_cache() {
    let upstream = Upstream::start("127.0.1.1").await;
    let gateway = Gateway::start(&format!("[dns]\nupstream = [\"{}\"]\n", upstream.address)).await;
    for _ in 0..3 {
        assert_eq!(gateway.ask("www.example.").await.data(), ["192.0.2.1"]);
    }
    assert_eq!(upstream.asked(), ["www.example."]);
    let Snapshot { queries, cached, refused, .. } = gateway.counters.snapshot();
    assert_eq!((queries, cached, refused), (3, 2, 0));
}

#[tokio::test]
async fn a_zones_names_go_to_its_server_and_to_nobody_else_when_it_is_gone() {
    let (upstream, zone) = (Upstream::start("127.0.1.1").await, Upstream::start("127.0.1.2").await);
    let gone = SocketAddr::from(([127, 0, 1, 3], zone.address.port()));
    let gateway = Gateway::start(&format!(
        "[dns]\nupstream = [\"{}\"]\nzones = [\"corp.example={}\", \"gone.example={gone}\"]\n",
        upstream.address, zone.address
    ))
    .await;
    assert_eq!(gateway.ask("db.corp.example.").await.data(), ["192.0.2.1"]);
    assert_eq!(gateway.ask("www.example.").await.data(), ["192.0.2.1"]);
    // Every one of them, also when nobody waits for the server any more.
    for number in 0..8 {
        let answer = gateway.ask(&format!("n{number}.gone.example.")).await;
        assert_eq!(answer.0.response_code, ResponseCode::ServFail);
    }
    assert_eq!((zone.asked(), upstream.asked()), (vec!["db.corp.example.".into()], vec!["www.example.".into()]));
    assert_eq!(gateway.counters.snapshot().upstream_failures, 8);
}

#[tokio::test]
async fn names_without_meaning_outside_are_answered_here() {
    let upstream = Upstream::start("127.0.1.1").await;
    let gateway = Gateway::start(&format!("[dns]\nupstream = [\"{}\"]\n", upstream.address)).await;
    assert_eq!(gateway.ask("x.localhost.").await.data(), ["127.0.0.1"]);
    assert_eq!(gateway.ask("gateway.internal.").await.data(), ["127.0.0.1"]);
    for name in ["printer.local.", "x.onion.", "1.0.0.10.in-addr.arpa.", "nobody.internal.", "9.0.0.127.in-addr.arpa."]
    {
        assert_eq!(gateway.ask(name).await.0.response_code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(upstream.asked(), [] as [String; 0]);
    assert_eq!(gateway.counters.snapshot().local, 7);
}

#[tokio::test]
async fn other_settings_are_in_force_for_the_next_question_and_what_was_learnt_is_forgotten() {
    let (before, after, zone) =
        (Upstream::start("127.0.1.1").await, Upstream::start("127.0.1.2").await, Upstream::start("127.0.1.3").await);
    let gateway = Gateway::start(&format!("[dns]\nupstream = [\"{}\"]\n", before.address)).await;
    for name in ["www.example.", "db.corp.example."] {
        gateway.ask(name).await;
    }
    let text = format!("[dns]\nupstream = [\"{}\"]\nzones = [\"corp.example={}\"]\n", after.address, zone.address);
    gateway.change(&text).await;
    for name in ["www.example.", "db.corp.example."] {
        assert_eq!(gateway.ask(name).await.data(), ["192.0.2.1"]);
    }
    assert_eq!(before.asked(), ["db.corp.example.", "www.example."]);
    assert_eq!((after.asked(), zone.asked()), (vec!["www.example.".into()], vec!["db.corp.example.".into()]));
    assert_eq!(gateway.counters.snapshot().queries, 4, "it goes on counting");
}

#[tokio::test]
async fn a_server_that_fails_does_not_spoil_the_answer_of_the_next() {
    let (broken, good) = (Upstream::start("127.0.1.1").await, Upstream::start("127.0.1.2").await);
    let gateway = Gateway::start(&format!("[dns]\nupstream = [\"{}\", \"{}\"]\n", broken.address, good.address)).await;
    assert_eq!(gateway.ask("refused-by-127.0.1.1.example.").await.data(), ["192.0.2.1"]);
    assert_eq!((broken.asked().len(), good.asked().len()), (1, 1));
}

#[tokio::test]
async fn an_answer_that_does_not_fit_comes_by_tcp_on_both_sides() {
    let upstream = Upstream::start("127.0.1.1").await;
    let gateway = Gateway::start(&format!("[dns]\nupstream = [\"{}\"]\n", upstream.address)).await;
    let cut = gateway.ask("large.example.").await;
    assert!(cut.0.truncation && cut.0.answers.is_empty());
    let whole = gateway.ask_by_tcp(&["large.example.", "www.example."]).await;
    assert_eq!(whole[0].0.answers.len(), 40);
    assert_eq!(whole[1].data(), ["192.0.2.1"], "a second question on the same connection");
}

#[tokio::test]
async fn signatures_are_passed_on_to_who_wants_them() {
    let upstream = Upstream::start("127.0.1.1").await;
    let gateway = Gateway::start(&format!("[dns]\nupstream = [\"{}\"]\n", upstream.address)).await;
    let plain = gateway.ask("signed.example.").await;
    assert_eq!(plain.kinds(), [RecordType::A]);
    let signed = gateway.ask_with("signed.example.", |message| {
        message.edns.get_or_insert_with(Edns::new).set_dnssec_ok(true);
    });
    let signed = signed.await;
    assert_eq!(signed.kinds(), [RecordType::A, RecordType::RRSIG]);
    assert!(signed.0.edns.as_ref().unwrap().flags().dnssec_ok && !signed.0.authentic_data);
}

#[tokio::test]
async fn only_clients_of_the_inner_networks_are_answered() {
    let gateway = Gateway::start("[dns]\nupstream = []\n").await;
    for outsider in ["127.0.9.9:0", "127.0.0.1:0"] {
        let socket = UdpSocket::bind(outsider).await.unwrap();
        socket.send_to(&question("gateway.internal.", |_| {}), gateway.udp).await.unwrap();
    }
    let stranger = TcpSocket::new_v4().unwrap();
    stranger.bind("127.0.9.9:0".parse().unwrap()).unwrap();
    let mut stranger = stranger.connect(gateway.tcp).await.unwrap();
    assert_eq!(stranger.read(&mut [0; 1]).await.unwrap_or(0), 0, "hung up on");
    // Asked after them, so they have been looked at by now.
    assert_eq!(gateway.ask("gateway.internal.").await.data(), ["127.0.0.1"]);
    let Snapshot { queries, refused, .. } = gateway.counters.snapshot();
    assert_eq!((queries, refused), (1, 3));
}

#[tokio::test]
async fn a_taken_port_is_an_error_and_no_half_of_a_resolver_is_left() {
    let first = Gateway::start("").await;
    let folder = tempfile::tempdir().unwrap();
    let (config, settings) = configured("", folder.path());
    let registry = SqliteRegistry::create(&folder.path().join("registry.sqlite"), &[]).await.unwrap();
    let port = first.udp.port();
    let second = Forwarder::bind(&config, &settings, registry, None, port, Path::new("/nonexistent"));
    assert_eq!(second.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

/// A resolver whose inner network is 127.0.0.0/24, where the gateway is 127.0.0.1 and the client 127.0.0.2.
struct Gateway {
    udp: SocketAddr,
    tcp: SocketAddr,
    counters: Arc<Counters>,
    running: Running<SqliteRegistry>,
    folder: tempfile::TempDir,
}

struct Told(Message);

impl Told {
    fn data(&self) -> Vec<String> {
        self.0.answers.iter().map(|record| record.data.to_string()).collect()
    }

    fn kinds(&self) -> Vec<RecordType> {
        self.0.answers.iter().map(Record::record_type).collect()
    }
}

impl Gateway {
    async fn start(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config, settings) = configured(text, folder.path());
        let registry = SqliteRegistry::create(&folder.path().join("registry.sqlite"), &[]).await.unwrap();
        let forwarder = Forwarder::bind(&config, &settings, registry, None, 0, Path::new("/nonexistent")).unwrap();
        let (udp, tcp) = forwarder.local_addresses().unwrap();
        let counters = forwarder.counters();
        Self { udp, tcp, counters, running: forwarder.start(), folder }
    }

    async fn change(&self, text: &str) {
        let (config, settings) = configured(text, self.folder.path());
        let registry = SqliteRegistry::open(&self.folder.path().join("registry.sqlite")).await.unwrap();
        self.running.change(&config, &settings, registry, Path::new("/nonexistent"));
    }

    async fn ask(&self, name: &str) -> Told {
        self.ask_with(name, |_| {}).await
    }

    async fn ask_with(&self, name: &str, change: impl Fn(&mut Message)) -> Told {
        let socket = UdpSocket::bind("127.0.0.2:0").await.unwrap();
        socket.send_to(&question(name, change), self.udp).await.unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).await.unwrap();
        Told(Message::from_vec(&buffer[..length]).unwrap())
    }

    async fn ask_by_tcp(&self, names: &[&str]) -> Vec<Told> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(self.tcp).await.unwrap();
        let mut told = Vec::new();
        for name in names {
            let question = question(name, |_| {});
            stream.write_u16(question.len() as u16).await.unwrap();
            stream.write_all(&question).await.unwrap();
            let mut bytes = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut bytes).await.unwrap();
            told.push(Told(Message::from_vec(&bytes).unwrap()));
        }
        told
    }
}

fn configured(text: &str, folder: &Path) -> (Config, Settings) {
    let path = folder.join("gateway.toml");
    std::fs::write(&path, text).unwrap();
    let flags = Flags { config: Some(path), ..Flags::default() };
    let config = Config::load(&flags, [], Named::MustExist).unwrap().config;
    let pool = Pool::new("127.0.0.0/24".parse().unwrap(), None);
    let settings = Settings::new(&config, "vpn.example".parse().unwrap(), pool);
    assert_eq!(settings.name_servers(&config.push.dns), [IpAddr::from([127, 0, 0, 1])], "which clients are told");
    (config, settings)
}

fn question(name: &str, change: impl Fn(&mut Message)) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    change(&mut message);
    message.to_vec().unwrap()
}

/// A name server that says 192.0.2.1 to everything, apart from names that ask for something special.
struct Upstream {
    address: SocketAddr,
    asked: Arc<Mutex<HashSet<String>>>,
}

impl Upstream {
    async fn start(address: &str) -> Self {
        let tcp = TcpListener::bind((address, 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let asked = Arc::<Mutex<HashSet<String>>>::default();
        let (by_udp, by_tcp) = (Arc::clone(&asked), Arc::clone(&asked));
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
                let reply = answered(&buffer[..length], address, &by_udp);
                let cut = if reply.answers.len() > 10 { reply.truncate() } else { reply };
                udp.send_to(&cut.to_vec().unwrap(), peer).await.unwrap();
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let asked = Arc::clone(&by_tcp);
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut bytes = vec![0; length.into()];
                        stream.read_exact(&mut bytes).await.unwrap();
                        let reply = answered(&bytes, address, &asked).to_vec().unwrap();
                        stream.write_u16(reply.len() as u16).await.unwrap();
                        stream.write_all(&reply).await.unwrap();
                    }
                });
            }
        });
        Self { address, asked }
    }

    /// Each name once, in the order of the alphabet.
    fn asked(&self) -> Vec<String> {
        let mut asked: Vec<String> = self.asked.lock().unwrap().iter().cloned().collect();
        asked.sort();
        asked
    }
}

fn answered(bytes: &[u8], own: SocketAddr, asked: &Mutex<HashSet<String>>) -> Message {
    let message = Message::from_vec(bytes).unwrap();
    let query = message.queries[0].clone();
    let name = query.name().clone();
    asked.lock().unwrap().insert(name.to_ascii());
    let mut reply = Message::new(message.id, MessageType::Response, OpCode::Query);
    reply.add_query(query);
    let text = name.to_ascii();
    if text.starts_with(&format!("refused-by-{}", own.ip())) {
        reply.metadata.response_code = ResponseCode::Refused;
        return reply;
    }
    if text.starts_with("large.") {
        let text = |number: u32| RData::TXT(TXT::new(vec![format!("{number:0>60}")]));
        reply.answers = (0..40).map(|number| Record::from_rdata(name.clone(), 60, text(number))).collect();
        return reply;
    }
    reply.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, 1))));
    let wants_signatures = message.edns.is_some_and(|edns| edns.flags().dnssec_ok);
    if text.starts_with("signed.") && wants_signatures {
        // Nobody looks into it, so any bytes will do.
        let signature = hickory_resolver::proto::rr::rdata::NULL::with(vec![7; 40]);
        let data = RData::Unknown { code: RecordType::RRSIG, rdata: signature };
        reply.add_answer(Record::from_rdata(name, 60, data));
    }
    reply
}

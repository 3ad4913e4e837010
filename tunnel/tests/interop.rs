//! The wire is plain QUIC v1 and RFC 9221: a stock quinn client and a stock quinn server against
//! our shard, over real UDP sockets on loopback.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use culvert_tunnel::banned::Banned;
use culvert_tunnel::control;
use culvert_tunnel::device::memory::{self, Host, MemoryDevice};
use culvert_tunnel::filter::Policy;
use culvert_tunnel::routing::Routing;
use culvert_tunnel::shard::cid::CidKey;
use culvert_tunnel::shard::engine::Role;
use culvert_tunnel::shard::mailbox::{Command, Event, Protocol};
use culvert_tunnel::shard::{RunningShard, ShardConfig, spawn};
use culvert_tunnel::socket::{self, SocketOptions};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::time::timeout;
use wire::{CLIENT, GATEWAY, Keys, ipv4, keys};

const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_stock_quinn_client_gets_a_session_through_our_gateway() {
    let keys = keys();
    let (mut gateway, host, address) = gateway(&keys);
    let mut tls =
        client_tls(&keys).with_client_auth_cert(keys.device_chain.clone(), keys.device_key.clone_key()).unwrap();
    tls.alpn_protocols = vec![Protocol::Session.alpn().to_vec()];
    let (_endpoint, connection) = dial(tls, address).await;

    let established = event(&mut gateway, |event| match event {
        Event::Established(established) => Some(established),
        _ => None,
    })
    .await;
    assert_eq!(established.protocol, Protocol::Session);
    assert_eq!(established.peer_chain[0], keys.device_chain[0]);
    let mut exporter = [0; 32];
    connection.export_keying_material(&mut exporter, b"EXPORTER-culvert/1", b"").unwrap();
    assert_eq!(established.exporter, exporter, "both ends hold the same exported value");

    // The control stream, both ways.
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&control::encode(&"hello").unwrap()).await.unwrap();
    let payload = event(&mut gateway, |event| match event {
        Event::Frame { payload, .. } => Some(payload),
        _ => None,
    })
    .await;
    assert_eq!(payload, b"\"hello\"");
    let frame = control::encode(&"welcome").unwrap();
    gateway.handle.send(Command::Send { link: established.link, frame: frame.clone() }).await.unwrap();
    let mut answer = vec![0; frame.len()];
    receive.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, frame);

    // Inner packets, both ways, once admitted.
    gateway.handle.send(Command::Admit { link: established.link, lease: CLIENT }).await.unwrap();
    let up = ipv4(CLIENT.ipv4, INTERNET, 1000, true);
    connection.send_datagram(up.clone().into()).unwrap();
    assert_eq!(host_receives(&host).await, up);
    let down = ipv4(INTERNET, CLIENT.ipv4, 1000, true);
    assert!(host.send(&down));
    assert_eq!(timeout(SOON, connection.read_datagram()).await.unwrap().unwrap(), down);

    // What is not ours never reaches the host.
    for stray in [ipv4(Ipv4Addr::new(10, 0, 0, 1), INTERNET, 100, true), vec![0x99; 40], vec![0x45; 3], vec![]] {
        connection.send_datagram(stray.into()).unwrap();
    }
    connection.send_datagram(up.clone().into()).unwrap();
    assert_eq!(host_receives(&host).await, up);
    let stats = gateway.handle.inspect().await.unwrap().links.pop().unwrap().1;
    let drops: Vec<_> = stats.dropped_in.by_reason().filter(|(_, count)| *count > 0).collect();
    assert_eq!(drops, [("malformed", 2), ("bad_source", 1), ("unknown_kind", 1)]);
    stop(gateway).await;
}

#[tokio::test]
async fn our_client_talks_to_a_stock_quinn_server() {
    let keys = keys();
    let (chain, key) = (keys.leaf.chain().to_vec(), keys.leaf.private_key());
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![Protocol::Session.alpn().to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let server = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = server.local_addr().unwrap();

    let (device, host) = memory::pair().unwrap();
    let socket = socket::bind("0.0.0.0:0".parse().unwrap(), SocketOptions::default()).unwrap();
    let config = ShardConfig { socket, device: Some(device), role: Role::Client, cids: CidKey::random() };
    let mut client = spawn(vec![config]).unwrap().pop().unwrap();
    let link = client.handle.dial(address, "127.0.0.1".into(), keys.client.clone()).await.unwrap();
    let connection = server.accept().await.unwrap().await.unwrap();
    event(&mut client, |event| matches!(event, Event::Established(_)).then_some(())).await;

    client.handle.send(Command::Send { link, frame: control::encode(&"hello").unwrap() }).await.unwrap();
    let (_send, mut receive) = timeout(SOON, connection.accept_bi()).await.unwrap().unwrap();
    let mut frame = [0; 11];
    receive.read_exact(&mut frame).await.unwrap();
    assert_eq!(&frame, b"\0\0\0\x07\"hello\"");

    client.handle.send(Command::Admit { link, lease: CLIENT }).await.unwrap();
    let up = ipv4(CLIENT.ipv4, INTERNET, 900, true);
    assert!(host.send(&up));
    let datagram = loop {
        let datagram = timeout(SOON, connection.read_datagram()).await.unwrap().unwrap();
        if datagram[0] >> 4 == 4 {
            break datagram;
        }
    };
    assert_eq!(datagram, up);
    let down = ipv4(GATEWAY.ipv4, CLIENT.ipv4, 900, true);
    connection.send_datagram(down.clone().into()).unwrap();
    assert_eq!(host_receives(&host).await, down);

    // The device follows the path, and the peer's own words come back as they were.
    assert!(host.mtu_bytes() >= 1280);
    connection.close(quinn::VarInt::from_u32(0x22), b"removed");
    let down = event(&mut client, |event| match event {
        Event::Closed { down, .. } => Some(down),
        _ => None,
    })
    .await;
    assert_eq!(down.word(), "revoked");
    stop(client).await;
}

#[tokio::test]
async fn a_certificate_of_another_ca_and_a_foreign_protocol_are_refused_by_tls() {
    let (ours, theirs) = (keys(), keys());
    let (mut gateway, _host, address) = gateway(&ours);
    let refused = |event| match event {
        Event::Closed { down, established: false, .. } => Some(down.word()),
        _ => None,
    };

    let mut tls =
        client_tls(&ours).with_client_auth_cert(theirs.device_chain.clone(), theirs.device_key.clone_key()).unwrap();
    tls.alpn_protocols = vec![Protocol::Session.alpn().to_vec()];
    let (_endpoint, connection) = dial(tls, address).await; // TLS 1.3: the client believes it is in
    let error = timeout(SOON, connection.closed()).await.unwrap();
    assert_eq!(tls_alert(&error), 51, "decrypt_error, the CAs having one name: {error}");
    assert_eq!(event(&mut gateway, refused).await, "unknown_ca");

    let mut tls = client_tls(&ours).with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let error = endpoint.connect_with(config, address, "127.0.0.1").unwrap().await.unwrap_err();
    assert_eq!(tls_alert(&error), 120, "no_application_protocol: {error}");
    assert_eq!(event(&mut gateway, refused).await, "no_application_protocol");
    stop(gateway).await;
}

#[tokio::test]
async fn our_client_refuses_a_gateway_of_another_ca_and_of_another_name() {
    let (ours, theirs) = (keys(), keys());
    let (gateway, _host, address) = gateway(&theirs);
    for (transport, name, alert) in [(&ours.client, "127.0.0.1", 51), (&theirs.client, "vpn.elsewhere.org", 42)] {
        let socket = socket::bind("0.0.0.0:0".parse().unwrap(), SocketOptions::default()).unwrap();
        let config = ShardConfig::<MemoryDevice> { socket, device: None, role: Role::Client, cids: CidKey::random() };
        let mut client = spawn(vec![config]).unwrap().pop().unwrap();
        client.handle.dial(address, name.into(), transport.clone()).await.unwrap();
        let down = event(&mut client, |event| match event {
            Event::Closed { down, .. } => Some(down),
            _ => None,
        })
        .await;
        assert_eq!(down, culvert_tunnel::close::Down::Tls { alert, local: true }, "{name}");
        assert_eq!(down.ecode().to_string(), "E201");
        assert!(down.is_verdict());
        stop(client).await;
    }
    stop(gateway).await;
}

/// Our gateway on a loopback port, with a device in memory.
fn gateway(keys: &Keys) -> (RunningShard<MemoryDevice>, Host, SocketAddr) {
    let (device, host) = memory::pair().unwrap();
    let socket = socket::bind("127.0.0.1:0".parse().unwrap(), SocketOptions::default()).unwrap();
    let address = socket.local_addr().unwrap();
    let policy = Policy {
        networks: vec!["100.77.3.0/24".parse().unwrap()],
        gateway: vec![GATEWAY.ipv4.into()],
        isolation: true,
    };
    let role = Role::Gateway {
        transport: keys.server.clone(),
        routing: Routing::default(),
        policy: Arc::new(policy),
        banned: Banned::default(),
    };
    let config = ShardConfig { socket, device: Some(device), role, cids: CidKey::random() };
    (spawn(vec![config]).unwrap().pop().unwrap(), host, address)
}

fn client_tls(keys: &Keys) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(keys.authority.certificate_der().clone()).unwrap();
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
}

async fn dial(tls: rustls::ClientConfig, address: SocketAddr) -> (quinn::Endpoint, quinn::Connection) {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let connection = endpoint.connect_with(config, address, "127.0.0.1").unwrap().await.unwrap();
    (endpoint, connection)
}

fn tls_alert(error: &quinn::ConnectionError) -> u64 {
    match error {
        quinn::ConnectionError::ConnectionClosed(close) => u64::from(close.error_code) - 0x100,
        other => panic!("not a TLS alert: {other}"),
    }
}

async fn event<T>(shard: &mut RunningShard<MemoryDevice>, pick: impl Fn(Event) -> Option<T>) -> T {
    let search = async {
        loop {
            let event = shard.events.recv().await.expect("the shard runs");
            if let Some(found) = pick(event) {
                return found;
            }
        }
    };
    timeout(SOON, search).await.expect("the event comes")
}

async fn host_receives(host: &Host) -> Vec<u8> {
    let search = async {
        loop {
            if let Some(packet) = host.receive() {
                return packet;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, search).await.expect("the packet comes")
}

async fn stop(shard: RunningShard<MemoryDevice>) {
    let stop = Command::Stop { code: culvert_tunnel::close::Close::Shutdown, reason: "the test is over".into() };
    shard.handle.send(stop).await.unwrap();
    tokio::task::spawn_blocking(move || shard.thread.join().unwrap()).await.unwrap();
}

//! A herd and a gateway's engine over the loopback interface; time is an argument where it decides.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use culvert_tunnel::banned::Banned;
use culvert_tunnel::control::{FromClient, Refused, Welcome};
use culvert_tunnel::filter::{Lease, Policy};
use culvert_tunnel::identity::{Authority, Credential, DeviceId, DeviceKey};
use culvert_tunnel::routing::Routing;
use culvert_tunnel::shard::cid::CidKey;
use culvert_tunnel::shard::engine::{Engine, Role};
use culvert_tunnel::transport::{ServerTransport, Tuning};

use super::*;

const CLIENTS: usize = 5;
const NAME: &str = "vpn.example";

#[test]
fn a_herd_is_served_and_after_a_power_cut_again() {
    let mut bench = Bench::new();
    bench.connect();
    bench.until(|herd| herd.count(Standing::Open) == CLIENTS);
    assert_eq!(bench.herd.outages.len(), CLIENTS);
    bench.herd.forget().unwrap();
    assert_eq!((bench.herd.count(Standing::Open), bench.herd.count(Standing::Dialling)), (0, CLIENTS));
    bench.until(|herd| herd.count(Standing::Open) == CLIENTS);
    assert_eq!(bench.herd.outages.len(), CLIENTS, "those of the start are forgotten");
    assert_eq!((bench.herd.lost.len(), bench.herd.failed.len()), (0, 0));
}

#[test]
fn a_closed_session_is_dialled_again_and_counted() {
    let mut bench = Bench::new();
    bench.connect();
    bench.until(|herd| herd.count(Standing::Open) == CLIENTS);
    bench.gateway.stop(Instant::now(), Close::Shutdown, "");
    bench.until(|herd| herd.lost.get("shutdown") == Some(&(CLIENTS as u64)));
    bench.until(|herd| herd.count(Standing::Open) == CLIENTS);
}

#[test]
fn a_verdict_stops_a_client() {
    let mut bench = Bench::new();
    bench.answer = Refused::new(Close::Revoked, "").close();
    bench.connect();
    bench.until(|herd| herd.count(Standing::Stopped) == CLIENTS);
    assert_eq!(bench.herd.failed.get("revoked"), Some(&(CLIENTS as u64)));
}

#[test]
fn a_verdict_on_an_open_session_says_whose() {
    let mut bench = Bench::new();
    bench.connect();
    bench.until(|herd| herd.count(Standing::Open) == CLIENTS);
    bench.gateway.stop(Instant::now(), Close::Revoked, "");
    bench.until(|herd| herd.count(Standing::Stopped) == CLIENTS);
    let mut stopped = std::mem::take(&mut bench.herd.stopped);
    stopped.sort();
    assert_eq!(stopped, (0..CLIENTS).map(|client| (client, "revoked".to_owned())).collect::<Vec<_>>());
}

#[test]
fn a_gateway_that_is_silent_is_tried_again_after_a_pause() {
    let mut bench = Bench::new();
    bench.connect();
    let start = Instant::now();
    bench.herd.turn(start);
    assert_eq!(bench.herd.count(Standing::Dialling), CLIENTS);
    bench.herd.turn(start + Duration::from_secs(6));
    assert_eq!(bench.herd.count(Standing::Waiting), CLIENTS);
    assert_eq!(bench.herd.failed.get("no_answer"), Some(&(CLIENTS as u64)));
    bench.herd.turn(start + Duration::from_secs(7));
    assert_eq!(bench.herd.count(Standing::Dialling), CLIENTS);
}

struct Bench {
    herd: Herd,
    gateway: Engine,
    socket: UdpSocket,
    /// How a hello is answered: [`Close::Goodbye`] is a welcome.
    answer: Close,
    leases: u32,
}

impl Bench {
    fn new() -> Self {
        let now = SystemTime::now();
        let authority = Authority::create("test", now).unwrap();
        let leaf = authority.issue_server(&[NAME.to_owned()], now).unwrap();
        let ca = authority.certificate_der();
        let transport = ServerTransport::new(
            std::slice::from_ref(ca),
            leaf.chain().to_vec(),
            leaf.private_key(),
            Tuning::default(),
        )
        .unwrap();
        let policy = Policy { networks: vec!["100.64.0.0/16".parse().unwrap()], gateway: vec![], isolation: true };
        let role = Role::Gateway {
            transport,
            routing: Routing::default(),
            policy: Arc::new(policy),
            banned: Banned::default(),
        };
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let sources = "127.98.0.0/16".parse().unwrap(); // all of 127.0.0.0/8 is local
        let wire = Wire::open(socket.local_addr().unwrap(), sources, CLIENTS).unwrap();
        let transports = (0..CLIENTS).map(|_| {
            let key = DeviceKey::generate().unwrap();
            let issued = authority.issue_device(&key.csr("a").unwrap(), DeviceId::generate().unwrap(), now).unwrap();
            let credential = Credential::new(vec![issued.der.into(), ca.clone()], key).unwrap();
            let chain = credential.chain().to_vec();
            ClientTransport::session(std::slice::from_ref(ca), chain, credential.private_key(), Tuning::default())
                .unwrap()
        });
        Self {
            herd: Herd::new(wire, transports.collect(), NAME.into()).unwrap(),
            gateway: Engine::new(0, 1, role, CidKey::random(), true, None),
            socket,
            answer: Close::Goodbye,
            leases: 1,
        }
    }

    fn connect(&mut self) {
        for client in 0..CLIENTS {
            self.herd.connect(Instant::now(), client);
        }
    }

    /// Lets both ends work until that is so.
    fn until(&mut self, done: impl Fn(&Herd) -> bool) {
        const TURNS: usize = 20_000;
        for _ in 0..TURNS {
            self.herd.turn(Instant::now());
            if done(&self.herd) {
                return;
            }
            self.serve();
            self.herd.wait(Instant::now() + Duration::from_millis(1)).unwrap();
        }
        panic!("{:?}, lost {:?}, failed {:?}", self.herd.standings, self.herd.lost, self.herd.failed);
    }

    fn serve(&mut self) {
        let (now, gateway) = (Instant::now(), &mut self.gateway);
        let mut datagram = [0; 2048];
        gateway.on_timeout(now);
        while let Ok((len, from)) = self.socket.recv_from(&mut datagram) {
            gateway.on_datagram(now, from, None, None, BytesMut::from(&datagram[..len]));
        }
        gateway.settle(now);
        while let Some(event) = gateway.poll_event() {
            let Event::Frame { link, payload } = event else { continue };
            assert!(matches!(control::decode(&payload), Ok(FromClient::Hello(_))));
            if self.answer != Close::Goodbye {
                let refused = FromServer::Refused(Refused::new(self.answer, ""));
                gateway.send_frame(now, link, control::encode(&refused).unwrap());
                gateway.close(now, link, self.answer, String::new());
                continue;
            }
            self.leases += 1;
            let lease = Lease { ipv4: Ipv4Addr::from_bits(0x6440_0000 + self.leases), ipv6: None };
            gateway.admit(link, lease);
            gateway.send_frame(now, link, control::encode(&FromServer::Welcome(welcome(lease))).unwrap());
        }
        gateway.settle(now);
        let mut buffer = Vec::new();
        while let Some(transmit) = gateway.poll_transmit(now, 1, &mut buffer) {
            self.socket.send_to(&buffer[..transmit.size], transmit.destination).unwrap();
        }
        gateway.settle(now);
    }
}

fn welcome(lease: Lease) -> Welcome {
    Welcome {
        gateway: NAME.into(),
        device: "a".into(),
        ipv4: lease.ipv4,
        ipv6: None,
        gateway_ipv4: Ipv4Addr::new(100, 64, 0, 1),
        gateway_ipv6: None,
        networks: vec![],
        routes: vec![],
        excluded_routes: vec![],
        dns_servers: vec![],
        dns_domains: vec![],
        seen_as: "127.98.0.1:1".parse().unwrap(),
        endpoints: vec![],
        certificate_until: 0,
        rechallenge_seconds: 0,
        time: None,
    }
}

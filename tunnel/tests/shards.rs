//! A gateway of several shards on real sockets: more of them than cores, so that hand-over happens.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_tunnel::banned::Banned;
use culvert_tunnel::close::Close;
use culvert_tunnel::device::memory::{self, Host, MemoryDevice};
use culvert_tunnel::filter::{Lease, Policy};
use culvert_tunnel::routing::Routing;
use culvert_tunnel::shard::cid::CidKey;
use culvert_tunnel::shard::engine::Role;
use culvert_tunnel::shard::mailbox::{Command, Event, LinkId};
use culvert_tunnel::shard::{RunningShard, ShardConfig, spawn};
use culvert_tunnel::socket::{self, SocketOptions};
use culvert_tunnel::stats::ShardStats;
use wire::{Keys, ipv4, keys};

const SHARDS: usize = 5;
const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn packets_reach_a_client_from_every_queue_whichever_shard_it_is_on() {
    let keys = keys();
    let mut gateway = Gateway::start(&keys);
    let mut clients = Vec::new();
    for number in 0..8 {
        clients.push(Client::connect(&keys, &mut gateway, number).await);
    }
    for client in &mut clients {
        let up = ipv4(client.lease.ipv4, INTERNET, 700, true);
        assert!(client.host.send(&up));
        let arrived = gateway.hosts[usize::from(client.link.shard)].clone();
        assert_eq!(receive(&[arrived]).await, up, "on the queue of its own shard");
        for (shard, host) in gateway.hosts.iter().enumerate() {
            let down = ipv4(INTERNET, client.lease.ipv4, 500 + shard, true);
            assert!(host.send(&down));
            assert_eq!(receive(std::slice::from_ref(&client.host)).await, down);
        }
    }
    let stats = gateway.stats().await;
    let away = clients.len() as u64 * (SHARDS as u64 - 1);
    assert_eq!(stats.iter().map(|stats| stats.handed_out).sum::<u64>(), away);
    assert_eq!(stats.iter().map(|stats| stats.handed_in).sum::<u64>(), away);
    assert_eq!(stats.iter().map(|stats| stats.handed_lost).sum::<u64>(), 0);
    gateway.stop(clients).await;
}

#[tokio::test]
async fn a_client_that_moves_stays_on_its_shard_and_goes_on() {
    let keys = keys();
    let mut gateway = Gateway::start(&keys);
    let client = Client::connect(&keys, &mut gateway, 0).await;
    // Which shard the kernel picks for a new port is a hash: with five of them it is soon another one.
    for round in 0..30 {
        let socket = socket::bind("127.0.0.1:0".parse().unwrap(), SocketOptions::default()).unwrap();
        client.shard.handle.send(Command::Rebind(socket)).await.unwrap();
        let up = ipv4(client.lease.ipv4, INTERNET, 600 + round, true);
        let own = gateway.hosts[usize::from(client.link.shard)].clone();
        assert_eq!(crossing(&client.host, &up, &own).await, up);
        let down = ipv4(INTERNET, client.lease.ipv4, 300 + round, true);
        assert_eq!(crossing(&own, &down, &client.host).await, down);
        if round > 3 && gateway.stats().await.iter().map(|stats| stats.handed_in).sum::<u64>() > 10 {
            break;
        }
    }
    let stats = gateway.stats().await;
    let handed_in: Vec<u64> = stats.iter().map(|stats| stats.handed_in).collect();
    assert!(handed_in[usize::from(client.link.shard)] > 10, "its datagrams came by others: {handed_in:?}");
    assert_eq!(gateway.closed(), 0);
    gateway.stop(vec![client]).await;
}

struct Gateway {
    shards: Vec<RunningShard<MemoryDevice>>,
    hosts: Vec<Host>,
    address: SocketAddr,
    closed: usize,
}

impl Gateway {
    fn start(keys: &Keys) -> Self {
        let policy = Policy {
            networks: vec!["100.77.3.0/24".parse().unwrap()],
            gateway: vec![Ipv4Addr::new(100, 77, 3, 1).into()],
            isolation: true,
        };
        let role = Role::Gateway {
            transport: keys.server.clone(),
            routing: Routing::default(),
            policy: Arc::new(policy),
            banned: Banned::default(),
        };
        let cids = CidKey::random();
        let shared = SocketOptions { reuse_port: true, ..SocketOptions::default() };
        let mut address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (mut configs, mut hosts) = (Vec::new(), Vec::new());
        for _ in 0..SHARDS {
            let (device, host) = memory::pair().unwrap();
            let socket = socket::bind(address, shared).unwrap();
            address = socket.local_addr().unwrap();
            hosts.push(host);
            configs.push(ShardConfig { socket, device: Some(device), role: role.clone(), cids: cids.clone() });
        }
        Self { shards: spawn(configs).unwrap(), hosts, address, closed: 0 }
    }

    /// The link of the client that has just dialled, on whichever shard it is.
    async fn established(&mut self) -> LinkId {
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            for shard in &mut self.shards {
                match shard.events.try_recv() {
                    Ok(Event::Established(established)) => return established.link,
                    Ok(Event::Closed { .. }) => self.closed += 1,
                    _ => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("no client came");
    }

    fn closed(&mut self) -> usize {
        for shard in &mut self.shards {
            while let Ok(event) = shard.events.try_recv() {
                self.closed += usize::from(matches!(event, Event::Closed { .. }));
            }
        }
        self.closed
    }

    async fn stats(&self) -> Vec<ShardStats> {
        let mut stats = Vec::new();
        for shard in &self.shards {
            stats.push(shard.handle.inspect().await.unwrap().shard);
        }
        stats
    }

    async fn stop(self, clients: Vec<Client>) {
        for shard in self.shards.into_iter().chain(clients.into_iter().map(|client| client.shard)) {
            let stop = Command::Stop { code: Close::Shutdown, reason: "the test is over".into() };
            shard.handle.send(stop).await.unwrap();
            tokio::task::spawn_blocking(move || shard.thread.join().unwrap()).await.unwrap();
        }
    }
}

struct Client {
    shard: RunningShard<MemoryDevice>,
    host: Host,
    lease: Lease,
    /// The gateway's name for it.
    link: LinkId,
}

impl Client {
    async fn connect(keys: &Keys, gateway: &mut Gateway, number: u8) -> Self {
        let lease = Lease { ipv4: Ipv4Addr::new(100, 77, 3, 10 + number), ipv6: None };
        let (device, host) = memory::pair().unwrap();
        let socket = socket::bind("127.0.0.1:0".parse().unwrap(), SocketOptions::default()).unwrap();
        let config = ShardConfig { socket, device: Some(device), role: Role::Client, cids: CidKey::random() };
        let shard = spawn(vec![config]).unwrap().pop().unwrap();
        let own = shard.handle.dial(gateway.address, "127.0.0.1".into(), keys.client.clone()).await.unwrap();
        let link = gateway.established().await;
        gateway.shards[usize::from(link.shard)].handle.send(Command::Admit { link, lease }).await.unwrap();
        shard.handle.send(Command::Admit { link: own, lease }).await.unwrap();
        // A shard answers only when it has done what it was told before.
        gateway.shards[usize::from(link.shard)].handle.inspect().await.unwrap();
        shard.handle.inspect().await.unwrap();
        Self { shard, host, lease, link }
    }
}

/// Sends a packet until it has arrived: one that is under way while the address changes may be lost.
async fn crossing(from: &Host, packet: &[u8], to: &Host) -> Vec<u8> {
    for _ in 0..200 {
        assert!(from.send(packet));
        for _ in 0..100 {
            while let Some(arrived) = to.receive() {
                if arrived == packet {
                    return arrived;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    panic!("nothing crosses");
}

async fn receive(hosts: &[Host]) -> Vec<u8> {
    let end = Instant::now() + SOON;
    while Instant::now() < end {
        if let Some(packet) = hosts.iter().find_map(Host::receive) {
            return packet;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the packet does not come");
}

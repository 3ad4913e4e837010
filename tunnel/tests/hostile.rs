//! Peers that mean harm, and the bounds that hold against them.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::BytesMut;
use culvert_tunnel::close::{Close, Down};
use culvert_tunnel::device::memory::{self, MemoryDevice};
use culvert_tunnel::segment::VnetHeader;
use culvert_tunnel::shard::cid::CidKey;
use culvert_tunnel::shard::engine::Role;
use culvert_tunnel::shard::mailbox::{Command, Event};
use culvert_tunnel::shard::{ShardConfig, spawn};
use culvert_tunnel::socket::{self, SocketOptions};
use tokio::sync::oneshot;
use wire::{CLIENT, Pair, ipv4};

const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

#[test]
fn a_link_that_ended_does_not_hold_up_the_device_of_its_successor() {
    let mut pair = Pair::connected();
    let now = pair.now();
    let packet = ipv4(CLIENT.ipv4, INTERNET, 1200, true);
    while pair.client().wants_device(now) {
        pair.client().on_frame(now, &VnetHeader::default(), &packet); // a dead path: nothing leaves
    }
    let link = pair.client_link();
    pair.client().close(now, link, Close::Goodbye, String::new());
    pair.client().settle(now);
    assert!(pair.client().wants_device(now));
}

#[test]
fn a_link_that_ends_while_its_path_is_doubted_wakes_nobody() {
    let mut pair = Pair::connected();
    pair.latency = Duration::from_millis(150); // so that QUIC keeps it for a while after its end
    pair.run_for(Duration::from_secs(5));
    let packet = ipv4(CLIENT.ipv4, INTERNET, 1400, true);
    pair.path_bytes = 1300;
    let mut doubted = false;
    for _ in 0..100 {
        pair.client_sends(&packet);
        pair.run_for(Duration::from_millis(1500));
        doubted = pair.client_stats().black_holes > 0;
        if doubted {
            break;
        }
    }
    assert!(doubted, "QUIC sees the smaller path");
    pair.run_for(Duration::from_millis(4300));
    let (now, link) = (pair.now(), pair.client_link());
    pair.client().close(now, link, Close::Goodbye, String::new());
    pair.client().settle(now);
    let mut turns = 0;
    let end = now + Duration::from_millis(1200);
    while let Some(due) = pair.client().poll_timeout().filter(|due| *due < end) {
        let (now, mut buffer) = (due.max(pair.now()), Vec::new());
        pair.client().on_timeout(now);
        while pair.client().poll_transmit(now, 1, &mut buffer).is_some() {}
        turns += 1;
        assert!(turns < 100, "it wakes at {due:?} again and again");
    }
}

#[test]
fn a_banned_address_begins_nothing_and_its_open_session_goes_on() {
    let mut pair = Pair::connected();
    let before = pair.gateway_shard_stats();
    pair.banned.replace(["192.0.2.0/24".parse().unwrap()]);
    pair.client_sends(&ipv4(CLIENT.ipv4, INTERNET, 1200, true));
    pair.run_for(Duration::from_secs(1));
    assert_eq!(pair.gateway_host().len(), 1, "the open session carries packets");

    let link = pair.client_link();
    let now = pair.now();
    pair.client().close(now, link, Close::Goodbye, String::new());
    pair.run_for(Duration::from_secs(5));
    pair.dial();
    pair.run_for(Duration::from_secs(2));
    let after = pair.gateway_shard_stats();
    assert!(after.datagrams_banned >= 2, "the client asked more than once: {}", after.datagrams_banned);
    assert_eq!((after.handshakes, after.retries), (before.handshakes, before.retries));

    pair.banned.replace([]);
    pair.run_for(Duration::from_secs(5));
    assert!(pair.gateway_shard_stats().handshakes > before.handshakes, "no longer banned, it begins");
}

#[test]
fn one_slow_client_holds_up_a_gateway_shortly_and_seldom() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(2));
    // A second session, so that somebody else is there to be held up.
    pair.dial();
    pair.run_for(Duration::from_secs(1));
    let packet = ipv4(INTERNET, CLIENT.ipv4, 1400, true);
    let tick = Duration::from_micros(250);
    let (mut held, mut buffer, mut now) = (Duration::ZERO, Vec::new(), pair.now());
    for n in 0..8000 {
        now += tick;
        // The client lets one packet go every 6 ms, and has one sent to it as often as it can.
        if n % 24 == 0 {
            _ = pair.gateway().poll_transmit(now, 1, &mut buffer);
        }
        if pair.gateway().wants_device(now) {
            for _ in 0..8 {
                if pair.gateway().wants_device(now) {
                    pair.gateway().on_frame(now, &VnetHeader::default(), &packet);
                }
            }
        } else {
            held += tick;
        }
    }
    assert!(held <= Duration::from_millis(150), "held up for {held:?} of 2 s");
}

#[test]
fn a_flood_of_first_packets_gets_retries_within_their_bytes_and_nothing_else() {
    let mut pair = Pair::new();
    pair.dial();
    let (now, mut initial, mut answer) = (pair.now(), Vec::new(), Vec::new());
    _ = pair.client().poll_transmit(now, 1, &mut initial).expect("the first packet of a handshake");
    let (mut answers, mut bytes) = (0, 0);
    for n in 0..20_000u32 {
        let forged = SocketAddr::from((Ipv4Addr::from_bits(0x0b00_0000 + n), 4433));
        pair.gateway().on_datagram(now, forged, None, None, BytesMut::from(&initial[..]));
        pair.gateway().settle(now);
        while let Some(transmit) = pair.gateway().poll_transmit(now, 1, &mut answer) {
            answers += 1;
            bytes += transmit.size;
        }
    }
    let stats = pair.gateway_shard_stats();
    assert_eq!((stats.handshakes, stats.retries + stats.retries_withheld), (20_000, 20_000));
    assert_eq!(stats.retries, answers);
    assert!(stats.retries_withheld > 3000 && bytes <= 4 << 20, "{bytes} bytes in {answers} answers");
    assert_eq!(pair.gateway_links(), 0);

    let later = now + Duration::from_secs(1);
    pair.gateway().on_datagram(later, "192.0.2.9:1".parse().unwrap(), None, None, BytesMut::from(&initial[..]));
    assert_eq!(pair.gateway_shard_stats().retries, answers + 1, "and the next second somebody is answered again");
}

#[test]
fn a_gateway_that_lost_its_state_is_told_as_such() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(2));
    pair.loss_percent = 100;
    pair.gateway_closes(Close::Shutdown, "nobody hears this");
    let mut buffer = Vec::new();
    for _ in 0..40 {
        pair.sleep(Duration::from_millis(200));
        let now = pair.now();
        pair.gateway().on_timeout(now);
        while pair.gateway().poll_transmit(now, 1, &mut buffer).is_some() {}
    }
    pair.loss_percent = 0;
    pair.client_events();
    pair.client_sends(&ipv4(CLIENT.ipv4, INTERNET, 600, true));
    pair.run_for(Duration::from_millis(300));
    let downs: Vec<_> = pair.client_events().into_iter().filter_map(closed).collect();
    assert_eq!(downs, [Down::Reset]);
}

#[test]
fn nothing_is_told_of_a_link_after_its_end() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(2));
    pair.client_events();
    let (link, now) = (pair.client_link(), pair.now());
    pair.client().send_frame(now, link, vec![0, 0, 0, 2, b'{', b'}']);
    pair.client_echo();
    pair.client().close(now, link, Close::Goodbye, String::new());
    pair.client().settle(now);
    pair.run_for(Duration::from_secs(3));
    let events = pair.client_events();
    assert!(matches!(events[..], [Event::Closed { .. }]), "{events:?}");
    assert_eq!(
        closed(pair.gateway_events().pop().unwrap()),
        Some(Down::Peer { code: Close::Goodbye, reason: String::new() })
    );
}

#[test]
fn datagrams_from_a_thousand_addresses_are_told_as_a_few_moves() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5));
    pair.gateway_events();
    let packet = ipv4(CLIENT.ipv4, INTERNET, 60, true);
    let mut buffer = Vec::new();
    let mut told = 0;
    for i in 0..1000u16 {
        let now = pair.now();
        pair.client().on_frame(now, &VnetHeader::default(), &packet);
        while let Some(transmit) = pair.client().poll_transmit(now, 1, &mut buffer) {
            let from = SocketAddr::from(([10, 0, (i >> 8) as u8, i as u8], 1000));
            pair.gateway().on_datagram(now, from, None, None, BytesMut::from(&buffer[..transmit.size]));
            pair.gateway().settle(now);
        }
        pair.gateway().clear_frames();
        pair.sleep(Duration::from_micros(100));
        while let Some(event) = pair.gateway().poll_event() {
            told += usize::from(matches!(event, Event::Moved { .. }));
        }
    }
    assert!(told <= 1, "{told} moves told within 100 ms");
}

#[test]
fn a_client_that_reads_no_answers_is_closed_and_not_remembered_for() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(2));
    pair.loss_percent = 100; // it grants no more stream credit
    let (link, now) = (pair.client_link(), pair.now());
    for _ in 0..100 {
        pair.client().send_frame(now, link, vec![0; 16 * 1024]);
    }
    pair.client().settle(now);
    pair.run_for(Duration::ZERO);
    let downs: Vec<_> = pair.client_events().into_iter().filter_map(closed).collect();
    assert_eq!(downs, [Down::Local(Close::Unexpected)]);
}

#[test]
fn a_burst_of_control_frames_is_told_whole_and_in_order() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(2));
    pair.gateway_events();
    let link = pair.client_link();
    for n in 0..200u8 {
        let now = pair.now();
        pair.client().send_frame(now, link, vec![0, 0, 0, 1, n]);
        pair.client().settle(now);
    }
    let mut seen = Vec::new();
    for _ in 0..100 {
        pair.run_for(Duration::from_millis(20));
        for event in pair.gateway_events() {
            if let Event::Frame { payload, .. } = event {
                seen.push(payload[0]);
            }
        }
        let now = pair.now();
        pair.gateway().resume_control(now);
    }
    assert_eq!(seen, (0..200).collect::<Vec<u8>>());
}

#[test]
fn one_source_cannot_take_every_handshake() {
    let mut pair = Pair::new();
    for _ in 0..100 {
        pair.dial();
    }
    // Retry and the second Initial have crossed, the clients' Finished has not.
    pair.run_for(Duration::from_millis(45));
    assert_eq!(pair.gateway_links(), 16);
}

#[test]
fn a_handshake_that_gives_way_is_told_once_as_timed_out() {
    let mut pair = Pair::new();
    for n in 0..128 {
        hang(&mut pair, n);
    }
    assert_eq!(pair.gateway_links(), 128);
    pair.sleep(Duration::from_secs(1));
    hang(&mut pair, 128);
    let told: Vec<_> = std::iter::from_fn(|| pair.gateway().poll_event()).filter_map(closed).collect();
    assert_eq!(told, [Down::Local(Close::Timeout)]);
    assert_eq!(pair.gateway_shard_stats().handshakes_refused, 0, "that would be a second time");
}

/// A client of an address of its own proves the address, begins a handshake, and says no more.
fn hang(pair: &mut Pair, client: u8) {
    let from = SocketAddr::from(([10, 0, 1, client], 4433));
    let (now, mut buffer) = (pair.now(), Vec::new());
    pair.dial();
    for _ in 0..2 {
        while let Some(transmit) = pair.client().poll_transmit(now, 1, &mut buffer) {
            pair.gateway().on_datagram(now, from, None, None, BytesMut::from(&buffer[..transmit.size]));
        }
        pair.gateway().on_timeout(now); // begins what waits
        while let Some(transmit) = pair.gateway().poll_transmit(now, 1, &mut buffer) {
            let is_retry = buffer[0] & 0b1111_0000 == 0b1111_0000; // RFC 9000 section 17.2
            if is_retry && transmit.destination == from {
                let gateway = "203.0.113.7:443".parse().unwrap();
                pair.client().on_datagram(now, gateway, None, None, BytesMut::from(&buffer[..transmit.size]));
            }
        }
        pair.client().settle(now);
    }
}

#[tokio::test]
async fn a_stop_behind_many_commands_is_obeyed() {
    let (device, _host) = memory::pair().unwrap();
    let socket = socket::bind("127.0.0.1:0".parse().unwrap(), SocketOptions::default()).unwrap();
    let config =
        ShardConfig::<MemoryDevice> { socket, device: Some(device), role: Role::Client, cids: CidKey::random() };
    let shard = spawn(vec![config]).unwrap().pop().unwrap();
    for _ in 0..900 {
        let (reply, _) = oneshot::channel();
        shard.handle.send(Command::Inspect(reply)).await.unwrap();
    }
    shard.handle.send(Command::Stop { code: Close::Shutdown, reason: String::new() }).await.unwrap();
    let joined = tokio::task::spawn_blocking(move || shard.thread.join().is_ok());
    assert!(tokio::time::timeout(Duration::from_secs(20), joined).await.unwrap().unwrap());
}

fn closed(event: Event) -> Option<Down> {
    match event {
        Event::Closed { down, .. } => Some(down),
        _ => None,
    }
}

//! Two ends in memory under a fake clock: sessions open, packets of every size cross, loss,
//! reordering and a shrinking path are survived, and nothing is dropped silently.

mod wire;

use std::net::Ipv4Addr;
use std::time::Duration;

use culvert_tunnel::close::{Close, Down};
use culvert_tunnel::shard::mailbox::Event;
use wire::{CLIENT, GATEWAY, Pair, ipv4, ipv6, udp_payload};

#[test]
fn a_session_opens_and_packets_of_every_size_cross_both_ways() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5)); // path-MTU discovery
    let mtu = pair.client_mtu();
    assert!(mtu >= 1400, "a 1,500-byte path carries {mtu}-byte packets");
    for len in 20..=mtu {
        let up = ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), len, true);
        pair.client_sends(&up);
        let down = ipv4(Ipv4Addr::new(198, 51, 100, 7), CLIENT.ipv4, len, true);
        pair.gateway_sends(&down);
        pair.run_for(Duration::from_millis(30));
        assert_eq!(pair.gateway_host(), vec![up], "{len} bytes up");
        assert_eq!(pair.client_host(), vec![down], "{len} bytes down");
    }
    for len in 40..=mtu {
        let up = ipv6(CLIENT.ipv6.unwrap(), "2001:db8::7".parse().unwrap(), len);
        pair.client_sends(&up);
        pair.run_for(Duration::from_millis(30));
        assert_eq!(pair.gateway_host(), vec![up], "{len} bytes of IPv6 up");
    }
    assert_eq!(pair.drops(), 0);
}

#[test]
fn a_packet_larger_than_the_path_is_answered_with_too_big() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5));
    let mtu = pair.client_mtu();
    pair.client_sends(&ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), mtu + 1, true));
    pair.run_for(Duration::from_millis(30));
    assert!(pair.gateway_host().is_empty());
    let answers = pair.client_host();
    assert_eq!(answers.len(), 1);
    let icmp = &answers[0];
    assert_eq!((icmp[9], icmp[20], icmp[21]), (1, 3, 4), "ICMP, destination unreachable, fragmentation needed");
    assert_eq!(usize::from(u16::from_be_bytes([icmp[26], icmp[27]])), mtu);
    assert_eq!(icmp[16..20], CLIENT.ipv4.octets());

    pair.client_sends(&ipv6(CLIENT.ipv6.unwrap(), "2001:db8::7".parse().unwrap(), mtu + 1));
    pair.run_for(Duration::from_millis(30));
    let answers = pair.client_host();
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0][6], answers[0][40]), (58, 2), "ICMPv6, packet too big");
    assert_eq!(usize::try_from(u32::from_be_bytes(answers[0][44..48].try_into().unwrap())).unwrap(), mtu);
}

#[test]
fn a_packet_that_may_be_fragmented_crosses_in_two_pieces() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5));
    let large = ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), pair.client_mtu() + 60, false);
    pair.client_sends(&large);
    pair.run_for(Duration::from_millis(30));
    assert_eq!(pair.gateway_host(), vec![large]);
    assert_eq!(pair.client_stats().split, 1);
}

#[test]
fn a_minimum_ipv6_packet_crosses_the_smallest_path() {
    let mut pair = Pair::new();
    pair.path_bytes = 1200;
    pair.connect();
    pair.run_for(Duration::from_secs(5));
    assert_eq!(pair.client_mtu(), 1280);
    for len in 1100..=1280 {
        let packet = ipv6(CLIENT.ipv6.unwrap(), "2001:db8::7".parse().unwrap(), len);
        pair.client_sends(&packet);
        pair.run_for(Duration::from_millis(30));
        assert_eq!(pair.gateway_host(), vec![packet], "{len} bytes");
    }
    assert!(pair.client_stats().split > 0);
    assert_eq!(pair.drops(), 0);
}

#[test]
fn the_inner_mtu_follows_a_shrinking_path_and_traffic_goes_on() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5));
    let before = pair.client_mtu();
    pair.path_bytes = 1300;
    // Slower than a probe timeout: RFC 9002 section 6.2 restarts it with every packet, so a sender
    // that never pauses is left to the supervisor's health echo.
    let mut crossed = 0;
    for _ in 0..60 {
        let len = pair.client_mtu();
        pair.client_sends(&ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), len, true));
        pair.run_for(Duration::from_millis(200));
        crossed += pair.gateway_host().len();
    }
    let after = pair.client_mtu();
    assert!(after < before, "from {before} to {after}");
    assert!(crossed > 30, "{crossed} of 60 packets crossed");
    let last = ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), after, true);
    pair.client_sends(&last);
    pair.run_for(Duration::from_millis(50));
    assert_eq!(pair.gateway_host(), vec![last]);
}

#[test]
fn loss_under_load_loses_packets_and_nothing_else() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5));
    let before = pair.client_mtu();
    pair.loss_percent = 5;
    let mut crossed = 0;
    for id in 0..3000u32 {
        let mut packet = ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), before, true);
        udp_payload(&mut packet, &id.to_be_bytes());
        pair.client_sends(&packet);
        pair.run_for(Duration::from_millis(2));
        crossed += pair.gateway_host().len();
    }
    assert!((2700..3000).contains(&crossed), "{crossed} of 3000 crossed at 5 % loss");
    assert_eq!(pair.client_mtu(), before, "random loss is no black hole (quinn issue 2791)");
    assert_eq!(pair.drops(), 0, "no queue of ours dropped anything");
}

#[test]
fn reordering_delivers_every_packet_once() {
    let mut pair = Pair::connected();
    pair.reorder = true;
    let mut sent = Vec::new();
    for id in 0..500u32 {
        let mut packet = ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), 700, true);
        udp_payload(&mut packet, &id.to_be_bytes());
        pair.client_sends(&packet);
        sent.push(packet);
        pair.run_for(Duration::from_micros(300));
    }
    pair.run_for(Duration::from_millis(200));
    let mut seen = pair.gateway_host();
    assert_ne!(seen, sent, "the wire did reorder");
    seen.sort();
    sent.sort();
    assert_eq!(seen, sent);
}

#[test]
fn a_spoofed_source_is_dropped_and_counted() {
    let mut pair = Pair::connected();
    pair.client_sends_unchecked(&ipv4(Ipv4Addr::new(10, 9, 9, 9), GATEWAY.ipv4, 100, true));
    pair.run_for(Duration::from_millis(30));
    assert!(pair.gateway_host().is_empty());
    assert_eq!(pair.client_device_drops("bad_source"), 1, "the honest client does not even send it");
}

#[test]
fn an_echo_comes_back_with_the_round_trip_time() {
    let mut pair = Pair::connected();
    pair.client_echo();
    pair.run_for(Duration::from_millis(100));
    let rtt = pair.client_events().into_iter().find_map(|event| match event {
        Event::Echo { rtt, .. } => Some(rtt),
        _ => None,
    });
    assert_eq!(rtt, Some(2 * pair.latency));
}

#[test]
fn the_first_packet_after_a_rest_is_told_and_a_stream_of_them_seldom() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(30));
    pair.client_events();
    let packet = ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), 100, true);
    let mut told = Vec::new();
    for step in 0..120 {
        pair.client_sends(&packet);
        pair.run_for(Duration::from_millis(100));
        let sending = pair.client_events().into_iter().any(|event| matches!(event, Event::Sending { .. }));
        told.extend(sending.then_some(step));
    }
    assert_eq!(told, [0, 50, 100]);
}

#[test]
fn a_dial_to_nobody_ends_as_no_answer() {
    let mut pair = Pair::new();
    pair.loss_percent = 100;
    pair.dial();
    pair.run_for(Duration::from_secs(10));
    let down = pair.client_events().into_iter().find_map(|event| match event {
        Event::Closed { down, established, .. } => Some((down, established)),
        _ => None,
    });
    assert_eq!(down, Some((Down::NoAnswer, false)));
}

#[test]
fn the_reason_of_a_close_reaches_the_other_end() {
    let mut pair = Pair::connected();
    pair.gateway_closes(Close::Revoked, "removed by the administrator");
    pair.run_for(Duration::from_secs(2));
    let down = pair.client_events().into_iter().find_map(|event| match event {
        Event::Closed { down, .. } => Some(down),
        _ => None,
    });
    assert_eq!(down, Some(Down::Peer { code: Close::Revoked, reason: "removed by the administrator".into() }));
}

#[test]
fn a_silent_peer_is_given_up_after_the_idle_timeout() {
    let mut pair = Pair::connected();
    pair.loss_percent = 100;
    pair.run_for(Duration::from_secs(130));
    for events in [pair.client_events(), pair.gateway_events()] {
        assert!(
            events.iter().any(|event| matches!(event, Event::Closed { down: Down::TimedOut, established: true, .. })),
            "{events:?}"
        );
    }
}

#[test]
fn garbage_is_counted_and_answered_by_nothing() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(2));
    let before = pair.gateway_shard_stats();
    for seed in 0..20_000u32 {
        pair.gateway_hears_garbage(seed);
    }
    let after = pair.gateway_shard_stats();
    assert_eq!(pair.gateway_answers_to_strangers(), 0);
    assert_eq!(after.datagrams_in - before.datagrams_in, 20_000);
    assert_eq!(after.datagrams_foreign - before.datagrams_foreign, 20_000);
    assert_eq!(after.handshakes, before.handshakes);
    let packet = ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), 200, true);
    pair.client_sends(&packet);
    pair.run_for(Duration::from_millis(30));
    assert_eq!(pair.gateway_host(), vec![packet], "the session did not notice");
}

//! Two ends in memory under a fake clock: sessions open, packets of every size cross, loss,
//! reordering and a shrinking path are survived, and nothing is dropped silently.

mod wire;

use std::net::Ipv4Addr;
use std::time::Duration;

use culvert_tunnel::close::{Close, Down};
use culvert_tunnel::shard::mailbox::Event;
use wire::{CLIENT, GATEWAY, Pair, ipv4, ipv6, set_ecn, syn, udp_payload};

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
fn a_minimum_packet_crosses_the_smallest_path_either_way() {
    let mut pair = Pair::new();
    pair.path_bytes = 1200;
    pair.connect();
    pair.run_for(Duration::from_secs(5));
    assert_eq!(pair.client_mtu(), 1280);
    let (far4, far6) = (Ipv4Addr::new(198, 51, 100, 7), "2001:db8::7".parse().unwrap());
    let client6 = CLIENT.ipv6.unwrap();
    for len in 1100..=1280 {
        for (up, down) in [
            (ipv6(client6, far6, len), ipv6(far6, client6, len)),
            (ipv4(CLIENT.ipv4, far4, len, true), ipv4(far4, CLIENT.ipv4, len, true)),
        ] {
            pair.client_sends(&up);
            pair.gateway_sends(&down);
            pair.run_for(Duration::from_millis(30));
            assert_eq!(pair.gateway_host(), vec![up], "{len} bytes up");
            assert_eq!(pair.client_host(), vec![down], "{len} bytes down");
        }
    }
    assert!(pair.client_stats().split > 200 && pair.gateway_stats().split > 200);
    assert_eq!(pair.drops(), 0);
}

#[test]
fn a_sender_of_packets_too_big_is_told_at_a_bounded_rate_and_every_drop_is_counted() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5));
    let large = ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), pair.client_mtu() + 1, true);
    for _ in 0..1000 {
        for _ in 0..5 {
            pair.client_sends(&large);
        }
        pair.run_for(Duration::from_millis(1));
    }
    let answers = pair.client_host().len() as u64;
    assert!((1000..=1051).contains(&answers), "{answers} answers to 5000 packets in a second");
    let stats = pair.client_stats();
    assert_eq!((stats.too_big_answers, stats.dropped_out.occurred()["too_big"]), (answers, 5000));
}

#[test]
fn a_syn_announces_no_more_than_the_tunnel_carries_either_way() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5));
    let (far, fits) = (Ipv4Addr::new(198, 51, 100, 7), pair.client_mtu() as u16 - 40);
    for (announced, crosses) in [(1460, fits), (8960, fits), (536, 536)] {
        pair.client_sends(&syn(CLIENT.ipv4, far, announced));
        pair.gateway_sends(&syn(far, CLIENT.ipv4, announced));
        pair.run_for(Duration::from_millis(30));
        for host in [pair.gateway_host(), pair.client_host()] {
            assert_eq!(host.len(), 1);
            assert_eq!(u16::from_be_bytes([host[0][42], host[0][43]]), crosses, "announced {announced}");
        }
    }
}

#[test]
fn a_mark_of_the_path_reaches_the_packet_that_met_it_and_no_other() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5)); // QUIC validates the path's marks first (RFC 9000 section 13.4)
    pair.mark_every = 3;
    let mut met = 0;
    for id in 0..300u32 {
        let mut up = ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), 1000, true);
        udp_payload(&mut up, &id.to_be_bytes());
        set_ecn(&mut up, 2);
        let mut down = ipv4(Ipv4Addr::new(198, 51, 100, 7), CLIENT.ipv4, 1000, true);
        udp_payload(&mut down, &id.to_be_bytes());
        set_ecn(&mut down, 1);
        // Two at once, each in its own datagram, so that one may be marked and its neighbour not.
        for _ in 0..2 {
            pair.client_sends(&up);
            pair.gateway_sends(&down);
        }
        pair.run_for(Duration::from_millis(30));
        for (host, sent) in [(pair.gateway_host(), up), (pair.client_host(), down)] {
            assert_eq!(host.len(), 2);
            let mut marked = sent.clone();
            set_ecn(&mut marked, 3);
            assert!(host.iter().all(|packet| *packet == sent || *packet == marked));
            met += host.iter().filter(|packet| **packet == marked).count();
        }
    }
    assert!(met > 300, "{met} of 1200 met a mark");
    assert_eq!(met, pair.large_marked);
    assert_eq!(pair.drops(), 0);
}

#[test]
fn a_mark_is_a_loss_to_a_sender_that_takes_none() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5));
    pair.mark_every = 1;
    let far = Ipv4Addr::new(198, 51, 100, 7);
    pair.client_sends(&ipv4(CLIENT.ipv4, far, 1000, true));
    pair.gateway_sends(&ipv4(far, CLIENT.ipv4, 1000, true));
    pair.run_for(Duration::from_millis(30));
    assert!(pair.gateway_host().is_empty() && pair.client_host().is_empty());
    for stats in [pair.client_stats(), pair.gateway_stats()] {
        assert_eq!(stats.dropped_in.occurred(), [("congestion".to_owned(), 1)].into());
    }
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
    for loss_percent in [1, 5] {
        let mut pair = Pair::connected();
        pair.run_for(Duration::from_secs(5));
        let before = (pair.client_mtu(), pair.gateway_stats().path_mtu_bytes);
        pair.loss_percent = loss_percent;
        let far = Ipv4Addr::new(198, 51, 100, 7);
        let (mut up, mut down) = (0, 0);
        for id in 0..5000u32 {
            let mut packet = ipv4(CLIENT.ipv4, far, before.0, true);
            udp_payload(&mut packet, &id.to_be_bytes());
            pair.client_sends(&packet);
            let mut packet = ipv4(far, CLIENT.ipv4, before.0, true);
            udp_payload(&mut packet, &id.to_be_bytes());
            pair.gateway_sends(&packet);
            pair.run_for(Duration::from_micros(500)); // 23 Mbit/s each way
            up += pair.gateway_host().len();
            down += pair.client_host().len();
        }
        pair.run_for(Duration::from_secs(1));
        up += pair.gateway_host().len();
        down += pair.client_host().len();
        let least = 5000 - 5000 * loss_percent as usize * 15 / 1000;
        assert!((least..5000).contains(&up) && (least..5000).contains(&down), "{up} and {down} at {loss_percent} %");
        let after = (pair.client_mtu(), pair.gateway_stats().path_mtu_bytes);
        assert_eq!(after, before, "random loss is no black hole (quinn issue 2791)");
        assert_eq!((pair.client_stats().black_holes, pair.gateway_stats().black_holes), (0, 0));
        assert_eq!(pair.drops(), 0, "no queue of ours dropped anything");
    }
}

#[test]
fn bursts_of_loss_that_quic_takes_for_a_black_hole_leave_the_inner_mtu_where_it_was() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5));
    let before = pair.client_mtu();
    pair.loss_percent = 15;
    let packet = ipv4(CLIENT.ipv4, Ipv4Addr::new(198, 51, 100, 7), before, true);
    let mut crossed = 0;
    for _ in 0..2000 {
        for _ in 0..40 {
            pair.client_sends(&packet);
        }
        pair.run_for(Duration::from_millis(5)); // 90 Mbit/s
        crossed += pair.gateway_host().len();
        assert_eq!(pair.client_mtu(), before);
    }
    let stats = pair.client_stats();
    assert!(stats.black_holes > 0 && stats.split > 0, "the trap did snap");
    assert_eq!(stats.dropped_out.total(), 0);
    // In two datagrams a packet is lost twice as often.
    assert!((55_000..75_000).contains(&crossed), "{crossed} of 80000");
    pair.loss_percent = 0;
    pair.run_for(Duration::from_secs(5));
    assert_eq!(pair.client_mtu(), before);
    assert!(usize::from(pair.client_stats().path_mtu_bytes) >= before, "the path was found again");
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

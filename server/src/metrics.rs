//! Every metric of the gateway: its name, its meaning, its labels (product contract 7.4).
//!
//! What happens is counted where it happens, by the functions here; what is known at one moment
//! ([`Snapshot`]) is put beside it at each scrape. Labels have few values: no user, device or address is
//! one, unless the operator wants a series a device. The recorder is the process's own, as the crate
//! `metrics` has it.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use culvert_tunnel::stats::{Drops, Flow, LinkStats, ShardStats};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::bans;
use crate::dns;
use crate::registry::Counts;

/// From 5 ms to 10 s.
const HANDSHAKE_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const RTT_SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
/// A minute to a month.
const SESSION_SECONDS: [f64; 8] = [60.0, 600.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0, 604_800.0, 2_592_000.0];
/// From a tenth of a millisecond to what makes the watchdog bark.
const LOOP_SECONDS: [f64; 8] = [0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];
const MTU_BYTES: [f64; 7] = [1_200.0, 1_280.0, 1_340.0, 1_380.0, 1_420.0, 1_460.0, 1_500.0];

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Counts from now on. Only the first call has an effect.
///
/// # Panics
/// When another recorder is installed in this process, which nobody does.
pub fn install() {
    HANDLE.get_or_init(|| {
        let buckets = [
            ("culvert_handshake_duration_seconds", &HANDSHAKE_SECONDS[..]),
            ("culvert_quic_rtt_seconds", &RTT_SECONDS),
            ("culvert_session_duration_seconds", &SESSION_SECONDS),
            ("culvert_path_mtu_bytes", &MTU_BYTES),
            ("culvert_loop_seconds", &LOOP_SECONDS),
        ];
        let mut builder = PrometheusBuilder::new();
        for (name, bounds) in buckets {
            builder =
                builder.set_buckets_for_metric(Matcher::Full(name.into()), bounds).expect("buckets are not empty");
        }
        let handle = builder.install_recorder().expect("the only recorder");
        describe();
        metrics_process::Collector::default().describe();
        start();
        handle
    });
}

/// Everything, as Prometheus reads it (text format 0.0.4). Empty before [`install`].
pub fn render() -> String {
    let Some(handle) = HANDLE.get() else { return String::new() };
    metrics_process::Collector::default().collect();
    handle.run_upkeep();
    handle.render()
}

/// Whether the database that gateways share answers.
pub fn registry_up(up: bool) {
    gauge!("culvert_registry_up").set(if up { 1.0 } else { 0.0 });
}

fn describe() {
    describe_gauge!("culvert_build_info", "The program that runs; always 1.");
    describe_gauge!("culvert_sessions_active", "Open sessions.");
    describe_counter!("culvert_sessions_closed_total", "Sessions that have ended, by why.");
    describe_histogram!("culvert_session_duration_seconds", Unit::Seconds, "How long sessions were open.");
    describe_counter!("culvert_handshakes_total", "Handshakes, by how they ended.");
    describe_histogram!("culvert_handshake_duration_seconds", Unit::Seconds, "First packet to completion.");
    describe_counter!("culvert_auth_failures_total", "Sessions and enrolments refused at a validated address, by why.");
    describe_counter!("culvert_enrolments_total", "Enrolments, by how they ended.");
    describe_counter!("culvert_renewals_total", "Renewals of device certificates, by how they ended.");
    describe_counter!("culvert_tunnel_bytes_total", Unit::Bytes, "Inner packets carried, their IP headers included.");
    describe_counter!("culvert_tunnel_packets_total", "Inner packets carried.");
    describe_counter!("culvert_dropped_packets_total", "Inner packets dropped, by why.");
    describe_counter!("culvert_icmp_too_big_total", "Senders told that a packet was too big.");
    describe_histogram!(
        "culvert_path_mtu_bytes",
        Unit::Bytes,
        "UDP payload that the paths of open sessions carry, sampled once a minute."
    );
    describe_counter!("culvert_path_changes_total", "Clients seen at another port (rebind) or address (migration).");
    describe_histogram!(
        "culvert_quic_rtt_seconds",
        Unit::Seconds,
        "Round-trip time of open sessions, sampled once a minute."
    );
    describe_counter!("culvert_quic_packets_sent_total", "QUIC packets sent.");
    describe_counter!("culvert_quic_packets_lost_total", "Of these, declared lost.");
    describe_counter!("culvert_quic_black_holes_total", "Times that a path was found to carry less than before.");
    describe_counter!(
        "culvert_udp_socket_drops_total",
        "Datagrams that the kernel dropped since the gateway's sockets were full."
    );
    describe_histogram!(
        "culvert_loop_seconds",
        Unit::Seconds,
        "How long the gateway's loop was busy with one event; all others wait meanwhile."
    );
    describe_gauge!("culvert_address_pool_size", "Inner addresses for devices.");
    describe_gauge!("culvert_address_pool_used", "Inner addresses that devices have.");
    describe_gauge!("culvert_devices", "Devices in the registry, by state.");
    describe_gauge!("culvert_invites", "Invitations in the registry, by state.");
    describe_gauge!("culvert_registry_up", "1 when the database that gateways share answers; absent for a file.");
    describe_gauge!("culvert_bans_active", "Networks that are not listened to.");
    describe_counter!("culvert_bans_total", "Bans, by why.");
    describe_gauge!("culvert_certificate_expiry_timestamp_seconds", Unit::Seconds, "When a certificate ends.");
    describe_gauge!("culvert_device_certificates_expiring", "Device certificates that end within this time.");
    describe_gauge!("culvert_config_last_reload_successful", "1 when the last reload was taken.");
    describe_gauge!(
        "culvert_config_last_reload_success_timestamp_seconds",
        Unit::Seconds,
        "When the configuration in force was read."
    );
    describe_gauge!("culvert_selfcheck_ok", "1 when the host is as the gateway needs it.");
    describe_counter!("culvert_dns_queries_total", "Name lookups of clients, by who answered.");
    describe_counter!("culvert_device_bytes_total", Unit::Bytes, "Inner packets of one device (metrics.devices).");
    describe_gauge!(
        "culvert_device_last_seen_timestamp_seconds",
        Unit::Seconds,
        "When one device last had a session (metrics.devices)."
    );
}

/// Counters and histograms that exist from the start, so that their first increase is one.
fn start() {
    let revision = option_env!("CULVERT_REVISION").unwrap_or("unknown");
    gauge!("culvert_build_info", "version" => env!("CARGO_PKG_VERSION"), "revision" => revision).set(1.0);
    for result in ["ok", "refused", "timeout", "error"] {
        counter!("culvert_handshakes_total", "result" => result).absolute(0);
    }
    for result in ["ok", "refused"] {
        counter!("culvert_enrolments_total", "result" => result).absolute(0);
        counter!("culvert_renewals_total", "result" => result).absolute(0);
    }
    for reason in CLOSED {
        counter!("culvert_sessions_closed_total", "reason" => reason).absolute(0);
    }
    for reason in FAILURES {
        counter!("culvert_auth_failures_total", "reason" => reason).absolute(0);
    }
    for reason in bans::reasons() {
        counter!("culvert_bans_total", "reason" => reason).absolute(0);
    }
    for by in ["gateway", "cache", "upstream", "nobody", "refused"] {
        counter!("culvert_dns_queries_total", "answered_by" => by).absolute(0);
    }
    for kind in ["rebind", "migration"] {
        counter!("culvert_path_changes_total", "kind" => kind).absolute(0);
    }
    // To ask for one is to make it.
    let _ = histogram!("culvert_session_duration_seconds");
    let _ = histogram!("culvert_handshake_duration_seconds");
    let _ = histogram!("culvert_quic_rtt_seconds");
    let _ = histogram!("culvert_path_mtu_bytes");
    let _ = histogram!("culvert_loop_seconds");
    reloaded(true);
}

/// Does one thing that the gateway's loop has to do, and counts how long that took.
pub async fn timed<T>(work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.await;
    histogram!("culvert_loop_seconds").record(began.elapsed());
    done
}

/// A handshake is complete.
pub fn handshake(took: Duration) {
    counter!("culvert_handshakes_total", "result" => "ok").increment(1);
    histogram!("culvert_handshake_duration_seconds").record(took);
}

/// A handshake ended before it was complete; `word` says why.
pub fn handshake_failed(word: &str) {
    let result = if matches!(word, "timed_out" | "no_answer" | "timeout") { "timeout" } else { "error" };
    counter!("culvert_handshakes_total", "result" => result).increment(1);
}

const CLOSED: [&str; 7] = ["client", "idle", "kicked", "revoked", "replaced", "error", "shutdown"];

/// A session ended; `word` is of the close table.
pub fn session_closed(word: &str, open: Duration) {
    let reason = match word {
        "goodbye" => "client",
        "timed_out" | "idle" => "idle",
        word => CLOSED.into_iter().find(|reason| *reason == word).unwrap_or("error"),
    };
    counter!("culvert_sessions_closed_total", "reason" => reason).increment(1);
    histogram!("culvert_session_duration_seconds").record(open);
}

const FAILURES: [&str; 11] = [
    "no_certificate",
    "unknown_ca",
    "expired",
    "revoked",
    "unknown_device",
    "bad_invite",
    "expired_invite",
    "used_invite",
    "cancelled_invite",
    "limit",
    "other",
];

/// A session or an enrolment was refused; `word` is of the close table.
pub fn refused(word: &str) {
    let reason = match word {
        "invite_proof" | "invite_foreign" => "bad_invite",
        "invite_expired" => "expired_invite",
        "invite_used" => "used_invite",
        "invite_cancelled" => "cancelled_invite",
        word => FAILURES.into_iter().find(|reason| *reason == word).unwrap_or("other"),
    };
    counter!("culvert_auth_failures_total", "reason" => reason).increment(1);
}

/// An enrolment ended.
pub fn enrolment(result: &'static str) {
    counter!("culvert_enrolments_total", "result" => result).increment(1);
}

/// A renewal ended.
pub fn renewal(result: &'static str) {
    counter!("culvert_renewals_total", "result" => result).increment(1);
}

/// A client is at another port, or at another address.
pub fn moved(migrated: bool) {
    counter!("culvert_path_changes_total", "kind" => if migrated { "migration" } else { "rebind" }).increment(1);
}

/// The configuration was read again, or could not be.
pub fn reloaded(taken: bool) {
    gauge!("culvert_config_last_reload_successful").set(f64::from(u8::from(taken)));
    if taken {
        gauge!("culvert_config_last_reload_success_timestamp_seconds").set(seconds(SystemTime::now()));
    }
}

/// The host was looked at.
pub fn selfcheck(check: &'static str, ok: bool) {
    gauge!("culvert_selfcheck_ok", "check" => check).set(f64::from(u8::from(ok)));
}

/// One open session, once a minute.
pub fn sample(stats: &LinkStats) {
    histogram!("culvert_quic_rtt_seconds").record(stats.rtt);
    histogram!("culvert_path_mtu_bytes").record(f64::from(stats.path_mtu_bytes));
}

/// Of both families, and of IPv6 alone.
#[derive(Clone, Copy, Debug, Default)]
struct Family<T> {
    both: T,
    ipv6: T,
}

impl<T: std::ops::AddAssign> Family<T> {
    fn add(&mut self, both: T, ipv6: T) {
        self.both += both;
        self.ipv6 += ipv6;
    }
}

impl Family<u64> {
    /// With the words of the label `family`.
    fn each(self) -> [(&'static str, u64); 2] {
        [("ipv4", self.both - self.ipv6), ("ipv6", self.ipv6)]
    }
}

impl Family<Flow> {
    fn bytes(self) -> Family<u64> {
        Family { both: self.both.bytes, ipv6: self.ipv6.bytes }
    }

    fn packets(self) -> Family<u64> {
        Family { both: self.both.packets, ipv6: self.ipv6.packets }
    }
}

/// What one device has carried, when each has a series of its own.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSeries {
    /// Inner packets from it, in bytes.
    pub received: u64,
    /// Inner packets to it, in bytes.
    pub sent: u64,
    /// The end of its last session, or now.
    pub last_seen: SystemTime,
}

/// What links have carried, those that are gone included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    sent: Family<Flow>,
    received: Family<Flow>,
    dropped_out: Drops,
    dropped_in: Drops,
    too_big: Family<u64>,
    quic_sent: u64,
    quic_lost: u64,
    black_holes: u64,
}

impl Totals {
    /// Adds a link's counters: its last ones, or for a scrape those of one that is open.
    pub fn add(&mut self, stats: &LinkStats) {
        self.sent.add(stats.sent, stats.sent_ipv6);
        self.received.add(stats.received, stats.received_ipv6);
        self.dropped_out.add(&stats.dropped_out);
        self.dropped_in.add(&stats.dropped_in);
        self.too_big.add(stats.too_big_answers, stats.too_big_answers_ipv6);
        self.quic_sent += stats.quic_sent;
        self.quic_lost += stats.quic_lost;
        self.black_holes += stats.black_holes;
    }
}

/// What is known at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Open sessions.
    pub sessions: usize,
    /// Of all links.
    pub totals: Totals,
    /// Of all shards.
    pub shards: Vec<ShardStats>,
    /// Addresses for devices, and those that devices have.
    pub pool: (u64, u64),
    /// The families of these: a device has one address of each.
    pub families: &'static [&'static str],
    /// Devices and invitations.
    pub counts: Counts,
    /// Bans; `None` while the gateway stops.
    pub bans: Option<bans::Counts>,
    /// Ends of the CA's and the gateway's own certificate.
    pub certificates: [Option<SystemTime>; 2],
    /// The UDP port.
    pub port: u16,
    /// The resolver's counters.
    pub dns: Option<dns::Snapshot>,
    /// By user and name, when each has a series of its own.
    pub devices: BTreeMap<String, DeviceSeries>,
}

impl Snapshot {
    /// Puts it beside what was counted. A counter never goes back, also when a link is between two looks.
    pub fn put(self) {
        gauge!("culvert_sessions_active").set(self.sessions as f64);
        let Totals { sent, received, dropped_out, dropped_in, too_big, quic_sent, quic_lost, black_holes } =
            self.totals;
        for (direction, flow) in [("to_client", sent), ("from_client", received)] {
            for (family, bytes) in flow.bytes().each() {
                counter!("culvert_tunnel_bytes_total", "direction" => direction, "family" => family).absolute(bytes);
            }
            for (family, packets) in flow.packets().each() {
                counter!("culvert_tunnel_packets_total", "direction" => direction, "family" => family)
                    .absolute(packets);
            }
        }
        let (mut to_clients, mut from_clients) = (dropped_out, dropped_in);
        let mut refused = 0;
        for shard in &self.shards {
            to_clients.add(&shard.dropped_device);
            from_clients.add(&shard.undelivered);
            refused += shard.handshakes_refused;
        }
        counter!("culvert_handshakes_total", "result" => "refused").absolute(refused);
        for (direction, drops) in [("to_client", to_clients), ("from_client", from_clients)] {
            for (reason, packets) in drops.by_reason() {
                counter!("culvert_dropped_packets_total", "direction" => direction, "reason" => reason)
                    .absolute(packets);
            }
        }
        for (family, answers) in too_big.each() {
            counter!("culvert_icmp_too_big_total", "family" => family).absolute(answers);
        }
        counter!("culvert_quic_packets_sent_total").absolute(quic_sent);
        counter!("culvert_quic_packets_lost_total").absolute(quic_lost);
        counter!("culvert_quic_black_holes_total").absolute(black_holes);
        if let Some(drops) = socket_drops(self.port) {
            counter!("culvert_udp_socket_drops_total").absolute(drops);
        }
        for family in self.families {
            gauge!("culvert_address_pool_size", "family" => *family).set(self.pool.0 as f64);
            gauge!("culvert_address_pool_used", "family" => *family).set(self.pool.1 as f64);
        }
        self.put_registry();
        if let Some(bans) = self.bans {
            gauge!("culvert_bans_active").set((bans.active_failures + bans.active_operator) as f64);
            for (reason, count) in bans.banned {
                counter!("culvert_bans_total", "reason" => reason).absolute(count);
            }
        }
        for (name, end) in ["ca", "server"].into_iter().zip(self.certificates) {
            if let Some(end) = end {
                gauge!("culvert_certificate_expiry_timestamp_seconds", "certificate" => name).set(seconds(end));
            }
        }
        if let Some(dns::Snapshot { queries, local, cached, refused, upstream_failures }) = self.dns {
            let upstream = queries.saturating_sub(local + cached + upstream_failures);
            let answered = [
                ("gateway", local),
                ("cache", cached),
                ("upstream", upstream),
                ("nobody", upstream_failures),
                ("refused", refused),
            ];
            for (by, count) in answered {
                counter!("culvert_dns_queries_total", "answered_by" => by).absolute(count);
            }
        }
        for (device, DeviceSeries { received, sent, last_seen }) in self.devices {
            let device = metrics::SharedString::from(device);
            gauge!("culvert_device_last_seen_timestamp_seconds", "device" => device.clone()).set(seconds(last_seen));
            for (direction, bytes) in [("from_client", received), ("to_client", sent)] {
                counter!("culvert_device_bytes_total", "device" => device.clone(), "direction" => direction)
                    .absolute(bytes);
            }
        }
    }

    fn put_registry(&self) {
        let counts = &self.counts;
        for (state, count) in [("active", counts.active), ("expired", counts.expired), ("revoked", counts.revoked)] {
            gauge!("culvert_devices", "state" => state).set(count as f64);
        }
        let invites = [
            ("open", counts.invitations_open),
            ("used", counts.invitations_used),
            ("expired", counts.invitations_expired),
            ("cancelled", counts.invitations_cancelled),
        ];
        for (state, count) in invites {
            gauge!("culvert_invites", "state" => state).set(count as f64);
        }
        for (within, count) in [("7d", counts.expiring_in_7_days), ("30d", counts.expiring_in_30_days)] {
            gauge!("culvert_device_certificates_expiring", "within" => within).set(count as f64);
        }
    }
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as f64
}

/// The last column of `/proc/net/udp{,6}` (`udp4_format_sock` in net/ipv4/udp.c) for sockets of this port.
fn socket_drops(port: u16) -> Option<u64> {
    let read = |path| std::fs::read_to_string(path).ok();
    let texts = [read("/proc/net/udp"), read("/proc/net/udp6")];
    texts.iter().any(Option::is_some).then(|| texts.iter().flatten().map(|text| drops_in(text, port)).sum())
}

fn drops_in(text: &str, port: u16) -> u64 {
    let local = format!(":{port:04X}");
    let of_port = text.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|own| own.ends_with(&local)));
    of_port.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_tunnel::packet::Dropped;

    #[test]
    fn a_packet_counts_in_its_direction_and_family() {
        install();
        let mut shard = ShardStats::default();
        shard.dropped_device.count(&Dropped::RateLimit);
        shard.undelivered.count(&Dropped::QueueFull);
        let mut totals = Totals::default();
        totals.add(&LinkStats {
            received: Flow { packets: 7, bytes: 700 },
            received_ipv6: Flow { packets: 2, bytes: 300 },
            too_big_answers: 3,
            too_big_answers_ipv6: 1,
            ..Default::default()
        });
        Snapshot { totals, shards: vec![shard], families: &["ipv4", "ipv6"], pool: (253, 4), ..Default::default() }
            .put();
        let text = render();
        for line in [
            r#"culvert_tunnel_packets_total{direction="from_client",family="ipv4"} 5"#,
            r#"culvert_tunnel_bytes_total{direction="from_client",family="ipv6"} 300"#,
            r#"culvert_icmp_too_big_total{family="ipv4"} 2"#,
            r#"culvert_dropped_packets_total{direction="from_client",reason="queue_full"} 1"#,
            r#"culvert_dropped_packets_total{direction="to_client",reason="queue_full"} 0"#,
            r#"culvert_address_pool_used{family="ipv6"} 4"#,
            "culvert_quic_rtt_seconds_count 0",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn drops_of_our_own_port_are_counted() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            1: 00000000:01BB 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0000000000000000 17\n\
            2: 00000000:01BB 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0000000000000000 4\n\
            3: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0000000000000000 99\n";
        assert_eq!(drops_in(text, 443), 21);
        assert_eq!(drops_in("", 443), 0);
    }
}

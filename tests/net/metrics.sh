#!/bin/bash
# Proves that the gateway's metrics are as Prometheus wants them, agree with its own lists, fill the dashboard, and
# that readiness turns bad with what it depends on.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-metrics
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

url=http://127.0.0.1:9580
http() { net_in "$NET_GATEWAY" curl -sS --max-time 5 "$@" 2>&1; }
# metric SERIES: its value in the last scrape.
metric() { awk -v want="$1" '$1 == want {print $2}' "$NET_DIR/scrape"; }
from_client='culvert_tunnel_packets_total{direction="from_client",family="ipv4"}'
scrape() { http "$url/metrics" >"$NET_DIR/scrape"; }

gateway_init || die "init failed"
gateway_start
helper_start
run enrol "$INVITATION" --name laptop
check "enrol" 0 $CODE
run culvert connect --wait=15s
check "connect" 0 $CODE
inner=$(ip -n "$NET_GATEWAY" -4 -j addr show dev culvert0 | jq -r '.[0].addr_info[0].local')
check "a ping" 3 "$(pings "$NET_CLIENT" "$inner")"
scrape
check "one session" 1 "$(metric culvert_sessions_active)"
check "one enrolment" 1 "$(metric 'culvert_enrolments_total{result="ok"}')"
check "one device" 1 "$(metric 'culvert_devices{state="active"}')"
check "no session has ended" 0 "$(metric 'culvert_sessions_closed_total{reason="client"}')"
within "handshakes" 2 9 "$(metric 'culvert_handshakes_total{result="ok"}')"
listed=$(sessions '.sessions[0].received_packets')
scrape
within "packets agree with sessions list" "$listed" $((listed + 50)) "$(metric "$from_client")"
check "the command tells the same" 1 "$(server metrics | awk '$1 == "culvert_sessions_active" {print $2}')"
run culvert disconnect
gone() { scrape && [ "$(metric 'culvert_sessions_closed_total{reason="client"}')" = 1 ]; }
net_wait 10 "the end of the session" gone
check "it has ended, by the client" "1 0" "$(metric 'culvert_sessions_closed_total{reason="client"}') $(metric culvert_sessions_active)"
after=$(metric "$from_client")
within "what it carried is still counted" "$listed" 1000000 "$after"

if has prometheus; then
  dpkg-deb -x "$debs"/prometheus_*.deb "$NET_DIR/prometheus"
  promtool=$NET_DIR/prometheus/usr/bin/promtool
  run "$promtool" check metrics <"$NET_DIR/scrape"
  check "promtool finds nothing in the scrape" "0 " "$CODE $OUT$ERR"
  monitoring=$root/packaging/linux/monitoring
  run "$promtool" check rules "$monitoring/culvert-alerts.yml"
  check "promtool takes the alert rules" 0 $CODE
  run "$promtool" test rules "$monitoring/culvert-alerts.test.yml"
  check "each alert fires when it should and no sooner" 0 $CODE
  # The dashboard asks a Prometheus that scrapes this gateway.
  cat >"$NET_DIR/prometheus.yml" <<'YAML'
global: {scrape_interval: 1s}
scrape_configs: [{job_name: culvert, static_configs: [{targets: ["127.0.0.1:9580"]}]}]
YAML
  net_spawn prometheus "$NET_GATEWAY" "$NET_DIR/prometheus/usr/bin/prometheus" --config.file="$NET_DIR/prometheus.yml" \
    --storage.tsdb.path="$NET_DIR/tsdb" --web.listen-address=127.0.0.1:9090 --log.level=warn
  prometheus=$NET_PID
  ask_dashboard() { net_in "$NET_GATEWAY" "$python" "$net/dashboard.py" "$1" "$NET_DIR/scrape" http://127.0.0.1:9090; }
  filled() { ask_dashboard "$monitoring/culvert-dashboard.json" >"$NET_DIR/dashboard"; }
  net_wait 20 "a full dashboard" filled
  match "every question of the dashboard has an answer" "^[1-9][0-9]* questions, all answered$" "$(<"$NET_DIR/dashboard")"
  sed 's/culvert_sessions_active/culvert_sessions_renamed/' "$monitoring/culvert-dashboard.json" >"$NET_DIR/renamed.json"
  run ask_dashboard "$NET_DIR/renamed.json"
  check "one about a metric that there is not is found" "1 Sessions: there is no metric culvert_sessions_renamed" "$CODE $OUT"
  net_stop "$prometheus"
fi

check "alive" ok "$(http "$url/livez")"
check "ready" '{"failed":[],"ready":true}' "$(http "$url/readyz")"
run server health --ready
check "the command says so" "0 ready" "$CODE $OUT"
check "another path" 404 "$(http -o /dev/null -w '%{http_code}' "$url/")"
check "another method" 405 "$(http -o /dev/null -w '%{http_code}' -X POST "$url/metrics")"
match "endless headers are cut off" "^(400|431|000)" "$(http -o /dev/null -w '%{http_code}' -H "x: $(head -c 100000 /dev/zero | tr '\0' a)" "$url/metrics")"
cat >"$NET_DIR/hostile.py" <<'PY'
import socket, time
slow = [socket.create_connection(("127.0.0.1", 9580)) for _ in range(200)]
for connection in slow:
    connection.sendall(b"GET /metrics HTTP/1.1\r\n")
time.sleep(60)
PY
net_spawn hostile "$NET_GATEWAY" $python "$NET_DIR/hostile.py"
sleep 1
run server status
check "two hundred slow scrapers: the gateway answers" 0 $CODE
net_kill "$NET_PID"
net_in "$NET_GATEWAY" nft delete table inet culvert_culvert0
match "without its firewall table it is not ready" '"nat"' "$(http "$url/readyz")"
run server health --ready
match "and the command says why" "^1 error: .*nat" "$CODE $ERR"

finish

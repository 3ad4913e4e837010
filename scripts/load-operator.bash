# Sourced by scripts/load: rows about what an operator waits for, with $devices devices and $sessions sessions.
# shellcheck shell=bash disable=SC2154 # scripts/load and scripts/netns.sh set the names

# server ARGUMENTS...: the gateway's command line.
server() { net_in "$NET_GATEWAY" "$CULVERT_BIN/culvert-server" --config "$NET_DIR/gateway.toml" "$@"; }
# spread NAME: records the median and the most of the numbers on standard input.
spread() {
  sort -n >"$NET_DIR/spread"
  record "$1_median_ms" "$(median <"$NET_DIR/spread")"
  record "$1_max_ms" "$(tail -1 "$NET_DIR/spread")"
}
# took COMMAND...: runs it, prints how many milliseconds it took.
took() {
  local began
  began=$(now)
  "$@" >/dev/null 2>>"$NET_DIR/took.log" || return 1
  calc "($(now) - $began) * 1000"
}
rss_kib() { awk '/^VmRSS:/ {print $2}' "/proc/$GATEWAY_PID/status"; }
lost() { jq -s 'map(select(.lost)) | last | [.lost[]] | add // 0' "$NET_DIR/hold.log"; }

# Resident memory, all pages of its file that are in use included.
row_memory() {
  gateway 0 || return 1
  sleep 5
  record rss_empty_kib "$(rss_kib)"
  fill 500 || return 1
  sleep 5
  record rss_sessions_kib "$(rss_kib)"
}

# From the start of the command to the moment at which the client knows; the command's own time apart.
row_revoke() {
  local client began samples=50
  gateway 0 && fill 500 || return 1
  : >"$NET_DIR/revoked"
  : >"$NET_DIR/commands"
  for ((client = 0; client < sessions && samples > 0; client += 1 + sessions / 51, samples--)); do
    began=$(now)
    took server devices revoke "load-$client" >>"$NET_DIR/commands" || return 1
    net_wait 5 "the end of session $client" stopped "$client" || return 1
    calc "($(stopped "$client") - $began) * 1000" >>"$NET_DIR/revoked"
    server devices restore "load-$client" >/dev/null || return 1 # for the other rows
  done
  sleep 1.5 # what the clients tell once a second
  record revoke_samples "$(wc -l <"$NET_DIR/revoked")"
  spread revoke <"$NET_DIR/revoked"
  spread revoke_command <"$NET_DIR/commands"
  record revoke_others_lost $(($(lost) - $(wc -l <"$NET_DIR/revoked")))
}
# stopped CLIENT: when it was told that it is revoked.
stopped() { jq -se --argjson client "$1" 'map(select(.stopped == $client and .why == "revoked")) | first | .unix // empty' "$NET_DIR/hold.log"; }

# Twice more than the registry's counts are kept, which are the dear part.
row_scrape() {
  local url=http://127.0.0.1:9580/metrics
  gateway 0 && fill 500 || return 1
  for _ in {1..40}; do
    net_in "$NET_GATEWAY" curl -sS -o "$NET_DIR/scrape" -w '%{time_total}\n' "$url" || return 1
    sleep 1
  done | awk '{print $1 * 1000}' >"$NET_DIR/scrapes"
  spread scrape <"$NET_DIR/scrapes"
  record scrape_series "$(grep -vc '^#' "$NET_DIR/scrape")"
  record scrape_kib "$(calc "$(wc -c <"$NET_DIR/scrape") / 1024")"
}

# Ten reloads, each with another rate and another policy, beside a ping of a hundred a second through the tunnel.
row_reload() {
  local round
  gateway 0 && laptop && fill 500 || return 1
  net_spawn ping "$NET_CLIENT" ping -n -q -i 0.01 "$target"
  : >"$NET_DIR/reloads"
  for round in {1..10}; do
    sleep 0.5
    configure 0
    printf '[policy.load-1]\nrate = "%sM"\n' "$((round * 10))" >>"$NET_DIR/gateway.toml"
    took server reload >>"$NET_DIR/reloads" || return 1
  done
  sleep 1.5 # what the clients tell once a second
  kill -INT "$NET_PID"
  wait "$NET_PID"
  spread reload <"$NET_DIR/reloads"
  record reload_pings "$(sed -n 's/^\([0-9]*\) packets transmitted.*/\1/p' "$NET_DIR/ping.log")"
  record reload_pings_lost "$(awk '/packets transmitted/ {print $1 - $4}' "$NET_DIR/ping.log")"
  record reload_sessions_lost "$(lost)"
  configure 0
}

# SIGTERM and a new start, as systemctl restart does it: from the signal until every client is served again.
row_restart() {
  local began again
  gateway 0 && fill 500 || return 1
  sleep 3
  began=$(now)
  net_stop "$GATEWAY_PID"
  record restart_stop_s "$(calc "$(now) - $began")"
  gateway 0 || return 1
  record restart_start_s "$(calc "$(now) - $began")"
  again=$(patiently loss "$sessions") || return 1
  record restart_s "$(calc "$again - $began")"
  record restart_outage_p50_ms "$(jq -s 'map(select(.all_open)) | last | .outage_ms.p50' "$NET_DIR/hold.log")"
  record restart_outage_p99_ms "$(jq -s 'map(select(.all_open)) | last | .outage_ms.p99' "$NET_DIR/hold.log")"
}

# A gateway from nothing, with its first invitation, until it says that it is ready; the median of five.
row_init() {
  local round began place=$NET_DIR/fresh
  : >"$NET_DIR/inits"
  for round in {1..5}; do
    rm -rf "$place" && mkdir -p "$place"
    printf '[endpoint]\nname = "%s"\n[state]\ndir = "%s"\n[control]\nsocket = "%s"\n' \
      "$GATEWAY_IP4" "$place/state" "$place/sock" >"$place/gateway.toml"
    fresh_server() { net_in "$NET_GATEWAY" "$CULVERT_BIN/culvert-server" --config "$place/gateway.toml" "$@"; }
    began=$(now)
    fresh_server init --yes --invite anna >/dev/null 2>&1 || return 1
    net_spawn "fresh-$round" "$NET_GATEWAY" "$CULVERT_BIN/culvert-server" --config "$place/gateway.toml" run
    GATEWAY_PID=$NET_PID
    until fresh_server health --ready >/dev/null 2>&1; do
      [ -e "/proc/$GATEWAY_PID" ] || return 1
      sleep 0.02
    done
    calc "$(now) - $began" >>"$NET_DIR/inits"
    net_stop "$GATEWAY_PID"
    GATEWAY_PID=''
  done
  record init_s "$(median <"$NET_DIR/inits")"
}

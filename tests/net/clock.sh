#!/bin/bash
# Proves that a clock that is two hours off, the client's or the gateway's, keeps nobody out, and is named.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-clock
NET_TEST_SECONDS=180
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"
has libfaketime || finish
dpkg-deb -x "$debs"/libfaketime_*.deb "$NET_DIR/faketime"
library=$(find "$NET_DIR/faketime" -name libfaketimeMT.so.1)
# at OFFSET: words that let a program see another time of day; what it measures with goes on as ever.
at() { [ "$1" = 0 ] || echo env LD_PRELOAD="$library" FAKETIME="$1" DONT_FAKE_MONOTONIC=1; }

# A gateway, or a helper, whose clock is so much off.
gateway_at() {
  [ -z "${GATEWAY_PID:-}" ] || net_stop "$GATEWAY_PID"
  mapfile -t gateway_wrapper < <(at "$1" | tr ' ' '\n')
  gateway_start
}
helper_at() {
  [ -z "${HELPER_PID:-}" ] || net_stop "$HELPER_PID"
  rm -rf "$NET_DIR/helper" # a device that nobody knows
  mapfile -t helper_wrapper < <(at "$1" | tr ' ' '\n')
  helper_start
}
through() { pings "$NET_CLIENT" "$inner" -I "$(status .interface)"; }
clock() { culvert doctor --json | jq -r '.checks[] | select(.check == "clock") | "\(.outcome) \(.sentence)"'; }

gateway_init || die "init failed"
gateway_at 0
check "the offset is in force" 2 "$((($(date -d "$($(at +2h) date)" +%s) - $(date +%s) + 60) / 3600))"
inner=$(ip -n "$NET_GATEWAY" -4 -j addr show dev culvert0 | jq -r '.[0].addr_info[0].local')

for offset in -2h +2h; do
  echo "- the client's clock is off by $offset"
  helper_at $offset
  run enrol "$(invitation "client$offset")" --name "laptop$offset"
  check "enrols" 0 "$CODE"
  run culvert connect --wait=15s
  check "connects" "0" "$CODE"
  check "packets cross" 3 "$(through)"
  match "doctor names it" "^(warn|fail) .*2 h(ours)? .*(behind|ahead)" "$(clock)"
  run culvert disconnect
done

for offset in +2h -2h; do
  echo "- the gateway's clock is off by $offset while a device enrols"
  helper_at 0
  gateway_at $offset
  run enrol "$(invitation "gateway$offset")" --name "desk$offset"
  check "enrols" 0 "$CODE"
  run culvert connect --wait=15s
  check "connects" 0 "$CODE"
  match "doctor names it" "^(warn|fail) .*2 h(ours)? .*(behind|ahead)" "$(clock)"
  gateway_at 0
  back() { is_state connected && [ "$(through)" = 3 ]; }
  net_wait 20 "the client's return" back
  check "the clock is right again: the client is back" yes "$(back && echo yes)"
  run culvert disconnect
  run culvert connect --wait=15s
  check "and connects anew" 0 "$CODE"
  run culvert disconnect
done

finish

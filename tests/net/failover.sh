#!/bin/bash
# Proves that a client whose gateway's first endpoint falls silent goes on at the next one, and returns to the first
# without a gap once it answers again.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-fail
NET_TEST_SECONDS=200
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

second=203.0.113.1
other_up
gateway_init || die "init failed"
gateway_set endpoints <<TOML
[endpoint]
extra_names = ["$second"]
TOML
gateway_start
helper_start
run enrol "$INVITATION" --name laptop
check "enrol" 0 $CODE
check "the profile has both endpoints" "$GATEWAY_IP4:443, $second:443" "$(culvert profiles list --json | jq -r '.profiles[0].endpoints | join(", ")')"
run culvert connect --wait=15s
check "connect" 0 $CODE
at() { [ "$(status .state) $(status .gateway.remote)" = "connected $1:443" ]; }
check "at the first endpoint" "connected $GATEWAY_IP4:443" "$(status '"\(.state) \(.gateway.remote)"')"
addresses=$(status '.addresses | join(" ")')
inner=$(ip -n "$NET_GATEWAY" -4 -j addr show dev culvert0 | jq -r '.[0].addr_info[0].local')

net_spawn server "$NET_GATEWAY" $python "$net/flow.py" serve 7000
net_wait 5 "the server" net_in "$NET_CLIENT" $python -c "import socket; socket.create_connection(('$inner', 7000), 1)"
net_spawn flow "$NET_CLIENT" $python "$net/flow.py" echo "$inner" 7000
flow=$NET_PID
# longest: the flow's longest pause since the last call, in ms.
longest() {
  local lines
  lines=$(wc -l <"$NET_DIR/flow.log")
  kill -USR1 "$flow"
  for _ in {1..250}; do [ "$(wc -l <"$NET_DIR/flow.log")" -gt "$lines" ] && break; sleep 0.02; done
  tail -1 "$NET_DIR/flow.log" | cut -d' ' -f1
}
sleep 1
longest >/dev/null

net_in "$NET_GATEWAY" nft -f - <<NFT || die "the rules that silence the first endpoint"
table ip silence {
  chain in {
    type filter hook input priority -10
    ip daddr $GATEWAY_IP4 udp dport 443 drop
  }
}
NFT
began=$(date +%s%3N)
net_wait 25 "the second endpoint" at $second
took=$(($(date +%s%3N) - began))
echo "     the first endpoint is silent: at the second after $took ms"
within "the first endpoint is silent: at the second" 0 15000 $took
check "with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"
# TCP's own timer finds out by itself.
moving() { sleep 0.5 && [ "$(longest)" -lt 400 ]; }
net_wait 30 "the flow going on" moving
longest >/dev/null

net_in "$NET_GATEWAY" nft delete table ip silence
net_wait 100 "the return to the first endpoint" at $GATEWAY_IP4
check "the first endpoint answers again: the client returns" "connected $GATEWAY_IP4:443" "$(status '"\(.state) \(.gateway.remote)"')"
sleep 1
pause=$(longest)
echo "     the return: the flow stood still for $pause ms"
within "the return: the flow stood still" 0 3000 "$pause"
check "the flow is there" yes "$(kill -0 "$flow" 2>/dev/null && echo yes)"
check "with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"
check "one session" 1 "$(sessions '.sessions | length')"
run culvert disconnect
check "disconnect" 0 $CODE
finish

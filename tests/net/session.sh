#!/bin/bash
# Proves that a session begins, survives what networks do, and ends without a trace on either host.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-session
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

# Routes, rules, addresses, firewall, resolver, and the kernel's switches that a gateway turns.
gateway_state() {
  net_state "$NET_GATEWAY"
  net_in "$NET_GATEWAY" sysctl -a -r '\.(ip_forward|forwarding|accept_ra|rp_filter)$' | grep -v '\.culvert0\.' | sort
}
client_state() { net_state "$NET_CLIENT"; }
# A silent link is looked at every 20 s only; packets that stay unanswered are noticed at once.
traffic() {
  net_spawn traffic "$NET_CLIENT" ping -n -i 0.2 $INTERNET_IP4
  traffic=$NET_PID
}
no_session() { [ "$(sessions '.sessions | length')" = 0 ]; }
reaches() { net_in "$NET_CLIENT" ping -n -c 1 -W 1 "$INTERNET_IP4"; }

# A host that does not forward yet, so that the gateway has something to turn on and to put back.
net_in "$NET_GATEWAY" sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
gateway_state >"$NET_DIR/gateway-before.txt"
client_state >"$NET_DIR/client-before.txt"

gateway_init || die "init failed"
gateway_start
helper_start
check "a running gateway changes what the comparison looks at" yes "$([ "$(changes "$NET_DIR/gateway-before.txt" gateway_state)" != none ] && echo yes)"

# --- before there is anything ---

run culvert connect
check "connect before enrolling: exit code" 7 $CODE
match "connect before enrolling: says what to do" 'hint: .*culvert enrol.*\[E410\]$' "$ERR"
check "status before enrolling" not_enrolled "$(status .state)"
run culvert status --check
check "status --check when not connected: exit code" 3 $CODE

run enrol "$INVITATION" --name laptop
check "enrol: exit code" 0 $CODE
match "enrol: says with whom and as what" "^Enrolled with $GATEWAY_IP4 as laptop " "$OUT"
check "devices list knows the device" laptop "$(server devices list --json | jq -r '.devices[].name')"

# --- connected ---

run culvert connect --wait=15s
check "connect: exit code" 0 $CODE
match "connect: says so once it is true" "^Connected to $GATEWAY_IP4$" "$ERR"
check "ping over IPv4" 3 "$(pings "$NET_CLIENT" $INTERNET_IP4)"
check "ping over IPv6" 3 "$(pings "$NET_CLIENT" $INTERNET_IP6)"
addresses=$(status '.addresses | join(" ")')
check "client and gateway agree on the addresses" "$addresses" "$(sessions '.sessions[] | "\(.ipv4) \(.ipv6)"')"
check "client and gateway agree on where the client is" "$(sessions '.sessions[].remote')" "$(status .gateway.seen_as)"
check "the interface has the addresses" "$addresses" \
  "$(ip -n "$NET_CLIENT" -j addr show dev "$(status .interface)" | jq -r '[.[].addr_info[].local] | join(" ")')"
check "status tells what is protected" "true true true" "$(status '.protection | "\(.ipv4) \(.ipv6) \(.dns)"')"
run culvert status --check
check "status --check when connected: exit code" 0 $CODE
run culvert connect
check "connect when connected: exit code" 0 $CODE
match "connect when connected: a note" "^Already connected" "$ERR"

# --- the gateway dies, and comes back ---

net_spawn watch "$NET_CLIENT" env CULVERT_SOCKET="$NET_DIR/helper.sock" "$CULVERT_BIN/culvert" watch --json
watch=$NET_PID
net_wait 5 "the first line of watch" test -s "$NET_DIR/watch.log"
traffic
net_kill "$GATEWAY_PID"
net_wait 15 "noticing that the gateway died" is_state reconnecting
check "a killed gateway is noticed" reconnecting "$(status .state)"
match "the human status says so too" "^Reconnecting to $GATEWAY_IP4" "$(culvert status)"
match "with a cause" "^E104 .+" "$(status '"\(.cause.code) \(.cause.cause)"')"
gateway_start
net_wait 30 "reconnecting" is_state connected
check "connected again by itself" connected "$(status .state)"
check "with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"
check "and packets cross" 3 "$(pings "$NET_CLIENT" $INTERNET_IP4)"

# --- the cable is pulled ---

ip -n "$NET_CLIENT" link set eth0 down
sleep 8
ip -n "$NET_CLIENT" link set eth0 up
ip -n "$NET_CLIENT" addr replace $CLIENT_IP6/64 dev eth0
ip -n "$NET_CLIENT" route replace default via $GATEWAY_IP4
ip -n "$NET_CLIENT" -6 route replace default via $GATEWAY_IP6
net_wait 20 "packets after the cable was pulled" reaches
check "a pulled cable heals by itself" connected "$(status .state)"
check "with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"
check "and packets cross" "3 3" "$(pings "$NET_CLIENT" $INTERNET_IP4) $(pings "$NET_CLIENT" $INTERNET_IP6)"

# --- the gateway is stopped, as its service manager does it ---

kill "$GATEWAY_PID"
wait "$GATEWAY_PID"
check "SIGTERM: the gateway's exit code" 0 $?
check "SIGTERM: nothing of the gateway is left on its host" none "$(changes "$NET_DIR/gateway-before.txt" gateway_state)"
net_wait 5 "noticing that the gateway stopped" is_state reconnecting
match "its goodbye reaches the client" "^E104 shutdown$" "$(status '"\(.cause.code) \(.cause.word)"')"
net_stop "$traffic"

# --- nobody answers ---

run culvert disconnect
check "disconnect while reconnecting: exit code" 0 $CODE
check "disconnect: everything is as before connecting" none "$(changes "$NET_DIR/client-before.txt" client_state)"
run culvert disconnect
match "disconnect when disconnected: a note" "^0 Already disconnected" "$CODE $ERR"
began=$SECONDS
run timeout 20 env CULVERT_SOCKET="$NET_DIR/helper.sock" ip netns exec "$NET_CLIENT" "$CULVERT_BIN/culvert" connect
check "connect to a silent gateway: exit code" 6 $CODE
match "connect to a silent gateway: says why" "^error: .*$GATEWAY_IP4:443.* hint: .*\[E104\]$" "$ERR"
check "connect to a silent gateway: within 10 s" yes "$([ $((SECONDS - began)) -le 10 ] && echo yes || echo "$((SECONDS - began)) s")"
check "the helper's log has colours only on a terminal" 0 "$(grep -c $'\e' "$NET_DIR/helper.log")"
run culvert disconnect
check "giving up leaves everything as before" none "$(changes "$NET_DIR/client-before.txt" client_state)"

# --- the helper dies ---

gateway_start
run culvert connect --wait=15s
check "connect after all that: exit code" 0 $CODE
check "connecting changes what the comparison looks at" yes "$([ "$(changes "$NET_DIR/client-before.txt" client_state)" != none ] && echo yes)"
net_kill "$HELPER_PID"
run culvert status
check "without a helper: exit code" 4 $CODE
match "without a helper: says what to do" '^error: .*hint: .*\[E401\]$' "$ERR"
helper_start
net_wait 15 "the next helper's connection" is_state connected
check "the next helper goes on where a killed one was" connected "$(status .state)"
run culvert disconnect
check "and then undoes what both left" none "$(changes "$NET_DIR/client-before.txt" client_state)"
run culvert connect --wait=15s
check "and connects: exit code" 0 $CODE
check "with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"
kill "$HELPER_PID"
wait "$HELPER_PID"
check "SIGTERM: the helper's exit code" 0 $?
check "SIGTERM: the helper leaves everything as before" none "$(changes "$NET_DIR/client-before.txt" client_state)"
net_wait 5 "the end of the session" no_session
check "and the gateway knows that the session is over" 0 "$(sessions '.sessions | length')"

# --- what watch told meanwhile ---

net_stop "$watch"
grep '^{' "$NET_DIR/watch.log" >"$NET_DIR/watch.json"
check "watch --json: every line is an object of schema 1" "true" "$(jq -s 'all(.schema == 1)' "$NET_DIR/watch.json")"
check "watch --json: the first line is a full snapshot" "connected $addresses" \
  "$(head -1 "$NET_DIR/watch.json" | jq -r '"\(.state) \(.addresses | join(" "))"')"
match "watch --json: then come the changes" "connected reconnecting .*connected .*reconnecting .*disconnecting disconnected" \
  "$(jq -r .state "$NET_DIR/watch.json" | tr '\n' ' ')"

finish

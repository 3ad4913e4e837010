#!/bin/bash
# Proves what an administrator's acts come to at a client that is connected: certificates renew and keys are
# proven again under a running flow, a reload drops nobody, a revocation bites within two seconds and says so.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-admin
NET_TEST_SECONDS=180
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

gateway_init || die "init failed"
# Certificates for forty seconds, so that one renews while somebody looks.
gateway_set auth <<TOML
[auth]
device_lifetime = "40s"
rechallenge = "4s"
TOML
# A network that can grow, whatever init chose.
gateway_set network <<TOML
[network]
ipv4 = "100.101.2.0/24"
TOML
gateway_start
helper_start
run enrol "$INVITATION" --name laptop
check "enrol" 0 $CODE
run culvert connect --wait=15s
check "connect" 0 $CODE
profile=$(find "$NET_DIR/helper/profiles" -name '*.json')
serial() { server devices show laptop --json | jq -r .serial; }
# The serial of the certificate in the client's profile.
kept() { jq -r .chain_pem "$profile" | openssl x509 -noout -serial | sed 's/serial=//' | tr A-F a-f; }
addresses=$(status '.addresses | join(" ")')
inner=$(ip -n "$NET_GATEWAY" -4 -j addr show dev culvert0 | jq -r '.[0].addr_info[0].local')
net_spawn server "$NET_GATEWAY" $python "$net/flow.py" serve 7000
net_wait 5 "the server" net_in "$NET_CLIENT" $python -c "import socket; socket.create_connection(('$inner', 7000), 1)"
net_spawn echo "$NET_CLIENT" $python "$net/flow.py" echo "$inner" 7000
flow=$NET_PID
flows() { [ -e "/proc/$flow" ]; }
opened() { jq -cR 'fromjson? | select(.event == "session_open")' "$NET_DIR/gateway.log" | wc -l; }

echo "- renewal and proof, in the session"

first=$(serial)
check "the profile has the certificate that the registry has" "$first" "$(kept)"
renewed() { [ "$(serial)" != "$first" ] && [ "$(kept)" = "$(serial)" ]; }
net_wait 40 "the renewal" renewed
check "a new certificate in the registry and in the profile" "yes" "$(renewed && echo yes)"
second=$(serial)
again() { [ "$(serial)" != "$second" ]; }
net_wait 40 "the second renewal" again
check "and it renews again" yes "$(again && echo yes)"
check "in one session" 1 "$(opened)"
check "with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"
check "and the flow goes on" yes "$(flows && echo yes)"
check "challenges were answered meanwhile" 0 "$(jq -cR 'fromjson? | select(.reason == "challenge_failed")' "$NET_DIR/gateway.log" | wc -l)"
match "the history tells it" "renewed.*renewed.*enrol_ok" "$(server devices show laptop --json | jq -r '[.history[].event] | join(" ")')"

echo "- reload"

net_spawn ping "$NET_CLIENT" ping -n -q -c 200 -i 0.01 -W 2 "$inner"
ping=$NET_PID
for rate in 1G 2G 3G; do
  gateway_set auth <<TOML
[limits]
rate = "$rate"
TOML
  run server reload
  check "reload with $rate: in force" "0 yes" "$CODE $([[ $OUT = *limits.rate* ]] && echo yes)"
done
wait "$ping"
match "no packet is lost by that" "200 packets transmitted, 200 received" "$(<"$NET_DIR/ping.log")"
# Routes, names and the size of the network, each in place: nobody's interface is made anew.
index() { ip -n "$NET_CLIENT" -j link show dev culvert0 | jq '.[0].ifindex'; }
was=$(index)
net_spawn ping "$NET_CLIENT" ping -n -q -c 400 -i 0.01 -W 2 "$inner"
ping=$NET_PID
gateway_set auth <<TOML
[push]
routes = ["default"]
excluded_routes = ["198.51.100.128/25"]
TOML
run server reload
check "reload: exit code" 0 $CODE
match "reload tells what is in force" "In force now: .*push.excluded_routes" "$OUT"
outside() { ! net_in "$NET_CLIENT" ip route get 198.51.100.200 | grep -q culvert0; }
net_wait 5 "the new routes" outside
check "the client follows at once" yes "$(outside && echo yes)"
gateway_set auth <<TOML
[push]
routes = ["198.51.100.0/24"]
dns = ["gateway"]
domains = ["corp.example"]
[dns]
inner = "office"
zones = ["corp.example=$INTERNET_IP4"]
TOML
run server reload
match "a split tunnel and another zone: in force" "In force now: .*push.routes.*dns.zones, dns.inner" "$OUT"
answers() { [ "$(net_in "$NET_CLIENT" dig +short +time=1 +tries=1 "@$inner" gateway.office)" = "$inner" ]; }
net_wait 5 "the new names" answers
check "names inside have the new domain" "$inner" "$(net_in "$NET_CLIENT" dig +short +time=1 +tries=1 "@$inner" gateway.office)"
split() { ! net_in "$NET_CLIENT" ip route get 203.0.113.9 | grep -q culvert0 && ! outside; }
net_wait 5 "the split tunnel" split
check "only the route goes inside" yes "$(split && echo yes)"
gateway_set network <<TOML
[network]
ipv4 = "100.101.2.0/23"
TOML
run server reload
match "a network that grows: in force" "In force now: network.ipv4" "$OUT"
check "the gateway has it" "100.101.2.1/23" "$(ip -n "$NET_GATEWAY" -4 -o addr show dev culvert0 | awk '{ print $4 }')"
match "its rules have it" "100.101.2.0/23" "$(net_in "$NET_GATEWAY" nft list ruleset)"
inside() { net_in "$NET_CLIENT" ip route get 100.101.3.9 | grep -q culvert0; }
net_wait 5 "the larger network" inside
check "and the client" yes "$(inside && echo yes)"
gateway_set network <<TOML
[network]
ipv4 = "100.101.0.0/20"
TOML
run server reload
match "one in which addresses would be others waits" "After a restart: network.ipv4" "$OUT"
gateway_set network <<TOML
[network]
ipv4 = "100.101.2.0/23"
TOML
gateway_set auth <<TOML
[push]
dns = ["$INTERNET_IP4"]
TOML
run server reload
check "without the gateway's name server nobody listens" "" "$(ip netns exec "$NET_GATEWAY" ss -Hlnu "sport = :53 and src = $inner")"
gateway_set auth <<TOML
[push]
dns = ["gateway"]
TOML
run server reload
net_wait 5 "the name server's return" net_in "$NET_CLIENT" dig +short +time=1 +tries=1 "@$inner" gateway.internal
check "and it comes back" "$inner" "$(net_in "$NET_CLIENT" dig +short +time=1 +tries=1 "@$inner" gateway.internal)"
wait "$ping"
match "no packet is lost by all of that" "400 packets transmitted, 400 received" "$(<"$NET_DIR/ping.log")"
check "in the same interface" "$was" "$(index)"
check "in the same session" 1 "$(opened)"
gateway_set auth <<TOML
[push]
route = []
TOML
kill -HUP "$GATEWAY_PID"
told() { [ "$(logged config_invalid .event)" != null ]; }
net_wait 5 "the refusal" told
match "an invalid one is refused in the log" "did you mean" "$(logged config_invalid .error)"
check "and the client is still connected" connected "$(status .state)"
rm "$NET_DIR/gateway.d/auth.toml"
run server reload
check "the right one again: exit code" 0 $CODE
check "and the flow goes on" yes "$(flows && echo yes)"
check "in the same session still" 1 "$(opened)"

echo "- kick and revocation"

run server sessions kick laptop
match "kick says what it did" "^0 1 session ended$" "$CODE $OUT"
back() { [ "$(opened)" = 2 ] && is_state connected; }
net_wait 10 "the kicked client's return" back
check "a kicked client comes back by itself" yes "$(back && echo yes)"

before=$(date +%s%N)
run server devices revoke laptop
check "revoke: exit code" 0 $CODE
match "revoke says what it did" "laptop may not connect any more.1 session ended" "${OUT//$'\n'/.}"
refused() { is_state failed || is_state blocked; }
net_wait 10 "the client's verdict" refused
echo "     $((($(date +%s%N) - before) / 1000000)) ms from the command to the client's verdict"
match "the client has the reason's code" E301 "$(culvert status --json)"
run culvert status
match "and says it in words" "An administrator removed this device" "$OUT$ERR"
sleep 2
check "and does not try again" 2 "$(opened)"
check "the block is lifted: the gateway has proven itself" 3 "$(pings "$NET_CLIENT" $GATEWAY_IP4)"
run server devices restore laptop
check "restore: exit code" 0 $CODE
run culvert connect --wait=15s
check "a restored device connects" 0 $CODE
check "with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"
run culvert disconnect

finish

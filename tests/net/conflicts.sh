#!/bin/bash
# Proves what happens when the client is not alone on its machine: another program writes the resolver's file, a
# local network has the gateway's addresses, another program holds the routes.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-conflict
NET_TEST_SECONDS=150
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

client_state() { net_state "$NET_CLIENT"; }
resolver=/etc/netns/$NET_CLIENT/resolv.conf
# In the namespace the file is a mount of its own, so it is written in place, as programs in containers do.
names_are() { grep -q "^nameserver $1$" "$resolver"; }

gateway_init || die "init failed"
gateway_set push <<TOML
[push]
dns = ["$DNS_PUSHED"]
TOML
gateway_start
helper_start
run enrol "$INVITATION" --name laptop
check "enrol" 0 $CODE
client_state >"$NET_DIR/client.txt"
run culvert connect --wait=15s
check "connect" 0 $CODE
check "names are looked up at the gateway's server" yes "$(names_are $DNS_PUSHED && echo yes)"

echo "- another program writes the resolver's file"
theirs=198.51.100.99
echo "nameserver $theirs" >"$resolver"
net_wait 5 "the resolver's return" names_are $DNS_PUSHED
check "it is taken back" yes "$(names_are $DNS_PUSHED && echo yes)"
check "and the journal has one entry for it" 1 "$(jq -rs '[.[] | if .made != null then {(.made | tostring): .what.change} else {(.undone | tostring): null} end] | add | map(select(. == "resolver_file")) | length' "$NET_DIR/helper/journal")"
for round in {1..8}; do
  echo "nameserver 198.51.100.$((100 + round))" >"$resolver"
  sleep 0.4
done
match "one that does not give up keeps it, and that is said" "keeps writing" "$(status '.notes | join(" ")')"
run culvert disconnect
check "disconnect" 0 $CODE
check "theirs wins in the end" "nameserver 198.51.100.108" "$(cat "$resolver")"
printf '# the network'\''s own resolver\nnameserver %s' $DNS_BEFORE >"$resolver"
check "the rest is as it was" none "$(changes "$NET_DIR/client.txt" client_state)"

echo "- a local network with the gateway's addresses"
inner=$(jq -r '.networks[0] // empty' <<<"$(server status --json 2>/dev/null)")
[ -n "$inner" ] || inner=$(ip -n "$NET_GATEWAY" -4 -j addr show dev culvert0 2>/dev/null | jq -r '.[0].addr_info[0] | "\(.local)/\(.prefixlen)"')
base=${inner%.*}
ip -n "$NET_CLIENT" link add lan0 type veth peer name lan1
ip -n "$NET_CLIENT" link set lan1 up
ip -n "$NET_CLIENT" addr add "$base.200/24" dev lan0
ip -n "$NET_CLIENT" link set lan0 up
client_state >"$NET_DIR/client-lan.txt"
run culvert connect --timeout 15s
match "it is named, with the choice" "^1 error: .*$base.0/24.* clashes with $base.0/24 on lan0.*overlap gateway, or local.*\[E404\]" "$CODE $(grep ^error <<<"$ERR")"
run culvert disconnect
check "nothing is left behind" none "$(changes "$NET_DIR/client-lan.txt" client_state)"
run culvert settings set overlap sometimes
match "a choice that there is not" "^2 .*ask, gateway or local" "$CODE $ERR"
gateway_inner=$(ip -n "$NET_GATEWAY" -4 -j addr show dev culvert0 | jq -r '.[0].addr_info[0].local')
run culvert settings set overlap local
run culvert connect --wait=15s
check "local: connected" 0 $CODE
match "local: what is given up is said" "$base.0/24 behind the gateway cannot be reached" "$(status '.notes | join(" ")')"
check "local: the addresses stay local" lan0 "$(ip -n "$NET_CLIENT" -j route get "$gateway_inner" | jq -r '.[0].dev')"
run culvert disconnect
run culvert settings set overlap gateway
run culvert connect --wait=15s
check "gateway: connected" 0 $CODE
check "gateway: the gateway answers" 3 "$(pings "$NET_CLIENT" "$gateway_inner")"
net_kill "$HELPER_PID"
helper_start
net_wait 10 "the connection after a crash" is_state connected
run culvert disconnect
check "gateway: nothing is left behind, after a crash in between" none "$(changes "$NET_DIR/client-lan.txt" client_state)"
ip -n "$NET_CLIENT" link del lan0

echo "- another program holds the routes"
ip -n "$NET_CLIENT" route add 10.9.0.0/16 dev eth0 table 25462
run culvert connect --timeout 15s
match "a table that is taken is named" "^1 error: .*25462.*another program.*\[E403\]" "$CODE $(grep ^error <<<"$ERR")"
run culvert disconnect
ip -n "$NET_CLIENT" route del 10.9.0.0/16 dev eth0 table 25462
ip -n "$NET_CLIENT" tuntap add dev culvert0 mode tun
net_spawn holder "$NET_CLIENT" $python -c "
import fcntl, struct, time
tun = open('/dev/net/tun', 'r+b', buffering=0)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH', b'culvert0', 0x1001))
time.sleep(60)"
sleep 0.5
run culvert connect --timeout 15s
match "an interface that is in use is named" "^1 error: .*culvert0.*\[E403\]" "$CODE $(grep ^error <<<"$ERR")"
net_kill "$NET_PID"
run culvert disconnect
ip -n "$NET_CLIENT" tuntap del dev culvert0 mode tun
# Another VPN that has the default route: the tunnel's own packets go through it, and both work.
ip -n "$NET_CLIENT" tuntap add dev other0 mode tun
ip -n "$NET_CLIENT" addr add 10.66.0.2/32 dev other0
ip -n "$NET_CLIENT" link set other0 up
ip -n "$NET_CLIENT" route add 0.0.0.0/1 dev other0
ip -n "$NET_CLIENT" route add 128.0.0.0/1 dev other0
run culvert doctor --json
match "doctor names another VPN" "other0, another program's tunnel" "$(jq -r '.checks[] | select(.check == "routes").sentence' <<<"$OUT")"
run culvert connect --wait=15s
check "two half-default routes of another VPN: connected all the same" 0 $CODE
check "and everything goes into the tunnel" culvert0 "$(ip -n "$NET_CLIENT" -j route get $INTERNET_IP4 | jq -r '.[0].dev')"
run culvert disconnect
ip -n "$NET_CLIENT" link del other0
check "nothing is left behind" none "$(changes "$NET_DIR/client.txt" client_state)"
finish

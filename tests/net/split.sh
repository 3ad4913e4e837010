#!/bin/bash
# Proves that exactly what the gateway pushes goes through the tunnel, and that IPv6 never leaks past it.
name=t-split
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

# The internet host has addresses inside and outside the pushed network: .80, and .53 and .54.
inside=198.51.100.80/28
restart() {
  net_stop "$GATEWAY_PID"
  gateway_start
  run culvert disconnect
  run culvert connect --wait=15s
  check "connect: exit code" 0 $CODE
}
resolver() { net_in "$NET_CLIENT" cat /etc/resolv.conf; }
# The interface that the kernel chooses for a destination.
way() { ip -n "$NET_CLIENT" -j route get "$1" 2>/dev/null | jq -r '.[].dev'; }
# Client packets that crossed the gateway host outside the tunnel, by a counter on its side of the cable.
leaked() { net_in "$NET_GATEWAY" nft -j list table inet leaks | jq '[.nftables[].rule?.expr[]?.counter?.packets // empty] | add'; }

gateway_init || die "init failed"
gateway_start
web_run
helper_start
run enrol "$INVITATION" --name laptop
check "enrol: exit code" 0 $CODE
net_in "$NET_GATEWAY" nft -f - <<NFT
table inet leaks {
  chain outside {
    type filter hook prerouting priority -300
    iifname eth0 ip6 saddr $CLIENT_IP6 ip6 daddr 2001:db8:2::/64 counter
  }
}
NFT

echo "- one network"
gateway_set push <<TOML
[push]
routes = ["$inside"]
dns = []
TOML
before=$(resolver)
restart
tun=$(status .interface)
check "the pushed network goes through the tunnel" "$tun $UPLINK_IP4" "$(way $INTERNET_IP4) $(page "$NET_CLIENT" http://$INTERNET_IP4/)"
check "its neighbour goes past it" "eth0 $CLIENT_IP4" "$(way $DNS_BEFORE) $(page "$NET_CLIENT" http://$DNS_BEFORE/)"
check "IPv6 goes past it" "eth0 $CLIENT_IP6" "$(way $INTERNET_IP6) $(page "$NET_CLIENT" "http://[$INTERNET_IP6]/")"
check "the gateway itself is reached inside" 3 "$(pings "$NET_CLIENT" "$(net_in "$NET_GATEWAY" ip -j addr show dev culvert0 | jq -r '.[].addr_info[] | select(.family == "inet").local')")"
check "status claims no more than that" "false false false" "$(status '.protection | "\(.ipv4) \(.ipv6) \(.dns)"')"
check "the resolver is left alone" "$before" "$(resolver)"

echo "- one IPv6 network"
gateway_set push <<TOML
[push]
routes = ["2001:db8:2::/64"]
dns = ["$DNS_PUSHED"]
TOML
restart
check "the pushed network goes through the tunnel" "$tun $UPLINK_IP6" "$(way $INTERNET_IP6) $(page "$NET_CLIENT" "http://[$INTERNET_IP6]/")"
check "IPv4 goes past it" "eth0 $CLIENT_IP4" "$(way $INTERNET_IP4) $(page "$NET_CLIENT" http://$INTERNET_IP4/)"
check "the pushed name server is asked through the tunnel all the same" "$tun" "$(way $DNS_PUSHED)"
match "and is the resolver's" "^nameserver $DNS_PUSHED$" "$(resolver | grep ^nameserver)"

echo "- everything but one network"
gateway_set push <<TOML
[push]
routes = ["default"]
excluded_routes = ["$DNS_BEFORE/32"]
dns = []
TOML
restart
check "everything goes through the tunnel" "$tun $UPLINK_IP4 $UPLINK_IP6" \
  "$(way $INTERNET_IP4) $(page "$NET_CLIENT" http://$INTERNET_IP4/) $(page "$NET_CLIENT" "http://[$INTERNET_IP6]/")"
check "what is excluded goes past it" "eth0 $CLIENT_IP4" "$(way $DNS_BEFORE) $(page "$NET_CLIENT" http://$DNS_BEFORE/)"
check "the local network stays local" eth0 "$(way $GATEWAY_IP4)"
check "status says that everything is protected" "true true" "$(status '.protection | "\(.ipv4) \(.ipv6)"')"

echo "- everything, through a gateway without IPv6"
gateway_set push <<TOML
[network]
ipv6 = ""
[push]
routes = ["default"]
dns = []
TOML
before=$(leaked)
restart
check "the client has no IPv6 address inside" 1 "$(status '.addresses | length')"
check "IPv4 goes through the tunnel" "$UPLINK_IP4" "$(page "$NET_CLIENT" http://$INTERNET_IP4/)"
began=$EPOCHREALTIME
match "IPv6 is refused" "(unreachable|Permission denied|Couldn't connect|Failed to connect)" "$(page "$NET_CLIENT" "http://[$INTERNET_IP6]/")"
check "at once" yes "$(jq -n "if $EPOCHREALTIME - $began < 1 then \"yes\" else $EPOCHREALTIME - $began end" -r)"
began=$EPOCHREALTIME
check "so that a name with both addresses is reached over IPv4" "$UPLINK_IP4" \
  "$(page "$NET_CLIENT" --resolve "both.test:80:[$INTERNET_IP6],$INTERNET_IP4" http://both.test/)"
check "at once" yes "$(jq -n "if $EPOCHREALTIME - $began < 1 then \"yes\" else $EPOCHREALTIME - $began end" -r)"
check "no IPv6 packet leaked past the tunnel" "$before" "$(leaked)"
check "status says that IPv6 does not leak" "true" "$(status .protection.ipv6)"

run culvert disconnect
check "after disconnect IPv6 works as before" "$CLIENT_IP6" "$(page "$NET_CLIENT" "http://[$INTERNET_IP6]/")"
check "which the leak counter sees" yes "$([ "$(leaked)" -gt "$before" ] && echo yes)"

finish

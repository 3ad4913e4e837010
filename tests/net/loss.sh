#!/bin/bash
# Proves that random loss at full load leaves the MTU where it was, and that a router's congestion marks reach the flows inside.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-loss
NET_TEST_SECONDS=240
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

mtu() { status .path.mtu_bytes; }
discovered() { [ "$(mtu)" -ge 1400 ] && [ "$(sessions '.sessions[].mtu_bytes')" -ge 1400 ]; }
# lossy PERCENT: the cable between client and gateway becomes a link of 100 Mbit/s and 10 ms that loses so many each way.
wan=
lossy() {
  if [ -n "$wan" ]; then net_stop "$wan"; else ip -n "$NET_CLIENT" link del eth0; fi
  net_spawn wan "$NET_CLIENT" "$CULVERT_BIN/wan" eth0 far --rate-mbit 100 --delay-ms 5 --loss-percent "$1" --seconds 120
  wan=$NET_PID
  net_wait 5 "the link" grep -q ready "$NET_DIR/wan.log" || die "no emulated link"
  ip -n "$NET_CLIENT" link set far netns "$NET_GATEWAY" name eth0
  net_address "$NET_CLIENT" eth0 $CLIENT_IP4/24 $CLIENT_IP6/64
  net_address "$NET_GATEWAY" eth0 $GATEWAY_IP4/24 $GATEWAY_IP6/64
  ip -n "$NET_CLIENT" route add default via $GATEWAY_IP4
  ip -n "$NET_CLIENT" -6 route add default via $GATEWAY_IP6
}
# load ARGUMENTS...: iperf3 through the tunnel, both ways at once.
load() { net_in "$NET_CLIENT" timeout 20 iperf3 -c "$gateway" --bidir "$@" >"$NET_DIR/load.log" 2>&1; }
# lost: packets that the link has lost at random so far, of the way that lost fewer.
lost() {
  local lines
  lines=$(wc -l <"$NET_DIR/wan.log")
  kill -USR1 "$wan"
  net_wait 5 "the link's counters" more_lines "$lines" && tail -1 "$NET_DIR/wan.log" | jq '[.[].lost] | min'
}
more_lines() { [ "$(wc -l <"$NET_DIR/wan.log")" -gt "$1" ]; }
# Every inner MTU that either end tells, until it is stopped.
watch() { while sleep 0.3; do echo "$(mtu) $(sessions '.sessions[].mtu_bytes')"; done; }
congested() { sessions '.sessions[].dropped_received.congestion // 0'; }

lossy 0
gateway_init || die "init failed"
gateway_start
helper_start
run enrol "$INVITATION" --name laptop
check "enrol: exit code" 0 $CODE
gateway=$(ip -n "$NET_GATEWAY" -j -4 addr show dev culvert0 | jq -r '.[0].addr_info[0].local')
net_spawn iperf "$NET_GATEWAY" iperf3 -s

for percent in 1 5; do
  echo "- $percent % loss each way"
  lossy $percent
  run culvert connect --wait=15s
  check "$percent %: connect: exit code" 0 $CODE
  net_wait 15 "the discovery of the path" discovered
  before="$(mtu) $(sessions '.sessions[].mtu_bytes')"
  watch >"$NET_DIR/mtus" 2>/dev/null &
  watching=$!
  # Packets as large as the path carries, at more than the link's rate, and TCP after them. Starved of
  # its core a machine gets less through, so it goes on until the link has lost enough.
  for round in 1 2 3; do
    load -u -b 110M -l $(($(mtu) - 28)) -t 5
    load -t 4
    [ "$(wc -l <"$NET_DIR/mtus")" -ge 10 ] && [ "$(lost)" -ge $((percent * 100)) ] && break
  done
  kill $watching
  within "$percent %: each way the link lost packets at random ($round rounds)" $((percent * 100)) 99999 "$(lost)"
  within "$percent %: both MTUs were looked at" 10 200 "$(wc -l <"$NET_DIR/mtus")"
  check "$percent %: they were as before all the time" "$before" "$(sort -u "$NET_DIR/mtus")"
  check "$percent %: nothing was found too big" "null null" "$(status .traffic.dropped.sent.too_big) $(sessions '.sessions[].dropped_sent.too_big')"
  run culvert disconnect
done

echo "- a router that marks one packet in four"
lossy 0
run culvert connect --wait=15s
check "connect: exit code" 0 $CODE
net_in "$NET_GATEWAY" nft -f - <<'NFT'
table inet router {
  chain outer { type filter hook prerouting priority raw; udp dport 443 numgen random mod 4 0 ip ecn set ce; }
  chain inner { type filter hook input priority 0; iifname "culvert0" ip ecn ce counter; }
}
NFT
marks() { net_in "$NET_GATEWAY" nft -j list chain inet router inner | jq '[.. | .counter? // empty | .packets] | add'; }
# A SYN takes no marks, so it may be lost for one, and the next would not ask for ECN (RFC 3168, 6.1.1.1).
net_in "$NET_CLIENT" sysctl -qw net.ipv4.tcp_ecn=1 net.ipv4.tcp_ecn_fallback=0
for _ in 1 2 3 4 5; do
  load -t 3
  [ "$(marks)" -ge 10 ] && break
done
within "a flow that takes marks sees them" 10 1000000 "$(marks)"
lost=$(congested)
net_in "$NET_CLIENT" ping -q -n -c 200 -i 0.01 "$gateway" >/dev/null
within "of 200 pings, which take none, some are lost for them" 20 90 $(($(congested) - lost))

finish

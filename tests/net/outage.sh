#!/bin/bash
# Proves that a client whose network is gone for ten minutes waits without using the processor and is back at once,
# and that one whose link only falls silent notices. Takes ten minutes and no processor, so scripts/test runs it beside
# the others; CULVERT_OUTAGE_SECONDS makes it shorter.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-outage
outage=${CULVERT_OUTAGE_SECONDS:-600}
NET_TEST_SECONDS=$((outage + 120))
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

# cpu: clock ticks (10 ms) that the helper has used, all threads (proc_pid_stat(5), fields 14 and 15).
cpu() { sed 's/.*) //' "/proc/$HELPER_PID/stat" | awk '{print $12 + $13}'; }
not_connected() { [ "$(status .state)" != connected ]; }
took() { echo $(($(date +%s%3N) - began)); }

gateway_init || die "init failed"
gateway_start
helper_start
run enrol "$INVITATION" --name laptop
run culvert connect --wait=15s
check "connect" 0 $CODE
addresses=$(status '.addresses | join(" ")')

echo "- silence while something is sent"
net_spawn pings "$NET_CLIENT" ping -n -i 0.2 $INTERNET_IP4
sleep 1
net_in "$NET_GATEWAY" nft -f - <<NFT || die "the rules of silence"
table inet silence {
  chain in {
    type filter hook input priority -10
    udp dport 443 drop
  }
}
NFT
began=$(date +%s%3N)
net_wait 15 "the notice" not_connected
echo "     noticed after $(took) ms"
within "three echoes lost: it is noticed" 0 10000 "$(took)"
check "and told" reconnecting "$(status .state)"
net_in "$NET_GATEWAY" nft delete table inet silence
net_wait 35 "the connection" is_state connected
kill "$NET_PID"

echo "- $outage s without a network"
ip -n "$NET_CLIENT" link set eth0 down
net_wait 5 "the notice" is_state offline
check "it says that there is no network" offline "$(status .state)"
before=$(cpu)
sleep "$outage" & # a signal is heard while one waits, and not while one sleeps
wait $!
used=$(($(cpu) - before))
echo "     $((used * 10)) ms of processor in $outage s"
within "less than 1 % of a core meanwhile, in ticks" 0 "$outage" $used
ip -n "$NET_CLIENT" link set eth0 up
ip -n "$NET_CLIENT" addr replace $CLIENT_IP6/64 dev eth0
ip -n "$NET_CLIENT" route replace default via $GATEWAY_IP4
ip -n "$NET_CLIENT" -6 route replace default via $GATEWAY_IP6
began=$(date +%s%3N)
net_wait 15 "the connection" is_state connected
echo "     connected $(took) ms after its return"
within "connected after its return" 0 8000 "$(took)"
check "with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"
check "traffic crosses" 3 "$(pings "$NET_CLIENT" $INTERNET_IP4)"
run culvert disconnect
check "disconnect" 0 $CODE
finish

#!/bin/bash
# Proves that TCP flows inside the tunnel survive what happens to the network below it: other addresses, another
# interface, another NAT mapping, no network, sleep, a new gateway process.
#
#   client ── eth0: 192.0.2.0/24 ─────────────────────────────────── gateway
#   client ── eth1: 198.18.0.0/24 ── router (NAT) ── 203.0.113.0/24 ── gateway
#
# How long the flows stood still is printed, and judged by a bound that a starved machine keeps, too. On a quiet
# one it is below 1 s for all but sleep and a new gateway, and below 2 s for those.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-roam
NET_TEST_SECONDS=240
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

# The second network: the other host is its router.
other_up
net_in "$NET_OTHER" sysctl -qw net.ipv4.ip_forward=1
ip link add eth1 netns "$NET_CLIENT" type veth peer name eth1 netns "$NET_OTHER"
net_address "$NET_OTHER" eth1 198.18.0.1/24 198.18.0.9/24
net_address "$NET_CLIENT" eth1 198.18.0.2/24
net_in "$NET_OTHER" nft -f - <<'NFT' || die "the router's rules"
table ip nat {
  chain out {
    type nat hook postrouting priority srcnat
    oifname "eth0" masquerade
  }
}
NFT
ip -n "$NET_CLIENT" route add default via 198.18.0.1 metric 200

gateway_init || die "init failed"
gateway_start
helper_start
run enrol "$INVITATION" --name laptop
check "enrol" 0 $CODE
run culvert connect --wait=15s
check "connect" 0 $CODE
addresses=$(status '.addresses | join(" ")')
inner=$(ip -n "$NET_GATEWAY" -4 -j addr show dev culvert0 | jq -r '.[0].addr_info[0].local')

net_spawn server "$NET_GATEWAY" $python "$net/flow.py" serve 7000
net_wait 5 "the server" net_in "$NET_CLIENT" $python -c "import socket; socket.create_connection(('$inner', 7000), 1)"
down="" echo=""
for mode in down echo; do
  net_spawn "$mode" "$NET_CLIENT" $python "$net/flow.py" $mode "$inner" 7000
  eval "$mode=$NET_PID"
done
flows() { [ "$(ip netns pids "$NET_CLIENT" | grep -cx -e "$down" -e "$echo")" = 2 ]; }

# longest: the pauses of both flows since the last call, "DOWN ECHO" in ms.
longest() {
  local mode lines
  for mode in down echo; do
    lines=$(wc -l <"$NET_DIR/$mode.log")
    kill -USR1 "${!mode}"
    for _ in {1..250}; do [ "$(wc -l <"$NET_DIR/$mode.log")" -gt "$lines" ] && break; sleep 0.02; done
    tail -1 "$NET_DIR/$mode.log" | cut -d' ' -f1
  done | paste -sd' '
}

# survived WHAT MOST: both flows go on, in the session's own addresses; neither stood still for longer than MOST ms.
survived() {
  local pauses
  read -r -a pauses < <(longest)
  echo "     $1: the download stood still for ${pauses[0]} ms, the echo for ${pauses[1]} ms"
  within "$1: the download" 0 "$2" "${pauses[0]}"
  within "$1: the echo" 0 "$2" "${pauses[1]}"
  check "$1: both flows are there" yes "$(flows && echo yes)"
  check "$1: the addresses inside are the same" "$addresses" "$(status '.addresses | join(" ")')"
}

sleep 1
longest >/dev/null

# --- another address on the same network ---

ip -n "$NET_CLIENT" addr add 192.0.2.3/24 dev eth0
ip -n "$NET_CLIENT" addr del $CLIENT_IP4/24 dev eth0
ip -n "$NET_CLIENT" addr add 192.0.2.3/24 dev eth0 2>/dev/null
ip -n "$NET_CLIENT" route replace default via $GATEWAY_IP4
sleep 4
survived "another address" 5000
check "another address: the gateway knows it" 192.0.2.3 "$(sessions '.sessions[0].remote' | cut -d: -f1)"

# --- another interface, behind a NAT ---

ip -n "$NET_CLIENT" link set eth0 down
sleep 4
survived "another interface" 5000
check "another interface: the gateway sees the router's address" $OTHER_IP4 "$(sessions '.sessions[0].remote' | cut -d: -f1)"

# --- another router on that interface ---

ip -n "$NET_CLIENT" route replace default via 198.18.0.9 metric 200
sleep 4
survived "another router" 5000

# --- the NAT forgets the client and gives it another address ---

ip -n "$NET_OTHER" addr add 203.0.113.3/24 dev eth0
ip -n "$NET_OTHER" addr del $OTHER_IP4/24 dev eth0
ip -n "$NET_OTHER" addr add 203.0.113.3/24 dev eth0 2>/dev/null
ip -n "$NET_OTHER" route replace default via 203.0.113.1
sleep 4
survived "another NAT mapping" 5000
check "another NAT mapping: the gateway sees it" 203.0.113.3 "$(sessions '.sessions[0].remote' | cut -d: -f1)"
check "all of that in one session" 1 "$(grep -c '"event":"session_open"' "$NET_DIR/gateway.log")"

# --- no network for a while ---

ip -n "$NET_CLIENT" link set eth1 down
net_wait 5 "noticing that there is no network" is_state offline
check "no network: says so" offline "$(status .state)"
match "no network: and so does the human status" "[Nn]o network|[Oo]ffline|not on any network" "$(culvert status)"
ticks() { awk '{print $14 + $15}' "/proc/$HELPER_PID/stat"; }
before=$(ticks)
sleep 10
within "no network: ticks of CPU (10 ms) in 10 s" 0 20 $(($(ticks) - before))
longest >/dev/null
ip -n "$NET_CLIENT" link set eth1 up
ip -n "$NET_CLIENT" route replace default via 198.18.0.1 metric 200
back=$(date +%s%3N)
net_wait 10 "being connected again" is_state connected
pause=$(($(date +%s%3N) - back))
echo "     the network is back: connected after $pause ms"
within "the network is back: connected soon" 0 5000 $pause
check "the network is back: connected" connected "$(status .state)"
check "the network is back: both flows are there" yes "$(flows && echo yes)"
check "the network is back: packets cross" 3 "$(pings "$NET_CLIENT" "$inner")"
check "the network is back: with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"

# --- a gateway that ends and comes back ---

# TCP's own timers find out by themselves that the path is back.
moving() { sleep 0.5 && read -r -a pauses < <(longest) && [ "${pauses[0]}" -lt 400 ] && [ "${pauses[1]}" -lt 400 ]; }
net_wait 40 "both flows going on" moving
net_kill "$GATEWAY_PID"
gateway_start
net_wait 10 "the session with the new gateway" is_state connected
sleep 3
survived "a gateway that crashes and starts again" 8000

# --- sleep: the program does not run for longer than a session lasts ---

kill -STOP "$HELPER_PID"
sleep 63
kill -CONT "$HELPER_PID"
woke=$(date +%s%3N)
net_wait 10 "packets after the sleep" net_in "$NET_CLIENT" ping -n -c 1 -W 0.2 "$inner"
pause=$(($(date +%s%3N) - woke))
echo "     after sleep: packets cross after $pause ms"
within "after sleep: packets cross" 0 8000 $pause
check "after sleep: connected" connected "$(status .state)"
check "after sleep: with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"
check "after sleep: both flows are there" yes "$(flows && echo yes)"

run culvert disconnect
check "disconnect" 0 $CODE
finish

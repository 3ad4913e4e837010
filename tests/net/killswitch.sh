#!/bin/bash
# Proves that under the kill switch no packet leaves beside the tunnel, in any state, and that it can always be
# lifted; every packet that leaves the client's interface is looked at.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-kill
NET_TEST_SECONDS=180
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

table() { net_in "$NET_CLIENT" nft -j list tables | jq -r '[.nftables[].table.name? | values] | join(" ")'; }
client_state() { net_state "$NET_CLIENT"; }
set_to() { run culvert settings set "$@"; check "settings set $*: exit code" 0 $CODE; }

# A network at home that the kill switch may let through, with a name server on it.
ip -n "$NET_GATEWAY" addr add 192.168.7.1/24 dev eth0
ip -n "$NET_CLIENT" addr add 192.168.7.2/24 dev eth0
client_state >"$NET_DIR/client-before.txt"

net_spawn sniff "$NET_CLIENT" $python "$net/sniff.py" eth0 443 $GATEWAY_IP4 $GATEWAY_IP6
net_wait 5 "the sniffer" grep -q ready "$NET_DIR/sniff.log"

# leave: everything that a program might try, to the internet and to name servers, IPv4 and IPv6.
cat >"$NET_DIR/leave.py" <<'PY'
import socket, sys
lan = sys.argv[1] == "lan"
targets = [("192.168.7.1", 9000)] if lan else [("198.51.100.80", 9000), ("2001:db8:2::80", 9000)]
for address, port in targets + [("192.168.7.1", 53), ("198.51.100.53", 53), ("2001:db8:2::80", 853)]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(family, kind) as s:
            s.settimeout(0.3)
            try:
                s.connect((address, port))
                s.send(b"leak")
            except OSError:
                pass
PY
# leaked WHAT [lan]: what left beside the tunnel while WHAT.
leaked() {
  local before
  before=$(wc -l <"$NET_DIR/sniff.log")
  net_in "$NET_CLIENT" $python "$NET_DIR/leave.py" "${2:-no}"
  net_in "$NET_CLIENT" ping -n -c 1 -W 0.3 $INTERNET_IP4 >/dev/null 2>&1
  net_in "$NET_CLIENT" ping -n -c 1 -W 0.3 $INTERNET_IP6 >/dev/null 2>&1
  sleep 0.1
  tail -n "+$((before + 1))" "$NET_DIR/sniff.log" | sort -u | paste -sd, 
}
# tight WHAT: nothing leaves.
tight() { check "$1: nothing leaves beside the tunnel" "" "$(leaked "$1")"; }

gateway_init || die "init failed"
gateway_start
helper_start
run enrol "$INVITATION" --name laptop
check "enrol" 0 $CODE

# --- the eyes see ---

match "without a wish everything leaves" "tcp 198.51.100.80 9000.*tcp 2001:db8:2::80 9000.*udp 192.168.7.1 53" "$(leaked "at rest")"
run culvert settings list --json
check "the kill switch is on from the start" "0 auto true 1" "$CODE $(jq -r '"\(.kill_switch) \(.allow_lan) \(.schema)"' <<<"$OUT")"
check "and lifted while nothing is wanted" "" "$(table)"

# --- a gateway that does not answer ---

set_to allow-lan off
net_stop "$GATEWAY_PID"
run culvert connect --no-wait
check "connecting: held back" "connecting true" "$(status '"\(.state) \(.kill_switch.in_force)"')"
tight "connecting"
set_to allow-lan on
check "connecting, local networks allowed: only those, and never their name server" "tcp 192.168.7.1 9000,udp 192.168.7.1 9000" "$(leaked "lan" lan)"
set_to allow-lan off

# --- connected ---

gateway_start
net_wait 15 "the connection" is_state connected
check "connected: the status says so" "true true" "$(status '"\(.protection.kill_switch) \(.kill_switch.in_force)"')"
match "connected: and so does the human one" "kill switch on" "$(culvert status)"
tight "connected"
check "connected: packets cross" "3 3" "$(pings "$NET_CLIENT" $INTERNET_IP4) $(pings "$NET_CLIENT" $INTERNET_IP6)"

# Whoever hands out addresses may hand out routes as well (DHCP option 121).
ip -n "$NET_CLIENT" route add 198.51.100.0/25 via $GATEWAY_IP4
tight "connected, with a route that leads past the tunnel"
ip -n "$NET_CLIENT" route del 198.51.100.0/25

# A firewall that is reloaded removes every table.
net_in "$NET_CLIENT" nft flush ruleset
back() { [ "$(table)" = culvert ]; }
net_wait 5 "the block after another program removed it" back
check "removed by another program: it is back" culvert "$(table)"
tight "removed by another program"

# --- reconnecting ---

net_kill "$GATEWAY_PID"
net_spawn traffic "$NET_CLIENT" ping -n -i 0.2 $INTERNET_IP4
net_wait 15 "noticing that the gateway died" is_state reconnecting
tight "reconnecting"
net_stop "$NET_PID"

# --- the tunnel interface goes ---

ip -n "$NET_CLIENT" link del culvert0
tight "without the tunnel interface"

# --- the helper dies, and another one goes on ---

net_kill "$HELPER_PID"
tight "without a helper"
run culvert disconnect --unblock
match "without a helper: says how to lift the block" '^4 error: .*hint: .*culvert-helper recover.*nft delete table inet culvert.*\[E401\]$' "$CODE $ERR"
run net_in "$NET_CLIENT" "$CULVERT_BIN/culvert-helper" recover --state-dir "$NET_DIR/helper"
check "recover: exit code" 0 $CODE
check "recover: everything is as before" none "$(changes "$NET_DIR/client-before.txt" client_state)"
helper_start
check "after recover nothing is wanted" disconnected "$(status .state)"
run culvert connect --no-wait
net_kill "$HELPER_PID"
tight "a helper killed while connecting"
helper_start
check "the next helper goes on where it was" "true" "$(status .kill_switch.in_force)"
tight "the next helper"
gateway_start
net_wait 35 "the connection" is_state connected
check "and connects" connected "$(status .state)"
tight "connected again"
run net_in "$NET_CLIENT" "$CULVERT_BIN/culvert-helper" recover --state-dir "$NET_DIR/helper"
match "recover beside a living helper: refused" '^1 error: .*stop the helper first.*another helper' "$CODE $ERR"
check "and changes nothing" connected "$(status .state)"
run culvert disconnect
check "disconnect: exit code" 0 $CODE
check "disconnect lifts the block; everything is as before" none "$(changes "$NET_DIR/client-before.txt" client_state)"

# --- an impostor ---

net_stop "$GATEWAY_PID"
mv "$NET_DIR/gateway" "$NET_DIR/real"
server init --yes >/dev/null 2>&1 || die "the impostor's init failed"
gateway_start
run culvert connect
match "an impostor: refused" '^5 .*culvert disconnect error: .*\[E201\]$' "$CODE ${ERR//$'\n'/ }"
check "an impostor: blocked, and says so" "blocked E201" "$(status '"\(.state) \(.cause.code)"')"
tight "blocked by an impostor"
run culvert disconnect
check "and disconnect lifts it" none "$(changes "$NET_DIR/client-before.txt" client_state)"
net_stop "$GATEWAY_PID"
rm -rf "$NET_DIR/gateway"
mv "$NET_DIR/real" "$NET_DIR/gateway"
gateway_start

# --- off ---

set_to kill-switch off
run culvert connect --wait=15s
check "off: connect" 0 $CODE
check "off: no block" "" "$(table)"
match "off: the status says so" "kill switch off" "$(culvert status)"
run culvert disconnect

# --- lockdown ---

set_to kill-switch lockdown
check "lockdown: blocked at once" "blocked E416" "$(status '"\(.state) \(.cause.code)"')"
tight "lockdown, disconnected"
run culvert connect --wait=15s
check "lockdown: connect" 0 $CODE
check "lockdown: packets cross" 3 "$(pings "$NET_CLIENT" $INTERNET_IP4)"
tight "lockdown, connected"
run culvert disconnect
match "lockdown: disconnect says that it stays" '^0 Disconnected.*\[E416\]$' "$CODE ${ERR//$'\n'/ }"
tight "lockdown, disconnected again"
net_stop "$HELPER_PID"
tight "lockdown, the helper stopped"
helper_start
check "lockdown: the next helper knows" "blocked" "$(status .state)"
run culvert disconnect --unblock
check "lockdown: --unblock lifts it" "0 disconnected" "$CODE $(status .state)"
check "lockdown: everything is as before" none "$(changes "$NET_DIR/client-before.txt" client_state)"
run culvert connect --wait=15s
run culvert disconnect
check "lockdown: it is back with the next connection" blocked "$(status .state)"

# --- nonsense ---

run culvert settings set kill-switch sometimes
match "a value that cannot be" '^2 error: kill-switch cannot be "sometimes"\. hint: It is off, auto or lockdown$' "$CODE $ERR"
run culvert settings set kill-swich off
match "a key that there is not" "^2 error: .*kill-swich" "$CODE $ERR"
echo '{"kill_switch": "sometimes"' >"$NET_DIR/helper/settings.json"
net_stop "$HELPER_PID"
helper_start
match "a damaged file: said, and the defaults are in force" 'settings.json cannot be used.*\[E417\]' "$(status '.notes | join(" ")')"
check "a damaged file: the default mode" auto "$(culvert settings get kill-switch)"
run culvert settings reset
check "a damaged file: kept aside" "0 yes" "$CODE $([ -s "$NET_DIR/helper/settings.json.damaged" ] && echo yes)"
check "a damaged file: nothing more to say" "" "$(status '.notes // [] | join(" ")')"

# --- a machine without nft ---

net_stop "$HELPER_PID"
helper_wrapper=(env PATH=/nonexistent)
helper_start
run culvert connect
match "without nft: refused, with what to do" '^1 error: .*nft is missing.*hint: .*apt install nftables.*kill-switch off.*\[E415\]$' "$CODE $ERR"
run culvert disconnect
set_to kill-switch off
run culvert connect --wait=15s
check "without nft, and the kill switch off: connect" 0 $CODE
run culvert settings set kill-switch lockdown
match "without nft: lockdown is refused" '^1 error: .*nft is missing.*\[E415\]$' "$CODE $ERR"
check "and stays off" off "$(culvert settings get kill-switch)"
run culvert disconnect
check "disconnect: everything is as before" none "$(changes "$NET_DIR/client-before.txt" client_state)"

finish

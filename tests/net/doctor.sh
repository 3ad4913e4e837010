#!/bin/bash
# Proves that `culvert doctor` names the cause of each failure within 15 s and changes nothing, and that reports
# and logs tell what is asked of them and no names or addresses.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-doctor
NET_TEST_SECONDS=240
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

# doctor WHAT EXIT CODE PATTERN: the verdict; DIAGNOSIS keeps the whole.
doctor() {
  local what=$1 exit=$2 code=$3 pattern=$4 began
  began=$(date +%s%3N)
  run culvert doctor --json
  DIAGNOSIS=$OUT
  check "$what: exit code" "$exit" $CODE
  check "$what: code" "$code" "$(jq -r '.verdict.code // "-"' <<<"$DIAGNOSIS")"
  match "$what: sentence" "$pattern" "$(jq -r .verdict.sentence <<<"$DIAGNOSIS")"
  check "$what: fifteen checks" 15 "$(jq '.checks | length' <<<"$DIAGNOSIS")"
  within "$what: within 15 s" 0 15000 $(($(date +%s%3N) - began))
}
# outcomes: of the checks, in order, one letter each.
outcomes() { jq -r '[.checks[].outcome | {pass: "p", warn: "w", fail: "F", not_checked: "-"}[.]] | join("")' <<<"$DIAGNOSIS"; }
sentence() { jq -r --arg check "$1" '.checks[] | select(.check == $check).sentence' <<<"$DIAGNOSIS"; }
# listens ADDRESS: somebody has bound its port 53.
listens() { net_in "$NET_INTERNET" ss -Hlnu "src $1:53" | grep -q .; }
client_state() { net_state "$NET_CLIENT"; }

run env CULVERT_SOCKET="$NET_DIR/none.sock" "$CULVERT_BIN/culvert" doctor
check "without a helper: exit code" 4 $CODE
match "without a helper: the verdict" "^The background helper does not answer at $NET_DIR/none.sock. \[E401\]" "$OUT"

helper_start
doctor "a fresh machine" 1 E410 "has no access yet"
gateway_init || die "init failed"
gateway_set dns <<TOML
[push]
dns = ["$DNS_PUSHED"]
TOML
gateway_start
run enrol "$INVITATION" --name laptop
check "enrol" 0 $CODE
client_state >"$NET_DIR/client.txt"

echo "- at rest"
doctor "at rest" 0 - "^Nothing stands in the way of a connection to "
check "at rest: ten checks pass" "pppppppppp-----" "$(outcomes)"
check "at rest: nothing is changed" none "$(changes "$NET_DIR/client.txt" client_state)"
no_session() { [ "$(sessions '.sessions | length')" = 0 ]; }
check "at rest: the gateway has no session left" yes "$(net_wait 5 "the end of the session" no_session && echo yes)"
check "at rest: still at rest" disconnected "$(status .state)"
match "the clocks are compared" "differ by [0-9] s" "$(sentence clock)"
run culvert doctor
match "for people: the verdict" "^Nothing stands in the way" "$OUT"
match "for people: a line" " 7  ok +Gateway reachable over UDP +$GATEWAY_IP4:443 answers" "$OUT"

echo "- connected"
root_a=198.41.0.4
ip -n "$NET_INTERNET" addr add $root_a/32 dev lo
net_spawn root "$NET_INTERNET" $python "$net/names.py" $root_a
root=$NET_PID
net_spawn pushed "$NET_INTERNET" $python "$net/names.py" $DNS_PUSHED
run culvert connect --wait=15s
check "connect" 0 $CODE
doctor "connected" 0 - "^Connected to .*nothing is amiss"
check "connected: everything passes" "ppp-ppppppppppp" "$(outcomes)"
match "connected: what is measured" "Round trip [0-9]+ ms" "$(sentence echo)"
net_kill "$NET_PID"
doctor "the gateway's name server is silent" 1 E503 "its name server $DNS_PUSHED does not"
net_spawn pushed "$NET_INTERNET" $python "$net/names.py" $DNS_PUSHED
net_wait 5 "the name server" listens $DNS_PUSHED
net_kill "$root"
doctor "no internet behind the gateway" 1 E501 "the internet behind it does not"
check "that is inferred" inferred "$(jq -r .verdict.certainty <<<"$DIAGNOSIS")"
net_spawn root "$NET_INTERNET" $python "$net/names.py" $root_a
net_wait 5 "the root's name server" listens $root_a
echo "nameserver $DNS_BEFORE" >"/etc/netns/$NET_CLIENT/resolv.conf"
doctor "another program writes the resolver" 1 E403 "another program has changed the resolver"

echo "- a speed test"
run culvert speedtest --seconds 1 --json
check "speedtest: exit code" 0 $CODE
within "speedtest: Mbit/s down" 1 100000 "$(jq '.down_bits_per_second / 1e6 | floor' <<<"$OUT")"
within "speedtest: Mbit/s up" 1 100000 "$(jq '.up_bits_per_second / 1e6 | floor' <<<"$OUT")"
run culvert speedtest --seconds 1
match "speedtest for people" "^Down: +[0-9.]+ [MG]bit/s" "$OUT"
run culvert speedtest --seconds 60
match "a speedtest that is too long" "^2 .*1..=10" "$CODE $ERR"
check "from outside there is no speed test" 0 "$(net_in "$NET_INTERNET" bash -c "ip route add 100.64.0.0/10 via $UPLINK_IP4; exec 3<>/dev/tcp/$(status .gateway.inner)/9581 && echo 'culvert-speed 1 down 1' >&3 && wc -c <&3" 2>/dev/null)"
echo "- a report"
run culvert report --stdout
check "report: exit code" 0 $CODE
for section in Versions Diagnosis Status Settings Profiles "Log of the helper"; do
  match "report: $section" "== $section ==" "$OUT"
done
for secret in "100.77." laptop "$(hostname)" "PRIVATE KEY"; do
  check "report: without $secret" "" "$(grep -F -- "$secret" <<<"$OUT")"
done
run culvert report -o "$NET_DIR/report.txt"
check "report into a file: exit code and mode" "0 600" "$CODE $(stat -c %a "$NET_DIR/report.txt")"
run culvert report -o "$NET_DIR/report.txt"
match "an existing file is not overwritten" "^2 .*exists.*another name" "$CODE $ERR"
run culvert logs --level warn
check "logs: exit code" 0 $CODE
run culvert logs --json
match "logs in JSON" "^1 [1-9]" "$(jq -rs '"\(.[0].schema) \(length)"' <<<"$OUT")"
run culvert logs --level loud
match "logs: an unknown level" "^2 .*error, warn, info or debug" "$CODE $ERR"
run timeout 3 ip netns exec "$NET_CLIENT" env CULVERT_SOCKET="$NET_DIR/helper.sock" "$CULVERT_BIN/culvert" logs --follow --since 0s
check "logs --follow goes on" 124 $CODE

echo "- what stands in the way"
run culvert disconnect
check "disconnect" 0 $CODE
run culvert speedtest
match "speedtest without a connection" "^3 .*not connected.*\[E421\]" "$CODE $ERR"
net_in "$NET_CLIENT" nft -f - <<NFT || die "the rules of a local filter"
table inet littlesnitch {
  chain out {
    type filter hook output priority 10
    udp dport 443 drop
  }
}
NFT
doctor "a local filter" 1 E405 "own filter refuses"
net_in "$NET_CLIENT" nft delete table inet littlesnitch
net_in "$NET_GATEWAY" nft -f - <<NFT || die "the rules of a silent network"
table inet silent {
  chain in {
    type filter hook input priority -10
    udp dport 443 drop
  }
}
NFT
doctor "silence" 1 E104 "$GATEWAY_IP4:443 within 5 s: the gateway is down, or this network blocks UDP"
check "silence: what depends on it is not checked" "ppppppF--p-----" "$(outcomes)"

echo "- a sign-in page"
portal=192.0.2.213
ip -n "$NET_GATEWAY" addr add $portal/32 dev eth0
net_spawn portal "$NET_GATEWAY" $python "$net/sign-in-page.py" $portal "http://login.hotel.example/?from=here"
portal_pid=$NET_PID
net_wait 5 "the sign-in page" page "$NET_CLIENT" "http://$portal/"
doctor "a sign-in page" 1 E102 "needs a sign-in"
check "where it is" "Open http://login.hotel.example/?from=here" "$(jq -r .verdict.action <<<"$DIAGNOSIS")"
net_kill "$portal_pid"
ip -n "$NET_GATEWAY" addr del $portal/32 dev eth0
net_in "$NET_GATEWAY" nft delete table inet silent

net_stop "$GATEWAY_PID"
doctor "a gateway that is down on a machine that is up" 1 E104 "Nothing listens at $GATEWAY_IP4:443"
$python - "$NET_DIR/gateway/gateway/registry.sqlite" <<'PY'
import sqlite3, sys
registry = sqlite3.connect(sys.argv[1])
registry.executescript("DELETE FROM invitation_uses; DELETE FROM devices;")
PY
gateway_start
doctor "a device that the gateway does not know" 1 E303 "does not know"
check "the ninth check says it" "ppppppppFp-----" "$(outcomes)"
ip -n "$NET_CLIENT" link set eth0 down
doctor "no network" 1 E101 "not connected to a network"
ip -n "$NET_CLIENT" link set eth0 up

echo "- uninstall"
run culvert uninstall
match "without a terminal it must be said" "^2 .*--yes" "$CODE $ERR"
run culvert settings set kill-switch lockdown
run culvert uninstall --keep-identity --yes
check "uninstall --keep-identity: exit code" 0 $CODE
check "settings are forgotten, access is not" "disconnected auto false" "$(status '"\(.state) \(.kill_switch.mode) \(.kill_switch.in_force)"')"
run culvert uninstall --yes
check "uninstall: exit code" 0 $CODE
match "uninstall says what is left to do" "To remove the programs: " "$ERR"
check "everything is forgotten" not_enrolled "$(status .state)"
check "no file is left but those of a running helper" "./journal" "$(cd "$NET_DIR/helper" && find . -type f | sort | tr '\n' ' ' | sed 's/ $//')"
finish

#!/bin/bash
# Proves that `culvert-server preflight` and `doctor` name what is wrong on the gateway's host, with a command that
# repairs it, and that the gateway puts its own firewall table back.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-operator
NET_TEST_SECONDS=180
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

# state CHECK: of the last diagnosis, the worst of that name; repair CHECK: its command.
state() { jq -r --arg check "$1" '[.checks[] | select(.check == $check) | .state] | if index("fail") then "fail" elif index("warn") then "warn" else "pass" end' <<<"$OUT"; }
repair() { jq -r --arg check "$1" '[.checks[] | select(.check == $check and .state != "pass") | .repair // "none"] | first // "none"' <<<"$OUT"; }
failed() { jq -r '[.checks[] | select(.state == "fail") | .check] | unique | join(" ")' <<<"$OUT"; }

root_a=198.41.0.4
ip -n "$NET_INTERNET" addr add $root_a/32 dev lo
net_spawn root "$NET_INTERNET" $python "$net/names.py" $root_a
roots=$NET_PID

echo "- before the start"

gateway_init || die "init failed"
run server preflight --json
check "preflight of a good host: exit code" 0 $CODE
check "nothing fails" "" "$(failed)"
check "it says that no gateway runs" "warn false" "$(state gateway) $(jq -r .running <<<"$OUT")"
check "the endpoint is this host" pass "$(state endpoint)"
net_in "$NET_GATEWAY" sysctl -qw net.ipv4.ip_forward=0
run server preflight --json
check "forwarding is off: exit code" 1 $CODE
check "forwarding is off" "fail sysctl -w net.ipv4.ip_forward=1" "$(state forwarding) $(repair forwarding)"
# shellcheck disable=SC2046 # words
net_in "$NET_GATEWAY" $(repair forwarding) >"$NET_DIR/sysctl.txt"
run server preflight --json
check "its command repairs it" pass "$(state forwarding)"
net_spawn occupier "$NET_GATEWAY" $python -c "import socket, time; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 443)); time.sleep(60)"
occupied() { net_in "$NET_GATEWAY" ss -Huln "sport = 443" | grep -q .; }
net_wait 5 "the occupied port" occupied
run server preflight --json
check "the port is taken" "fail" "$(state port)"
net_stop "$NET_PID"

echo "- while it runs"

gateway_start
run server doctor --json
check "doctor of a good gateway: exit code" 0 $CODE
check "nothing fails" "" "$(failed)"
for what in gateway dns forwarding nat firewall uplink mtu endpoint reach internet disk ca certificate pool; do
  match "$what passes" "^(pass|warn)$" "$(state $what)"
done
check "the gateway answers by its public name" pass "$(state reach)"
run server doctor
match "and it says so in words" "Nothing stands in the way" "$OUT"
net_kill "$roots"
run server doctor --json
check "no answer from the internet" "1 fail" "$CODE $(state internet)"
net_spawn root "$NET_INTERNET" $python "$net/names.py" $root_a
net_in "$NET_GATEWAY" nft add table inet other
net_in "$NET_GATEWAY" nft 'add chain inet other forward { type filter hook forward priority 0; policy drop; }'
run server doctor --json
check "another firewall drops what is forwarded" fail "$(state firewall)"
command=$(repair firewall)
match "its command" "nft " "$command"
net_in "$NET_GATEWAY" bash -c "$command"
run server doctor --json
check "which repairs it" pass "$(state firewall)"
net_in "$NET_GATEWAY" nft delete table inet other
ip -n "$NET_GATEWAY" route save default >"$NET_DIR/default.route"
ip -n "$NET_GATEWAY" route del default
ip -n "$NET_GATEWAY" -6 route del default
run server doctor --json
check "no default route" fail "$(state uplink)"
ip -n "$NET_GATEWAY" route restore <"$NET_DIR/default.route"
table() { net_in "$NET_GATEWAY" nft list table inet culvert_culvert0 >"$NET_DIR/table.txt" 2>&1; }
net_in "$NET_GATEWAY" nft delete table inet culvert_culvert0
run server doctor --json
check "the gateway's own table is gone" fail "$(state nat)"
net_wait 70 "the table's return" table
check "and the gateway puts it back" yes "$(table && echo yes)"
check "and says so" nat_restored "$(logged nat_restored .event)"
# It had no way back to a sender that nobody translated.
net_kill "$NET_PID"
net_spawn root "$NET_INTERNET" $python "$net/names.py" $root_a
run server doctor --json
check "all is well again: what fails" "" "$(failed)"

echo "- a caller without the right"

chmod 711 "$NET_DIR"
cp "$CULVERT_BIN/culvert-server" "$NET_DIR/program"
nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups "$NET_DIR/program" --config "$NET_DIR/gateway.toml")
# every WHAT: what needs the running gateway, or its state, is refused to nobody with one sentence and exit code 8.
every() {
  local command
  for command in status "sessions list" "sessions kick laptop" reload health "health --ready" metrics "bans list" \
    "bans add 203.0.113.9" "bans remove 203.0.113.9" "why laptop" "devices list" "devices revoke laptop" \
    "invites list" "invite eve" "ca show"; do
    # shellcheck disable=SC2086 # words
    run net_in "$NET_GATEWAY" "${nobody[@]}" $command
    match "$1: $command" "^8  error: [^ ]" "$CODE $OUT ${ERR//$'\n'/ / }"
  done
}
state_files() { checksums "$NET_DIR/gateway" | grep -v -- '-\(wal\|shm\) '; }
state_files >"$NET_DIR/files.txt"
every "by the socket's mode"
check "nothing has changed" none "$(changes "$NET_DIR/files.txt" state_files)"
chmod 777 "$NET_DIR/gateway.sock"
every "whatever its mode"
check "and nothing has changed" none "$(changes "$NET_DIR/files.txt" state_files)"
check "the audit has who tried" "uid=65534 forbidden" "$(logged admin '"\(.actor | capture("(?<uid>uid=[0-9]+)").uid) \(.result)"')"
run server status
check "root is answered all the same" 0 $CODE

finish

#!/bin/bash
# Proves that a device key that is sealed opens only with its user's keychain (a real Secret Service), that the helper
# forgets it at disconnect, and that nothing gets out while it is locked.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-keychain
NET_TEST_SECONDS=120
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

mkdir -m 700 "$NET_DIR/home" "$NET_DIR/home/run"
# A session of a user: its bus, and the keychain on it, opened by the password that a login gives it.
session=(env -u DISPLAY XDG_DATA_DIRS=/nonexistent HOME="$NET_DIR/home" XDG_RUNTIME_DIR="$NET_DIR/home/run" DBUS_SESSION_BUS_ADDRESS="unix:path=$NET_DIR/home/run/bus")
# Nothing is started by being asked for: what is gone stays gone.
cat >"$NET_DIR/bus.conf" <<XML
<busconfig>
  <type>session</type>
  <listen>unix:path=$NET_DIR/home/run/bus</listen>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
XML
net_spawn bus "$NET_CLIENT" "${session[@]}" dbus-daemon --config-file="$NET_DIR/bus.conf" --nofork --nopidfile
net_wait 5 "the session's bus" test -S "$NET_DIR/home/run/bus" || die "no session bus"
net_spawn keychain "$NET_CLIENT" "${session[@]}" bash -c 'exec gnome-keyring-daemon --foreground --unlock --components=secrets < <(printf secret)'
keychain_pid=$NET_PID
on_bus() { "${session[@]}" dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner string:org.freedesktop.secrets | grep -q true; }
net_wait 10 "the keychain" on_bus || die "no keychain"
# mine COMMAND...: in that session; culvert alone is in none.
mine() { net_in "$NET_CLIENT" "${session[@]}" CULVERT_SOCKET="$NET_DIR/helper.sock" "$CULVERT_BIN/culvert" "$@"; }
culvert() { net_in "$NET_CLIENT" env -u DBUS_SESSION_BUS_ADDRESS CULVERT_SOCKET="$NET_DIR/helper.sock" "$CULVERT_BIN/culvert" "$@"; }
on_disk() { grep -rlE 'PRIVATE KEY' "$NET_DIR/helper" | wc -l; }

gateway_init || die "init failed"
gateway_start
helper_start
run enrol "$INVITATION" --name laptop
check "enrol" 0 $CODE
profile=$(status .profile)
check "a key that is not sealed is on the disk" 1 "$(on_disk)"
run culvert profiles lock "$profile"
match "without a keychain nothing is sealed" "^8 .*keychain.*\[E423\]" "$CODE $ERR"
check "and nothing lost" "1 false" "$(on_disk) $(culvert profiles list --json | jq '.profiles[0].sealed')"
run mine profiles lock nobody
match "a profile that there is not" "^1 .*no profile.*\[E411\]" "$CODE $ERR"
run mine profiles lock "$profile"
check "lock: exit code" 0 $CODE
check "the key is on no disk" "0 true" "$(on_disk) $(culvert profiles list --json | jq '.profiles[0].sealed')"
run mine profiles lock "$profile"
check "lock again changes nothing" 0 $CODE
run culvert doctor --json
check "doctor sees the gateway without the key" "pass pass not_checked" "$(jq -r '[.checks[] | select(.check == "reach" or .check == "identity" or .check == "admission").outcome] | join(" ")' <<<"$OUT")"
match "what is known of the certificate is still told" "^20" "$(status .certificate.until)"

run culvert connect
match "without the keychain there is no connection" "^8 .*keychain.*\[E423\]" "$CODE $ERR"
check "and none is wanted" disconnected "$(status .state)"
run mine connect --wait=15s
check "with it there is" 0 $CODE
check "traffic crosses" 3 "$(pings "$NET_CLIENT" $INTERNET_IP4)"
run culvert connect
check "who is connected needs no keychain to hear so" "0 connected" "$CODE $(status .state)"
check "the key is on no disk while connected" 0 "$(on_disk)"
net_kill "$HELPER_PID"
helper_start
blocked() { is_state blocked; }
net_wait 10 "the block" blocked
check "a helper that crashed has no key, and says so" "blocked E423" "$(status '"\(.state) \(.cause.code)"')"
check "and nothing gets out" "" "$(net_in "$NET_CLIENT" ping -n -c 1 -W 1 $INTERNET_IP4 2>&1 | grep -o ' 1 received')"
run mine connect --wait=15s
check "the keychain opens it again" 0 $CODE
run culvert disconnect
check "disconnect" 0 $CODE
run culvert connect
check "the helper has forgotten the key" 8 $CODE

net_kill "$keychain_pid"
run mine connect
match "a keychain that is gone is named" "^8 .*keychain does not answer.*\[E423\]" "$CODE $ERR"
net_spawn keychain "$NET_CLIENT" "${session[@]}" bash -c 'exec gnome-keyring-daemon --foreground --unlock --components=secrets < <(printf secret)'
net_wait 10 "the keychain" on_bus
run mine profiles unlock "$profile"
check "unlock: exit code" 0 $CODE
check "the key is on the disk again" "1 false" "$(on_disk) $(culvert profiles list --json | jq '.profiles[0].sealed')"
run culvert connect --wait=15s
check "and opens for everybody who may control the VPN" 0 $CODE
run culvert disconnect
run mine profiles unlock "$profile"
match "what is not locked" "^0 .*is not locked" "$CODE $ERR"
finish

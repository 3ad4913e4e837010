#!/bin/bash
# Proves that a profile of `culvert-server mdm-profile`, put in its place by root, enrols a machine by itself and once,
# locks what it says, and that the user hears so. The real gateway writes it, the real helper reads it.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-managed
NET_TEST_SECONDS=120
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

# profile ARGUMENTS...: a new one, in its place in one step.
managed=/etc/culvert/managed.mobileconfig
profile() {
  mkdir -p /etc/culvert
  server mdm-profile --org Acme --team-id ABCDE12345 "$@" >"$NET_DIR/new" && chmod 600 "$NET_DIR/new" &&
    cp -p "$NET_DIR/new" /etc/culvert/new && mv /etc/culvert/new $managed
}
devices() { server devices list --json | jq '.devices | length'; }
is_enrolled() { [ "$(status .state)" != not_enrolled ]; }
is_managed() { culvert settings list --json | jq -e .managed >/dev/null; }

gateway_init || die "init failed"
gateway_start
helper_start
check "before, nobody manages this machine" "0 null" "$(culvert settings list --json | jq -r '"\(.locked | length) \(.managed)"')"

profile --uses 2 --allow-lan off --lockdown off || die "no profile"
net_wait 15 "the enrolment" is_enrolled || die "the profile enrols nobody"
check "the profile comes while the helper runs, and the machine is enrolled" "1 mdm" "$(devices) $(server devices list --json | jq -r '.devices[0].user')"
run culvert settings list
match "the settings say who decides" "allow-lan +off .*\(locked\).*Managed by Acme" "${OUT//$'\n'/ }"
check "in JSON, too" "allow_lan Acme false" "$(culvert settings list --json | jq -r '"\(.locked | join(",")) \(.managed.organization) \(.allow_lan)"')"
run culvert settings set allow-lan on
match "a locked setting is refused with its reason" "^8 error: Managed by Acme: allow-lan is off.*\[E424\]" "$CODE $ERR"
run culvert settings set kill-switch lockdown
match "so is lockdown, where it is not to be" "^8 error: Managed by Acme: kill-switch cannot be lockdown" "$CODE $ERR"
run culvert settings set kill-switch off
check "another mode may be chosen" "0 off" "$CODE $(culvert settings get kill-switch)"
run culvert settings reset
match "a reset leaves alone what is locked" "^0 .*allow-lan is off.*Managed by Acme" "$CODE ${ERR//$'\n'/ }"
run culvert connect --wait=15s
check "the machine connects" "0 connected" "$CODE $(status .state)"
check "traffic crosses" 3 "$(pings "$NET_CLIENT" "$INTERNET_IP4")"
run culvert disconnect

net_kill "$HELPER_PID"
helper_start
sleep 2
check "a restart uses no invitation again" 1 "$(devices)"
profile --uses 2 --lockdown on
locked() { [ "$(culvert settings list --json | jq -r '.locked | join(",")')" = kill_switch ]; }
net_wait 10 "the second profile" locked
check "a later profile decides anew, and enrols nobody who has access" "lockdown 1" "$(culvert settings get kill-switch) $(devices)"
check "lockdown is in force" "blocked 0" "$(status .state) $(pings "$NET_CLIENT" "$INTERNET_IP4")"
run culvert settings set kill-switch off
match "and cannot be lifted by a setting" "^8 .*kill-switch is lockdown" "$CODE $ERR"

chmod 666 $managed
is_free() { ! is_managed; }
mv $managed /etc/culvert/other && mv /etc/culvert/other $managed
net_wait 10 "the file that anybody may write" is_free
match "a file that others may write decides nothing, and that is said" "others than root.*\[E425\]" "$(culvert status --json | jq -r '.notes | join(" ")')"
rm $managed
run culvert settings set kill-switch off
check "without the file the user decides" "0 off" "$CODE $(culvert settings get kill-switch)"
finish

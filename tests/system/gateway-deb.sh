#!/bin/bash
# Proves that the gateway's package makes a gateway of a Debian that boots systemd by one command, unprivileged and
# watched over; that its clients are back after a crash, a hang, a reboot and an upgrade; and that purging it leaves nothing.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-gwdeb
NET_TEST_SECONDS=240
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/../net/lib.bash"
# shellcheck source=tests/system/machine.bash
. "$(dirname "$0")/machine.bash"

unit() { machine_in systemctl show --value -p "$1" culvert-server.service; }
gateway() { machine_in culvert-server "$@"; }
# said TEXT: that the gateway has logged it since this boot of its machine.
said() { machine_in journalctl --boot --quiet --unit culvert-server.service | grep -F "$1"; }
forwards() { net_in "$NET_GATEWAY" sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding | paste -sd' '; }
tables() { net_in "$NET_GATEWAY" nft -j list tables | jq -r '[.nftables[].table.name? | values] | join(" ")'; }
# What in the state directory the gateway could not use.
strangers() { machine_in find /var/lib/culvert-server ! -user culvert-server; }
through_the_tunnel() { [ "$(page "$NET_CLIENT" "http://$INTERNET_IP4/")" = "$UPLINK_IP4" ]; }
# Without a word from anybody.
back() {
  net_wait 20 "the connection after $1" is_state connected
  check "$1: the client is back by itself" connected "$(status .state)"
  net_wait 5 "the web after $1" through_the_tunnel
  check "$1: and reaches the web through the tunnel" $UPLINK_IP4 "$(page "$NET_CLIENT" "http://$INTERNET_IP4/")"
}
another_process() { [ "$(unit MainPID)" -gt 0 ] && [ "$(unit MainPID)" != "$pid" ] && [ "$(unit ActiveState)" = active ]; }
# Every path in a root that does not run, but for what any boot and any dpkg writes.
files() { (cd "$MACHINE" && find . -xdev | grep -Ev '^\./(var/log|var/lib/dpkg|tmp|run)/|^\./var/tmp/systemd-private-' | sort); }

CULVERT_SETUP_DONE=1 "$root/scripts/package" linux --bin "$CULVERT_BIN" --out "$NET_DIR" >"$NET_DIR/package.log" 2>&1 || die "scripts/package failed"
deb=$(compgen -G "$NET_DIR/culvert-server_*.deb") || die "no package was made"
run lintian --allow-root --fail-on error,warning "$deb"
check "lintian finds nothing" "0 " "$CODE $OUT"

web_run
# As on a machine of its own: its root may set what is the network's.
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
machine_make
cp "$deb" "$MACHINE/root/culvert-server.deb"
# A host that does not forward, and has its way out from a router's advertisement.
net_in "$NET_GATEWAY" sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
ip -n "$NET_GATEWAY" -6 route replace default via $INTERNET_IP6 dev eth1 proto ra
# A watchdog that does not keep this test waiting.
mkdir -p "$MACHINE/etc/systemd/system/culvert-server.service.d"
printf '[Service]\nWatchdogSec=3\n' >"$MACHINE/etc/systemd/system/culvert-server.service.d/test.conf"
machine_boot "$NET_GATEWAY"
machine_in useradd -m anna
machine_in useradd -m bob
files >"$NET_DIR/files.txt"

echo "- installed"

run machine_in dpkg -i /root/culvert-server.deb
check "dpkg -i: exit code" 0 $CODE
check "the host forwards" "1 1" "$(forwards)"
check "and still takes its router's advertisements, and nobody else's" "2 1" \
  "$(net_in "$NET_GATEWAY" sysctl -n net.ipv6.conf.eth1.accept_ra net.ipv6.conf.eth0.accept_ra | paste -sd' ')"
check "the state is for the gateway only" "700 culvert-server culvert-server" "$(machine_in stat -c '%a %U %G' /var/lib/culvert-server)"
check "nothing runs yet, nor at the next boot" "disabled inactive" \
  "$(machine_in systemctl is-enabled culvert-server.service) $(unit ActiveState)"
run machine_in systemctl start culvert-server.service
check "a start without a gateway fails" 1 $CODE
match "and says what to do" "run culvert-server init" "$(said "there is no gateway")"
score=$(machine_in systemd-analyze security --no-pager culvert-server.service | sed -n 's/.*Overall exposure level.*: \([0-9.]*\) .*/\1/p')
echo "     systemd-analyze security: $score"
within "systemd-analyze security, in tenths" 0 20 "$(tr -d . <<<"$score")"
check "systemd-analyze verify" "" "$(machine_in systemd-analyze verify culvert-server.service 2>&1 | grep -i culvert | grep -v "Command 'man")"
check "alert rules and a dashboard" "culvert-alerts.yml culvert-dashboard.json" "$(machine_in ls /usr/share/culvert-server/monitoring | paste -sd" ")"
check "completions" "" "$(machine_in bash -n /usr/share/bash-completion/completions/culvert-server 2>&1)"

echo "- one command"

run gateway init --invite laptop
check "behind NAT: exit code" 2 $CODE
match "behind NAT: what to say" "culvert-server init --endpoint vpn.example.org" "$ERR"
run gateway init --endpoint $GATEWAY_IP4 --dry-run
match "a dry run says what init would do to the unit" "culvert-server.service, which init would start" "$OUT"
check "and does nothing" "" "$(machine_in ls -A /var/lib/culvert-server /etc/culvert-server 2>/dev/null | grep -v :)"
begin=$(date +%s%3N)
run gateway init --endpoint $GATEWAY_IP4 --invite laptop --json
echo "     from nothing to a running gateway: $(($(date +%s%3N) - begin)) ms"
check "init: exit code" "0 " "$CODE $ERR"
check "init: the unit runs, and at every boot" "started active enabled" \
  "$(jq -r .service <<<"$OUT") $(unit ActiveState) $(machine_in systemctl is-enabled culvert-server.service)"
INVITATION=$(jq -re .invitation <<<"$OUT")
run gateway init
match "a second init changes nothing" "^0 There is a gateway here already" "$CODE $OUT"
pid=$(unit MainPID)
check "its user and its two capabilities" "culvert-server 0000000000001400" \
  "$(machine_in ps -o user:20= -p "$pid" | xargs) $(machine_in sed -n 's/^CapEff:\t//p' "/proc/$pid/status")"
check "root's init has left nothing that it cannot use" "" "$(strangers)"

[ "$(unit ActiveState)" = active ] || die "there is no gateway: $(said error)"

helper_start
run enrol "$INVITATION"
check "a client enrols" "0" "$CODE"
run culvert connect --wait=15s
check "and connects" "0" "$CODE"
check "the web is reached through the tunnel" $UPLINK_IP4 "$(page "$NET_CLIENT" "http://$INTERNET_IP4/")"
one_session() { [[ $(unit StatusText) = "serving $GATEWAY_IP4:443, 1 session" ]]; }
net_wait 10 "the status in words" one_session
check "systemctl status tells the sessions" "serving $GATEWAY_IP4:443, 1 session" "$(unit StatusText)"

run gateway invite ben --out /root/ben.invite
check "root invites while it runs" "0 root 600" "$CODE $(machine_in stat -c '%U %a' /root/ben.invite)"
run gateway devices list
check "root's commands leave nothing that it cannot use" "0 " "$CODE $(strangers)"
machine_in usermod -aG culvert-server anna
run machine_in runuser -u anna -- culvert-server status
check "a member of the group may ask" 0 $CODE
run machine_in runuser -u bob -- culvert-server status
check "nobody else" 8 $CODE
run gateway run
match "root cannot run it beside its unit" "^8 .*systemctl start culvert-server" "$CODE $ERR"

echo "- reload, crash, hang"

since=$(gateway sessions list --json | jq -r '.sessions[0].since')
run machine_in systemctl reload culvert-server.service
check "reload: exit code" 0 $CODE
heard() { said reload; }
net_wait 5 "the reload" heard
check "reload: the same process and the same session" "$pid $since" "$(unit MainPID) $(gateway sessions list --json | jq -r '.sessions[0].since')"
machine_in systemctl kill --kill-who=main --signal=KILL culvert-server.service
net_wait 15 "another process" another_process
back killed
pid=$(unit MainPID)
machine_in systemctl kill --kill-who=main --signal=STOP culvert-server.service
net_wait 20 "another process" another_process
match "a process that hangs: the watchdog's doing" "Watchdog timeout" "$(machine_in journalctl --boot --quiet --unit culvert-server.service)"
back hung
pid=$(unit MainPID)

echo "- a host that no longer forwards"

net_in "$NET_GATEWAY" sysctl -qw net.ipv4.ip_forward=0
run machine_in systemctl restart culvert-server.service
check "it does not start" 1 $CODE
match "and says what to do" "run: sysctl -w net.ipv4.ip_forward=1" "$(said "does not forward IPv4" | tail -1)"
net_in "$NET_GATEWAY" sysctl -qw net.ipv4.ip_forward=1
net_wait 15 "another process" another_process
back repaired

echo "- reboot, upgrade, removal"

machine_stop
check "a stop undoes what it changed" "" "$(tables)$(ip -n "$NET_GATEWAY" -br link show culvert0 2>/dev/null)"
net_in "$NET_GATEWAY" sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
machine_boot "$NET_GATEWAY"
check "reboot: it runs, and the host forwards" "active 1 1" "$(unit ActiveState) $(forwards)"
back rebooted
pid=$(unit MainPID)
run machine_in dpkg -i /root/culvert-server.deb
check "upgrade: exit code" 0 $CODE
check "upgrade: another process" yes "$(another_process && echo yes)"
back upgraded
run machine_in dpkg -r culvert-server
check "dpkg -r: exit code" 0 $CODE
check "dpkg -r: nothing of it is in force" "" "$(tables)$(ip -n "$NET_GATEWAY" -br link show culvert0 2>/dev/null)"
check "dpkg -r keeps the gateway" yes "$([ -f "$MACHINE/var/lib/culvert-server/gateway/ca.key" ] && echo yes)"
pid=0
run machine_in dpkg -i /root/culvert-server.deb
check "installed again: exit code" 0 $CODE
back reinstalled
run machine_in dpkg -P culvert-server
check "dpkg -P: exit code" 0 $CODE
check "dpkg -P: no user, no group" "" "$(grep -h culvert "$MACHINE/etc/passwd" "$MACHINE/etc/group")"
check "dpkg -P: nothing in /run" "" "$(machine_in find /run -maxdepth 1 -name '*culvert*')"
rm "$MACHINE/root/ben.invite"
machine_stop
check "dpkg -P: no file is left" none "$(changes "$NET_DIR/files.txt" files)"
finish

#!/bin/bash
# Proves that the client's package installs on a Debian that boots systemd, starts by itself, lets in who may come in,
# survives crashes, upgrades and reboots as the kill switch promises, and leaves nothing behind.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-deb
NET_TEST_SECONDS=300
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/../net/lib.bash"
# shellcheck source=tests/system/machine.bash
. "$(dirname "$0")/machine.bash"

anna() { machine_in runuser -u anna -- culvert "$@"; }
bob() { machine_in runuser -u bob -- culvert "$@"; }
status() { machine_in culvert status --json | jq -r "$1"; }
unit() { machine_in systemctl show --value -p "$2" "$1"; }
tables() { net_in "$NET_CLIENT" nft -j list tables | jq -r '[.nftables[].table.name? | values] | join(" ")'; }
client_state() { net_state "$NET_CLIENT"; }
resolver() { sha256sum <"$MACHINE/etc/resolv.conf"; }
# Every path in a root that does not run, but for what any boot and any dpkg writes.
files() { (cd "$MACHINE" && find . -xdev | grep -Ev '^\./(var/log|var/lib/dpkg|tmp|run)/|^\./var/tmp/systemd-private-' | sort); }
helper_pid() { unit culvert.service MainPID; }

CULVERT_SETUP_DONE=1 "$root/scripts/package" linux --bin "$CULVERT_BIN" --out "$NET_DIR" >"$NET_DIR/package.log" 2>&1 || die "scripts/package failed"
deb=$(compgen -G "$NET_DIR/culvert_*.deb") || die "no package was made"
run lintian --allow-root --fail-on error,warning "$deb"
check "lintian finds nothing" "0 " "$CODE $OUT"

web_run
gateway_init || die "init failed"
gateway_start
machine_make
cp "$deb" "$MACHINE/root/culvert.deb"
# What tries to get out as early as the network allows, at every boot.
cat >"$MACHINE/etc/systemd/system/early.service" <<UNIT
[Unit]
DefaultDependencies=no
After=local-fs.target network-pre.target
Before=network.target
[Service]
Type=oneshot
ExecStart=/bin/bash -c 'for port in 9 53; do echo leak >/dev/udp/$INTERNET_IP4/\$port; done; true'
[Install]
WantedBy=multi-user.target
UNIT
# A network that has to be there before sysinit.target, as cloud-init's on a machine in a cloud.
cat >"$MACHINE/etc/systemd/system/cloud.service" <<UNIT
[Unit]
DefaultDependencies=no
Wants=network.target
After=network.target
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
[Install]
WantedBy=multi-user.target
UNIT
ln -s /etc/systemd/system/{early,cloud}.service "$MACHINE/etc/systemd/system/multi-user.target.wants/"
net_spawn sniff "$NET_CLIENT" $python "$net/sniff.py" eth0 443 $GATEWAY_IP4 $GATEWAY_IP6
net_wait 5 "the sniffer" grep -q ready "$NET_DIR/sniff.log"
# left: what has left beside the tunnel since the last call.
seen=0
left() {
  local lines
  lines=$(tail -n "+$((seen + 2))" "$NET_DIR/sniff.log")
  seen=$(($(wc -l <"$NET_DIR/sniff.log") - 1))
  sort -u <<<"$lines" | paste -sd,
}
client_state >"$NET_DIR/client.txt"
machine_boot "$NET_CLIENT"
check "the eyes see what leaves at boot" "udp $INTERNET_IP4 53,udp $INTERNET_IP4 9" "$(left)"
check "a network before sysinit.target is set up" active "$(machine_in systemctl is-active cloud.service)"
machine_in useradd -m anna
machine_in useradd -m bob
files >"$NET_DIR/files.txt"

echo "- installed"

run machine_in dpkg -i /root/culvert.deb
check "dpkg -i: exit code" 0 $CODE
check "the units run" "active active" "$(machine_in systemctl is-active culvert.socket culvert.service | paste -sd' ')"
check "and at the next boot" "enabled enabled" "$(machine_in systemctl is-enabled culvert.socket culvert.service | paste -sd' ')"
machine_in usermod -aG culvert anna
check "a member of the group may look" not_enrolled "$(anna status --json | jq -r .state)"
check "anybody else, too" not_enrolled "$(bob status --json | jq -r .state)"
run bob settings set kill-switch off
match "but may change nothing" "^8 .*may not control the VPN.*\[E409\]" "$CODE $ERR"
match "with a hint that helps" "group culvert" "$ERR"
run machine_in runuser -u anna -- culvert enrol --name laptop - <<<"$INVITATION"
check "a member enrols: exit code" 0 $CODE
run anna connect --wait=15s
check "a member connects: exit code" 0 $CODE
check "the web is reached through the tunnel" $UPLINK_IP4 "$(machine_in curl -sS --max-time 5 "http://$INTERNET_IP4/")"
match "systemctl status tells the state" "^connected, profile " "$(unit culvert.service StatusText)"
check "the state is for root only" "700 root" "$(stat -c '%a %U' "$MACHINE/var/lib/culvert")"
check "completions" "" "$(machine_in bash -n /usr/share/bash-completion/completions/culvert 2>&1)"
score=$(machine_in systemd-analyze security --no-pager culvert.service | sed -n 's/.*Overall exposure level.*: \([0-9.]*\) .*/\1/p')
echo "     systemd-analyze security: $score"
within "systemd-analyze security, in tenths" 0 30 "$(tr -d . <<<"$score")"
check "systemd-analyze verify" "" "$(machine_in systemd-analyze verify culvert.service culvert.socket 2>&1 | grep -i culvert | grep -v "Command 'man")"

echo "- whoever sits at the machine"

# sit CLASS: a session of bob's at the screen, as a display manager opens it; there is no screen here, so it is made the
# active one.
sit() {
  machine_in systemd-run --quiet --unit=seat --property=User=bob --property=PAMName=login --setenv=XDG_SEAT=seat0 \
    --setenv=XDG_SESSION_TYPE=x11 --setenv=XDG_SESSION_CLASS="$1" sleep 300
  net_wait 10 "the session at the screen" seated
  machine_in loginctl activate "$(seat)"
  check "a session of class $1 is the active one" "$1 yes" "$(machine_in loginctl show-session -p Class -p Active --value "$(seat)" | sort | paste -sd' ')"
}
seat() { machine_in loginctl list-sessions --no-legend | awk '$3 == "bob" && $4 == "seat0" {print $1}'; }
seated() { [ -n "$(seat)" ]; }
gone() { ! seated; }
stand_up() {
  machine_in systemctl stop seat
  net_wait 10 "the end of the session at the screen" gone
}
sit greeter
run bob settings get kill-switch
check "who asks for passwords at the screen may change nothing" 8 $CODE
stand_up
sit user
run bob settings get kill-switch
check "whoever sits there may change things" "0 auto" "$CODE $OUT"
stand_up
run bob settings get kill-switch
check "until he has logged out" 8 $CODE

echo "- killed"

left >/dev/null
machine_in systemctl kill --kill-who=main --signal=KILL culvert.service
for _ in {1..20}; do machine_in bash -c "echo leak >/dev/udp/$INTERNET_IP4/9" 2>/dev/null; sleep 0.05; done
net_wait 10 "the connection after a crash" is_state connected
check "killed: it goes on by itself" connected "$(status .state)"
check "killed: nothing left beside the tunnel meanwhile" "" "$(left)"

echo "- upgraded"

before=$(helper_pid)
run machine_in dpkg -i /root/culvert.deb
check "upgrade: exit code" 0 $CODE
for _ in {1..20}; do machine_in bash -c "echo leak >/dev/udp/$INTERNET_IP4/9" 2>/dev/null; sleep 0.05; done
net_wait 10 "the connection after the upgrade" is_state connected
check "upgrade: another process" yes "$([ "$(helper_pid)" != "$before" ] && echo yes)"
check "upgrade: connected, without a word" connected "$(status .state)"
check "upgrade: nothing left beside the tunnel meanwhile" "" "$(left)"

echo "- stopped, and started by whoever asks"

run machine_in systemctl stop culvert.service
check "stop: exit code" 0 $CODE
check "stop: the network is as it was" none "$(changes "$NET_DIR/client.txt" client_state)"
check "the next question starts it again" connected "$(net_wait 10 x is_state connected; status .state)"
run anna disconnect
check "disconnect: exit code" 0 $CODE
check "disconnect: the network is as it was" none "$(changes "$NET_DIR/client.txt" client_state)"

echo "- lockdown and reboots"

run anna settings set kill-switch lockdown
check "lockdown: exit code" 0 $CODE
machine_stop
check "a machine that is off leaves what the kernel keeps" culvert "$(tables)"
# Its kernel is ours, and a real one would have forgotten.
net_in "$NET_CLIENT" nft delete table inet culvert
left >/dev/null
machine_boot "$NET_CLIENT"
check "reboot under lockdown: nothing gets out before it is in force" "" "$(left)"
check "reboot under lockdown: the state" "blocked E416" "$(status '"\(.state) \(.cause.code)"')"
# systemd leaves a unit out where two orders contradict each other.
check "reboot: a network before sysinit.target is set up as before" active "$(machine_in systemctl is-active cloud.service)"
run anna connect --wait=15s
check "connect under lockdown: exit code" 0 $CODE
machine_cut
net_in "$NET_CLIENT" nft delete table inet culvert
# A service that may not see other processes sees our kernel's id of this boot, too; another boot has another one.
sed -i 's/"boot":"[^"]*"/"boot":"another"/' "$MACHINE/var/lib/culvert/wish.json"
left >/dev/null
machine_boot "$NET_CLIENT"
check "after a power cut nothing gets out either" "" "$(left)"
match "and the resolver is the network's" "nameserver $DNS_BEFORE" "$(cat "$MACHINE/etc/resolv.conf")"
run anna settings set kill-switch auto
check "auto again: exit code" 0 $CODE

echo "- removed"

run anna connect --wait=15s
check "connect: exit code" 0 $CODE
run machine_in dpkg -r culvert
check "dpkg -r: exit code" 0 $CODE
check "dpkg -r: the network is as it was" none "$(changes "$NET_DIR/client.txt" client_state)"
check "dpkg -r keeps access and settings" yes "$([ -d "$MACHINE/var/lib/culvert/profiles" ] && echo yes)"
run machine_in dpkg -i /root/culvert.deb
check "installed again: access is there" disconnected "$(status .state)"
run anna settings set kill-switch lockdown
run machine_in dpkg -P culvert
check "dpkg -P under lockdown: exit code" 0 $CODE
check "dpkg -P: the network is as it was" none "$(changes "$NET_DIR/client.txt" client_state)"
check "dpkg -P: no group" "" "$(grep culvert "$MACHINE/etc/group")"
check "dpkg -P: no folder of the socket" "" "$(machine_in find /run -maxdepth 1 -name '*culvert*')"
machine_stop
check "dpkg -P: no file is left" none "$(changes "$NET_DIR/files.txt" files)"

echo "- the programs that keep a resolver, asked from within the hardened unit"

machine_boot "$NET_CLIENT"
machine_in dpkg -i /root/culvert.deb >>"$NET_DIR/keeper.log" 2>&1
run machine_in culvert enrol --name laptop - <<<"$(invitation anna)"
check "enrol: exit code" 0 $CODE
# keeper PACKAGE: installs it, as the keeper of the network's name server.
keeper() {
  has "$1" || return 1
  cp "$debs/$1"_*.deb "$MACHINE/root/keeper.deb"
  machine_in dpkg -i /root/keeper.deb >>"$NET_DIR/keeper.log" 2>&1
}
for package in resolvconf openresolv; do
  keeper $package || continue
  machine_in resolvconf -a eth0 <<<"nameserver $DNS_BEFORE"
  before=$(machine_in cat /etc/resolv.conf)
  run machine_in culvert connect --wait=15s
  check "$package: connect: exit code" 0 $CODE
  check "$package: the gateway's server comes first" "nameserver $DNS_PUSHED" "$(machine_in grep -m1 ^nameserver /etc/resolv.conf)"
  machine_in culvert disconnect 2>/dev/null
  check "$package: the resolver is as it was" "$before" "$(machine_in cat /etc/resolv.conf)"
  machine_in dpkg -P $package >>"$NET_DIR/keeper.log" 2>&1
done
if keeper systemd-resolved; then
  # Its user was unknown to the bus when that read its rules.
  machine_in systemctl reload dbus
  machine_in systemctl restart systemd-resolved
  run machine_in culvert connect --wait=15s
  check "systemd-resolved: connect: exit code" 0 $CODE
  match "systemd-resolved: the tunnel's server is the gateway's" ": $DNS_PUSHED$" "$(machine_in resolvectl dns culvert0)"
  machine_in culvert disconnect 2>/dev/null
  check "systemd-resolved: and is forgotten" "" "$(machine_in resolvectl dns | grep culvert)"
fi
finish

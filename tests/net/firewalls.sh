#!/bin/bash
# Proves that beside another firewall the gateway works, or names the one command that repairs it; each command is
# run, and packets cross; and that a family that is not translated keeps its addresses. The real ufw and firewalld, each in a root of its own; Docker's rules as Docker writes them.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-firewalls
NET_TEST_SECONDS=240
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

# What crosses: a page over each family, a name, and the session itself.
crossing() {
  local name4
  name4=$(net_in "$NET_CLIENT" dig +short +tries=2 +time=2 @"$(inner)" gateway.internal 2>&1)
  echo "$(page "$NET_CLIENT" --max-time 3 http://$INTERNET_IP4/) $(page "$NET_CLIENT" --max-time 3 "http://[$INTERNET_IP6]/") $name4"
}
all() { echo "$UPLINK_IP4 $UPLINK_IP6 $(inner)"; }
inner() { net_in "$NET_GATEWAY" ip -j addr show dev culvert0 | jq -r '.[].addr_info[] | select(.family == "inet").local'; }
told() { jq -rR 'fromjson? | select(.event == "firewall_blocks") | .message' "$NET_DIR/gateway.log"; }
tables() { net_in "$NET_GATEWAY" nft -j list tables | jq -r '.nftables[].table? | select(. != null) | "\(.family) \(.name)"' | sort; }
restart() {
  net_stop "$GATEWAY_PID"
  gateway_start
  net_wait 30 "the client's return" is_state connected
}

# beside WHO FIREWALL RUN...: with its rules in force, the gateway started after them: nothing crosses, one line says
# what to do, and once that is done (RUN before the command) everything crosses, now and after a restart.
beside() {
  local who=$1 firewall=$2 before command
  shift 2
  before=$(tables)
  check "$who: nothing is told before" "" "$(told)"
  restart
  match "$who: nothing crosses" "Connection timed out|timed out|unreachable|prohibited|Failed to connect|refused" "$(crossing)"
  check "$who: one line says whose rules they are" "$firewall" "$(jq -rR 'fromjson? | select(.event == "firewall_blocks") | .firewall' "$NET_DIR/gateway.log")"
  command=$(told | sed -n 's/.*; run: //p')
  run "$@" sh -c "$command"
  check "$who: the command that it names: $command" 0 "$CODE${ERR:+ $ERR}"
  check "$who: packets cross" "$(all)" "$(crossing)"
  restart
  check "$who: after a restart they cross, too" "$(all)" "$(crossing)"
  check "$who: and nothing is left to say" "" "$(told)"
  net_stop "$GATEWAY_PID"
  check "$who: of ours nothing stays" "$(grep -v culvert_ <<<"$before")" "$(tables)"
  gateway_start
}

gateway_init || die "init failed"
gateway_set dns <<<$'[push]\ndns = ["gateway"]'
gateway_start
web_run
helper_start
run enrol "$INVITATION" --name laptop
run culvert connect --wait=15s
check "the client connects" 0 "$CODE"
check "without another firewall packets cross" "$(all)" "$(crossing)"

echo "- a routed network"

# The network outside knows the way back, so the clients' own addresses are seen there.
gateway_set nat <<<$'[network]\nnat = ["ipv4"]'
inner6=$(status '.addresses[1]')
ip -n "$NET_INTERNET" -6 route add "$inner6/128" via $UPLINK_IP6
restart
check "IPv4 is translated, and IPv6 keeps its address" "$UPLINK_IP4 $inner6" \
  "$(page "$NET_CLIENT" http://$INTERNET_IP4/) $(page "$NET_CLIENT" "http://[$INTERNET_IP6]/")"
check "and still nobody outside reaches a client" 0 "$(pings "$NET_INTERNET" "$inner6")"
rm "$NET_DIR/gateway.d/nat.toml"
restart
check "translated again" "$(all)" "$(crossing)"

echo "- Docker"

# As dockerd 20.10 to 28 writes them for its bridge, with iptables-nft; 27 and later for IPv6, too.
docker_rules() {
  local iptables=$1 reject=$2
  net_in "$NET_GATEWAY" "$iptables-nft-restore" <<RULES
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d $reject -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s $3 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
RULES
}
docker_rules iptables 127.0.0.0/8 172.17.0.0/16
docker_rules ip6tables ::1/128 fd00:d0c::/64
beside Docker Docker net_in "$NET_GATEWAY"
net_in "$NET_GATEWAY" nft flush ruleset
restart

echo "- rules of an administrator"

net_in "$NET_GATEWAY" nft -f - <<NFT
table inet site {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname "lo" accept
    meta l4proto { icmp, ipv6-icmp } accept
    udp dport 443 accept
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
  }
}
NFT
beside "an administrator's table" nftables net_in "$NET_GATEWAY"
net_in "$NET_GATEWAY" nft flush ruleset
restart

if has ufw; then
  echo "- ufw"
  machine ufw "$NET_GATEWAY" ufw
  in_machine sh -ec 'mkdir -p /etc/ufw && cp /usr/share/ufw/iptables/*.rules /etc/ufw/
    cp /usr/share/ufw/user*.rules /etc/ufw/ 2>/dev/null; cp -n /usr/share/ufw/ufw.conf /etc/ufw/ 2>/dev/null; true'
  run in_machine ufw --force enable
  check "ufw: it is on" 0 "$CODE"
  # Its rules judge new connections, and the client's is one that was there before.
  run in_machine ufw allow 443/udp
  check "ufw: clients may dial in" 0 "$CODE${ERR:+ $ERR}"
  beside ufw ufw in_machine
  run in_machine ufw --force disable
  net_stop "$MACHINE"
  net_in "$NET_GATEWAY" nft flush ruleset
  restart
fi

if has firewalld; then
  echo "- firewalld"
  machine firewalld "$NET_GATEWAY" firewalld python3-firewall python3-nftables python3-dbus python3-gi gir1.2-glib-2.0 \
    libgirepository-1.0-1 python3-cap-ng
  in_machine sh -ec 'mkdir -p /run/dbus && cat >/etc/bus.conf' <<'XML'
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="*"/><allow receive_type="*"/>
    <allow send_destination="*" eavesdrop="false"/>
  </policy>
</busconfig>
XML
  start bus dbus-daemon --config-file=/etc/bus.conf --nofork --nopidfile
  net_wait 5 "the bus" in_machine test -S /run/dbus/system_bus_socket
  start firewalld /usr/sbin/firewalld --nofork --nopid
  net_wait 30 "firewalld" in_machine firewall-cmd --state
  run in_machine firewall-cmd --add-port=443/udp
  check "firewalld: it is on" 0 "$CODE"
  beside firewalld firewalld in_machine
  net_stop "$MACHINE"
fi

finish

#!/bin/bash
# Proves that names are looked up at the gateway's servers while connected, and as before afterwards, whoever keeps
# the machine's resolver: systemd-resolved, Debian's resolvconf, openresolv, another program behind a link.
#
# Each is a machine of its own: a root laid over this one's, with the package's files from Debian, in the client's
# network. Without those packages (scripts/setup --test brings them) that machine is left out, and said so.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-names
NET_TEST_SECONDS=240
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

# The links of these machines are theirs, not those of `ip netns exec`.
rm -rf "/etc/netns/${NET_CLIENT:?}"

# looked_up NAME: its address, as every program there would get it.
looked_up() { in_machine getent ahostsv4 "$1" | awk 'NR == 1 {print $1}'; }
resolver() { in_machine sh -c 'readlink /etc/resolv.conf; cat /etc/resolv.conf; ls /run/resolvconf/interface /run/resolvconf/interfaces 2>/dev/null'; }
helper_in() {
  start helper "$CULVERT_BIN/culvert-helper" run --socket "$NET_DIR/helper.sock" --state-dir "$NET_DIR/helper"
  HELPER_PID=$NET_PID
  net_wait 10 "the helper's start" culvert status || die "the helper did not start"
}

# Two name servers, one before the tunnel and one of the gateway's, that do not say the same.
answers() {
  local address=$1
  shift
  net_spawn "dns-$address" "$NET_INTERNET" dnsmasq --no-daemon --conf-file=/dev/null --no-hosts --no-resolv --user=root \
    --pid-file= --listen-address="$address" --bind-interfaces --address="/who.test/$address" "$@"
}
answers $DNS_BEFORE
answers $DNS_PUSHED --address=/db.acme.test/10.9.9.9
net_wait 5 "the name servers" net_in "$NET_CLIENT" dig +tries=1 +time=1 @$DNS_PUSHED who.test

# cycle WHO: connected, disconnected, killed: names go where they should, and the resolver comes back.
cycle() {
  local before
  check "$1: before" $DNS_BEFORE "$(looked_up who.test)"
  before=$(resolver)
  helper_in
  if [ ! -d "$NET_DIR/helper/profiles" ] || [ -z "$(ls "$NET_DIR/helper/profiles")" ]; then
    run enrol "$INVITATION" --name laptop
    check "enrol" 0 $CODE
  fi
  run culvert connect --wait=15s
  check "$1: connect" 0 $CODE
  check "$1: the gateway's servers are in force" true "$(status .protection.dns)"
  check "$1: connected" $DNS_PUSHED "$(looked_up who.test)"
  run culvert disconnect
  check "$1: disconnected" $DNS_BEFORE "$(looked_up who.test)"
  check "$1: the resolver is as it was" "$before" "$(resolver)"
  run culvert connect --wait=15s
  net_kill "$HELPER_PID"
  helper_in
  net_wait 15 "the next helper's connection" is_state connected
  check "$1: connected again after a kill" $DNS_PUSHED "$(looked_up who.test)"
  run culvert disconnect
  check "$1: as before after a kill" "$before" "$(resolver)"
  check "$1: and names, too" $DNS_BEFORE "$(looked_up who.test)"
  if [ "$1" != "systemd-resolved" ]; then net_stop "$HELPER_PID"; fi
}

gateway_init || die "init failed"
gateway_start

machine link "$NET_CLIENT"
in_machine sh -c "mkdir -p /run/keeper && echo 'nameserver $DNS_BEFORE' >/run/keeper/resolv.conf && ln -s ../run/keeper/resolv.conf /etc/resolv.conf"
cycle "a link"
check "a link: what it points to was never touched" "nameserver $DNS_BEFORE" "$(in_machine cat /run/keeper/resolv.conf)"
net_stop "$MACHINE"

if has resolvconf; then
  machine resolvconf "$NET_CLIENT" resolvconf
  in_machine sh -ec "mkdir -p /run/resolvconf/interface && ln -s ../run/resolvconf/resolv.conf /etc/resolv.conf
    resolvconf --enable-updates && echo 'nameserver $DNS_BEFORE' | resolvconf -a eth0.dhclient"
  cycle "Debian's resolvconf"
  net_stop "$MACHINE"
fi

if has openresolv; then
  machine openresolv "$NET_CLIENT" openresolv
  in_machine sh -ec "mkdir -p /run/resolvconf && touch /etc/resolv.conf && echo 'nameserver $DNS_BEFORE' | resolvconf -a eth0"
  cycle "openresolv"
  net_stop "$MACHINE"
fi

if has systemd-resolved; then
  machine resolved "$NET_CLIENT" systemd-resolved
  in_machine sh -ec "mkdir -p /run/dbus /run/systemd/resolve && ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
    echo 'systemd-resolve:x:991:991::/:/usr/sbin/nologin' >>/etc/passwd && echo 'systemd-resolve:x:991:' >>/etc/group
    chown 991:991 /run/systemd/resolve
    printf '[Resolve]\nDNS=$DNS_BEFORE\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\n' >/etc/systemd/resolved.conf
    cat >/etc/bus.conf" <<'XML'
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
  start resolved /usr/lib/systemd/systemd-resolved
  net_wait 10 "systemd-resolved" in_machine test -s /run/systemd/resolve/stub-resolv.conf
  cycle "systemd-resolved"

  # Only the gateway's own domain there, all other names where they went before.
  gateway_set split <<TOML
[push]
routes = ["10.9.0.0/16"]
dns = ["$DNS_PUSHED"]
domains = ["acme.test"]
TOML
  net_stop "$GATEWAY_PID"
  gateway_start
  run culvert connect --wait=15s
  check "split DNS: connect" 0 $CODE
  check "split DNS: the gateway's domain is looked up there" 10.9.9.9 "$(looked_up db.acme.test)"
  check "split DNS: a short name is completed" 10.9.9.9 "$(looked_up db)"
  check "split DNS: everything else is looked up as before" $DNS_BEFORE "$(looked_up who.test)"
  run culvert disconnect
  check "split DNS: and the domain is not known afterwards" "" "$(looked_up db.acme.test)"
fi

finish

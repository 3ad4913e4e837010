# Sourced by demo, bench and the namespace tests: three hosts on one machine.
#
#   client ── 192.0.2.0/24 ── gateway ── 198.51.100.0/24 ── internet
#             2001:db8:1::/64            2001:db8:2::/64
#
# The hosts are network namespaces PREFIX-client, PREFIX-gateway and PREFIX-internet, joined by veth
# pairs (MTU 1500). The gateway host forwards, so the client reaches the internet without a tunnel
# too, with its own address: what goes past the tunnel shows. Addresses are those for documentation
# (RFC 5737, RFC 3849), so nothing here can be meant for a real network.
#
# `net_open PREFIX` first removes what a killed run with the same prefix left behind; two checkouts
# that run at once tell themselves apart by CULVERT_PREFIX. Processes are ended by pid, and only
# those inside our own namespaces.
# shellcheck shell=bash disable=SC2034 # the names below are for those who source this

CLIENT_IP4=192.0.2.2 CLIENT_IP6=2001:db8:1::2
GATEWAY_IP4=192.0.2.1 GATEWAY_IP6=2001:db8:1::1
UPLINK_IP4=198.51.100.1 UPLINK_IP6=2001:db8:2::1
INTERNET_IP4=198.51.100.80 INTERNET_IP6=2001:db8:2::80
DNS_BEFORE=198.51.100.53 DNS_PUSHED=198.51.100.54

# net_open PREFIX: names everything, refuses a second run at once, cleans up after a killed one. NET_DIR is the run's own folder.
net_open() {
  local prefix=$1 pid started
  [ "$(id -u)" = 0 ] || { echo "error: network namespaces need root. Run: sudo $0" >&2; return 1; }
  [ -c /dev/net/tun ] || { echo "error: /dev/net/tun is missing. Run: modprobe tun, or scripts/setup" >&2; return 1; }
  NET_CLIENT=$prefix-client NET_GATEWAY=$prefix-gateway NET_INTERNET=$prefix-internet
  NET_DIR=/run/culvert-$prefix
  NET_OWNER=/run/culvert-$prefix.pid
  # A pid alone may be another process by now; with its start time it is not. A lock on a file would
  # be inherited by everything that outlives a killed script.
  if read -r pid started 2>/dev/null <"$NET_OWNER" && [ -n "$started" ] && [ "$(net_started "$pid")" = "$started" ]; then
    echo "error: another run of '$prefix' is still going (pid $pid)" >&2
    return 1
  fi
  echo "$$ $(net_started $$)" >"$NET_OWNER"
  net_close
  mkdir -m 700 "$NET_DIR"
}

# net_close: ends the processes and removes the namespaces and the folder. Safe to repeat.
net_close() {
  local ns pid pids=()
  for ns in "$NET_CLIENT" "$NET_GATEWAY" "$NET_INTERNET"; do
    for pid in $(ip netns pids "$ns" 2>/dev/null); do pids+=("$pid"); done
  done
  if [ ${#pids[@]} -gt 0 ]; then
    kill "${pids[@]}" 2>/dev/null
    # Each undoes its own changes first; five seconds is far more than that takes.
    for _ in {1..50}; do
      kill -0 "${pids[@]}" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "${pids[@]}" 2>/dev/null
  fi
  wait 2>/dev/null
  for ns in "$NET_CLIENT" "$NET_GATEWAY" "$NET_INTERNET"; do
    [ -e "/run/netns/$ns" ] && ip netns del "$ns"
    rm -rf "/etc/netns/$ns"
  done
  rmdir /etc/netns 2>/dev/null
  rm -rf "$NET_DIR"
  true
}

# net_end: for the exit trap: net_close, and the next run may begin.
net_end() {
  net_close
  rm -f "$NET_OWNER"
}

# When a process began, in clock ticks (proc_pid_stat(5), field 22); empty when it has ended, even
# if nobody has waited for it (state Z).
net_started() { sed -n 's/.*) //p' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" {print $20}'; }

# net_up: the three hosts of the picture above, without any process in them.
net_up() {
  local ns
  for ns in "$NET_CLIENT" "$NET_GATEWAY" "$NET_INTERNET"; do
    ip netns add "$ns"
    ip -n "$ns" link set lo up
    # No waiting for duplicates on links that have two ends.
    net_in "$ns" sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
  done
  ip link add eth0 netns "$NET_CLIENT" type veth peer name eth0 netns "$NET_GATEWAY"
  ip link add eth1 netns "$NET_GATEWAY" type veth peer name eth0 netns "$NET_INTERNET"
  net_address "$NET_CLIENT" eth0 $CLIENT_IP4/24 $CLIENT_IP6/64
  net_address "$NET_GATEWAY" eth0 $GATEWAY_IP4/24 $GATEWAY_IP6/64
  net_address "$NET_GATEWAY" eth1 $UPLINK_IP4/24 $UPLINK_IP6/64
  net_address "$NET_INTERNET" eth0 $INTERNET_IP4/24 $INTERNET_IP6/64 $DNS_BEFORE/24 $DNS_PUSHED/24
  net_in "$NET_GATEWAY" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
  ip -n "$NET_CLIENT" route add default via $GATEWAY_IP4
  ip -n "$NET_CLIENT" -6 route add default via $GATEWAY_IP6
  ip -n "$NET_GATEWAY" route add default via $INTERNET_IP4
  ip -n "$NET_GATEWAY" -6 route add default via $INTERNET_IP6
  ip -n "$NET_INTERNET" route add 192.0.2.0/24 via $UPLINK_IP4
  ip -n "$NET_INTERNET" -6 route add 2001:db8:1::/64 via $UPLINK_IP6
  # Its last line has no line end: a resolver that is put back has to have that too.
  mkdir -p "/etc/netns/$NET_CLIENT"
  printf '# the network'\''s own resolver\nnameserver %s' $DNS_BEFORE >"/etc/netns/$NET_CLIENT/resolv.conf"
}

net_address() {
  local ns=$1 link=$2 address
  shift 2
  for address in "$@"; do ip -n "$ns" addr add "$address" dev "$link"; done
  ip -n "$ns" link set "$link" up
}

# net_in HOST COMMAND...: runs it there, in front.
net_in() {
  local ns=$1
  shift
  ip netns exec "$ns" "$@"
}

# net_spawn NAME HOST COMMAND...: runs it there in the background; NET_PID is the process itself.
# Its output is NET_DIR/NAME.log.
net_spawn() {
  local name=$1 ns=$2
  shift 2
  ip netns exec "$ns" "$@" >"$NET_DIR/$name.log" 2>&1 </dev/null & # which execs: NET_PID is the program's
  NET_PID=$!
}

# net_stop PID: asks one of our processes to end, and waits until it has.
net_stop() {
  kill "$1" 2>/dev/null
  wait "$1" 2>/dev/null
  true
}

# net_wait SECONDS WHAT COMMAND...: repeats a check until it holds.
net_wait() {
  local seconds=$1 what=$2 end
  end=$((SECONDS + seconds))
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "error: $what did not happen within $seconds s" >&2; return 1; }
    sleep 0.1
  done
}

# What a VPN client changes about its host, as text to compare: routes of every table, rules,
# addresses, firewall, resolver. Times that count down are left out.
net_state() {
  local ns=$1 family
  for family in -4 -6; do
    ip -n "$ns" "$family" rule show
    ip -n "$ns" "$family" route show table all | sed -E 's/ expires [0-9]+sec//' | sort
  done
  ip -n "$ns" -o address show | sed -E 's/(valid|preferred)_lft [^ ]+//g'
  net_in "$ns" nft list ruleset
  net_in "$ns" cat /etc/resolv.conf
}

# gateway_init: a gateway's configuration, identity and first invitation (INVITATION).
# CULVERT_BIN is the folder of the binaries.
gateway_init() {
  cat >"$NET_DIR/gateway.toml" <<TOML
[endpoint]
name = "$GATEWAY_IP4"
[push]
routes = ["default"]
dns = ["$DNS_PUSHED"]
[state]
dir = "$NET_DIR/gateway"
[control]
socket = "$NET_DIR/gateway.sock"
TOML
  net_in "$NET_GATEWAY" "$CULVERT_BIN/culvert-server" --config "$NET_DIR/gateway.toml" init --yes --invite laptop --json \
    >"$NET_DIR/init.json" 2>"$NET_DIR/init.log" || { cat "$NET_DIR/init.log" >&2; return 1; }
  INVITATION=$(jq -re .invitation "$NET_DIR/init.json")
}

# gateway_run: the gateway itself (GATEWAY_PID), ready when this returns.
gateway_run() {
  net_spawn gateway "$NET_GATEWAY" "$CULVERT_BIN/culvert-server" --config "$NET_DIR/gateway.toml" run
  GATEWAY_PID=$NET_PID
  net_wait 10 "the gateway's start" test -S "$NET_DIR/gateway.sock" || { cat "$NET_DIR/gateway.log" >&2; return 1; }
}

# helper_run: the client's root helper (HELPER_PID), ready when this returns.
helper_run() {
  net_spawn helper "$NET_CLIENT" "$CULVERT_BIN/culvert-helper" run --socket "$NET_DIR/helper.sock" --state-dir "$NET_DIR/helper"
  HELPER_PID=$NET_PID
  net_wait 10 "the helper's start" test -S "$NET_DIR/helper.sock" || { cat "$NET_DIR/helper.log" >&2; return 1; }
}

# culvert ARGUMENTS...: the client's command line, as a user types it.
culvert() { net_in "$NET_CLIENT" env CULVERT_SOCKET="$NET_DIR/helper.sock" "$CULVERT_BIN/culvert" "$@"; }

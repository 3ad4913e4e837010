# Sourced by the demo and tests/net/fleet.sh, after netns.sh: hosts for further gateways beside the first one's, and
# what starts them.
#
#   gateway 2  198.18.2.2 ── 198.18.2.1  the first gateway's host, which forwards
#   gateway 3  198.18.3.2 ── 198.18.3.1
#
# The addresses are those for measurements (RFC 2544). CULVERT_BIN is the folder of the binaries; whoever sources this
# has a function die, and calls fleet_close at the end.
# shellcheck shell=bash disable=SC2034 # the names are for those who source this
# shellcheck source=scripts/database.bash
. "$(dirname "${BASH_SOURCE[0]}")/database.bash"

declare -A FLEET_IP=([1]=$GATEWAY_IP4 [2]=198.18.2.2 [3]=198.18.3.2) FLEET_PID=()

# fleet_close: ends them and the database, and removes their hosts. Safe to repeat.
fleet_close() {
  local number ns pids=()
  for number in 2 3; do
    ns=$(fleet_host $number)
    mapfile -t pids < <(ip netns pids "$ns" 2>/dev/null)
    [ ${#pids[@]} -gt 0 ] && kill -9 "${pids[@]}" 2>/dev/null && wait "${pids[@]}" 2>/dev/null
    [ -e "/run/netns/$ns" ] && ip netns del "$ns"
  done
  database_close
}
# fleet_host NUMBER: the namespace of that gateway.
fleet_host() { if [ "$1" = 1 ]; then echo "$NET_GATEWAY"; else echo "$NET_GATEWAY$1"; fi; }

# fleet_up: the hosts of the picture, without any process in them.
fleet_up() {
  local number ns
  fleet_close
  for number in 2 3; do
    ns=$(fleet_host $number)
    ip netns add "$ns"
    ip -n "$ns" link set lo up
    ip link add eth0 netns "$ns" type veth peer name "fleet$number" netns "$NET_GATEWAY"
    net_address "$ns" eth0 "198.18.$number.2/24"
    net_address "$NET_GATEWAY" "fleet$number" "198.18.$number.1/24"
    ip -n "$ns" route add default via "198.18.$number.1"
    ip -n "$NET_INTERNET" route add "198.18.$number.0/24" via "$UPLINK_IP4"
  done
}

# fleet_config NUMBER [HOST]: the configuration of one gateway.
fleet_config() {
  cat >"$NET_DIR/gw$1.toml" <<TOML
[endpoint]
name = "${FLEET_IP[${2:-$1}]}"
[network]
$([ "$1" = 1 ] && echo 'ipv4 = "100.77.0.0/16"')
[registry]
url = "$DATABASE_URL"
password_file = "$DATABASE_PASSWORD"
[state]
dir = "$NET_DIR/gw$1"
[control]
socket = "$NET_DIR/gw$1.sock"
[log]
format = "json"
TOML
}

# gateway NUMBER ARGUMENTS...: that gateway's command line.
gateway() {
  local number=$1
  shift
  net_in "$(fleet_host "$number")" "$CULVERT_BIN/culvert-server" --config "$NET_DIR/gw$number.toml" "$@"
}

# fleet_start NUMBER: runs it, ready when this returns; FLEET_PID has the process.
fleet_start() {
  net_spawn "gw$1" "$(fleet_host "$1")" "$CULVERT_BIN/culvert-server" --config "$NET_DIR/gw$1.toml" run
  FLEET_PID[$1]=$NET_PID
  net_wait 15 "gateway $1's start" gateway "$1" health || die "gateway $1 did not start"
}

# Sourced by tests/net/fleet.sh after lib.bash's needs are set: hosts for further gateways beside the first one's.
#
#   gateway 2  198.18.2.2 ── 198.18.2.1  the first gateway's host, which forwards
#   gateway 3  198.18.3.2 ── 198.18.3.1
# shellcheck shell=bash disable=SC2034 # the names are for those who source this
# shellcheck source=tests/net/lib.bash
. "$(dirname "${BASH_SOURCE[0]}")/lib.bash"

declare -A FLEET_IP=([1]=$GATEWAY_IP4 [2]=198.18.2.2 [3]=198.18.3.2) FLEET_PID=()

fleet_close() {
  local number ns pids=()
  for number in 2 3; do
    ns=$name-gateway$number
    mapfile -t pids < <(ip netns pids "$ns" 2>/dev/null)
    [ ${#pids[@]} -gt 0 ] && kill -9 "${pids[@]}" 2>/dev/null && wait "${pids[@]}" 2>/dev/null
    [ -e "/run/netns/$ns" ] && ip netns del "$ns"
  done
  database_close
}
trap 'fleet_close; close' EXIT

fleet_host() { if [ "$1" = 1 ]; then echo "$NET_GATEWAY"; else echo "$name-gateway$1"; fi; }

fleet_up() {
  local number ns
  fleet_close
  for number in 2 3; do
    ns=$name-gateway$number
    ip netns add "$ns"
    ip -n "$ns" link set lo up
    ip link add eth0 netns "$ns" type veth peer name "fleet$number" netns "$NET_GATEWAY"
    net_address "$ns" eth0 "198.18.$number.2/24"
    net_address "$NET_GATEWAY" "fleet$number" "198.18.$number.1/24"
    ip -n "$ns" route add default via "198.18.$number.1"
    ip -n "$NET_INTERNET" route add "198.18.$number.0/24" via $UPLINK_IP4
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

fleet_start() {
  net_spawn "gw$1" "$(fleet_host "$1")" "$CULVERT_BIN/culvert-server" --config "$NET_DIR/gw$1.toml" run
  FLEET_PID[$1]=$NET_PID
  net_wait 15 "gateway $1's start" gateway "$1" health || die "gateway $1 did not start"
}

other_enrol() { culvert_other enrol --name other - <<<"$1"; }

# enrolled_at NUMBER: what the client's device is told at that gateway alone.
enrolled_at() {
  local profile
  profile=$(compgen -G "$NET_DIR/helper/profiles/*.json" | head -1)
  culvert disconnect >/dev/null 2>&1
  jq --arg to "${FLEET_IP[$1]}" '.endpoints = [$to + ":443"] | .server_name = $to' "$profile" >"$NET_DIR/profile.new" &&
    cat "$NET_DIR/profile.new" >"$profile"
  culvert connect --wait=10s
  culvert status --json
}

#!/bin/bash
# Proves that the container image runs a gateway with NET_ADMIN alone and nothing to write to but its volume: it makes
# itself at the first start and at no other, by podman run and by the compose file as it is, and clients come back.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-gwcont
NET_TEST_SECONDS=240
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/../net/lib.bash"

base=$(compgen -G "${CULVERT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/culvert}/roots/container-*.tar") ||
  die "there is no base for images in the cache. Run: scripts/setup --test"

# Images, containers and volumes of this run alone, on a disk and not in memory. The bridge and its rules are in the
# gateway host's namespace, since podman itself runs there.
store=/var/tmp/culvert-$name
containers_end() {
  [ -d "$store" ] || return 0
  podman rm --all --force --time 1 >/dev/null 2>&1
  podman volume rm --all --force >/dev/null 2>&1
  podman rmi --all --force >/dev/null 2>&1
  rm -rf --one-file-system "$store"
}
cat >"$NET_DIR/containers.conf" <<TOML
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$store/tmp"
volume_path = "$store/volumes"
[network]
network_config_dir = "$store/networks"
TOML
# Where this machine is a container itself, overlays cannot be laid over its own.
driver=overlay
[ "$(stat -f -c %T /var/tmp)" != overlayfs ] || driver=vfs
cat >"$NET_DIR/storage.conf" <<TOML
[storage]
driver = "$driver"
graphroot = "$store/graph"
runroot = "$store/run"
TOML
export CONTAINERS_CONF=$NET_DIR/containers.conf CONTAINERS_STORAGE_CONF=$NET_DIR/storage.conf
# Health checks are asked for here, since systemd does not run this machine's containers.
export DISABLE_HC_SYSTEMD=true
# Not `ip netns exec`, which takes /sys/fs/cgroup away.
podman() { nsenter --net="/run/netns/$NET_GATEWAY" /usr/bin/podman "$@"; }
compose() { (cd "$NET_DIR/compose" && nsenter --net="/run/netns/$NET_GATEWAY" podman-compose "$@"); }

containers_end # of a killed run
trap 'containers_end; close' EXIT
mkdir -p "$store"

container=culvert-server
gateway() { podman exec "$container" culvert-server "$@"; }
serves() { gateway status; }
# serving: waits until the gateway serves.
serving() {
  net_wait 10 "the gateway's start" serves && return
  podman logs "$container" >"$NET_DIR/container.log" 2>&1
  die "the gateway does not start"
}
pin() { gateway init --json | jq -r .ca_pin; }
invitation() { gateway invite --json "$@" | jq -re .invitation; }
through_the_tunnel() { [ "$(page "$NET_CLIENT" "http://$INTERNET_IP4/")" = "$UPLINK_IP4" ]; }
back() {
  net_wait 20 "the connection after $1" is_state connected
  net_wait 5 "the web after $1" through_the_tunnel
  check "$1: the client is back and reaches the web through the tunnel" "connected $UPLINK_IP4" \
    "$(status .state) $(page "$NET_CLIENT" "http://$INTERNET_IP4/")"
}
# Docker and later versions of netavark do this when they publish a UDP port; Debian 12's does not, and a flow that a
# client began meanwhile would go on to where nobody is any more.
forget_flows() { net_in "$NET_GATEWAY" conntrack -F >/dev/null 2>&1; }
# quadlet: what Podman's generator makes of the unit's keys (podman-systemd.unit(5)), in QUADLET. Debian 12's Podman has none.
quadlet() {
  local key value
  QUADLET=()
  while IFS='=' read -r key value; do
    case $key in
      Image) image=$value ;;
      ContainerName) QUADLET+=(--name "$value") ;;
      EnvironmentFile) QUADLET+=(--env-file "$NET_DIR/gateway.env") ;;
      PublishPort) QUADLET+=(--publish "$value") ;;
      Volume) QUADLET+=(--volume "$value") ;;
      ReadOnly) QUADLET+=(--read-only="$value") ;;
      Tmpfs) QUADLET+=(--tmpfs "$value") ;;
      DropCapability) QUADLET+=(--cap-drop "$value") ;;
      AddCapability) QUADLET+=(--cap-add "$value") ;;
      NoNewPrivileges) QUADLET+=(--security-opt no-new-privileges) ;;
      AddDevice) QUADLET+=(--device "$value") ;;
      Sysctl) QUADLET+=(--sysctl "$value") ;;
      HealthOnFailure | Notify) ;; # systemd's, and not known to Podman 4.3
      *) die "the Quadlet file has the key $key, which this test does not know" ;;
    esac
  done < <(sed -n '/^\[Container\]/,/^\[Service\]/s/^[A-Z].*=/&/p' "$root/packaging/container/culvert-server.container")
}

podman import --quiet "$base" localhost/base >"$NET_DIR/import.log" 2>&1 || die "the base cannot be imported"
printf '#!/bin/sh\nexec nsenter --net=/run/netns/%s /usr/bin/podman "$@"\n' "$NET_GATEWAY" >"$NET_DIR/podman"
chmod +x "$NET_DIR/podman"
"$root/scripts/package" container --bin "$CULVERT_BIN" --base localhost/base --engine "$NET_DIR/podman" >"$NET_DIR/build.log" 2>&1 ||
  die "scripts/package container failed"
web_run
helper_start

echo "- by the keys of the Quadlet file"

printf 'CULVERT_SERVER_ENDPOINT__NAME=%s\n' $GATEWAY_IP4 >"$NET_DIR/gateway.env"
quadlet
without_volume=()
for argument in "${QUADLET[@]}"; do without_volume+=("${argument/#culvert-server-state:*/$NET_DIR/nothing:/nothing}"); done
mkdir "$NET_DIR/nothing"
run podman run --rm "${without_volume[@]}" "$image"
match "without a volume there is no gateway that would be lost" "^2 .*is no volume" "$CODE $ERR"
podman volume create culvert-server-state >/dev/null
mkdir "$store/volumes/culvert-server-state/_data/base"
run podman run --rm "${QUADLET[@]}" "$image"
match "on a volume that holds something else neither" "^2 .*\(base\) but no gateway" "$CODE $ERR"
rmdir "$store/volumes/culvert-server-state/_data/base"
run podman run --detach "${QUADLET[@]}" "$image"
check "podman run: exit code" 0 $CODE
serving
first=$(pin)
pid=$(podman inspect --format '{{.State.Pid}}' $container)
check "it has CAP_NET_ADMIN and nothing else" "0000000000001000" "$(sed -n 's/^CapEff:\t//p' "/proc/$pid/status")"
run podman exec "$container" touch /usr/bin/x
match "its root cannot be written to" "Read-only file system" "$ERR"
run podman healthcheck run "$container"
check "its health check passes" 0 $CODE
run enrol "$(invitation anna)"
check "a client enrols" 0 $CODE
run culvert connect --wait=15s
check "and connects" 0 $CODE
back connected
check "no invitation is in the log" "" "$(podman logs $container 2>&1 | grep culvert://)"
run podman stop --time 15 $container
check "stop: exit code of the gateway" "0 0" "$CODE $(podman inspect --format '{{.State.ExitCode}}' $container)"
run podman start $container
serving
forget_flows
check "started again it is the same gateway" "$first" "$(pin)"
back "started again"
podman rm --force --time 15 $container >/dev/null
run podman run --detach "${QUADLET[@]}" "$image"
serving
forget_flows
check "a new container on the same volume is the same gateway" "$first" "$(pin)"
back "in a new container"
podman rm --force --time 15 $container >/dev/null
culvert disconnect

echo "- by the compose file as it is"

mkdir "$NET_DIR/compose"
cp "$root/packaging/container/compose.yml" "$NET_DIR/compose/"
run compose up --detach
check "without a name it does not start" yes "$([ "$CODE" != 0 ] && echo yes)"
match "and says what to set" "set CULVERT_SERVER_NAME in .env" "$OUT$ERR"
sed "s/vpn.example.org/$GATEWAY_IP4/" "$root/packaging/container/env.example" >"$NET_DIR/compose/.env"
run compose up --detach
printf '%s\n' "$OUT" "$ERR" >"$NET_DIR/compose.log"
check "compose up: exit code" 0 $CODE
container=$(podman ps --format '{{.Names}}')
[ -n "$container" ] || die "compose has started nothing"
serving
second=$(pin)
check "on a volume of its own it is another gateway" yes "$([ -n "$second" ] && [ "$second" != "$first" ] && echo yes)"
pid=$(podman inspect --format '{{.State.Pid}}' "$container")
check "it has CAP_NET_ADMIN and nothing else" "0000000000001000" "$(sed -n 's/^CapEff:\t//p' "/proc/$pid/status")"
run enrol "$(invitation anna)"
check "a client enrols" 0 $CODE
# The profile after the first one, of another gateway at the same address.
run culvert connect 192-0-2-1-2 --wait=15s
check "and connects" 0 $CODE
run compose down
run compose up --detach
serving
forget_flows
check "down and up again it is the same gateway" "$second" "$(pin)"
back "down and up"
run compose down
check "compose down leaves nothing running" "" "$(podman ps --quiet)"
finish

# Sourced by the tests of packages after tests/net/lib.bash: a Debian that boots systemd in a container, in one of
# the hosts of the picture there. scripts/setup --test makes its root.
#
#   machine_make          unpacks a root: MACHINE
#   machine_boot HOST     boots it in the network of that host, and waits until it is up
#   machine_in COMMAND    runs a command inside, in front
#   machine_stop          powers it off; its files stay
#   machine_cut           kills it, as a power cut does
# shellcheck shell=bash

MACHINE=$NET_DIR/machine

machine_make() {
  local roots=${CULVERT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/culvert}/roots tar
  tar=$(compgen -G "$roots/bookworm-*.tar") || die "there is no Debian root in $roots. Run: scripts/setup --test"
  mkdir -p "$MACHINE"
  tar -C "$MACHINE" -xf "$tar" || die "the root cannot be unpacked"
  printf '# the network'\''s own resolver\nnameserver %s\n' "$DNS_BEFORE" >"$MACHINE/etc/resolv.conf"
}

machine_boot() {
  # systemd-nspawn passes mounts on through it; systemd makes it where it runs the host, too.
  mkdir -p /run/systemd/nspawn/propagate
  # Everybody may open it, as udev has it on every Debian; this machine may have no udev.
  [ -e "$NET_OWN/tun" ] || mknod -m 666 "$NET_OWN/tun" c 10 200 || die "no TUN device for the machine"
  systemd-nspawn --quiet --boot --register=no --keep-unit --console=pipe --resolv-conf=off \
    --network-namespace-path="/run/netns/$1" --capability=CAP_NET_ADMIN --bind="$NET_OWN/tun:/dev/net/tun" --directory="$MACHINE" >>"$NET_DIR/machine.log" 2>&1 </dev/null &
  MACHINE_PID=$!
  net_wait 30 "the machine's boot" machine_is_up || die "the machine does not boot"
  machine_init=$(pgrep -P $MACHINE_PID | head -1)
}
machine_is_up() {
  machine_init=$(pgrep -P "$MACHINE_PID" | head -1) && [ -n "$machine_init" ] || return 1
  [[ $(machine_in systemctl is-system-running 2>/dev/null) =~ ^(running|degraded)$ ]]
}

machine_in() { nsenter --target "$machine_init" --all -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }

machine_stop() {
  machine_in systemctl poweroff --no-block
  net_wait 30 "the machine's end" machine_is_gone || die "the machine does not stop"
  wait "$MACHINE_PID" 2>/dev/null
  true
}
machine_cut() {
  kill -9 "$machine_init" 2>/dev/null
  net_wait 15 "the machine's end" machine_is_gone || kill -9 "$MACHINE_PID"
  wait "$MACHINE_PID" 2>/dev/null
  true
}
machine_is_gone() { ! kill -0 "$MACHINE_PID" 2>/dev/null || [ -z "$(net_started "$MACHINE_PID")" ]; }

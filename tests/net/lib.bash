# Sourced by every test of this folder, after `name=` (its prefix) is set: three hosts, one line a check.
#
#   check WHAT EXPECTED SEEN     ok when equal
#   match WHAT PATTERN SEEN      ok when SEEN matches the extended regular expression
#   within WHAT LEAST MOST SEEN  ok when SEEN is a number between them
#   finish                       counts, shows the logs when something is not as expected, exits
#
# CULVERT_BIN is the folder of the binaries. Whatever happens, a test ends within NET_TEST_SECONDS
# and takes its namespaces, processes and files with it.
# shellcheck shell=bash disable=SC2034 # the names below are for those who source this
set -uo pipefail

if [ -z "${NET_TEST_BOUNDED:-}" ]; then
  export NET_TEST_BOUNDED=yes
  bounded=(timeout --foreground --kill-after=20 "${NET_TEST_SECONDS:-120}")
  # Mounts of its own. The first namespace of a machine makes /run/netns a shared mount, and shared it
  # stays: a later run finds what a killed one left behind.
  [ "$(id -u)" = 0 ] && ip netns add "$name" && ip netns del "$name" && bounded+=(unshare --mount --propagation unchanged)
  exec "${bounded[@]}" "$0" "$@"
fi

# A file system that only this test sees, and whose devices work.
NET_OWN=/run/culvert-own
# own_etc: an /etc that is thrown away. Clients of two tests at once would find each other's half-made files in it.
own_etc() {
  local mount
  for mount in / /run /etc; do mountpoint -q $mount && mount --make-private $mount; done
  mkdir -p $NET_OWN && mount -t tmpfs own $NET_OWN && mkdir $NET_OWN/upper $NET_OWN/work &&
    mount -t overlay etc -o lowerdir=/etc,upperdir=$NET_OWN/upper,workdir=$NET_OWN/work /etc
}
[ "$(id -u)" != 0 ] || own_etc || { echo "$name: error: no /etc of its own" >&2; exit 1; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
net=$root/tests/net
# shellcheck source=scripts/netns.sh
. "$root/scripts/netns.sh"
python=/usr/bin/python3

die() { echo "$name: error: $*" >&2; logs; exit 1; }

good=0 bad=0
check() {
  if [[ $2 == "$3" ]]; then ok "$1"; else not_ok "$1" "$2" "$3"; fi
}
match() {
  if [[ $3 =~ $2 ]]; then ok "$1"; else not_ok "$1" "like $2" "$3"; fi
}
# within WHAT LEAST MOST SEEN
within() {
  if [ "$4" -ge "$2" ] && [ "$4" -le "$3" ]; then ok "$1"; else not_ok "$1" "$2 to $3" "$4"; fi
}
ok() {
  good=$((good + 1))
  printf 'ok   %s\n' "$1"
}
not_ok() {
  local expected=${2//$'\n'/ / } seen=${3//$'\n'/ / }
  bad=$((bad + 1))
  printf 'NOT  %s: expected %s, seen %s\n' "$1" "${expected:0:600}" "${seen:0:600}"
}
finish() {
  [ $bad -eq 0 ] || logs
  printf '%s: %d as expected, %d not\n' "$name" "$good" "$bad"
  [ $bad -eq 0 ]
  exit
}
# The last words of every process of ours, for whoever has to find out.
logs() {
  local log
  for log in "${NET_DIR:-/nonexistent}"/*.log; do
    [ -s "$log" ] && printf -- '--- %s\n' "${log##*/}" && tail -12 "$log"
  done >&2
}

# The test's own commands.

# Packages of Debian that scripts/setup --test fetches and nobody installs on this machine.
debs=${CULVERT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/culvert}/debs
# has PACKAGE: true when its file is there.
has() { compgen -G "$debs/$1_*.deb" >/dev/null && return; echo "     $1 is not in $debs, so it is left out"; return 1; }

# run COMMAND...: standard output in OUT, standard error in ERR, exit code in CODE.
run() {
  OUT=$("$@" 2>"$NET_DIR/err")
  CODE=$?
  ERR=$(<"$NET_DIR/err")
}

# server ARGUMENTS...: the gateway's command line; gateway_wrapper are words before it, and before gateway_start's.
gateway_wrapper=()
server() { net_in "$NET_GATEWAY" "${gateway_wrapper[@]}" "$CULVERT_BIN/culvert-server" --config "$NET_DIR/gateway.toml" "$@"; }

# gateway_set FILE: a drop-in for the gateway's configuration, from standard input.
gateway_set() { mkdir -p "$NET_DIR/gateway.d" && cat >"$NET_DIR/gateway.d/$1.toml"; }

# gateway_start: as gateway_run, but ready means that it answers: after a kill its socket is still there.
gateway_start() {
  net_spawn gateway "$NET_GATEWAY" "${gateway_wrapper[@]}" "$CULVERT_BIN/culvert-server" --config "$NET_DIR/gateway.toml" run
  GATEWAY_PID=$NET_PID
  net_wait 10 "the gateway's start" server status || die "the gateway did not start"
}

# helper_start: the same for the client's helper; helper_wrapper are words before its command,
# helper_arguments words behind it.
helper_wrapper=() helper_arguments=()
helper_start() {
  net_spawn helper "$NET_CLIENT" "${helper_wrapper[@]}" "$CULVERT_BIN/culvert-helper" run \
    --socket "$NET_DIR/helper.sock" --state-dir "$NET_DIR/helper" "${helper_arguments[@]}"
  HELPER_PID=$NET_PID
  net_wait 10 "the helper's start" culvert status || die "the helper did not start"
}

# net_kill PID: SIGKILL, and waits until it is gone.
net_kill() {
  kill -9 "$1" 2>/dev/null
  wait "$1" 2>/dev/null
  true
}

# invitation USER [ARGUMENTS...]: prints a new one.
invitation() { server invite --json "$@" | jq -re .invitation; }
# enrol INVITATION [ARGUMENTS...]
enrol() {
  local invitation=$1
  shift
  culvert enrol "$@" - <<<"$invitation"
}
# status FILTER: of the client's `status --json`.
status() { culvert status --json | jq -r "$1"; }
is_state() { [ "$(status .state)" = "$1" ]; }
# sessions FILTER: of the gateway's `sessions list --json`.
sessions() { server sessions list --json | jq -r "$1"; }
# logged EVENT FILTER: of the gateway's last log line about an event.
logged() { jq -cR --arg event "$1" 'fromjson? | select(.event == $event)' "$NET_DIR/gateway.log" | jq -rs "last | $2"; }

# pings HOST ADDRESS [ARGUMENTS...]: how many of three were answered.
pings() {
  local host=$1 address=$2
  shift 2
  net_in "$host" ping -n -c 3 -i 0.2 -W 2 "$@" "$address" 2>&1 | sed -n 's/.*, \([0-9]*\) received.*/\1/p'
}
# page HOST ARGUMENTS...: one HTTP request; the page, or what curl says.
page() {
  local host=$1
  shift
  net_in "$host" curl -sS --max-time 5 "$@" 2>&1
}
web_run() {
  net_spawn web "$NET_INTERNET" $python "$net/web.py"
  net_wait 5 "the web server's start" page "$NET_INTERNET" "http://$INTERNET_IP4/" || die "no web server"
}
# checksums FOLDER: every file with its hash, owner and mode.
checksums() { (cd "$1" && find . -type f -printf '%p %u %m ' -exec sha256sum {} \; | sort); }
# changes FILE COMMAND...: what the command says now and did not say in FILE; "none" when nothing.
changes() {
  local before=$1 difference
  shift
  difference=$(diff "$before" <("$@")) && difference=none
  echo "$difference"
}

# A second client host, on a network of its own beside the first one's:
#   other ── 203.0.113.0/24, 2001:db8:3::/64 ── gateway
OTHER_IP4=203.0.113.2 OTHER_IP6=2001:db8:3::2
other_up() {
  ip netns add "$NET_OTHER"
  ip -n "$NET_OTHER" link set lo up
  net_in "$NET_OTHER" sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
  ip link add eth0 netns "$NET_OTHER" type veth peer name eth2 netns "$NET_GATEWAY"
  net_address "$NET_OTHER" eth0 $OTHER_IP4/24 $OTHER_IP6/64
  net_address "$NET_GATEWAY" eth2 203.0.113.1/24 2001:db8:3::1/64
  ip -n "$NET_OTHER" route add default via 203.0.113.1
  ip -n "$NET_OTHER" -6 route add default via 2001:db8:3::1
  ip -n "$NET_INTERNET" route add 203.0.113.0/24 via $UPLINK_IP4
  ip -n "$NET_INTERNET" -6 route add 2001:db8:3::/64 via $UPLINK_IP6
  # Its own file: without one a helper there would write to this machine's.
  mkdir -p "/etc/netns/$NET_OTHER"
  echo "nameserver $DNS_BEFORE" >"/etc/netns/$NET_OTHER/resolv.conf"
}
other_start() {
  net_spawn other "$NET_OTHER" "$CULVERT_BIN/culvert-helper" run --socket "$NET_DIR/other.sock" --state-dir "$NET_DIR/other"
  net_wait 10 "the other helper's start" culvert_other status || die "the other helper did not start"
}
culvert_other() { net_in "$NET_OTHER" env CULVERT_SOCKET="$NET_DIR/other.sock" "$CULVERT_BIN/culvert" "$@"; }
other_close() {
  local pids=()
  mapfile -t pids < <(ip netns pids "$NET_OTHER" 2>/dev/null)
  [ ${#pids[@]} -gt 0 ] && kill -9 "${pids[@]}" 2>/dev/null && wait "${pids[@]}" 2>/dev/null
  [ -e "/run/netns/$NET_OTHER" ] && ip netns del "$NET_OTHER"
  rm -rf "/etc/netns/$NET_OTHER"
}

# machine NAME HOST [PACKAGE...]: a root of its own laid over this one's, with the packages' files, in the host's
# network. MACHINE is a process in it, ROOT its root.
machine() {
  local what=$1 host=$2 package files=()
  shift 2
  for package in "$@"; do files+=("$(ls "$debs/$package"_*.deb)"); done
  ROOT=$NET_DIR/$what/root
  mkdir -p "$NET_DIR/$what"
  # shellcheck disable=SC2016 # for the shell inside
  net_spawn "$what" "$host" unshare -m --propagation private bash -ec '
    place=$1 shared=$2
    shift 2
    mount -t tmpfs machine "$place"
    mkdir "$place"/{up,work,root,package}
    for package in "$@"; do dpkg-deb -x "$package" "$place/package"; done
    for folder in bin sbin lib; do # Debian has merged them into /usr
      [ -d "$place/package/$folder" ] && mkdir -p "$place/package/usr/$folder" &&
        cp -a "$place/package/$folder/." "$place/package/usr/$folder/" && rm -r "${place:?}/package/$folder"
    done
    cp -a "$place/package/." "$place/up/"
    mount -t overlay machine -o "lowerdir=/,upperdir=$place/up,workdir=$place/work" "$place/root"
    mount -t proc proc "$place/root/proc"
    mount --rbind /dev "$place/root/dev"
    mount -t tmpfs run "$place/root/run"
    mkdir -p "$place/root/$shared"
    mount --bind "$shared" "$place/root/$shared"
    rm -f "$place/root/etc/resolv.conf"
    touch "$place/root/run/up"
    exec sleep 600' machine "$NET_DIR/$what" "$NET_DIR" "${files[@]}"
  MACHINE=$NET_PID
  net_wait 10 "the machine $what" test -e "/proc/$MACHINE/root$ROOT/run/up" || die "no machine $what"
}
in_machine() { nsenter -t "$MACHINE" -m -n -- chroot "$ROOT" "$@"; }
# start NAME COMMAND...: runs it there in the background.
start() {
  local what=$1
  shift
  nsenter -t "$MACHINE" -m -n -- chroot "$ROOT" "$@" >"$NET_DIR/$what.log" 2>&1 </dev/null &
  NET_PID=$!
}

# Everything from a clean start.
[ -x "${CULVERT_BIN:-}/culvert-server" ] || { echo "$name: error: set CULVERT_BIN to the folder of the binaries" >&2; exit 2; }
NET_OTHER=$name-other
close() { other_close; net_end; }
# Only after the lock is ours: another run's hosts are not for us to remove.
net_open "$name" || exit 1
trap close EXIT
trap 'exit 130' INT TERM HUP
other_close
net_up || die "the namespaces could not be made"

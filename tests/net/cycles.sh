#!/bin/bash
# Proves that connecting and disconnecting a thousand times (250 of them before anything is compared) leaves nothing behind: no rule, route, table, descriptor,
# thread or memory, on either end; and neither does killing the helper in any state.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-cycles
NET_TEST_SECONDS=400
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

cycles=${CULVERT_CYCLES:-750} # after 250 that do not count
client_state() { net_state "$NET_CLIENT"; }
descriptors() { find "/proc/$1/fd" -mindepth 1 2>/dev/null | wc -l; }
threads() { find "/proc/$1/task" -mindepth 1 -maxdepth 1 | wc -l; }
# What a process has for itself alone, in KiB (proc_pid_smaps_rollup(5)).
private() { awk '/^Private_Dirty/ {print $2}' "/proc/$1/smaps_rollup"; }
cycle() {
  culvert connect --wait=10s 2>"$NET_DIR/cycle.err" && culvert disconnect 2>"$NET_DIR/cycle.err"
}
no_session() { [ "$(sessions '.sessions | length')" = 0 ]; }

client_state >"$NET_DIR/client-before.txt"
gateway_init || die "init failed"
# A device that connects more than once a second is told to wait; this one is in a hurry.
gateway_set cycles <<TOML
[limits]
handshakes_per_second = 0
TOML
gateway_start
helper_start
run enrol "$INVITATION" --name laptop
check "enrol" 0 $CODE

# Caches and pools fill first, and the allocator gives back what starting took.
for ((i = 0; i < 250; i++)); do cycle || die "cycle $i: $(<"$NET_DIR/cycle.err")"; done
net_wait 5 "the end of the last session" no_session
helper_before="$(descriptors "$HELPER_PID") $(threads "$HELPER_PID")" gateway_before="$(descriptors "$GATEWAY_PID") $(threads "$GATEWAY_PID")"
helper_kib=$(private "$HELPER_PID") gateway_kib=$(private "$GATEWAY_PID")
began=$SECONDS done=0
for ((i = 0; i < cycles; i++)); do cycle && done=$((done + 1)); done
check "$cycles cycles" "$cycles" $done
echo "     $cycles cycles took $((SECONDS - began)) s; private memory before and after, KiB: helper $helper_kib $(private "$HELPER_PID"), gateway $gateway_kib $(private "$GATEWAY_PID")"
net_wait 5 "the end of the last session" no_session
check "the client is as before" none "$(changes "$NET_DIR/client-before.txt" client_state)"
check "the helper's descriptors and threads" "$helper_before" "$(descriptors "$HELPER_PID") $(threads "$HELPER_PID")"
check "the gateway's descriptors" "${gateway_before% *}" "$(descriptors "$GATEWAY_PID")"
# A thread for what blocks (files, nft) stays for ten seconds after its work; there are at most eight.
within "the gateway's threads" 1 $((${gateway_before#* } + 8)) "$(threads "$GATEWAY_PID")"
# A leak of 4 KiB a cycle would show three times over.
within "the helper's memory grew by, KiB" -1000000 1024 $(($(private "$HELPER_PID") - helper_kib))
within "the gateway's memory grew by, KiB" -1000000 1024 $(($(private "$GATEWAY_PID") - gateway_kib))
check "the journal is empty" 0 "$(stat -c %s "$NET_DIR/helper/journal")"

# --- killed in every state ---

# killed WHAT: kill -9 now; what is left is undone by `recover` at once.
killed() {
  net_kill "$HELPER_PID"
  run net_in "$NET_CLIENT" "$CULVERT_BIN/culvert-helper" recover --state-dir "$NET_DIR/helper"
  check "killed while $1: recover" 0 $CODE
  check "killed while $1: everything is as before" none "$(changes "$NET_DIR/client-before.txt" client_state)"
  helper_start
  check "killed while $1: the next helper is at rest" disconnected "$(status .state)"
}
killed "disconnected"
run culvert connect --wait=10s
killed "connected"
# Whatever it is about to do, at many moments of connecting and of disconnecting.
for ms in 1 3 6 10 15 20 30 45; do
  culvert connect --no-wait 2>/dev/null &
  asker=$!
  sleep "0.0$(printf %02d $ms)"
  killed "connecting, after $ms ms"
  wait "$asker" 2>/dev/null
  run culvert connect --wait=10s
  culvert disconnect 2>/dev/null &
  asker=$!
  sleep "0.0$(printf %02d $ms)"
  killed "disconnecting, after $ms ms"
  wait "$asker" 2>/dev/null
done
run culvert connect --wait=10s
net_kill "$GATEWAY_PID"
net_in "$NET_CLIENT" ping -n -c 2 -i 0.2 -W 0.2 $INTERNET_IP4 >/dev/null
net_wait 15 "noticing that the gateway died" is_state reconnecting
killed "reconnecting"
ip -n "$NET_CLIENT" link set eth0 down
culvert connect --no-wait 2>/dev/null
net_wait 5 "noticing that there is no network" is_state offline
net_kill "$HELPER_PID"
ip -n "$NET_CLIENT" link set eth0 up
ip -n "$NET_CLIENT" addr replace $CLIENT_IP6/64 dev eth0
ip -n "$NET_CLIENT" route replace default via $GATEWAY_IP4
ip -n "$NET_CLIENT" -6 route replace default via $GATEWAY_IP6
helper_start
killed "offline"

finish

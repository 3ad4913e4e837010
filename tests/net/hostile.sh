#!/bin/bash
# Proves that garbage, on the network and on the local sockets, is answered by nothing or by one word, costs
# no memory, and disturbs no session.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-hostile
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

rss_kib() { awk '/^VmRSS:/ {print $2}' "/proc/$1/status"; }
descriptors() { find "/proc/$1/fd" -mindepth 1 | wc -l; }
shard() { server status --json | jq "[.shards[].$1] | add"; }
# Handshakes that were begun in earnest.
begun() { server status --json | jq '[.shards[] | .handshakes - .retries] | add'; }
none_left() { [ "$(descriptors "$HELPER_PID")" -le "$open" ]; }
session() { sessions '.sessions[] | "\(.device) since \(.since)"'; }
since() { status .since; }

gateway_init || die "init failed"
gateway_start
helper_start
run enrol "$INVITATION" --name laptop
check "enrol: exit code" 0 $CODE
# What attacks from the client's host leaves beside the tunnel.
run culvert settings set kill-switch off
run culvert connect --wait=15s
check "connect: exit code" 0 $CODE
session=$(session) since=$(since)
seen_as=$(status .gateway.seen_as)

echo "- the gateway's port"

# What is allocated once is allocated by the first of it.
net_in "$NET_INTERNET" $python "$net/udp-noise.py" 1 2000 $UPLINK_IP4 443 >/dev/null
memory=$(rss_kib "$GATEWAY_PID") counted=$(shard datagrams_in) foreign=$(shard datagrams_foreign) retries=$(shard retries) begun=$(begun)
check "10,000 datagrams of garbage over IPv4: answers" 0 "$(net_in "$NET_INTERNET" $python "$net/udp-noise.py" 2 10000 $UPLINK_IP4 443 2>&1)"
check "10,000 datagrams of garbage over IPv6: answers" 0 "$(net_in "$NET_INTERNET" $python "$net/udp-noise.py" 3 10000 $UPLINK_IP6 443 2>&1)"
counted=$(($(shard datagrams_in) - counted)) foreign=$(($(shard datagrams_foreign) + $(shard retries) - foreign - retries))
# A kernel under load may lose a few.
within "they were counted" 19800 20100 $counted
within "as foreign, or answered with a Retry" 19800 20000 $foreign
check "none of them got further than that" "$begun" "$(begun)"
within "the gateway grew by, in KiB" -9999 2047 $(($(rss_kib "$GATEWAY_PID") - memory))
check "2,000 datagrams of garbage as if the client had sent them" 0 \
  "$(net_in "$NET_CLIENT" $python "$net/udp-noise.py" 4 2000 $GATEWAY_IP4 443 "${seen_as%:*}" "${seen_as##*:}" 2>&1)"
within "the gateway grew by, in KiB" -9999 2047 $(($(rss_kib "$GATEWAY_PID") - memory))
check "the session lives" "$session" "$(session)"
check "and carries packets" "3 3" "$(pings "$NET_CLIENT" $INTERNET_IP4) $(pings "$NET_CLIENT" $INTERNET_IP6)"

echo "- the client's port"

memory=$(rss_kib "$HELPER_PID")
check "2,000 datagrams of garbage as if the gateway had sent them" 0 \
  "$(net_in "$NET_GATEWAY" $python "$net/udp-noise.py" 5 2000 "${seen_as%:*}" "${seen_as##*:}" $GATEWAY_IP4 443 2>&1)"
check "10,000 datagrams of garbage from somebody else: answers" 0 \
  "$(net_in "$NET_GATEWAY" $python "$net/udp-noise.py" 6 10000 "${seen_as%:*}" "${seen_as##*:}" 2>&1)"
within "the helper grew by, in KiB" -9999 2047 $(($(rss_kib "$HELPER_PID") - memory))
check "the session lives" "connected $since" "$(status .state) $(since)"
check "and carries packets" "3 3" "$(pings "$NET_CLIENT" $INTERNET_IP4) $(pings "$NET_CLIENT" $INTERNET_IP6)"

echo "- the helper's socket"

memory=$(rss_kib "$HELPER_PID") open=$(descriptors "$HELPER_PID")
while IFS=$'\t' read -r misdeed outcome; do
  case $misdeed in
    "half a frame and the end") match "$misdeed: closed" "^closed" "$outcome" ;;
    "a version to come") match "$misdeed: told which version it is, and nothing done" "^open E402$" "$outcome" ;;
    *) match "$misdeed: closed, and told why" "^closed E412$" "$outcome" ;;
  esac
done < <(timeout 60 $python "$net/socket-noise.py" helper "$NET_DIR/helper.sock" 2>&1)
net_wait 5 "the end of those conversations" none_left
check "nothing of them stays open" "$open" "$(descriptors "$HELPER_PID")"

mkfifo "$NET_DIR/leave"
timeout 30 $python "$net/socket-noise.py" crowd "$NET_DIR/helper.sock" 20 >"$NET_DIR/crowd" 2>&1 <"$NET_DIR/leave" &
crowd=$!
exec {leave}>"$NET_DIR/leave"
net_wait 20 "the crowd" test -s "$NET_DIR/crowd"
match "twenty connections at once: some are served, the others told that it is busy" "^served [1-9]+ refused 1[0-9] E413$" "$(cat "$NET_DIR/crowd")"
run timeout 10 ip netns exec "$NET_CLIENT" "$CULVERT_BIN/culvert" --socket "$NET_DIR/helper.sock" status
match "meanwhile the command line says so" "^1 error: .*hint: .*\[E413\]$" "$CODE $ERR"
exec {leave}>&-
wait $crowd
net_wait 5 "the end of the crowd" none_left
run culvert status --check
check "afterwards the helper serves again" 0 $CODE
within "the helper grew by, in KiB" -9999 4095 $(($(rss_kib "$HELPER_PID") - memory))
check "the session lives" "connected $since" "$(status .state) $(since)"

echo "- the gateway's control socket"

memory=$(rss_kib "$GATEWAY_PID")
while IFS=$'\t' read -r misdeed outcome; do
  match "$misdeed: closed" "^closed" "$outcome"
done < <(timeout 60 $python "$net/socket-noise.py" gateway "$NET_DIR/gateway.sock" 2>&1)
check "afterwards the gateway answers again, and the session lives" "$session" "$(session)"
within "the gateway grew by, in KiB" -9999 4095 $(($(rss_kib "$GATEWAY_PID") - memory))
check "and carries packets" 3 "$(pings "$NET_CLIENT" $INTERNET_IP4)"

finish

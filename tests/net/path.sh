#!/bin/bash
# Proves that a path that becomes narrower carries everything still, and that each end is told what fits.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-path
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

size=20000000
mtu() { status .path.mtu_bytes; }
tun_mtu() { ip -n "$NET_CLIENT" -j link show dev "$tun" | jq '.[].mtu'; }
discovered() { [ "$(mtu)" -ge 1400 ]; }
# narrow BYTES: the cable between client and gateway, at both of its ends.
narrow() {
  ip -n "$NET_GATEWAY" link set eth0 mtu "$1"
  ip -n "$NET_CLIENT" link set eth0 mtu "$1"
}
sum() { sha256sum | cut -d' ' -f1; }
# Both directions at once with what crosses checked; each has 40 s.
carries() {
  local what=$1 address=$2
  check "$what: a download of 20 MB from $address" "$expected" \
    "$(net_in "$NET_CLIENT" curl -sS --max-time 40 "http://$address/bytes/$size" 2>&1 | sum)"
  check "$what: an upload of 20 MB to $address" "$expected" \
    "$(net_in "$NET_CLIENT" curl -sS --max-time 40 -T "$NET_DIR/upload" "http://$address/upload" 2>&1)"
}
# fits WHAT: pings of exactly the interface's MTU pass, and one byte more is refused with the size that fits.
fits() {
  local what=$1 size header family address
  size=$(tun_mtu)
  check "$what: the interface's MTU is the one in status" "$(mtu)" "$size"
  for family in "28 $INTERNET_IP4" "48 $INTERNET_IP6"; do
    read -r header address <<<"$family"
    check "$what: $size bytes to $address pass in one piece" 3 "$(pings "$NET_CLIENT" "$address" -M "do" -s $((size - header)))"
    match "$what: one byte more is refused, with what fits" "[Mm]essage too long.*mtu[:=] ?$size" \
      "$(net_in "$NET_CLIENT" ping -n -c 1 -W 1 -M "do" -s $((size - header + 1)) "$address" 2>&1)"
  done
}
# settle: discovery falls to the minimum, begins again after 5 s, and takes a few round trips.
settle() {
  local before='' now same=0 end=$((SECONDS + 40))
  while [ $same -lt 8 ] && [ $SECONDS -lt $end ]; do
    # Nothing is looked for on a link that rests.
    net_in "$NET_CLIENT" ping -q -c 1 -W 1 $INTERNET_IP4 >/dev/null 2>&1
    now=$(mtu)/$(sessions '.sessions[].mtu_bytes')
    if [ "$now" = "$before" ]; then same=$((same + 1)); else same=0 before=$now; fi
    sleep 1
  done
}
# follows BYTES: an end finds out when large packets of its own are lost, so some are sent, each way.
follows() {
  # 28 bytes of IPv4 and UDP, and at most 45 of QUIC, rounded by the search's 8.
  local most=$(($1 - 28 > 1280 ? $1 - 28 : 1280)) least=$(($1 - 81 > 1280 ? $1 - 81 : 1280)) gateway
  net_in "$NET_CLIENT" ping -q -n -i 0.05 -w 3 -M "do" -s 1352 $INTERNET_IP4 >/dev/null 2>&1
  net_in "$NET_GATEWAY" ping -q -n -i 0.05 -w 3 -M "do" -s 1352 "$peer" >/dev/null 2>&1
  settle
  within "$1: status follows" "$least" $most "$(mtu)"
  gateway=$(sessions '.sessions[].mtu_bytes')
  within "$1: so does the gateway's list of sessions" "$least" $most "$gateway"
  # The host remembers what it was told before the path was known again.
  ip -n "$NET_GATEWAY" route flush cache
  match "$1: who sends more into the gateway is told what fits" "[Ff]rag(mentation)? needed.*mtu[ :=]+$gateway|too long.*mtu[ :=]+$gateway" \
    "$(net_in "$NET_GATEWAY" ping -n -c 1 -W 1 -M "do" -s 1472 "$peer" 2>&1)"
}

gateway_init || die "init failed"
gateway_start
web_run
helper_start
expected=$($python -c "import random, sys; sys.stdout.buffer.write(random.Random($size).randbytes($size))" | tee "$NET_DIR/upload" | sum)
run enrol "$INVITATION" --name laptop
check "enrol: exit code" 0 $CODE
run culvert connect --wait=15s
check "connect: exit code" 0 $CODE
tun=$(status .interface)
peer=$(status '.addresses[0]')

echo "- 1500 bytes"
net_wait 10 "the discovery of the path" discovered
# 28 bytes of IPv4 and UDP, and at most 45 of QUIC: short header, packet number, tag, frame.
match "1500: the whole path is used" "^14[0-9]{2}$" "$(mtu)"
fits "1500"
carries "1500" $INTERNET_IP4

for path in 1400 1300; do
  echo "- $path bytes, while connected"
  # During a download, which is when it hurts.
  net_in "$NET_CLIENT" curl -sS --max-time 40 "http://$INTERNET_IP4/bytes/$size" >"$NET_DIR/download" 2>"$NET_DIR/curl.log" &
  download=$!
  net_wait 5 "the download's beginning" test -s "$NET_DIR/download"
  narrow $path
  wait $download
  check "$path: the download that was under way is complete" "$expected" "$(sum <"$NET_DIR/download")"
  carries "$path" $INTERNET_IP4
  carries "$path" "[$INTERNET_IP6]"
  follows $path
  fits "$path"
  check "$path: still the same session" "$peer" "$(sessions '.sessions[].ipv4')"
done

echo "- 1300 bytes, and ICMP is blocked on every host, as it often is"
for host in "$NET_CLIENT" "$NET_GATEWAY"; do
  net_in "$host" nft -f - <<'NFT'
table inet deaf {
  chain input { type filter hook input priority 0; icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }
  chain forward { type filter hook forward priority 0; icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }
}
NFT
  ip -n "$host" route flush cache
done
carries "1300, ICMP blocked" $INTERNET_IP4
carries "1300, ICMP blocked" "[$INTERNET_IP6]"
for host in "$NET_CLIENT" "$NET_GATEWAY"; do net_in "$host" nft delete table inet deaf; done

echo "- 1228 bytes, the least that QUIC allows"
narrow 1228
check "1228: IPv6 packets of 1280 bytes cross, as they must" 3 "$(pings "$NET_CLIENT" $INTERNET_IP6 -M "do" -s 1232)"
carries "1228" $INTERNET_IP4
carries "1228" "[$INTERNET_IP6]"
fits "1228"
run culvert disconnect
run culvert connect --wait=15s
check "1228: a new session begins: exit code" 0 $CODE
check "1228: status says 1280" 1280 "$(mtu)"
fits "1228, anew"
carries "1228, anew" "[$INTERNET_IP6]"

finish

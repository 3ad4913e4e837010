#!/bin/bash
# Proves that clients cannot reach one another unless the operator allows it, nor send as somebody else.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-isolate
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

FORGED_IP4=203.0.113.99 FORGED_IP6=2001:db8:3::99
own4() { culvert"$1" status --json | jq -r '.addresses[0]'; }
own6() { culvert"$1" status --json | jq -r '.addresses[1]'; }
# What the gateway has dropped of the session with this inner address.
dropped() { sessions ".sessions[] | select(.ipv4 == \"$1\").dropped_packets"; }
# What the client's own end has refused to send as somebody else.
refused() { status '.traffic.dropped.sent.bad_source // 0'; }
# How many packets with a forged source came to the internet.
forged() { net_in "$NET_INTERNET" nft -j list table inet seen | jq '[.nftables[].rule?.expr[]?.counter?.packets // empty] | add'; }
both_connected() { is_state connected && [ "$(culvert_other status --json | jq -r .state)" = connected ]; }

other_up || die "no second client"
gateway_init || die "init failed"
gateway_start
web_run
helper_start
other_start
run enrol "$INVITATION" --name laptop
check "the first client enrols" 0 $CODE
run culvert_other enrol --name phone "$(invitation phone)"
check "the second client enrols" 0 $CODE
run culvert connect --wait=15s
check "the first client connects" 0 $CODE
run culvert_other connect --wait=15s
check "the second client connects" 0 $CODE
one4=$(own4 "") one6=$(own6 "") two4=$(own4 _other) two6=$(own6 _other)
check "each has addresses of its own" 4 "$(printf '%s\n' "$one4" "$one6" "$two4" "$two6" | sort -u | grep -c '[.:]')"

# --- isolated, which is the default ---

gateway4=$(net_in "$NET_GATEWAY" ip -j addr show dev culvert0 | jq -r '.[].addr_info[] | select(.family == "inet").local')
gateway6=$(net_in "$NET_GATEWAY" ip -j addr show dev culvert0 | jq -r '.[].addr_info[] | select(.family == "inet6" and .scope == "global").local')
for host in "$NET_CLIENT" "$NET_OTHER"; do
  check "${host#"$name"-} reaches the gateway" "3 3" "$(pings "$host" "$gateway4") $(pings "$host" "$gateway6")"
  check "${host#"$name"-} reaches the internet as the gateway" "$UPLINK_IP4 $UPLINK_IP6" \
    "$(page "$host" "http://$INTERNET_IP4/") $(page "$host" "http://[$INTERNET_IP6]/")"
done
before=$(dropped "$one4")
check "the first client does not reach the second" "0 0" "$(pings "$NET_CLIENT" "$two4") $(pings "$NET_CLIENT" "$two6")"
check "what it sent was counted" 6 $(($(dropped "$one4") - before))
before=$(dropped "$two4")
check "the second client does not reach the first" "0 0" "$(pings "$NET_OTHER" "$one4") $(pings "$NET_OTHER" "$one6")"
check "what it sent was counted" 6 $(($(dropped "$two4") - before))

# --- somebody else's address ---

net_in "$NET_INTERNET" nft -f - <<NFT
table inet seen {
  chain input {
    type filter hook input priority 0
    ip saddr { $FORGED_IP4, $two4 } counter
    ip6 saddr { $FORGED_IP6, $two6 } counter
  }
}
NFT
tun=$(status .interface)
for source in $FORGED_IP4/32 "$two4/32"; do ip -n "$NET_CLIENT" addr add "$source" dev "$tun"; done
for source in $FORGED_IP6/128 "$two6/128"; do ip -n "$NET_CLIENT" addr add "$source" dev "$tun" nodad; done
before=$(refused)
for source in $FORGED_IP4 "$two4"; do
  check "no answer for packets from $source, which is not ours" 0 "$(pings "$NET_CLIENT" $INTERNET_IP4 -I "$source")"
done
for source in $FORGED_IP6 "$two6"; do
  check "no answer for packets from $source, which is not ours" 0 "$(pings "$NET_CLIENT" $INTERNET_IP6 -I "$source")"
done
check "none of them reached the internet" 0 "$(forged)"
check "all of them were counted" 12 $(($(refused) - before))
check "packets from the own address still cross" "3 3" \
  "$(pings "$NET_CLIENT" $INTERNET_IP4 -I "$one4") $(pings "$NET_CLIENT" $INTERNET_IP6 -I "$one6")"
for source in $FORGED_IP4/32 "$two4/32" $FORGED_IP6/128 "$two6/128"; do ip -n "$NET_CLIENT" addr del "$source" dev "$tun"; done

# --- not isolated, because the operator says so ---

net_stop "$GATEWAY_PID"
gateway_set isolation <<<$'[network]\nisolation = false'
gateway_start
net_wait 30 "both clients' return" both_connected
check "after a restart of the gateway each has the same addresses" "$one4 $one6 $two4 $two6" \
  "$(own4 "") $(own6 "") $(own4 _other) $(own6 _other)"
check "without isolation the first client reaches the second" "3 3" "$(pings "$NET_CLIENT" "$two4") $(pings "$NET_CLIENT" "$two6")"
check "without isolation the second client reaches the first" "3 3" "$(pings "$NET_OTHER" "$one4") $(pings "$NET_OTHER" "$one6")"

# --- addresses are for life ---

run culvert disconnect
run culvert_other disconnect
run culvert_other connect --wait=15s
run culvert connect --wait=15s
check "connected in another order, each has the same addresses" "$one4 $one6 $two4 $two6" \
  "$(own4 "") $(own6 "") $(own4 _other) $(own6 _other)"
check "and packets cross" "3 3" "$(pings "$NET_CLIENT" $INTERNET_IP4) $(pings "$NET_OTHER" $INTERNET_IP6)"

finish

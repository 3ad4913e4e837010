#!/bin/bash
# Proves that clients look names up at the gateway: zones at their own servers and nowhere else, nothing for
# strangers, nobody starved, nothing written down; and that a gateway that cannot answer names carries packets.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-dns
NET_TEST_SECONDS=240
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

UPSTREAM=$DNS_BEFORE ZONE=$DNS_PUSHED SECOND=$INTERNET_IP4
# name_server NAME ADDRESS ARGUMENTS...: a real one on the internet's host, which writes down what it is asked.
name_server() {
  local what=$1 address=$2
  shift 2
  net_spawn "$what" "$NET_INTERNET" dnsmasq --no-daemon --conf-file=/dev/null --no-hosts --no-resolv --user=root \
    --pid-file= --local-ttl=300 --listen-address="$address" --bind-interfaces --log-queries --log-facility="$NET_DIR/$what.asked" "$@"
  net_wait 5 "the name server $what" net_in "$NET_INTERNET" dig +tries=1 +time=1 @"$address" ready.example || die "no $what"
}
upstream_start() { name_server upstream $UPSTREAM --address=/example/192.0.2.10 --address=/corp.example/192.0.2.66; UPSTREAM_PID=$NET_PID; }
zone_start() { name_server zone $ZONE --address=/corp.example/10.9.9.9; ZONE_PID=$NET_PID; }
asked() { grep -c "query.* $2 from" "$NET_DIR/$1.asked"; } # asked SERVER PATTERN

# look HOST ARGUMENTS...: one lookup: the data, or the code when there is none.
look() {
  local host=$1 told code data
  shift
  told=$(net_in "$host" dig +tries=2 +time=5 +noall +comments +answer "$@" 2>&1)
  code=$(sed -n 's/.*status: \([A-Z]*\),.*/\1/p' <<<"$told")
  data=$(awk '!/^;/ && NF > 4 {print $NF}' <<<"$told" | paste -sd' ')
  echo "${data:-${code:-nothing}}"
}
inner() { net_in "$NET_GATEWAY" ip -j addr show dev culvert0 | jq -r ".[].addr_info[] | select(.family == \"$1\" and .scope == \"global\").local"; }
own4() { culvert"$1" status --json | jq -r '.addresses[0]'; }
resolver() { net_in "$NET_CLIENT" cat /etc/resolv.conf; }
counted() { server status --json | jq -r ".dns.$1"; }
restart() {
  net_stop "$GATEWAY_PID"
  gateway_start
  net_wait 30 "the client's return" is_state connected
}

other_up || die "no second client"
gateway_init || die "init failed"
# Every line that might hold a name.
gateway_set dns <<TOML
[push]
dns = ["gateway"]
[dns]
zones = ["corp.example=$ZONE"]
[log]
level = "info,culvert_server=trace,hickory_resolver=trace,hickory_net=trace,hickory_proto=trace"
TOML
mkdir -p "/etc/netns/$NET_GATEWAY"
echo "nameserver $UPSTREAM" >"/etc/netns/$NET_GATEWAY/resolv.conf"
upstream_start
zone_start
gateway_start
web_run
helper_start
other_start
run enrol "$INVITATION" --name laptop
run culvert_other enrol --name phone "$(invitation phone)"
run culvert connect --wait=15s
check "the first client connects" 0 $CODE
run culvert_other connect --wait=15s
check "the second client connects" 0 $CODE
gateway4=$(inner inet) gateway6=$(inner inet6)

echo "- a client"

check "the gateway is the client's resolver" "$gateway4 $gateway6" "$(resolver | awk '/^nameserver/ {print $2}' | paste -sd' ')"
check "the status says that names are protected" true "$(status .protection.dns)"
check "a name, by whatever the client uses" 192.0.2.10 "$(look "$NET_CLIENT" www.example)"
check "over IPv4 and IPv6, UDP and TCP" "192.0.2.10 192.0.2.10 192.0.2.10 192.0.2.10" \
  "$(look "$NET_CLIENT" @"$gateway4" a.example) $(look "$NET_CLIENT" @"$gateway6" b.example) $(
    look "$NET_CLIENT" +tcp @"$gateway4" c.example) $(look "$NET_CLIENT" +tcp @"$gateway6" d.example)"
before=$(asked upstream www.example)
look "$NET_OTHER" @"$gateway4" www.example >/dev/null
check "what was asked before is not asked again" "$before" "$(asked upstream www.example)"

echo "- zones"

check "a zone's name" 10.9.9.9 "$(look "$NET_CLIENT" db.corp.example)"
check "was asked of its own server" 1 "$(asked zone db.corp.example)"
net_stop "$ZONE_PID"
check "with that server gone there is no answer" "SERVFAIL SERVFAIL SERVFAIL SERVFAIL SERVFAIL" \
  "$(for n in 1 2 3 4 5; do look "$NET_CLIENT" @"$gateway4" n$n.corp.example; done | paste -sd' ')"
check "others are answered as before" 192.0.2.10 "$(look "$NET_CLIENT" @"$gateway4" e.example)"
check "and the zone was never asked of anybody else" 0 "$(asked upstream '.*corp\.example')"
zone_start
says() { [ "$(look "$NET_CLIENT" @"$gateway4" "$1")" = "$2" ]; } # says NAME ANSWER
net_wait 10 "the zone's server" says m.corp.example 10.9.9.9
check "back, it is asked again" 10.9.9.9 "$(look "$NET_CLIENT" @"$gateway4" o.corp.example)"

echo "- names inside"

one4=$(own4 "") two4=$(own4 _other)
check "a device knows itself" "$one4 laptop.laptop.internal." \
  "$(look "$NET_CLIENT" laptop.laptop.internal) $(look "$NET_CLIENT" -x "$one4")"
check "and the gateway" "$gateway4 $gateway6" "$(look "$NET_CLIENT" gateway.internal) $(look "$NET_CLIENT" gateway.internal AAAA)"
check "and nobody else" "NXDOMAIN NXDOMAIN" "$(look "$NET_CLIENT" phone.phone.internal) $(look "$NET_CLIENT" -x "$two4")"
check "names without meaning outside" "NXDOMAIN NXDOMAIN NXDOMAIN 127.0.0.1" "$(look "$NET_CLIENT" printer.local) $(
  look "$NET_CLIENT" x.onion) $(look "$NET_CLIENT" -x 10.1.2.3) $(look "$NET_CLIENT" a.localhost)"
check "never leave" 0 "$(asked upstream '.*\(internal\|local\|onion\|100\.in-addr\.arpa\|10\.in-addr\.arpa\)')"
gateway_set isolation <<<$'[network]\nisolation = false'
restart
other_connected() { [ "$(culvert_other status --json | jq -r .state)" = connected ]; }
net_wait 30 "the second client's return" other_connected
check "without isolation devices know each other" "$two4 phone.phone.internal." \
  "$(look "$NET_CLIENT" phone.phone.internal) $(look "$NET_CLIENT" -x "$two4")"
rm "$NET_DIR/gateway.d/isolation.toml"

echo "- upstream"

restart
check "a name" 192.0.2.10 "$(look "$NET_CLIENT" kept.example)"
net_stop "$UPSTREAM_PID"
check "without upstream, what is known is answered and the rest fails" "192.0.2.10 SERVFAIL SERVFAIL SERVFAIL SERVFAIL" \
  "$(for host in kept gone1 gone2 gone3 gone4; do look "$NET_CLIENT" @"$gateway4" $host.example; done | paste -sd' ')"
quick=0
for n in {1..5}; do
  [ "$(look "$NET_CLIENT" +tries=1 +time=1 @"$gateway4" quick"$n".example)" = SERVFAIL ] && quick=$((quick + 1))
done
within "then at once, but for the one a second that tries it again" 3 5 $quick
check "which the log says once" "$UPSTREAM:53" "$(logged dns_upstream_down .server)"
within "and is counted" 7 9 "$(counted upstream_failures)"
check "packets cross all the same" "$UPLINK_IP4" "$(page "$NET_CLIENT" http://$INTERNET_IP4/)"
upstream_start
net_wait 10 "the upstream's return" says back.example 192.0.2.10
check "back, it is asked again" 192.0.2.10 "$(look "$NET_CLIENT" @"$gateway4" again.example)"
name_server second $SECOND --address=/example/192.0.2.20
echo "nameserver $SECOND" >"/etc/netns/$NET_GATEWAY/resolv.conf"
net_wait 10 "the new server" says kept.example 192.0.2.20
check "a changed resolv.conf is followed, and nothing old is kept" 192.0.2.20 "$(look "$NET_CLIENT" @"$gateway4" kept.example)"

echo "- a flood"

before=$(counted refused)
net_in "$NET_CLIENT" $python "$net/ask.py" "$gateway4" 10000 flood >"$NET_DIR/flood" 2>"$NET_DIR/flood.log" &
flood=$!
answered=0
for n in {1..20}; do
  [ "$(look "$NET_OTHER" @"$gateway4" other"$n".example)" = 192.0.2.20 ] && answered=$((answered + 1))
done
wait $flood
check "while one client asks 10,000 at once, another's questions are all answered" 20 $answered
echo "     answers to the flood: $(cat "$NET_DIR/flood"); the gateway's $(grep VmHWM "/proc/$GATEWAY_PID/status")"
within "the flood has had its share" 100 9000 "$(cat "$NET_DIR/flood")"
within "and the rest was refused and counted" 1000 10000 $(($(counted refused) - before))
check "afterwards that client is answered, too" 192.0.2.20 "$(look "$NET_CLIENT" @"$gateway4" after.example)"

echo "- strangers"

ip -n "$NET_INTERNET" route add "$gateway4/32" via $UPLINK_IP4
ip -n "$NET_INTERNET" -6 route add "$gateway6/128" via $UPLINK_IP6
for address in "$gateway4" "$gateway6" $UPLINK_IP4; do
  check "nobody outside is answered at $address" "nothing nothing" "$(look "$NET_INTERNET" +tries=1 +time=1 @"$address" www.example) $(
    look "$NET_INTERNET" +tcp +tries=1 +time=1 @"$address" www.example)"
done

echo "- the log"

check "has no name in it, at any level" 0 "$(grep -ciE '(www|db|kept|flood-[0-9]+|n1\.corp)\.?[a-z]*\.example|phone\.internal|printer\.local' "$NET_DIR/gateway.log")"

echo "- no port"

net_stop "$GATEWAY_PID"
net_spawn taken "$NET_GATEWAY" dnsmasq --no-daemon --conf-file=/dev/null --no-hosts --no-resolv --user=root --pid-file=
taken=$NET_PID
net_wait 5 "the other program" net_in "$NET_GATEWAY" dig +tries=1 +time=1 @127.0.0.1 www.example
gateway_start
net_wait 30 "the client's return" is_state connected
match "a taken port is one line with what to do" "^no name server for clients: another program has port 53 of $gateway4; .*ss -lnptu" "$(logged dns_unavailable .message)"
check "clients are not told to ask there" false "$(status .protection.dns)"
check "and packets cross" "$UPLINK_IP4 $UPLINK_IP6" "$(page "$NET_CLIENT" http://$INTERNET_IP4/) $(page "$NET_CLIENT" "http://[$INTERNET_IP6]/")"
net_stop "$taken"
net_stop "$GATEWAY_PID"
net_in "$NET_GATEWAY" sysctl -qw net.ipv4.ip_unprivileged_port_start=54
net_spawn gateway "$NET_GATEWAY" setpriv --bounding-set=-net_bind_service --inh-caps=-net_bind_service \
  "$CULVERT_BIN/culvert-server" --config "$NET_DIR/gateway.toml" run
GATEWAY_PID=$NET_PID
net_wait 30 "the client's return" is_state connected
match "so is a missing capability" "^no name server for clients: port 53 needs CAP_NET_BIND_SERVICE" "$(logged dns_unavailable .message)"
check "and packets cross" "$UPLINK_IP4" "$(page "$NET_CLIENT" http://$INTERNET_IP4/)"

finish

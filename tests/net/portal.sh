#!/bin/bash
# Proves that a network that wants a sign-in first is named, that its page and nothing else can be reached for a
# while, and that the tunnel comes up by itself once the sign-in is done.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-portal
NET_TEST_SECONDS=150
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

# 192.0.2.213 has no owner, so a network that answers for it is one with a sign-in page.
nobody=192.0.2.213 login=192.0.2.80
client_state() { net_state "$NET_CLIENT"; }
# close_network, open_network: what a hotel does before and after a sign-in.
close_network() {
  net_in "$NET_GATEWAY" nft -f - <<NFT || die "the hotel's rules"
table ip hotel {
  chain in {
    type filter hook input priority -10
    udp dport 443 drop
  }
}
NFT
  net_spawn nobody "$NET_GATEWAY" $python "$net/sign-in-page.py" $nobody "http://login.hotel.example/"
  nobody_pid=$NET_PID
  net_wait 5 "the hotel's redirect" page "$NET_GATEWAY" "http://$nobody/" || die "no redirect"
}
open_network() {
  net_in "$NET_GATEWAY" nft delete table ip hotel
  net_kill "$nobody_pid"
}
# visit URL: a page by an ordinary program of the client.
visit() { net_in "$NET_CLIENT" curl -sS --max-time 3 "$1" 2>&1; }

ip -n "$NET_GATEWAY" addr add $nobody/32 dev eth0
ip -n "$NET_GATEWAY" addr add $login/32 dev eth0
# The network's own name server is the one before the sign-in, too.
net_spawn names "$NET_INTERNET" $python "$net/names.py" $DNS_BEFORE login.hotel.example=$login
net_spawn login "$NET_GATEWAY" $python "$net/sign-in-page.py" $login
web_run
gateway_init || die "init failed"
gateway_start
helper_arguments=(--portal-for 6)
helper_start
run enrol "$INVITATION" --name laptop
check "enrol" 0 $CODE
client_state >"$NET_DIR/client.txt"
check "without a wish the page is reached" "please sign in" "$(visit http://login.hotel.example/)"
run culvert portal
match "without a wish there is no page to open" "^1 .*no sign-in page.*\[E420\]" "$CODE $ERR"

close_network
began=$SECONDS
run culvert connect --timeout 15s
match "connect: the network needs a sign-in" "^6 .*sign-in.*culvert portal.*\[E102\]" "$CODE $ERR"
within "that is said within 5 s" 0 5 $((SECONDS - began))
check "the state and the page" "portal_sign_in http://login.hotel.example/ null" "$(status '"\(.state) \(.page) \(.open_until)"')"
match "the page is held back" "Could not resolve|Connection refused|not permitted|Failed to connect" "$(visit http://login.hotel.example/)"

run culvert portal
check "portal: exit code and page" "0 http://login.hotel.example/" "$CODE $OUT"
match "portal: for how long" "For [56] s it can be reached" "$ERR"
match "the state tells until when" "^portal_sign_in 20[0-9-]+T" "$(status '"\(.state) \(.open_until)"')"
check "the page can be reached by its name" "please sign in" "$(visit http://login.hotel.example/)"
match "nothing else can" "Failed to connect|not permitted|refused" "$(visit "http://$INTERNET_IP4/")"
check "no ping either" "" "$(net_in "$NET_CLIENT" ping -n -c 1 -W 1 $INTERNET_IP4 2>&1 | grep -o ' 1 received')"
closed() { [ "$(status .open_until)" = null ]; }
net_wait 10 "the end of the opening" closed
match "afterwards the page is held back again" "Could not resolve|Failed to connect|refused" "$(visit http://login.hotel.example/)"

run culvert portal
check "portal again: exit code" 0 $CODE
open_network
began=$(date +%s%3N)
net_wait 10 "the connection after the sign-in" is_state connected
took=$(($(date +%s%3N) - began))
echo "     connected $took ms after the sign-in"
within "connected after the sign-in" 0 5000 $took
match "the opening is closed" "Failed to connect|not permitted|refused|timed out|Could not resolve" "$(visit http://login.hotel.example/)"
check "the web is reached through the tunnel" "$UPLINK_IP4" "$(page "$NET_CLIENT" "http://$INTERNET_IP4/")"

echo "- a session that ends in a network with a sign-in page"
close_network
net_wait 40 "the sign-in page" is_state portal_sign_in
run culvert portal
check "portal: exit code" 0 $CODE
check "the page is reached although the tunnel's routes were there" "please sign in" "$(visit http://login.hotel.example/)"
match "and nothing else" "Failed to connect|not permitted|refused|timed out" "$(visit "http://$INTERNET_IP4/")"
open_network
net_wait 10 "the connection" is_state connected
check "connected again" connected "$(status .state)"
close_network
net_wait 40 "the sign-in page" is_state portal_sign_in
run culvert portal
run culvert disconnect
check "disconnect lifts everything: exit code" 0 $CODE
check "the client is as it was" none "$(changes "$NET_DIR/client.txt" client_state)"
finish

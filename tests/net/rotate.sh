#!/bin/bash
# Another certificate authority in a gateway that people use: a client that is connected changes to it without a lost
# packet, commands that are killed leave one state that holds, and a client that was away hears what to do.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-rotate
NET_TEST_SECONDS=90
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

gateway_init || die "init failed"
gateway_start
other_up
other_start
helper_start
run enrol "$INVITATION" --name laptop
check "enrol" 0 $CODE
# The one that will be away from beginning to end.
run culvert_other enrol --name away - < <(invitation ben)
check "enrol the other" 0 $CODE
run culvert connect --wait=15s
check "connect" 0 $CODE
inner=$(ip -n "$NET_GATEWAY" -4 -j addr show dev culvert0 | jq -r '.[0].addr_info[0].local')
opened() { jq -cR 'fromjson? | select(.event == "session_open")' "$NET_DIR/gateway.log" | wc -l; }
closed() { jq -cR 'fromjson? | select(.event == "session_close")' "$NET_DIR/gateway.log" | wc -l; }
profile=$(find "$NET_DIR/helper/profiles" -name '*.json')
# pin FIELD: of the last certificate of a field of the profile, as the gateway writes it.
pin() {
  jq -r ".$1" "$profile" | awk '/BEGIN/ { text = "" } { text = text $0 "\n" } END { printf "%s", text }' |
    openssl x509 -noout -pubkey | openssl pkey -pubin -outform DER | sha256sum | cut -d ' ' -f 1
}
show() { server ca show --json | jq -r "$1"; }
old=$(show .ca.pin)
check "the profile's authority is the gateway's" "$old" "$(pin chain_pem)"

echo "- begin, while packets cross"

net_spawn ping "$NET_CLIENT" ping -n -q -c 600 -i 0.01 -W 2 "$inner"
ping=$NET_PID
run server ca rotate --json
check "begin: exit code" 0 $CODE
new=$(jq -r .next_pin <<<"$OUT")
changed() { [ "$(pin chain_pem)" = "$new" ] && [ "$(show '.rotation.waiting | join(" ")')" = ben/away ]; }
before=$(date +%s%N)
net_wait 10 "the client's change" changed
echo "     $((($(date +%s%N) - before) / 1000000)) ms until the client had its certificate, and the gateway knew"
check "the client has a certificate of the new one" "$new" "$(pin chain_pem)"
check "and trusts both meanwhile" 2 "$(jq -r .authorities_pem "$profile" | grep -c BEGIN)"
match "ca show says who is missing" "Devices: +1 of 2.*Not yet: +ben/away" "$(server ca show | tr '\n' ' ')"
run server ca rotate --finish
match "the end is refused, and says for whom" "^1 error: 1 device would be lost now: ben/away" "$CODE $ERR"

echo "- killed at every moment"

# Each is killed a little later than the one before; whatever it did, the gateway starts and says one of two states.
seen=0 last=$(show '.rotation | "\(.state) \(.pin)"')
for step in --abort "" --abort ""; do
  for ms in 050 080 120 160 200 250 300 400; do
    # shellcheck disable=SC2086 # no step is no word
    net_in "$NET_GATEWAY" timeout -s KILL 0.$ms "$CULVERT_BIN/culvert-server" \
      --config "$NET_DIR/gateway.toml" ca rotate $step >"$NET_DIR/killed" 2>&1
    run server ca show --json
    [ $CODE = 0 ] || not_ok "a state that can be read" 0 "$CODE $ERR"
    now=$(jq -r '.rotation | "\(.state) \(.pin)"' <<<"$OUT")
    [ "$now" = "$last" ] || seen=$((seen + 1))
    last=$now
  done
done
echo "     $seen steps were taken"
within "some were, and some were not" 2 20 $seen
wait "$ping"
match "no packet is lost by any of that" "600 packets transmitted, 600 received" "$(<"$NET_DIR/ping.log")"
# From where that has ended to one that comes: what was taken back is forgotten first.
settled() {
  [ "$(show .rotation.state)" = coming ] && return
  server ca rotate >/dev/null 2>&1 || server ca rotate --abort >/dev/null 2>&1
  [ "$(show .rotation.state)" = coming ]
}
net_wait 20 "one that comes" settled
new=$(show .rotation.pin)
net_wait 20 "the client's change" changed
check "the client has a certificate of the last one" "$new" "$(pin chain_pem)"

echo "- the end"

net_spawn ping "$NET_CLIENT" ping -n -q -c 100 -i 0.01 -W 2 "$inner"
ping=$NET_PID
run server ca rotate --finish --force
match "the end says who is lost" "^0 .*CA pin: $new.Lost: ben/away" "$CODE ${OUT//$'\n'/.}"
dropped() { [ "$(jq -r .authorities_pem "$profile" | grep -c BEGIN)" = 1 ] && [ "$(pin authorities_pem)" = "$new" ]; }
net_wait 10 "the client's trust in one" dropped
check "the client trusts the new one only" yes "$(dropped && echo yes)"
wait "$ping"
match "no packet is lost by that either" "100 packets transmitted, 100 received" "$(<"$NET_DIR/ping.log")"
check "one session from the beginning" "1 0" "$(opened) $(closed)"
net_kill "$GATEWAY_PID"
gateway_start
back() { [ "$(opened)" = 1 ] && is_state connected; } # the new process has a log of its own
net_wait 15 "the client's return" back
check "the client comes back to a gateway that shows the new one" yes "$(back && echo yes)"

echo "- who was away"

run culvert_other connect --wait=10s
match "it is told why, and what to do" "new certificate authority.*new invitation.*E302" "${ERR//$'\n'/ }"
run culvert_other enrol - < <(invitation ben --renew)
check "with an invitation that renews it" 0 $CODE
check "it is one profile still" 1 "$(culvert_other profiles list --json | jq '.profiles | length')"
run culvert_other connect --wait=15s
check "it is back" 0 $CODE
run culvert_other disconnect
run server devices revoke ben/away
check "revoke" 0 $CODE
run culvert_other connect --wait=10s
match "revoked stays revoked" "E301" "$ERR"
run culvert disconnect

finish

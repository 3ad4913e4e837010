#!/bin/bash
# Proves that three gateways with one PostgreSQL database are one service: a device enrolled at one goes on at another
# when the first is killed, a revocation at any holds at all within 2 s, and without the database live sessions and
# known devices go on, the revoked stay out, and enrolment says why it waits.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-fleet
NET_TEST_SECONDS=150
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"
# shellcheck source=scripts/fleet.bash
. "$root/scripts/fleet.bash"
trap 'fleet_close; close' EXIT

other_enrol() { culvert_other enrol --name other - <<<"$1"; }
# enrolled_at NUMBER: what the client's device is told at that gateway alone.
enrolled_at() {
  local profile
  profile=$(compgen -G "$NET_DIR/helper/profiles/*.json" | head -1)
  culvert disconnect >/dev/null 2>&1
  jq --arg to "${FLEET_IP[$1]}" '.endpoints = [$to + ":443"] | .server_name = $to' "$profile" >"$NET_DIR/profile.new" &&
    cat "$NET_DIR/profile.new" >"$profile"
  culvert connect --wait=10s
  culvert status --json
}

other_up
fleet_up
database_open || die "no database"

echo "- a gateway moves its registry into the database, two join it"

url=$DATABASE_URL
DATABASE_URL=
fleet_config 1
run gateway 1 init --yes --json --invite zoe
check "init with a file: exit code" 0 "$CODE"
pin=$(jq -r .ca_pin <<<"$OUT")
run gateway 1 registry export "$NET_DIR/registry.export" --json
check "export: exit code, and who may read it" "0 600" "$CODE $(stat -c %a "$NET_DIR/registry.export")"
run gateway 1 registry import "$NET_DIR/registry.export"
match "without a database there is nothing to import into" "^1 .*registry.url" "$CODE $ERR"
gateway 1 ca rotate >/dev/null || die "no rotation"
DATABASE_URL=$url
fleet_config 1
run gateway 1 registry import "$NET_DIR/registry.export"
match "during a rotation, which nobody could end there, it is refused" "^1 .*rotation.*registry.url" "$CODE $ERR"
run gateway 1 run
match "and so is a start" "^1 .*rotation.*registry.url" "$CODE $ERR"
DATABASE_URL=
fleet_config 1
gateway 1 ca rotate --abort >/dev/null || die "the rotation is not taken back"
DATABASE_URL=$url
fleet_config 1
run gateway 1 registry import "$NET_DIR/registry.export" --json
check "import: everything is there" "0 1 1" "$CODE $(jq -r '.imported | "\(.users) \(.invitations)"' <<<"$OUT")"
run gateway 1 registry import "$NET_DIR/registry.export"
match "a second time it is refused" "^1 .*in use" "$CODE $ERR"
check "the invitation moved along" zoe "$(gateway 1 invites list --json | jq -r '.invitations[].user')"
echo "correct horse battery staple" >"$NET_DIR/passphrase"
run gateway 1 ca backup "$NET_DIR/ca.culvert" --passphrase-file "$NET_DIR/passphrase"
check "ca backup: exit code" 0 "$CODE"
fleet_config 2
run gateway 2 init --yes
match "a second one without the CA is told that the registry is in use" "^1 .*in use" "$CODE $ERR"
run gateway 2 init --yes --json --ca "$NET_DIR/ca.culvert" --passphrase-file "$NET_DIR/passphrase"
check "with it, it joins: the same CA" "0 $pin" "$CODE $(jq -r .ca_pin <<<"$OUT")"
fleet_config 3
gateway 3 init --yes --ca "$NET_DIR/ca.culvert" --passphrase-file "$NET_DIR/passphrase" >/dev/null || die "3 did not join"
for number in 1 2 3; do fleet_start $number; done
check "each has a part of the network" "100.77.0.2-100.77.0.255 100.77.1.0-100.77.1.255 100.77.2.0-100.77.2.255" \
  "$(gateway 2 gateways list --json | jq -r '[.gateways[].addresses[0]] | sort | join(" ")')"
check "all are live" "true true true" "$(gateway 3 gateways list --json | jq -r '[.gateways[].live] | join(" ")')"
run gateway 1 gateways forget "${FLEET_IP[3]}"
match "one that runs is not forgotten" "^1 .*runs" "$CODE $ERR"
net_kill_copy() {
  cp -a "$NET_DIR/gw2" "$NET_DIR/gw4" && rm -f "$NET_DIR/gw4/.lock"
  fleet_config 4 2
  run timeout 20 ip netns exec "$NET_OTHER" "$CULVERT_BIN/culvert-server" --config "$NET_DIR/gw4.toml" run
}
net_kill_copy
match "a copy of a gateway's state does not start beside it" "^1 .*identity" "$CODE ${ERR##*error: }"

echo "- a device goes on at another gateway"

helper_start
INVITATION=$(gateway 1 invite anna --uses 3 --json | jq -re .invitation)
run enrol "$INVITATION" --name laptop
check "enrol at the first" 0 "$CODE"
known() { [ "$(culvert profiles list --json | jq '.profiles[0].endpoints | length')" = 3 ]; }
run culvert connect --wait=15s
check "connect" 0 "$CODE"
net_wait 5 "three endpoints in the profile" known
check "the profile has the endpoints of all three, its own first" "${FLEET_IP[1]}:443" \
  "$(culvert profiles list --json | jq -r '.profiles[0].endpoints[0]')"
addresses=$(status '.addresses | join(" ")')
match "with an address of the first one's part" "100\.77\.0\." "$addresses"
other_start
run other_enrol "$(gateway 2 invite ben --json | jq -re .invitation)"
check "another enrols at the second" 0 "$CODE"
run culvert_other connect --wait=15s
match "and has an address of that one's part" "^0 .*100\.77\.1\." "$CODE $(culvert_other status --json | jq -r '.addresses | join(" ")')"

at() { [ "$(status '"\(.state) \(.gateway.remote)"')" = "connected ${FLEET_IP[$1]}:443" ]; }
at_2_or_3() { at 2 || at 3; }
inner=$(ip -n "$NET_GATEWAY" -4 -j addr show dev culvert0 | jq -r '.[0].addr_info[0].local')
# An idle client has nothing to miss, and looks once in 24 s.
net_spawn ping "$NET_CLIENT" ping -n -i 0.2 "$inner"
sleep 1
began=$(date +%s%3N)
net_kill "${FLEET_PID[1]}"
net_wait 20 "the client at another gateway" at_2_or_3
took=$(($(date +%s%3N) - began))
echo "     kill -9 of its gateway: at another after $took ms"
within "kill -9 of its gateway: at another within 10 s" 0 10000 $took
check "with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"
check "and packets" 3 "$(pings "$NET_CLIENT" "$inner")"
fleet_start 1

echo "- a revocation anywhere holds everywhere"

refused() { is_state failed || is_state blocked; }
elsewhere=3
at 3 && elsewhere=2
began=$(date +%s%3N)
run gateway $elsewhere devices revoke laptop
check "revoke at a gateway that it is not connected to" 0 "$CODE"
until refused || [ $(($(date +%s%3N) - began)) -gt 5000 ]; do sleep 0.02; done
took=$(($(date +%s%3N) - began))
echo "     from the command at one gateway to the client's verdict at another: $took ms"
within "its session elsewhere ends within 2 s" 0 2000 $took
match "with the reason" E301 "$(culvert status --json)"
for number in 1 2 3; do
  run enrolled_at $number
  match "gateway $number refuses it" "E301" "$OUT$ERR"
done
run gateway 1 devices restore laptop
run culvert connect --wait=15s
check "restored, it connects" 0 "$CODE"

echo "- without the database"

run gateway 1 invite cleo --uses 2 --json
cleo=$(jq -re .invitation <<<"$OUT")
gateway 1 devices revoke ben/other >/dev/null 2>&1 || gateway 1 devices revoke --user ben >/dev/null
gone() { [ "$(culvert_other status --json | jq -r .state)" != connected ]; }
net_wait 5 "the end of the other session" gone
database_stop
away() { grep -q '"event":"registry_unreachable"' "$NET_DIR/gw$1.log"; }
for number in 1 2 3; do net_wait 10 "gateway $number's notice" away $number; done
check "a live session goes on" 3 "$(pings "$NET_CLIENT" "$inner")"
run culvert disconnect
run culvert connect --wait=15s
check "a known device connects" 0 "$CODE"
check "with the same addresses" "$addresses" "$(status '.addresses | join(" ")')"
run culvert_other connect --wait=10s
match "a revoked one does not" "^[1-9].*E301" "$CODE $OUT$ERR$(culvert_other status --json)"
run enrol "$cleo" --name phone
match "nobody enrols, and is told why" "^[1-9].*cannot reach its registry.*still good" "$CODE $OUT$ERR"
run gateway 1 health --ready
match "the gateway says that it is not ready" "^1 .*registry" "$CODE $ERR"
check "and a metric" "culvert_registry_up 0" "$(gateway 1 metrics | grep '^culvert_registry_up')"
run gateway 1 doctor
match "and doctor" "^1 .*database does not answer" "$CODE $OUT$ERR"
net_kill "${FLEET_PID[3]}"
fleet_start 3
run gateway 3 status
check "a gateway starts from what it remembers" 0 "$CODE"

echo "- and with it again"

database_start || die "the database did not come back"
enrols() { enrol "$cleo" --name phone; }
began=$(date +%s%3N)
net_wait 15 "enrolment" enrols
echo "     the database is back: enrolment after $(($(date +%s%3N) - began)) ms"
check "enrolment goes on" phone "$(gateway 2 devices list --json | jq -r '.devices[] | select(.user == "cleo").name')"
check "the session was not touched" connected "$(status .state)"
check "no two devices have one address" "" "$(gateway 1 devices list --json | jq -r '.devices[].ipv4' | sort | uniq -d)"
net_kill "${FLEET_PID[3]}"
silent() { [ "$(gateway 1 gateways list --json | jq -r --arg name "${FLEET_IP[3]}" '.gateways[] | select(.name == $name).live')" = false ]; }
net_wait 25 "gateway 3's silence" silent
run gateway 1 gateways forget "${FLEET_IP[3]}"
check "one that is gone is forgotten" "0 2" "$CODE $(gateway 1 gateways list --json | jq '.gateways | length')"
finish

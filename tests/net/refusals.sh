#!/bin/bash
# Proves that each bad input is refused with a sentence and code of its own, on both sides, and loses nothing.
# shellcheck disable=SC2317 # some functions are called through others, by their names
name=t-refuse
# shellcheck source=tests/net/lib.bash
. "$(dirname "$0")/lib.bash"

profiles() { checksums "$NET_DIR/helper/profiles"; }
state() { checksums "$NET_DIR/gateway" && checksums "$NET_DIR/gateway.d" && sha256sum "$NET_DIR/gateway.toml"; }
client_state() { net_state "$NET_CLIENT"; }
gateway_state() { net_state "$NET_GATEWAY"; }
# serve COMMAND...: runs a gateway that should refuse to; the words before "culvert-server" wrap it.
serve() { net_in "$NET_GATEWAY" timeout 10 "$@" "$CULVERT_BIN/culvert-server" --config "$NET_DIR/gateway.toml" run; }
# shellcheck disable=SC2016 # for the shell that it wraps
no_tun='mount -t tmpfs none /dev/net && exec "$0" "$@"'
no_net_admin=(setpriv --bounding-set=-net_admin --inh-caps=-net_admin)

# refused WHAT CODE EXIT PATTERN: what the last command said on standard error. Every sentence is one line
# and one of its kind.
declare -A sentences=()
refused() {
  local what=$1 code=$2 exit=$3 pattern=$4 sentence
  sentence=$(grep '^error: ' <<<"$ERR") || sentence="no error"
  check "$what: exit code" "$exit" $CODE
  match "$what: the sentence" "$pattern" "$sentence"
  match "$what: code and hint" "hint: .+ \[$code\]$" "$sentence"
  check "$what: one line" 1 "$(wc -l <<<"$sentence")"
  check "$what: in words of its own" "" "${sentences[$sentence]:-}"
  sentences[$sentence]=$what
}
# not_enrolled WHAT CODE PATTERN: an enrolment that must leave the client as it was.
not_enrolled() {
  refused "$1" "$2" 5 "$3"
  check "$1: the profiles are unchanged" none "$(changes "$NET_DIR/profiles.txt" profiles)"
}
# The reason in the gateway's last log line that has one. Before a client is known to be where it says, that
# is a line for the curious (level debug): whoever forges addresses must not fill the log.
last_reason() { jq -rR 'fromjson? | .reason // empty' "$NET_DIR/gateway.log" | tail -1; }

echo "- before init"

cat >"$NET_DIR/empty.toml" <<TOML
[state]
dir = "$NET_DIR/empty"
[control]
socket = "$NET_DIR/empty.sock"
TOML
empty=(net_in "$NET_GATEWAY" timeout 10 "$CULVERT_BIN/culvert-server" --config "$NET_DIR/empty.toml")
for command in run "invite anna" "devices list"; do
  # shellcheck disable=SC2086 # words
  run "${empty[@]}" $command
  match "$command without init" "^7 error: there is no gateway in $NET_DIR/empty; run culvert-server init$" "$CODE $ERR"
done
run "${empty[@]}" sessions list
match "sessions list without a gateway" "^4 error: no running gateway answers on $NET_DIR/empty.sock .*; start it with: culvert-server run$" "$CODE $ERR"
run "${empty[@]}" init
match "init without a public address" "^2 error: .*[0-9.]+.*culvert-server init --endpoint" "$CODE $ERR"
CULVERT_SERVER_NETWORK__IPV4=192.0.2.0/25 run "${empty[@]}" init --endpoint $GATEWAY_IP4
match "init with an inner network that is in use here" \
  "^1 error: the inner network 192\.0\.2\.0/25 overlaps 192\.0\.2\.[0-9/]+ of this host \(interface eth0\); set network\.ipv4" "$CODE $ERR"
check "nothing was made by all that" "" "$(ls -A "$NET_DIR/empty" 2>/dev/null)"

echo "- init"

gateway_init || die "init failed"
# Room for five devices, of one user if need be; so its pool can be used up below.
gateway_set small <<TOML
[network]
ipv4 = "100.77.3.0/29"
[limits]
devices_per_user = 0
[log]
level = "info,culvert_server=debug"
TOML
state >"$NET_DIR/state.txt"
run server init --yes
check "a second init: exit code" 0 $CODE
match "a second init says so" "There is a gateway here already; nothing was changed" "$OUT$ERR"
run server init --yes --json --invite eve
check "a second init in JSON: says so" "0 false null" "$CODE $(jq -r '"\(.changed) \(.invitation)"' <<<"$OUT")"
run server init --yes --endpoint other.example
check "a second init changes nothing" none "$(changes "$NET_DIR/state.txt" state)"

echo "- configuration"

# config WHAT PLACE PATTERN: a configuration from standard input that check-config and run refuse.
config() {
  cat >"$NET_DIR/bad.toml"
  run net_in "$NET_GATEWAY" "$CULVERT_BIN/culvert-server" check-config "$NET_DIR/bad.toml"
  match "$1: check-config" "^9 error: $NET_DIR/bad.toml:$2: .*$3" "$CODE $ERR"
  run net_in "$NET_GATEWAY" timeout 10 "$CULVERT_BIN/culvert-server" --config "$NET_DIR/bad.toml" run
  match "$1: run" "^9 error: $NET_DIR/bad.toml:$2: .*$3" "$CODE $ERR"
}
config "an unknown key" 2:1 'unknown key "adress" in \[listen\]; did you mean "address"\?' <<<$'[listen]\nadress = "[::]:443"'
config "an unknown section" 3:2 'unknown section \[netwrok\]; did you mean "network"\?' <<<$'[listen]\n\n[netwrok]\nipv4 = "10.1.0.0/24"'
config "a wrong type" 2:13 'network\.isolation must be true or false, not string' <<<$'[network]\nisolation = "yes"'
config "a value without meaning" 2:8 'network\.ipv4 = "100\.77\.3\.0/30" is not .*/29' <<<$'[network]\nipv4 = "100.77.3.0/30"'
config "no TOML at all" 2:[0-9]+ '.+' <<<$'[network]\nipv4 = '
CULVERT_SERVER_LOG__LEVLE=debug run server check-config
match "an unknown variable" '^9 error: .*CULVERT_SERVER_LOG__LEVLE.*did you mean "CULVERT_SERVER_LOG__LEVEL"\?' "$CODE $ERR"
CULVERT_SERVER_NETWORK__ISOLATION=perhaps run server check-config
match "a variable of the wrong type" '^9 error: .*CULVERT_SERVER_NETWORK__ISOLATION.*must be true or false, not "perhaps"' "$CODE $ERR"
run server check-config
check "the right configuration: exit code" 0 $CODE

echo "- a host that does not fit"

gateway_state >"$NET_DIR/gateway-before.txt"
cat >"$NET_DIR/occupy.py" <<'PY'
import socket, time
occupied = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
occupied.bind(("::", 443))
time.sleep(60)
PY
net_spawn occupier "$NET_GATEWAY" $python "$NET_DIR/occupy.py"
occupied() { net_in "$NET_GATEWAY" ss -Huln "sport = 443" | grep -q .; }
net_wait 5 "the occupied port" occupied
run serve
match "an occupied port" '^1 error: UDP port 443 .* is in use by another program; stop it, or set listen\.address$' "$CODE $ERR"
net_stop "$NET_PID"
run serve unshare -m bash -c "$no_tun"
match "no /dev/net/tun" '^1 error: .*/dev/net/tun.*modprobe tun.*--device /dev/net/tun' "$CODE $ERR"
run serve "${no_net_admin[@]}"
match "no CAP_NET_ADMIN" '^8 error: .*CAP_NET_ADMIN.*run it as root' "$CODE $ERR"
ip -n "$NET_GATEWAY" route add 100.77.3.4/30 dev eth1
run serve
match "an inner network that is in use here" \
  '^1 error: the inner network 100\.77\.3\.0/29 overlaps 100\.77\.3\.4/30 of this host \(interface eth1\); set network\.ipv4' "$CODE $ERR"
ip -n "$NET_GATEWAY" route del 100.77.3.4/30 dev eth1
check "the host is as before" none "$(changes "$NET_DIR/gateway-before.txt" gateway_state)"
check "and so is the gateway's state" none "$(changes "$NET_DIR/state.txt" state)"

gateway_start
run serve
match "a second gateway on the same state" "^1 error: another culvert-server uses $NET_DIR/gateway; stop it" "$CODE $ERR"
check "the first one goes on" 0 "$(sessions '.sessions | length')"

echo "- invitations"

helper_start
expired=$(invitation eve --expires 1s)
never=$(invitation eve)
$python - "$NET_DIR/gateway/gateway/registry.sqlite" "$(jq -r .invitation_id "$NET_DIR/init.json")" <<'PY'
import sqlite3, sys
registry = sqlite3.connect(sys.argv[1], timeout=5)
kept = bytes.fromhex(sys.argv[2])
# What a registry that was restored from an older copy looks like: it has never heard of the newest invitation.
registry.execute("DELETE FROM invitations WHERE rowid = (SELECT max(rowid) FROM invitations WHERE id <> ?)", [kept])
registry.commit()
PY
foreign=$(sed "s|$NET_DIR/gateway|$NET_DIR/foreign|" "$NET_DIR/gateway.toml" >"$NET_DIR/foreign.toml" &&
  net_in "$NET_GATEWAY" "$CULVERT_BIN/culvert-server" --config "$NET_DIR/foreign.toml" init --yes --invite eve --json | jq -re .invitation) ||
  die "the foreign gateway could not be initialised"
profiles >"$NET_DIR/profiles.txt"

run enrol "hello"
not_enrolled "no invitation at all" E601 "not an invitation"
last=${INVITATION: -1}
run enrol "${INVITATION%?}$([ "$last" = q ] && echo w || echo q)"
not_enrolled "a mistyped invitation" E601 "at least one character is wrong"
swapped=${INVITATION:0:40}${INVITATION:41:1}${INVITATION:40:1}${INVITATION:42}
[ "$swapped" != "$INVITATION" ] || swapped=${INVITATION:0:40}0${INVITATION:41}
run enrol "$swapped"
check "two swapped characters are noticed too" 5 $CODE
run enrol "${INVITATION:0:${#INVITATION}-12}"
not_enrolled "a truncated invitation" E601 "its end is missing"
run enrol "$never"
not_enrolled "an invitation that the gateway does not know" E601 "never issued this invitation"
check "and the gateway logs why" invite_foreign "$(logged enrol_failed .reason)"
run enrol "$foreign"
not_enrolled "another gateway's invitation" E201 "could not prove"
check "and the gateway logs why" unknown_ca "$(last_reason)"
sleep 1
run enrol "$expired"
not_enrolled "an expired invitation" E601 "expired on [0-9]+ [A-Z][a-z]+ 20[0-9]{2}"
check "and the gateway logs why" invite_expired "$(logged enrol_failed .reason)"
run enrol "$INVITATION" --name laptop
check "after all that the right one still works" 0 $CODE
profiles >"$NET_DIR/profiles.txt"
run enrol "$INVITATION" --name phone
not_enrolled "a used invitation" E601 "was used on .* by \"laptop\""
check "and the gateway logs why" invite_used "$(logged enrol_failed .reason)"
check "one device came of all this" laptop "$(server devices list --json | jq -r '.devices[].name')"

echo "- who may ask"

# The folder is root's; so that the sockets can be judged by their own rules, others may pass.
chmod 711 "$NET_DIR"
install -m 755 "$CULVERT_BIN/culvert" "$CULVERT_BIN/culvert-server" "$NET_DIR"
nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
run net_in "$NET_CLIENT" "${nobody[@]}" "$NET_DIR/culvert" --socket "$NET_DIR/helper.sock" disconnect
refused "a foreign user at the helper" E409 8 "[Uu]ser 65534"
run net_in "$NET_GATEWAY" "${nobody[@]}" "$NET_DIR/culvert-server" --config "$NET_DIR/gateway.toml" sessions list
match "a foreign user at the gateway" "^8 error: you may not use $NET_DIR/gateway.sock; run this as root" "$CODE $ERR"
net_stop "$HELPER_PID"
helper_arguments=(--allow-uid 65534)
helper_start
helper_arguments=()
run net_in "$NET_CLIENT" "${nobody[@]}" "$NET_DIR/culvert" --socket "$NET_DIR/helper.sock" status
check "a user whom the administrator allows: exit code" 0 $CODE
run net_in "$NET_CLIENT" "$CULVERT_BIN/culvert-helper" run --socket "$NET_DIR/helper.sock" --state-dir "$NET_DIR/helper"
match "a second helper on the same socket" "another helper listens on $NET_DIR/helper.sock" "$CODE $ERR"

echo "- a client that does not fit"

client_state >"$NET_DIR/client-before.txt"
ip -n "$NET_CLIENT" link add lan type veth peer name lan-end
ip -n "$NET_CLIENT" addr add 100.77.3.6/29 dev lan
ip -n "$NET_CLIENT" link set lan up
run culvert connect
refused "an inner network that is in use here" E404 1 "100\.77\.3\.0/29.* lan"
ip -n "$NET_CLIENT" link del lan
net_stop "$HELPER_PID"
helper_wrapper=(unshare -m bash -c "$no_tun")
helper_start
run culvert connect
refused "no /dev/net/tun" E406 1 "/dev/net/tun is missing.*modprobe tun"
net_stop "$HELPER_PID"
helper_wrapper=("${no_net_admin[@]}")
helper_start
run culvert connect
refused "no CAP_NET_ADMIN" E407 "$CODE" "CAP_NET_ADMIN.*[Rr]un it as root"
check "no CAP_NET_ADMIN: refused" yes "$([ $CODE -ne 0 ] && echo yes)"
run culvert disconnect
net_stop "$HELPER_PID"
helper_wrapper=()
helper_start
check "the client is as before" none "$(changes "$NET_DIR/client-before.txt" client_state)"

echo "- identities"

# Each begins with the right profile; edit FILTER ARGUMENTS... changes it.
profile=$NET_DIR/helper/profiles/$GATEWAY_IP4.json
[ -f "$profile" ] || profile=$(find "$NET_DIR/helper/profiles" -name '*.json')
cp "$profile" "$NET_DIR/right.json"
edit() { jq "$@" "$NET_DIR/right.json" >"$profile"; }
# session WHAT CODE WORD PATTERN: a connect that must be refused.
session() {
  run culvert connect
  refused "$1" "$2" 5 "$4"
  match "$1: blocked, with the word" "^blocked ($3)$" "$(status '"\(.state) \(.cause.word)"')"
  match "$1: says how to lift the block" "culvert disconnect" "$ERR"
  run culvert disconnect
  check "$1: the client is as before" none "$(changes "$NET_DIR/client-before.txt" client_state)"
}
# A certificate for the profile's key, as OpenSSL makes it: issue CA DAYS-FROM DAYS-TO.
issue() {
  local ca=$1 from=$2 to=$3 dir=$NET_DIR/openssl
  rm -rf "$dir" && mkdir "$dir" && touch "$dir/index.txt"
  jq -r .key_pem "$NET_DIR/right.json" >"$dir/key.pem"
  cat >"$dir/ca.cnf" <<CNF
[ca]
default_ca = it
[it]
database = $dir/index.txt
new_certs_dir = $dir
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = device
[any]
commonName = supplied
[device]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = clientAuth
authorityKeyIdentifier = keyid
CNF
  {
    openssl req -new -key "$dir/key.pem" -subj "/CN=$(jq -r .device_id "$NET_DIR/right.json")" -out "$dir/device.csr" &&
      openssl ca -batch -notext -config "$dir/ca.cnf" -cert "$ca/ca.pem" -keyfile "$ca/ca.key" -in "$dir/device.csr" \
        -startdate "$(date -ud "$from days" +%y%m%d%H%M%SZ)" -enddate "$(date -ud "$to days" +%y%m%d%H%M%SZ)" -out "$dir/device.pem"
  } 2>"$dir/log" || die "openssl: $(cat "$dir/log")"
  # shellcheck disable=SC2016 # jq's variables
  edit --rawfile leaf "$dir/device.pem" --rawfile ca "$NET_DIR/gateway/gateway/ca.pem" '.chain_pem = $leaf + $ca'
}

issue "$NET_DIR/gateway/gateway" -1 +9
run culvert connect --wait=15s
check "a certificate that OpenSSL issued with the gateway's key is as good" 0 $CODE
run culvert disconnect
issue "$NET_DIR/foreign/gateway" -1 +9
session "a certificate of another CA" E303 unknown_ca ".+"
check "a certificate of another CA: the gateway logs why" unknown_ca "$(logged auth_failed .reason)"
issue "$NET_DIR/gateway/gateway" -9 -1
session "an expired certificate" E302 expired "expired"
check "an expired certificate: the gateway logs why" expired "$(logged auth_failed .reason)"
edit '.server_name = "other.example"'
session "a gateway of another name" E201 "bad_certificate|wrong_name" "could not prove|name"
match "a gateway of another name: the gateway logs why" "bad_certificate|wrong_name" "$(last_reason)"
edit '.'
net_stop "$GATEWAY_PID"
cp -r "$NET_DIR/gateway" "$NET_DIR/kept"
$python - "$NET_DIR/gateway/gateway/registry.sqlite" <<'PY'
import sqlite3, sys
registry = sqlite3.connect(sys.argv[1])
registry.executescript("DELETE FROM invitation_uses; DELETE FROM devices;")
PY
gateway_start
session "a device that the registry does not know" E303 unknown_device "does not know"
check "a device that the registry does not know: the gateway logs why" unknown_device "$(logged auth_failed .reason)"
net_stop "$GATEWAY_PID"
rm -r "$NET_DIR/gateway" && mv "$NET_DIR/kept" "$NET_DIR/gateway"
mv "$NET_DIR/foreign/gateway" "$NET_DIR/foreign-gateway" && mv "$NET_DIR/gateway/gateway" "$NET_DIR/right-gateway" &&
  mv "$NET_DIR/foreign-gateway" "$NET_DIR/gateway/gateway"
gateway_start
session "a gateway that was made anew" E201 unknown_ca "could not prove"
check "a gateway that was made anew: the gateway logs why" unknown_ca "$(last_reason)"
net_stop "$GATEWAY_PID"
rm -r "$NET_DIR/gateway/gateway" && mv "$NET_DIR/right-gateway" "$NET_DIR/gateway/gateway"
gateway_start
run culvert connect --wait=15s
check "with everything back in its place it connects: exit code" 0 $CODE

echo "- no room"

many=$(invitation crowd --uses 9)
for number in 2 3 4 5; do
  run enrol "$many" --name "device-$number"
  check "device $number of 5 enrols" 0 $CODE
done
profiles >"$NET_DIR/profiles.txt"
run enrol "$many" --name device-6
refused "the sixth of five addresses" E305 "$CODE" "no free address"
check "the sixth of five addresses: refused" yes "$([ $CODE -ne 0 ] && echo yes)"
check "the sixth of five addresses: the profiles are unchanged" none "$(changes "$NET_DIR/profiles.txt" profiles)"
check "and the gateway logs why" pool_full "$(logged enrol_failed .reason)"
check "and who it was, as the client said it" device-6 "$(logged enrol_failed .name)"
check "nobody lost an address" "100.77.3.2 100.77.3.3 100.77.3.4 100.77.3.5 100.77.3.6" \
  "$(server devices list --json | jq -r '[.devices[].ipv4] | sort | join(" ")')"
check "and the session that was open still is" 3 "$(pings "$NET_CLIENT" $INTERNET_IP4)"

finish

# Sourced by the demo and the namespace tests: a PostgreSQL server of the script's own, on a Unix socket, which every
# network namespace reaches.
#
#   database_open          makes it, starts it, and makes the database culvert, whose user needs a password
#   database_stop          cuts every connection; database_start brings it back
#   database_close         for the exit trap: ends it and removes its files
#
# DATABASE_URL and DATABASE_PASSWORD (a file) are for the gateways' configuration. Needs Debian's package postgresql
# (scripts/setup). It runs as the user postgres, in a folder below /tmp that only this script knows.
# shellcheck shell=bash disable=SC2034 # the names are for those who source this

database_open() {
  local programs=(/usr/lib/postgresql/*/bin)
  database_programs=${programs[-1]}
  [ -x "$database_programs/initdb" ] || { echo "error: PostgreSQL is not installed. Run: scripts/setup" >&2; return 1; }
  database_folder=$(mktemp -d /tmp/culvert-database.XXXXXX) || return 1
  chown postgres: "$database_folder"
  database_as "$database_programs/initdb" -D "$database_folder/data" --username=admin --auth=trust --encoding=UTF8 \
    --locale=C --no-sync >"$database_folder.log" 2>&1 || { cat "$database_folder.log" >&2; return 1; }
  printf 'local all culvert scram-sha-256\nlocal all admin trust\n' >"$database_folder/data/pg_hba.conf"
  DATABASE_URL=postgres://culvert@${database_folder//\//%2F}/culvert
  DATABASE_PASSWORD=$database_folder.password
  (umask 077 && head -c 18 /dev/urandom | base64 >"$DATABASE_PASSWORD")
  database_start || return 1
  database_sql postgres "CREATE ROLE culvert LOGIN PASSWORD '$(<"$DATABASE_PASSWORD")'" &&
    database_sql postgres "CREATE DATABASE culvert OWNER culvert"
}

database_start() {
  # Without a function between, so that the number is the server's own.
  (cd / && exec "${database_user[@]}" "$database_programs/postgres" -D "$database_folder/data" -k "$database_folder" \
    -c listen_addresses= -c fsync=off) >>"$database_folder.log" 2>&1 &
  DATABASE_PID=$!
  local _
  for _ in {1..150}; do
    database_sql postgres "SELECT 1" >/dev/null 2>&1 && return
    sleep 0.1
  done
  echo "error: PostgreSQL did not start: $(tail -3 "$database_folder.log")" >&2
  return 1
}

database_stop() {
  [ -n "${DATABASE_PID:-}" ] || return 0
  kill -INT "$DATABASE_PID" 2>/dev/null
  wait "$DATABASE_PID" 2>/dev/null
  DATABASE_PID=
}

database_close() {
  database_stop
  [ -n "${database_folder:-}" ] && rm -rf "${database_folder:?}" "$database_folder.log" "$database_folder.password"
  true
}

# database_sql DATABASE STATEMENT: as its administrator. By a pipe: it may hold a password, and others read arguments.
database_sql() { database_as psql -h "$database_folder" -U admin -qAt -f - "$1" <<<"$2"; }

# database_as COMMAND...: PostgreSQL refuses to run as root.
database_user=(setpriv --reuid=postgres --regid=postgres --clear-groups --pdeathsig=INT --)
database_as() { (cd / && exec "${database_user[@]}" "$@"); }

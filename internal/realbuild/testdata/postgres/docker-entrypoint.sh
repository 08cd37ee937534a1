#!/usr/bin/env bash
set -Eeo pipefail

if [ "$1" = 'postgres' ]; then
	if [ "$(id -u)" = '0' ]; then
		mkdir -p "$PGDATA"
		chmod 00700 "$PGDATA"
		chown postgres "$PGDATA"
		# then restart script as postgres user
		exec setpriv --reuid=postgres --regid=postgres --init-groups "$BASH_SOURCE" "$@"
	fi
	if [ ! -s "$PGDATA/PG_VERSION" ]; then
		: "${POSTGRES_PASSWORD:?Database is uninitialized and superuser password is not specified.}"
		initdb --username=postgres --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") --no-sync
		printf '\nhost all all all scram-sha-256\n' >> "$PGDATA/pg_hba.conf"
		pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
		for f in /docker-entrypoint-initdb.d/*.sql; do
			[ -e "$f" ] || continue
			echo "$0: running $f"
			psql -v ON_ERROR_STOP=1 --no-psqlrc -U postgres -f "$f"
		done
		pg_ctl -D "$PGDATA" -m fast -w stop
		echo 'PostgreSQL init process complete; ready for start up.'
	fi
fi
exec "$@"

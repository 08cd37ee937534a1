#!/bin/sh
# vim:sw=4:ts=4:et
set -e

if [ "$1" = "nginx" ]; then
    find "/docker-entrypoint.d/" -follow -type f -print | sort -V | while read -r f; do
        if [ -x "$f" ]; then
            echo "$0: Launching $f"
            "$f"
        else
            echo "$0: Ignoring $f, not executable"
        fi
    done
fi
exec "$@"

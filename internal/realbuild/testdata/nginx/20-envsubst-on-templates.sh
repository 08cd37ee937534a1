#!/bin/sh
set -e
rm -f /etc/nginx/sites-enabled/default
for template in /etc/nginx/templates/*.template; do
    name=$(basename "$template" .template)
    envsubst '$PAGE' <"$template" >"/etc/nginx/conf.d/$name"
done

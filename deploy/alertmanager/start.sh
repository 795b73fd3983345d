#!/bin/sh
# Starts Alertmanager for docker-compose.yml. PATHAR_ALERT_WEBHOOK, a URL, is told of alerts as they
# begin and end; without it they are only shown. A file of Alertmanager cannot name variables, so it
# is written here.
set -eu

file=${TMPDIR:-/tmp}/alertmanager.yml
cat > "$file" << END
route:
  receiver: operator
  group_by: [alertname]
  group_wait: 10s
  group_interval: 5m
  repeat_interval: 4h
receivers:
  - name: operator
END
if [ -n "${PATHAR_ALERT_WEBHOOK:-}" ]; then
  printf "    webhook_configs:\n      - url: '%s'\n" "$PATHAR_ALERT_WEBHOOK" >> "$file"
fi
exec alertmanager --config.file="$file" --cluster.listen-address= "$@"

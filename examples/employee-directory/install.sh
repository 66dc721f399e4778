#!/bin/sh
# Installs the employee directory in a running Debian instance, as root, from the folder that holds this script:
#
#   vmm cp employee-directory INSTANCE:/root/
#   vmm exec INSTANCE -- /root/employee-directory/install.sh
#
# Run again, it updates the program and keeps the database.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends nginx-light python3-minimal libpython3-stdlib

id employees >/dev/null 2>&1 ||
    useradd --system --home-dir /var/lib/employees --shell /usr/sbin/nologin employees
install -d -o employees -g employees -m 700 /var/lib/employees
install -D -m 644 -t /srv/employees "$here/app.py" "$here/page.html" "$here/schema.sql"
install -m 644 "$here/nginx.conf" /etc/nginx/sites-available/employees
rm -f /etc/nginx/sites-enabled/default
ln -sf /etc/nginx/sites-available/employees /etc/nginx/sites-enabled/employees
nginx -t

if [ -d /run/systemd/system ]; then
    install -m 644 "$here/employees.service" /etc/systemd/system/
    systemctl daemon-reload
    systemctl enable employees nginx
    systemctl restart employees nginx
elif [ -d /run/guest-init ]; then
    # guest-init takes in what is new; what runs already is started anew after its end.
    install -D -m 644 -t /etc/kiln/services "$here"/services/*.json
    kill -HUP 1
else
    # Without a service manager both run until the machine stops.
    [ ! -f /run/employees.pid ] || kill "$(cat /run/employees.pid)" 2>/dev/null || true
    DATABASE=/var/lib/employees/employees.sqlite PORT=8000 \
        setsid setpriv --reuid employees --regid employees --init-groups \
        /usr/bin/python3 /srv/employees/app.py </dev/null >/var/log/employees.log 2>&1 &
    echo $! >/run/employees.pid
    if [ -s /run/nginx.pid ]; then nginx -s reload; else nginx; fi
fi
# Both have been started; the database is made at the first start.
python3 - <<'END'
import time, urllib.request
for attempt in range(240):
    try:
        urllib.request.urlopen("http://127.0.0.1/api/employees").read()
        break
    except OSError as error:
        reason = error
        time.sleep(0.5)
else:
    raise SystemExit(f"The employee directory does not answer on port 80: {reason}")
END
echo "The employee directory answers on port 80."

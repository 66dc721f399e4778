#!/bin/sh
# Runs the programs and tools that are named, each in a folder of its own, and prints a name and an outcome a line.
set -u
places=/opt/i386

try_dpkg_and_apt() {
    mkdir -p package/DEBIAN package/opt/sample
    printf 'Package: sample\nVersion: 1\nArchitecture: i386\nMaintainer: nobody <nobody@example.org>\nDepends: libc6\nDescription: test\n' \
        >package/DEBIAN/control
    printf '#!/bin/sh\necho configured >/opt/sample/by\n' >package/DEBIAN/postinst
    chmod 755 package/DEBIAN/postinst
    dpkg-deb --root-owner-group -b package sample.deb >/dev/null &&
        apt-get check >/dev/null &&
        apt-get install -y ./sample.deb >/dev/null 2>&1 &&
        [ "$(cat /opt/sample/by)" = configured ] &&
        [ "$(dpkg --print-architecture)" = i386 ] &&
        apt-get remove -y sample >/dev/null 2>&1 &&
        [ -z "$(dpkg --audit)" ] && dpkg -L libc6:i386 | grep -q ld-linux.so.2
}

try_perl() {
    perl -e 'use Config; die unless $Config{ivsize} == 8 && $Config{ptrsize} == 4;
        die unless 9007199254740993 + 1 == 9007199254740994;
        die unless unpack("q", pack("q", -1234567890123456789)) == -1234567890123456789;
        die unless sprintf("%.17g", 0.1 + 0.2) eq "0.30000000000000004";
        die unless join("", map { chr } unpack("U*", "\x{263a}x")) eq "\x{263a}x";
        my $x = eval { die { code => 5 } }; die unless $@->{code} == 5;
        ("a" x 100000) =~ /^(a+)+$/ or die; exit 0' &&
        perl -MPOSIX -e 'exit(POSIX::fmod(7.5, 2) == 1.5 && strftime("%Y", gmtime(2524608000)) eq "2050" ? 0 : 1)'
}

try_sqlite() {
    sqlite3 test.db 'create table t(a integer, b real); with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
        insert into t select i * 3000000000, i / 3.0 from n; create index i on t(a);' &&
        [ "$(sqlite3 test.db 'select sum(a), printf("%.6f", sum(b)), (select b from t where a = 30000000000) from t; pragma integrity_check')" = \
            '600030000000000000|66670000.000000|3.33333333333333
ok' ]
}

try_nginx() {
    head -c 300000 /dev/urandom >file
    printf 'daemon off; pid %s/pid; error_log %s/log; events {} http { access_log off; gzip on; server { listen 127.0.0.1:8080; root %s; } }\n' \
        "$PWD" "$PWD" "$PWD" >conf
    chmod 755 . && nginx -c "$PWD/conf" &
    python3 -c 'import time, urllib.request
for attempt in range(600):
    try:
        got = urllib.request.urlopen("http://127.0.0.1:8080/file").read()
        break
    except OSError:
        time.sleep(0.1)
assert got == open("file", "rb").read()'
    outcome=$?
    kill "$(cat pid)"
    wait
    return $outcome
}

try_gdb() {
    gdb -nx -batch -ex 'break place' -ex 'run' -ex 'bt 2' -ex 'info registers eip' -ex 'finish' -ex 'next' -ex 'continue' \
        --args "$places/debugged" >out 2>&1
    grep -q 'Breakpoint 1, place (a=14)' out && grep -q '#1 .* main ()' out && grep -q 'Value returned is \$1 = 42' out &&
        grep -q 'exited normally' out || { cat out >&2; return 1; }
}

for name in "$@"; do
    scratch=$(mktemp -d)
    cd "$scratch" || exit 1
    if [ -x "$places/$name" ]; then
        timeout 600 "$places/$name" >/dev/null 2>"/tmp/$name.err"
    else
        "try_$(echo "$name" | tr - _)" 2>"/tmp/$name.err"
    fi
    if [ $? = 0 ]; then
        echo "$name pass"
    else
        echo "$name fail"
        sed "s/^/$name: /" "/tmp/$name.err" >&2
    fi
    cd / && rm -rf "$scratch"
done

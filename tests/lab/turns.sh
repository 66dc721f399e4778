# How several ways of doing one thing are compared in the lab: `configuration WAY` does it, for each of $CONFIGURATIONS there and back (A B C C B A) in each of
# $ROUNDS rounds, and prints lines `result WHAT VALUE` among others. What comes out is a line for each: round, way, what, value. The script before
# whose end this is called makes the folder $D.
measure() {
    rm -f $D/output.$2 $D/ended
    configuration $2 2>$D/errors.$2 | tee $D/output.$2 | tr -d '\r' | sed -n "s/^result \\([^ ]* [0-9.]*\\).*/$1 $2 \\1/p"
    cat $D/errors.$2 >&2
}

in_turns() {
    local back= configuration= round=
    for configuration in $CONFIGURATIONS; do back="$configuration $back"; done
    for round in $(seq $ROUNDS); do
        for configuration in $CONFIGURATIONS $back; do measure $round $configuration; done
    done
}

# Puts what a monitor boots of image $1 into $D: kernel, initramfs and root. QEMU puts the initramfs of a microvm where its firmware puts the ACPI tables,
# so it is lengthened by zeros until it leaves most of its last page free: see `spare_last_page` in benches/src/configuration.rs.
take_apart() {
    local part=
    for part in kernel initramfs root; do imgtool extract $1 --part $part -o $D/$part >/dev/null 2>&1; done
    head -c $(((4096 - $(stat -c %s $D/initramfs) % 4096) % 4096 + 512)) /dev/zero >>$D/initramfs
}

# Has the lines of file $2 carried out under QEMU's microvm with the arguments after them; $1 is the way. The guest has no agent there: the shell on its console
# takes them.
under_qemu() {
    local way=$1 script=$2
    shift 2
    type_in $way $script | {
        timeout 300 qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none \
            -M microvm,accel=kvm,acpi=on,pit=off,pic=off,rtc=off -cpu host -m 256M \
            -kernel $D/kernel -initrd $D/initramfs -append "quiet loglevel=3 panic=-1 console=ttyS0 reboot=acpi pci=off" \
            -drive id=root,if=none,format=raw,file=$D/root,snapshot=on -device virtio-blk-device,drive=root \
            "$@" -device virtio-rng-device -serial stdio || true
        touch $D/ended
    }
}

# Prints the lines of file $2 and what ends the guest. Not before the shell answers: how long the guest boots is the host's business, and what comes earlier
# may be lost. The input stays open until QEMU has ended.
type_in() {
    until cat $D/output.$1 2>/dev/null | tr -d '\r' | grep -q '^ready 2' || [ -e $D/ended ]; do
        echo 'echo ready $((1+1))'
        sleep 2
    done
    cat $2
    echo "poweroff -f"
    until [ -e $D/ended ]; do sleep 1; done
}

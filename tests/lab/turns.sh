# How several ways of doing one thing are compared in the lab: `lane WAY` does it, for each of $LANES there and back (A B C C B A) in each of
# $ROUNDS rounds, and prints lines `result WHAT VALUE` among others. What comes out is a line for each: round, way, what, value. The script before
# whose end this is called reads what a way prints from $D/output.WAY meanwhile, if it must.
measure() {
    lane $2 2>$D/errors.$2 | tee $D/output.$2 | tr -d '\r' | sed -n "s/^result \\([^ ]* [0-9.]*\\).*/$1 $2 \\1/p"
    cat $D/errors.$2 >&2
}

in_turns() {
    local back= lane= round=
    for lane in $LANES; do back="$lane $back"; done
    for round in $(seq $ROUNDS); do
        for lane in $LANES $back; do measure $round $lane; done
    done
}

# QEMU puts the initramfs of a microvm where its firmware puts the ACPI tables: see the function of this name in vmm/src/bench/lane.rs.
spare_last_page() {
    head -c $(((4096 - $(stat -c %s $1) % 4096) % 4096 + 512)) /dev/zero >>$1
}

# How several ways of doing one thing are compared in the lab: `lane WAY` does it, for each of $LANES there and back (A B C C B A) in each of
# $ROUNDS rounds, and prints lines `result WHAT VALUE` among others. What comes out is a line for each: round, way, what, value. The script before
# whose end this is called makes the folder $D.
measure() {
    rm -f $D/output.$2 $D/ended
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

# Prints the lines of file $2 for the shell on the console of the guest of way $1, which has no agent, and ends it. Not before the shell answers: how long
# the guest boots is the host's business, and what comes earlier may be lost. Its input stays open until the way makes the file $D/ended.
type_in() {
    until cat $D/output.$1 2>/dev/null | tr -d '\r' | grep -q '^ready 2' || [ -e $D/ended ]; do
        echo 'echo ready $((1+1))'
        sleep 2
    done
    cat $2
    echo "poweroff -f"
    until [ -e $D/ended ]; do sleep 1; done
}

# QEMU puts the initramfs of a microvm where its firmware puts the ACPI tables: see the function of this name in vmm/src/bench/lane.rs.
spare_last_page() {
    head -c $(((4096 - $(stat -c %s $1) % 4096) % 4096 + 512)) /dev/zero >>$1
}

# The block device of vmm beside QEMU's and beside itself without confinement, same guest, in turns (A B … B A). Runs on a
# host with KVM, in the folder with fio.ami; prints one line for each figure: round, who, what, value. `cargo xtask bench-block` runs
# it in the lab.
#
# The disk is a raw file beside the root volume. Both monitors go through the host's page cache, which holds all of it (QEMU's default,
# cache=writeback), so what is compared is the way from the guest's queue to the file. QEMU has an I/O thread of its own for the disk, and
# both of its engines that such a cache allows.
set -e
ROUNDS=${ROUNDS:-2} SECONDS_EACH=${SECONDS_EACH:-4} CPUS=${CPUS:-1}
CONFIGURATIONS=${CONFIGURATIONS:-vmm vmm-unconfined qemu-threads qemu-io_uring}
SIZE=$((256 << 20))
D=$(mktemp -d)
take_apart fio.ami
# Allocated, and in the page cache from the first run on.
dd if=/dev/urandom of=$D/disk bs=$SIZE count=1 2>/dev/null

# What the guest runs: the disk is the one of that size. In fio's terse output of version 3 the fields 7 and 8 are KiB and requests
# a second of reads, 48 and 49 those of writes.
cat >$D/measure <<END
for disk in /dev/vd?; do [ \$(blockdev --getsize64 \$disk) != $SIZE ] || break; done
run() {
    fio --name=\$1 --filename=\$disk --direct=1 --ioengine=libaio --size=$SIZE --time_based --ramp_time=1 --runtime=$SECONDS_EACH --minimal --group_reporting --numjobs=$CPUS \$3 | awk -F';' -v what=\$1 -v field=\$2 '/^3;/ { print "result", what, \$field }'
}
run read-128k-KiB/s 7 "--rw=read --bs=128k --iodepth=8"
run write-128k-KiB/s 48 "--rw=write --bs=128k --iodepth=8"
run randread-4k-1-IOPS 8 "--rw=randread --bs=4k --iodepth=1"
run randread-4k-32-IOPS 8 "--rw=randread --bs=4k --iodepth=32"
run randwrite-4k-32-IOPS 49 "--rw=randwrite --bs=4k --iodepth=32"
END

vmm_configuration() {
    vmm run fio.ami --rm --accel kvm --cpus $CPUS --memory 256M --net none --sandbox $1 --disk-engine $2 --volume $D/disk -- sh -c "$(cat $D/measure)"
}

qemu_configuration() {
    under_qemu qemu-$1 $D/measure -smp $CPUS -object iothread,id=io \
        -drive id=disk,if=none,format=raw,file=$D/disk,cache=writeback,aio=$1 -device virtio-blk-device,drive=disk,iothread=io,num-queues=$CPUS
}

configuration() {
    case $1 in
    vmm) vmm_lane required sync ;;
    vmm-io_uring) vmm_lane required io_uring ;;
    vmm-unconfined) vmm_lane off sync ;;
    qemu-*) qemu_lane ${1#qemu-} ;;
    esac
}

in_turns

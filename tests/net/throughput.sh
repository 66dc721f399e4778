# The user network of vmm beside QEMU's and beside itself without confinement, same guest, in turns (A B C C B A). Runs on a host
# with KVM, in the folder with iperf.ami; prints one line for each figure: round, who, what, value. `cargo xtask bench-net` runs it in the
# lab.
set -e
ROUNDS=${ROUNDS:-2} SECONDS_EACH=${SECONDS_EACH:-5}
CONFIGURATIONS=${CONFIGURATIONS:-vmm vmm-unconfined qemu}
# An address of the host that is not loopback: neither network leads a guest to the host's loopback addresses.
HOST=192.0.2.1
ip addr add $HOST/32 dev lo 2>/dev/null || true
iperf3 --server --daemon --bind $HOST
D=$(mktemp -d)
take_apart iperf.ami

# What the guest runs; the figures are receivers' in Mbit/s, and the mean round trip to the gateway in ms.
cat >$D/measure <<END
iperf3 -c $HOST -t $SECONDS_EACH -f m | awk '/receiver/ { print "result guest-to-host", \$(NF-2) }'
iperf3 -c $HOST -t $SECONDS_EACH -f m -R | awk '/receiver/ { print "result host-to-guest", \$(NF-2) }'
ping -q -c 200 -A 10.0.2.2 | awk -F/ '/round-trip/ { print "result round-trip-ms", \$4 }'
END

vmm_configuration() {
    vmm run iperf.ami --rm --accel kvm --cpus 1 --memory 256M --sandbox $1 -- sh -c "$(cat $D/measure)"
}

# Nobody has set up the network of QEMU's guest.
qemu_configuration() {
    {
        echo "ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2"
        cat $D/measure
    } >$D/measure.qemu
    under_qemu qemu $D/measure.qemu -smp 1 -netdev user,id=net -device virtio-net-device,netdev=net
}

configuration() {
    case $1 in
    vmm) vmm_lane required ;;
    vmm-unconfined) vmm_lane off ;;
    qemu) qemu_lane ;;
    esac
}

in_turns

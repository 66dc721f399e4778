# Launches beside QEMU's microvm, measured by `vmm bench` on a host with KVM, in the folder with the images. OUT and the arguments, images
# and options, come from `cargo xtask bench-boot`, which runs it in the lab. Exits with `vmm bench`'s status.
# The first entry into the guest is seen by the kernel's trace alone.
tracing=/sys/kernel/tracing
[ -d $tracing/instances ] || mount -t tracefs tracefs $tracing || echo "entries into the guest are not traced" >&2
vmm bench "$@" --json $OUT.json --html $OUT.html

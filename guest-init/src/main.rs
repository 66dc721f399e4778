//! `/init` of the initramfs.

fn main() -> ! {
    guest_init::pid1::main()
}

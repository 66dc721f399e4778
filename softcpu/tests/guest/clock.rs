//! KVM's clock.

use crate::machine::{DATA, Machine, done, wrmsr};

const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// `pvclock_vcpu_time_info::flags`, as a byte of the last word.
const FLAGS_SHIFT: u32 = 40;
const STABLE: u64 = 1;
const GUEST_STOPPED: u64 = 2;

#[test]
fn the_guest_stopped_flag_is_set_after_a_stop() {
    let mut machine = Machine::new();
    // Without the clock there is nobody to tell.
    machine.cpu.stood_still();
    machine.kernel(|a| {
        wrmsr(a, KVM_SYSTEM_TIME, DATA | 1)?;
        done(a)
    });
    machine.done();
    let flags = |machine: &Machine| machine.word(DATA + 24) >> FLAGS_SHIFT;
    assert_eq!(flags(&machine), STABLE);
    machine.cpu.stood_still();
    assert_eq!(flags(&machine), STABLE | GUEST_STOPPED);
}

//! KVM's clock.

use softcpu::Clock;

use crate::machine::{DATA, Machine, done, wrmsr};

const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// `pvclock_vcpu_time_info::flags`, as a byte of the last word.
const FLAGS_SHIFT: u32 = 40;
const STABLE: u64 = 1;
const GUEST_STOPPED: u64 = 2;

#[test]
fn the_guest_stopped_flag_is_set_after_a_stop() {
    // Where instructions are time, the guest's time stood still as well.
    for (clock, flag) in [(Clock::Host, GUEST_STOPPED), (Clock::Instructions, 0)] {
        let mut machine = Machine::with(clock, 1);
        // Without the clock there is no flag.
        machine.cpu.stood_still();
        machine.kernel(|a| {
            wrmsr(a, KVM_SYSTEM_TIME, DATA | 1)?;
            done(a)
        });
        machine.done();
        let flags = |machine: &Machine| machine.word(DATA + 24) >> FLAGS_SHIFT;
        assert_eq!(flags(&machine), STABLE);
        machine.cpu.stood_still();
        assert_eq!(flags(&machine), STABLE | flag, "{clock:?}");
    }
}

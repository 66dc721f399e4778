//! Profiling: what a [`Profile`] has to know of each block.

use std::sync::Arc;

use crate::core::block::Ending;
use crate::core::profile::{Before, Profile};
use crate::x86_64::cpu::Cpu;
use crate::x86_64::state::reg;

impl Cpu {
    /// Starts to count anew. `functions` are the addresses at which the kernel's functions begin, in order.
    pub fn start_profile(&mut self, functions: Arc<[u64]>) {
        self.profile = Some(Box::new(Profile::new(functions)));
    }

    /// What was counted since; nothing is counted from here on.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.profile.take().map(|profile| *profile)
    }

    /// To be called before each block while profiling.
    pub(crate) fn profile_before(&mut self) -> Before {
        let before = self.place();
        let sp = self.gpr[reg::RSP];
        if let Some(profile) = &mut self.profile {
            profile.before(before, sp);
        }
        before
    }

    /// To be called after each block while profiling, with what its last instruction does.
    pub(crate) fn profile_after(&mut self, before: Before, ending: Ending) {
        let after = self.place();
        let sp = self.gpr[reg::RSP];
        if let Some(profile) = &mut self.profile {
            profile.after(before, after, ending == Ending::Call, sp);
        }
    }

    fn place(&self) -> Before {
        Before {
            rip: self.rip,
            retired: self.retired,
            user: self.cpl != 0,
        }
    }
}

//! Where instructions are spent: exact counts by block.

use std::collections::HashMap;

use crate::state::Cpu;

/// Most distinct blocks of a profile; what comes later is counted as unknown (address 0).
const MOST: usize = 1 << 20;

/// Instructions by the address of the block that retired them.
#[derive(Debug, Default)]
pub struct Profile {
    /// Instruction pointer and privilege level of a block's start, and its instructions.
    pub blocks: HashMap<(u64, u8), u64>,
}

impl Cpu {
    /// Starts to count, or stops (`false`).
    pub fn set_profiling(&mut self, on: bool) {
        self.profile = on.then(Box::default);
    }

    /// What was counted; the next profile starts at zero.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.profile
            .as_mut()
            .map(|profile| std::mem::take(&mut **profile))
    }

    pub(crate) fn profile_block(&mut self, rip: u64, before: u64) {
        let spent = self.retired - before;
        let cpl = self.cpl;
        if let Some(profile) = &mut self.profile {
            let key = if profile.blocks.len() < MOST || profile.blocks.contains_key(&(rip, cpl)) {
                (rip, cpl)
            } else {
                (0, 0)
            };
            *profile.blocks.entry(key).or_default() += spent;
        }
    }
}

//! The processor in software against the processor it runs on.
//!
//! Every instruction that softcpu has is run with random operands, alone and in sequences, in 64-bit mode and
//! in 32-bit compatibility mode, once by the host in a forked child and once by softcpu in ring 3; registers,
//! flags, memory and faults must agree. Seeds are fixed. `DIFFERENTIAL_ROUNDS` sets the rounds for each
//! instruction code (a soak uses thousands), `DIFFERENTIAL_SEED` another start, and `DIFFERENTIAL_ONLY` keeps
//! the codes whose names contain it.
//!
//! What a host lacks of x86-64-v3 is held to what hosts that have it agreed with: see [`recorded`].

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports))]

mod case;
mod codes;
mod compare;
mod encode;
mod generate;
mod models;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod native;
mod randomise;
mod recorded;
#[allow(unsafe_code)]
mod soft;
mod tests;

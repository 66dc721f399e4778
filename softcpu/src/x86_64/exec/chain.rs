//! From handlers of single operations to ones that go on with the next: the jump from one to the other is the
//! end of each handler, so that the host predicts it from where it is, and nothing returns between two
//! operations.
//!
//! Whether the compiler makes it a jump or a call is its choice, and both are right: a block has at most 64
//! instructions, and every block returns to the loop in [`run`](crate::x86_64::run).
#![allow(unsafe_code)]

use std::ptr::NonNull;

use crate::x86_64::cpu::{Chained, Cpu, Handler, Op};
use crate::x86_64::op::{Flow, Stop};

/// The chained form of `body`, which must be a function and no pointer to one: the compiler then knows what
/// it calls.
pub(crate) fn chain<F>(_body: F) -> Chained
where
    F: Fn(&mut Cpu, &Op) -> Flow + Copy + 'static,
{
    const {
        assert!(
            size_of::<F>() == 0,
            "a function pointer would have to be carried along"
        )
    };
    chained::<F>
}

/// # Safety
/// See [`Chained`].
unsafe fn chained<F>(cpu: &mut Cpu, at: *const Op) -> Flow
where
    F: Fn(&mut Cpu, &Op) -> Flow + Copy + 'static,
{
    // SAFETY: `chain` had a value of this type, which has no bytes (it checks) and may be copied.
    let body = unsafe { NonNull::<F>::dangling().read() };
    // SAFETY: the caller's promise.
    match body(cpu, unsafe { &*at }) {
        // SAFETY: an operation that returns `Ok` is not the last one.
        Ok(()) => unsafe { proceed(cpu, at.add(1)) },
        Err(stop) => halt(cpu, at, stop),
    }
}

/// Goes on with the operation at `at`.
///
/// # Safety
/// See [`Chained`].
#[inline(always)]
pub(super) unsafe fn proceed(cpu: &mut Cpu, at: *const Op) -> Flow {
    // SAFETY: the caller's promise.
    unsafe { ((*at).run)(cpu, at) }
}

/// Ends the block at `at`.
#[inline(always)]
pub(super) fn halt(cpu: &mut Cpu, at: *const Op, stop: Stop) -> Flow {
    if stop != Stop::Branch {
        cpu.stopped = at;
    }
    Err(stop)
}

/// Runs a handler that is known by address only. It follows in an operation of its own: see [`carry`].
///
/// # Safety
/// See [`Chained`]; the next operation is the second that [`carry`] made.
unsafe fn carried(cpu: &mut Cpu, at: *const Op) -> Flow {
    // SAFETY: `carry` put it there; handlers and chained handlers are function pointers of the same size.
    let (op, body) = unsafe { (&*at, std::mem::transmute::<Chained, Handler>((*at.add(1)).run)) };
    match body(cpu, op) {
        // SAFETY: the block goes on after the two.
        Ok(()) => unsafe { proceed(cpu, at.add(2)) },
        Err(stop) => halt(cpu, at, stop),
    }
}

/// Two operations that together run `body` with the operands of `op`.
pub(crate) fn carry(op: Op, body: Handler) -> [Op; 2] {
    // SAFETY: nothing calls it as what it is not: `carried` turns it back before the call, and jumps over it
    // after.
    let kept = unsafe { std::mem::transmute::<Handler, Chained>(body) };
    [Op { run: carried, ..op }, Op { run: kept, ..op }]
}

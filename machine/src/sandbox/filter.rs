//! Compiles lists of system calls to seccomp programs.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::Kind;
use super::allow::{self, Is, Rule};

/// The programs made so far, by kind.
static PROGRAMS: [OnceLock<BpfProgram>; Kind::ALL.len()] = [const { OnceLock::new() }; Kind::ALL.len()];

/// Whether the kernel filters system calls and reports which one was stopped.
pub(super) fn offered() -> Result<String, String> {
    let trap: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: the kernel reads one number, which lives until it returns.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const trap,
        )
    };
    let error = io::Error::last_os_error();
    match target() {
        Err(error) => Err(format!("no filters of system calls ({error})")),
        Ok(_) if answer == 0 => Ok("a list of system calls for each kind of thread".into()),
        Ok(_) => Err(format!(
            "no filters of system calls (seccomp: {error}; Linux 4.14 has them)"
        )),
    }
}

/// Confines the calling thread to the calls of `kind`, and what it starts to calls that both allow.
pub(super) fn install(kind: Kind) -> io::Result<()> {
    if matches!(kind, Kind::Main | Kind::MainDirect) {
        // All other threads inherit it.
        apply(&refused()?)?;
    }
    let place = &PROGRAMS[Kind::ALL.iter().position(|k| *k == kind).unwrap_or_default()];
    match place.get() {
        Some(program) => apply(program),
        None => {
            let program = compile(kind)?;
            apply(place.get_or_init(|| program))
        }
    }
}

fn apply(program: &BpfProgram) -> io::Result<()> {
    apply_filter(program).map_err(|error| match error {
        seccompiler::Error::Seccomp(source) | seccompiler::Error::Prctl(source) => source,
        other => io::Error::other(other),
    })
}

fn target() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}

fn build(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, otherwise, then, target()?)?.try_into()
}

/// The program that answers with an error instead of death.
fn refused() -> io::Result<BpfProgram> {
    let rules = allow::REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    build(rules, SeccompAction::Allow, absent).map_err(io::Error::other)
}

/// The program of `kind`. A stopped call raises SIGSYS, whose handler says which one it was and ends the
/// process.
fn compile(kind: Kind) -> io::Result<BpfProgram> {
    let legacy = std::env::consts::ARCH == "x86_64";
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    // No condition at all wins over any; in the crate an empty chain says so.
    let mut free = Vec::new();
    for rule in allow::lists(kind).iter().copied().flatten() {
        let conditions = match *rule {
            Rule::Call(call) => {
                free.push(call);
                continue;
            }
            Rule::Legacy(call) => {
                free.extend(legacy.then_some(call));
                continue;
            }
            Rule::OnUs(call) => (call, vec![condition(0, Is::Equal(std::process::id()))]),
            Rule::When(call, conditions) => {
                let conditions = conditions.iter().map(|&(at, is)| condition(at, is));
                (call, conditions.collect())
            }
        };
        let (call, conditions) = conditions;
        let conditions: Result<Vec<_>, _> = conditions.into_iter().collect();
        let made = conditions.and_then(SeccompRule::new).map_err(io::Error::other)?;
        rules.entry(call).or_default().push(made);
    }
    rules.extend(free.into_iter().map(|call| (call, Vec::new())));
    build(rules, SeccompAction::Trap, SeccompAction::Allow).map_err(io::Error::other)
}

fn condition(argument: u8, is: Is) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (operator, value) = match is {
        Is::Equal(value) => (SeccompCmpOp::Eq, value),
        Is::Without(bits) => (SeccompCmpOp::MaskedEq(bits.into()), 0),
        Is::With(bits) => (SeccompCmpOp::MaskedEq(bits.into()), bits),
        Is::Masked(bits, value) => (SeccompCmpOp::MaskedEq(bits.into()), value),
    };
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_program_that_the_kernel_takes() {
        for kind in Kind::ALL {
            let program = compile(kind).unwrap();
            // BPF_MAXINSNS.
            assert!((20..4096).contains(&program.len()), "{kind:?}: {}", program.len());
        }
    }

    #[test]
    fn the_list_of_the_process_contains_every_other_list() {
        let calls = |kind| -> Vec<i64> {
            let number = |rule: &Rule| match *rule {
                Rule::Call(call) | Rule::When(call, _) | Rule::OnUs(call) | Rule::Legacy(call) => call,
            };
            allow::lists(kind).iter().copied().flatten().map(number).collect()
        };
        let (main, direct) = (calls(Kind::Main), calls(Kind::MainDirect));
        for kind in Kind::ALL {
            let all = match kind {
                Kind::MainDirect | Kind::Direct => &direct,
                _ => &main,
            };
            assert!(calls(kind).iter().all(|call| all.contains(call)), "{kind:?}");
        }
        assert!(!main.contains(&libc::SYS_ptrace), "only where it is needed");
    }
}

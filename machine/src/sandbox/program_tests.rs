//! Programs decide as those of another compiler of the same lists do.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::*;

/// `struct seccomp_data` as words: number, architecture, instruction pointer, arguments.
fn call(number: u32, arguments: [u32; 6]) -> Vec<u32> {
    let halves = arguments.iter().flat_map(|&argument| [argument, 0]);
    [number, AUDIT_ARCHITECTURE, 0, 0]
        .into_iter()
        .chain(halves)
        .collect()
}

/// What a program (code, jump if true, jump if false, k) returns for a call.
fn run(program: &[(u16, u8, u8, u32)], data: &[u32]) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let (code, jt, jf, k) = program[at];
        at += 1;
        let jump = |met: bool| usize::from(if met { jt } else { jf });
        match code {
            LOAD => accumulator = data[k as usize / 4],
            AND => accumulator &= k,
            IF_EQUAL => at += jump(accumulator == k),
            IF_AT_LEAST => at += jump(accumulator >= k),
            RETURN => return k,
            // The other compiler's.
            code if u32::from(code) == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn ours(kind: Kind) -> Vec<(u16, u8, u8, u32)> {
    let program = of(kind);
    let mut all: Vec<_> = program
        .instructions
        .iter()
        .map(|i| (i.code, i.jt, i.jf, i.k))
        .collect();
    if let Some(at) = program.own_process {
        assert_eq!(all[at], (IF_EQUAL, 0, all[at].2, u32::MAX));
        all[at].3 = std::process::id();
    }
    all
}

fn theirs(kind: Kind) -> Vec<(u16, u8, u8, u32)> {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    let mut free = Vec::new();
    let condition = |&(argument, is): &(u8, Is)| {
        let (operator, value) = match is {
            Is::Equal(value) => (SeccompCmpOp::Eq, value),
            Is::Without(bits) => (SeccompCmpOp::MaskedEq(bits.into()), 0),
            Is::With(bits) => (SeccompCmpOp::MaskedEq(bits.into()), bits),
            Is::Masked(bits, value) => (SeccompCmpOp::MaskedEq(bits.into()), value),
        };
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into()).unwrap()
    };
    for rule in allow::lists(kind).iter().copied().flatten() {
        let own = [(0, Is::Equal(std::process::id()))];
        let (call, conditions) = match *rule {
            Rule::Call(call) => (call, None),
            Rule::Legacy(call) if HAS_LEGACY => (call, None),
            Rule::Legacy(_) | Rule::Absent(_) => continue,
            Rule::OnUs(call) => (call, Some(own.as_slice())),
            Rule::When(call, conditions) => (call, Some(conditions)),
        };
        match conditions {
            None => free.push((call, Vec::new())),
            Some(all) => rules
                .entry(call)
                .or_default()
                .push(SeccompRule::new(all.iter().map(condition).collect()).unwrap()),
        }
    }
    rules.extend(free);
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, architecture);
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
}

/// Arguments that meet the conditions of `rule`, and some of which one does not.
fn arguments(rule: &Rule) -> Vec<[u32; 6]> {
    let own = [(0, Is::Equal(std::process::id()))];
    let conditions = match *rule {
        Rule::When(_, conditions) => conditions,
        Rule::OnUs(_) => &own,
        _ => &[],
    };
    let mut met = [0x8000_0000; 6];
    for &(argument, is) in conditions {
        met[usize::from(argument)] = match is {
            Is::Equal(value) | Is::With(value) => value,
            Is::Without(bits) => !bits,
            Is::Masked(bits, value) => value | !bits,
        };
    }
    let unmet = conditions.iter().flat_map(|&(argument, _)| {
        (0..32).map(move |bit| {
            let mut unmet = met;
            unmet[usize::from(argument)] ^= 1 << bit;
            unmet
        })
    });
    [[0; 6], [u32::MAX; 6], met].into_iter().chain(unmet).collect()
}

#[test]
fn programs_decide_as_those_of_another_compiler() {
    let mut stopped_by_conditions = 0;
    for kind in Kind::ALL {
        let (ours, theirs) = (ours(kind), theirs(kind));
        let decide = |call: &[u32]| (run(&ours, call), run(&theirs, call));
        let lists = || allow::lists(kind).iter().copied().flatten();
        let absent: Vec<i64> = lists()
            .filter_map(|rule| match rule {
                Rule::Absent(call) => Some(*call),
                _ => None,
            })
            .collect();
        // Of the numbers above 2^30 some are the x32 calls of x86-64.
        let numbers = (0..700)
            .chain((0..700).map(|number| number | 0x4000_0000))
            .chain([u32::MAX]);
        for number in numbers {
            let (ours, theirs) = decide(&call(number, [0; 6]));
            if absent.contains(&i64::from(number)) {
                assert_eq!((ours, theirs), (ABSENT, STOP), "{kind:?}: {number}");
            } else {
                assert_eq!(ours, theirs, "{kind:?}: {number}");
            }
        }
        for rule in lists() {
            let (Rule::When(number, _) | Rule::OnUs(number)) = rule else {
                continue;
            };
            for arguments in arguments(rule) {
                let (ours, theirs) = decide(&call(*number as u32, arguments));
                assert_eq!(ours, theirs, "{kind:?}: {number} of {arguments:x?}");
                stopped_by_conditions += u32::from(ours == STOP);
            }
        }
        let mut foreign = call(libc::SYS_read as u32, [0; 6]);
        foreign[1] ^= 1;
        assert_eq!(run(&ours, &foreign), libc::SECCOMP_RET_KILL_PROCESS);
    }
    assert!(stopped_by_conditions > 1000);
}

#[test]
fn the_list_of_the_process_contains_every_other_list() {
    let calls = |kind| -> Vec<i64> {
        let number = |rule: &Rule| match *rule {
            Rule::Call(call)
            | Rule::When(call, _)
            | Rule::OnUs(call)
            | Rule::Legacy(call)
            | Rule::Absent(call) => call,
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

/// Loads of memory and comparisons that the kernel does for one `KVM_RUN`, which is once an exit.
#[test]
fn a_processor_runs_few_instructions_of_its_program() {
    let mut arguments = [0; 6];
    arguments[1] = 0xae80; // KVM_RUN
    let data = call(libc::SYS_ioctl as u32, arguments);
    for kind in [Kind::Kvm, Kind::Main] {
        // Up to its return: architecture (2), number (2), the first condition (2), the answer.
        let program = ours(kind);
        let path = [0, 1, 3, 4, 5, 6, 7].map(|at| program[at]);
        assert_eq!(path[6], (RETURN, 0, 0, ALLOW), "{path:?}");
        assert_eq!(run(&program, &data), ALLOW);
    }
}

//! Compiles a list of system calls to a seccomp program, when Kiln is built.
//!
//! When a thread is confined, the kernel runs its program once for each number of a system call, to know which
//! numbers are allowed whatever the arguments are: for those it does not run the program again. So calls with
//! conditions come first, of them `ioctl`, by which a processor runs; the others are found by binary search.

use libc::sock_filter;

use super::Kind;
use super::allow::{self, Is, Rule};

/// Instructions of the longest program: an eighth of what the kernel takes (BPF_MAXINSNS).
pub(super) const MAX_INSTRUCTIONS: usize = 512;
/// System calls that one list can name without a condition.
const MAX_CALLS: usize = 192;
/// System calls that one list can name with conditions.
const MAX_CONDITIONAL: usize = 16;

// `struct seccomp_data` (linux/seccomp.h): offsets of its fields. Of an argument the lower half is read; all
// architectures here are little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The call is made.
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
/// The call raises SIGSYS, whose handler says which one it was and ends the process.
const STOP: u32 = libc::SECCOMP_RET_TRAP;
/// The kernel does not have this call.
const ABSENT: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// The architecture of this program's calls (linux/audit.h): an ELF machine of 64 bits, little-endian.
const AUDIT_ARCHITECTURE: u32 = {
    let machine = match std::env::consts::ARCH.as_bytes() {
        b"x86_64" => libc::EM_X86_64,
        b"aarch64" => libc::EM_AARCH64,
        _ => panic!("system calls of this architecture have no lists"),
    };
    0xc000_0000 | machine as u32
};
/// Whether there are calls that only x86-64 has.
const HAS_LEGACY: bool = matches!(std::env::consts::ARCH.as_bytes(), b"x86_64");

/// A program but for one number, the id of the process that it is for.
pub(super) struct Program {
    /// The instructions.
    pub instructions: &'static [sock_filter],
    /// Which of them compares with the id of the process, if any does.
    pub own_process: Option<usize>,
}

/// The program of `kind`.
pub(super) fn of(kind: Kind) -> &'static Program {
    macro_rules! program {
        ($($kind:ident),*) => {
            match kind {
                $(Kind::$kind => {
                    const CODE: Code = compile(allow::lists(Kind::$kind));
                    static INSTRUCTIONS: [sock_filter; CODE.len] = CODE.cut();
                    static PROGRAM: Program = Program {
                        instructions: &INSTRUCTIONS,
                        own_process: CODE.own_process,
                    };
                    &PROGRAM
                })*
            }
        };
    }
    program![
        Main, MainDirect, Kvm, Soft, Direct, Block, Device, Network, Vsock, Console, Control, Reader
    ]
}

/// A program that is being written.
struct Code {
    instructions: [sock_filter; MAX_INSTRUCTIONS],
    len: usize,
    own_process: Option<usize>,
}

impl Code {
    const EMPTY: Code = Code {
        instructions: [instruction(0, 0); MAX_INSTRUCTIONS],
        len: 0,
        own_process: None,
    };

    /// The instructions alone. `LEN` is how many there are.
    const fn cut<const LEN: usize>(&self) -> [sock_filter; LEN] {
        let mut all = [instruction(0, 0); LEN];
        let mut at = 0;
        while at < LEN {
            all[at] = self.instructions[at];
            at += 1;
        }
        all
    }

    const fn push(&mut self, instruction: sock_filter) {
        self.instructions[self.len] = instruction;
        self.len += 1;
    }

    /// Makes room for a jump, which is written once it is known how far.
    const fn reserve(&mut self) -> usize {
        self.push(instruction(0, 0));
        self.len - 1
    }

    /// The instructions between the jump at `at` and here.
    const fn since(&self, at: usize) -> u8 {
        let between = self.len - at - 1;
        assert!(
            between <= u8::MAX as usize,
            "a conditional jump does not reach as far"
        );
        between as u8
    }

    /// Here goes on what at `at` finds that the accumulator is not `value`.
    const fn unless_equal(&mut self, at: usize, value: u32) {
        self.instructions[at] = sock_filter {
            jf: self.since(at),
            ..instruction(IF_EQUAL, value)
        };
    }

    /// Returns unless the call is one of this program's architecture, and loads its number.
    const fn begin(&mut self) {
        self.push(instruction(LOAD, ARCHITECTURE));
        self.push(sock_filter {
            jt: 1,
            ..instruction(IF_EQUAL, AUDIT_ARCHITECTURE)
        });
        self.push(instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS));
        self.push(instruction(LOAD, NUMBER));
    }

    /// Decides on `call`, which is allowed if one of its rules in `lists` is met.
    const fn conditional(&mut self, lists: &[&[Rule]], call: i64) {
        let other_call = self.reserve();
        let mut list = 0;
        while list < lists.len() {
            let mut rule = 0;
            while rule < lists[list].len() {
                match lists[list][rule] {
                    Rule::When(number, conditions) if number == call => self.when(conditions),
                    Rule::OnUs(number) if number == call => {
                        assert!(self.own_process.is_none(), "two rules name this process");
                        self.own_process = Some(self.len + 1);
                        // Overwritten when the program is loaded. No process has this id.
                        self.when(&[(0, Is::Equal(u32::MAX))]);
                    }
                    _ => {}
                }
                rule += 1;
            }
            list += 1;
        }
        self.push(instruction(RETURN, STOP));
        self.unless_equal(other_call, call as u32);
    }

    /// Allows the call if each of `conditions` is met.
    const fn when(&mut self, conditions: &[(u8, Is)]) {
        let mut unmet = [(0, 0); 4];
        let mut count = 0;
        while count < conditions.len() {
            let (argument, is) = conditions[count];
            let (mask, value) = match is {
                Is::Equal(value) => (u32::MAX, value),
                Is::Without(bits) => (bits, 0),
                Is::With(bits) => (bits, bits),
                Is::Masked(bits, value) => (bits, value),
            };
            self.push(instruction(LOAD, ARGUMENTS + 8 * argument as u32));
            if mask != u32::MAX {
                self.push(instruction(AND, mask));
            }
            unmet[count] = (self.reserve(), value);
            count += 1;
        }
        self.push(instruction(RETURN, ALLOW));
        while count > 0 {
            count -= 1;
            self.unless_equal(unmet[count].0, unmet[count].1);
        }
    }

    /// Returns what `ranges[low..high]` says of the loaded number.
    const fn search(&mut self, ranges: &Ranges, low: usize, high: usize) {
        if high - low == 1 {
            self.push(instruction(RETURN, ranges.all[low].1));
            return;
        }
        let middle = low.midpoint(high);
        let at = self.reserve();
        self.search(ranges, low, middle);
        self.instructions[at] = sock_filter {
            jt: self.since(at),
            ..instruction(IF_AT_LEAST, ranges.all[middle].0)
        };
        self.search(ranges, middle, high);
    }
}

/// Ranges of call numbers: where each begins, and what is done with its calls.
struct Ranges {
    all: [(u32, u32); 2 * MAX_CALLS + 1],
    len: usize,
}

impl Ranges {
    /// The ranges of sorted calls. All others are stopped.
    const fn of(calls: &Calls) -> Ranges {
        let mut ranges = Ranges {
            all: [(0, STOP); 2 * MAX_CALLS + 1],
            len: 1,
        };
        let mut at = 0;
        while at < calls.len {
            let (call, action) = calls.all[at];
            // The range before ends here. One that is empty gives its place away.
            if ranges.all[ranges.len - 1].0 == call {
                ranges.len -= 1;
            }
            if ranges.len == 0 || ranges.all[ranges.len - 1].1 != action {
                ranges.all[ranges.len] = (call, action);
                ranges.len += 1;
            }
            ranges.all[ranges.len] = (call + 1, STOP);
            ranges.len += 1;
            at += 1;
        }
        ranges
    }
}

/// Calls whose arguments do not matter, and what is done with each, by number.
struct Calls {
    all: [(u32, u32); MAX_CALLS],
    len: usize,
}

impl Calls {
    const fn contain(&self, call: u32) -> bool {
        let mut at = 0;
        while at < self.len {
            if self.all[at].0 == call {
                return true;
            }
            at += 1;
        }
        false
    }

    /// Adds a call at its place, unless it is there.
    const fn add(&mut self, call: i64, action: u32) {
        let call = call as u32;
        if self.contain(call) {
            return;
        }
        let mut at = self.len;
        while at > 0 && self.all[at - 1].0 > call {
            self.all[at] = self.all[at - 1];
            at -= 1;
        }
        self.all[at] = (call, action);
        self.len += 1;
    }
}

/// Compiles the rules of `lists`. A rule without conditions wins over those that have some.
const fn compile(lists: &[&[Rule]]) -> Code {
    let mut calls = Calls {
        all: [(0, 0); MAX_CALLS],
        len: 0,
    };
    let mut conditional = [libc::SYS_ioctl; MAX_CONDITIONAL];
    let mut count = 1;
    let mut list = 0;
    while list < lists.len() {
        let mut rule = 0;
        while rule < lists[list].len() {
            match lists[list][rule] {
                Rule::Call(call) => calls.add(call, ALLOW),
                Rule::Legacy(call) if HAS_LEGACY => calls.add(call, ALLOW),
                Rule::Legacy(_) => {}
                Rule::Absent(call) => calls.add(call, ABSENT),
                Rule::When(call, _) | Rule::OnUs(call) => {
                    conditional[count] = call;
                    if first(&conditional, call) == count {
                        count += 1;
                    }
                }
            }
            rule += 1;
        }
        list += 1;
    }
    let mut code = Code::EMPTY;
    code.begin();
    let mut at = 0;
    while at < count {
        if !calls.contain(conditional[at] as u32) {
            code.conditional(lists, conditional[at]);
        }
        at += 1;
    }
    let ranges = Ranges::of(&calls);
    code.search(&ranges, 0, ranges.len);
    code
}

/// The first place of `call`, which is there.
const fn first(calls: &[i64], call: i64) -> usize {
    let mut at = 0;
    while calls[at] != call {
        at += 1;
    }
    at
}

const fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;

//! Vector instructions whose memory operand is many: gathers that fault half way, and masked moves.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use crate::machine::{DATA, KERNEL, Machine, done, enable_xsave, page};

const PF: u64 = 14;
const PAGE: u64 = 4096;
/// The first page of two; the second one is not there.
const LAST: u64 = DATA + 0x2000;
const ABSENT: u64 = LAST + PAGE;

/// A machine whose kernel does this with AVX, and that has no page at [`ABSENT`].
fn machine(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    let mut machine = Machine::new();
    machine.map(ABSENT, 0);
    machine.kernel(|a| {
        enable_xsave(a, 7)?;
        a.vpcmpeqd(ymm7, ymm7, ymm7)?;
        a.mov(rbx, ABSENT)?;
        write(a)?;
        done(a)
    });
    machine
}

fn elements(machine: &Machine, register: usize) -> [u32; 8] {
    let halves = [machine.cpu.xmm[register], machine.cpu.ymm_upper[register]];
    std::array::from_fn(|i| (halves[i / 4] >> (32 * (i % 4))) as u32)
}

fn put(machine: &mut Machine, at: u64, words: [u32; 8]) {
    for (n, word) in words.into_iter().enumerate() {
        assert!(machine.ram.write(at + 4 * n as u64, &word.to_le_bytes()));
    }
}

#[test]
fn a_gather_that_faults_goes_on_where_it_stopped() {
    let mut machine = machine(|a| {
        a.vmovdqu(ymm1, ymmword_ptr(DATA))?;
        a.vmovdqa(ymm2, ymm7)?;
        // vpgatherdd ymm0, [rbx + ymm1 * 4], ymm2
        a.db(&[0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x8b])
    });
    // Three elements are below the absent page, and the fourth in it.
    put(
        &mut machine,
        DATA,
        [-1i32 as u32, -2i32 as u32, -3i32 as u32, 1, -4i32 as u32, 2, 0, 3],
    );
    put(&mut machine, ABSENT - 32, [1, 2, 3, 4, 50, 60, 70, 80]);
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.cr2), (PF, ABSENT + 4));
    assert_eq!(elements(&machine, 0)[..3], [80, 70, 60]);
    assert_eq!(elements(&machine, 2), [0, 0, 0, !0, !0, !0, !0, !0]);
    // The page comes, and what is there of the first elements changes: they are not loaded again.
    put(&mut machine, ABSENT - 32, [0, 0, 0, 0, 51, 0, 0, 0]);
    machine.map(ABSENT, page::PRESENT | page::WRITE);
    put(&mut machine, ABSENT, [10, 11, 12, 13, 0, 0, 0, 0]);
    machine.cpu.rip = trap.rip;
    machine.cpu.gpr[reg::RSP] = trap.rsp;
    machine.done();
    assert_eq!(elements(&machine, 0), [80, 70, 60, 11, 51, 12, 10, 13]);
    assert_eq!(elements(&machine, 2), [0; 8]);
}

#[test]
fn masked_moves_look_only_at_what_is_selected() {
    // The last four elements are in the absent page.
    let mask = [!0, 0, !0, 0, 0, 0, 0, 0];
    let mut machine = machine(|a| {
        a.vmovdqu(ymm1, ymmword_ptr(DATA))?;
        a.vmaskmovps(ymm0, ymm1, ymmword_ptr(rbx - 16))?;
        a.vpmaskmovd(ymmword_ptr(rbx - 16), ymm1, ymm7)
    });
    put(&mut machine, DATA, mask);
    put(&mut machine, ABSENT - 32, [0, 0, 0, 0, 1, 2, 3, 4]);
    machine.done();
    assert_eq!(elements(&machine, 0), [1, 0, 3, 0, 0, 0, 0, 0]);
    assert_eq!(machine.word(ABSENT - 16), 2 << 32 | 0xffff_ffff);
}

#[test]
fn a_masked_store_that_faults_writes_nothing() {
    let mut machine = machine(|a| {
        a.vmovdqa(ymm1, ymm7)?;
        a.vpmaskmovd(ymmword_ptr(rbx - 16), ymm1, ymm7)
    });
    machine.set_word(ABSENT - 16, 5);
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.cr2), (PF, ABSENT));
    assert_eq!(machine.word(ABSENT - 16), 5);
}

#[test]
fn a_wide_store_that_faults_writes_nothing_and_a_wide_load_nothing_either() {
    let mut machine = machine(|a| a.vmovdqu(ymmword_ptr(rbx - 16), ymm7));
    machine.set_word(ABSENT - 16, 5);
    assert_eq!(machine.trap().vector, PF);
    assert_eq!(machine.word(ABSENT - 16), 5);
    machine.kernel(|a| {
        a.vmovdqu(ymm7, ymmword_ptr(rbx - 16))?;
        done(a)
    });
    machine.cpu.rip = KERNEL;
    assert_eq!(machine.trap().vector, PF);
    assert_eq!(elements(&machine, 7), [!0; 8]);
}

#[test]
fn only_some_moves_ask_for_alignment() {
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let cases: [(&str, u64, Write); 4] = [
        ("vmovdqa", 13, |a| a.vmovdqa(ymm0, ymmword_ptr(rbx - 48))),
        ("vmovntdq", 13, |a| a.vmovntdq(ymmword_ptr(rbx - 48), ymm7)),
        ("vmovdqu", 3, |a| a.vmovdqu(ymm0, ymmword_ptr(rbx - 47))),
        ("vpaddb", 3, |a| a.vpaddb(ymm0, ymm7, ymmword_ptr(rbx - 47))),
    ];
    for (name, vector, write) in cases {
        let mut machine = machine(|a| {
            write(a)?;
            a.int3()
        });
        assert_eq!(machine.trap().vector, vector, "{name}");
    }
}

//! XSAVE and its kin: XCR0, the areas of state components, and what a processor without them does.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::Features;
use softcpu::x86_64::state::reg;

use crate::machine::{DATA, Machine, done, enable_xsave, wrmsr};

const UD: u64 = 6;
const NM: u64 = 7;
const GP: u64 = 13;

/// Components.
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
const ALL: u64 = X87 | SSE | AVX;
const COMPACTED: u64 = 1 << 63;

/// The area, and what is in it.
const AREA: u64 = DATA + 0x400;
const XMM1: u64 = AREA + 160 + 16;
const HEADER: u64 = AREA + 512;
const UPPER1: u64 = AREA + 576 + 16;

const LOW: u64 = 0x1122_3344_5566_7788;
const HIGH: u64 = 0x99aa_bbcc_ddee_ff00;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// The vector of the exception that kernel code ends with.
fn vector(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        write(a)?;
        a.int3()
    });
    machine.trap().vector
}

/// EDX:EAX, the mask of XSAVE and XRSTOR.
fn mask(a: &mut CodeAssembler, components: u64) -> Result<(), IcedError> {
    a.mov(eax, components as u32)?;
    a.xor(edx, edx)?;
    a.mov(rbx, AREA)
}

#[test]
fn nothing_of_it_runs_before_osxsave_is_set() {
    let cases: [(&str, Write); 6] = [
        ("xgetbv", |a| a.xgetbv()),
        ("xsetbv", |a| a.xsetbv()),
        ("xsave", |a| a.xsave(ptr(AREA))),
        ("xsavec", |a| a.xsavec(ptr(AREA))),
        ("xrstor", |a| a.xrstor(ptr(AREA))),
        ("vzeroupper", |a| a.vzeroupper()),
    ];
    for (name, write) in cases {
        assert_eq!(vector(write), UD, "{name}");
    }
}

#[test]
fn avx_needs_its_component_and_no_task_switch() {
    let cases: [(&str, u64, Write); 5] = [
        ("without AVX", UD, |a| {
            enable_xsave(a, (X87 | SSE) as u32)?;
            a.vaddps(xmm0, xmm0, xmm0)
        }),
        ("with AVX", 3, |a| {
            enable_xsave(a, ALL as u32)?;
            a.vaddps(ymm0, ymm0, ymm0)
        }),
        ("after a task switch", NM, |a| {
            enable_xsave(a, ALL as u32)?;
            a.mov(rax, cr0)?;
            a.bts(rax, 3)?;
            a.mov(cr0, rax)?;
            a.vaddps(ymm0, ymm0, ymm0)
        }),
        ("XSAVE after a task switch", NM, |a| {
            enable_xsave(a, ALL as u32)?;
            a.mov(rax, cr0)?;
            a.bts(rax, 3)?;
            a.mov(cr0, rax)?;
            a.xsave(ptr(AREA))
        }),
        // CR0.EM concerns SSE, and BMI no vector register.
        ("BMI without AVX", 3, |a| a.andn(eax, eax, eax)),
    ];
    for (name, expected, write) in cases {
        assert_eq!(vector(write), expected, "{name}");
    }
}

#[test]
fn xcr0_takes_what_there_is() {
    let set = |components: u64, number: u32| {
        vector(|a| {
            enable_xsave(a, X87 as u32)?;
            a.mov(eax, components as u32)?;
            a.mov(edx, (components >> 32) as u32)?;
            a.mov(ecx, number)?;
            a.xsetbv()
        })
    };
    for good in [X87, X87 | SSE, ALL] {
        assert_eq!(set(good, 0), 3, "{good:#x}");
    }
    for bad in [0, SSE, X87 | AVX, ALL | 1 << 3, ALL | 1 << 5, ALL | 1 << 63] {
        assert_eq!(set(bad, 0), GP, "{bad:#x}");
    }
    assert_eq!(set(ALL, 1), GP, "there is no XCR1");
}

#[test]
fn cpuid_follows_xcr0() {
    let leaf = |components: Option<u64>, leaf: u32, subleaf: u32| {
        let mut machine = Machine::new();
        machine.kernel(|a| {
            if let Some(components) = components {
                enable_xsave(a, components as u32)?;
            }
            a.mov(eax, leaf)?;
            a.mov(ecx, subleaf)?;
            a.cpuid()?;
            done(a)
        });
        machine.done();
        [reg::RAX, reg::RBX, reg::RCX, reg::RDX].map(|register| machine.cpu.gpr[register])
    };
    assert_eq!(leaf(None, 1, 0)[2] >> 26 & 3, 1, "XSAVE, but not OSXSAVE");
    assert_eq!(leaf(Some(ALL), 1, 0)[2] >> 26 & 3, 3);
    assert_eq!(leaf(None, 13, 0), [ALL, 576, 832, 0]);
    assert_eq!(leaf(Some(X87 | SSE), 13, 0), [ALL, 576, 832, 0]);
    assert_eq!(leaf(Some(ALL), 13, 0), [ALL, 832, 832, 0]);
    assert_eq!(leaf(Some(ALL), 13, 1), [7, 832, 0, 0]);
    assert_eq!(leaf(Some(ALL), 13, 2), [256, 576, 0, 0]);
    assert_eq!(leaf(Some(ALL), 13, 3), [0; 4]);
}

/// Runs `save` with YMM1 loaded and the area filled with ones but for its header.
fn saved(components: u64, save: Write) -> Machine {
    let mut machine = Machine::new();
    for at in (0..1024).step_by(8) {
        machine.set_word(AREA + at, !0);
    }
    for at in (0..64).step_by(8) {
        machine.set_word(HEADER + at, 0);
    }
    for (n, word) in [LOW, HIGH, !LOW, !HIGH].into_iter().enumerate() {
        machine.set_word(DATA + 8 * n as u64, word);
    }
    machine.kernel(|a| {
        enable_xsave(a, ALL as u32)?;
        a.vmovdqu(ymm1, ymmword_ptr(DATA))?;
        mask(a, components)?;
        save(a)?;
        done(a)
    });
    machine.done();
    machine
}

#[test]
fn areas_have_what_was_asked_for() {
    let area = |machine: &Machine| [XMM1, UPPER1, HEADER, HEADER + 8].map(|at| machine.word(at));
    assert_eq!(
        area(&saved(ALL, |a| a.xsave64(ptr(rbx)))),
        [LOW, !LOW, SSE | AVX, 0]
    );
    assert_eq!(area(&saved(SSE, |a| a.xsave64(ptr(rbx)))), [LOW, !0, SSE, 0]);
    assert_eq!(
        area(&saved(ALL, |a| a.xsaveopt64(ptr(rbx)))),
        [LOW, !LOW, SSE | AVX, 0]
    );
    assert_eq!(
        area(&saved(X87 | AVX, |a| a.xsavec64(ptr(rbx)))),
        [!0, !LOW, AVX, COMPACTED | X87 | AVX]
    );
    // x87 is as FNINIT leaves it: XSAVE writes it all the same, the others do not.
    assert_eq!(saved(ALL, |a| a.xsave64(ptr(rbx))).word(AREA) as u16, 0x037f);
    assert_eq!(saved(ALL, |a| a.xsavec64(ptr(rbx))).word(AREA) as u16, 0xffff);
    // What was there of a component that is not asked for stays in the header.
    let mut machine = Machine::new();
    machine.set_word(HEADER, X87);
    machine.kernel(|a| {
        enable_xsave(a, ALL as u32)?;
        mask(a, AVX)?;
        a.xsave64(ptr(rbx))?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.word(HEADER), X87);
}

#[test]
fn a_restore_brings_back_what_a_save_kept() {
    let saves: [Write; 3] = [
        |a| a.xsave64(ptr(rbx)),
        |a| a.xsaveopt64(ptr(rbx)),
        |a| a.xsavec64(ptr(rbx)),
    ];
    for save in saves {
        let mut machine = saved(ALL, save);
        machine.kernel(|a| {
            a.vzeroall()?;
            a.pcmpeqd(xmm2, xmm2)?;
            mask(a, ALL)?;
            a.xrstor64(ptr(rbx))?;
            done(a)
        });
        machine.cpu.rip = crate::machine::KERNEL;
        machine.done();
        let wide = |low: u64, high: u64| u128::from(high) << 64 | u128::from(low);
        assert_eq!(machine.cpu.xmm[1], wide(LOW, HIGH));
        assert_eq!(machine.cpu.ymm_upper[1], wide(!LOW, !HIGH));
        assert_eq!(machine.cpu.xmm[2], 0);
    }
}

#[test]
fn a_component_that_the_area_lacks_becomes_initial() {
    let mut machine = Machine::new();
    machine.set_word(HEADER, 0);
    machine.kernel(|a| {
        enable_xsave(a, ALL as u32)?;
        a.vpcmpeqd(ymm3, ymm3, ymm3)?;
        a.fld1()?;
        a.mov(dword_ptr(AREA + 24), 0x1f80)?;
        mask(a, X87 | AVX)?;
        a.xrstor64(ptr(rbx))?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.ymm_upper[3], 0);
    assert_eq!(machine.cpu.xmm[3], u128::MAX, "not asked for");
    assert_eq!(machine.cpu.x87, Default::default());
}

#[test]
fn wrong_areas_are_refused() {
    let restore = |header: [u64; 3], at: u64| {
        let mut machine = Machine::new();
        for (n, word) in header.into_iter().enumerate() {
            machine.set_word(HEADER + 8 * n as u64, word);
        }
        machine.set_word(AREA + 24, 0x1f80);
        machine.kernel(|a| {
            enable_xsave(a, (X87 | SSE) as u32)?;
            mask(a, ALL)?;
            a.mov(rbx, at)?;
            a.xrstor64(ptr(rbx))?;
            a.int3()
        });
        machine.trap().vector
    };
    assert_eq!(restore([X87 | SSE, 0, 0], AREA), 3);
    assert_eq!(restore([SSE, COMPACTED | SSE, 0], AREA), 3);
    for (header, at, why) in [
        ([AVX, 0, 0], AREA, "a component that XCR0 does not enable"),
        ([0, SSE, 0], AREA, "a format in the standard form"),
        ([0, 0, 1], AREA, "reserved bytes"),
        (
            [X87, COMPACTED | SSE, 0],
            AREA,
            "a component that the format does not have",
        ),
        (
            [0, COMPACTED | AVX, 0],
            AREA,
            "a format with what XCR0 does not enable",
        ),
        ([0, 0, 0], AREA + 32, "not aligned"),
    ] {
        assert_eq!(restore(header, at), GP, "{why}");
    }
    let mxcsr = |bits: u32| {
        vector(|a| {
            enable_xsave(a, ALL as u32)?;
            mask(a, AVX)?;
            a.mov(dword_ptr(AREA + 24), bits)?;
            a.xrstor64(ptr(rbx))
        })
    };
    assert_eq!(mxcsr(0x1f80), 3);
    assert_eq!(mxcsr(0x1_1f80), GP, "reserved bits of MXCSR");
}

#[test]
fn xgetbv_says_what_is_in_use() {
    let in_use = |write: Write| {
        let mut machine = Machine::new();
        machine.kernel(|a| {
            enable_xsave(a, ALL as u32)?;
            write(a)?;
            a.mov(ecx, 1)?;
            a.xgetbv()?;
            done(a)
        });
        machine.done();
        machine.cpu.gpr[reg::RAX]
    };
    assert_eq!(in_use(|a| a.nop()), 0);
    assert_eq!(in_use(|a| a.fld1()), X87);
    assert_eq!(in_use(|a| a.pcmpeqd(xmm9, xmm9)), SSE);
    assert_eq!(in_use(|a| a.vpcmpeqd(ymm9, ymm9, ymm9)), SSE | AVX);
    assert_eq!(
        in_use(|a| {
            a.vpcmpeqd(ymm9, ymm9, ymm9)?;
            a.vzeroall()
        }),
        0
    );
}

#[test]
fn a_snapshot_has_xcr0_and_whole_registers() {
    let machine = saved(ALL, |a| a.xsave64(ptr(rbx)));
    let state = machine.cpu.save();
    let mut other = Machine::new();
    other.cpu.restore(&state).unwrap();
    assert_eq!(other.cpu.ymm_upper, machine.cpu.ymm_upper);
    assert_eq!(other.cpu.save(), state);
    other.kernel(|a| {
        a.xor(ecx, ecx)?;
        a.xgetbv()?;
        done(a)
    });
    other.cpu.rip = crate::machine::KERNEL;
    other.done();
    assert_eq!(other.cpu.gpr[reg::RAX], ALL);
}

#[test]
fn rdpid_is_rdtscp_without_the_time() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        wrmsr(a, 0xc000_0103, 0x1234_5678)?;
        a.rdpid(rsi)?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RSI], 0x1234_5678);
}

/// x86-64-v2: prefixes that it ignores, and encodings that it does not have.
#[test]
fn a_processor_of_v2_runs_as_such() {
    let run = |write: Write| {
        let mut machine = Machine::of(Features::V2);
        machine.kernel(|a| {
            write(a)?;
            a.int3()
        });
        (machine.trap().vector, machine)
    };
    let (vector, machine) = run(|a| {
        a.mov(ecx, 0x50)?;
        a.tzcnt(eax, ecx)?;
        a.lzcnt(edx, ecx)
    });
    assert_eq!(vector, 3);
    // LZCNT is BSR.
    assert_eq!((machine.cpu.gpr[reg::RAX], machine.cpu.gpr[reg::RDX]), (4, 6));
    let undefined: [(&str, Write); 5] = [
        ("andn", |a| a.andn(eax, eax, eax)),
        ("shlx", |a| a.shlx(eax, eax, eax)),
        ("movbe", |a| a.movbe(eax, dword_ptr(DATA))),
        ("vaddps", |a| a.vaddps(xmm0, xmm0, xmm0)),
        ("xgetbv", |a| a.xgetbv()),
    ];
    for (name, write) in undefined {
        assert_eq!(run(write).0, UD, "{name}");
    }
    let osxsave = run(|a| {
        a.mov(rax, cr4)?;
        a.bts(rax, 18)?;
        a.mov(cr4, rax)
    });
    assert_eq!(osxsave.0, GP);
}

//! The hint space, 0F 0D and 0F 18 to 0F 1F: no operation whatever later processors put there (Intel SDM vol.
//! 2, table A-3).

use softcpu::x86_64::state::reg;

use crate::machine::{KERNEL, Machine, USER, USER_CODE32, USER_CODE64, assembled, done, enter};

/// Every instruction of the space, with every mandatory prefix, with a register and with a memory operand
/// based on RAX.
fn every_hint() -> Vec<u8> {
    let mut code = Vec::new();
    for opcode in [0x0d, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f] {
        for prefix in [&[][..], &[0x66], &[0xf2], &[0xf3]] {
            for form in 0..8 {
                for operand in [0xc0, 0xc1, 0x00] {
                    code.extend_from_slice(prefix);
                    code.extend_from_slice(&[0x0f, opcode, operand | form << 3]);
                }
            }
        }
    }
    code
}

#[test]
fn the_hint_space_does_nothing() {
    for (bits, selector) in [(64, USER_CODE64), (32, USER_CODE32)] {
        let mut machine = Machine::new();
        machine.kernel(|a| enter(a, selector, USER));
        let mut code = every_hint();
        code.extend([0x0f, 0x0b]);
        assert!(machine.ram.write(USER, &code));
        // Nothing is mapped there: a hint does not touch what it names.
        machine.cpu.gpr[reg::RAX] = 0x7000_0000;
        machine.cpu.gpr[reg::RCX] = 0x1234;
        let before = machine.cpu.gpr;
        let trap = machine.trap();
        let end = USER + code.len() as u64 - 2;
        assert_eq!((trap.vector, trap.rip), (6, end), "{bits} bits");
        assert_eq!(machine.devices.unimplemented, [""; 0]);
        assert_eq!(machine.cpu.gpr[..4], before[..4]);
    }
}

#[test]
fn a_shadow_stack_pointer_that_is_not_there_leaves_its_register() {
    let mut machine = Machine::new();
    let mut code = assembled(KERNEL, 64, |a| {
        use iced_x86::code_asm::*;
        a.xor(eax, eax)
    });
    // RDSSPQ RAX, which an unwinder runs to learn whether there are shadow stacks; with REX.W.
    code.extend([0xf3, 0x48, 0x0f, 0x1e, 0xc8]);
    code.extend(assembled(KERNEL, 64, done));
    assert!(machine.ram.write(KERNEL, &code));
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RAX], 0, "zero: there are none");
}

//! What this processor does not have: #UD in the guest, and one report by name on the host.

use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use crate::machine::{KERNEL, Machine, done};

#[test]
fn an_instruction_that_is_not_there_is_undefined_and_reported_once() {
    let mut machine = Machine::new();
    let handler = KERNEL + 0x1000;
    machine.set_gate(6, handler, 0, 0);
    // Skips the instruction, counts, and goes on.
    let skip = crate::machine::assembled(KERNEL, 64, |a| a.aesenc(xmm0, xmm1)).len() as i32;
    machine.assemble(handler, 64, |a| {
        a.inc(rbx)?;
        a.add(qword_ptr(rsp), skip)?;
        a.iretq()
    });
    machine.kernel(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 3)?;
        a.set_label(&mut again)?;
        a.aesenc(xmm0, xmm1)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RBX], 3, "undefined each time");
    assert_eq!(machine.devices.unimplemented, ["Aesenc_xmm_xmmm128"]);
}

#[test]
fn what_is_meant_to_be_undefined_is_not_reported() {
    let mut machine = Machine::new();
    machine.kernel(|a| a.ud2());
    assert_eq!(machine.trap().vector, 6);
    assert_eq!(machine.devices.unimplemented, [""; 0]);
}

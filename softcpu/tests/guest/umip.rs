//! User-mode instruction prevention: programs do not learn where the system's tables are (Intel SDM vol. 3,
//! §2.5).

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::machine::{KERNEL, Machine, USER, USER_CODE64, USER_DATA, enter};

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const CASES: [(&str, Write); 8] = [
    ("sgdt", |a| a.sgdt(ptr(USER_DATA))),
    ("sidt", |a| a.sidt(ptr(USER_DATA))),
    ("sldt", |a| a.sldt(eax)),
    ("sldt to memory", |a| a.sldt(word_ptr(USER_DATA))),
    ("str", |a| a.str(eax)),
    ("str to memory", |a| a.str(word_ptr(USER_DATA))),
    ("smsw", |a| a.smsw(eax)),
    ("smsw to memory", |a| a.smsw(word_ptr(USER_DATA))),
];

#[test]
fn programs_see_system_registers_unless_they_are_kept_from_them() {
    for (what, write) in CASES {
        for (umip, vector) in [(false, 6), (true, 13)] {
            let mut machine = Machine::new();
            machine.kernel(|a| {
                a.mov(rax, cr4)?;
                if umip {
                    a.bts(rax, 11)?;
                }
                a.mov(cr4, rax)?;
                // The kernel itself may look.
                write(a)?;
                enter(a, USER_CODE64, USER)
            });
            machine.assemble(USER, 64, |a| {
                write(a)?;
                a.ud2()
            });
            let trap = machine.trap();
            assert_eq!(trap.vector, vector, "{what}, UMIP {umip}");
            assert!(trap.rip >= USER && KERNEL < USER, "{what}");
            if umip {
                assert_eq!((trap.code, trap.rip), (0, USER), "{what}");
            }
        }
    }
}

//! The report of an instruction that KVM cannot emulate: which one, and where.

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES};
use kvm_ioctls::VcpuFd;

use crate::accel::Error;
use crate::memory::{Bytes, GuestAddress, Memory};

/// Longest x86 instruction in bytes.
const MAX_INSTRUCTION: usize = 15;

/// Describes the internal error with which `KVM_RUN` has just come back on CPU `id`.
pub(in crate::accel::kvm) fn internal_error(id: u8, fd: &mut VcpuFd, memory: &Memory) -> Error {
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, for which both members are valid; the second one's
    // extra fields are only trusted under its flag.
    let (suberror, failure) = unsafe {
        let union = &fd.get_kvm_run().__bindgen_anon_1;
        (union.internal.suberror, union.emulation_failure)
    };
    let (Ok(regs), Ok(sregs)) = (fd.get_regs(), fd.get_sregs()) else {
        return Error::Incomplete {
            cpu: id,
            report: format!("met internal error {suberror}, registers unreadable"),
        };
    };
    let mut bytes = Vec::new();
    if suberror == KVM_INTERNAL_ERROR_EMULATION
        && failure.ndata >= 3
        && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0
    {
        // SAFETY: the flag says that the kernel has filled in size and bytes.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let size = usize::from(instruction.insn_size).min(MAX_INSTRUCTION);
        bytes.extend_from_slice(&instruction.insn_bytes[..size]);
    }
    if bytes.is_empty() {
        bytes = fetch(fd, memory, regs.rip.wrapping_add(sregs.cs.base));
    }
    let bitness = match (sregs.cs.l, sregs.cs.db) {
        (1, _) => 64,
        (_, 1) => 32,
        _ => 16,
    };
    Error::Incomplete {
        cpu: id,
        report: report(suberror, regs.rip, bitness, &bytes),
    }
}

/// What there is to read at linear address `at`, up to one instruction and up to the end of its page.
fn fetch(fd: &VcpuFd, memory: &Memory, at: u64) -> Vec<u8> {
    let Ok(translation) = fd.translate_gva(at) else {
        return Vec::new();
    };
    if translation.valid == 0 {
        return Vec::new();
    }
    let in_page = (4096 - translation.physical_address % 4096) as usize;
    let mut bytes = vec![0; MAX_INSTRUCTION.min(in_page)];
    match memory.read_slice(&mut bytes, GuestAddress(translation.physical_address)) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

fn report(suberror: u32, rip: u64, bitness: u32, bytes: &[u8]) -> String {
    let mut instruction = String::new();
    let mut shown = bytes;
    let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
    if decoder.can_decode() {
        let decoded = decoder.decode();
        if decoded.is_invalid() {
            instruction.push_str("not an instruction");
        } else {
            shown = &bytes[..decoded.len()];
            IntelFormatter::new().format(&decoded, &mut instruction);
        }
    } else {
        instruction.push_str("no bytes readable");
    }
    let hex: Vec<String> = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    let kind = match suberror {
        1 => "could not emulate an instruction",
        2 => "met simultaneous exceptions",
        3 => "met an exit while delivering an event",
        4 => "met an unexpected exit of the hardware",
        _ => "met an unknown internal error",
    };
    format!(
        "{kind} (suberror {suberror}) at RIP {rip:#x}: {} ({instruction})",
        hex.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_place_bytes_and_instruction() {
        let report = report(
            1,
            0xffff_ffff_8100_1234,
            64,
            &[0x48, 0x0f, 0xc7, 0x0e, 0x90, 0x90],
        );
        let text = Error::Incomplete { cpu: 2, report }.to_string();
        assert!(text.contains("CPU 2"), "{text}");
        assert!(text.contains("0xffffffff81001234"), "{text}");
        assert!(text.contains("48 0f c7 0e (cmpxchg16b [rsi])"), "{text}");
        assert!(text.contains("KVM is not complete"), "{text}");
    }

    #[test]
    fn unreadable_and_undecodable_bytes_are_reported() {
        assert!(report(4, 0, 64, &[]).contains("no bytes readable"));
        assert!(report(1, 0, 64, &[0x06]).contains("06 (not an instruction)"));
    }
}

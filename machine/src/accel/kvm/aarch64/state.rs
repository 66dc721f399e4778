//! Saving and restoring what KVM has of an arm64 machine: for each processor the registers that it lists
//! itself, with timers and counter among them; beside them the interrupt controller ([`gic`](super::gic)).

use kvm_bindings::{
    KVM_REG_ARM_COPROC_MASK, KVM_REG_ARM_CORE, KVM_REG_SIZE_MASK, KVM_REG_SIZE_SHIFT, RegList, kvm_mp_state,
    kvm_vcpu_events,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{MPIDR_EL1, Template, failed};
use crate::accel::state::FOREIGN;
use crate::accel::{Error, KvmArmVcpu, VcpuState, VmState};
use crate::state::{Mismatch, Refused};

/// Most registers of a processor: what `RegList` takes. KVM lists about 300, and more with features that our
/// processors do not have.
const REGISTERS: usize = 500;
/// Bytes of the largest register: one of 2048 bits.
const REGISTER: usize = 256;

impl Template {
    pub(in super::super) fn save_vcpu(&self, fd: &VcpuFd) -> Result<VcpuState, Error> {
        let mp_state = fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?.mp_state;
        let registers = listed(fd)?
            .into_iter()
            .map(|id| Ok((id, get(fd, id)?)))
            .collect::<Result<_, Error>>()?;
        let events = fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        let exception = events.exception;
        let syndrome = (exception.serror_has_esr != 0).then_some(exception.serror_esr);
        Ok(VcpuState::KvmArm(KvmArmVcpu {
            mp_state,
            registers,
            serror: (exception.serror_pending != 0).then_some(syndrome),
            external_abort: exception.ext_dabt_pending != 0,
        }))
    }

    pub(in super::super) fn restore_vcpu(&self, fd: &VcpuFd, state: &VcpuState) -> Result<(), Error> {
        let VcpuState::KvmArm(KvmArmVcpu {
            mp_state,
            registers,
            serror,
            external_abort,
        }) = state
        else {
            return Err(FOREIGN);
        };
        let listed = listed(fd)?;
        for (id, value) in registers {
            if !listed.contains(id) {
                return Err(differs(*id, "there", "no such register"));
            }
            Refused::unless(value.len() == size(*id), "the size of a register")?;
            // Which processor it is, is not the state's to say.
            Refused::unless(
                *id != MPIDR_EL1 || get(fd, *id)? == *value,
                "the number of a processor",
            )?;
        }
        let state = kvm_mp_state { mp_state: *mp_state };
        fd.set_mp_state(state).map_err(failed("KVM_SET_MP_STATE"))?;
        for (id, value) in registers {
            restore_register(fd, *id, value)?;
        }
        let mut events = kvm_vcpu_events::default();
        if let Some(syndrome) = serror {
            events.exception.serror_pending = 1;
            events.exception.serror_has_esr = syndrome.is_some().into();
            events.exception.serror_esr = syndrome.unwrap_or_default();
        }
        events.exception.ext_dabt_pending = u8::from(*external_abort);
        // A host that has none to set may not know the call.
        if events != kvm_vcpu_events::default() {
            fd.set_vcpu_events(&events)
                .map_err(failed("KVM_SET_VCPU_EVENTS"))?;
        }
        Ok(())
    }

    pub(in super::super) fn save(&self, _: &VmFd) -> Result<VmState, Error> {
        Ok(VmState::KvmArm(self.gic()?.save()?))
    }

    pub(in super::super) fn restore(&self, _: &VmFd, state: &VmState) -> Result<(), Error> {
        match state {
            VmState::KvmArm(state) => self.gic()?.restore(state),
            _ => Err(FOREIGN),
        }
    }
}

/// The registers that KVM lists.
fn listed(fd: &VcpuFd) -> Result<Vec<u64>, Error> {
    let mut list = RegList::new(REGISTERS).map_err(|_| Error::TooMany {
        what: "registers",
        count: REGISTERS,
    })?;
    fd.get_reg_list(&mut list).map_err(failed("KVM_GET_REG_LIST"))?;
    Ok(list.as_slice().to_vec())
}

/// Sets a register. One that only reports, and is what it was, need not be set; another value in one that
/// describes the processor, or KVM itself, is of another host.
fn restore_register(fd: &VcpuFd, id: u64, value: &[u8]) -> Result<(), Error> {
    if fd.set_one_reg(id, value).is_ok() {
        return Ok(());
    }
    let here = get(fd, id)?;
    if here == value {
        return Ok(());
    }
    if id & u64::from(KVM_REG_ARM_COPROC_MASK) == u64::from(KVM_REG_ARM_CORE) {
        return Err(Refused::Invalid("a register of a processor").into());
    }
    Err(differs(id, &hexadecimal(value), &hexadecimal(&here)))
}

fn get(fd: &VcpuFd, id: u64) -> Result<Vec<u8>, Error> {
    let mut value = [0; REGISTER];
    let size = size(id).min(REGISTER);
    fd.get_one_reg(id, &mut value)
        .map_err(failed("KVM_GET_ONE_REG"))?;
    Ok(value[..size].to_vec())
}

/// Bytes of the register, as its id says.
fn size(id: u64) -> usize {
    1 << ((id & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT)
}

fn differs(id: u64, saved: &str, this: &str) -> Error {
    let differs = Mismatch {
        what: format!("processor's register {id:#x}"),
        saved: saved.to_owned(),
        this: this.to_owned(),
    };
    Refused::Mismatch(differs).into()
}

/// A little-endian number.
fn hexadecimal(value: &[u8]) -> String {
    let digits = value.iter().rev().map(|byte| format!("{byte:02x}"));
    format!("0x{}", digits.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registers_id_says_its_size() {
        use kvm_bindings::{KVM_REG_SIZE_U32, KVM_REG_SIZE_U64, KVM_REG_SIZE_U128, KVM_REG_SIZE_U2048};
        let sizes = [
            KVM_REG_SIZE_U32,
            KVM_REG_SIZE_U64,
            KVM_REG_SIZE_U128,
            KVM_REG_SIZE_U2048,
        ];
        assert_eq!(sizes.map(size), [4, 8, 16, REGISTER]);
        assert_eq!(hexadecimal(&[1, 0, 0, 0x80]), "0x80000001");
    }
}

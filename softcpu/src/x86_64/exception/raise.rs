//! How handlers raise exceptions.

use super::{Fault, vector};
use crate::x86_64::cpu::Cpu;
use crate::x86_64::op::{Flow, Stop};

impl Cpu {
    /// Raises an exception that has no error code.
    #[cold]
    pub fn raise<T>(&mut self, vector: u8) -> Result<T, Stop> {
        self.fault = Fault {
            vector,
            code: None,
            cr2: 0,
        };
        Err(Stop::Fault)
    }

    /// Raises an exception that has an error code.
    #[cold]
    pub fn raise_code<T>(&mut self, vector: u8, code: u32) -> Result<T, Stop> {
        self.fault = Fault {
            vector,
            code: Some(code),
            cr2: 0,
        };
        Err(Stop::Fault)
    }

    /// Raises #GP.
    #[cold]
    pub fn general_protection<T>(&mut self, code: u32) -> Result<T, Stop> {
        self.raise_code(vector::GP, code)
    }

    /// Raises #UD.
    #[cold]
    pub fn undefined<T>(&mut self) -> Result<T, Stop> {
        self.raise(vector::UD)
    }

    /// Raises #PF.
    #[cold]
    pub(crate) fn page_fault<T>(&mut self, addr: u64, code: u32) -> Result<T, Stop> {
        self.fault = Fault {
            vector: vector::PF,
            code: Some(code),
            cr2: addr,
        };
        Err(Stop::Fault)
    }

    /// Raises #GP unless the privilege level is 0.
    #[inline]
    pub(crate) fn privileged(&mut self) -> Flow {
        if self.cpl == 0 {
            Ok(())
        } else {
            self.general_protection(0)
        }
    }
}

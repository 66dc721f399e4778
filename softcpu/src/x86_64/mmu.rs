//! Address translation, and every memory access that misses the TLB.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU8, Ordering, fence};

use crate::core::bus::BusResult;
use crate::core::code_page::{Stored, granules};
use crate::core::page::{PAGE, PAGE_MASK};
use crate::core::ram_access::{self, Scalar};
use crate::core::tlb::{Bank, Stores};
use crate::x86_64::apic::processor;
use crate::x86_64::cpu::Cpu;
use crate::x86_64::exception::{Fault, canonical, vector};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::paging::{Access, Leaf};
use crate::x86_64::state::{cr0, efer};

/// A translated address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Guest-physical.
    pub phys: u64,
    /// Host address, where it is RAM.
    pub host: Option<usize>,
}

impl Cpu {
    /// Translates with the rights of `bank`, and remembers what it found when that is the bank in use.
    pub(crate) fn translate(&mut self, addr: u64, access: Access, bank: Bank) -> Result<Place, Stop> {
        let leaf = if self.cr0 & cr0::PG == 0 {
            Leaf {
                phys: addr as u32 as u64,
                writable: true,
                global: false,
                large: false,
            }
        } else {
            if !canonical(addr) {
                // The address in `cr2` distinguishes this one: it is #SS where the stack's segment was meant.
                self.fault = Fault {
                    vector: vector::GP,
                    code: Some(0),
                    cr2: addr,
                };
                return Err(Stop::Fault);
            }
            self.walk(addr, access, bank)?
        };
        let host = self.ram.host(leaf.phys);
        if bank == self.bank() {
            if access == Access::Fetch {
                self.tlb.fill_exec(addr, leaf.phys, leaf.global, leaf.large);
            } else if let Some(host) = host
                && !self.debug.watches_page(addr)
            {
                let stores = if !leaf.writable {
                    Stores::Walk
                } else if access == Access::Write
                    && self.ram.page(leaf.phys).is_some_and(|page| page.open(false))
                {
                    Stores::Direct
                } else {
                    // Most pages that are read are never written to: leave them closed until then.
                    Stores::Watched
                };
                self.tlb
                    .fill(addr, stores, host, leaf.phys, leaf.global, leaf.large);
            }
        }
        Ok(Place {
            phys: leaf.phys,
            host,
        })
    }

    /// Linear addresses of code outside of long mode have 32 bits; but those of the descriptor tables and
    /// stacks that an exception reaches from a 32-bit program have 64.
    #[inline]
    fn linear(&self, addr: u64, bank: Bank) -> u64 {
        let by_system = bank != self.bank() && self.efer & efer::LMA != 0;
        if self.is_long() || by_system {
            addr
        } else {
            addr as u32 as u64
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow<T: Scalar>(&mut self, addr: u64) -> Result<T, Stop> {
        let mut bytes = [0; 16];
        self.check_alignment(addr, T::SIZE)?;
        self.watch(addr, T::SIZE, false)?;
        self.read_linear(addr, &mut bytes[..T::SIZE], self.bank())?;
        Ok(T::from_bytes(&bytes))
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow<T: Scalar>(&mut self, addr: u64, value: T) -> Flow {
        self.check_alignment(addr, T::SIZE)?;
        let Some(entry) = self.tlb.watched(addr, T::SIZE) else {
            self.watch(addr, T::SIZE, true)?;
            return self.write_linear(addr, &value.to_bytes()[..T::SIZE], self.bank());
        };
        self.check_running(entry.phys & PAGE_MASK | (addr % PAGE), T::SIZE)?;
        let host = addr.wrapping_add(entry.addend) as usize;
        // SAFETY: the tag says that all bytes lie in a page of guest RAM that may be written.
        unsafe { T::store(host, value) };
        self.stored_watched(addr, T::SIZE);
        Ok(())
    }

    /// Raises #AC for an operand of up to 8 bytes that is not aligned, where that counts. Larger ones have
    /// rules of their own.
    fn check_alignment(&mut self, addr: u64, size: usize) -> Flow {
        let aligned = size > 8 || !size.is_power_of_two() || addr.is_multiple_of(size as u64);
        if aligned || !self.checks_alignment() || !canonical(addr) {
            return Ok(());
        }
        self.raise_code(vector::AC, 0)
    }

    /// Reports a store by a watched translation to its page, and stops watching the page after enough stores
    /// that hit no code.
    pub(crate) fn stored_watched(&mut self, addr: u64, size: usize) {
        let Some(entry) = self.tlb.watched(addr, size) else {
            return;
        };
        let phys = entry.phys & PAGE_MASK | (addr % PAGE);
        if self.stored(phys, size) == Stored::NoCode {
            let enough = self.non_code_stores.count(phys);
            if self.ram.page(phys).is_some_and(|page| page.open(enough)) {
                self.tlb.open(addr);
            }
        }
    }

    /// Reports a store to its page.
    fn stored(&mut self, phys: u64, size: usize) -> Stored {
        if self.platform.processors.is_shared() {
            // Other processors see the bytes before this one looks whether they rely on them.
            fence(Ordering::SeqCst);
        }
        let page = self.ram.page(phys);
        let stored = page.map_or(Stored::NoCode, |page| {
            page.stored(granules(phys % PAGE, size as u64))
        });
        self.counters.code_stores += u64::from(stored == Stored::Code);
        stored
    }

    /// The running block's own bytes are out of bounds for a store while others follow in the block.
    #[inline]
    fn check_running(&self, phys: u64, size: usize) -> Flow {
        if self.runs(phys, size as u64) && !self.alone {
            return Err(Stop::Replay);
        }
        Ok(())
    }

    /// Reads up to 16 bytes at a linear address with the rights of `bank`.
    pub(crate) fn read_linear(&mut self, addr: u64, data: &mut [u8], bank: Bank) -> Flow {
        let addr = self.linear(addr, bank);
        let first = ((PAGE - addr % PAGE) as usize).min(data.len());
        let place = self.translate(addr, Access::Read, bank)?;
        if first < data.len() {
            let next = self.linear(addr.wrapping_add(first as u64), bank);
            let second = self.translate(next, Access::Read, bank)?;
            self.read_place(second, &mut data[first..]);
        }
        self.read_place(place, &mut data[..first]);
        Ok(())
    }

    /// Writes up to 16 bytes at a linear address with the rights of `bank`.
    pub(crate) fn write_linear(&mut self, addr: u64, data: &[u8], bank: Bank) -> Flow {
        let addr = self.linear(addr, bank);
        let first = ((PAGE - addr % PAGE) as usize).min(data.len());
        let place = self.translate_write(addr, first, bank)?;
        if first < data.len() {
            let next = self.linear(addr.wrapping_add(first as u64), bank);
            let second = self.translate_write(next, data.len() - first, bank)?;
            self.write_place(second, &data[first..]);
        }
        self.write_place(place, &data[..first]);
        Ok(())
    }

    /// Faults as a write of `size` bytes would, and does nothing else.
    #[cold]
    pub(crate) fn check_write(&mut self, addr: u64, size: usize) -> Flow {
        self.check_alignment(addr, size)?;
        if let Some(entry) = self.tlb.watched(addr, size) {
            return self.check_running(entry.phys & PAGE_MASK | (addr % PAGE), size);
        }
        if !self.alone {
            self.watch(addr, size, true)?;
        }
        let bank = self.bank();
        let addr = self.linear(addr, bank);
        let first = ((PAGE - addr % PAGE) as usize).min(size);
        self.translate_write(addr, first, bank)?;
        if first < size {
            let next = self.linear(addr.wrapping_add(first as u64), bank);
            self.translate_write(next, size - first, bank)?;
        }
        Ok(())
    }

    /// Translates for a write of `size` bytes of one page.
    fn translate_write(&mut self, addr: u64, size: usize, bank: Bank) -> Result<Place, Stop> {
        let place = self.translate(addr, Access::Write, bank)?;
        self.check_running(place.phys, size)?;
        Ok(place)
    }

    fn read_place(&mut self, place: Place, data: &mut [u8]) {
        let Some(host) = place.host else {
            return self.read_device(place.phys, data);
        };
        // SAFETY: `host` is inside a page of guest RAM and no caller passes more than what is left of the
        // page.
        unsafe {
            match data.len() {
                16 => data.copy_from_slice(&u128::load(host).to_le_bytes()),
                8 => data.copy_from_slice(&u64::load(host).to_le_bytes()),
                4 => data.copy_from_slice(&u32::load(host).to_le_bytes()),
                2 => data.copy_from_slice(&u16::load(host).to_le_bytes()),
                _ => ram_access::copy_out(host, data),
            }
        }
    }

    fn write_place(&mut self, place: Place, data: &[u8]) {
        let Some(host) = place.host else {
            return self.write_device(place.phys, data);
        };
        // SAFETY: as in `read_place`.
        unsafe {
            match data.len() {
                16 => u128::store(host, u128::from_bytes(data)),
                8 => u64::store(host, u64::from_bytes(data)),
                4 => u32::store(host, u32::from_bytes(data)),
                2 => u16::store(host, u16::from_bytes(data)),
                _ => ram_access::copy_in(host, data),
            }
        }
        self.stored(place.phys, data.len());
    }

    /// Devices see at most 8 bytes at once.
    fn read_device(&mut self, phys: u64, data: &mut [u8]) {
        for (n, chunk) in data.chunks_mut(8).enumerate() {
            let at = phys + 8 * n as u64;
            if self.apic.decodes(at) {
                processor::mmio_read(self, at, chunk);
            } else {
                self.with_bus(|bus| bus.mmio_read(at, chunk));
            }
        }
    }

    fn write_device(&mut self, phys: u64, data: &[u8]) {
        for (n, chunk) in data.chunks(8).enumerate() {
            let at = phys + 8 * n as u64;
            if self.apic.decodes(at) {
                processor::mmio_write(self, at, chunk);
            } else {
                if self.with_bus(|bus| bus.mmio_write(at, chunk)) == BusResult::Stop {
                    self.request_stop();
                }
            }
        }
    }

    /// Reads a descriptor or task word: a supervisor access whatever the privilege level, exempt from AC.
    pub(crate) fn load_system(&mut self, addr: u64) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        self.read_linear(addr, &mut bytes, Bank::Supervisor)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Sets bits of a byte of a descriptor as one, as processors do: another one may change the rest of it
    /// meanwhile.
    pub(crate) fn set_system_bits(&mut self, addr: u64, bits: u8) -> Flow {
        let addr = self.linear(addr, Bank::Supervisor);
        let place = self.translate_write(addr, 1, Bank::Supervisor)?;
        match place.host {
            Some(host) => {
                // SAFETY: `host` is a byte of guest RAM.
                let byte = unsafe { AtomicU8::from_ptr(std::ptr::with_exposed_provenance_mut(host)) };
                byte.fetch_or(bits, Ordering::SeqCst);
                self.stored(place.phys, 1);
            }
            None => {
                let mut byte = [0];
                self.read_device(place.phys, &mut byte);
                self.write_device(place.phys, &[byte[0] | bits]);
            }
        }
        Ok(())
    }

    /// Writes a word of an interrupt frame, as the new privilege level 0.
    pub(crate) fn store_system(&mut self, addr: u64, value: u64) -> Flow {
        if !canonical(addr) {
            return self.raise_code(vector::SS, 0);
        }
        self.store_system_bytes(addr, &value.to_le_bytes())
    }

    /// Writes a word of an interrupt frame outside of long mode.
    pub(crate) fn store_system_bytes(&mut self, addr: u64, bytes: &[u8]) -> Flow {
        self.write_linear(addr, bytes, Bank::Supervisor)
    }

    /// Translates the page of an instruction's first byte.
    #[inline]
    pub(crate) fn fetch(&mut self, addr: u64) -> Result<u64, Stop> {
        let entry = self.tlb.exec_entry(addr);
        if entry.tag == addr & PAGE_MASK {
            return Ok(entry.phys & PAGE_MASK | addr & !PAGE_MASK);
        }
        Ok(self.translate(addr, Access::Fetch, self.bank())?.phys)
    }
}

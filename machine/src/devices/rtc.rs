//! The clock of an arm64 machine: an ARM PL031 (crate `vm-superio`) that gives the host's time and sets no
//! alarm.
//!
//! x86 machines need none: their FADT says that there is no CMOS clock, and the guest has the hypervisor's.

use vm_superio::rtc_pl031::NoEvents;
use vm_superio::{Rtc, RtcState};

use crate::bus::{Action, BusDevice, RegisterNames};
use crate::state::Refused;

/// A real-time clock.
pub struct Clock {
    rtc: Rtc<NoEvents>,
}

impl Clock {
    /// Bytes of address space.
    pub const SIZE: u64 = 0x1000;
    /// ARM PrimeCell Real Time Clock (PL031) Technical Reference Manual, table 3-1.
    pub(crate) const REGISTERS: RegisterNames = &[
        (0x00, "RTCDR"),
        (0x04, "RTCMR"),
        (0x08, "RTCLR"),
        (0x0c, "RTCCR"),
        (0x10, "RTCIMSC"),
        (0x14, "RTCRIS"),
        (0x18, "RTCMIS"),
        (0x1c, "RTCICR"),
    ];

    /// A clock that gives the host's time.
    pub fn new() -> Self {
        Clock { rtc: Rtc::new() }
    }
}

/// What a snapshot holds of it: registers, and what the guest has set the clock ahead of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClockState {
    lr: u32,
    offset: i64,
    mr: u32,
    imsc: u32,
    ris: u32,
}

impl Clock {
    /// What a snapshot needs.
    pub fn save(&self) -> ClockState {
        let RtcState {
            lr,
            offset,
            mr,
            imsc,
            ris,
        } = self.rtc.state();
        ClockState {
            lr,
            offset,
            mr,
            imsc,
            ris,
        }
    }

    /// Goes on from what was saved. The time is the host's of then, as far as the guest had left it.
    ///
    /// # Errors
    /// When the clock is ahead of the host's by more than its 32 bits of seconds.
    pub fn restore(&mut self, state: &ClockState) -> Result<(), Refused> {
        let ClockState {
            lr,
            offset,
            mr,
            imsc,
            ris,
        } = *state;
        let most = i64::from(u32::MAX) * 1_000_000_000;
        Refused::unless((-most..=most).contains(&offset), "the real-time clock")?;
        let state = RtcState {
            lr,
            offset,
            mr,
            imsc,
            ris,
        };
        self.rtc = Rtc::from_state(&state, NoEvents);
        Ok(())
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

impl BusDevice for Clock {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), Ok(word)) = (u16::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
            self.rtc.read(offset, word);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let (Ok(offset), Ok(word)) = (u16::try_from(offset), data.try_into()) {
            self.rtc.write(offset, word);
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    fn read(clock: &mut Clock, offset: u64) -> u32 {
        let mut word = [0xff; 4];
        clock.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn time_and_identification_are_read() {
        let mut clock = Clock::new();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let given = u64::from(read(&mut clock, 0));
        assert!(now.abs_diff(given) <= 2, "{given} at {now}");
        // PrimeCell identification, by which Linux finds the driver.
        let id: Vec<u32> = (0xfe0..0x1000)
            .step_by(4)
            .map(|offset| read(&mut clock, offset) & 0xff)
            .collect();
        assert_eq!(id, [0x31, 0x10, 0x04, 0, 0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn any_access_is_handled() {
        let mut clock = Clock::new();
        for offset in [0, 1, 0x10, 0xffc, 0xfff] {
            for width in [1, 2, 4, 8] {
                let mut data = vec![0xaa; width];
                clock.read(offset, &mut data);
                assert_eq!(clock.write(offset, &data), Action::None);
            }
        }
    }
}

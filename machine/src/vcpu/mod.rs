//! A virtual processor: a thread that runs the guest, handles its exits, and
//! stops when it is kicked.
//!
//! ```text
//!                                   +---- action none -----+
//!                                   v                       |
//!   Control::may_run --yes--> Vcpu::run ---exit---> Server::exit
//!    ^   |                          |
//!    |   no                         +-- kicked ------------> Control::may_run
//!    |   v                          +-- off, reset, fault --> Control::end
//!    |  the thread ends                                           |
//!    +------------------------------------------------------------+
//! ```

mod control;
mod exits;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::accel::{Exit, ExitHandler, Stop, Vcpu};
use crate::bus::{Action, Bus};
use crate::footprint;
use crate::sandbox;
use crate::timeline::{Event, Timeline};
use crate::virtio::determinism::{Trigger, WorkerGate};

use control::Next;
pub use control::{Control, End, Hold, SaveError};
pub use exits::{ExitCount, ExitTable, Kind, totals};

/// What an exit can reach.
#[derive(Default)]
pub struct Buses {
    /// I/O ports. Empty where the architecture has none.
    pub ports: Bus,
    /// Guest-physical addresses outside RAM.
    pub memory: Bus,
    /// Devices that are kept in step with the processor.
    pub gates: Vec<Arc<WorkerGate>>,
}

/// Serves the exits of one vCPU.
struct Server {
    buses: Arc<Buses>,
    exits: Arc<ExitTable>,
    timeline: Arc<Timeline>,
    control: Arc<Control>,
    /// This processor has left the guest before.
    exited: bool,
}

impl ExitHandler for Server {
    fn exit(&mut self, exit: Exit<'_>) -> Action {
        if matches!(exit, Exit::Poll) {
            self.buses.gates.iter().for_each(|gate| gate.pass(Trigger::Poll));
            return Action::None;
        }
        self.exits.count(&exit);
        if !self.exited {
            self.exited = true;
            self.timeline.mark(Event::FirstExit);
            self.control.has_exited();
        }
        match exit {
            Exit::PortIn { port, data } => self.buses.ports.read(port.into(), data),
            Exit::PortOut { port, data } => return self.buses.ports.write(port.into(), data),
            Exit::MmioRead { addr, data } => self.buses.memory.read(addr, data),
            Exit::MmioWrite { addr, data } => return self.buses.memory.write(addr, data),
            Exit::System(action) => return action,
            Exit::Poll => {}
        }
        Action::None
    }
}

/// Starts the thread of processor `number`. It ends when `control` says so; a processor that stops by itself
/// ends the whole machine.
pub fn start(
    number: usize,
    vcpu: Box<dyn Vcpu>,
    control: Arc<Control>,
    buses: Arc<Buses>,
    exits: Arc<ExitTable>,
    timeline: Arc<Timeline>,
) -> io::Result<JoinHandle<()>> {
    let server = Server {
        buses,
        exits,
        timeline,
        control: Arc::clone(&control),
        exited: false,
    };
    sandbox::spawn(&format!("cpu{number}"), vcpu.thread(), move || {
        run(number, vcpu, server, &control)
    })
}

fn run(number: usize, mut vcpu: Box<dyn Vcpu>, mut server: Server, control: &Control) {
    let mut stood_still = false;
    loop {
        match control.may_run(number) {
            Next::Run => {}
            Next::RunAgain => stood_still = true,
            Next::Save => {
                control.has_saved(number, vcpu.save());
                stood_still = true;
                continue;
            }
            Next::GiveBack => {
                vcpu.give_back();
                footprint::give_back();
                continue;
            }
            Next::End => return,
        }
        if std::mem::take(&mut stood_still) {
            vcpu.stood_still();
        }
        server.timeline.mark(Event::FirstRun);
        let stop = vcpu.run(&mut server);
        control.has_stopped();
        match stop {
            Ok(Stop::Kicked | Stop::Action(Action::None)) => {}
            Ok(Stop::Action(Action::Shutdown)) => control.end(Ok(End::PowerOff)),
            Ok(Stop::Action(Action::Reset)) => control.end(Ok(End::Reset)),
            Ok(Stop::TripleFault) => control.end(Ok(End::TripleFault)),
            Err(error) => control.end(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests;

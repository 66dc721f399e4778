//! Direct execution: the guest's programs run on the host's processor, in a helper process that can do nothing
//! but map guest RAM. The guest's kernel is interpreted.
//!
//! | file | what |
//! |---|---|
//! | `stub`, `process` | the process: what it has and may do |
//! | `helper` | how it is driven |
//! | `mirror` | what is mapped in it |
//! | `tables` | what the guest's page tables say |
//! | `sensitive` | which code does not run directly |
//! | `helpers` | the helpers of a processor |
//! | `policy` | when it pays to use them |
//! | `vectors` | the registers that XSAVE knows |
//! | `registers`, `run` | from the processor to a helper, and back |

pub(crate) mod helper;
pub(crate) mod helpers;
mod mirror;
mod policy;
mod process;
mod registers;
mod run;
mod sensitive;
mod stub;
mod tables;
mod vectors;

use std::io;

use crate::x86_64::features::Features;

pub use helper::{Helper, try_out};
pub use policy::When;
pub use process::ram_file;

/// Whether programs of a processor with these extensions can run on the host's: an instruction that the host
/// does not have may be another one there (LZCNT is BSR).
///
/// # Errors
/// Where the host's processor has less.
pub fn check(features: Features) -> io::Result<()> {
    if Features::host().has(features) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        format!("this host's processor does not have all of {features}, which the guest's has"),
    ))
}

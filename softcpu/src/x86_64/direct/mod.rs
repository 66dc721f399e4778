//! Direct execution: the guest's programs run on the host's processor, in a helper process that can do nothing
//! but map guest RAM. The guest's kernel is interpreted.
//!
//! | file | what |
//! |---|---|
//! | `stub`, `helper` | the process and how it is driven |
//! | `mirror` | what is mapped in it |
//! | `sensitive` | which code does not run directly |
//! | `helpers` | the helpers of a processor, and when it is worth while to use them |
//! | `registers`, `run` | from the processor to a helper, and back |

pub(crate) mod helper;
pub(crate) mod helpers;
mod mirror;
mod registers;
mod run;
mod sensitive;
mod stub;

pub use helper::{Helper, ram_file, try_out};

//! The parts that a processor of any instruction set needs. Nothing here depends on one.
//!
//! | file | what |
//! |---|---|
//! | `page` | the size of a page |
//! | `ram`, `ram_access` | guest RAM, and how it is read and written while others use it |
//! | `code_page` | what is known of the code in a page of RAM |
//! | `tlb`, `changes` | translations of addresses, and what copies of them have to follow |
//! | `block`, `arena`, `unsettled`, `address_map` | decoded blocks, where they lie, how they are found, and when they may be kept |
//! | `bus` | what a processor sees beyond RAM |
//! | `mailbox`, `interruption`, `processors`, `clock` | what others have for a processor, and what all share |
//! | `profile`, `counters` | where instructions are spent, and how often the costly things happen |

pub(crate) mod address_map;
pub(crate) mod arena;
pub(crate) mod block;
pub mod bus;
pub(crate) mod changes;
pub(crate) mod clock;
pub(crate) mod code_page;
pub(crate) mod counters;
pub(crate) mod interruption;
pub(crate) mod mailbox;
pub mod page;
pub(crate) mod processors;
pub(crate) mod profile;
pub mod ram;
pub mod ram_access;
pub(crate) mod tlb;
pub(crate) mod unsettled;

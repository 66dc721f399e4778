//! What a processor of any instruction set needs.

pub(crate) mod address_map;
pub(crate) mod block;
pub mod bus;
pub(crate) mod clock;
pub(crate) mod code_page;
pub(crate) mod counters;
pub(crate) mod mailbox;
pub(crate) mod page;
pub(crate) mod processors;
pub(crate) mod profile;
pub mod ram;
pub mod ram_access;
pub(crate) mod tlb;
pub(crate) mod unsettled;

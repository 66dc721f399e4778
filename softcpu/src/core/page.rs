//! Pages: the unit of translation, and of what is known of code.

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Mask of the page number in an address.
pub const PAGE_MASK: u64 = !(PAGE - 1);

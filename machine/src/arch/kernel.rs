//! Errors of kernel files that a machine cannot boot.

use std::io;

/// What is wrong with the file; a message continues "the kernel cannot be used: ".
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum KernelError {
    /// its header cannot be read: {0}
    Header(#[source] io::Error),
    /// {len} bytes at {offset:#x} cannot be read: {source}
    Read {
        /// Where in the file.
        offset: u64,
        /// How many.
        len: usize,
        /// The operating system's reason.
        source: io::Error,
    },
    /// it cannot be placed at {address:#x}: {source}
    Place {
        /// Guest-physical address.
        address: u64,
        /// The reason.
        source: vm_memory::GuestMemoryError,
    },
    /// {0}
    Loader(#[from] linux_loader::loader::Error),
    /// it is neither ELF nor bzImage
    Unknown,
    /// it is not an arm64 Image
    NoImage,
    /// it is compressed
    Compressed,
    /// it is ELF
    Elf,
    /// it is for another processor (ELF machine {0})
    Processor(u16),
    /// its program headers have an unknown length
    ProgramHeaders,
    /// its entry point lies in the first MiB
    EntryTooLow,
    /// its entry point lies outside its segments
    EntryOutside,
    /// it has boot protocol {0:#x}, and a loader needs what 0x20a has: it is older than Linux 2.6.31
    OldProtocol(u16),
    /// it has no setup header
    NoSetupHeader,
    /// it ends inside its setup code
    InsideSetup,
    /// it is a kernel for low memory
    LowMemory,
    /// it begins in the first MiB
    TooLow,
    /// its header asks for more memory than there can be
    TooLarge,
}

//! Names of kernel functions by address: from a `System.map`, the symbol table of an ELF file, or the table
//! that a kernel carries for itself.

use std::sync::Arc;

use super::{elf, kallsyms};

/// Longest name that is kept; Linux has none beyond 512 bytes (`KSYM_NAME_LEN`).
const LONGEST: usize = 512;
/// Where x86-64 Linux puts modules (Documentation/arch/x86/x86_64/mm.rst). What is there has no fixed names.
const MODULES: u64 = 0xffff_ffff_c000_0000;

/// Why there are no names.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// the kernel has no symbol table and no kallsyms that could be found; try --system-map FILE of its build
    NoSymbols,
    /// line {line} of the system map is not `ADDRESS TYPE NAME`; the kernel's debug package has the real file
    SystemMap {
        /// Counted from 1.
        line: usize,
    },
}

/// A function's start and name.
pub(super) type Symbol = (u64, String);

/// Functions by address.
#[derive(Debug)]
pub struct Symbols(Vec<Symbol>);

impl Symbols {
    /// Those of a kernel image.
    ///
    /// # Errors
    /// [`Error::NoSymbols`] when it has none, or is compressed.
    pub fn of_kernel(image: &[u8]) -> Result<Symbols, Error> {
        let found = elf::functions(image)
            .filter(|functions| !functions.is_empty())
            .or_else(|| kallsyms::functions(image));
        Ok(Symbols::sorted(found.ok_or(Error::NoSymbols)?))
    }

    /// Those of a `System.map`.
    ///
    /// # Errors
    /// [`Error::SystemMap`] names the first line that is none of it.
    pub fn of_system_map(text: &str) -> Result<Symbols, Error> {
        let mut functions = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split_ascii_whitespace();
            let entry = (|| {
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                let kind = *words.next()?.as_bytes().first()?;
                Some((address, kind, words.next()?))
            })();
            let Some((address, kind, name)) = entry else {
                return Err(Error::SystemMap { line: index + 1 });
            };
            if is_code(kind) {
                functions.push((address, name.chars().take(LONGEST).collect()));
            }
        }
        if functions.is_empty() {
            return Err(Error::SystemMap { line: 1 });
        }
        Ok(Symbols::sorted(functions))
    }

    fn sorted(mut functions: Vec<Symbol>) -> Symbols {
        functions.sort();
        // Several names for one address: the first in the alphabet that does not look like the compiler's.
        functions.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same && first.1.starts_with('_') && !later.1.starts_with('_') {
                std::mem::swap(&mut later.1, &mut first.1);
            }
            same
        });
        Symbols(functions)
    }

    /// How many functions have names.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where functions begin, in order; modules are one.
    pub fn starts(&self) -> Arc<[u64]> {
        let kernel = self.0.iter().map(|(start, _)| *start);
        kernel.filter(|start| *start < MODULES).chain([MODULES]).collect()
    }

    /// The function that `address` is in.
    pub fn name(&self, address: u64) -> &str {
        if address >= MODULES {
            return "[module]";
        }
        let after = self.0.partition_point(|(start, _)| *start <= address);
        match after.checked_sub(1) {
            Some(at) if address >> 63 == 1 => &self.0[at].1,
            // Before the kernel's own addresses are mapped, and what was not counted apart.
            _ => "[unknown]",
        }
    }
}

/// Whether nm(1) means code by this letter.
pub(super) fn is_code(kind: u8) -> bool {
    matches!(kind, b't' | b'T' | b'w' | b'W')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_map_names_what_is_in_a_function() {
        let text = "ffffffff81000000 T _text\nffffffff81000000 T startup_64\n\
                    ffffffff81000040 t helper\nffffffff82000000 D data\n";
        let symbols = Symbols::of_system_map(text).unwrap();
        assert_eq!(symbols.len(), 2);
        for (address, name) in [
            (0xffff_ffff_8100_0000, "startup_64"),
            (0xffff_ffff_8100_003f, "startup_64"),
            (0xffff_ffff_8100_1000, "helper"),
            (0xffff_ffff_c000_0010, "[module]"),
            (0xffff_ffff_80ff_ffff, "[unknown]"),
            (0x1000, "[unknown]"),
        ] {
            assert_eq!(symbols.name(address), name, "{address:#x}");
        }
    }

    #[test]
    fn what_is_no_system_map_is_refused_by_line() {
        for (text, at) in [
            ("", 1),
            (
                "ffffffff81000000 T _text\nffffffffffffffff B The real System.map is in the package\n\
                 rubbish\n",
                3,
            ),
            ("ffffffff81000000 D data\n", 1),
        ] {
            match Symbols::of_system_map(text) {
                Err(Error::SystemMap { line }) => assert_eq!(line, at, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_kernel_without_names_says_so() {
        for image in [&b""[..], b"\x7fELF", &[0x5a; 5000]] {
            assert!(matches!(Symbols::of_kernel(image), Err(Error::NoSymbols)));
        }
    }
}

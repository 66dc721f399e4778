//! Functions in the symbol table of a 64-bit little-endian ELF file (System V ABI, chapter 4).

use super::symbols::Symbol;

/// `SHT_SYMTAB`.
const SYMTAB: u32 = 2;
/// `STT_FUNC`.
const FUNCTION: u8 = 2;
/// Size of a section header and of a symbol.
const SECTION: usize = 64;
const SYMBOL: usize = 24;

/// The functions; `None` when this is not such a file or has no symbol table.
pub fn functions(file: &[u8]) -> Option<Vec<Symbol>> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let sections = part(file, word(file, 0x28)?, SECTION * usize::from(half(file, 0x3c)?))?;
    let mut all = sections.chunks_exact(SECTION);
    let table = all.find(|section| int(section, 4) == Some(SYMTAB))?;
    let names_at = SECTION * usize::try_from(int(table, 0x28)?).ok()?;
    let strings = contents(file, sections.get(names_at..names_at + SECTION)?)?;
    let function = |symbol: &[u8]| {
        if symbol[4] & 0xf != FUNCTION {
            return None;
        }
        let name = strings.get(int(symbol, 0)? as usize..)?;
        let name = &name[..name.iter().position(|&byte| byte == 0)?];
        Some((word(symbol, 8)?, String::from_utf8_lossy(name).into_owned()))
    };
    Some(
        contents(file, table)?
            .chunks_exact(SYMBOL)
            .filter_map(function)
            .collect(),
    )
}

/// What a section header says is in the file.
fn contents<'a>(file: &'a [u8], section: &[u8]) -> Option<&'a [u8]> {
    part(
        file,
        word(section, 0x18)?,
        usize::try_from(word(section, 0x20)?).ok()?,
    )
}

fn part(file: &[u8], at: u64, len: usize) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    file.get(at..at.checked_add(len)?)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn int(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with the sections null, symbols, strings.
    fn file() -> Vec<u8> {
        let (symbols, strings) = (64 + 3 * SECTION, 64 + 3 * SECTION + 3 * SYMBOL);
        let mut file = vec![0; strings + 16];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x28] = 64;
        file[0x3c] = 3;
        let mut header = |number: usize, kind: u8, link: u8, at: usize, len: usize| {
            let section = &mut file[64 + number * SECTION..];
            (section[4], section[0x28]) = (kind, link);
            section[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            section[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
        };
        header(1, SYMTAB as u8, 2, symbols, 3 * SYMBOL);
        header(2, 3, 0, strings, 16);
        file[strings..strings + 10].copy_from_slice(b"\0main\0dat\0");
        for (number, name, kind, value) in [(1, 1, FUNCTION, 0x40_u64), (2, 6, 1, 0x80)] {
            let symbol = &mut file[symbols + number * SYMBOL..];
            (symbol[0], symbol[4]) = (name, kind);
            symbol[8..16].copy_from_slice(&value.to_le_bytes());
        }
        file
    }

    #[test]
    fn functions_are_found_and_data_is_not() {
        assert_eq!(functions(&file()), Some(vec![(0x40, "main".to_owned())]));
    }

    #[test]
    fn damage_causes_no_panic() {
        let whole = file();
        for len in 0..whole.len() {
            let _ = functions(&whole[..len]);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                let _ = functions(&damaged);
            }
        }
    }
}

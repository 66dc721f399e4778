//! What a kernel module says about itself: the `.modinfo` section of its ELF, `key=value` strings ended by
//! NUL.

/// The values of one key in the `.modinfo` of a module, in order.
///
/// # Errors
/// What is wrong with the ELF, when it is damaged.
pub(super) fn values<'a>(module: &'a [u8], key: &str) -> Result<Vec<&'a str>, &'static str> {
    let prefix = format!("{key}=");
    let section = section(module, b".modinfo")?.ok_or("it has no .modinfo section")?;
    let texts = section
        .split(|b| *b == 0)
        .filter_map(|text| std::str::from_utf8(text).ok());
    Ok(texts
        .filter_map(|text| text.strip_prefix(prefix.as_str()))
        .collect())
}

/// A section of a little-endian ELF by name (System V ABI, chapter 4).
fn section<'a>(elf: &'a [u8], name: &[u8]) -> Result<Option<&'a [u8]>, &'static str> {
    const CUT: &str = "its section table lies outside of it";
    // Bytes of an address, where the section table is named, and the fields of a section's header.
    let (wide, table_at, sizes_at, offset_at, size_at) = match elf.get(..6) {
        Some(b"\x7fELF\x02\x01") => (8, 0x28, 0x3a, 0x18, 0x20),
        Some(b"\x7fELF\x01\x01") => (4, 0x20, 0x2e, 0x10, 0x14),
        _ => return Err("it is not a little-endian ELF"),
    };
    let word = |at: usize, bytes: usize| -> Option<usize> {
        let field = elf.get(at..at.checked_add(bytes)?)?;
        let value = field
            .iter()
            .rev()
            .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    let table = word(table_at, wide).ok_or(CUT)?;
    let (entry, count, names) = (
        word(sizes_at, 2).ok_or(CUT)?,
        word(sizes_at + 2, 2).ok_or(CUT)?,
        word(sizes_at + 4, 2).ok_or(CUT)?,
    );
    let header = |index: usize| table.checked_add(index.checked_mul(entry)?);
    let body = |index: usize| -> Option<&'a [u8]> {
        let at = header(index)?;
        let field = |offset: usize| word(at.checked_add(offset)?, wide);
        let (offset, size) = (field(offset_at)?, field(size_at)?);
        elf.get(offset..offset.checked_add(size)?)
    };
    let names = body(names).ok_or(CUT)?;
    for index in 0..count {
        let start = header(index).and_then(|at| word(at, 4)).ok_or(CUT)?;
        let found = names.get(start..).and_then(|rest| rest.split(|b| *b == 0).next());
        if found == Some(name) {
            return Ok(Some(body(index).ok_or(CUT)?));
        }
    }
    Ok(None)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The smallest ELF with this `.modinfo`.
    pub fn module(info: &[&str]) -> Vec<u8> {
        let info: Vec<u8> = info
            .iter()
            .flat_map(|text| [text.as_bytes(), b"\0"].concat())
            .collect();
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let (info_at, names_at) = (64, 64 + info.len());
        let table = names_at + names.len();
        elf.extend_from_slice(&info);
        elf.extend_from_slice(names);
        elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        elf[0x3a..0x40].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
        for (name, offset, size) in [
            (0u32, 0, 0),
            (1, info_at, info.len()),
            (10, names_at, names.len()),
        ] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf
    }

    /// The same of 32 bits.
    fn module32(info: &[&str]) -> Vec<u8> {
        let wide = module(info);
        let number = |at: usize| u32::from_le_bytes(wide[at..at + 4].try_into().unwrap());
        let table = number(0x28) as usize;
        let mut elf = wide[..table].to_vec();
        elf[4] = 1;
        elf[0x20..0x24].copy_from_slice(&(table as u32).to_le_bytes());
        elf[0x2e..0x34].copy_from_slice(&[40, 0, 3, 0, 2, 0]);
        for at in (table..wide.len()).step_by(64) {
            let mut header = [0; 40];
            for (from, to) in [(0, 0), (0x18, 0x10), (0x20, 0x14)] {
                header[to..to + 4].copy_from_slice(&number(at + from).to_le_bytes());
            }
            elf.extend_from_slice(&header);
        }
        elf
    }

    #[test]
    fn keys_are_read_in_order() {
        for module in [module, module32] {
            let elf = module(&["depends=a,b", "alias=x", "alias=y"]);
            assert_eq!(values(&elf, "depends"), Ok(vec!["a,b"]));
            assert_eq!(values(&elf, "alias"), Ok(vec!["x", "y"]));
            assert_eq!(values(&elf, "softdep"), Ok(vec![]));
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        for module in [module, module32] {
            damaged(&module(&["depends=a"]));
        }
    }

    fn damaged(elf: &[u8]) {
        for length in 0..elf.len() {
            assert!(values(&elf[..length], "depends").is_err() || length > 64 + 10);
        }
        for at in 0..elf.len() {
            for value in [0, 0x7f, 0xff] {
                let mut changed = elf.to_vec();
                changed[at] = value;
                let _ = values(&changed, "depends");
            }
        }
    }
}

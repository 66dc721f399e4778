//! The symbol table that a Linux kernel has for its own use (`CONFIG_KALLSYMS`), found by its structure in an
//! uncompressed image whose ELF symbol table was stripped.
//!
//! As `scripts/kallsyms.c` writes it, each part aligned: the number of symbols; their names, each a length
//! (one byte, or two from 128 on) and as many tokens; for every 256th name its offset; the 256 tokens,
//! zero-terminated; the offset of each token. Addresses are 32-bit offsets and one 64-bit base, before all of
//! that (until Linux 6.3) or after it.

use super::symbols::{Symbol, is_code};

/// Kernels have between these numbers of symbols.
const PLAUSIBLE: std::ops::RangeInclusive<usize> = 1_000..=4_000_000;
const TOKENS: usize = 256;
/// Longest token table: tokens are at most 16 bytes in practice.
const LONGEST_TABLE: usize = 8192;
/// Names between two markers.
const STRIDE: usize = 256;
/// How far before the tokens the names may begin.
const REACH: usize = 64 << 20;

/// Functions of the kernel in `image`; `None` where no such table is found.
pub fn functions(image: &[u8]) -> Option<Vec<Symbol>> {
    let tokens = Tokens::find(image)?;
    let names = Names::find(image, &tokens)?;
    let addresses = addresses(image, &tokens, &names)?;
    let functions = addresses.iter().zip(&names.names);
    Some(
        functions
            .filter_map(|(&address, name)| {
                let (&kind, name) = name.as_bytes().split_first()?;
                is_code(kind).then(|| Some((address, std::str::from_utf8(name).ok()?.to_owned())))?
            })
            .collect(),
    )
}

/// The token table.
struct Tokens<'a> {
    start: usize,
    /// End of the table of offsets.
    end: usize,
    tokens: Vec<&'a [u8]>,
}

impl<'a> Tokens<'a> {
    /// Digits are tokens that stand for themselves, in a row.
    fn find(image: &'a [u8]) -> Option<Tokens<'a>> {
        const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";
        let mut from = 0;
        while let Some(at) = find(&image[from..], DIGITS) {
            let at = from + at;
            let starts = (at.saturating_sub(LONGEST_TABLE)..at).filter(|start| start.is_multiple_of(4));
            if let Some(found) = starts.rev().find_map(|start| Tokens::at(image, start)) {
                return Some(found);
            }
            from = at + 1;
        }
        None
    }

    /// The table at `start`, if the table of its offsets says that it is one.
    fn at(image: &'a [u8], start: usize) -> Option<Tokens<'a>> {
        let table = image.get(start..image.len().min(start + LONGEST_TABLE))?;
        let mut tokens = Vec::with_capacity(TOKENS);
        let mut offsets = Vec::with_capacity(2 * TOKENS);
        let mut at = 0;
        while tokens.len() < TOKENS {
            let len = table.get(at..)?.iter().position(|&byte| byte == 0)?;
            tokens.push(&table[at..at + len]);
            offsets.extend((at as u16).to_le_bytes());
            at += len + 1;
        }
        let index = [2, 4, 8].into_iter().find_map(|alignment| {
            let at = (start + at).next_multiple_of(alignment);
            (image.get(at..at + offsets.len())? == offsets).then_some(at)
        })?;
        Some(Tokens {
            start,
            end: index + offsets.len(),
            tokens,
        })
    }
}

/// The names, and where their number is.
struct Names {
    number_at: usize,
    names: Vec<String>,
}

impl Names {
    /// Looks backwards for a number that as many names follow, and then their markers.
    fn find(image: &[u8], tokens: &Tokens<'_>) -> Option<Names> {
        let first = tokens.start.saturating_sub(REACH).next_multiple_of(4);
        let mut places = (first..tokens.start).rev().filter(|at| at.is_multiple_of(4));
        places.find_map(|number_at| {
            let number = int(image, number_at)? as usize;
            if !PLAUSIBLE.contains(&number) {
                return None;
            }
            [4, 8].into_iter().find_map(|alignment| {
                let start = (number_at + 4).next_multiple_of(alignment);
                let names = Names::at(image, start, number, tokens)?;
                Some(Names { number_at, names })
            })
        })
    }

    fn at(image: &[u8], start: usize, number: usize, tokens: &Tokens<'_>) -> Option<Vec<String>> {
        let mut names = Vec::new();
        let mut markers = Vec::new();
        let mut at = start;
        for index in 0..number {
            if index % STRIDE == 0 {
                markers.extend(u32::try_from(at - start).ok()?.to_le_bytes());
            }
            let (len, skip) = match *image.get(at)? {
                len if len < 128 => (usize::from(len), 1),
                low => (usize::from(low & 0x7f) | usize::from(*image.get(at + 1)?) << 7, 2),
            };
            let name = image.get(at + skip..at + skip + len)?;
            names.push(expand(name, tokens)?);
            at += skip + len;
            if at > tokens.start {
                return None;
            }
        }
        let marked = [4, 8].into_iter().any(|alignment| {
            let at = at.next_multiple_of(alignment);
            image.get(at..at + markers.len()) == Some(&markers)
        });
        marked.then_some(names)
    }
}

/// A type's letter and a name, or `None` if it cannot be.
fn expand(name: &[u8], tokens: &Tokens<'_>) -> Option<String> {
    let bytes: Vec<u8> = name
        .iter()
        .flat_map(|&token| tokens.tokens[usize::from(token)].iter().copied())
        .collect();
    let possible =
        bytes.len() > 1 && bytes[0].is_ascii_alphabetic() && bytes.iter().all(u8::is_ascii_graphic);
    possible.then(|| String::from_utf8(bytes).ok())?
}

/// The symbols' addresses, which rise.
fn addresses(image: &[u8], tokens: &Tokens<'_>, names: &Names) -> Option<Vec<u64>> {
    let number = names.names.len();
    let table = 4 * number;
    let after = [4, 8].map(|alignment| {
        let start = tokens.end.next_multiple_of(alignment);
        Some((start, (start + table).next_multiple_of(8)))
    });
    let before = [4, 8].map(|alignment| {
        let base = names.number_at.checked_sub(8)? / 8 * 8;
        Some((base.checked_sub(table)? / alignment * alignment, base))
    });
    after
        .into_iter()
        .chain(before)
        .flatten()
        .find_map(|(start, base)| {
            let base = u64::from_le_bytes(image.get(base..base + 8)?.try_into().ok()?);
            let offsets: Vec<i32> = image
                .get(start..start + table)?
                .chunks_exact(4)
                .map(|bytes| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                .collect();
            // With CONFIG_KALLSYMS_ABSOLUTE_PERCPU, what is not negative is itself an address; without, all
            // are distances.
            let absolute = |offset: &i32| match u64::try_from(*offset) {
                Ok(address) => address,
                Err(_) => base.wrapping_sub(1).wrapping_sub(i64::from(*offset) as u64),
            };
            let relative = |offset: &i32| base.wrapping_add(u64::from(*offset as u32));
            let ways: [&dyn Fn(&i32) -> u64; 2] = [&absolute, &relative];
            ways.into_iter().find_map(|way| {
                let addresses: Vec<u64> = offsets.iter().map(way).collect();
                let high = addresses.last().is_some_and(|last| last >> 63 == 1);
                (high && addresses.is_sorted()).then_some(addresses)
            })
        })
}

fn find(image: &[u8], wanted: &[u8]) -> Option<usize> {
    image.windows(wanted.len()).position(|window| window == wanted)
}

fn int(image: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: usize = 1300;
    const BASE: u64 = 0xffff_ffff_8100_0000;

    /// Every token is one character, so that names can be written as they are.
    fn token(n: usize) -> Vec<u8> {
        match n {
            0x21..0x7f => vec![n as u8],
            _ => format!("tok{n}").into_bytes(),
        }
    }

    fn align(image: &mut Vec<u8>) {
        image.resize(image.len().next_multiple_of(8), 0);
    }

    /// A table as Linux has it, addresses first (`before`) or last.
    fn image(before: bool, percpu: bool) -> Vec<u8> {
        let offset = |n: usize| match (percpu, n) {
            (true, 0..10) => 8 * n as i32,
            (true, _) => -1 - 16 * n as i32,
            (false, _) => 16 * n as i32,
        };
        let mut addresses: Vec<u8> = (0..NUMBER).flat_map(|n| offset(n).to_le_bytes()).collect();
        align(&mut addresses);
        addresses.extend(BASE.to_le_bytes());
        let mut image = vec![0xcc; 4096];
        if before {
            image.extend(&addresses);
        }
        image.extend((NUMBER as u64).to_le_bytes());
        let start = image.len();
        let mut markers = Vec::new();
        for n in 0..NUMBER {
            if n % STRIDE == 0 {
                markers.extend(((image.len() - start) as u32).to_le_bytes());
            }
            let long = "x".repeat(if n == 700 { 200 } else { 0 });
            let name = format!("{}f{n}{long}", if n % 2 == 0 { 'T' } else { 'd' });
            match name.len() {
                len if len < 128 => image.push(len as u8),
                len => image.extend([len as u8 & 0x7f | 0x80, (len >> 7) as u8]),
            }
            image.extend(name.as_bytes());
        }
        align(&mut image);
        image.extend(markers);
        align(&mut image);
        let table = image.len();
        let mut index = Vec::new();
        for n in 0..TOKENS {
            index.extend(((image.len() - table) as u16).to_le_bytes());
            image.extend(token(n));
            image.push(0);
        }
        align(&mut image);
        image.extend(index);
        align(&mut image);
        if !before {
            image.extend(&addresses);
        }
        image.extend([0xcc; 64]);
        image
    }

    #[test]
    fn functions_are_found_wherever_their_addresses_are() {
        for (before, percpu) in [(true, true), (false, true), (false, false)] {
            let functions = functions(&image(before, percpu)).unwrap();
            assert_eq!(functions.len(), NUMBER / 2);
            let name = format!("f700{}", "x".repeat(200));
            assert!(functions.contains(&(BASE + 16 * 700, name)), "{before} {percpu}");
            assert!(functions.contains(&(BASE + 16 * 698, "f698".to_owned())));
        }
    }

    #[test]
    fn damage_finds_nothing_and_causes_no_panic() {
        let whole = image(false, true);
        for at in (4096..whole.len()).step_by(61) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            let _ = functions(&damaged);
            let _ = functions(&damaged[..at]);
        }
    }
}

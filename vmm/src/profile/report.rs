//! A profile with the names of functions.

use std::collections::{BTreeMap, HashMap, HashSet};

use softcpu::Profile;

use super::Symbols;

/// The one frame of all that runs outside the kernel.
const USER: &str = "[user]";

/// What one function took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Instructions in it.
    pub own: u64,
    /// Instructions in it and in what it called.
    pub with_callees: u64,
}

/// Instructions by call path, in names.
#[derive(Debug, Default)]
pub struct Report {
    stacks: BTreeMap<Vec<String>, u64>,
}

impl Report {
    /// Gives `profile` names.
    pub fn new(profile: &Profile, symbols: &Symbols) -> Report {
        let mut stacks: BTreeMap<Vec<String>, u64> = BTreeMap::new();
        for (addresses, count) in profile.stacks() {
            let mut names: Vec<String> = Vec::with_capacity(addresses.len());
            let last = addresses.len() - 1;
            for (depth, address) in addresses.into_iter().enumerate() {
                let name = symbols.name(address);
                // The block itself is a frame only where a jump, and no call, led out of the function.
                if depth != last || names.last().is_none_or(|caller| caller != name) {
                    names.push(name.to_owned());
                }
            }
            *stacks.entry(names).or_default() += count;
        }
        if profile.user() > 0 {
            stacks.insert(vec![USER.to_owned()], profile.user());
        }
        Report { stacks }
    }

    /// Call paths, outermost function first, with their instructions.
    pub fn stacks(&self) -> impl Iterator<Item = (&[String], u64)> {
        self.stacks.iter().map(|(names, count)| (&names[..], *count))
    }

    /// Instructions in all.
    pub fn total(&self) -> u64 {
        self.stacks.values().sum()
    }

    /// Functions by their own instructions, most first; equals by name.
    pub fn functions(&self) -> Vec<Function> {
        let mut all: HashMap<&str, (u64, u64)> = HashMap::new();
        for (names, count) in self.stacks() {
            if let Some(name) = names.last() {
                all.entry(name).or_default().0 += count;
            }
            // Recursion counts once.
            let distinct: HashSet<&String> = names.iter().collect();
            for name in distinct {
                all.entry(name).or_default().1 += count;
            }
        }
        let mut functions: Vec<Function> = all
            .into_iter()
            .map(|(name, (own, with_callees))| Function {
                name: name.to_owned(),
                own,
                with_callees,
            })
            .collect();
        functions.sort_by(|a, b| b.own.cmp(&a.own).then_with(|| a.name.cmp(&b.name)));
        functions
    }

    /// Folded stacks, as flame graph tools read them: names with semicolons between, a space, the count.
    pub fn folded(&self) -> String {
        let mut text = String::new();
        for (names, count) in self.stacks() {
            text.push_str(&names.join(";"));
            text.push_str(&format!(" {count}\n"));
        }
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn report(stacks: &[(&[&str], u64)]) -> Report {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Report {
            stacks: stacks
                .iter()
                .map(|(names, count)| (owned(names), *count))
                .collect(),
        }
    }

    #[test]
    fn own_and_inclusive_counts_are_separate_and_recursion_counts_once() {
        let report = report(&[(&["a"], 1), (&["a", "b"], 10), (&["a", "b", "a"], 100)]);
        let functions = report.functions();
        let seen: Vec<_> = functions
            .iter()
            .map(|f| (f.name.as_str(), f.own, f.with_callees))
            .collect();
        assert_eq!(seen, [("a", 101, 111), ("b", 10, 110)]);
        assert_eq!(report.total(), 111);
        assert_eq!(report.folded(), "a 1\na;b 10\na;b;a 100\n");
    }
}

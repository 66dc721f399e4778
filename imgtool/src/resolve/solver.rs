//! The search: from wanted packages to a set that satisfies every relation in it.
//!
//! A clause is a group of alternatives that some selected package needs. A clause with a single candidate
//! left is no choice and is taken first (unit propagation); then the oldest open clause is decided by its
//! preferred candidate, and undone if that leads nowhere. One version of a name, and of one architecture
//! unless the packages are `Multi-Arch: same`. All orders are fixed, so that the same indexes give the same
//! set everywhere.

use std::collections::{BTreeSet, HashMap};

use super::relation::{Relation, show_group};
use super::universe::{Id, MultiArch, Universe};

/// Decisions tried before the search gives up. Debian needs a few hundred for a desktop; a set that needs
/// more is contradictory in a way that a person must look at.
const MAX_DECISIONS: usize = 20_000;

/// What must be installed, and for whom.
#[derive(Debug, Clone)]
pub struct Clause<'a> {
    /// The package that needs it; `None` for the recipe.
    pub owner: Option<Id>,
    /// The alternatives.
    pub group: Vec<Relation<'a>>,
}

/// Why a set cannot be: one sentence per line, from the recipe to the contradiction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction(pub Vec<String>);

#[derive(Debug, Clone)]
struct Open<'a> {
    clause: Clause<'a>,
    candidates: Vec<Id>,
}

/// A partial solution.
#[derive(Debug, Clone)]
struct State<'a> {
    /// Selected packages by name and architecture; the clause that brought each.
    selected: HashMap<(&'a str, &'a str), (Id, Clause<'a>)>,
    /// In the order of selection.
    order: Vec<Id>,
    /// By name, the relations that a selected package declares against it.
    against: HashMap<&'a str, Vec<(Relation<'a>, Id)>>,
    open: Vec<Open<'a>>,
}

/// The search over one universe.
pub struct Solver<'u, 'a> {
    universe: &'u Universe<'a>,
    excluded: &'u BTreeSet<String>,
    decisions: usize,
}

impl<'u> Solver<'u, '_> {
    /// Finds a set with every clause satisfied and no package of `excluded`. With `recommends`, what the
    /// selected packages recommend is added where that is possible.
    pub fn solve(
        universe: &'u Universe<'_>,
        excluded: &'u BTreeSet<String>,
        wanted: Vec<Clause<'u>>,
        recommends: bool,
    ) -> Result<Vec<Id>, Contradiction> {
        let mut solver = Solver {
            universe,
            excluded,
            decisions: 0,
        };
        let mut state = State {
            selected: HashMap::new(),
            order: Vec::new(),
            against: HashMap::new(),
            open: Vec::new(),
        };
        for clause in wanted {
            let candidates = solver.candidates(&clause);
            state.open.push(Open { clause, candidates });
        }
        state = solver.search(state)?;
        if recommends {
            state = solver.add_recommended(state)?;
        }
        state.order.sort_by_key(|id| universe.sort_key(*id));
        Ok(state.order)
    }

    fn candidates(&self, clause: &Clause<'_>) -> Vec<Id> {
        let mut found = Vec::new();
        let asker = self.asker(clause.owner);
        for relation in &clause.group {
            for id in self.universe.candidates(relation, Some(asker)) {
                if !found.contains(&id) && !self.is_excluded(id) {
                    found.push(id);
                }
            }
        }
        found
    }

    /// The architecture for which a package, or the recipe, asks.
    fn asker(&self, owner: Option<Id>) -> &'u str {
        owner.map_or(self.universe.native(), |id| self.universe.counts_as(id))
    }

    /// A name alone leaves out the package of every architecture.
    fn is_excluded(&self, id: Id) -> bool {
        self.excluded.contains(self.universe.get(id).name) || self.excluded.contains(&*self.universe.show(id))
    }

    fn search(&mut self, mut state: State<'u>) -> Result<State<'u>, Contradiction> {
        self.propagate(&mut state)?;
        let Some(position) = state.open.iter().position(|_| true) else {
            return Ok(state);
        };
        let open = state.open.remove(position);
        let mut first_failure = None;
        for candidate in open.candidates.iter().copied() {
            if self.obstacle(&state, candidate).is_some() {
                continue;
            }
            self.decisions += 1;
            if self.decisions > MAX_DECISIONS {
                let text = format!("no solution was found in {MAX_DECISIONS} decisions");
                return Err(Contradiction(vec![text]));
            }
            let mut attempt = state.clone();
            let result = self
                .select(&mut attempt, candidate, open.clause.clone())
                .and_then(|()| self.search(attempt));
            match result {
                Ok(solution) => return Ok(solution),
                Err(failure) => first_failure.get_or_insert(failure),
            };
        }
        Err(first_failure.unwrap_or_else(|| self.explain(&state, &open)))
    }

    /// Selects what is no choice until only choices are left. Keeps the open clauses in order.
    fn propagate(&self, state: &mut State<'u>) -> Result<(), Contradiction> {
        let mut i = 0;
        while i < state.open.len() {
            if self.is_satisfied(state, &state.open[i]) {
                state.open.remove(i);
                continue;
            }
            let mut viable = state.open[i]
                .candidates
                .iter()
                .copied()
                .filter(|id| self.obstacle(state, *id).is_none());
            match (viable.next(), viable.next()) {
                (None, _) => return Err(self.explain(state, &state.open[i])),
                (Some(only), None) => {
                    let open = state.open.remove(i);
                    self.select(state, only, open.clause)?;
                    // An earlier choice may be none any more.
                    i = 0;
                }
                (Some(_), Some(_)) => i += 1,
            }
        }
        Ok(())
    }

    fn is_satisfied(&self, state: &State<'u>, open: &Open<'_>) -> bool {
        open.candidates.iter().any(|id| self.is_selected(state, *id))
    }

    fn is_selected(&self, state: &State<'u>, id: Id) -> bool {
        state
            .selected
            .get(&self.place(id))
            .is_some_and(|(other, _)| *other == id)
    }

    fn place(&self, id: Id) -> (&'u str, &'u str) {
        (self.universe.get(id).name, self.universe.counts_as(id))
    }

    /// The selected package of the same name beside which the candidate cannot be.
    fn rival(&self, state: &State<'u>, id: Id) -> Option<Id> {
        let package = self.universe.get(id);
        let together = |other: Id| {
            let other = self.universe.get(other);
            let same = package.multi_arch == MultiArch::Same && other.multi_arch == MultiArch::Same;
            same && package.version == other.version
        };
        let own = self.universe.counts_as(id);
        let mut others = self.universe.architectures().iter().filter_map(|arch| {
            let (other, _) = state.selected.get(&(package.name, *arch))?;
            (*arch == own || !together(*other)).then_some(*other)
        });
        others.next()
    }

    /// Why the candidate cannot join, if it cannot.
    fn obstacle(&self, state: &State<'u>, id: Id) -> Option<String> {
        let package = self.universe.get(id);
        let show = |id: Id| format!("{} {}", self.universe.show(id), self.universe.get(id).version);
        if self.is_selected(state, id) {
            return None;
        }
        if let Some(other) = self.rival(state, id) {
            return Some(format!("{} is selected already", show(other)));
        }
        // A package does not stand against itself of another architecture.
        let is_other = |other: Id| self.universe.get(other).name != package.name;
        let names = std::iter::once(package.name).chain(package.provides().map(|(name, _)| name));
        for name in names {
            for (relation, owner) in state.against.get(name).into_iter().flatten() {
                if is_other(*owner) && self.universe.is_meant(id, relation) {
                    return Some(format!("{} does not go with {relation}", show(*owner)));
                }
            }
        }
        let Ok(against) = package.against() else {
            return Some("its Conflicts or Breaks cannot be read".into());
        };
        for relation in against.iter().flatten() {
            if let Some(other) = self
                .selected_match(state, relation)
                .filter(|other| is_other(*other))
            {
                return Some(format!(
                    "it does not go with {relation}, and {} is selected",
                    show(other)
                ));
            }
        }
        None
    }

    fn selected_match(&self, state: &State<'u>, relation: &Relation<'_>) -> Option<Id> {
        let mut candidates = self.universe.candidates(relation, None).into_iter();
        candidates.find(|id| self.is_selected(state, *id))
    }

    fn select(&self, state: &mut State<'u>, id: Id, reason: Clause<'u>) -> Result<(), Contradiction> {
        let package = self.universe.get(id);
        let malformed = |e: super::relation::ParseRelationError| {
            Contradiction(vec![format!("{} {}: {e}", package.name, package.version)])
        };
        for relation in package.against().map_err(malformed)?.into_iter().flatten() {
            let own = relation.name == package.name;
            if !own {
                state
                    .against
                    .entry(relation.name)
                    .or_default()
                    .push((relation, id));
            }
        }
        for group in package.depends().map_err(malformed)? {
            let clause = Clause {
                owner: Some(id),
                group,
            };
            let candidates = self.candidates(&clause);
            state.open.push(Open { clause, candidates });
        }
        state.selected.insert(self.place(id), (id, reason));
        state.order.push(id);
        Ok(())
    }

    /// Adds recommended packages one after the other, each with what it needs, and leaves out those that
    /// cannot be.
    fn add_recommended(&mut self, mut state: State<'u>) -> Result<State<'u>, Contradiction> {
        let mut next = 0;
        while next < state.order.len() {
            let owner = state.order[next];
            next += 1;
            let Ok(groups) = self.universe.get(owner).recommends() else {
                continue;
            };
            for group in groups {
                let clause = Clause {
                    owner: Some(owner),
                    group,
                };
                let open = Open {
                    candidates: self.candidates(&clause),
                    clause,
                };
                if open.candidates.is_empty() || self.is_satisfied(&state, &open) {
                    continue;
                }
                let mut attempt = state.clone();
                attempt.open.push(open);
                if let Ok(solution) = self.search(attempt) {
                    state = solution;
                }
            }
        }
        Ok(state)
    }

    /// Explains where the clause comes from and why each of its candidates fails.
    fn explain(&self, state: &State<'u>, open: &Open<'_>) -> Contradiction {
        let mut lines = Vec::new();
        let mut owner = open.clause.owner;
        lines.push(self.needs(owner, &open.clause.group));
        while let Some(id) = owner {
            let Some((_, reason)) = state.selected.get(&self.place(id)) else {
                break;
            };
            lines.push(self.needs(reason.owner, &reason.group));
            owner = reason.owner;
        }
        lines.reverse();
        for relation in &open.clause.group {
            lines.extend(self.explain_relation(state, relation, self.asker(open.clause.owner)));
        }
        Contradiction(lines)
    }

    fn needs(&self, owner: Option<Id>, group: &[Relation<'_>]) -> String {
        match owner {
            None => format!("the recipe asks for {}", show_group(group)),
            Some(id) => format!("{} needs {}", self.universe.show(id), show_group(group)),
        }
    }

    fn explain_relation(&self, state: &State<'u>, relation: &Relation<'_>, asker: &str) -> Vec<String> {
        let candidates = self.universe.candidates(relation, Some(asker));
        if candidates.is_empty() {
            let offered = self.universe.versions(relation.name);
            let version = |id: &Id| match self.universe.counts_as(*id) {
                arch if arch == asker => self.universe.get(*id).version.to_owned(),
                arch => format!("{} of {arch}", self.universe.get(*id).version),
            };
            let offered: Vec<_> = offered.iter().map(version).collect();
            return vec![match offered.is_empty() {
                true => format!("  no repository of the recipe has {}", relation.name),
                false => format!("  of {} there is only {}", relation.name, offered.join(", ")),
            }];
        }
        let reasons = candidates.into_iter().filter_map(|id| {
            let package = self.universe.get(id);
            let reason = match self.is_excluded(id) {
                true => format!("the recipe leaves it out (-{})", package.name),
                false => self.obstacle(state, id)?,
            };
            Some(format!(
                "  {} {}: {reason}",
                self.universe.show(id),
                package.version
            ))
        });
        reasons.collect()
    }
}

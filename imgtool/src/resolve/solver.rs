//! The search: from wanted packages to a set that satisfies every relation in it.
//!
//! A clause is a group of alternatives that some selected package needs. A clause with a single candidate
//! left is no choice and is taken first (unit propagation); then the oldest open clause is decided by its
//! preferred candidate, and undone if that leads nowhere. One version of a name, one architecture. All orders
//! are fixed, so that the same indexes give the same set everywhere.

use std::collections::{BTreeSet, HashMap};

use super::relation::{Relation, show_group};
use super::universe::{Id, Universe};

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
    /// Selected packages by name; the clause that brought each.
    selected: HashMap<&'a str, (Id, Clause<'a>)>,
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
        state.order.sort_by_key(|id| universe.get(*id).name);
        Ok(state.order)
    }

    fn candidates(&self, clause: &Clause<'_>) -> Vec<Id> {
        let mut found = Vec::new();
        for relation in &clause.group {
            for id in self.universe.candidates(relation) {
                if !found.contains(&id) && !self.excluded.contains(self.universe.get(id).name) {
                    found.push(id);
                }
            }
        }
        found
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
            .get(self.universe.get(id).name)
            .is_some_and(|(other, _)| *other == id)
    }

    /// Why the candidate cannot join, if it cannot.
    fn obstacle(&self, state: &State<'u>, id: Id) -> Option<String> {
        let package = self.universe.get(id);
        let show = |id: Id| {
            let package = self.universe.get(id);
            format!("{} {}", package.name, package.version)
        };
        if let Some((other, _)) = state.selected.get(package.name) {
            return (*other != id).then(|| format!("{} is selected already", show(*other)));
        }
        let names = std::iter::once(package.name).chain(package.provides().map(|(name, _)| name));
        for name in names {
            for (relation, owner) in state.against.get(name).into_iter().flatten() {
                if self.universe.satisfies(id, relation) {
                    return Some(format!("{} does not go with {relation}", show(*owner)));
                }
            }
        }
        let Ok(against) = package.against() else {
            return Some("its Conflicts or Breaks cannot be read".into());
        };
        for relation in against.iter().flatten() {
            if let Some(other) = self.selected_match(state, relation).filter(|other| *other != id) {
                return Some(format!(
                    "it does not go with {relation}, and {} is selected",
                    show(other)
                ));
            }
        }
        None
    }

    fn selected_match(&self, state: &State<'u>, relation: &Relation<'_>) -> Option<Id> {
        let mut candidates = self.universe.candidates(relation).into_iter();
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
        state.selected.insert(package.name, (id, reason));
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
            let Some((_, reason)) = state.selected.get(self.universe.get(id).name) else {
                break;
            };
            lines.push(self.needs(reason.owner, &reason.group));
            owner = reason.owner;
        }
        lines.reverse();
        for relation in &open.clause.group {
            lines.extend(self.explain_relation(state, relation));
        }
        Contradiction(lines)
    }

    fn needs(&self, owner: Option<Id>, group: &[Relation<'_>]) -> String {
        match owner {
            None => format!("the recipe asks for {}", show_group(group)),
            Some(id) => format!("{} needs {}", self.universe.get(id).name, show_group(group)),
        }
    }

    fn explain_relation(&self, state: &State<'u>, relation: &Relation<'_>) -> Vec<String> {
        let candidates = self.universe.candidates(relation);
        if candidates.is_empty() {
            let offered = self.universe.versions(relation.name);
            let offered: Vec<_> = offered.iter().map(|id| self.universe.get(*id).version).collect();
            return vec![match offered.is_empty() {
                true => format!("  no repository of the recipe has {}", relation.name),
                false => format!("  of {} there is only {}", relation.name, offered.join(", ")),
            }];
        }
        let reasons = candidates.into_iter().filter_map(|id| {
            let package = self.universe.get(id);
            let reason = match self.excluded.contains(package.name) {
                true => format!("the recipe leaves it out (-{})", package.name),
                false => self.obstacle(state, id)?,
            };
            Some(format!("  {} {}: {reason}", package.name, package.version))
        });
        reasons.collect()
    }
}

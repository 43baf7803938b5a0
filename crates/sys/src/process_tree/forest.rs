//! Many jobs' trees at once, for the price of one look at `/proc` a round, whatever their number.

use super::procfs::{environment_entry, processes};
use super::{Process, ProcessId, ROUNDS_MAX, Tree, session_is_still_the_roots, signal_process};
use crate::signals::Signal;
use rustix::process::getpid;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Instant;

/// The trees of many jobs, and everybody who was found in them.
#[derive(Debug)]
pub struct Forest {
    trees: Vec<Tree>,
    /// Of each tree, in the same order.
    seen: Vec<BTreeSet<ProcessId>>,
}

impl Forest {
    /// These trees.
    pub fn new(trees: Vec<Tree>) -> Self {
        let seen = vec![BTreeSet::new(); trees.len()];
        Self { trees, seen }
    }

    /// Everybody who was ever found in each tree, in their order.
    pub fn seen(&self) -> &[BTreeSet<ProcessId>] {
        &self.seen
    }

    /// The living processes of each tree, in their order, as [`find_tree`](super::find_tree) finds them.
    ///
    /// # Errors
    /// What reading the directory `/proc` gives.
    pub fn find(&mut self) -> io::Result<Vec<Vec<Process>>> {
        let table = Table::read(&self.trees)?;
        let found: Vec<Vec<Process>> = self
            .trees
            .iter()
            .zip(&self.seen)
            .enumerate()
            .map(|(index, (tree, seen))| table.members(index, tree, seen))
            .collect();
        for (seen, found) in self.seen.iter_mut().zip(&found) {
            seen.extend(found.iter().map(|process| process.id));
        }
        Ok(found)
    }

    /// Sends `signal` to everybody in all trees, as [`kill_tree`](super::kill_tree) does to one, and to those
    /// that they start meanwhile; until `deadline` at most, whoever goes on starting some.
    ///
    /// # Errors
    /// What reading the directory `/proc` gives; some may have been signalled by then.
    pub fn kill(&mut self, signal: Signal, deadline: Instant) -> io::Result<()> {
        let mut told = BTreeSet::new();
        if signal == Signal::KILL {
            for group in self.trees.iter().filter_map(Tree::group) {
                // Where the kernel is too old for it, each is found and killed as anywhere else.
                let _ = group.kill();
            }
            // A parent that died first would leave behind children that nothing ties to it.
            let mut frozen = BTreeSet::new();
            self.sweep(Signal::STOP, &mut frozen, deadline)?;
            for id in frozen {
                told.insert(id);
                let _ = signal_process(id, Signal::KILL);
            }
        }
        self.sweep(signal, &mut told, deadline)
    }

    fn sweep(
        &mut self,
        signal: Signal,
        told: &mut BTreeSet<ProcessId>,
        deadline: Instant,
    ) -> io::Result<()> {
        for _ in 0..ROUNDS_MAX {
            let mut found_new = false;
            for process in self.find()?.into_iter().flatten() {
                if told.insert(process.id) {
                    found_new = true;
                    // Who can't be signalled is found again by whoever counts what is left.
                    let _ = signal_process(process.id, signal);
                }
            }
            if !found_new || Instant::now() >= deadline {
                break;
            }
        }
        Ok(())
    }
}

/// One look at all processes.
struct Table {
    /// Those that live, without our own.
    processes: Vec<Process>,
    by_pid: BTreeMap<i32, usize>,
    by_session: BTreeMap<i32, Vec<usize>>,
    by_parent: BTreeMap<i32, Vec<usize>>,
    /// Those that carry the mark of the tree of this number.
    by_tree: BTreeMap<usize, Vec<usize>>,
    /// All of them, dead ones too: who shows that a session is the one it was.
    all: BTreeMap<i32, Vec<Process>>,
}

impl Table {
    fn read(trees: &[Tree]) -> io::Result<Self> {
        let everybody = processes()?;
        let own = getpid().as_raw_pid();
        let mut table = Self {
            processes: Vec::new(),
            by_pid: BTreeMap::new(),
            by_session: BTreeMap::new(),
            by_parent: BTreeMap::new(),
            by_tree: BTreeMap::new(),
            all: BTreeMap::new(),
        };
        let marks: BTreeMap<&[u8], usize> =
            trees.iter().enumerate().map(|(index, tree)| (tree.mark(), index)).collect();
        // Nothing older than a root is of its tree: this spares reading most environments.
        let oldest = trees.iter().map(|tree| tree.root().started_ticks).min().unwrap_or(0);
        for process in everybody {
            table.all.entry(process.session).or_default().push(process);
            let may_be = process.id.start_ticks >= oldest && process.id.pid != own;
            if !process.is_alive() || !may_be {
                continue;
            }
            let index = table.processes.len();
            let is_mark = |entry: &[u8]| !entry.is_empty() && marks.contains_key(entry);
            let mark = environment_entry(process.id.pid, is_mark);
            if let Some(tree) = mark.and_then(|mark| marks.get(mark.as_slice())) {
                table.by_tree.entry(*tree).or_default().push(index);
            }
            table.by_pid.insert(process.id.pid, index);
            table.by_session.entry(process.session).or_default().push(index);
            table.by_parent.entry(process.parent).or_default().push(index);
            table.processes.push(process);
        }
        Ok(table)
    }

    fn members(&self, index: usize, tree: &Tree, known: &BTreeSet<ProcessId>) -> Vec<Process> {
        let root = tree.root();
        let in_session = self.all.get(&root.pid).map_or(&[][..], Vec::as_slice);
        let mut open: Vec<usize> = self.by_tree.get(&index).cloned().unwrap_or_default();
        if session_is_still_the_roots(root, in_session) {
            open.extend(self.by_session.get(&root.pid).into_iter().flatten());
        }
        if root.reaped_ticks.is_none() {
            open.extend(self.by_pid.get(&root.pid));
        }
        // A cgroup that can't be read is found as anything else is.
        let grouped = tree.group().and_then(|group| group.processes().ok()).unwrap_or_default();
        let named = known.iter().chain(&grouped).filter_map(|id| {
            let index = *self.by_pid.get(&id.pid)?;
            self.processes.get(index).filter(|process| process.id == *id).map(|_| index)
        });
        open.extend(named);
        let mut taken = BTreeSet::new();
        let mut members = Vec::new();
        while let Some(index) = open.pop() {
            let Some(process) = self.processes.get(index) else { continue };
            if process.id.start_ticks >= root.started_ticks && taken.insert(index) {
                members.push(*process);
                open.extend(self.by_parent.get(&process.id.pid).into_iter().flatten());
            }
        }
        members
    }
}

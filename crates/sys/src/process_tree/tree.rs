//! All that a job has started, by its cgroup where it has one, and by what `/proc` tells.

use super::{KillReport, Process, ProcessId, Sweep, TreeRoot, find_with, kill_found};
use crate::cgroup::Group;
use crate::signals::Signal;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// A job's processes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tree {
    root: TreeRoot,
    /// A whole entry of the environment that nothing but this job's processes has.
    mark: Arc<[u8]>,
    group: Option<Arc<Group>>,
}

impl Tree {
    /// The tree of a job; see [`find_tree`](super::find_tree) about the mark.
    pub fn new(root: TreeRoot, mark: &[u8], group: Option<Arc<Group>>) -> Self {
        Self { root, mark: mark.into(), group }
    }

    /// Where the search begins.
    pub fn root(&self) -> &TreeRoot {
        &self.root
    }

    /// The mark.
    pub fn mark(&self) -> &[u8] {
        &self.mark
    }

    /// The cgroup, if the job has one.
    pub fn group(&self) -> Option<&Arc<Group>> {
        self.group.as_ref()
    }

    /// The job's process was reaped: `root` is what
    /// [`Child::tree_root`](crate::child::Child::tree_root) gives now.
    pub fn reaped(&mut self, root: TreeRoot) {
        self.root = root;
    }

    /// Whether a living process of it is left; `true` if it can't be told.
    pub fn is_left(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.is_populated())
            || self.find().map_or(true, |found| !found.is_empty())
    }

    /// As [`find_tree`](super::find_tree).
    ///
    /// # Errors
    /// What reading the directory `/proc` gives.
    pub fn find(&self) -> io::Result<Vec<Process>> {
        self.find_with(&BTreeSet::new())
    }

    /// As [`kill_tree`](super::kill_tree). SIGKILL reaches all of a cgroup at once, whatever its
    /// processes do to hide.
    ///
    /// # Errors
    /// What reading the directory `/proc` gives; some processes may have been signalled by then.
    pub fn kill(&self, signal: Signal) -> io::Result<KillReport> {
        if signal == Signal::KILL
            && let Some(group) = &self.group
        {
            // Where the kernel is too old for it, each is found and killed as anywhere else.
            let _ = group.kill();
        }
        let find = |known: &BTreeSet<ProcessId>| self.find_with(known);
        kill_found(Sweep::new(&find), signal)
    }

    fn find_with(&self, known: &BTreeSet<ProcessId>) -> io::Result<Vec<Process>> {
        let Some(group) = &self.group else { return find_with(&self.root, &self.mark, known) };
        let mut members = known.clone();
        members.extend(group.processes()?);
        find_with(&self.root, &self.mark, &members)
    }
}

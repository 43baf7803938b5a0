//! What a job is held in by: a cgroup of its own where one was delegated to us, else the kernel's limits
//! of single processes, which are something else and are said to be.

use std::cell::Cell;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use afar_proto::limits::MESSAGE_BYTES_MAX;
use afar_sys::cgroup::{Controller, Delegation, Group, GroupLimits, Slice};
use afar_sys::process_tree::threads_of_user;
use afar_sys::spawn::{CAN_CONFINE, Confinement, Limit};
use afar_sys::users::User;

use crate::log::Log;

/// So many groups are made until those are looked for again that a job's leftovers have outlived.
const SWEEP_INTERVAL: u32 = 64;

/// Where to read more.
const SEE: &str = "see docs/operations.md";

/// What a request wants its job held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) memory_bytes: Option<u64>,
    /// Thousandths of a processor.
    pub(super) cpu_milli: Option<u64>,
    pub(super) pids_max: Option<u64>,
}

/// The part of the cgroup hierarchy that this supervisor makes its jobs' groups in, if there is one.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    slice: Option<Slice>,
    made: Cell<u32>,
}

/// What one job is held in by.
#[derive(Debug, Default)]
pub(super) struct Confined {
    group: Option<Arc<Group>>,
    limits: Vec<(Limit, u64)>,
    /// What its user has to know: which limits are not what they seem.
    note: Option<String>,
}

impl Cgroups {
    /// Takes what was delegated to this process, which moves to the supervisor's place in it.
    pub(super) fn take(user: &User, log: Log) -> Self {
        let slice = Slice::current()
            .map(Ok)
            .or_else(|| Some(Delegation::find()?.slice(user.uid, user.gid)));
        let entered = slice.map(|slice| {
            let mut slice = slice?;
            slice.enter()?;
            slice.take();
            Ok::<_, std::io::Error>(slice)
        });
        let slice = entered.transpose().unwrap_or_else(|error| {
            log.info(&format!("a cgroup was delegated, but can't be used: {error}"));
            None
        });
        Self { slice, made: Cell::new(0) }
    }

    /// What holds the next job in. `name` is this job's alone.
    pub(super) fn confine(&self, name: &str, limits: Limits, user: &User, log: Log) -> Confined {
        let mut confined = Confined::default();
        let mut rest = limits;
        if let Some(slice) = self.slice.as_ref().filter(|_| CAN_CONFINE) {
            let held = held_by(slice, limits);
            match slice.group(name, &held) {
                Ok(group) => {
                    confined.group = Some(Arc::new(group));
                    rest = without(limits, &held);
                }
                Err(error) => log.error(&format!("no cgroup for a job: {error}")),
            }
            self.sweep_now_and_then(slice);
        }
        confined.limit_processes(rest, user);
        confined
    }

    /// The group of a job that is there already.
    pub(super) fn existing(&self, name: &str) -> Option<Arc<Group>> {
        self.slice.as_ref()?.existing_group(name).map(Arc::new)
    }

    fn sweep_now_and_then(&self, slice: &Slice) {
        self.made.set(self.made.get().wrapping_add(1));
        if self.made.get().is_multiple_of(SWEEP_INTERVAL) {
            slice.sweep();
        }
    }
}

/// Those of the limits that a group of this slice can be held to.
fn held_by(slice: &Slice, limits: Limits) -> GroupLimits {
    let has = |controller: Controller| move |_: &u64| slice.has(controller);
    GroupLimits {
        memory_bytes: limits.memory_bytes.filter(has(Controller::Memory)),
        cpu_milli: limits.cpu_milli.filter(has(Controller::Cpu)),
        pids_max: limits.pids_max.filter(has(Controller::Pids)),
    }
}

/// Those that are left when a group is held to some.
fn without(limits: Limits, held: &GroupLimits) -> Limits {
    let left = |wanted: Option<u64>, held: Option<u64>| wanted.filter(|_| held.is_none());
    Limits {
        memory_bytes: left(limits.memory_bytes, held.memory_bytes),
        cpu_milli: left(limits.cpu_milli, held.cpu_milli),
        pids_max: left(limits.pids_max, held.pids_max),
    }
}

impl Confined {
    /// What no cgroup holds a job to is a limit of single processes, if there is one at all.
    fn limit_processes(&mut self, limits: Limits, user: &User) {
        let mut notes = Vec::new();
        if let Some(bytes) = limits.memory_bytes {
            if CAN_CONFINE {
                self.limits.push((Limit::Data, bytes));
                notes.push(
                    "the memory limit holds for each process by itself, not for all together",
                );
            } else {
                notes.push("the memory limit has no effect");
            }
        }
        if let Some(count) = limits.pids_max {
            // The kernel counts all processes of the user there, and so do we.
            match threads_of_user(user.uid) {
                Ok(now) if CAN_CONFINE && user.uid != 0 => {
                    self.limits.push((Limit::Processes, now.saturating_add(count)));
                    notes.push("the limit of processes counts all that you have here from now on");
                }
                _ => notes.push("the limit of processes has no effect"),
            }
        }
        if limits.cpu_milli.is_some() {
            notes.push("the limit of processor time has no effect");
        }
        if !notes.is_empty() {
            let note = format!(
                "{}: afar has no cgroup with that controller here ({SEE})",
                notes.join("; ")
            );
            debug_assert!(note.len() <= MESSAGE_BYTES_MAX);
            self.note = Some(note);
        }
    }

    /// What the process is to be started with; `None` if nothing holds it in.
    pub(super) fn confinement(&self) -> Option<Confinement<'_>> {
        let cgroup = self.group.as_ref().map(|group| group.as_fd());
        (cgroup.is_some() || !self.limits.is_empty())
            .then_some(Confinement { cgroup, limits: &self.limits })
    }

    /// The cgroup, to find the job's processes by.
    pub(super) fn group(&self) -> Option<Arc<Group>> {
        self.group.clone()
    }

    /// What the user has to know, once.
    pub(super) fn take_note(&mut self) -> Option<String> {
        self.note.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> User {
        User {
            name: "ann".into(),
            uid,
            gid: uid,
            home: "/".into(),
            shell: "".into(),
            gecos: "".into(),
        }
    }

    fn confined(limits: Limits, uid: u32) -> Confined {
        Cgroups::default().confine("j", limits, &user(uid), Log::default())
    }

    #[test]
    fn a_job_without_limits_and_without_a_cgroup_is_started_as_any_process() {
        let mut free = confined(Limits::default(), 4_000_000);
        assert!(free.confinement().is_none() && free.group().is_none());
        assert_eq!(free.take_note(), None);
    }

    #[test]
    fn without_a_cgroup_limits_are_those_of_processes_and_it_is_said_what_that_means() {
        let memory = Limits { memory_bytes: Some(512 << 20), ..Limits::default() };
        let mut held = confined(memory, 4_000_000);
        assert_eq!(held.confinement().unwrap().limits, [(Limit::Data, 512 << 20)]);
        let note = held.take_note().unwrap();
        assert!(
            note.contains("each process by itself") && note.contains("operations.md"),
            "{note}"
        );

        // Nobody of that uid is there: what is left is what was asked for.
        let pids = Limits { pids_max: Some(50), ..Limits::default() };
        let mut held = confined(pids, 4_000_000);
        assert_eq!(held.confinement().unwrap().limits, [(Limit::Processes, 50)]);
        assert!(held.take_note().unwrap().contains("counts all that you have"));
        // The kernel does not hold root to it.
        let mut free = confined(pids, 0);
        assert!(free.confinement().is_none());
        assert!(free.take_note().unwrap().contains("processes has no effect"));

        let cpu = Limits { cpu_milli: Some(1500), ..Limits::default() };
        let mut free = confined(cpu, 4_000_000);
        assert!(free.confinement().is_none());
        assert!(free.take_note().unwrap().contains("processor time has no effect"));
    }

    #[test]
    fn all_notes_together_are_one_line_of_a_messages_length() {
        let all = Limits { memory_bytes: Some(1), cpu_milli: Some(1), pids_max: Some(1) };
        let note = confined(all, 4_000_000).take_note().unwrap();
        assert!(note.len() <= MESSAGE_BYTES_MAX && !note.contains('\n'), "{note}");
    }

    #[test]
    fn what_a_cgroup_holds_is_not_held_a_second_time() {
        let wanted = Limits { memory_bytes: Some(1), cpu_milli: Some(2), pids_max: Some(3) };
        let held = GroupLimits { memory_bytes: Some(1), cpu_milli: None, pids_max: Some(3) };
        let rest = Limits { memory_bytes: None, cpu_milli: Some(2), pids_max: None };
        assert_eq!(without(wanted, &held), rest);
    }
}

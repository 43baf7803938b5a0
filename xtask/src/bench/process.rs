//! Processes as /proc shows them: who descends from whom, and how much processor time they took.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

/// The unit of times in /proc/PID/stat. The kernel's ABI fixes it, whatever its own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// How long the processes of a connection may take to end after its client has.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// How long servers may take to end after they were asked to.
const GRACE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(2);

/// One line of /proc/PID/stat.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stat {
    parent: u32,
    /// Its own time and that of the children it has waited for.
    seconds: f64,
    waited_for_seconds: f64,
    zombie: bool,
}

/// All processes at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    processes: BTreeMap<u32, Stat>,
}

impl Snapshot {
    pub(super) fn take() -> Self {
        let mut processes = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid else { continue };
            // A process that ends between the listing and the reading is simply not there.
            let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            if let Some(stat) = parse_stat(&text) {
                processes.insert(pid, stat);
            }
        }
        Self { processes }
    }

    fn children(&self, of: u32) -> impl Iterator<Item = u32> + '_ {
        self.processes.iter().filter(move |(_, stat)| stat.parent == of).map(|(pid, _)| *pid)
    }

    /// `root` with all that descends from it, as far as it is there.
    pub(super) fn tree(&self, root: u32) -> BTreeSet<u32> {
        let mut tree = BTreeSet::new();
        let mut todo = vec![root];
        while let Some(pid) = todo.pop() {
            if self.processes.contains_key(&pid) && tree.insert(pid) {
                todo.extend(self.children(pid));
            }
        }
        tree
    }

    /// The trees below us but for those whose roots are `others`.
    pub(super) fn ours_without(&self, others: &[u32]) -> BTreeSet<u32> {
        let own = std::process::id();
        let roots = self.children(own).filter(|pid| !others.contains(pid));
        roots.flat_map(|root| self.tree(root)).collect()
    }

    /// Seconds of processor time that these took, with their children that are gone.
    fn seconds(&self, pids: &BTreeSet<u32>) -> f64 {
        let stats = pids.iter().filter_map(|pid| self.processes.get(pid));
        stats.map(|stat| stat.seconds + stat.waited_for_seconds).sum()
    }

    fn running(&self, pids: &BTreeSet<u32>) -> usize {
        pids.iter().filter(|pid| self.processes.get(pid).is_some_and(|stat| !stat.zombie)).count()
    }
}

/// Seconds of processor time of all children that this process has waited for.
pub(super) fn waited_for_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    parse_stat(&text).map_or(0.0, |stat| stat.waited_for_seconds)
}

/// The processor time of a server, read once the processes of the last connection have ended, so
/// that all they took is in.
pub(super) fn settled_seconds(
    running_when_idle: usize,
    pids: impl Fn(&Snapshot) -> BTreeSet<u32>,
) -> f64 {
    let deadline = Instant::now() + SETTLE_MAX;
    let mut before = BTreeSet::new();
    loop {
        let snapshot = Snapshot::take();
        let of_server = pids(&snapshot);
        // A process that is waited for while /proc is read can be missing in its own place and in
        // its parent's account: only what two looks agree on is whole.
        let settled = snapshot.running(&of_server) <= running_when_idle && of_server == before;
        if settled || Instant::now() > deadline {
            return snapshot.seconds(&of_server);
        }
        before = of_server;
        std::thread::sleep(POLL);
    }
}

/// How many processes of a server run now.
pub(super) fn running(pids: impl Fn(&Snapshot) -> BTreeSet<u32>) -> usize {
    let snapshot = Snapshot::take();
    snapshot.running(&pids(&snapshot))
}

/// Makes orphans of our descendants our children, so that a server that puts itself into the
/// background is still found, measured and ended.
pub(super) fn adopt_orphans() -> std::io::Result<()> {
    rustix::process::set_child_subreaper(Pid::from_raw(1))?;
    Ok(())
}

/// Ends everything that descends from us: first asked, then killed, each by its pid.
pub(super) fn end_all() {
    signal_all(Signal::TERM);
    if !reap_until(Instant::now() + GRACE) {
        signal_all(Signal::KILL);
        reap_until(Instant::now() + SETTLE_MAX);
    }
}

fn signal_all(signal: Signal) {
    for pid in Snapshot::take().ours_without(&[]) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // It may have ended in the meantime.
            let _ = kill_process(pid, signal);
        }
    }
}

/// Waits for children until none is left (true) or the deadline has passed.
fn reap_until(deadline: Instant) -> bool {
    while Instant::now() < deadline {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => std::thread::sleep(POLL),
            Err(_) => return true,
        }
    }
    false
}

/// Reads the fields of proc_pid_stat(5). The name in parentheses may hold anything, so that the
/// fields are counted from the last parenthesis.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    // The state is field 3.
    let field = |number: usize| fields.get(number - 3);
    let seconds = |number| Some(field(number)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(Stat {
        zombie: *field(3)? == "Z",
        parent: field(4)?.parse().ok()?,
        seconds: seconds(14)? + seconds(15)?,
        waited_for_seconds: seconds(16)? + seconds(17)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_an_odd_name_is_read() {
        let text = "7 (a) Z 9 ) S 5 7 7 0 -1 4194560 1 2 3 4 150 50 300 100 20 0 1 0";
        let stat = parse_stat(text).unwrap();
        let expected = Stat { parent: 5, seconds: 2.0, waited_for_seconds: 4.0, zombie: false };
        assert_eq!(stat, expected);
    }

    #[test]
    fn we_are_in_our_own_tree() {
        let own = std::process::id();
        assert!(Snapshot::take().tree(own).contains(&own));
    }
}

//! Tests of what is delegated, in a part of the real hierarchy where one can be made, and of how the
//! kernel's files are read.

use super::*;
use crate::process_tree::Tree;
use crate::rig::{Cgroup, Options, Running, alone};
use crate::signals::Signal;
use crate::spawn::Confinement;
use rustix::process::getegid;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

#[test]
fn our_place_in_the_hierarchy_is_found_wherever_it_is_mounted() {
    let mounts = b"25 1 0:21 / /sys rw - sysfs sysfs rw\n\
        31 25 0:27 / /sys/fs/cgroup rw,nosuid shared:9 master:1 - cgroup2 cgroup2 rw,nsdelegate\n";
    let of = |cgroups: &str, mounts: &[u8]| locate(cgroups.as_bytes(), mounts);
    let found = of("1:name=systemd:/x\n0::/user.slice/a b\n", mounts);
    assert_eq!(found.as_deref(), Some(Path::new("/sys/fs/cgroup/user.slice/a b")));
    assert_eq!(of("0::/\n", mounts).as_deref(), Some(Path::new("/sys/fs/cgroup")));
    assert_eq!(of("1:name=systemd:/x\n", mounts), None);
    let part = b"31 25 0:27 /user.slice /mnt/a\\040b\\134 rw - cgroup2 none rw\n";
    assert_eq!(of("0::/user.slice/c\n", part).as_deref(), Some(Path::new("/mnt/a b\\/c")));
    assert_eq!(of("0::/system.slice/c\n", part), None);
    for damaged in [&b""[..], b"\n\n", b"31 25", b"31 25 0:27 - cgroup2", b" - cgroup2 ", b" - "] {
        assert_eq!(of("0::/\n", damaged), None);
    }
}

#[test]
fn what_nobody_has_delegated_is_left_alone() {
    let Some(cgroup) = Cgroup::new() else { return };
    let inner = cgroup.path.join("inner");
    std::fs::create_dir(&inner).unwrap();
    assert!(Delegation::of(&inner).is_none());
    assert!(Delegation::of(Path::new("/nonexistent")).is_none());
    assert!(!Delegation::of(&cgroup.path).unwrap().passes_on);
    let listener = cgroup.path.join(LISTENER);
    std::fs::create_dir(&listener).unwrap();
    assert!(Delegation::of(&listener).unwrap().passes_on);
}

#[test]
fn a_slice_is_its_users_and_found_from_within() {
    let Some(cgroup) = Cgroup::new() else { return };
    let delegation = Delegation::of(&cgroup.path).unwrap();
    if effective_uid() == 0 {
        delegation.slice(4_000_000, 4_000_001).unwrap();
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "supervisor/cgroup.procs"] {
            let of = std::fs::metadata(cgroup.path.join("afar-4000000").join(name)).unwrap();
            assert_eq!((of.uid(), of.gid()), (4_000_000, 4_000_001), "{name}");
        }
        // What limits it stays its parent's.
        let freeze = std::fs::metadata(cgroup.path.join("afar-4000000/cgroup.freeze")).unwrap();
        assert_eq!(freeze.uid(), 0);
        // Another user's is none of ours, and neither is one that only looks like it.
        assert!(Slice::of(&cgroup.path.join("afar-4000000/supervisor")).is_none());
    }
    let uid = effective_uid();
    let slice = delegation.slice(uid, getegid().as_raw()).unwrap();
    let job = slice.group("j", &GroupLimits::default()).unwrap();
    let place = cgroup.path.join(slice_name(uid));
    assert!(Slice::of(&place.join(SUPERVISOR)).is_some());
    assert!(Slice::of(&place.join("job-j/deeper")).is_some());
    assert!(Slice::of(&cgroup.path).is_none());
    drop(job);
    assert!(!place.join("job-j").exists());
}

#[test]
fn whoever_enters_takes_the_controllers_and_clears_what_is_left() {
    if !alone("cgroup::tests::whoever_enters_takes_the_controllers_and_clears_what_is_left") {
        return;
    }
    let Some(cgroup) = Cgroup::new() else { return };
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let before = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    let delegation = Delegation::of(&cgroup.path).unwrap();
    let mut slice = delegation.slice(effective_uid(), getegid().as_raw()).unwrap();
    let place = cgroup.path.join(slice_name(effective_uid()));
    std::fs::create_dir(place.join("job-left-by-another")).unwrap();
    slice.enter().unwrap();
    let now = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(now.contains(&format!("/{}/{SUPERVISOR}\n", slice_name(effective_uid()))), "{now}");
    assert!(Slice::current().is_some());
    slice.take();
    assert!(!place.join("job-left-by-another").exists());
    assert!(place.join(SUPERVISOR).exists());
    // Those that the kernel has for this hierarchy are there, and no other.
    let available = std::fs::read_to_string(place.join("cgroup.controllers")).unwrap();
    for controller in Controller::ALL {
        let has = available.split_whitespace().any(|word| word == controller.name());
        assert_eq!(slice.has(controller), has, "{controller:?}");
    }
    let root = cgroup.path.parent().unwrap().join(before.trim_start_matches('/'));
    std::fs::write(root.join("cgroup.procs"), "0").unwrap();
}

/// Files that look like those of a cgroup with every controller, which not every machine has.
fn imitation(files: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("job-x")).unwrap();
    for file in files {
        std::fs::write(directory.path().join("job-x").join(file), "").unwrap();
    }
    directory
}

#[test]
fn limits_are_written_and_one_that_can_not_be_is_an_error() {
    let all = ["memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "pids.max"];
    let directory = imitation(&all);
    let parent = open_directory(CWD, directory.path()).unwrap();
    let limits =
        GroupLimits { memory_bytes: Some(512 << 20), cpu_milli: Some(1500), pids_max: Some(7) };
    let group = Group::new(&parent, "x", &limits).unwrap();
    let written =
        all.map(|file| std::fs::read_to_string(directory.path().join("job-x").join(file)).unwrap());
    assert_eq!(written, ["536870912", "0", "1", "150000 100000", "7"]);
    assert_eq!(group.ended_for_memory(), None);
    std::fs::write(directory.path().join("job-x/memory.events"), "oom 1\noom_kill 1\n").unwrap();
    assert_eq!(group.ended_for_memory(), Some(1));
    drop(group);
    // A machine without swap has no limit of it; one without the controller has none at all.
    let directory = imitation(&["memory.max", "memory.oom.group"]);
    let parent = open_directory(CWD, directory.path()).unwrap();
    let memory = GroupLimits { cpu_milli: None, pids_max: None, ..limits };
    Group::new(&parent, "x", &memory).unwrap();
    Group::new(&parent, "x", &GroupLimits { cpu_milli: Some(1), ..GroupLimits::default() })
        .unwrap_err();
    assert!(!directory.path().join("job-x/cpu.max").exists());
}

#[test]
fn fault_35_whoever_has_left_session_mark_and_parent_is_ended_by_its_cgroup() {
    let Some(cgroup) = Cgroup::new() else { return };
    let delegation = Delegation::of(&cgroup.path).unwrap();
    let slice = delegation.slice(effective_uid(), getegid().as_raw()).unwrap();
    let group = Arc::new(slice.group("j", &GroupLimits::default()).unwrap());
    let confinement = Some(Confinement { cgroup: Some(group.as_fd()), limits: &[] });
    let options = Options { confinement, ..Options::default() };
    let script = "(env -i setsid sh -c 'trap \"\" TERM; echo hidden; sleep 300 & wait' &); exit 0";
    let mut running =
        Running::with("/bin/sh", &["sh", "-c", script], &["PATH=/bin:/usr/bin"], options).unwrap();
    assert_eq!(running.line(), "hidden");
    running.wait();
    // By what /proc tells, nothing ties them to the job.
    assert_eq!(running.tree(), [0; 0]);
    let tree =
        Tree::new(running.child.tree_root(), running.mark.as_bytes(), Some(Arc::clone(&group)));
    assert!(tree.is_left());
    assert!(!tree.find().unwrap().is_empty());
    assert!(!group.remove());
    assert!(tree.kill(Signal::KILL).unwrap().settled);
    running.rest_of_stdout();
    while group.is_populated() {
        std::thread::yield_now();
    }
    assert!(!tree.is_left());
    assert!(group.remove());
}

#[test]
fn cgroups_that_a_job_has_made_are_removed_with_its_own() {
    let Some(cgroup) = Cgroup::new() else { return };
    let delegation = Delegation::of(&cgroup.path).unwrap();
    let slice = delegation.slice(effective_uid(), getegid().as_raw()).unwrap();
    let group = slice.group("deep", &GroupLimits::default()).unwrap();
    let place = cgroup.path.join(slice_name(effective_uid())).join("job-deep");
    std::fs::create_dir_all(place.join("a/b")).unwrap();
    std::fs::create_dir(place.join("c")).unwrap();
    assert!(group.remove());
    assert!(!place.exists());
}

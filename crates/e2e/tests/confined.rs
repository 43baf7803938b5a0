//! What holds jobs in: cgroups where they are delegated, limits of processes elsewhere.

use afar_e2e::{Account, Cgroup, Home, Host, can_make_accounts};
use rustix::process::geteuid;

fn host_in(cgroup: &Cgroup) -> Host {
    let starter = cgroup.starter();
    Host::builder().serve_through(&starter.each_ref().map(String::as_str)).start()
}

/// Leaves session, mark and parent behind, and ignores TERM; says so once it has.
const HIDDEN: &str =
    "(env -i setsid sh -c 'trap \"\" TERM; echo hidden; while :; do sleep 300; done' &)";

#[test]
fn fault_35_whoever_hides_from_its_job_ends_with_it_where_there_is_a_cgroup() {
    let Some(cgroup) = Cgroup::new() else { return };
    let host = host_in(&cgroup);
    let script = format!("{HIDDEN}; sleep 300");
    let options = ["--timeout", "1s", "--kill-after", "300ms", "-c", &script];
    let output = host.run(options).output();
    assert_eq!(output.expect_code(124).text(), "hidden\n");
    // Nothing of /proc would have found it.
    host.wait_until_idle();
    let uid = geteuid().as_raw();
    host.run(["--", "true"]).output().success();
    assert!(cgroup.jobs(uid).is_empty(), "{:?}", cgroup.jobs(uid));
    let supervisor = host.supervisor().unwrap().pid();
    assert!(cgroup.supervisors(uid).contains(&supervisor));
}

#[test]
fn a_normal_exit_leaves_a_cgroup_with_whoever_was_left_behind() {
    let Some(cgroup) = Cgroup::new() else { return };
    let host = host_in(&cgroup);
    let script = "setsid sleep 300 </dev/null >/dev/null 2>&1 & cat /proc/self/cgroup";
    let output = host.script(script).output();
    let places = output.success().text();
    let place = places.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    let uid = geteuid().as_raw();
    let left = cgroup.jobs(uid);
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(place.ends_with(left[0].file_name().unwrap().to_str().unwrap()), "{place}");
    let jobs = host.jobs();
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    afar_e2e::Process::open(jobs[0].pid).unwrap().kill();
}

#[test]
fn jobs_of_another_account_are_in_that_accounts_slice() {
    if !can_make_accounts() {
        return;
    }
    let Some(cgroup) = Cgroup::new() else { return };
    let account = Account::new();
    let starter = cgroup.starter();
    let starter = starter.each_ref().map(String::as_str);
    let host = Host::builder().serve_accounts().serve_through(&starter).start();
    account.authorize(&Home::public_line(&host.key()));
    let words = ["-c", "cat /proc/self/cgroup"];
    let output = host.run_at(&host.target_of(&account), words).output();
    let places = output.success().text();
    let slice = format!("/afar-{}/job-", account.uid());
    assert!(places.contains(&slice), "{places}");
    assert_eq!(cgroup.supervisors(account.uid()).len(), 2, "the supervisor and its guardian");
}

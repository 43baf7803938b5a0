//! Two accounts of one server: neither can see, reach or touch what is the other's, and root's listener
//! can't be led from one to the other.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use afar_e2e::{Account, Home, Host, Output, Process, afar, can_make_accounts};
use rustix::process::Signal;

const SOCKETS: &str = "/run/afar";

fn socket_of(account: &Account) -> PathBuf {
    Path::new(SOCKETS).join(account.uid().to_string()).join("supervisor.sock")
}

fn two(host: &Host) -> [Account; 2] {
    let accounts = [Account::new(), Account::new()];
    accounts.iter().for_each(|account| account.authorize(&Home::public_line(&host.key())));
    accounts
}

fn script(host: &Host, account: &Account, script: &str) -> Output {
    host.run_at(&host.target_of(account), ["-c", script]).output()
}

/// W-4.16: the directories are root's, the socket is its account's, and everything else is nobody's.
#[test]
fn what_belongs_to_an_account_is_closed_to_the_other() {
    if !can_make_accounts() {
        return;
    }
    let host = Host::builder().serve_accounts().start();
    let [ann, bob] = two(&host);
    // A job of hers that goes on, and knows a secret.
    let script_of_ann = format!(
        "mkfifo {0}; chmod 600 {0}; echo $$ $PPID; read line < {0}",
        ann.home().join("end").display()
    );
    let mut job =
        host.run_at(&host.target_of(&ann), ["-e", "SECRET=hers", "-c", &script_of_ann]).spawn();
    let pids = job.line().unwrap();
    let (job_pid, supervisor_pid) = pids.split_once(' ').unwrap();

    for (path, uid, mode) in [
        (Path::new(SOCKETS).to_owned(), 0, 0o711),
        (socket_of(&ann).parent().unwrap().to_owned(), 0, 0o711),
        (socket_of(&ann), ann.uid(), 0o600),
        (socket_of(&ann).with_file_name("supervisor.lock"), 0, 0o600),
        (ann.home().join(".local/state/afar"), ann.uid(), 0o700),
        (ann.home().join(".local/state/afar/supervisor.log"), ann.uid(), 0o600),
    ] {
        let found = fs::symlink_metadata(&path).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (uid, mode), "{}", path.display());
    }

    // What he may try: each ends with a refusal of the kernel, and is told apart from a typing error
    // by being possible for her.
    let directory = socket_of(&ann).parent().unwrap().display().to_string();
    let socket = socket_of(&ann).display().to_string();
    let connect = format!(
        "python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' {socket}"
    );
    for (what, hers) in [
        (connect.as_str(), true),
        (&*format!("kill -0 {job_pid}"), true),
        (&*format!("kill -0 {supervisor_pid}"), true),
        (&*format!("cat /proc/{job_pid}/environ >/dev/null"), true),
        (&*format!("ls /proc/{supervisor_pid}/fd >/dev/null"), true),
        (&*format!("ls {}", ann.home().display()), true),
        // These not even she may.
        (&*format!("ls {directory}"), false),
        (&*format!("touch {directory}/x"), false),
        (&*format!("rm -f {socket}"), false),
        (&*format!("mv {socket} {socket}.old"), false),
        (&*format!("cat {directory}/supervisor.lock"), false),
        (&*format!("mkdir {SOCKETS}/{}", ann.uid() + 1_000_000), false),
    ] {
        let by_him = script(&host, &bob, what);
        assert_ne!(by_him.code(), 0, "{what}: {by_him:?}");
        assert!(
            ["not permitted", "ermission denied"].iter().any(|no| by_him.error_text().contains(no)),
            "{what}: {by_him:?}"
        );
        assert_eq!(script(&host, &ann, what).code() == 0, hers, "{what}");
    }
    // A supervisor of his own knows nothing of her jobs: the same id is another job.
    let id = ["--id", "same", "-c", "id -u"];
    for account in [&ann, &bob] {
        let output = host.run_at(&host.target_of(account), id).output();
        assert_eq!(output.success().text(), format!("{}\n", account.uid()));
    }
    fs::write(ann.home().join("end"), "\n").unwrap();
    job.wait().success();
}

/// A command as `account`, which must not be run by anybody, and what the server's log says of it.
fn must_be_turned_away(host: &Host, account: &Account, why: &str) {
    let output = script(host, account, "id -un");
    output.expect_code(255);
    assert_eq!(output.text(), "");
    assert!(output.error_text().contains("could not start the supervisor"), "{output:?}");
    assert!(host.log().contains(why), "{why}\n{}", host.log());
}

#[test]
fn fault_63_a_socket_of_another_account_is_not_spoken_to() {
    if !can_make_accounts() {
        return;
    }
    let host = Host::builder().serve_accounts().start();
    let [ann, bob] = two(&host);
    let says = |account: &Account| script(&host, account, "id -un").success().text().to_owned();
    assert_eq!(says(&bob), format!("{}\n", bob.name()));
    let directory = socket_of(&ann).parent().unwrap().to_owned();
    let clear = || {
        let _ = fs::remove_dir_all(&directory);
        let _ = fs::remove_file(&directory);
    };
    // Only root could do any of this. A link to the other's socket, where hers should be:
    fs::create_dir(&directory).unwrap();
    symlink(socket_of(&bob), socket_of(&ann)).unwrap();
    must_be_turned_away(&host, &ann, "is another user's");
    clear();
    // A link to the other's directory:
    symlink(socket_of(&bob).parent().unwrap(), &directory).unwrap();
    must_be_turned_away(&host, &ann, "is not a directory, or is a symbolic link");
    clear();
    // A directory that is hers, or his, or everybody's:
    for (owner, mode, why) in [
        (Some(&ann), 0o700, "belongs to uid"),
        (Some(&bob), 0o755, "belongs to uid"),
        (None, 0o777, "others may not write to it"),
        (None, 0o1777, "others may not write to it"),
    ] {
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
        if let Some(owner) = owner {
            owner.give(&directory, mode);
        }
        must_be_turned_away(&host, &ann, why);
        clear();
    }
    // What is in the way and no socket stays, and is not used.
    fs::create_dir(&directory).unwrap();
    fs::write(socket_of(&ann), "no socket").unwrap();
    must_be_turned_away(&host, &ann, "cannot remove the old socket");
    assert_eq!(fs::read_to_string(socket_of(&ann)).unwrap(), "no socket");
    clear();
    // With nothing in the way all is well.
    assert_eq!(says(&ann), format!("{}\n", ann.name()));
}

#[test]
fn fault_63_sockets_are_not_kept_where_an_account_could_be_first() {
    if !can_make_accounts() {
        return;
    }
    let owner = Account::new();
    let mine = owner.home().join("sockets");
    fs::create_dir(&mine).unwrap();
    owner.give(&mine, 0o755);
    let host = Host::builder().serve_accounts().serve_arg("--socket-dir").serve_arg(&mine).start();
    owner.authorize(&Home::public_line(&host.key()));
    must_be_turned_away(&host, &owner, "belongs to uid");
    // Another place of root's does.
    let roots = owner.beside_home("sockets");
    let host = Host::builder().serve_accounts().serve_arg("--socket-dir").serve_arg(&roots).start();
    owner.authorize(&Home::public_line(&host.key()));
    script(&host, &owner, "true").success();
    assert!(roots.join(owner.uid().to_string()).join("supervisor.sock").exists());
}

/// A supervisor that is stopped takes no connections: its account waits, the others do not.
#[test]
fn a_supervisor_that_does_not_answer_holds_up_its_own_account_only() {
    if !can_make_accounts() {
        return;
    }
    let host = Host::builder().serve_accounts().start();
    let [ann, bob] = two(&host);
    let pid = script(&host, &ann, "echo $PPID").success().text().trim().parse().unwrap();
    let supervisor = Process::open(pid).unwrap();
    supervisor.signal(Signal::STOP);
    let waiting = host.run_at(&host.target_of(&ann), ["-c", "echo late"]).spawn();
    for _ in 0..8 {
        script(&host, &bob, "true").success();
    }
    supervisor.signal(Signal::CONT);
    assert_eq!(waiting.wait().success().text(), "late\n");
}

/// The role that becomes a user, run by itself as the listener does.
fn as_user(account: &Account, sockets: &Path, through: &[&str]) -> std::process::Output {
    let mut words: Vec<&str> = through.to_vec();
    let program = afar();
    words.push(program.to_str().expect("the path is UTF-8"));
    let (program, rest) = words.split_first().expect("afar is one of them");
    let uid = account.uid().to_string();
    let mut command = Command::new(program);
    command.args(rest).args(["as-user", "--uid", &uid, "--socket-dir"]).arg(sockets);
    command.args(["--", account.name()]).env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin");
    command.output().expect("setpriv (util-linux) is installed")
}

#[test]
fn fault_54_privileges_that_can_not_be_dropped_are_never_used() {
    if !can_make_accounts() {
        return;
    }
    let account = Account::new();
    let sockets = account.beside_home("sockets");
    for (capability, step) in [("-setuid", "set the user"), ("-setgid", "set the groups")] {
        let through = ["setpriv", "--bounding-set", capability, "--inh-caps", capability];
        let output = as_user(&account, &sockets, &through);
        assert_eq!(output.status.code(), Some(255), "{output:?}");
        // A supervisor would have said here that it listens.
        assert_eq!(output.stdout, b"", "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(step) && said.contains("nothing was executed"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(account.processes().is_empty());
        // Nor is anything there that could be connected to.
        let socket = sockets.join(account.uid().to_string()).join("supervisor.sock");
        let refused = afar_sys::socket::connect_unix(&socket).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    // A whole server that may not: the account is not let in at all, because its files can't be read
    // as it.
    let through = ["setpriv", "--bounding-set", "-setuid", "--inh-caps", "-setuid"];
    let host = Host::builder().serve_accounts().serve_through(&through).start();
    account.authorize(&Home::public_line(&host.key()));
    let output = script(&host, &account, "id");
    output.expect_code(255);
    assert_eq!(output.text(), "");
    assert!(host.log().contains("cannot read as"), "{}", host.log());
}

/// Whatever root's listener has open, and whatever is in its environment, stays with it.
#[test]
fn fault_64_nothing_of_roots_is_inherited() {
    if !can_make_accounts() {
        return;
    }
    let through = ["sh", "-c", "exec 7</etc/shadow; umask 077; exec \"$@\"", "sh"];
    let host = Host::builder()
        .serve_accounts()
        .serve_through(&through)
        .serve_env("OF_ROOT", "secret")
        .serve_env("LD_DEBUG_OUTPUT", "/root/x")
        .start();
    let [ann, _bob] = two(&host);
    let output = script(&host, &ann, "echo $PPID; umask; env");
    let text = output.success().text();
    assert!(!text.contains("OF_ROOT") && !text.contains("LD_DEBUG_OUTPUT"), "{text}");
    let mut lines = text.lines();
    let supervisor: u32 = lines.next().unwrap().parse().unwrap();
    assert_eq!(lines.next(), Some("0022"));
    let environment = fs::read_to_string(format!("/proc/{supervisor}/environ")).unwrap();
    assert!(!environment.contains("OF_ROOT"), "{environment}");
    let open = fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().flatten();
    for entry in open {
        // What was open for the job may just be closed.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy();
        let lock = socket_of(&ann).with_file_name("supervisor.lock");
        let log = ann.home().join(".local/state/afar/supervisor.log");
        // Its journal, its index, and what its jobs have said.
        let archive = ann.home().join(".local/state/afar/jobs");
        let is_its_own =
            ["socket:", "anon_inode:", "pipe:"].iter().any(|own| target.starts_with(own))
                || Path::new(&*target).starts_with(archive)
                || ["/dev/null", lock.to_str().unwrap(), log.to_str().unwrap()].contains(&&*target);
        assert!(is_its_own, "{target}");
    }
}

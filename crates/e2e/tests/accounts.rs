//! A server that root runs: who is let in, as whom commands run, and as what. sshd is the oracle.

use afar_e2e::{Account, Home, Host, Output, Sshd, afar, can_make_accounts};

/// A server for all accounts, on which failed logins have no penalties.
fn host() -> Host {
    Host::builder().serve_accounts().serve_arg("--penalty-exempt").serve_arg("127.0.0.1").start()
}

/// Lets the keys of both clients in, so that one account can be asked in both ways.
fn authorize(account: &Account, host: &Host, sshd: &Sshd) {
    let lines = [host.key(), sshd.home().key()].map(|key| Home::public_line(&key));
    account.authorize(&lines.concat());
}

fn script(host: &Host, account: &Account, script: &str) -> Output {
    host.run_at(&host.target_of(account), ["-c", script]).output()
}

/// Whether a command was run at all; if not, for what reason as the client has it.
fn is_let_in(output: &Output) -> Result<(), String> {
    match output.code() {
        255 => Err(output.error_text().to_owned()),
        _ => Ok(()),
    }
}

#[test]
fn a_command_of_an_account_is_what_it_is_through_sshd() {
    if !can_make_accounts() {
        return;
    }
    let (host, sshd, account) = (host(), Sshd::serving_accounts(), Account::new());
    let group = account.join_new_group();
    account.modify(["-p", "*", "-s", "/bin/bash"]);
    authorize(&account, &host, &sshd);
    for command in [
        "id",
        "id -Gn",
        "pwd",
        "umask",
        "echo $0 $-",
        "echo $USER $LOGNAME $HOME $SHELL $PATH $MAIL",
        "env | grep -vE '^(SSH_|AFAR_|SHLVL|_)' | sort",
        "ulimit -a",
        "ulimit -Ha",
        "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|SigBlk)' /proc/self/status",
        "for fd in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$fd ] && echo $fd; done",
        "touch file; stat -c '%U %G %a' file",
        "cat /etc/shadow",
        "kill -0 1",
        "tty",
        "exit 7",
    ] {
        let through_ssh = sshd.ssh_as(account.name(), &[], command).output();
        let through_afar = script(&host, &account, command);
        assert_eq!(through_afar.text(), through_ssh.text(), "{command}");
        assert_eq!(through_afar.error_text(), through_ssh.error_text(), "{command}");
        assert_eq!(through_afar.code(), through_ssh.code(), "{command}");
    }
    let groups = script(&host, &account, "id -Gn");
    assert_eq!(groups.text(), format!("{} {group}\n", account.name()));
    // What is not executed by a shell is the account's too.
    let argv = host.run_at(&host.target_of(&account), ["--", "id", "-un"]).output();
    assert_eq!(argv.success().text(), format!("{}\n", account.name()));
    // Root goes on to be served beside it, as itself.
    assert_eq!(host.run(["--", "id", "-u"]).output().success().text(), "0\n");
}

/// W-4.15: what keeps an account out, here and at sshd.
#[test]
fn accounts_that_the_system_keeps_out_are_kept_out_as_sshd_does() {
    if !can_make_accounts() {
        return;
    }
    let (host, sshd) = (host(), Sshd::serving_accounts());
    let today = "sh -c 'date +%F'";
    let day = host.run(["-c", &format!("TZ=UTC {today}")]).output().success().text().to_owned();
    let cases: [(&str, &[&str], bool); 7] = [
        ("a password that was never used", &["-p", "*"], true),
        ("its last day is today", &["-p", "*", "-e", day.trim()], true),
        ("its last day is over", &["-p", "*", "-e", "2020-01-01"], false),
        ("locked", &["-p", "!$6$salt$hash"], false),
        ("its shell is missing", &["-p", "*", "-s", "/nonexistent/shell"], false),
        ("its shell is not executable", &["-p", "*", "-s", "/etc/passwd"], false),
        ("its shell is a directory", &["-p", "*", "-s", "/etc"], false),
    ];
    let accounts: Vec<Account> = cases.iter().map(|_| Account::new()).collect();
    let mut messages = Vec::new();
    for ((why, options, let_in), account) in cases.into_iter().zip(&accounts) {
        authorize(account, &host, &sshd);
        let mut words = [""; 4];
        words.iter_mut().zip(options.iter().chain(["-c", ""].iter())).for_each(|(to, of)| *to = of);
        account.modify(words);
        let through_ssh = sshd.ssh_as(account.name(), &[], "true").output();
        let through_afar = is_let_in(&script(&host, account, "true"));
        assert_eq!(through_ssh.code() == 0, let_in, "{why}, by sshd: {through_ssh:?}");
        assert_eq!(through_afar.is_ok(), let_in, "{why}: {through_afar:?}\n{}", host.log());
        messages.extend(through_afar.err().map(|text| text.replace(account.name(), "NAME")));
    }
    // Whoever is refused learns nothing: it is the same as for a name that nobody has.
    let nobody = format!("{}x@{}", accounts[0].name(), host.address());
    let unknown = is_let_in(&host.run_at(&nobody, ["-c", "true"]).output()).unwrap_err();
    let unknown = unknown.replace(&format!("{}x", accounts[0].name()), "NAME");
    messages.iter().for_each(|message| assert_eq!(*message, unknown));
    for why in ["has expired", "is locked", "missing or not executable", "no such user"] {
        assert!(host.log().contains(why), "{why}\n{}", host.log());
    }
}

/// Where afar is not as sshd without PAM, and the documentation says so.
#[test]
fn accounts_without_a_password_are_let_in_and_those_with_nologin_are_not() {
    if !can_make_accounts() {
        return;
    }
    let (host, sshd) = (host(), Sshd::serving_accounts());
    let (fresh, nologin) = (Account::new(), Account::new());
    authorize(&fresh, &host, &sshd);
    authorize(&nologin, &host, &sshd);
    nologin.modify(["-p", "*", "-s", "/usr/sbin/nologin"]);
    // useradd(8) gives a new account `!`, which sshd takes for a lock unless it has PAM.
    assert_eq!(sshd.ssh_as(fresh.name(), &[], "true").output().code(), 255);
    script(&host, &fresh, "true").success();
    // sshd runs the shell, which refuses; here an exact argv would get around it.
    assert_eq!(sshd.ssh_as(nologin.name(), &[], "true").output().code(), 1);
    let refused = host.run_at(&host.target_of(&nologin), ["--", "true"]).output();
    assert!(is_let_in(&refused).unwrap_err().contains("accepts none"), "{refused:?}");
    assert!(host.log().contains("lets nobody in"), "{}", host.log());
}

#[test]
fn a_restricted_login_shell_is_not_got_around() {
    if !can_make_accounts() {
        return;
    }
    let (host, sshd, account) = (host(), Sshd::serving_accounts(), Account::new());
    authorize(&account, &host, &sshd);
    let target = host.target_of(&account);
    // Its supervisor runs already, and has seen another shell.
    script(&host, &account, "true").success();
    account.modify(["-p", "*", "-s", "/bin/rbash"]);
    for words in [["--", "/bin/echo"], ["-c", "/bin/echo"]] {
        let output = host.run_at(&target, words).output();
        assert_ne!(output.code(), 0, "{output:?}");
        assert!(output.error_text().contains("restricted"), "{output:?}");
    }
    let through_ssh = sshd.ssh_as(account.name(), &[], "/bin/echo").output();
    assert_eq!(host.run_at(&target, ["--", "/bin/echo"]).output().code(), through_ssh.code());
    assert_eq!(host.run_at(&target, ["--", "echo", "a b"]).output().success().text(), "a b\n");
    // Nor by a session, which would be a shell of afar's choice.
    let words = ["--session", "s", "-c", "/bin/echo"];
    let output = host.run_at(&target, words).output();
    assert!(output.error_text().contains("restricted"), "{output:?}");
    // Neither by what the shell itself would read before the command, nor by where it starts.
    let profile = account.write("profile", "echo got around\n", 0o644);
    let variable = format!("BASH_ENV={}", profile.display());
    let words = ["-e", &variable, "--cwd", "/", "-c", "echo $PWD"];
    let output = host.run_at(&target, words).output();
    assert_eq!(output.success().text(), format!("{}\n", account.home().display()));

    // One that is not in /etc/shells is told everything, whatever it makes of it.
    let account = Account::new();
    authorize(&account, &host, &sshd);
    let shell = account.beside_home("shell");
    std::fs::write(&shell, "#!/bin/sh\nprintf '%s|' \"$0\" \"$@\"\n").unwrap();
    account.give(&shell, 0o755);
    account.modify(["-s", shell.to_str().unwrap()]);
    let target = host.target_of(&account);
    let output = host.run_at(&target, ["--", "rm", "-rf", "a b"]).output();
    let told = output.success().text().split_once('|').unwrap().1.to_owned();
    assert_eq!(told, "-c|rm -rf 'a b'|");
}

#[test]
fn the_owners_rules_name_users_and_groups() {
    if !can_make_accounts() {
        return;
    }
    let accounts: [Account; 3] = std::array::from_fn(|_| Account::new());
    let group = accounts[1].join_new_group();
    let serve = |rules: &[&str]| {
        let host = Host::builder().serve_accounts();
        let rules = ["--penalty-exempt", "127.0.0.1"].iter().chain(rules);
        rules.fold(host, |host, word| host.serve_arg(word)).start()
    };
    let let_in = |rules: &[&str]| {
        let host = serve(rules);
        accounts.each_ref().map(|account| {
            account.authorize(&Home::public_line(&host.key()));
            is_let_in(&script(&host, account, "true")).is_ok()
        })
    };
    let [first, second, third] = accounts.each_ref().map(Account::name);
    let two = format!("{first},{second}");
    assert_eq!(let_in(&["--allow-users", &two]), [true, true, false]);
    assert_eq!(let_in(&["--allow-users", first, "--allow-users", third]), [true, false, true]);
    assert_eq!(let_in(&["--allow-users", &two, "--deny-users", first]), [false, true, false]);
    assert_eq!(let_in(&["--deny-users", &format!("{first}@127.0.0.0/8")]), [false, true, true]);
    assert_eq!(let_in(&["--deny-users", &format!("{first}@192.0.2.1")]), [true, true, true]);
    assert_eq!(let_in(&["--allow-groups", &group]), [false, true, false]);
    assert_eq!(let_in(&["--deny-groups", &format!("{group},{third}")]), [true, false, false]);
}

#[test]
fn root_comes_in_as_permit_root_login_says() {
    if !can_make_accounts() {
        return;
    }
    for (word, options, let_in) in [
        ("yes", "", true),
        ("prohibit-password", "", true),
        ("forced-commands-only", "", false),
        ("forced-commands-only", "command=\"echo forced\"", true),
        ("no", "command=\"echo forced\"", false),
    ] {
        let host = Host::builder().key_options(options);
        let host = host.serve_arg("--permit-root-login").serve_arg(word).start();
        let output = host.run(["-c", "echo asked"]).output();
        assert_eq!(is_let_in(&output).is_ok(), let_in, "{word} {options}: {output:?}");
        if let_in {
            let expected = if options.is_empty() { "asked\n" } else { "forced\n" };
            assert_eq!(output.text(), expected);
        }
    }
}

#[test]
fn a_server_that_is_given_no_rule_but_nonsense_does_not_start() {
    let home = Home::new();
    for (option, value) in [
        ("--permit-root-login", "maybe"),
        ("--allow-users", "ann@host.example"),
        ("--deny-users", "ann@192.0.2.0/33"),
    ] {
        let output = home.afar(["serve", "--listen", "127.0.0.1:0", option, value]).output();
        output.expect_code(255);
        let text = output.error_text();
        assert!(text.contains(option) && text.lines().count() == 1, "{text}");
    }
}

/// Root opens the file as the account: what the account can't read grants nothing, even if root owns
/// it and so may be believed; and it does not matter that root could.
#[test]
fn keys_are_read_as_the_account() {
    if !can_make_accounts() {
        return;
    }
    let (host, account) = (host(), Account::new());
    let line = Home::public_line(&host.key());
    let keys = account.home().join(".ssh/authorized_keys");
    let roots = host.write("keys-of-root", &line);
    std::os::unix::fs::symlink(&roots, &keys).unwrap();
    assert!(is_let_in(&script(&host, &account, "true")).is_err());
    assert!(host.log().contains("ermission denied"), "{}", host.log());
    // A file of root's that it can read is as good as its own.
    std::fs::remove_file(&keys).unwrap();
    std::fs::write(&keys, &line).unwrap();
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(&keys, mode(0o600)).unwrap();
    assert!(is_let_in(&script(&host, &account, "true")).is_err());
    std::fs::set_permissions(&keys, mode(0o644)).unwrap();
    script(&host, &account, "true").success();
    // And another account's is not.
    Account::new().give(&keys, 0o644);
    assert!(is_let_in(&script(&host, &account, "true")).is_err());
    assert!(host.log().contains("owned by uid"), "{}", host.log());
}

#[test]
fn many_first_logins_at_once_share_one_supervisor_and_it_ends_in_order() {
    if !can_make_accounts() {
        return;
    }
    let (host, account) = (host(), Account::new());
    account.authorize(&Home::public_line(&host.key()));
    let target = host.target_of(&account);
    let parent = || host.run_at(&target, ["-c", "echo $PPID"]).spawn();
    let runs: Vec<_> = (0..6).map(|_| parent()).collect();
    let mut parents: Vec<String> =
        runs.into_iter().map(|run| run.wait().success().text().to_owned()).collect();
    parents.dedup();
    assert_eq!(parents.len(), 1, "{parents:?}\n{}", host.log());
    // Told to end, and killed, leaving its socket behind: the next login starts another one.
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        let pid = parents.pop().unwrap().trim().parse().unwrap();
        let supervisor = afar_e2e::Process::open(pid).unwrap();
        supervisor.signal(signal);
        supervisor.wait();
        parents.push(parent().wait().success().text().to_owned());
        assert_ne!(parents[0].trim(), pid.to_string());
    }
}

/// The user's own commands see the jobs that came over the network.
#[test]
fn the_accounts_own_commands_find_the_supervisor_that_root_has_started() {
    if !can_make_accounts() {
        return;
    }
    let (host, account) = (host(), Account::new());
    account.authorize(&Home::public_line(&host.key()));
    let through_root = script(&host, &account, "echo $PPID");
    let words = ["run", "local", "-c", "echo $PPID"];
    // Where the account can execute it, to start a supervisor with it.
    let program = account.beside_home("afar");
    std::fs::copy(afar(), &program).unwrap();
    let local = account.program(&program, words).output();
    assert_eq!(local.success().text(), through_root.success().text());
    // Whoever moves the directories has a supervisor apart.
    let run = account.home().join("run");
    std::fs::create_dir(&run).unwrap();
    account.give(&run, 0o700);
    let apart = account.program(&program, words).env("XDG_RUNTIME_DIR", &run).output();
    assert_ne!(apart.success().text(), through_root.text());
}

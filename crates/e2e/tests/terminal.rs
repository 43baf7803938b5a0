//! Interactive work in a real terminal: programs, sizes, keys, escapes, and a terminal that is always
//! given back.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use afar_e2e::{Host, Process, Proxy, Screen, process};

/// The command line of a subcommand against this host, for a shell.
fn afar(host: &Host, subcommand: &str, words: &str) -> String {
    afar_at(host, &host.target(), subcommand, words)
}

fn afar_at(host: &Host, target: &str, subcommand: &str, words: &str) -> String {
    let options: Vec<String> =
        host.client_options().iter().map(|word| word.to_str().expect("UTF-8").to_owned()).collect();
    format!("$AFAR {subcommand} {} {target} {words}", options.join(" "))
}

/// A screen on which this runs on a terminal of the host.
fn on_terminal(host: &Host, words: &str) -> Screen {
    let screen = Screen::start(host);
    // What comes next stands at the top.
    screen.line(&format!("clear; {}", afar(host, "run -t", words)));
    screen
}

/// The same with a shell at a prompt, which edits lines and controls jobs.
fn at_prompt(host: &Host) -> Screen {
    let screen = on_terminal(host, "-e 'PS1=there$ ' -- bash --norc --noprofile");
    screen.wait_for_last("there$");
    screen
}

#[test]
fn a_shell_is_a_login_shell_on_a_terminal_like_ours() {
    let host = Host::start();
    let screen = Screen::start(&host);
    screen.line(&format!("clear; {}", afar(&host, "shell", "")));
    screen.wait_until("a prompt", |shown| shown.ends_with(['$', '#', '%', '>']));
    screen.line("echo $0 $((6*7)) $TERM $(stty size) $LANG");
    screen.wait_until("what it says", |shown| {
        shown
            .lines()
            .any(|line| line.starts_with('-') && line.ends_with(" 42 tmux-256color 24 80 C.UTF-8"))
    });
    assert!(screen.is_raw(), "its keys are read one by one");
    screen.line("exit 7");
    assert_eq!(screen.status(), 7);
}

#[test]
fn vim_edits_and_saves() {
    let host = Host::start();
    let file = host.file("edited");
    let screen = on_terminal(&host, &format!("-- vi -u NONE -N {}", file.display()));
    screen.wait_for("[New]");
    screen.text("ifirst\rsecond");
    screen.keys(["Escape"]);
    screen.text("kA line");
    screen.keys(["Escape"]);
    screen.wait_for("first line");
    screen.text(":wq\r");
    assert_eq!(screen.status(), 0);
    assert_eq!(fs::read_to_string(file).unwrap(), "first line\nsecond\n");
}

#[test]
fn pagers_editors_and_monitors_draw_their_screens() {
    let host = Host::start();
    let numbers: String = (1..=500).map(|number| format!("line {number}\n")).collect();
    let file = host.write("numbers", numbers);
    let file = file.display();

    let screen = on_terminal(&host, &format!("-- less {file}"));
    screen.wait_for("line 22");
    screen.text("G");
    screen.wait_for("line 500");
    screen.text("?line 250\r");
    screen.wait_until("line 250 on top", |shown| shown.starts_with("line 250"));
    screen.text("q");
    assert_eq!(screen.status(), 0);

    screen.line(&afar(&host, "run -t", "-- top -d 1"));
    screen.wait_until("top", |shown| shown.contains("load average") && shown.contains("PID"));
    screen.text("q");
    assert_eq!(screen.status(), 0);

    screen.line(&afar(&host, "run -t", "-- htop"));
    screen.wait_until("htop", |shown| shown.contains("F10Quit") && shown.contains("PID"));
    screen.keys(["F10"]);
    assert_eq!(screen.status(), 0);

    screen.line(&afar(&host, "run -t", &format!("-- nano -I {file}")));
    screen.wait_until("nano", |shown| shown.contains("GNU nano") && shown.contains("line 1"));
    screen.text("new ");
    screen.wait_for("new line 1");
    screen.keys(["C-x"]);
    screen.wait_for("Save modified buffer");
    screen.text("n");
    assert_eq!(screen.status(), 0);
}

#[test]
fn prompts_that_edit_lines_do() {
    let host = Host::start();
    let screen = on_terminal(&host, "-- python3 -q");
    screen.wait_for_last(">>>");
    screen.text("print(6*8)");
    screen.keys(["BSpace", "BSpace"]);
    screen.text("7)");
    screen.keys(["Enter"]);
    screen.wait_for("\n42\n");
    screen.keys(["Up", "C-a"]);
    screen.text("1;");
    screen.wait_for_last(">>> 1;print(6*7)");
    screen.keys(["C-c"]);
    screen.wait_for("KeyboardInterrupt");
    screen.keys(["C-d"]);
    assert_eq!(screen.status(), 0);
}

#[test]
fn a_window_that_is_resized_is_so_for_a_full_screen_program() {
    let host = Host::start();
    let screen = on_terminal(&host, "-- vi -u NONE -N");
    screen.wait_until("vim", |shown| shown.lines().filter(|line| *line == "~").count() > 10);
    screen.text(":set laststatus=2 statusline=%{&columns}x%{&lines}\r");
    screen.wait_for("80x24");
    for (columns, rows) in [(101, 31), (60, 15), (12, 5), (80, 24)] {
        screen.resize(columns, rows);
        screen.wait_for(&format!("{columns}x{rows}"));
    }
    screen.text(":q!\r");
    assert_eq!(screen.status(), 0);
}

#[test]
fn jobs_are_controlled_by_keys() {
    let host = Host::start();
    let screen = at_prompt(&host);
    screen.line("cat");
    screen.text("half");
    screen.wait_for_last("half");
    screen.keys(["C-z"]);
    screen.wait_for("Stopped");
    screen.line("jobs; echo $((40+1))");
    screen.wait_for("\n41\n");
    screen.line("fg");
    // Until then the shell still has the keys, and shows them itself.
    screen.wait_for_last("cat");
    screen.line("a line");
    screen.wait_until("an echo of it", |shown| shown.matches("a line").count() == 2);
    screen.keys(["C-d"]);
    screen.wait_for_last("there$");
    screen.line("sleep 1000");
    screen.keys(["C-c"]);
    screen.line("echo \"it was $?\"");
    screen.wait_for("it was 130");
    screen.keys(["C-d"]);
    assert_eq!(screen.status(), 0);
}

#[test]
fn a_password_is_not_shown() {
    let host = Host::start();
    let screen = on_terminal(
        &host,
        "-c 'stty -echo; printf \"Password: \"; read p; stty echo; echo; echo \"${#p} letters\"'",
    );
    screen.wait_for_last("Password:");
    screen.line("secret");
    let shown = screen.wait_for("6 letters");
    assert!(!shown.contains("secret"), "{shown}");
    assert_eq!(screen.status(), 0);
}

#[test]
fn a_hundred_kilobytes_are_pasted_whole() {
    let host = Host::start();
    let text: String = (0..2000).map(|line| format!("{line:4} {}\n", "x".repeat(45))).collect();
    assert!(text.len() > 100_000);
    let (pasted, file) = (host.write("pasted", &text), host.file("arrived"));
    let screen = on_terminal(
        &host,
        &format!("-c 'echo ready; head -n 2000 > {}; echo all there'", file.display()),
    );
    screen.wait_for_last("ready");
    screen.paste(&pasted);
    // Not for its echo: what of that finds no room is kept back by the kernel until something else
    // happens there, or dropped.
    screen.wait_for("all there");
    assert_eq!(screen.status(), 0);
    assert!(fs::read_to_string(file).unwrap() == text, "it is another text");
}

#[test]
fn wide_characters_are_shown_and_erased_whole() {
    let host = Host::start();
    let screen = on_terminal(&host, "-c 'echo ready; cat'");
    screen.wait_for_last("ready");
    screen.line("日本語 🦀 é");
    screen.wait_until("it twice", |shown| shown.matches("日本語 🦀 é").count() == 2);
    // The terminal there erases characters, and not bytes of them.
    screen.text("日本");
    screen.keys(["BSpace", "Enter"]);
    screen.wait_until("one of them", |shown| shown.lines().last() == Some("日"));
    screen.keys(["C-d"]);
    assert_eq!(screen.status(), 0);
}

#[test]
fn escapes_help_leave_and_return() {
    let host = Host::start();
    let screen = Screen::start(&host);
    let run = "-e 'PS1=there$ ' --id lasting -- bash --norc --noprofile";
    screen.line(&format!("clear; {}", afar(&host, "run -t --on-disconnect keep", run)));
    screen.wait_for_last("there$");
    screen.text("~?");
    screen.wait_for("~d   leave, and let the job go on");
    screen.keys(["Enter"]);
    screen.line("echo a~.b; x=5");
    screen.wait_for("\na~.b\n");
    // Twice it is once itself.
    screen.line("~~.");
    screen.wait_for("~.: ");
    screen.text("~d");
    screen.wait_for("lasting` returns to it");
    assert_eq!(screen.status(), 0);

    let attach = format!("clear; {}/lasting", afar(&host, "attach", "").trim_end());
    screen.line(&attach);
    screen.line("echo x is $x");
    screen.wait_for("\nx is 5\n");
    screen.keys(["Enter"]);
    screen.text("~.");
    screen.wait_for("left, and the command goes on");
    assert_eq!(screen.status(), 255);

    screen.line(&attach);
    screen.line("exit 3");
    assert_eq!(screen.status(), 3);
}

#[test]
fn a_shell_that_is_left_goes_on_and_its_end_is_the_next_ones() {
    let host = Host::start();
    let screen = Screen::start(&host);
    let shell = afar(&host, "shell --id work", "");
    screen.line(&format!("clear; {shell}"));
    screen.wait_until("a prompt", |shown| shown.ends_with(['$', '#', '%', '>']));
    screen.line("x=$((6*7))");
    screen.text("~.");
    assert_eq!(screen.status(), 255);
    // Asked for again it is the same, and what was typed then is not swallowed now.
    screen.line(&format!("clear; {shell}"));
    screen.line("echo x is $x; exit 4");
    screen.wait_for("x is 42");
    assert_eq!(screen.status(), 4);
}

#[test]
fn afar_is_suspended_by_its_escape_and_goes_on() {
    let host = Host::start();
    let screen = at_prompt(&host);
    screen.line("x=5");
    screen.text("~");
    screen.keys(["C-z"]);
    screen.wait_for_last("here$");
    assert!(!screen.is_raw());
    screen.line("echo here $((5*5))");
    screen.wait_for("here 25");
    screen.resize(90, 25);
    screen.line("fg");
    screen.line("echo x is $x, $(stty size)");
    screen.wait_for("x is 5, 25 90");
    assert!(screen.is_raw());
    screen.line("exit");
    assert_eq!(screen.status(), 0);
}

/// Keys that are typed while the link is away, which then comes from another address.
#[test]
fn fault_70_keys_that_are_typed_without_a_link_arrive_once() {
    let host = Host::start();
    let proxy = Proxy::start(host.address());
    host.trust(proxy.address(), &host.host_key());
    let screen = Screen::start(&host);
    let words = "-e 'PS1=there$ ' -- bash --norc --noprofile";
    let target = host.target_via(proxy.address());
    screen.line(&format!("clear; {}", afar_at(&host, &target, "run -t", words)));
    screen.wait_for_last("there$");
    screen.line("typed=");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    proxy.redirect(nobody);
    proxy.cut();
    screen.wait_for("reconnecting");
    screen.line("typed=$typed+1");
    screen.line("echo it is $((0$typed)) of $typed");
    // Nobody is there to show it.
    assert!(!screen.shown().contains("it is"));
    proxy.come_from(Ipv4Addr::new(127, 0, 0, 2));
    proxy.redirect(host.address());
    screen.wait_for("it is 1 of +1");
    screen.line("exit");
    assert_eq!(screen.status(), 0);
}

/// The client on a screen, by a word of its command line.
fn client_of(mark: &str) -> Process {
    let found = process::all().into_iter().find(|entry| {
        let command = process::command(entry.pid);
        command.contains(mark) && command.contains(" run -t ")
    });
    Process::open(found.expect("the client runs").pid).expect("it runs")
}

#[test]
fn raw_mode_is_left_when_a_signal_ends_the_client() {
    let host = Host::start();
    let mark = host.file("mark").display().to_string();
    let script = "trap \"echo told\" TERM; echo ready; while :; do read x; done";
    let screen = on_terminal(&host, &format!("--kill-after 100ms -- sh -c '{script}' {mark}"));
    screen.wait_for_last("ready");
    assert!(screen.is_raw());
    let client = client_of(&mark);
    client.signal(rustix::process::Signal::TERM);
    screen.wait_for("told");
    client.signal(rustix::process::Signal::TERM);
    client.wait();
    assert_eq!(screen.status(), 130);
    host.wait_until_idle();
}

#[test]
fn fault_56_raw_mode_is_left_when_the_server_is_killed() {
    let host = Host::start();
    let screen = Screen::start(&host);
    screen.line(&format!("clear; {}", afar(&host, "run -t", "-- sh -c 'echo ready; cat'")));
    screen.wait_for_last("ready");
    host.supervisor().expect("it runs").kill();
    // Another one is started, and knows that the job is lost.
    assert_eq!(screen.status(), 255);
}

/// J-2.3: `--on-disconnect` decides.
#[test]
fn fault_51_a_client_that_is_gone_hangs_the_terminal_up_or_keeps_it_as_asked() {
    let host = Host::start();
    for (word, expected) in [("kill", "hung up\n"), ("keep", "")] {
        let said = host.file(word);
        let screen = Screen::start(&host);
        let mark = host.file(format!("mark-{word}")).display().to_string();
        let script = format!(
            "trap \"echo hung up > {said}; exit\" HUP; echo ready; while :; do read x; done",
            said = said.display()
        );
        let run = format!("run -t --id gone-{word} --on-disconnect {word}");
        screen
            .line(&format!("clear; {}", afar(&host, &run, &format!("-- sh -c '{script}' {mark}"))));
        screen.wait_for_last("ready");
        let client = client_of(&mark);
        client.kill();
        client.wait();
        if word == "kill" {
            host.wait_until_idle();
        }
        assert_eq!(fs::read_to_string(said).unwrap_or_default(), expected);
    }
    assert_eq!(host.end_jobs(), 1);
}

#[test]
fn keys_that_come_through_a_pipe_are_typed_and_so_is_their_end() {
    let host = Host::start();
    let output = host.run(["-t", "--", "cat"]).stdin("hello\n").output();
    assert_eq!(output.success().text(), "hello\r\nhello\r\n");
    let output = host.run(["-t", "--", "cat"]).stdin("half").output();
    assert_eq!(output.success().text(), "halfhalf");
    // A terminal that nobody sits at has a size all the same.
    let output = host.run(["-t", "--", "stty", "size"]).stdin("").output();
    assert_eq!(output.success().text(), "24 80\r\n");
    let output = host.run(["-t", "-n", "--", "tty"]).output();
    assert!(output.success().text().starts_with("/dev/pts/"));
    let output = host.run(["-t", "-T", "--", "tty"]).stdin("").output();
    assert_eq!(output.expect_code(1).text(), "not a tty\n");
}

#[test]
fn a_shell_without_a_terminal_on_this_side_is_an_error_of_one_line() {
    let host = Host::start();
    let output = host.afar(["shell"]).args(host.client_options()).arg(host.target()).output();
    let output = output.expect_code(255);
    assert!(output.error_text().starts_with("afar: usage: stdin is no terminal"), "{output:?}");
    assert_eq!(output.error_text().lines().count(), 1);
}

#[test]
fn bulk_through_a_terminal_arrives_whole() {
    let host = Host::start();
    let output = host.run(["-t", "-n", "--", "seq", "200000"]).output();
    let expected: String = (1..=200_000).map(|number| format!("{number}\r\n")).collect();
    assert!(output.success().text() == expected, "it is another text");
}

/// W-4.10
#[test]
fn fault_84_a_key_without_a_terminal_gets_none() {
    let host = Host::builder().key_options("no-pty").start();
    let output = host.run(["-t", "--", "true"]).stdin("").output();
    assert!(output.expect_code(255).error_text().contains("no-pty"), "{output:?}");
    host.run(["--", "true"]).output().success();
}
